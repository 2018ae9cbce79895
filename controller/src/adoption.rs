//! A migration that the store does not know, and an agent's journal does: made a row again, from what the journal says.
//!
//! It goes on where looking at both hosts decides: Abort, which finds out whether it is too late; or Verify, where
//! the destination says that the guest has run. Nothing is started by it that was not under way.

use std::collections::BTreeMap;

use drover_proto::failure::Reason;
use drover_proto::ids::{Attempt, HostId, MigrationId};
use drover_proto::trace::Context;
use drover_proto::v1::{MigrationError, MigrationState, UnfinishedJournal};

use crate::saga::{Phase, Position};
use crate::store::record::Details;
use crate::store::{Created, Record, Result, Store, StoreError, now};
use crate::{state, trace};

/// What the record says of who asked for it.
const NOBODY: &str = "adopted from a journal";

/// Writes a row for a journal of `host`. None where that cannot be: the journal names no other host, or one that is
/// not registered yet, or the guest has another unfinished migration.
pub async fn adopt(store: &dyn Store, host: &HostId, journal: &UnfinishedJournal) -> Result<Option<Created>> {
    let Some(record) = record(host, journal) else {
        return Ok(None);
    };
    for side in [&record.source, &record.destination] {
        if store.host(side).await?.is_none() {
            return Ok(None);
        }
    }
    if store.migration(record.id).await?.is_some() {
        return Ok(Some(Created::Same(record)));
    }
    match store.create(record).await {
        Ok(created) => {
            let (Created::New(record) | Created::Same(record)) = &created;
            let (id, guest, position) = (record.id, record.guest, record.position);
            let state = &journal.journal_state;
            trace::tell(record, || {
                tracing::warn!(
                    migration_id = %id, %guest, %host, %position, state,
                    "the store did not know this migration: it is taken up from the journal of {host}"
                );
            });
            Ok(Some(created))
        }
        Err(StoreError::GuestBusy(other)) => {
            tracing::warn!(migration_id = %record_id(journal), %other, "its guest has another unfinished migration");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn record_id(journal: &UnfinishedJournal) -> &str {
    journal.migration.trim_start_matches("migrations/")
}

/// The row, if the journal says enough and the host has to do with it.
pub(crate) fn record(host: &HostId, journal: &UnfinishedJournal) -> Option<Record> {
    let source = HostId::from_resource_name(&journal.source_host).ok()?;
    let destination = HostId::from_resource_name(&journal.destination_host).ok()?;
    if source == destination || (*host != source && *host != destination) {
        return None;
    }
    let has_run = *host == destination && journal.journal_state == "ran";
    let phase = if has_run { Phase::Verify } else { Phase::Abort };
    let mut record = Record {
        id: MigrationId::from_resource_name(&journal.migration).ok()?,
        generation: 0,
        request: None,
        guest: journal.guest_uuid.parse().ok()?,
        guest_name: String::new(),
        source,
        destination,
        labels: BTreeMap::new(),
        requested_by: NOBODY.to_owned(),
        position: Position::At(phase),
        phase,
        state: MigrationState::Queued,
        attempt: Attempt(journal.attempt.max(1)),
        unknowns: 0,
        cancel_requested: None,
        too_late: false,
        guest_host: None,
        incarnation: None,
        prepared: None,
        resolution: None,
        trace: trace::begin(&Context::new()),
        created: now(),
        started: Some(now()),
        transfer_started: None,
        ended: None,
        updated: now(),
        details: Details {
            error: (!has_run).then(|| lost(phase)),
            ..Details::default()
        },
    };
    record.state = state::of(&record);
    Some(record)
}

/// Why it is undone, where it can be.
fn lost(phase: Phase) -> MigrationError {
    MigrationError {
        reason: Reason::StoreLost.name().to_owned(),
        message: "the controller's database did not know this migration: it was undone where that was possible"
            .to_owned(),
        remedy: "create it anew".to_owned(),
        host: String::new(),
        phase: state::phase(phase).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(state: &str) -> UnfinishedJournal {
        UnfinishedJournal {
            migration: "migrations/0190a1b2-0000-7000-8000-0000000000ff".to_owned(),
            guest_uuid: "0190a1b2-0000-7000-8000-00000000000a".to_owned(),
            source_host: "hosts/host-1".to_owned(),
            destination_host: "hosts/host-2".to_owned(),
            journal_state: state.to_owned(),
            attempt: 1,
        }
    }

    fn phase(host: &str, state: &str) -> Option<Phase> {
        record(&host.parse().unwrap(), &journal(state)).map(|record| record.phase)
    }

    #[test]
    fn only_what_has_run_is_not_undone() {
        assert_eq!(phase("host-2", "ran"), Some(Phase::Verify));
        for (host, state) in [
            ("host-1", "sending"),
            ("host-1", "handed-over"),
            ("host-2", "waiting"),
            ("host-2", "resuming"),
            ("host-1", "ran"),
        ] {
            assert_eq!(phase(host, state), Some(Phase::Abort), "{host} {state}");
        }
    }

    #[test]
    fn a_host_speaks_of_its_own_migrations_only() {
        assert_eq!(phase("host-3", "waiting"), None);
        let incomplete = UnfinishedJournal {
            source_host: String::new(),
            ..journal("tombstone")
        };
        assert!(record(&"host-2".parse().unwrap(), &incomplete).is_none());
    }
}
