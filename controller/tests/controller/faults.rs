//! Lost requests, lost answers, killed controllers, hosts that go away: the guest moves once, or not at all.

use drover_proto::failure::Reason;
use drover_proto::v1::{MigrationState, PhaseOutcome, RegisterHostRequest, RetryMigrationRequest, UnfinishedJournal};

use super::agent::registration;
use super::lab::{Lab, reason, wish};
use super::world::{Fault, until};

/// The calls of a migration that goes well, in their order.
const WAY_THERE: [&str; 16] = [
    "InspectGuest",
    "GetAgentStatus",
    "InspectHost",
    "CheckIncoming",
    "ProbePeer",
    "WriteStorageProbes",
    "ReadStorageProbes",
    "RemoveStorageProbes",
    "GetMigrationStatus",
    "BeginOutgoing",
    "PrepareIncoming",
    "StartMigrate",
    "WatchOutgoing",
    "SettleOutgoing",
    "SettleIncoming",
    "CloseMigration",
];

/// The calls of an undo, in their order.
const WAY_BACK: [&str; 6] = [
    "GetMigrationStatus",
    "AbortOutgoing",
    "RevokeIncoming",
    "SettleOutgoing",
    "SettleIncoming",
    "CloseMigration",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_call_on_the_way_there_is_made_again() {
    for fault in [Fault::LoseRequest, Fault::LoseAnswer] {
        for method in WAY_THERE {
            let lab = Lab::new().await;
            lab.world.open_gate();
            // The source is named: an inventory that finds nothing refuses, which is another matter.
            let mut wish = wish();
            wish.migration.as_mut().unwrap().source_host = "hosts/host-1".to_owned();
            lab.world.fault(method, fault.clone());
            let created = lab.migrations().create_migration(wish).await.unwrap().into_inner();
            lab.assert_moved(&created.name).await;
            assert!(
                lab.world.lock().faults.values().all(Vec::is_empty),
                "{method} was not called"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_call_on_the_way_back_is_made_again() {
    for fault in [Fault::LoseRequest, Fault::LoseAnswer] {
        for method in WAY_BACK {
            let lab = Lab::new().await;
            let created = lab.create().await;
            lab.world.called("WatchOutgoing", 1).await;
            lab.world.fault(method, fault.clone());
            lab.cancel(&created.name).await;
            lab.assert_unmoved(&created.name, MigrationState::Cancelled).await;
            assert!(
                lab.world.lock().faults.values().all(Vec::is_empty),
                "{method} was not called"
            );
        }
    }
}

/// Kills the controller while this call is held, and starts it anew.
async fn killed_in(method: &str, lab: &mut Lab) {
    lab.kill();
    lab.world.release(method);
    lab.start().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_killed_anywhere_on_the_way_there_goes_on_after_its_restart() {
    for method in WAY_THERE {
        let mut lab = Lab::new().await;
        lab.world.open_gate();
        let mut wish = wish();
        wish.migration.as_mut().unwrap().source_host = "hosts/host-1".to_owned();
        let before = lab.world.was_called(method);
        lab.world.hold(method);
        let created = lab.migrations().create_migration(wish).await.unwrap().into_inner();
        lab.world.called(method, before + 1).await;
        killed_in(method, &mut lab).await;
        let moved = lab.assert_moved(&created.name).await;
        let interrupted = moved
            .phases
            .iter()
            .filter(|phase| phase.outcome() == PhaseOutcome::Interrupted)
            .count();
        assert_eq!(interrupted, 1, "{method}: {:#?}", moved.phases);
        assert_eq!(moved.trace_id, created.trace_id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_killed_anywhere_on_the_way_back_goes_on_after_its_restart() {
    for method in WAY_BACK {
        let mut lab = Lab::new().await;
        let created = lab.create().await;
        lab.world.called("WatchOutgoing", 1).await;
        let before = lab.world.was_called(method);
        lab.world.hold(method);
        lab.cancel(&created.name).await;
        lab.world.called(method, before + 1).await;
        killed_in(method, &mut lab).await;
        lab.assert_unmoved(&created.name, MigrationState::Cancelled).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_stopped_leaves_the_transfer_and_takes_it_up_again() {
    let mut lab = Lab::new().await;
    let created = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    lab.stop().await;
    lab.start().await;
    let running = lab.get(&created.name).await;
    assert_eq!(running.state(), MigrationState::Running);
    assert!(
        running
            .phases
            .iter()
            .any(|phase| phase.outcome() == PhaseOutcome::Interrupted)
    );
    lab.world.called("WatchOutgoing", 2).await;
    lab.world.open_gate();
    lab.assert_moved(&created.name).await;
    assert_eq!(lab.world.was_called("StartMigrate"), 1, "it looked before it acted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_switches_while_the_controller_is_away_is_found_at_its_new_host() {
    let mut lab = Lab::new().await;
    let created = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    lab.kill();
    lab.world.open_gate();
    until("the guest has switched", async || {
        lab.world.guest_state("host-1").is_none()
    })
    .await;
    lab.start().await;
    let moved = lab.assert_moved(&created.name).await;
    assert!(moved.summary.unwrap().switch_time.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_away_is_waited_for_visibly_and_the_migration_goes_on_when_it_is_back() {
    let lab = Lab::new().await;
    let created = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    lab.world.lock().away.insert("host-1".to_owned());
    until("it waits for the host", async || {
        let waiting = lab.get(&created.name).await.waiting_for;
        waiting.is_some_and(|waiting| waiting.reason == "HOST_UNREACHABLE" && waiting.host == "hosts/host-1")
    })
    .await;
    lab.world.lock().away.clear();
    lab.world.open_gate();
    let moved = lab.assert_moved(&created.name).await;
    assert!(moved.waiting_for.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_is_away_does_not_keep_the_source_from_getting_its_guest_back() {
    let lab = Lab::new().await;
    let created = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    lab.world.lock().away.insert("host-2".to_owned());
    lab.cancel(&created.name).await;
    lab.world.called("SettleOutgoing", 1).await;
    until("the source has its guest back", async || {
        lab.get(&created.name).await.guest_host == "hosts/host-1"
    })
    .await;
    lab.world.lock().away.clear();
    lab.assert_unmoved(&created.name, MigrationState::Cancelled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_is_not_in_office_any_more_commands_nothing() {
    let lab = Lab::new().await;
    let created = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    for host in ["host-1", "host-2"] {
        lab.world.lock().host(host).highest_term += 100;
    }
    lab.cancel(&created.name).await;
    lab.world.called("AbortOutgoing", 1).await;
    until("it knows", async || {
        lab.migrations()
            .create_migration(wish())
            .await
            .is_err_and(|status| reason(&status) == Reason::StaleTerm)
    })
    .await;
    let refused = lab.migrations().create_migration(wish()).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::StaleTerm);
    let calls = lab.world.lock().calls.len();
    assert_eq!(lab.get(&created.name).await.end_time, None, "it still answers");
    assert_eq!(lab.world.lock().calls.len(), calls, "no further call");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_with_an_old_store_starts_read_only() {
    let mut lab = Lab::new().await;
    lab.stop().await;
    lab.world.lock().host("host-1").highest_term = 1000;
    lab.start().await;
    let refused = lab.migrations().create_migration(wish()).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::StaleTerm);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_the_store_does_not_know_and_cannot_adopt_is_shown() {
    let lab = Lab::new().await;
    let mut client = drover_proto::v1::host_service_client::HostServiceClient::new(lab.channel("agent/host-1"));
    let journal = UnfinishedJournal {
        migration: "migrations/0190a1b2-0000-7000-8000-0000000000ff".to_owned(),
        journal_state: "waiting".to_owned(),
        ..UnfinishedJournal::default()
    };
    let host = Some(registration("host-1", &lab.addresses[0]));
    client
        .register_host(RegisterHostRequest {
            host,
            unfinished_journals: vec![journal],
            ..RegisterHostRequest::default()
        })
        .await
        .unwrap();
    let request = drover_proto::v1::GetHostRequest {
        name: "hosts/host-1".to_owned(),
    };
    let host = lab.hosts().get_host(request).await.unwrap().into_inner();
    assert!(
        host.problem.contains("0190a1b2-0000-7000-8000-0000000000ff"),
        "{host:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_finalize_is_stuck_keeps_the_guests_place_and_goes_on_by_retry() {
    let mut lab = Lab::new().await;
    lab.world.open_gate();
    lab.world.fault("SettleIncoming", Fault::Refuse(Reason::LibvirtFailed));
    let created = lab.create().await;
    until("it is stuck", async || {
        lab.get(&created.name).await.state() == MigrationState::AttentionRequired
    })
    .await;
    lab.kill();
    lab.start().await;
    let stuck = lab.get(&created.name).await;
    assert_eq!(stuck.waiting_for.unwrap().reason, "RETRY_NEEDED");
    let mut back = wish();
    let asked = back.migration.as_mut().unwrap();
    asked.source_host = "hosts/host-2".to_owned();
    asked.destination_host = "hosts/host-1".to_owned();
    let refused = lab.migrations().create_migration(back).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::MigrationExists);
    let retry = |etag: &str| RetryMigrationRequest {
        name: created.name.clone(),
        etag: etag.to_owned(),
    };
    let stale = lab.migrations().retry_migration(retry("0")).await.unwrap_err();
    assert_eq!(reason(&stale), Reason::EtagMismatch);
    lab.migrations().retry_migration(retry(&stuck.etag)).await.unwrap();
    let moved = lab.assert_moved(&created.name).await;
    assert!(moved.error.is_none());
    let late = lab.migrations().retry_migration(retry("")).await.unwrap_err();
    assert_eq!(reason(&late), Reason::MigrationState);
}

/// A lab in which all was sent and nothing handed over, and its migration.
async fn stalled() -> (Lab, String) {
    let lab = Lab::new().await;
    lab.world.lock().stalled = true;
    let created = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    (lab, created.name)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_source_agent_did_not_hand_over_is_handed_over_through_the_controller() {
    let (lab, name) = stalled().await;
    lab.world.open_gate();
    lab.assert_moved(&name).await;
    assert!(lab.world.was_called("HandOver") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_only_copy_is_finished_also_when_somebody_wants_it_undone() {
    let (lab, name) = stalled().await;
    lab.world.hold("GetMigrationStatus");
    lab.cancel(&name).await;
    lab.world.open_gate();
    until("all is sent", async || {
        use drover_proto::agent::v1::LibvirtState;
        lab.world.guest_state("host-1") == Some(LibvirtState::PausedMigrating)
    })
    .await;
    // The source's QEMU dies: what waits at the destination is the guest.
    lab.world.lock().host("host-1").guests.clear();
    lab.world.release("GetMigrationStatus");
    let moved = lab.assert_moved(&name).await;
    assert!(moved.cancelled_too_late);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_was_handed_over_is_not_given_back_before_the_destination_was_revoked() {
    use drover_proto::agent::v1::LibvirtState;
    let (lab, name) = stalled().await;
    lab.world.hold("GetMigrationStatus");
    lab.cancel(&name).await;
    lab.world.open_gate();
    let still = || lab.world.guest_state("host-1") == Some(LibvirtState::PausedMigrating);
    until("all is sent", async || still()).await;
    lab.world.lock().away.insert("host-2".to_owned());
    lab.world.release("GetMigrationStatus");
    until("it waits for the destination", async || {
        let waiting = lab.get(&name).await.waiting_for;
        waiting.is_some_and(|waiting| waiting.host == "hosts/host-2")
    })
    .await;
    assert!(still(), "the source copy was let run");
    assert_eq!(lab.world.was_called("SettleOutgoing"), 0);
    lab.world.lock().away.clear();
    lab.assert_unmoved(&name, MigrationState::Cancelled).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_dies_while_it_is_tombstoned_leaves_the_only_copy_which_is_finished_in_its_place() {
    use drover_proto::agent::v1::LibvirtState;
    let (lab, name) = stalled().await;
    lab.world.hold("AbortOutgoing");
    lab.cancel(&name).await;
    lab.world.called("AbortOutgoing", 1).await;
    lab.world.open_gate();
    until("all is sent", async || {
        lab.world.guest_state("host-1") == Some(LibvirtState::PausedMigrating)
    })
    .await;
    lab.world.lock().host("host-1").guests.clear();
    lab.world.release("AbortOutgoing");
    let moved = lab.assert_moved(&name).await;
    assert!(moved.cancelled_too_late);
    assert_eq!(lab.world.was_called("RevokeIncoming"), 0);
    assert!(lab.world.was_called("FinishIncoming") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_failed_to_finish_gives_the_guest_back_to_the_source() {
    use drover_proto::agent::v1::JournalState;
    let (lab, name) = stalled().await;
    {
        let mut state = lab.world.lock();
        let host = state.host("host-2");
        host.guests.clear();
        for journal in host.journals.values_mut() {
            journal.record.set_state(JournalState::Failed);
        }
    }
    lab.world.open_gate();
    lab.assert_unmoved(&name, MigrationState::Failed).await;
}
