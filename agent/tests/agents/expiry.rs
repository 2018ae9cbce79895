//! What happens when nobody comes.

use std::time::Duration;

use drover_agent::jobs::Timing;
use drover_agent::sim::SimGuest;
use drover_proto::agent::v1::*;
use drover_proto::failure::Reason;

use crate::node::eventually;
use crate::scene::{Ready, Scene, reason};

const SOON: Duration = Duration::from_millis(50);

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_that_nobody_uses_expires() {
    let limits = Timing {
        ticket: SOON,
        ..Timing::default()
    };
    let scene = Scene::with_limits(SimGuest::named("web"), limits).await;
    let ready = scene.ready().await;
    scene.until_state(&scene.b, JournalState::Revoked).await;
    scene
        .until(&scene.b, "the copy is gone", |status| status.guest.is_none())
        .await;
    assert_eq!(reason(scene.prepare(&ready.begun).await), Reason::Tombstoned);
    scene.abort().await.unwrap();
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(scene.runs_on(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_begin_that_nobody_uses_is_given_up() {
    let limits = Timing {
        begin: SOON,
        ..Timing::default()
    };
    let scene = Scene::with_limits(
        SimGuest {
            autostart: true,
            ..SimGuest::named("web")
        },
        limits,
    )
    .await;
    scene.begin().await.unwrap();
    let given_up = |status: &MigrationStatus| status.journal.as_ref().unwrap().verdict() == Verdict::NeverRan;
    scene
        .until(&scene.a, "it is given up", |status| {
            given_up(status) && !status.call_in_flight
        })
        .await;
    assert!(!scene.a.host.has_job(scene.guest));
    assert!(scene.autostart(&scene.a));
    assert_eq!(reason(scene.begin().await), Reason::Tombstoned);
    assert_eq!(scene.runs_on(), ["a"]);
}

/// Long enough to get a transfer going on a busy machine.
const LIFE: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_expire_on_the_way_do_not_stop_a_guest() {
    let guest = SimGuest {
        memory_mib: 80,
        ..SimGuest::named("web")
    };
    let scene = Scene::with_lives(guest, Timing::default(), LIFE).await;
    // Slow enough to outlive the certificates.
    let policy = TransferPolicy {
        bandwidth_limit_bytes_per_second: 4 << 20,
        ..TransferPolicy::default()
    };
    let begun = scene.begin_with(policy).await.unwrap();
    let prepared = scene.prepare(&begun).await.unwrap();
    scene.send(&Ready { begun, prepared }).await.unwrap();
    let expired = || scene.a.tls.has_expired() && scene.b.tls.has_expired();
    eventually("the certificates expire", expired).await;
    assert_eq!(scene.runs_on(), ["a"], "it moved too fast to tell anything");
    eventually("the guest runs at the destination", || scene.runs_on() == ["b"]).await;
    scene.holds();
}
