//! Verdicts: against what the journal says, before what is done, and after what was lost.

use drover_agent::hypervisor::{GuestState, Hypervisor};
use drover_agent::sim::{Call, Fault, SimGuest};
use drover_proto::agent::v1::*;
use drover_proto::failure::Reason;
use tokio_util::sync::CancellationToken;

use crate::node::eventually;
use crate::resolve::finishing;
use crate::scene::{Scene, journal_state, reason};

#[tokio::test(flavor = "multi_thread")]
async fn never_ran_is_refused_in_finishing_while_the_copy_is_there() {
    let mut scene = Scene::new(SimGuest::named("web")).await;
    // Finish is done, and the agent dies before it knows.
    scene
        .b
        .host
        .script(Call::Finish, Fault::AnswerAfter(CancellationToken::new()));
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    let in_place = || {
        scene
            .b
            .host
            .look(scene.guest)
            .is_some_and(|copy| copy.state == GuestState::Paused)
    };
    eventually("the copy is in place, still", in_place).await;
    scene.a.kill().await;
    scene.b.restart().await;
    assert_eq!(reason(scene.settle_b(Verdict::NeverRan).await), Reason::TooLate);
    assert_eq!(journal_state(&scene.revoke().await.unwrap()), JournalState::Finishing);
    let status = scene.status(&scene.b).await;
    assert_eq!(journal_state(&status), JournalState::Finishing);
    assert_eq!(status.journal.unwrap().verdict(), Verdict::Unspecified);
    assert!(status.same_incarnation, "the copy is kept");
    // It may go on, and only there.
    scene.a.start().await;
    scene.hand_over().await.unwrap();
    assert_eq!(scene.runs_on(), ["b"]);
    scene.rest(Verdict::Ran).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ran_is_written_before_the_controllers_word_removes_the_source_copy() {
    let (mut scene, go_on) = finishing().await;
    // The source never gets the destination's answer.
    scene.a.kill().await;
    go_on.cancel();
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene.a.start().await;
    let confirm = CancellationToken::new();
    scene.a.host.script(Call::ConfirmMoved, Fault::Until(confirm.clone()));
    let written = async {
        let decided = |status: &MigrationStatus| status.journal.as_ref().unwrap().verdict() == Verdict::Ran;
        let source = scene.until(&scene.a, "the verdict is written", decided).await;
        assert!(source.guest.is_some(), "before the copy goes");
        confirm.cancel();
    };
    let (settled, ()) = tokio::join!(scene.settle_a(Verdict::Ran), written);
    assert!(settled.unwrap().guest.is_none());
    scene.rest(Verdict::Ran).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ran_is_refused_where_the_guest_was_never_handed_over() {
    let scene = Scene::new(SimGuest::named("web")).await;
    scene.ready().await;
    assert_eq!(reason(scene.settle_a(Verdict::Ran).await), Reason::VerdictConflict);
    assert_eq!(scene.runs_on(), ["a"], "the only copy");
    scene.abort().await.unwrap();
    assert_eq!(reason(scene.settle_a(Verdict::Ran).await), Reason::VerdictConflict);
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(scene.runs_on(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_that_its_owner_removed_is_not_brought_back() {
    let scene = Scene::new(SimGuest {
        autostart: true,
        ..SimGuest::named("web")
    })
    .await;
    scene.moves().await;
    scene.b.host.shut_down(scene.guest);
    scene.b.host.undefine(scene.guest).await.unwrap();
    scene.settle_a(Verdict::Ran).await.unwrap();
    assert!(scene.settle_b(Verdict::Ran).await.unwrap().guest_ended);
    assert!(scene.b.host.look(scene.guest).is_none());
    scene.close(&scene.a).await.unwrap();
    scene.close(&scene.b).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_ran_and_ended_before_that_was_written_is_settled() {
    let mut scene = Scene::new(SimGuest::named("web")).await;
    // It runs, and both agents die before anybody writes it down.
    scene
        .b
        .host
        .script(Call::Resume, Fault::AnswerAfter(CancellationToken::new()));
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Resuming).await;
    eventually("it runs", || scene.runs_on() == ["b"]).await;
    scene.a.kill().await;
    scene.b.kill().await;
    scene.b.host.shut_down(scene.guest);
    scene.a.start().await;
    scene.b.start().await;
    assert_eq!(journal_state(&scene.status(&scene.b).await), JournalState::Resuming);
    assert_eq!(reason(scene.settle_b(Verdict::NeverRan).await), Reason::TooLate);
    // The controller had seen it run.
    scene.settle_a(Verdict::Ran).await.unwrap();
    let settled = scene.settle_b(Verdict::Ran).await.unwrap();
    assert_eq!(journal_state(&settled), JournalState::Ran);
    assert!(settled.guest_ended);
    for node in [&scene.a, &scene.b] {
        scene.close(node).await.unwrap();
        assert_eq!(node.sockets(), 0, "sockets on {}", node.name);
    }
    assert!(scene.a.host.look(scene.guest).is_none());
    assert!(scene.b.host.look(scene.guest).is_some_and(|guest| guest.persistent));
    scene.holds();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_stands_still_without_a_journal_is_neither_resumed_nor_said_to_be_back() {
    let mut scene = Scene::new(SimGuest::named("web")).await;
    scene
        .a
        .host
        .script(Call::Perform, Fault::AnswerAfter(CancellationToken::new()));
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    eventually("all is sent", || scene.a.host.is_sent(scene.guest)).await;
    scene.a.kill().await;
    scene.a.lose_state();
    scene.a.start().await;
    scene.abort().await.unwrap();
    assert_eq!(journal_state(&scene.revoke().await.unwrap()), JournalState::Revoked);
    for _ in 0..2 {
        assert_eq!(reason(scene.settle_a(Verdict::NeverRan).await), Reason::NoVerdict);
        assert_eq!(reason(scene.close(&scene.a).await), Reason::NoVerdict);
    }
    assert!(scene.runs_on().is_empty(), "nobody knows whether it may");
    // Its owner knows.
    scene.a.host.resume(scene.guest).await.unwrap();
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(scene.runs_on(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_word_decided_in_vain_is_taken_back_by_the_destinations_proof() {
    let (mut scene, go_on) = finishing().await;
    // The destination's answer never comes, and somebody says that it is off: its QEMU holds the image all the same.
    scene.a.kill().await;
    scene.a.start().await;
    scene.a.host.script(Call::Resume, Fault::Refuse);
    scene.settle_a(Verdict::NeverRan).await.unwrap_err();
    let told = scene.status(&scene.a).await.journal.unwrap();
    assert_eq!((told.verdict(), told.settled), (Verdict::NeverRan, false));
    go_on.cancel();
    scene.until_state(&scene.b, JournalState::Ran).await;
    let settled = scene.settle_a(Verdict::Ran).await.unwrap();
    assert!(settled.guest.is_none() && settled.journal.unwrap().settled);
    scene.rest(Verdict::Ran).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_decided_and_carried_out_is_not_taken_back() {
    let mut scene = Scene::new(SimGuest::named("web")).await;
    scene.b.host.script(Call::Finish, Fault::Refuse);
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Failed).await;
    scene.a.kill().await;
    scene.a.start().await;
    // It runs, and its answer is lost.
    scene.a.host.script(Call::Resume, Fault::LoseAnswer);
    scene.settle_a(Verdict::NeverRan).await.unwrap_err();
    assert_eq!(scene.runs_on(), ["a"]);
    assert_eq!(reason(scene.settle_a(Verdict::Ran).await), Reason::VerdictConflict);
    assert_eq!(scene.runs_on(), ["a"], "the only copy");
    scene.rest(Verdict::NeverRan).await;
}
