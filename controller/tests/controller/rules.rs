//! The rules that keep a guest from running twice, each where breaking it would show.

use drover_proto::agent::v1::{Incarnation, JournalRecord, JournalState, LibvirtState, MigrationRef, Verdict};
use drover_proto::failure::Reason;
use drover_proto::v1::{MigrationPhase, MigrationState};

use super::lab::Lab;
use super::world::{Fault, GUEST, Journal, State, World, until};

impl State {
    /// Everything is done already, and closed: the guest runs at its destination.
    pub(crate) fn has_moved(&mut self, id: &str) {
        let mut guest = self.host("host-1").guests.remove(GUEST).unwrap();
        let left = guest.incarnation.replace(self.incarnation());
        let reference = MigrationRef {
            migration_id: id.to_owned(),
            attempt: 1,
            guest_uuid: GUEST.to_owned(),
        };
        let record = |state: JournalState, peer: &str, incarnation: Option<Incarnation>| JournalRecord {
            migration: Some(reference.clone()),
            state: state.into(),
            verdict: Verdict::Ran.into(),
            peer_host: format!("hosts/{peer}"),
            autostart_before: true,
            incarnation,
            closed: true,
            ..JournalRecord::default()
        };
        let journal = |record| Journal {
            record,
            ..Journal::default()
        };
        let here = record(JournalState::HandedOver, "host-2", left);
        let there = record(JournalState::Ran, "host-1", guest.incarnation.clone());
        self.host("host-1").journals.insert(id.to_owned(), journal(here));
        self.host("host-2").journals.insert(id.to_owned(), journal(there));
        self.host("host-2").guests.insert(GUEST.to_owned(), guest);
    }
}

fn id_of(name: &str) -> &str {
    name.trim_start_matches("migrations/")
}

/// A lab in which all was sent and nothing handed over, and its migration.
async fn stalled() -> (Lab, String) {
    let lab = Lab::new().await;
    lab.world.lock().stalled = true;
    let created = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    (lab, created.name)
}

fn stands_still(world: &World) -> bool {
    world.guest_state("host-1") == Some(LibvirtState::PausedMigrating)
}

/// Which hosts were called so, in order.
fn hosts_called(world: &World, method: &str) -> Vec<String> {
    let state = world.lock();
    let calls = state.calls.iter().filter(|(_, called)| called == method);
    calls.map(|(host, _)| host.clone()).collect()
}

