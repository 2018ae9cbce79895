//! When a hand-over leaves, which ways it takes, and who may finish where it does not get through.

use std::time::Duration;

use drover_agent::jobs::Timing;
use drover_agent::journal::SourceState;
use drover_agent::sim::{Call, Fault, SimGuest};
use drover_proto::agent::v1::*;
use drover_proto::failure::Reason;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::node::eventually;
use crate::scene::{Scene, journal_state, reason};

/// Sends with a Perform that fails, and asks for a hand-over all the same.
async fn handed_over_after_a_failure(guest: SimGuest, failure: Fault) -> Scene {
    let scene = Scene::new(guest).await;
    scene.a.host.script(Call::Perform, failure);
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    let failed =
        |status: &MigrationStatus| status.perform_outcome() == PerformOutcome::Failed && !status.call_in_flight;
    scene.until(&scene.a, "Perform has failed", failed).await;
    assert!(scene.runs_on().is_empty() || scene.runs_on() == ["a"]);
    assert_eq!(reason(scene.hand_over().await), Reason::StillPerforming);
    assert_eq!(journal_state(&scene.status(&scene.a).await), JournalState::Sending);
    assert_eq!(journal_state(&scene.status(&scene.b).await), JournalState::Waiting);
    scene.abort().await.unwrap();
    scene.rest(Verdict::NeverRan).await;
    scene
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_its_user_paused_is_not_handed_over_when_perform_failed() {
    let guest = SimGuest {
        paused: true,
        ..SimGuest::named("web")
    };
    let scene = handed_over_after_a_failure(guest, Fault::Refuse).await;
    assert!(scene.runs_on().is_empty(), "it was paused before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_stands_still_is_not_handed_over_when_libvirtd_was_lost_in_perform() {
    // Stopped for the last round, and libvirt said that Perform failed: it may yet resume it.
    let scene = handed_over_after_a_failure(SimGuest::named("web"), Fault::LoseAnswer).await;
    assert_eq!(scene.runs_on(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_hangs_is_left_after_its_time_and_tried_another_way() {
    let limits = Timing {
        hand_over: Duration::from_millis(200),
        ..Timing::default()
    };
    let scene = Scene::with_limits(SimGuest::named("web"), limits).await;
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ways = vec![scene.b.address(), other.local_addr().unwrap().to_string()];
    let ready = scene.ready().await;
    // Whoever asks the destination about this migration waits.
    let hold = scene.b.jobs().journal.lock(scene.migration).await.unwrap();
    scene.send_to(&ready, ways, String::new()).await.unwrap();
    // Sooner than after the 30 s that one may take where nobody says how long.
    let tried = tokio::time::timeout(Duration::from_secs(25), other.accept()).await;
    assert!(tried.is_ok(), "the second address was never tried");
    assert_eq!(journal_state(&scene.status(&scene.a).await), JournalState::HandedOver);
    drop((hold, other));
    scene.until_moved().await;
    scene.rest(Verdict::Ran).await;
}

/// A way to an address, open until the token is cancelled: then what is connected breaks, and nobody listens.
async fn way_until(cut: CancellationToken, to: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let accepting = cut.clone();
    tokio::spawn(accepting.run_until_cancelled_owned(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (cut, to) = (cut.clone(), to.clone());
            tokio::spawn(cut.run_until_cancelled_owned(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                // It ends with the transfer, or is cut.
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }));
        }
    }));
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_migration_address_answers_the_management_address_does() {
    let scene = Scene::new(SimGuest::named("web")).await;
    let (sent, cut) = (CancellationToken::new(), CancellationToken::new());
    scene.a.host.script(Call::Perform, Fault::AnswerAfter(sent.clone()));
    let ready = scene.ready().await;
    let ways = vec![way_until(cut.clone(), scene.b.address()).await];
    scene.send_to(&ready, ways, scene.b.address()).await.unwrap();
    // Memory gets through, and then the migration network is gone.
    let complete = |status: &MigrationStatus| status.stream_complete;
    scene.until(&scene.b, "all has come", complete).await;
    cut.cancel();
    sent.cancel();
    scene.until_moved().await;
    scene.rest(Verdict::Ran).await;
    assert_eq!(scene.runs_on(), ["b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_source_cannot_ask_the_destination_finishes_alone() {
    let mut scene = Scene::new(SimGuest::named("web")).await;
    let go_on = CancellationToken::new();
    scene.a.host.script(Call::Perform, Fault::AnswerAfter(go_on.clone()));
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene
        .until(&scene.b, "all has come", |status| status.stream_complete)
        .await;
    eventually("all is sent", || scene.a.host.is_sent(scene.guest)).await;
    // HandedOver is written, and the agent dies before the first request leaves.
    let mut page = scene.a.jobs().journal.lock(scene.migration).await.unwrap();
    page.change(|record| record.source_mut().unwrap().state = SourceState::HandedOver)
        .await
        .unwrap();
    drop(page);
    scene.a.kill().await;
    assert!(scene.runs_on().is_empty());
    let request = FinishIncomingRequest {
        fence: scene.fence(),
        migration: scene.reference(),
        runs: None,
    };
    let finished = scene.ask_b().finish_incoming(request).await.unwrap().into_inner();
    assert!(finished.switch_time.is_some());
    assert_eq!(journal_state(&scene.status(&scene.b).await), JournalState::Ran);
    assert_eq!(scene.runs_on(), ["b"]);
    scene.a.start().await;
    eventually("its job lock is held again", || scene.a.host.has_job(scene.guest)).await;
    scene.rest(Verdict::Ran).await;
}
