//! A source host that reboots: its guest is started again where libvirt would have started it, and nowhere else.

use drover_agent::hypervisor::StopReason;
use drover_agent::sim::{Call, Fault, SimGuest};
use drover_proto::agent::v1::*;
use tokio_util::sync::CancellationToken;

use crate::scene::Scene;

async fn prepared(autostart: bool) -> Scene {
    let scene = Scene::new(SimGuest {
        autostart,
        ..SimGuest::named("web")
    })
    .await;
    scene.ready().await;
    scene
}

/// The power of the source's host fails and comes back.
async fn reboot(scene: &mut Scene) {
    scene.a.kill().await;
    scene.a.host.reboot();
    scene.a.start().await;
    assert!(scene.status(&scene.a).await.host_rebooted);
    assert!(scene.runs_on().is_empty(), "its autostart was cleared");
}

async fn undo(scene: &Scene) -> MigrationStatus {
    scene.abort().await.unwrap();
    scene.revoke().await.unwrap();
    scene.settle_a(Verdict::NeverRan).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_with_autostart_is_started_again() {
    let mut scene = prepared(true).await;
    reboot(&mut scene).await;
    let settled = undo(&scene).await;
    assert!(!settled.guest_ended);
    assert_eq!(scene.runs_on(), ["a"]);
    assert!(scene.autostart(&scene.a));
    let life = scene.a.host.look(scene.guest).unwrap().incarnation;
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(scene.a.host.look(scene.guest).unwrap().incarnation, life, "once");
}

#[tokio::test(flavor = "multi_thread")]
async fn also_after_it_was_handed_over_in_vain() {
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
    reboot(&mut scene).await;
    undo(&scene).await;
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(scene.runs_on(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_started_only_after_the_verdict_is_written() {
    let mut scene = prepared(true).await;
    reboot(&mut scene).await;
    scene.abort().await.unwrap();
    assert!(scene.runs_on().is_empty(), "an undo starts nothing");
    scene.revoke().await.unwrap();
    let go_on = CancellationToken::new();
    scene.a.host.script(Call::Start, Fault::Until(go_on.clone()));
    let written = async {
        let decided = |status: &MigrationStatus| status.journal.as_ref().unwrap().verdict() == Verdict::NeverRan;
        scene.until(&scene.a, "the verdict is written", decided).await;
        assert!(scene.runs_on().is_empty());
        go_on.cancel();
    };
    let (settled, ()) = tokio::join!(scene.settle_a(Verdict::NeverRan), written);
    settled.unwrap();
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(scene.runs_on(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_was_cut_off_is_not_made_twice() {
    let mut scene = prepared(true).await;
    reboot(&mut scene).await;
    scene.a.host.script(Call::Start, Fault::LoseAnswer);
    scene.abort().await.unwrap();
    scene.revoke().await.unwrap();
    scene.settle_a(Verdict::NeverRan).await.unwrap_err();
    let life = scene.a.host.look(scene.guest).unwrap().incarnation;
    scene.a.restart().await;
    assert!(!scene.settle_a(Verdict::NeverRan).await.unwrap().guest_ended);
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(scene.a.host.look(scene.guest).unwrap().incarnation, life);
    assert!(scene.autostart(&scene.a));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_without_autostart_has_ended() {
    let mut scene = prepared(false).await;
    reboot(&mut scene).await;
    assert!(undo(&scene).await.guest_ended);
    assert!(scene.runs_on().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_was_killed_on_a_host_that_stayed_up_has_ended() {
    let mut scene = prepared(true).await;
    scene.a.kill().await;
    scene.a.host.kill(scene.guest, StopReason::Failed);
    scene.a.start().await;
    assert!(undo(&scene).await.guest_ended);
    assert!(scene.runs_on().is_empty());
    assert!(scene.autostart(&scene.a));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_its_user_had_shut_down_stays_off() {
    let mut scene = prepared(true).await;
    scene.a.host.shut_down(scene.guest);
    scene
        .until(&scene.a, "the end is noticed", |status| status.guest_ended)
        .await;
    reboot(&mut scene).await;
    assert!(undo(&scene).await.guest_ended);
    assert!(scene.runs_on().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_ran_elsewhere_is_not_started() {
    let mut scene = Scene::new(SimGuest {
        autostart: true,
        ..SimGuest::named("web")
    })
    .await;
    let go_on = CancellationToken::new();
    scene.b.host.script(Call::Finish, Fault::Until(go_on.clone()));
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Finishing).await;
    reboot(&mut scene).await;
    go_on.cancel();
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene.rest(Verdict::Ran).await;
    assert_eq!(scene.runs_on(), ["b"]);
    scene.a.host.reboot();
    assert_eq!(scene.runs_on(), ["b"]);
    scene.holds();
}

/// The guest runs at its destination, whose host goes down before it was given its autostart there.
async fn ran_and_rebooted(autostart: bool, shut_down: bool) -> Scene {
    let mut scene = Scene::new(SimGuest {
        autostart,
        ..SimGuest::named("web")
    })
    .await;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_moved().await;
    if shut_down {
        scene.b.host.shut_down(scene.guest);
        scene
            .until(&scene.b, "the end is noticed", |status| status.guest_ended)
            .await;
    }
    scene.b.kill().await;
    scene.b.host.reboot();
    scene.b.start().await;
    assert!(scene.runs_on().is_empty(), "nothing starts it before the verdict");
    scene
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_destination_it_is_started_too() {
    let mut scene = ran_and_rebooted(true, false).await;
    scene.b.host.script(Call::Start, Fault::LoseAnswer);
    scene.settle_b(Verdict::Ran).await.unwrap_err();
    let life = scene.b.host.look(scene.guest).unwrap().incarnation;
    scene.b.restart().await;
    assert!(!scene.settle_b(Verdict::Ran).await.unwrap().guest_ended);
    scene.rest(Verdict::Ran).await;
    assert_eq!(scene.runs_on(), ["b"]);
    assert!(scene.autostart(&scene.b));
    assert_eq!(scene.b.host.look(scene.guest).unwrap().incarnation, life, "once");
    scene.holds();
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_destination_one_without_autostart_or_that_its_user_ended_stays_off() {
    for (autostart, shut_down) in [(false, false), (true, true)] {
        let scene = ran_and_rebooted(autostart, shut_down).await;
        assert!(scene.settle_b(Verdict::Ran).await.unwrap().guest_ended);
        assert!(scene.runs_on().is_empty());
        scene.holds();
    }
}
