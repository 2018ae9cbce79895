//! Post-copy: the guest goes over before all its memory has; from then on nothing is undone and nothing destroyed.

use std::time::Duration;

use drover_agent::sim::{Call, Fault, SimGuest};
use drover_proto::agent::v1::*;
use drover_proto::failure::Reason;
use drover_proto::time::proto_duration;
use drover_proto::v1::{DeadlineAction, TransferStage};

use crate::node::eventually;
use crate::policy::this_being_sent;
use crate::scene::{Scene, journal_state, reason};

const MIB: u64 = 1 << 20;

fn ms(millis: u64) -> Option<prost_types::Duration> {
    Some(proto_duration(Duration::from_millis(millis)))
}

/// So slow that nothing ends by itself while a test looks.
fn allowed() -> TransferPolicy {
    TransferPolicy {
        bandwidth_limit_bytes_per_second: 4 * MIB,
        max_downtime: ms(1),
        post_copy: true,
        ..TransferPolicy::default()
    }
}

fn busy() -> SimGuest {
    SimGuest {
        memory_mib: 8,
        dirty_mib_per_second: 1000,
        autostart: true,
        ..SimGuest::named("busy")
    }
}

async fn sending(policy: TransferPolicy) -> Scene {
    this_being_sent(busy(), policy).await
}

fn now(revision: u64) -> TransferPolicy {
    TransferPolicy {
        post_copy_now: true,
        revision,
        ..allowed()
    }
}

/// The guest runs at b and most of its memory is at a.
async fn gone_over() -> Scene {
    let scene = sending(allowed()).await;
    scene.adjust(now(1)).await.unwrap();
    scene
        .until(&scene.a, "the source knows that it runs there", |status| {
            status
                .progress
                .as_ref()
                .is_some_and(|progress| progress.stage() == TransferStage::PostCopy)
        })
        .await;
    scene
}

async fn arrived(scene: &Scene) {
    scene.until_moved().await;
    assert_eq!(scene.runs_on(), ["b"]);
    scene.rest(Verdict::Ran).await;
}

fn state(status: &MigrationStatus) -> LibvirtState {
    status
        .guest
        .as_ref()
        .map_or(LibvirtState::Unspecified, GuestFacts::state)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_goes_over_when_somebody_asks_and_has_ran_when_its_last_page_is_there() {
    let scene = gone_over().await;
    let (a, b) = (scene.status(&scene.a).await, scene.status(&scene.b).await);
    assert_eq!(journal_state(&a), JournalState::HandedOver);
    assert_eq!(journal_state(&b), JournalState::Resuming, "pages are missing");
    assert_eq!(
        (state(&a), state(&b)),
        (LibvirtState::PausedPostCopy, LibvirtState::RunningPostCopy)
    );
    let summary = a.summary.expect("a platform switches its network now");
    assert!(
        summary.switch_time.is_some() && summary.blackout.is_some(),
        "{summary:?}"
    );
    assert_eq!(scene.runs_on(), ["b"]);
    arrived(&scene).await;
    assert!(scene.autostart(&scene.b));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_converge_goes_over_by_itself() {
    let mut scene = Scene::new(busy()).await;
    scene.policy = TransferPolicy {
        bandwidth_limit_bytes_per_second: 50 * MIB,
        ..allowed()
    };
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    let status = scene.until_state(&scene.a, JournalState::HandedOver).await;
    let action = status.actions.last().expect("the control loop did it");
    assert_eq!(
        (action.action.as_str(), action.actor.as_str()),
        ("post-copy", "control-loop")
    );
    assert!(action.reason.contains("MiB remain"), "{action:?}");
    arrived(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_its_deadline_a_guest_goes_over_and_not_before() {
    let mut scene = Scene::new(busy()).await;
    scene.policy = TransferPolicy {
        bandwidth_limit_bytes_per_second: 50 * MIB,
        deadline: ms(700),
        on_deadline: DeadlineAction::PostCopy.into(),
        post_copy: false,
        ..allowed()
    };
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    let status = scene.until_state(&scene.a, JournalState::HandedOver).await;
    let action = status.actions.last().unwrap();
    assert_eq!(action.action, "post-copy");
    assert!(action.reason.contains("700 ms"), "{action:?}");
    arrived(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_that_is_refused_is_tried_again() {
    let scene = sending(allowed()).await;
    scene.a.host.script(Call::StartPostCopy, Fault::Refuse);
    scene.adjust(now(1)).await.unwrap();
    arrived(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_switch_nothing_is_undone() {
    let scene = gone_over().await;
    assert_eq!(reason(scene.abort().await), Reason::PostCopy);
    let revoked = scene.revoke().await.unwrap();
    assert_eq!(journal_state(&revoked), JournalState::Resuming);
    assert!(!scene.status(&scene.a).await.journal.unwrap().tombstoned);
    assert!(scene.settle_a(Verdict::NeverRan).await.is_err());
    assert!(scene.settle_b(Verdict::NeverRan).await.is_err());
    assert!(scene.settle_b(Verdict::Ran).await.is_err(), "pages are missing");
    let order = TransferPolicy {
        pause_and_finish: true,
        ..now(2)
    };
    assert_eq!(reason(scene.adjust(order).await), Reason::TooLate);
    assert_eq!(scene.runs_on(), ["b"]);
    arrived(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_does_not_come_between_the_order_and_the_switch() {
    let scene = sending(allowed()).await;
    let held = tokio_util::sync::CancellationToken::new();
    // QEMU was told, and switches when it comes to it.
    scene.a.host.script(Call::Sending, Fault::Until(held.clone()));
    scene.adjust(now(1)).await.unwrap();
    scene
        .until(&scene.a, "QEMU was told", |status| {
            status.calls.iter().any(|call| call.call == "libvirt.start-post-copy")
        })
        .await;
    assert_eq!(reason(scene.abort().await), Reason::PostCopy);
    held.cancel();
    arrived(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_its_user_paused_does_not_run_by_it() {
    let mut scene = Scene::new(SimGuest { paused: true, ..busy() }).await;
    scene.policy = TransferPolicy {
        post_copy_now: false,
        ..allowed()
    };
    let ready = scene.ready().await;
    assert!(!scene.status(&scene.b).await.journal.unwrap().post_copy);
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Ran).await;
    assert!(scene.runs_on().is_empty());
    scene.until_quiet(&scene.a).await;
    scene.rest(Verdict::Ran).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_leaves_both_sides_waiting_with_what_they_have() {
    for source_dies in [true, false] {
        let mut scene = gone_over().await;
        let node = if source_dies { &mut scene.a } else { &mut scene.b };
        node.kill().await;
        node.start().await;
        let scene = scene;
        eventually("both sides wait", || {
            let state = |node: &crate::node::Node| node.host.look(scene.guest).map(|guest| guest.state);
            use drover_agent::hypervisor::GuestState;
            state(&scene.a) == Some(GuestState::PausedPostCopyFailed)
                && state(&scene.b) == Some(GuestState::RunningPostCopyFailed)
        })
        .await;
        assert_eq!(reason(scene.abort().await), Reason::PostCopy);
        assert!(scene.settle_a(Verdict::NeverRan).await.is_err());
        assert_eq!(journal_state(&scene.revoke().await.unwrap()), JournalState::Resuming);
        assert_eq!(scene.runs_on(), ["b"]);
        scene.holds();
    }
}