async fn until_stuck(lab: &Lab, name: &str) {
    until("it is stuck", async || {
        let waiting = lab.get(name).await.waiting_for;
        waiting.is_some_and(|waiting| waiting.reason == "RETRY_NEEDED")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prepare_looks_first_and_begins_nothing_that_has_run_already() {
    let mut lab = Lab::new().await;
    lab.world.open_gate();
    lab.world.hold("BeginOutgoing");
    let created = lab.create().await;
    lab.world.called("BeginOutgoing", 1).await;
    lab.kill();
    let calls = {
        // What the store does not know of: it went on under another controller, and the guest has moved.
        let mut state = lab.world.lock();
        state
            .faults
            .insert("BeginOutgoing".to_owned(), vec![Fault::LoseRequest]);
        state.calls.len()
    };
    lab.world.release("BeginOutgoing");
    until("the old call is lost", async || {
        lab.world.lock().faults.values().all(Vec::is_empty)
    })
    .await;
    lab.world.lock().has_moved(id_of(&created.name));
    lab.start().await;
    lab.assert_moved(&created.name).await;
    let state = lab.world.lock();
    let begun = |(_, method): &&(String, String)| method == "BeginOutgoing" || method == "PrepareIncoming";
    assert_eq!(state.calls[calls..].iter().filter(begun).count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_removes_no_copy_where_the_destination_says_that_the_guest_never_ran() {
    let mut lab = Lab::new().await;
    lab.world.open_gate();
    lab.world.lock().stubborn = 100;
    lab.world.hold("SettleOutgoing");
    let created = lab.create().await;
    lab.world.called("SettleOutgoing", 1).await;
    lab.kill();
    lab.world.fault("SettleOutgoing", Fault::LoseRequest);
    lab.world.release("SettleOutgoing");
    until("the old call is lost", async || {
        lab.world.lock().faults.values().all(Vec::is_empty)
    })
    .await;
    {
        let mut state = lab.world.lock();
        let id = id_of(&created.name);
        state.host("host-2").guests.clear();
        let there = state.host("host-2").journals.get_mut(id).unwrap();
        there.record.set_state(JournalState::Revoked);
        there.record.set_verdict(Verdict::Unspecified);
        let here = state.host("host-1").journals.get_mut(id).unwrap();
        here.record.set_verdict(Verdict::Unspecified);
    }
    lab.start().await;
    until_stuck(&lab, &created.name).await;
    assert_eq!(lab.world.was_called("SettleOutgoing"), 1, "only the one before");
    assert!(stands_still(&lab.world), "the only copy is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_goes_on_until_the_source_copy_is_seen_to_be_gone() {
    let lab = Lab::new().await;
    lab.world.lock().stubborn = 3;
    lab.world.open_gate();
    let created = lab.create().await;
    lab.assert_moved(&created.name).await;
    assert!(lab.world.was_called("SettleOutgoing") >= 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_handed_over_is_written_down_by_the_source_first() {
    let lab = Lab::new().await;
    lab.world.lock().unwritten = true;
    lab.world.open_gate();
    let created = lab.create().await;
    lab.assert_moved(&created.name).await;
    assert!(lab.world.was_called("HandOver") > 0);
    assert_eq!(lab.world.was_called("FinishIncoming"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_being_finished_is_not_given_back() {
    let (lab, name) = stalled().await;
    lab.world.hold("RevokeIncoming");
    lab.world.hold("AbortOutgoing");
    lab.cancel(&name).await;
    lab.world.called("AbortOutgoing", 1).await;
    lab.world.open_gate();
    until("all is sent", async || stands_still(&lab.world)).await;
    let finishing = |state: JournalState| {
        let mut world = lab.world.lock();
        let there = world.host("host-2").journals.get_mut(id_of(&name)).unwrap();
        there.record.set_state(state);
    };
    lab.world.release("AbortOutgoing");
    lab.world.called("RevokeIncoming", 1).await;
    // The hand-over that was on its way arrives before the revocation.
    finishing(JournalState::Finishing);
    lab.world.release("RevokeIncoming");
    let moved = lab.assert_moved(&name).await;
    assert!(moved.cancelled_too_late);
    let given_back = lab.world.lock().hosts["host-1"].journals[id_of(&name)].record.verdict();
    assert_eq!(given_back, Verdict::Ran);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_runs_when_it_is_revoked_is_not_given_back() {
    let (lab, name) = stalled().await;
    lab.world.hold("RevokeIncoming");
    lab.world.hold("AbortOutgoing");
    lab.cancel(&name).await;
    lab.world.called("AbortOutgoing", 1).await;
    lab.world.open_gate();
    until("all is sent", async || stands_still(&lab.world)).await;
    lab.world.release("AbortOutgoing");
    lab.world.called("RevokeIncoming", 1).await;
    {
        // The source's agent died before it could hear of it: its copy is still there.
        let mut state = lab.world.lock();
        state.stubborn = 1;
        state.hand_over("host-1", "host-2", id_of(&name));
        let here = state.host("host-1").journals.get_mut(id_of(&name)).unwrap();
        here.record.set_verdict(Verdict::Unspecified);
    }
    lab.world.release("RevokeIncoming");
    let moved = lab.assert_moved(&name).await;
    assert!(moved.cancelled_too_late);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_revoked_while_the_tombstone_is_not_written() {
    let lab = Lab::new().await;
    let created = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    for _ in 0..3 {
        lab.world
            .fault("AbortOutgoing", Fault::Refuse(Reason::LibvirtUnavailable));
    }
    lab.world.lock().held.insert(
        "RevokeIncoming".to_owned(),
        std::sync::Arc::new(tokio::sync::Semaphore::new(0)),
    );
    lab.cancel(&created.name).await;
    lab.world.called("RevokeIncoming", 1).await;
    assert_eq!(
        lab.world.was_called("AbortOutgoing"),
        4,
        "revoked before it was tombstoned"
    );
    lab.world.release("RevokeIncoming");
    lab.assert_unmoved(&created.name, MigrationState::Cancelled).await;
}

/// An undo that waits for its destination, and its migration.
async fn undone_without_destination() -> (Lab, String) {
    let lab = Lab::new().await;
    let created = lab.create().await;
    lab.world.called("WatchOutgoing", 1).await;
    lab.world.lock().away.insert("host-2".to_owned());
    lab.cancel(&created.name).await;
    until("the source has its guest back", async || {
        lab.get(&created.name).await.phase() == MigrationPhase::Discard
    })
    .await;
    (lab, created.name)
}

#[tokio::test(flavor = "multi_thread")]
async fn discard_revokes_before_it_settles() {
    let (lab, name) = undone_without_destination().await;
    lab.world.lock().away.clear();
    lab.assert_unmoved(&name, MigrationState::Cancelled).await;
    let state = lab.world.lock();
    let there = &state.hosts["host-2"].journals[id_of(&name)].record;
    assert_eq!(there.state(), JournalState::Revoked, "it decides, and says so");
}

#[tokio::test(flavor = "multi_thread")]
async fn discard_touches_nothing_where_the_guest_has_run() {
    let (lab, name) = undone_without_destination().await;
    {
        let mut state = lab.world.lock();
        let there = state.host("host-2").journals.get_mut(id_of(&name)).unwrap();
        there.record.set_state(JournalState::Ran);
        state.away.clear();
    }
    until_stuck(&lab, &name).await;
    let state = lab.world.lock();
    let there = &state.hosts["host-2"];
    assert!(there.guests.contains_key(GUEST), "what may be the guest is kept");
    let record = &there.journals[id_of(&name)].record;
    assert!(!record.closed && record.verdict() == Verdict::Unspecified, "{record:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn finalize_closes_the_source_first() {
    let lab = Lab::new().await;
    lab.world.open_gate();
    let created = lab.create().await;
    lab.assert_moved(&created.name).await;
    assert_eq!(hosts_called(&lab.world, "CloseMigration"), ["host-1", "host-2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_is_written_down_before_it_acts() {
    let mut lab = Lab::new().await;
    lab.world.hold("BeginOutgoing");
    let created = lab.create().await;
    lab.world.called("BeginOutgoing", 1).await;
    let shown = lab.get(&created.name).await;
    let step = shown.phases.last().unwrap();
    assert_eq!(step.phase(), MigrationPhase::Prepare);
    assert!(step.end_time.is_none(), "{step:?}");
    lab.kill();
    lab.world.release("BeginOutgoing");
}
