//! Limits that the source's agent keeps by itself, and what it does at a deadline.

use crate::node::eventually;
use crate::scene::{Scene, reason};
use drover_agent::sim::{Call, Fault, SimGuest};
use drover_proto::agent::v1::*;
use drover_proto::failure::Reason;
use drover_proto::time::proto_duration;
use drover_proto::v1::DeadlineAction;
use std::time::Duration;

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) fn ms(millis: u64) -> Option<prost_types::Duration> {
    Some(proto_duration(Duration::from_millis(millis)))
}

/// So much that nothing else decides how long it takes.
pub(crate) fn slow() -> TransferPolicy {
    TransferPolicy {
        bandwidth_limit_bytes_per_second: MIB / 4,
        max_downtime: ms(1),
        ..TransferPolicy::default()
    }
}

/// A guest that is being sent, and by its limits takes four minutes: longer than anything is waited for.
pub(crate) async fn being_sent(policy: TransferPolicy) -> Scene {
    let guest = SimGuest {
        autostart: true,
        ..SimGuest::named("web")
    };
    this_being_sent(guest, policy).await
}

/// The same, of a guest of one's own.
pub(crate) async fn this_being_sent(guest: SimGuest, policy: TransferPolicy) -> Scene {
    let mut scene = Scene::new(guest).await;
    scene.policy = policy;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene
        .until(&scene.a, "memory is on its way", |status| {
            status
                .progress
                .as_ref()
                .is_some_and(|progress| progress.memory_sent_bytes > 0)
        })
        .await;
    scene
}

pub(crate) async fn moved(scene: &Scene) {
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene
        .until(&scene.a, "the source copy is gone", |status| {
            status.guest.is_none() && !status.call_in_flight
        })
        .await;
    assert_eq!(scene.runs_on(), ["b"]);
    scene.rest(Verdict::Ran).await;
}

pub(crate) async fn failed(scene: &Scene) -> MigrationStatus {
    scene
        .until(&scene.a, "it has failed", |status| {
            status.perform_outcome() == PerformOutcome::Failed && !status.call_in_flight
        })
        .await
}

