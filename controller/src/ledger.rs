//! Every change of a migration's record goes through here, so that its state, its events and its watchers follow.
//!
//! A change is a pure function of the record as it is; where somebody else wrote meanwhile, it is asked again.

use std::sync::Arc;

use drover_proto::ids::MigrationId;
use drover_proto::v1::watch_migration_response::Event as Happened;
use drover_proto::v1::{GuestSwitched, TransferSummary};

use crate::hub::Hub;
use crate::store::{Event, Record, Result, Step, StepWrite, Store, StoreError, Write, now};
use crate::{state, view};

/// So often a change is asked again before the store is believed to be broken.
const MAX_CONFLICTS: u32 = 50;

/// The records, and who is told of their changes.
#[derive(Clone)]
pub struct Ledger {
    pub store: Arc<dyn Store>,
    pub hub: Arc<Hub>,
}

/// What a change makes of a record.
pub enum Change {
    /// Nothing is written.
    Leave,
    Write(StepWrite),
}

impl Ledger {
    /// Changes a record. `change` may be called several times, each time with the record as it is then.
    pub async fn change(
        &self,
        id: MigrationId,
        mut change: impl FnMut(&mut Record) -> Change + Send,
    ) -> Result<Record> {
        for _ in 0..MAX_CONFLICTS {
            let before = self.store.migration(id).await?.ok_or(StoreError::NotFound)?;
            let mut record = before.clone();
            let Change::Write(step) = change(&mut record) else {
                return Ok(before);
            };
            match self.write(&before, record, step).await {
                Err(StoreError::Conflict) => {}
                written => return written,
            }
        }
        Err(StoreError::Conflict)
    }

    async fn write(&self, before: &Record, mut record: Record, step: StepWrite) -> Result<Record> {
        record.updated = now();
        record.state = state::of(&record);
        let mut events = Vec::new();
        if is_news(before, &record) {
            let mut steps = self.store.steps(record.id).await?;
            apply(&mut steps, &step);
            let after = Record {
                generation: record.generation + 1,
                ..record.clone()
            };
            events.push(event(Happened::Changed(view::changed(&after, &steps)), &record));
        }
        if has_switched(&record) && !has_switched(before) {
            events.push(event(Happened::GuestSwitched(switched(&record)), &record));
        }
        let at_rest = record.position.is_final();
        let written = self.store.write(Write { record, step, events }).await?;
        self.hub.written(written.id, written.generation, at_rest);
        Ok(written)
    }
}

fn event(what: Happened, record: &Record) -> Event {
    Event {
        sequence: 0,
        time: record.updated,
        what,
    }
}

/// Whether watchers are told of the change: not of every attempt, but of everything that somebody may act upon.
fn is_news(before: &Record, after: &Record) -> bool {
    let waits = |record: &Record| {
        record
            .details
            .waiting_for
            .as_ref()
            .map(|waiting| (waiting.reason.clone(), waiting.host.clone()))
    };
    let facts = |record: &Record| {
        (
            record.state,
            record.phase,
            record.started.is_some(),
            record.too_late,
            record.guest_host.clone(),
            record.details.actions.last().cloned(),
        )
    };
    facts(before) != facts(after)
        || waits(before) != waits(after)
        || before.details.error != after.details.error
        || before.resolution != after.resolution
}

fn has_switched(record: &Record) -> bool {
    record
        .details
        .summary
        .as_ref()
        .is_some_and(|summary| summary.switch_time.is_some())
}

fn switched(record: &Record) -> GuestSwitched {
    let TransferSummary {
        switch_time, blackout, ..
    } = record.details.summary.unwrap_or_default();
    GuestSwitched {
        host: record.destination.resource_name(),
        switch_time,
        blackout,
    }
}

/// What the steps will be when the write is done.
fn apply(steps: &mut Vec<Step>, write: &StepWrite) {
    match write {
        StepWrite::Nothing => {}
        StepWrite::Start(step) => steps.push(step.clone()),
        StepWrite::End(end) => {
            for step in steps.iter_mut().filter(|step| step.number == end.number) {
                step.end = Some((end.ended, end.outcome));
                step.detail.clone_from(&end.detail);
            }
        }
    }
}
