//! What is adjusted while a guest is on its way.

use crate::policy::{MIB, being_sent, failed, moved, ms, slow};
use crate::scene::{Scene, journal_state, reason};
use drover_agent::hypervisor::Hypervisor;
use drover_agent::sim::{Call, Fault, SimGuest};
use drover_proto::agent::v1::*;
use drover_proto::failure::Reason;
use drover_proto::units;
use drover_proto::v1::DeadlineAction;
use std::time::Duration;

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
        // At the old limit the rest would take longer than anything is waited for.
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
        memory_mib: 2,
        dirty_mib_per_second: 30,
        ..SimGuest::named("busy")
    })
    .await;
    // 2 MiB at 5 MiB/s: it converges only when QEMU may use the 400 ms that its memory takes. On a busy machine that is
    // more; the limit is far beyond it, so that QEMU gets what was measured.
    scene.policy = TransferPolicy {
        bandwidth_limit_bytes_per_second: 5 * MIB,
        max_downtime: ms(60_000),
        ..TransferPolicy::default()
    };
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    let status = scene.until_state(&scene.a, JournalState::HandedOver).await;
    let values: Vec<_> = status.actions.iter().map(|action| action.value.as_str()).collect();
    // At once what its memory takes, and a quarter to spare: neither step by step from the first 50 ms, nor all.
    let first = units::duration(values[0]).unwrap();
    assert!(
        (Duration::from_millis(250)..Duration::from_secs(60)).contains(&first),
        "{values:?}"
    );
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
    assert_eq!(
        reason(scene.adjust(post_copy).await),
        Reason::MigrationState,
        "it was begun without"
    );
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
