//! Who may not, and when not.

use drover_agent::sim::SimGuest;
use drover_proto::agent::v1::*;
use drover_proto::failure::{Failure, Reason};

use crate::scene::{Ready, Scene, journal_state, reason};

async fn scene() -> Scene {
    Scene::new(SimGuest::named("web")).await
}

fn order(scene: &Scene, ready: &Ready) -> HandOverGuestRequest {
    HandOverGuestRequest {
        migration_id: scene.migration.to_string(),
        attempt: 1,
        ticket: ready.prepared.ticket.clone(),
        cookie: Vec::new().into(),
        ..HandOverGuestRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_is_taken_over_only_by_its_ticket_from_its_source() {
    let scene = scene().await;
    let ready = scene.ready().await;
    let right = order(&scene, &ready);
    let wrong_ticket = HandOverGuestRequest {
        ticket: vec![7; 32].into(),
        ..right.clone()
    };
    let wrong_try = HandOverGuestRequest {
        attempt: 2,
        ..right.clone()
    };
    for (identity, request) in [
        ("agent/a", wrong_ticket),
        ("agent/a", wrong_try),
        ("agent/c", right.clone()),
    ] {
        let refused = scene
            .peer_of_b(identity)
            .hand_over_guest(request)
            .await
            .map_err(Failure::from);
        assert_eq!(reason(refused), Reason::TicketRefused, "{identity}");
    }
    for identity in ["controller", "user/alice"] {
        let refused = scene
            .peer_of_b(identity)
            .hand_over_guest(right.clone())
            .await
            .map_err(Failure::from);
        assert_eq!(reason(refused), Reason::PermissionDenied, "{identity}");
    }
    assert_eq!(journal_state(&scene.status(&scene.b).await), JournalState::Waiting);
    assert_eq!(scene.runs_on(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_without_memory_is_never_finished() {
    let scene = scene().await;
    let ready = scene.ready().await;
    let refused = scene
        .peer_of_b("agent/a")
        .hand_over_guest(order(&scene, &ready))
        .await
        .map_err(Failure::from);
    assert_eq!(reason(refused), Reason::NeverRan);
    assert_eq!(journal_state(&scene.status(&scene.b).await), JournalState::Revoked);
    scene.abort().await.unwrap();
    scene.rest(Verdict::NeverRan).await;
    assert_eq!(scene.runs_on(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_out_of_office_is_not_obeyed() {
    let mut scene = scene().await;
    scene.term = 5;
    scene.begin().await.unwrap();
    for (term, store) in [(4, "store-1"), (5, "store-2")] {
        (scene.term, scene.store) = (term, store);
        assert_eq!(reason(scene.abort().await), Reason::StaleTerm);
        assert_eq!(reason(scene.settle_a(Verdict::Ran).await), Reason::StaleTerm);
    }
    // Also not after a restart.
    scene.a.restart().await;
    assert_eq!(reason(scene.abort().await), Reason::StaleTerm);
    (scene.term, scene.store) = (6, "store-2");
    scene.abort().await.unwrap();
    let status = scene
        .ask_a()
        .get_agent_status(GetAgentStatusRequest { fence: None })
        .await
        .unwrap()
        .into_inner();
    assert_eq!((status.highest_term, status.store_instance.as_str()), (6, "store-2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_controller_commands() {
    let scene = scene().await;
    let channel_owner = scene.peer_of_b("user/alice");
    drop(channel_owner);
    let request = AbortOutgoingRequest {
        fence: None,
        migration: scene.reference(),
        reason: String::new(),
    };
    let refused = scene.ask_a().abort_outgoing(request).await.map_err(Failure::from);
    assert_eq!(reason(refused), Reason::InvalidArgument, "without a fence");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_life_of_the_guest_is_left_alone() {
    let scene = scene().await;
    let life = Incarnation {
        boot_id: scene.a.host.boot_id().to_string(),
        qemu_pid: 1,
        qemu_start_time: 1,
    };
    assert_eq!(reason(scene.begin_life(Some(life)).await), Reason::IncarnationMismatch);
    assert!(scene.status(&scene.a).await.journal.is_none());
    assert!(!scene.a.host.has_job(scene.guest));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_the_destination_knows_is_not_prepared_over() {
    let scene = scene().await;
    scene.b.host.add(&SimGuest::named("web")).unwrap();
    let begun = scene.begin().await.unwrap();
    assert_eq!(reason(scene.prepare(&begun).await), Reason::GuestExists);
    assert!(scene.status(&scene.b).await.journal.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_leaves_in_one_migration_at_a_time() {
    let mut scene = scene().await;
    scene.begin().await.unwrap();
    scene.migration = drover_proto::ids::MigrationId::generate();
    assert_eq!(reason(scene.begin().await), Reason::GuestBusy);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_closed_without_a_verdict() {
    let scene = scene().await;
    scene.ready().await;
    assert_eq!(reason(scene.close(&scene.a).await), Reason::NoVerdict);
    assert_eq!(reason(scene.close(&scene.b).await), Reason::NoVerdict);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_against_the_journal_is_refused() {
    let scene = scene().await;
    let ready = scene.ready().await;
    assert_eq!(
        reason(scene.settle_b(Verdict::Ran).await),
        Reason::MigrationState,
        "it waits"
    );
    scene.send(&ready).await.unwrap();
    scene.until_state(&scene.b, JournalState::Ran).await;
    scene.until_quiet(&scene.a).await;
    assert_eq!(reason(scene.settle_b(Verdict::NeverRan).await), Reason::TooLate);
    assert_eq!(reason(scene.settle_a(Verdict::NeverRan).await), Reason::VerdictConflict);
    let revoked = scene.revoke().await.unwrap();
    assert_eq!(journal_state(&revoked), JournalState::Ran, "nothing changed");
    scene.rest(Verdict::Ran).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_for_the_other_side_or_an_earlier_try_is_refused() {
    let mut scene = scene().await;
    scene.attempt = 2;
    scene.ready().await;
    let settle = SettleOutgoingRequest {
        fence: scene.fence(),
        migration: scene.reference(),
        verdict: Verdict::NeverRan.into(),
        fenced: false,
    };
    let refused = scene.ask_b().settle_outgoing(settle).await.map_err(Failure::from);
    assert_eq!(reason(refused), Reason::MigrationState);
    let revoke = RevokeIncomingRequest {
        fence: scene.fence(),
        migration: scene.reference(),
    };
    let refused = scene.ask_a().revoke_incoming(revoke).await.map_err(Failure::from);
    assert_eq!(reason(refused), Reason::MigrationState);
    scene.attempt = 1;
    assert_eq!(reason(scene.abort().await), Reason::MigrationState, "it is about try 1");
    assert_eq!(reason(scene.revoke().await), Reason::MigrationState);
    assert_eq!(journal_state(&scene.status(&scene.b).await), JournalState::Waiting);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_finished_in_its_place_only_when_all_has_come() {
    let scene = scene().await;
    scene.ready().await;
    let request = FinishIncomingRequest {
        fence: scene.fence(),
        migration: scene.reference(),
        runs: None,
    };
    let refused = scene.ask_b().finish_incoming(request).await.map_err(Failure::from);
    assert_eq!(reason(refused), Reason::StreamIncomplete);
    assert_eq!(
        reason(scene.hand_over().await),
        Reason::StillPerforming,
        "the guest runs"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_settled_while_it_is_sent() {
    let scene = Scene::new(SimGuest {
        dirty_mib_per_second: 100_000,
        ..SimGuest::named("web")
    })
    .await;
    let ready = scene.ready().await;
    scene.send(&ready).await.unwrap();
    scene.until(&scene.a, "performing", |status| status.performing).await;
    assert_eq!(
        reason(scene.settle_a(Verdict::NeverRan).await),
        Reason::DeadlineExceeded
    );
    let journal = scene.status(&scene.a).await.journal.unwrap();
    assert_eq!(journal.verdict(), Verdict::Unspecified);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_without_a_journal_removes_no_copy() {
    let scene = scene().await;
    assert_eq!(reason(scene.settle_a(Verdict::Ran).await), Reason::MigrationNotFound);
    assert_eq!(reason(scene.settle_b(Verdict::Ran).await), Reason::MigrationNotFound);
    assert_eq!(scene.runs_on(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_was_taken_over_is_not_obeyed() {
    let scene = scene().await;
    scene.begin().await.unwrap();
    let abort = |lease| AbortOutgoingRequest {
        fence: scene.fence().map(|fence| Fence { lease, ..fence }),
        migration: scene.reference(),
        reason: "test".to_owned(),
    };
    scene.ask_a().abort_outgoing(abort(2)).await.unwrap();
    let late = scene.ask_a().abort_outgoing(abort(1)).await.map_err(Failure::from);
    assert_eq!(reason(late), Reason::StaleTerm);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_commands() {
    let scene = scene().await;
    for identity in ["agent/a", "agent/b", "user/alice"] {
        let request = RevokeIncomingRequest {
            fence: scene.fence(),
            migration: scene.reference(),
        };
        let refused = scene.ask_b_as(identity).revoke_incoming(request).await;
        assert_eq!(
            reason(refused.map_err(Failure::from)),
            Reason::PermissionDenied,
            "{identity}"
        );
    }
    assert!(scene.status(&scene.b).await.journal.is_none());
}
