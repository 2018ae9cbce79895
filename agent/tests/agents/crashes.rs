//! An agent dies at each state of its journal and comes back: what is true then, and where it goes from there.

use drover_agent::sim::{Call, Fault, SimGuest};
use drover_proto::agent::v1::*;
use drover_proto::failure::Reason;
use tokio_util::sync::CancellationToken;

use crate::node::eventually;
use crate::scene::{Ready, Scene, journal_state, reason};

/// Sends, with a fault at the destination that waits for the token.
async fn held_at(call: Call, state: JournalState) -> (Scene, Ready, CancellationToken) {
    let scene = Scene::new(SimGuest {
        autostart: true,
        ..SimGuest::named("web")
    })
    .await;
    let go_on = CancellationToken::new();
    scene.b.host.script(call, Fault::Until(go_on.clone()));
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, state).await;
    (scene, ready, go_on)
}

#[tokio::test(flavor = "multi_thread")]
async fn source_dies_while_sending_and_the_guest_runs_on() {
    let mut scene = Scene::new(SimGuest {
        dirty_mib_per_second: 100_000,
        autostart: true,
        ..SimGuest::named("web")
    })
    .await;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until(&scene.a, "performing", |status| status.performing).await;
    scene.a.restart().await;
    let status = scene.status(&scene.a).await;
    assert_eq!(journal_state(&status), JournalState::Sending);
    assert!(status.agent_restarted && status.same_incarnation && !status.performing);
    assert_eq!(scene.runs_on(), ["a"]);
    assert_eq!(
        reason(scene.send(&ready).await),
        Reason::MigrationState,
        "the job lock is lost"
    );
    scene.abort().await.unwrap();
    scene.revoke().await.unwrap();
    scene.rest(Verdict::NeverRan).await;
    assert!(scene.autostart(&scene.a));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_begin_after_a_restart_takes_the_job_lock_again() {
    let mut scene = Scene::new(SimGuest {
        autostart: true,
        ..SimGuest::named("web")
    })
    .await;
    scene.begin().await.unwrap();
    scene.a.restart().await;
    assert!(!scene.a.host.has_job(scene.guest));
    let again = scene.begin().await.unwrap();
    assert!(again.autostart_before, "not what it is now, but what it was before");
    assert!(scene.a.host.has_job(scene.guest));
}

#[tokio::test(flavor = "multi_thread")]
async fn source_dies_after_handing_over_and_the_guest_goes_on_there() {
    let (mut scene, _, go_on) = held_at(Call::Finish, JournalState::Finishing).await;
    scene.a.kill().await;
    go_on.cancel();
    scene.until_state(&scene.b, JournalState::Ran).await;
    assert_eq!(scene.runs_on(), ["b"]);
    scene.a.start().await;
    let status = scene.status(&scene.a).await;
    assert_eq!(journal_state(&status), JournalState::HandedOver);
    assert!(!status.guest.unwrap().state().as_str_name().contains("RUNNING"));
    assert!(scene.a.host.has_job(scene.guest), "its job lock is held again");
    scene.rest(Verdict::Ran).await;
    assert_eq!(scene.runs_on(), ["b"]);
    assert!(scene.autostart(&scene.b));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_source_hands_over_again_when_asked() {
    let (mut scene, _, go_on) = held_at(Call::Finish, JournalState::Finishing).await;
    scene.a.restart().await;
    go_on.cancel();
    let summary = scene.hand_over().await.unwrap().summary.unwrap();
    assert!(summary.switch_time.is_some());
    assert_eq!(scene.runs_on(), ["b"]);
    scene
        .until(&scene.a, "the source copy is gone", |status| {
            status.guest.is_none() && !status.call_in_flight
        })
        .await;
    scene.rest(Verdict::Ran).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_handed_over_and_runs_is_stopped() {
    let (mut scene, _, go_on) = held_at(Call::Finish, JournalState::Finishing).await;
    scene.a.kill().await;
    // Somebody resumes it by hand while nobody looks.
    use drover_agent::hypervisor::Hypervisor;
    scene.a.host.resume(scene.guest).await.unwrap();
    assert_eq!(scene.runs_on(), ["a"]);
    scene.a.start().await;
    assert!(scene.runs_on().is_empty(), "stopped before anything is served");
    assert!(scene.status(&scene.a).await.journal.unwrap().suspended_by_agent);
    // The destination was not told: it is let go, and the guest belongs to its source.
    scene.b.kill().await;
    drop(go_on);
    scene.b.start().await;
    eventually("the copy is gone", || scene.b.host.look(scene.guest).is_none()).await;
    scene.abort().await.unwrap();
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(scene.runs_on(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_looked_after_at_the_start_is_looked_after_later() {
    let (mut scene, _, _go_on) = held_at(Call::Finish, JournalState::Finishing).await;
    scene.a.kill().await;
    use drover_agent::hypervisor::Hypervisor;
    scene.a.host.resume(scene.guest).await.unwrap();
    // libvirtd does not answer at first.
    scene.a.host.script(Call::Look, Fault::Refuse);
    scene.a.start().await;
    eventually("the copy is stopped", || scene.runs_on().is_empty()).await;
    eventually("its job lock is held again", || scene.a.host.has_job(scene.guest)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn destination_dies_while_waiting() {
    let mut scene = Scene::new(SimGuest::named("web")).await;
    let ready = scene.ready().await;
    scene.b.restart().await;
    eventually("the waiting copy is gone", || scene.b.host.look(scene.guest).is_none()).await;
    assert_eq!(journal_state(&scene.status(&scene.b).await), JournalState::Waiting);
    let again = scene.prepare(&ready.begun).await.unwrap();
    assert_eq!(again.ticket, ready.prepared.ticket, "the same ticket");
    let ready = Ready {
        prepared: again,
        ..ready
    };
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene
        .until(&scene.a, "the source copy is gone", |status| {
            status.guest.is_none() && !status.call_in_flight
        })
        .await;
    scene.rest(Verdict::Ran).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn destination_dies_inside_finish() {
    let (mut scene, _, _go_on) = held_at(Call::Finish, JournalState::Finishing).await;
    scene.b.restart().await;
    // The source goes on asking: it learns that the guest never ran.
    scene.until_state(&scene.b, JournalState::Failed).await;
    let source = scene.until_quiet(&scene.a).await;
    assert_eq!(source.error.unwrap().reason, "NEVER_RAN");
    scene.abort().await.unwrap();
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(scene.runs_on(), ["a"]);
    assert!(scene.autostart(&scene.a));
}

#[tokio::test(flavor = "multi_thread")]
async fn destination_dies_between_resuming_and_resume() {
    let (mut scene, _, _go_on) = held_at(Call::Resume, JournalState::Resuming).await;
    scene.b.restart().await;
    // The source goes on asking, and the copy that stands still there is told to run, once more.
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene
        .until(&scene.a, "the source copy is gone", |status| {
            status.guest.is_none() && !status.call_in_flight
        })
        .await;
    assert_eq!(scene.runs_on(), ["b"]);
    scene.rest(Verdict::Ran).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn destination_loses_the_answer_to_resume() {
    let scene = Scene::new(SimGuest::named("web")).await;
    scene.b.host.script(Call::Resume, Fault::LoseAnswer);
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene
        .until(&scene.a, "the source copy is gone", |status| {
            status.guest.is_none() && !status.call_in_flight
        })
        .await;
    scene.rest(Verdict::Ran).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn destination_dies_after_the_guest_ran() {
    let mut scene = Scene::new(SimGuest::named("web")).await;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene.b.restart().await;
    assert_eq!(scene.runs_on(), ["b"]);
    assert_eq!(journal_state(&scene.status(&scene.b).await), JournalState::Ran);
    scene
        .until(&scene.a, "the source copy is gone", |status| {
            status.guest.is_none() && !status.call_in_flight
        })
        .await;
    scene.rest(Verdict::Ran).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn confirm_fails_and_the_repeat_removes_the_copy() {
    let scene = Scene::new(SimGuest::named("web")).await;
    scene.a.host.script(Call::ConfirmMoved, Fault::Refuse);
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Ran).await;
    let source = scene.until_quiet(&scene.a).await;
    assert!(source.guest.is_some());
    scene.rest(Verdict::Ran).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_die_after_all_was_sent() {
    let (mut scene, _, _go_on) = held_at(Call::Finish, JournalState::Finishing).await;
    scene.a.kill().await;
    scene.b.kill().await;
    scene.a.start().await;
    scene.b.start().await;
    assert!(scene.runs_on().is_empty(), "nothing resumes by itself");
    eventually("the copy is gone", || scene.b.host.look(scene.guest).is_none()).await;
    scene.abort().await.unwrap();
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(scene.runs_on(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_writes_resuming_before_it_resumes() {
    let scene = Scene::new(SimGuest::named("web")).await;
    let go_on = CancellationToken::new();
    scene.b.host.script(Call::Finish, Fault::LoseAnswer);
    scene.b.host.script(Call::Resume, Fault::Until(go_on.clone()));
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Resuming).await;
    assert!(scene.runs_on().is_empty());
    go_on.cancel();
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene.until_quiet(&scene.a).await;
    scene.rest(Verdict::Ran).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_verdict_is_taken_between_resuming_and_ran() {
    let (mut scene, _, _go_on) = held_at(Call::Resume, JournalState::Resuming).await;
    scene.a.kill().await;
    scene.b.restart().await;
    assert_eq!(reason(scene.settle_b(Verdict::NeverRan).await), Reason::TooLate);
    assert_eq!(reason(scene.settle_b(Verdict::Ran).await), Reason::MigrationState);
    let status = scene.status(&scene.b).await;
    assert_eq!(journal_state(&status), JournalState::Resuming);
    assert!(status.guest.is_some(), "the copy that may have run is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_life_at_the_destination_is_not_taken_for_the_copy() {
    let (mut scene, ready, _go_on) = held_at(Call::Resume, JournalState::Resuming).await;
    scene.a.kill().await;
    scene.b.kill().await;
    scene.another_life(&scene.b, &SimGuest::named("web")).await;
    scene.b.start().await;
    assert_eq!(journal_state(&scene.status(&scene.b).await), JournalState::Resuming);
    let order = HandOverGuestRequest {
        migration_id: scene.migration.to_string(),
        attempt: 1,
        ticket: ready.prepared.ticket.clone(),
        cookie: Vec::new().into(),
        ..HandOverGuestRequest::default()
    };
    assert!(scene.peer_of_b("agent/a").hand_over_guest(order).await.is_err());
    assert_eq!(journal_state(&scene.status(&scene.b).await), JournalState::Resuming);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_life_of_a_guest_that_was_handed_over_is_not_stopped() {
    let (mut scene, _, _go_on) = held_at(Call::Finish, JournalState::Finishing).await;
    scene.a.kill().await;
    scene.another_life(&scene.a, &SimGuest::named("web")).await;
    scene.a.start().await;
    assert_eq!(scene.runs_on(), ["a"]);
    assert!(!scene.status(&scene.a).await.journal.unwrap().suspended_by_agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_verdict_removes_no_other_life() {
    let scene = Scene::new(SimGuest::named("web")).await;
    scene.a.host.script(Call::ConfirmMoved, Fault::Refuse);
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene.until_quiet(&scene.a).await;
    assert_eq!(
        reason(scene.close(&scene.a).await),
        Reason::MigrationState,
        "decided, not carried out"
    );
    scene
        .b
        .host
        .kill(scene.guest, drover_agent::hypervisor::StopReason::Destroyed);
    scene.another_life(&scene.a, &SimGuest::named("web")).await;
    scene.settle_a(Verdict::Ran).await.unwrap();
    assert_eq!(scene.runs_on(), ["a"]);
}
