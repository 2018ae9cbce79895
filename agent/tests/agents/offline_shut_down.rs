//! A guest that runs and is to move shut off: shut down once that is written down, and started once, where it is.

use std::time::Duration;

use drover_agent::hypervisor::{GuestState, Hypervisor, StopReason};
use drover_agent::sim::{Call, Fault, SimGuest};
use drover_proto::agent::v1::*;
use drover_proto::failure::Reason;
use drover_proto::time::proto_duration;

use crate::offline::{content, defined};
use crate::scene::{Scene, reason};

/// A guest that runs on a, with two images there.
async fn scene(within: Duration) -> Scene {
    let guest = SimGuest {
        autostart: true,
        disks: vec!["/images/one.raw".to_owned(), "/images/two.raw".to_owned()],
        ..SimGuest::named("web")
    };
    let mut scene = Scene::new(guest).await;
    for name in ["one.raw", "two.raw"] {
        std::fs::write(scene.a.image(name), content(1)).unwrap();
    }
    scene.offline = Some(OfflineOrder {
        images: vec!["/images/one.raw".to_owned(), "/images/two.raw".to_owned()],
        shutdown_timeout: Some(proto_duration(within)),
        ..OfflineOrder::default()
    });
    scene
}

const MINUTE: Duration = Duration::from_secs(60);

fn state(scene: &Scene) -> Option<GuestState> {
    scene.a.host.look(scene.guest).map(|guest| guest.state)
}

#[tokio::test]
async fn it_is_shut_down_moves_and_runs_at_the_destination() {
    let scene = scene(MINUTE).await;
    let ready = scene.ready().await;
    assert!(ready.begun.offline);
    assert_eq!(state(&scene), Some(GuestState::ShutOff));
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene.until_quiet(&scene.a).await;
    assert_eq!(defined(&scene), (false, true));
    scene.rest(Verdict::Ran).await;
    assert_eq!(scene.runs_on(), ["b"]);
    assert!(scene.autostart(&scene.b));
    assert_eq!(scene.b.images(), ["one.raw", "two.raw"]);
}

#[tokio::test]
async fn without_being_told_to_it_is_refused_and_so_is_another_life_or_what_does_not_run() {
    let mut scene = scene(MINUTE).await;
    scene.offline.as_mut().unwrap().shutdown_timeout = None;
    assert_eq!(reason(scene.begin().await), Reason::GuestBusy);
    scene.offline.as_mut().unwrap().shutdown_timeout = Some(proto_duration(MINUTE));
    let former = scene.a.host.look(scene.guest).unwrap().incarnation;
    let message = former.map(|life| Incarnation {
        boot_id: life.boot_id.to_string(),
        qemu_pid: life.qemu_pid + 1,
        qemu_start_time: life.qemu_start_time,
    });
    assert_eq!(reason(scene.begin_life(message).await), Reason::IncarnationMismatch);
    scene.a.host.suspend(scene.guest).await.unwrap();
    assert_eq!(reason(scene.begin().await), Reason::GuestBusy);
    assert!(scene.autostart(&scene.a), "nothing was touched");
}

#[tokio::test]
async fn where_it_does_not_move_it_is_started_again_once() {
    let mut scene = scene(MINUTE).await;
    let ready = scene.ready().await;
    assert_eq!(state(&scene), Some(GuestState::ShutOff));
    // Also where the agent was started anew meanwhile, and the answer of the start is lost.
    scene.a.restart().await;
    scene.a.host.script(Call::Start, Fault::LoseAnswer);
    let _ = ready;
    scene.abort().await.unwrap();
    scene.revoke().await.unwrap();
    assert!(scene.settle_a(Verdict::NeverRan).await.is_err());
    assert_eq!(scene.runs_on(), ["a"]);
    let life = scene.a.host.look(scene.guest).unwrap().incarnation;
    scene.settle_a(Verdict::NeverRan).await.unwrap();
    assert_eq!(
        scene.a.host.look(scene.guest).unwrap().incarnation,
        life,
        "not started twice"
    );
    scene.settle_b(Verdict::NeverRan).await.unwrap();
    assert!(scene.autostart(&scene.a));
    assert_eq!(scene.b.images(), [""; 0]);
    scene.holds();
}

#[tokio::test]
async fn an_agent_that_dies_after_the_guest_was_told_goes_on_when_it_is_back() {
    let mut scene = scene(MINUTE).await;
    scene.a.host.script(Call::ShutDown, Fault::LoseAnswer);
    scene.begin().await.unwrap_err();
    assert_eq!(state(&scene), Some(GuestState::ShutOff));
    scene.a.restart().await;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene.until_quiet(&scene.a).await;
    scene.rest(Verdict::Ran).await;
    assert_eq!(scene.runs_on(), ["b"]);
}

#[tokio::test]
async fn one_that_does_not_heed_it_runs_on() {
    let scene = scene(Duration::from_millis(300)).await;
    scene.a.host.set_deaf(scene.guest, true);
    let life = scene.a.host.look(scene.guest).unwrap().incarnation;
    let refused = scene.begin().await.unwrap_err();
    assert_eq!(refused.reason, Reason::GuestBusy, "{}", refused.message);
    assert!(refused.message.contains("later it stays off"), "{}", refused.message);
    scene.abort().await.unwrap();
    scene.settle_a(Verdict::NeverRan).await.unwrap();
    assert_eq!(scene.a.host.look(scene.guest).unwrap().incarnation, life);
    assert_eq!(scene.runs_on(), ["a"]);
    assert!(scene.autostart(&scene.a), "as before");
}

#[tokio::test]
async fn one_that_heeds_it_only_after_the_undo_began_is_started_again() {
    let scene = scene(MINUTE).await;
    scene.a.host.set_deaf(scene.guest, true);
    scene.a.host.script(Call::ShutDown, Fault::LoseAnswer);
    assert_eq!(reason(scene.begin().await), Reason::LibvirtUnavailable);
    scene.abort().await.unwrap();
    // It may still do so: nobody says yet that it is given back.
    assert!(scene.settle_a(Verdict::NeverRan).await.is_err());
    scene.a.host.kill(scene.guest, StopReason::Shutdown);
    scene.settle_a(Verdict::NeverRan).await.unwrap();
    assert_eq!(scene.runs_on(), ["a"]);
    assert!(scene.autostart(&scene.a));
}

#[tokio::test]
async fn one_that_never_heard_of_it_is_given_back_at_once() {
    let scene = scene(MINUTE).await;
    scene.a.host.script(Call::ShutDown, Fault::Refuse);
    assert_eq!(reason(scene.begin().await), Reason::LibvirtFailed);
    scene.abort().await.unwrap();
    scene.settle_a(Verdict::NeverRan).await.unwrap();
    assert_eq!(scene.runs_on(), ["a"]);
    assert!(scene.autostart(&scene.a));
}

#[tokio::test]
async fn one_that_cannot_be_started_there_is_tried_again() {
    let scene = scene(MINUTE).await;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene.until_quiet(&scene.a).await;
    scene.settle_a(Verdict::Ran).await.unwrap();
    scene.b.host.script(Call::Start, Fault::Refuse);
    assert!(scene.settle_b(Verdict::Ran).await.is_err());
    assert_eq!(defined(&scene), (false, true));
    scene.rest(Verdict::Ran).await;
    assert_eq!(scene.runs_on(), ["b"]);
}
