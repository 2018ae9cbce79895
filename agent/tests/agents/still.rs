//! A copy that was handed over stands still until somebody has decided, and not a moment longer.

use std::time::Duration;

use drover_agent::hypervisor::Hypervisor;
use drover_agent::jobs::Timing;
use drover_agent::sim::{Call, Fault, SimGuest};
use drover_proto::agent::v1::*;
use tokio_util::sync::CancellationToken;

use crate::node::eventually;
use crate::scene::{Scene, journal_state};

/// Handed over, with a destination that does not answer, and without a job that protects the copy. The source does
/// not ask a second time, so that nothing but an event makes it look.
async fn handed_over() -> (Scene, CancellationToken) {
    let limits = Timing {
        hand_over: Duration::from_secs(600),
        ..Timing::default()
    };
    let scene = Scene::with_limits(SimGuest::named("web"), limits).await;
    let go_on = CancellationToken::new();
    scene.b.host.script(Call::Finish, Fault::Until(go_on.clone()));
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Finishing).await;
    scene.a.host.restart_libvirtd();
    (scene, go_on)
}

/// The destination has not told its copy to run: the guest goes back.
async fn goes_back(mut scene: Scene) {
    scene.b.kill().await;
    scene.b.start().await;
    eventually("the copy is gone", || scene.b.host.look(scene.guest).is_none()).await;
    scene.abort().await.unwrap();
    scene.until_quiet(&scene.a).await;
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(scene.runs_on(), ["a"], "it was running before somebody stopped it");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_somebody_resumes_is_suspended_at_once() {
    let (scene, _go_on) = handed_over().await;
    scene.a.host.resume(scene.guest).await.unwrap();
    eventually("it is suspended", || scene.runs_on().is_empty()).await;
    scene
        .until(&scene.a, "who did it is written down", |status| {
            status.journal.as_ref().unwrap().suspended_by_agent
        })
        .await;
    goes_back(scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_ran_on_is_not_handed_over_any_more() {
    let (mut scene, go_on) = handed_over().await;
    scene.a.kill().await;
    // Somebody resumes it by hand while nobody looks: from now on its memory is newer than what was sent.
    scene.a.host.resume(scene.guest).await.unwrap();
    scene.a.start().await;
    assert!(scene.runs_on().is_empty(), "stopped before anything is served");
    assert!(scene.status(&scene.a).await.journal.unwrap().ran_on);
    let refused = scene.hand_over().await.unwrap_err();
    assert!(refused.message.contains("newer"), "{refused:?}");
    drop(go_on);
    goes_back(scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_could_not_be_suspended_is_suspended_at_the_next_event() {
    let (scene, _go_on) = handed_over().await;
    scene.a.host.script(Call::Suspend, Fault::Refuse);
    scene.a.host.resume(scene.guest).await.unwrap();
    let written = |status: &MigrationStatus| status.journal.as_ref().unwrap().suspended_by_agent;
    scene.until(&scene.a, "it was to be suspended", written).await;
    let definition = scene.a.host.look(scene.guest).unwrap().inactive_xml.unwrap();
    let changes = async {
        while !scene.runs_on().is_empty() {
            scene.a.host.define(&definition).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(crate::node::PATIENCE, changes)
        .await
        .expect("a change of the guest makes the agent look again");
    goes_back(scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_whose_verdict_is_journaled_is_left_alone_by_a_restart() {
    let mut scene = Scene::new(SimGuest {
        autostart: true,
        ..SimGuest::named("web")
    })
    .await;
    scene.b.host.script(Call::Finish, Fault::Die);
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Failed).await;
    scene.until_quiet(&scene.a).await;
    scene.abort().await.unwrap();
    // Given back, but for its autostart: the verdict is written, and not carried out to its end.
    scene.a.host.script(Call::SetAutostart, Fault::Refuse);
    scene.settle_a(Verdict::NeverRan).await.unwrap_err();
    assert_eq!(scene.runs_on(), ["a"]);
    scene.a.restart().await;
    let status = scene.status(&scene.a).await;
    let journal = status.journal.as_ref().unwrap();
    assert_eq!(
        (journal_state(&status), journal.verdict()),
        (JournalState::HandedOver, Verdict::NeverRan)
    );
    assert_eq!(scene.runs_on(), ["a"], "it belongs to this host");
    assert!(!journal.suspended_by_agent);
    scene.rest(Verdict::NeverRan).await;
    assert!(scene.autostart(&scene.a));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_whose_host_goes_down_in_order_has_not_ended_by_its_users_wish() {
    let (scene, go_on) = handed_over().await;
    // libvirt tells the same of a user's shutdown. What waits at the destination is the only copy now.
    scene.a.host.shut_down(scene.guest);
    go_on.cancel();
    scene.until_state(&scene.b, JournalState::Ran).await;
    let source = scene.until_quiet(&scene.a).await;
    assert!(!source.guest_ended);
    assert_eq!(scene.runs_on(), ["b"]);
    scene.rest(Verdict::Ran).await;
}
