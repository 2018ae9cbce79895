//! What the guest's users do to it on its way, and libvirt would let fall: a pause, a changed definition.

use drover_agent::hypervisor::Hypervisor;
use drover_agent::sim::{Call, Fault, SimGuest};
use drover_proto::agent::v1::{DefinitionNews, JournalState, LibvirtState, SettleIncomingRequest, Verdict};
use tokio_util::sync::CancellationToken;

use super::scene::Scene;

async fn scene() -> Scene {
    Scene::new(SimGuest::named("web")).await
}

/// The source has let go, the guest stands still at the destination.
async fn arrives_paused(scene: &Scene) {
    let arrived = scene.until_state(&scene.b, JournalState::Ran).await;
    assert_eq!(arrived.guest.unwrap().state(), LibvirtState::Paused);
    assert_eq!(arrived.journal.unwrap().runs, Some(false));
    scene.until_moved().await;
    scene.rest(Verdict::Ran).await;
    assert!(scene.runs_on().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_paused_while_it_is_prepared_arrives_paused() {
    let scene = scene().await;
    let ready = scene.ready().await;
    assert_eq!(ready.begun.state_before(), LibvirtState::Running);
    scene.a.host.suspend(scene.guest).await.unwrap();
    scene.send(&ready).await.unwrap();
    arrives_paused(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_paused_while_it_is_sent_arrives_paused() {
    let scene = scene().await;
    let go_on = CancellationToken::new();
    scene.a.host.script(Call::Sending, Fault::Until(go_on.clone()));
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until(&scene.a, "it sends", |status| status.performing).await;
    scene.a.host.suspend(scene.guest).await.unwrap();
    go_on.cancel();
    arrives_paused(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_guest_that_is_resumed_before_it_leaves_arrives_running() {
    let scene = Scene::new(SimGuest {
        paused: true,
        ..SimGuest::named("web")
    })
    .await;
    let begun = scene.begin().await.unwrap();
    // Its job lock was lost for a moment, with the agent.
    let mut scene = scene;
    scene.a.restart().await;
    scene.a.host.resume(scene.guest).await.unwrap();
    let begun_again = scene.begin().await.unwrap();
    assert_eq!(begun_again.state_before, begun.state_before);
    let prepared = scene.prepare(&begun_again).await.unwrap();
    let ready = super::scene::Ready {
        begun: begun_again,
        prepared,
    };
    scene.send(&ready).await.unwrap();
    scene.until_moved().await;
    scene.rest(Verdict::Ran).await;
    assert_eq!(scene.runs_on(), ["b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_source_said_is_journaled_before_finish_and_outlives_the_destinations_agent() {
    let mut scene = scene().await;
    let go_on = CancellationToken::new();
    scene.b.host.script(Call::Finish, Fault::Until(go_on.clone()));
    let ready = scene.ready().await;
    scene.a.host.suspend(scene.guest).await.unwrap();
    scene.send(&ready).await.unwrap();
    let finishing = scene.until_state(&scene.b, JournalState::Finishing).await;
    assert_eq!(finishing.journal.unwrap().runs, Some(false));
    let source = scene.status(&scene.a).await.journal.unwrap();
    assert_eq!((source.state(), source.runs), (JournalState::HandedOver, Some(false)));
    scene.b.kill().await;
    go_on.cancel();
    scene.b.start().await;
    // Whatever became of Finish, no copy was told to run.
    assert!(scene.runs_on().is_empty());
    scene.holds();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_paused_on_its_way_stays_paused_where_it_is_called_off() {
    let scene = scene().await;
    let ready = scene.ready().await;
    scene.a.host.suspend(scene.guest).await.unwrap();
    let go_on = CancellationToken::new();
    scene.a.host.script(Call::Sending, Fault::Until(go_on.clone()));
    scene.send(&ready).await.unwrap();
    scene.until(&scene.a, "it sends", |status| status.performing).await;
    go_on.cancel();
    scene.abort().await.unwrap();
    scene.revoke().await.unwrap();
    scene.rest(Verdict::NeverRan).await;
    assert!(scene.runs_on().is_empty(), "its user paused it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_that_is_changed_on_the_way_is_in_the_sources_journal_and_goes_along() {
    let scene = scene().await;
    let go_on = CancellationToken::new();
    scene.a.host.script(Call::Sending, Fault::Until(go_on.clone()));
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    let newer = ready
        .begun
        .inactive_xml
        .replace("</name>", "</name><title>newer</title>");
    assert_ne!(newer, ready.begun.inactive_xml);
    scene.a.host.define(&newer).await.unwrap();
    go_on.cancel();
    scene.until_moved().await;
    let told = scene.status(&scene.a).await.journal.unwrap().definition.unwrap();
    assert_eq!(
        (told.inactive_xml.as_str(), told.problem.as_str()),
        (newer.as_str(), "")
    );
    scene.settle_a(Verdict::Ran).await.unwrap();
    finalize(&scene, told).await;
    assert_eq!(scene.b.host.look(scene.guest).unwrap().inactive_xml, Some(newer));
    scene.rest(Verdict::Ran).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_that_is_removed_on_the_way_is_removed_there_too() {
    let scene = scene().await;
    let ready = scene.ready().await;
    scene.a.host.undefine(scene.guest).await.unwrap();
    scene.send(&ready).await.unwrap();
    scene.until_moved().await;
    let told = scene.status(&scene.a).await.journal.unwrap().definition.unwrap();
    assert_eq!(told, DefinitionNews::default());
    scene.settle_a(Verdict::Ran).await.unwrap();
    finalize(&scene, told).await;
    assert!(!scene.b.host.look(scene.guest).unwrap().persistent);
    assert_eq!(scene.runs_on(), ["b"]);
    scene.rest(Verdict::Ran).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_definition_that_the_destination_does_not_take_is_told_and_the_guest_keeps_the_one_it_came_with() {
    let scene = scene().await;
    scene.moves().await;
    let came_with = scene.b.host.look(scene.guest).unwrap().inactive_xml;
    scene.settle_a(Verdict::Ran).await.unwrap();
    let news = DefinitionNews {
        inactive_xml: "<domain/>".to_owned(),
        problem: String::new(),
    };
    finalize(&scene, news).await;
    let told = scene.status(&scene.b).await.journal.unwrap().definition.unwrap();
    assert!(!told.problem.is_empty(), "{told:?}");
    assert_eq!(scene.b.host.look(scene.guest).unwrap().inactive_xml, came_with);
    scene.rest(Verdict::Ran).await;
}

/// The controller's word to the destination, with what the source said.
async fn finalize(scene: &Scene, news: DefinitionNews) {
    let request = SettleIncomingRequest {
        fence: scene.fence(),
        migration: scene.reference(),
        verdict: Verdict::Ran.into(),
        fenced: false,
        definition: Some(news),
    };
    scene.ask_b().settle_incoming(request).await.unwrap();
}
