//! The order for another stream in post-copy, several times at once and late. Nothing is destroyed by it, no page is lost,
//! and the guest arrives.

use std::time::Duration;

use drover_agent::hypervisor::GuestState;
use drover_proto::agent::v1::*;
use drover_proto::failure::{Failure, Reason};

use crate::node::eventually;
use crate::post_copy::{both_wait, gone_over};
use crate::scene::Scene;

/// What the source's agent sends.
fn order(scene: &Scene) -> ReopenStreamRequest {
    let record = scene.a.jobs().journal.read(scene.migration).unwrap();
    let delivery = record.source().unwrap().delivery.as_ref().unwrap();
    ReopenStreamRequest {
        migration_id: scene.migration.to_string(),
        attempt: scene.attempt,
        ticket: delivery.ticket.as_bytes().to_vec().into(),
        xml: scene.b.host.look(scene.guest).unwrap().xml,
        ..ReopenStreamRequest::default()
    }
}

async fn ask(scene: &Scene, order: ReopenStreamRequest) -> Result<ReopenStreamResponse, Failure> {
    let answer = scene.peer_of_b("agent/a").reopen_stream(order).await;
    answer
        .map(tonic::Response::into_inner)
        .map_err(|status| Failure::from_status(&status))
}

#[tokio::test(flavor = "multi_thread")]
async fn another_stream_that_is_asked_for_again_and_late_destroys_nothing() {
    let mut scene = gone_over().await;
    let order = order(&scene);
    scene.a.kill().await;
    eventually("both sides wait", || both_wait(&scene)).await;
    // At once, and once more: the last one has the only ticket that counts.
    let (one, other) = tokio::join!(ask(&scene, order.clone()), ask(&scene, order.clone()));
    let last = ask(&scene, order.clone()).await.unwrap();
    let tickets: Vec<_> = [one.unwrap(), other.unwrap(), last]
        .map(|reopened| reopened.ticket)
        .into();
    assert!(tickets[0] != tickets[1] && tickets[1] != tickets[2] && tickets[0] != tickets[2]);
    assert!(both_wait(&scene), "nobody has come");
    scene.holds();
    scene.a.start().await;
    eventually("pages flow again", || {
        let there = scene.b.host.look(scene.guest).map(|guest| guest.state);
        there == Some(GuestState::RunningPostCopy)
    })
    .await;
    // One that was on its way all the time: at worst the source has to ask once more.
    if let Err(failure) = ask(&scene, order.clone()).await {
        assert!(!failure.is_evidence(), "{failure:?}");
    }
    scene.holds();
    scene.until_moved().await;
    assert_eq!(scene.runs_on(), ["b"]);
    let late = tokio::time::timeout(Duration::from_secs(60), ask(&scene, order)).await;
    let refused = late.expect("it is answered").unwrap_err();
    assert_eq!(refused.reason, Reason::MigrationState, "no page is missing");
    scene.rest(Verdict::Ran).await;
}