fn actions(status: &MigrationStatus) -> Vec<&str> {
    status.actions.iter().map(|action| action.action.as_str()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn at_its_deadline_a_transfer_is_given_up_without_any_controller() {
    let mut scene = Scene::new(SimGuest {
        autostart: true,
        ..SimGuest::named("web")
    })
    .await;
    scene.policy = TransferPolicy {
        deadline: ms(100),
        ..slow()
    };
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    let status = failed(&scene).await;
    let error = status.error.as_ref().unwrap();
    assert_eq!(error.reason, Reason::TransferDeadline.name(), "{error:?}");
    assert!(!error.remedy.is_empty());
    assert_eq!(actions(&status), ["abort"]);
    assert_eq!(scene.runs_on(), ["a"]);
    scene.abort().await.unwrap();
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(scene.runs_on(), ["a"]);
    assert!(scene.autostart(&scene.a));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_that_is_lost_at_the_deadline_is_repeated() {
    let mut scene = Scene::new(SimGuest::named("web")).await;
    scene.policy = TransferPolicy {
        deadline: ms(1),
        ..slow()
    };
    scene.a.host.script(Call::Abort, Fault::Refuse);
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    failed(&scene).await;
    assert_eq!(scene.runs_on(), ["a"]);
    scene.abort().await.unwrap();
    scene.rest(Verdict::NeverRan).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_its_deadline_a_busy_guest_is_stopped_and_moves() {
    let mut scene = Scene::new(SimGuest {
        memory_mib: 8,
        dirty_mib_per_second: 1000,
        autostart: true,
        ..SimGuest::named("busy")
    })
    .await;
    scene.policy = TransferPolicy {
        bandwidth_limit_bytes_per_second: 50 * MIB,
        max_downtime: ms(1),
        deadline: ms(400),
        on_deadline: DeadlineAction::PauseAndFinish.into(),
        ..TransferPolicy::default()
    };
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    let status = scene.until_state(&scene.a, JournalState::HandedOver).await;
    assert!(
        status.journal.as_ref().unwrap().suspended_by_agent,
        "it did not converge by itself"
    );
    assert_eq!(actions(&status), ["pause-and-finish"]);
    assert!(status.actions[0].reason.contains("400 ms"), "{:?}", status.actions);
    moved(&scene).await;
    assert!(scene.autostart(&scene.b));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_is_stopped_to_finish_when_somebody_asks() {
    let scene = being_sent(slow()).await;
    let wish = TransferPolicy {
        pause_and_finish: true,
        revision: 1,
        ..slow()
    };
    scene.adjust(wish).await.unwrap();
    eventually("it stands still", || scene.runs_on().is_empty()).await;
    let status = scene.status(&scene.a).await;
    assert!(status.performing && status.journal.as_ref().unwrap().suspended_by_agent);
    assert!(status.policy.unwrap().pause_and_finish);
    // And again, with more bandwidth: what is stopped stays stopped.
    scene
        .adjust(TransferPolicy {
            pause_and_finish: false,
            bandwidth_limit_bytes_per_second: 0,
            revision: 2,
            ..slow()
        })
        .await
        .unwrap();
    moved(&scene).await;
}

/// A guest that was stopped so that it moves, and is still on its way.
async fn stopped_to_finish() -> Scene {
    let scene = being_sent(slow()).await;
    let wish = TransferPolicy {
        pause_and_finish: true,
        revision: 1,
        ..slow()
    };
    scene.adjust(wish).await.unwrap();
    eventually("it stands still", || scene.runs_on().is_empty()).await;
    scene
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_was_stopped_in_vain_is_given_back_without_any_controller() {
    let mut scene = stopped_to_finish().await;
    scene.b.kill().await;
    eventually("it runs again", || scene.runs_on() == ["a"]).await;
    let status = scene.until_quiet(&scene.a).await;
    let journal = status.journal.unwrap();
    assert!(
        journal.tombstoned && journal.verdict() == Verdict::NeverRan,
        "{journal:?}"
    );
    assert!(scene.autostart(&scene.a));
    scene.b.start().await;
    eventually("the copy is gone", || scene.b.host.look(scene.guest).is_none()).await;
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(scene.runs_on(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_was_stopped_to_finish_is_given_back_when_its_agent_dies() {
    let mut scene = stopped_to_finish().await;
    scene.a.kill().await;
    // This libvirt does not resume by itself what it did not stop.
    assert!(scene.runs_on().is_empty());
    scene.a.start().await;
    assert_eq!(scene.runs_on(), ["a"], "before anything is served");
    assert!(scene.autostart(&scene.a));
    assert_eq!(reason(scene.hand_over().await), Reason::Tombstoned);
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(scene.runs_on(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_was_stopped_to_finish_is_given_back_by_an_abort() {
    let scene = stopped_to_finish().await;
    scene.abort().await.unwrap();
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(scene.runs_on(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn that_a_guest_is_stopped_is_written_down_before_it_is() {
    let mut scene = being_sent(slow()).await;
    let go_on = tokio_util::sync::CancellationToken::new();
    scene.a.host.script(Call::Suspend, Fault::Until(go_on.clone()));
    let wish = TransferPolicy {
        pause_and_finish: true,
        revision: 1,
        ..slow()
    };
    scene.adjust(wish).await.unwrap();
    scene
        .until(&scene.a, "it is written down", |status| {
            status
                .journal
                .as_ref()
                .is_some_and(|journal| journal.suspended_by_agent)
        })
        .await;
    assert_eq!(scene.runs_on(), ["a"]);
    // The process dies between the two.
    scene.a.kill().await;
    scene.a.start().await;
    drop(go_on);
    assert_eq!(scene.runs_on(), ["a"]);
    scene.abort().await.unwrap();
    scene.rest(Verdict::NeverRan).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_its_user_paused_is_not_let_run_by_it() {
    let mut scene = Scene::new(SimGuest {
        paused: true,
        ..SimGuest::named("web")
    })
    .await;
    scene.policy = TransferPolicy {
        pause_and_finish: true,
        ..slow()
    };
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene
        .until(&scene.a, "memory is on its way", |status| status.progress.is_some())
        .await;
    assert!(!scene.status(&scene.a).await.journal.unwrap().suspended_by_agent);
    scene.abort().await.unwrap();
    scene.rest(Verdict::NeverRan).await;
    assert!(scene.runs_on().is_empty());
}
