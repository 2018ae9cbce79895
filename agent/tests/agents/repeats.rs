//! Every call twice, and calls side by side: the world is the same as after one.

use drover_agent::sim::{Call, Fault, SimGuest};
use drover_proto::agent::v1::*;
use tokio_util::sync::CancellationToken;

use crate::scene::Scene;

#[tokio::test(flavor = "multi_thread")]
async fn every_call_twice_is_once() {
    let scene = Scene::new(SimGuest {
        autostart: true,
        ..SimGuest::named("web")
    })
    .await;
    let (first, second) = (scene.begin().await.unwrap(), scene.begin().await.unwrap());
    assert_eq!(first, second);
    assert!(second.autostart_before, "recorded once, before it was cleared");
    let (prepared, again) = (
        scene.prepare(&first).await.unwrap(),
        scene.prepare(&first).await.unwrap(),
    );
    assert_eq!(prepared, again);
    let ready = crate::scene::Ready { begun: first, prepared };
    scene.send(&ready).await.unwrap();
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene
        .until(&scene.a, "the source copy is gone", |status| {
            status.guest.is_none() && !status.call_in_flight
        })
        .await;
    scene.send(&ready).await.unwrap();
    scene.rest(Verdict::Ran).await;
    scene.rest(Verdict::Ran).await;
    let calls = |name: &str, status: &MigrationStatus| status.calls.iter().filter(|call| call.call == name).count();
    assert_eq!(
        calls("libvirt.perform", &scene.status(&scene.a).await),
        0,
        "closed records keep no calls"
    );
    assert!(scene.autostart(&scene.b));
    assert_eq!(scene.runs_on(), ["b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hand_overs_at_once_are_one_finish() {
    let scene = Scene::new(SimGuest::named("web")).await;
    let go_on = CancellationToken::new();
    scene.b.host.script(Call::Finish, Fault::Until(go_on.clone()));
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Finishing).await;
    let order = HandOverGuestRequest {
        migration_id: scene.migration.to_string(),
        attempt: 1,
        ticket: ready.prepared.ticket.clone(),
        cookie: Vec::new().into(),
        ..HandOverGuestRequest::default()
    };
    let (mut one, mut two) = (scene.peer_of_b("agent/a"), scene.peer_of_b("agent/a"));
    let release = async {
        tokio::task::yield_now().await;
        go_on.cancel();
    };
    let (first, second, ()) = tokio::join!(
        one.hand_over_guest(order.clone()),
        two.hand_over_guest(order.clone()),
        release
    );
    let (first, second) = (first.unwrap().into_inner(), second.unwrap().into_inner());
    assert_eq!(first.switch_time, second.switch_time);
    assert_eq!(first.elapsed, None, "a repeat measures nothing");
    let status = scene.until_quiet(&scene.b).await;
    assert_eq!(
        status.calls.iter().filter(|call| call.call == "libvirt.finish").count(),
        1
    );
    scene
        .until(&scene.a, "the source copy is gone", |status| {
            status.guest.is_none() && !status.call_in_flight
        })
        .await;
    scene.rest(Verdict::Ran).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_twice_is_once_and_nothing_comes_late() {
    let scene = Scene::new(SimGuest {
        autostart: true,
        ..SimGuest::named("web")
    })
    .await;
    let ready = scene.ready().await;
    for _ in 0..2 {
        scene.abort().await.unwrap();
        scene.revoke().await.unwrap();
    }
    use drover_proto::failure::Reason::Tombstoned;
    assert_eq!(crate::scene::reason(scene.begin().await), Tombstoned);
    assert_eq!(crate::scene::reason(scene.prepare(&ready.begun).await), Tombstoned);
    assert_eq!(crate::scene::reason(scene.send(&ready).await), Tombstoned);
    assert_eq!(crate::scene::reason(scene.hand_over().await), Tombstoned);
    scene.rest(Verdict::NeverRan).await;
    scene.rest(Verdict::NeverRan).await;
    assert!(scene.autostart(&scene.a), "given back as it was");
    assert_eq!(scene.runs_on(), ["a"]);
}
