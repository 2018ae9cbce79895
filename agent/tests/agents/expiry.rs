//! What happens when nobody comes.

use std::time::Duration;

use drover_agent::jobs::Timing;
use drover_agent::sim::SimGuest;
use drover_proto::agent::v1::*;
use drover_proto::failure::Reason;

use crate::scene::{Scene, reason};

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
