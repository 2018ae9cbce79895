//! Limits that the source's agent keeps by itself, what it does at a deadline, and what is adjusted on the way.

use drover_agent::hypervisor::Hypervisor;
use drover_agent::sim::{Call, Fault, SimGuest};
use drover_proto::agent::v1::*;
use drover_proto::failure::Reason;
use drover_proto::time::proto_duration;
use drover_proto::v1::DeadlineAction;
use std::time::Duration;

use crate::node::eventually;
use crate::scene::{Scene, journal_state, reason};

const MIB: u64 = 1 << 20;

fn ms(millis: u64) -> Option<prost_types::Duration> {
    Some(proto_duration(Duration::from_millis(millis)))
}

/// So much that nothing else decides how long it takes.
fn slow() -> TransferPolicy {
    TransferPolicy {
        bandwidth_limit_bytes_per_second: MIB,
        max_downtime: ms(1),
        ..TransferPolicy::default()
    }
}

/// A guest that is being sent, and by its limits takes a minute.
async fn being_sent(policy: TransferPolicy) -> Scene {
    let mut scene = Scene::new(SimGuest {
        autostart: true,
        ..SimGuest::named("web")
    })
    .await;
    scene.policy = policy;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene
        .until(&scene.a, "memory is on its way", |status| {
            status.progress.is_some_and(|progress| progress.memory_sent_bytes > 0)
        })
        .await;
    scene
}

async fn moved(scene: &Scene) {
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene
        .until(&scene.a, "the source copy is gone", |status| {
            status.guest.is_none() && !status.call_in_flight
        })
        .await;
    assert_eq!(scene.runs_on(), ["b"]);
    scene.rest(Verdict::Ran).await;
}

