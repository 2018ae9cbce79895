//! Migrations that are given up, at each point at which they can be.

use drover_agent::sim::{Call, Fault, SimGuest};
use drover_proto::agent::v1::*;
use drover_proto::failure::Reason;

use crate::scene::{Scene, journal_state, reason};

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_before_anything_was_begun_refuses_what_comes_late() {
    let scene = Scene::new(SimGuest::named("web")).await;
    let source = scene.abort().await.unwrap();
    assert!(source.journal.as_ref().unwrap().tombstoned);
    assert_eq!(journal_state(&source), JournalState::Unspecified);
    let destination = scene.revoke().await.unwrap();
    assert_eq!(
        journal_state(&destination),
        JournalState::Unspecified,
        "a tombstone is no evidence"
    );
    assert_eq!(reason(scene.begin().await), Reason::Tombstoned);
    assert_eq!(
        reason(
            scene
                .prepare(&BeginOutgoingResponse {
                    state_before: 1,
                    ..Default::default()
                })
                .await
        ),
        Reason::Tombstoned
    );
    // Also after restarts.
    let mut scene = scene;
    scene.a.restart().await;
    scene.b.restart().await;
    assert_eq!(reason(scene.begin().await), Reason::Tombstoned);
    scene.rest(Verdict::NeverRan).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_is_aborted_and_the_guest_runs_on() {
    // Dirtied faster than it can be sent: it would never end by itself.
    let guest = SimGuest {
        dirty_mib_per_second: 100_000,
        autostart: true,
        ..SimGuest::named("web")
    };
    let scene = Scene::new(guest).await;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until(&scene.a, "performing", |status| status.performing).await;
    let aborted = scene.abort().await.unwrap();
    assert!(!aborted.performing);
    assert_eq!(aborted.perform_outcome(), PerformOutcome::Failed);
    assert_eq!(journal_state(&scene.revoke().await.unwrap()), JournalState::Revoked);
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(scene.runs_on(), ["a"]);
    assert!(scene.autostart(&scene.a));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_guest_is_given_back_paused() {
    let scene = Scene::new(SimGuest {
        paused: true,
        ..SimGuest::named("web")
    })
    .await;
    scene.ready().await;
    scene.abort().await.unwrap();
    scene.rest(Verdict::NeverRan).await;
    assert!(scene.runs_on().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_was_handed_over_in_vain_runs_again() {
    let scene = Scene::new(SimGuest::named("web")).await;
    scene.b.host.script(Call::Finish, Fault::Die);
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    let destination = scene.until_state(&scene.b, JournalState::Failed).await;
    assert!(destination.guest.is_none());
    let source = scene.until_quiet(&scene.a).await;
    assert_eq!(journal_state(&source), JournalState::HandedOver);
    assert_eq!(source.error.unwrap().reason, "NEVER_RAN");
    assert!(scene.runs_on().is_empty(), "it does not resume by itself");
    scene.abort().await.unwrap();
    assert!(scene.runs_on().is_empty(), "an undo decides nothing");
    let journal = scene.status(&scene.a).await.journal.unwrap();
    assert!(!journal.suspended_by_agent, "nor did it run in between");
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(scene.runs_on(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_ended_meanwhile_is_said_to_have_ended() {
    let scene = Scene::new(SimGuest {
        autostart: true,
        ..SimGuest::named("web")
    })
    .await;
    scene.ready().await;
    scene.a.host.shut_down(scene.guest);
    scene
        .until(&scene.a, "the end is noticed", |status| status.guest_ended)
        .await;
    scene.abort().await.unwrap();
    let settled = scene.settle_a(Verdict::NeverRan).await.unwrap();
    assert!(settled.guest_ended);
    assert!(scene.autostart(&scene.a), "its definition is as it was");
    assert!(scene.runs_on().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_verdict_does_not_touch_the_guest_that_came_back() {
    let scene = Scene::new(SimGuest::named("web")).await;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene
        .until(&scene.a, "the source copy is gone", |status| {
            status.guest.is_none() && !status.call_in_flight
        })
        .await;
    // Another life of it on a, by whatever way it came back.
    scene.settle_b(Verdict::Ran).await.unwrap();
    scene
        .b
        .host
        .kill(scene.guest, drover_agent::hypervisor::StopReason::Destroyed);
    scene.a.host.add(&SimGuest::named("web")).unwrap();
    scene.settle_a(Verdict::Ran).await.unwrap();
    let status = scene.status(&scene.a).await;
    assert!(!status.same_incarnation);
    assert_eq!(scene.runs_on(), ["a"]);
    assert!(scene.a.host.look(scene.guest).unwrap().persistent);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_after_the_switch_changes_nothing() {
    let scene = Scene::new(SimGuest::named("web")).await;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene.abort().await.unwrap();
    assert_eq!(journal_state(&scene.revoke().await.unwrap()), JournalState::Ran);
    assert_eq!(scene.runs_on(), ["b"]);
    scene.until_quiet(&scene.a).await;
    scene.rest(Verdict::Ran).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_life_that_its_user_paused_is_not_resumed_by_an_undo() {
    let scene = Scene::new(SimGuest::named("web")).await;
    scene.ready().await;
    let paused = SimGuest {
        paused: true,
        ..SimGuest::named("web")
    };
    scene.another_life(&scene.a, &paused).await;
    scene.abort().await.unwrap();
    assert!(scene.settle_a(Verdict::NeverRan).await.unwrap().guest_ended);
    assert!(scene.runs_on().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_is_written_before_the_copy_is_let_go() {
    let scene = Scene::new(SimGuest::named("web")).await;
    let go_on = tokio_util::sync::CancellationToken::new();
    scene.b.host.script(Call::CancelIncoming, Fault::Until(go_on.clone()));
    scene.ready().await;
    scene.abort().await.unwrap();
    let written = async {
        scene.until_state(&scene.b, JournalState::Revoked).await;
        go_on.cancel();
    };
    let (revoked, ()) = tokio::join!(scene.revoke(), written);
    revoked.unwrap();
    scene.rest(Verdict::NeverRan).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn never_ran_is_written_before_it_is_carried_out() {
    let scene = Scene::new(SimGuest::named("web")).await;
    let go_on = tokio_util::sync::CancellationToken::new();
    scene.a.host.script(Call::ConfirmCancelled, Fault::Until(go_on.clone()));
    scene.ready().await;
    scene.abort().await.unwrap();
    scene.revoke().await.unwrap();
    let written = async {
        let decided = |status: &MigrationStatus| status.journal.as_ref().unwrap().verdict() == Verdict::NeverRan;
        scene.until(&scene.a, "the verdict is written", decided).await;
        go_on.cancel();
    };
    let (settled, ()) = tokio::join!(scene.settle_a(Verdict::NeverRan), written);
    settled.unwrap();
    scene.rest(Verdict::NeverRan).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_that_comes_as_perform_ends_is_not_followed_by_a_hand_over() {
    let scene = Scene::new(SimGuest::named("web")).await;
    let go_on = tokio_util::sync::CancellationToken::new();
    scene.a.host.script(Call::Perform, Fault::Until(go_on.clone()));
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    {
        let mut page = scene.a.jobs().journal.lock(scene.migration).await.unwrap();
        page.change(|record| {
            record.tombstone = Some(drover_agent::journal::Tombstone {
                up_to: record.attempt,
                reason: "test".to_owned(),
            });
        })
        .await
        .unwrap();
    }
    go_on.cancel();
    let source = scene.until_quiet(&scene.a).await;
    assert_eq!(source.perform_outcome(), PerformOutcome::Sent);
    assert_eq!(journal_state(&source), JournalState::Sending);
    assert_eq!(journal_state(&scene.status(&scene.b).await), JournalState::Waiting);
}
