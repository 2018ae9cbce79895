//! How a transfer goes in this world: to its end, to the destination, or given up at a deadline.

use std::time::Duration;

use drover_proto::agent::v1::{JournalState, LibvirtState, PerformOutcome, Verdict};
use drover_proto::time::{now, proto_duration};
use drover_proto::v1::{MigrationError, TransferSummary};

use super::{GUEST, State};

impl State {
    /// Perform came to its end, if nobody has aborted it: the source hands over, the guest switches.
    pub(crate) fn complete(&mut self, source: &str, destination: &str, id: &str) {
        let unwritten = self.unwritten;
        let journal = self.host(source).journals.get_mut(id).unwrap();
        journal.in_flight = false;
        if !journal.performing {
            return;
        }
        journal.performing = false;
        journal.outcome = PerformOutcome::Sent;
        if !unwritten {
            journal.record.set_state(JournalState::HandedOver);
        }
        let guest = self.host(source).guests.get_mut(GUEST).unwrap();
        guest.set_state(LibvirtState::PausedMigrating);
        if !self.stalled && !unwritten {
            self.hand_over(source, destination, id);
        }
    }

    /// Confirm: the copy goes, unless it is stubborn.
    pub(crate) fn remove_copy(&mut self, source: &str) {
        if self.stubborn > 0 {
            self.stubborn -= 1;
        } else {
            self.host(source).guests.remove(GUEST);
        }
    }

    /// The agent gives up at its deadline, if that is still the one that counts.
    pub(crate) fn expire(&mut self, source: &str, id: &str, deadline: prost_types::Duration) {
        if self.timeless {
            return;
        }
        let journal = self.host(source).journals.get_mut(id).unwrap();
        let counts = journal.policy.is_some_and(|policy| policy.deadline == Some(deadline));
        if !journal.performing || !counts {
            return;
        }
        (journal.performing, journal.in_flight) = (false, false);
        journal.outcome = PerformOutcome::Failed;
        journal.error = Some(MigrationError {
            reason: "TRANSFER_DEADLINE".to_owned(),
            ..MigrationError::default()
        });
    }

    pub(crate) fn hand_over(&mut self, source: &str, destination: &str, id: &str) {
        // A destination that is away cannot be told.
        if self.away.contains(destination) {
            return;
        }
        let there = self.host(destination);
        let journal = there.journals.get_mut(id).unwrap();
        if !matches!(journal.record.state(), JournalState::Waiting | JournalState::Finishing) {
            return;
        }
        journal.record.set_state(JournalState::Ran);
        journal.record.set_verdict(Verdict::Ran);
        let guest = there.guests.get_mut(GUEST).unwrap();
        guest.set_state(LibvirtState::Running);
        guest.persistent = true;
        // A source that is away hears of nothing.
        if self.away.contains(source) {
            return;
        }
        self.remove_copy(source);
        let journal = self.host(source).journals.get_mut(id).unwrap();
        journal.record.set_verdict(Verdict::Ran);
        journal.summary = Some(TransferSummary {
            switch_time: Some(now()),
            blackout: Some(proto_duration(Duration::from_millis(42))),
            memory_sent_bytes: 1000,
            tunnel_bytes: 1000 << 20,
            duration: Some(proto_duration(Duration::from_millis(10_150))),
            iterations: 2,
            ..TransferSummary::default()
        });
        self.assert_one_runs();
    }
}