async fn failed(scene: &Scene) -> MigrationStatus {
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

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_is_lifted_lets_the_transfer_end_at_once() {
    for parallel_connections in [0, 4] {
        let policy = TransferPolicy {
            parallel_connections,
            ..slow()
        };
        let scene = being_sent(policy).await;
        let lifted = TransferPolicy {
            bandwidth_limit_bytes_per_second: 0,
            revision: 1,
            ..policy
        };
        scene.adjust(lifted).await.unwrap();
        let status = scene.status(&scene.a).await;
        if let Some(now) = status.policy {
            assert_eq!((now.bandwidth_limit_bytes_per_second, now.revision), (0, 1));
        }
        // At the old limit the rest would take a minute.
        moved(&scene).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_can_be_set_and_moved_on_the_way() {
    let scene = being_sent(TransferPolicy {
        deadline: ms(3_600_000),
        ..slow()
    })
    .await;
    scene
        .adjust(TransferPolicy {
            deadline: ms(1),
            revision: 1,
            ..slow()
        })
        .await
        .unwrap();
    let status = failed(&scene).await;
    assert_eq!(status.error.unwrap().reason, Reason::TransferDeadline.name());
    scene.abort().await.unwrap();
    scene.rest(Verdict::NeverRan).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_gets_a_changed_blackout_at_once_and_whole() {
    let scene = being_sent(TransferPolicy {
        max_downtime: ms(2000),
        ..slow()
    })
    .await;
    let given = || scene.a.host.max_downtime(scene.guest);
    assert_eq!(given(), Some(Duration::from_millis(50)), "little at first");
    let wish = |millis, revision| TransferPolicy {
        max_downtime: ms(millis),
        revision,
        ..slow()
    };
    scene.adjust(wish(3000, 2)).await.unwrap();
    assert_eq!(given(), Some(Duration::from_secs(3)));
    scene.adjust(wish(3000, 2)).await.unwrap();
    // An older order that comes late changes nothing, in memory and in the journal.
    scene.adjust(wish(1000, 1)).await.unwrap();
    assert_eq!(given(), Some(Duration::from_secs(3)));
    assert_eq!(scene.status(&scene.a).await.policy.unwrap().max_downtime, ms(3000));
    scene.adjust(wish(10, 3)).await.unwrap();
    assert_eq!(given(), Some(Duration::from_millis(10)));
    scene.abort().await.unwrap();
    scene.rest(Verdict::NeverRan).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blackout_that_grows_with_the_rounds_is_told() {
    let mut scene = Scene::new(SimGuest {
        memory_mib: 8,
        dirty_mib_per_second: 30,
        ..SimGuest::named("busy")
    })
    .await;
    // 8 MiB at 20 MiB/s: it converges only when QEMU may use the 400 ms that its memory takes.
    scene.policy = TransferPolicy {
        bandwidth_limit_bytes_per_second: 20 * MIB,
        max_downtime: ms(1000),
        ..TransferPolicy::default()
    };
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    let status = scene.until_state(&scene.a, JournalState::HandedOver).await;
    let values: Vec<_> = status.actions.iter().map(|action| action.value.as_str()).collect();
    // At once what its memory takes, and a quarter to spare.
    let first: u64 = values[0].strip_suffix(" ms").unwrap().parse().unwrap();
    assert!((300..1000).contains(&first), "{values:?}");
    assert!(
        status.actions.iter().all(|action| action.action == "max-downtime"
            && action.actor == "control-loop"
            && action.reason.contains("MiB")),
        "{:?}",
        status.actions
    );
    moved(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_ordered_before_the_start_is_in_force_from_it() {
    let mut scene = Scene::new(SimGuest::named("web")).await;
    scene.policy = slow();
    let ready = scene.ready().await;
    scene
        .adjust(TransferPolicy {
            bandwidth_limit_bytes_per_second: 0,
            revision: 7,
            ..slow()
        })
        .await
        .unwrap();
    assert_eq!(scene.status(&scene.a).await.policy.unwrap().revision, 7);
    scene.send(&ready).await.unwrap();
    moved(&scene).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_refused_where_it_makes_no_sense() {
    let mut scene = Scene::new(SimGuest::named("web")).await;
    let order = TransferPolicy { revision: 1, ..slow() };
    assert_eq!(reason(scene.adjust(order).await), Reason::MigrationNotFound);
    scene.policy = slow();
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    let post_copy = TransferPolicy {
        on_deadline: DeadlineAction::PostCopy.into(),
        ..order
    };
    assert_eq!(reason(scene.adjust(post_copy).await), Reason::Unimplemented);
    let negative = TransferPolicy {
        deadline: Some(prost_types::Duration { seconds: -1, nanos: 0 }),
        ..order
    };
    assert_eq!(reason(scene.adjust(negative).await), Reason::InvalidArgument);
    (scene.attempt, scene.term) = (2, 5);
    assert_eq!(
        reason(scene.adjust(order).await),
        Reason::MigrationNotFound,
        "another try"
    );
    (scene.attempt, scene.term) = (1, 4);
    assert_eq!(reason(scene.adjust(order).await), Reason::StaleTerm);
    scene.term = 5;
    scene.abort().await.unwrap();
    assert_eq!(reason(scene.adjust(order).await), Reason::Tombstoned);
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(
        scene.status(&scene.a).await.policy.unwrap().revision,
        0,
        "nothing was changed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_life_of_the_guest_is_not_stopped() {
    let scene = being_sent(slow()).await;
    scene.another_life(&scene.a, &SimGuest::named("web")).await;
    let order = TransferPolicy {
        pause_and_finish: true,
        revision: 1,
        ..slow()
    };
    let refused = reason(scene.adjust(order).await);
    assert!(
        matches!(refused, Reason::IncarnationMismatch | Reason::TooLate),
        "{refused:?}"
    );
    assert_eq!(scene.runs_on(), ["a"]);
    let _ = scene.a.host.host().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn once_all_is_sent_there_is_nothing_to_adjust() {
    let scene = Scene::new(SimGuest::named("web")).await;
    let go_on = tokio_util::sync::CancellationToken::new();
    scene.b.host.script(Call::Finish, Fault::Until(go_on.clone()));
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Finishing).await;
    assert_eq!(journal_state(&scene.status(&scene.a).await), JournalState::HandedOver);
    let order = TransferPolicy {
        pause_and_finish: true,
        revision: 1,
        ..slow()
    };
    assert_eq!(reason(scene.adjust(order).await), Reason::TooLate);
    go_on.cancel();
    moved(&scene).await;
}
