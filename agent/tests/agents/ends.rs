//! How a transfer ends when the agent's own code fails, and when the agent is told to end.

use std::sync::Arc;

use drover_agent::jobs::Jobs;
use drover_agent::sim::{Call, Fault, SimGuest};
use drover_proto::agent::v1::*;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::node::eventually;
use crate::scene::{Scene, journal_state};

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_panics_does_not_hold_its_migration() {
    let scene = Scene::new(SimGuest::named("web")).await;
    scene.a.host.script(Call::Perform, Fault::Panic);
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    let failed = |status: &MigrationStatus| status.perform_outcome() == PerformOutcome::Failed;
    let source = scene.until(&scene.a, "it is said to have failed", failed).await;
    assert!(!source.performing && !source.call_in_flight);
    assert_eq!(source.error.unwrap().reason, "INTERNAL");
    scene.abort().await.unwrap();
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(scene.runs_on(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_that_panics_does_not_hold_its_migration() {
    let scene = Scene::new(SimGuest::named("web")).await;
    // The destination has answered, and the source copy is to be removed.
    scene.a.host.script(Call::ConfirmMoved, Fault::Panic);
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene.until_quiet(&scene.a).await;
    assert_eq!(scene.runs_on(), ["b"]);
    scene.rest(Verdict::Ran).await;
}

fn stop(jobs: &Arc<Jobs>) -> JoinHandle<()> {
    let jobs = Arc::clone(jobs);
    tokio::spawn(async move { jobs.stop().await })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_still_sends_when_the_agent_is_stopped_stays_here() {
    let mut scene = Scene::new(SimGuest {
        dirty_mib_per_second: 100_000,
        ..SimGuest::named("web")
    })
    .await;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until(&scene.a, "performing", |status| status.performing).await;
    stop(&scene.a.jobs()).await.unwrap();
    let source = scene.status(&scene.a).await;
    assert!(
        !source.performing && !source.call_in_flight,
        "nothing is left to be cut off"
    );
    assert_eq!(journal_state(&source), JournalState::Sending);
    assert_eq!(scene.runs_on(), ["a"]);
    scene.a.stop().await;
    scene.a.start().await;
    scene.abort().await.unwrap();
    scene.revoke().await.unwrap();
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(scene.runs_on(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_while_the_agent_is_being_stopped_is_handed_over_first() {
    let scene = Scene::new(SimGuest::named("web")).await;
    let answer = CancellationToken::new();
    scene.a.host.script(Call::Perform, Fault::AnswerAfter(answer.clone()));
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    eventually("all is sent", || scene.a.host.is_sent(scene.guest)).await;
    let jobs = scene.a.jobs();
    let stopping = stop(&jobs);
    eventually("it is being stopped", || jobs.is_stopping()).await;
    // Nothing was handed over yet; a moment later it is.
    answer.cancel();
    stopping.await.unwrap();
    assert_eq!(scene.runs_on(), ["b"], "the guest is not left between two hosts");
    assert_eq!(scene.status(&scene.a).await.journal.unwrap().verdict(), Verdict::Ran);
    drop(jobs);
    scene.rest(Verdict::Ran).await;
}
