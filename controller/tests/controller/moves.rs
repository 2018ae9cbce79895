//! A guest moves, does not move, or is called back.

use drover_proto::failure::Reason;
use drover_proto::v1::{MigrationPhase, MigrationState, PhaseOutcome};

use super::lab::{Lab, wish};
use super::world::Fault;

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_moves() {
    let lab = Lab::new().await;
    lab.world.open_gate();
    let created = lab.create().await;
    assert_eq!(created.state(), MigrationState::Queued);
    assert!(created.requested_by.ends_with("/user/alice"));
    let moved = lab.assert_moved(&created.name).await;
    let phases: Vec<_> = moved
        .phases
        .iter()
        .map(|phase| (phase.phase(), phase.outcome()))
        .collect();
    assert_eq!(
        phases,
        [
            MigrationPhase::Validate,
            MigrationPhase::Prepare,
            MigrationPhase::Transfer,
            MigrationPhase::Verify,
            MigrationPhase::Finalize
        ]
        .map(|phase| (phase, PhaseOutcome::Done))
    );
    assert_eq!(moved.guest_name, "web");
    let summary = moved.summary.unwrap();
    assert!(summary.switch_time.is_some() && summary.blackout.is_some());
    assert!(moved.checks.iter().any(|check| check.id == "storage-shared"));
    assert_eq!(moved.trace_id.len(), 32);
    assert!(moved.error.is_none() && moved.waiting_for.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_callers_trace_is_the_migrations_trace() {
    let lab = Lab::new().await;
    lab.world.open_gate();
    let mut request = tonic::Request::new(wish());
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    request.metadata_mut().insert(
        "traceparent",
        format!("00-{trace}-00f067aa0ba902b7-01").parse().unwrap(),
    );
    let created = lab.migrations().create_migration(request).await.unwrap().into_inner();
    assert_eq!(created.trace_id, trace);
    lab.assert_moved(&created.name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_on_unshared_storage_stays_and_no_probe_file_is_left() {
    let lab = Lab::new().await;
    lab.world.lock().host("host-2").shares = false;
    let created = lab.create().await;
    let failed = lab.assert_unmoved(&created.name, MigrationState::Failed).await;
    let error = failed.error.unwrap();
    assert_eq!(error.reason, Reason::StorageNotShared.name());
    assert_eq!(error.phase(), MigrationPhase::Validate);
    assert_eq!(failed.guest_host, "hosts/host-1");
    assert_eq!(lab.world.was_called("BeginOutgoing"), 0);
    assert!(lab.world.was_called("RemoveStorageProbes") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn probe_files_are_removed_also_when_they_could_not_be_read() {
    let lab = Lab::new().await;
    lab.world.open_gate();
    lab.world.fault("ReadStorageProbes", Fault::LoseRequest);
    let created = lab.create().await;
    lab.world.called("RemoveStorageProbes", 2).await;
    lab.assert_moved(&created.name).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_off_stays_off() {
    use drover_proto::agent::v1::LibvirtState;
    let lab = Lab::new().await;
    lab.world.lock().host("host-1").guests.values_mut().for_each(|guest| {
        guest.set_state(LibvirtState::ShutOff);
        guest.incarnation = None;
    });
    let created = lab.create().await;
    let failed = lab.at_rest(&created.name).await;
    assert_eq!(failed.state(), MigrationState::Failed);
    assert!(failed.error.unwrap().message.contains("shut off"));
    assert_eq!(lab.world.was_called("BeginOutgoing"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_refuses_to_prepare_leaves_the_guest_as_it_was() {
    let lab = Lab::new().await;
    lab.world.fault("PrepareIncoming", Fault::Refuse(Reason::Unfit));
    let created = lab.create().await;
    let failed = lab.assert_unmoved(&created.name, MigrationState::Failed).await;
    assert_eq!(failed.error.unwrap().reason, Reason::Unfit.name());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_refuses_to_start_leaves_the_guest_as_it_was() {
    let lab = Lab::new().await;
    lab.world.fault("StartMigrate", Fault::Refuse(Reason::TicketRefused));
    let created = lab.create().await;
    let failed = lab.assert_unmoved(&created.name, MigrationState::Failed).await;
    assert_eq!(failed.error.unwrap().reason, Reason::TicketRefused.name());
}

/// Cancels while this call is under way, and expects the guest where it was.
async fn cancelled_in(method: &str) {
    let lab = Lab::new().await;
    lab.world.hold(method);
    let created = lab.create().await;
    lab.world.called(method, 1).await;
    let cancelling = lab.cancel(&created.name).await;
    assert!(
        matches!(
            cancelling.state(),
            MigrationState::Cancelling | MigrationState::Cancelled
        ),
        "{method}"
    );
    lab.world.release(method);
    let cancelled = lab.assert_unmoved(&created.name, MigrationState::Cancelled).await;
    assert!(!cancelled.cancelled_too_late && cancelled.cancel_request_time.is_some());
    assert_eq!(cancelled.guest_host, "hosts/host-1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_validate_leaves_nothing() {
    cancelled_in("CheckIncoming").await;
    cancelled_in("ReadStorageProbes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_prepare_leaves_nothing_also_where_its_calls_are_slow() {
    cancelled_in("BeginOutgoing").await;
    cancelled_in("PrepareIncoming").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_start_leaves_nothing() {
    cancelled_in("StartMigrate").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_can_be_cancelled_while_it_sends() {
    let lab = Lab::new().await;
    let created = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    lab.cancel(&created.name).await;
    let cancelled = lab.assert_unmoved(&created.name, MigrationState::Cancelled).await;
    let left = cancelled
        .phases
        .iter()
        .find(|phase| phase.phase() == MigrationPhase::Transfer)
        .unwrap();
    assert_eq!(left.outcome(), PhaseOutcome::Interrupted);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_switch_a_cancellation_is_too_late_and_says_so() {
    for method in ["SettleOutgoing", "SettleIncoming"] {
        let lab = Lab::new().await;
        lab.world.open_gate();
        lab.world.hold(method);
        let created = lab.create().await;
        lab.world.called(method, 1).await;
        let told = lab.cancel(&created.name).await;
        assert!(
            told.cancelled_too_late && told.state() == MigrationState::Running,
            "{told:#?}"
        );
        lab.world.release(method);
        let moved = lab.assert_moved(&created.name).await;
        assert!(moved.cancelled_too_late);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancellation_that_meets_the_switch_finds_out_that_it_is_too_late() {
    let lab = Lab::new().await;
    let created = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    lab.world.hold("GetMigrationStatus");
    lab.cancel(&created.name).await;
    // Abort looks; before it gets an answer, the guest switches.
    lab.world.open_gate();
    super::world::until("the guest has switched", async || {
        lab.world.guest_state("host-1").is_none()
    })
    .await;
    lab.world.release("GetMigrationStatus");
    let moved = lab.assert_moved(&created.name).await;
    assert!(moved.cancelled_too_late);
    assert!(
        moved
            .phases
            .iter()
            .any(|phase| phase.phase() == MigrationPhase::Abort && phase.outcome() == PhaseOutcome::Refused)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_brings_the_guest_back() {
    let lab = Lab::new().await;
    let mut wish = wish();
    wish.migration.as_mut().unwrap().policy = Some(drover_proto::v1::MigrationPolicy {
        deadline: Some(prost_types::Duration {
            seconds: 0,
            nanos: 200_000_000,
        }),
        ..Default::default()
    });
    let created = lab.migrations().create_migration(wish).await.unwrap().into_inner();
    let failed = lab.assert_unmoved(&created.name, MigrationState::Failed).await;
    assert_eq!(failed.error.unwrap().reason, Reason::TransferDeadline.name());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_ends_meanwhile_ends_the_migration() {
    let lab = Lab::new().await;
    let created = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    {
        let mut state = lab.world.lock();
        let host = state.host("host-1");
        host.guests.clear();
        for journal in host.journals.values_mut() {
            (journal.performing, journal.in_flight) = (false, false);
            journal.outcome = drover_proto::agent::v1::PerformOutcome::Failed;
        }
    }
    let ended = lab.at_rest(&created.name).await;
    assert_eq!(ended.state(), MigrationState::GuestEnded, "{ended:#?}");
    assert!(lab.world.guest_state("host-2").is_none());
}
