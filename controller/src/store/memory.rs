//! A store that forgets: for tests and for simulations under a paused clock.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use drover_proto::ids::{GuestId, HostId, MigrationId};
use uuid::Uuid;

use super::{
    Created, Event, Filter, HostRecord, Record, Result, Step, StepWrite, Store, StoreError, Term, Write, sequence,
};

/// Everything in memory, one lock around it.
#[derive(Default)]
pub struct MemoryStore {
    tables: Mutex<Tables>,
}

#[derive(Default)]
struct Tables {
    term: Option<Term>,
    migrations: BTreeMap<MigrationId, Record>,
    steps: BTreeMap<MigrationId, Vec<Step>>,
    events: BTreeMap<MigrationId, Vec<Event>>,
    hosts: BTreeMap<HostId, HostRecord>,
}

impl MemoryStore {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        // A panic while the lock is held leaves whole writes only: nothing between the changes of one can panic.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    fn add_events(&mut self, record: &Record, events: Vec<Event>) {
        let list = self.events.entry(record.id).or_default();
        for (index, event) in events.into_iter().enumerate() {
            list.push(Event {
                sequence: sequence(record.generation, index),
                ..event
            });
        }
    }

    fn made_by(&self, request: Uuid) -> Option<&Record> {
        self.migrations
            .values()
            .find(|row| row.request.as_ref().is_some_and(|made| made.id == request))
    }

    fn unfinished_of(&self, guest: GuestId) -> Option<MigrationId> {
        self.migrations
            .values()
            .find(|row| row.guest == guest && !row.position.is_final())
            .map(|row| row.id)
    }

    fn check_step(&self, id: MigrationId, step: &StepWrite) -> Result<()> {
        let steps = self.steps.get(&id).map(Vec::as_slice).unwrap_or_default();
        let fits = match step {
            StepWrite::Nothing => true,
            StepWrite::Start(step) => steps.iter().all(|earlier| earlier.number != step.number),
            StepWrite::End(end) => steps.iter().any(|step| step.number == end.number && step.end.is_none()),
        };
        if fits { Ok(()) } else { Err(StoreError::Conflict) }
    }

    fn write_step(&mut self, id: MigrationId, step: StepWrite) {
        let steps = self.steps.entry(id).or_default();
        match step {
            StepWrite::Nothing => {}
            StepWrite::Start(step) => steps.push(step),
            StepWrite::End(end) => {
                for step in steps.iter_mut().filter(|step| step.number == end.number) {
                    step.end = Some((end.ended, end.outcome));
                    step.detail.clone_from(&end.detail);
                }
            }
        }
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn term(&self) -> Result<Option<Term>> {
        Ok(self.tables().term)
    }

    async fn raise_term(&self, at_least: u64, instance: Uuid) -> Result<Term> {
        let mut tables = self.tables();
        let number = tables.term.map_or(0, |term| term.number).max(at_least) + 1;
        let term = Term { number, instance };
        tables.term = Some(term);
        Ok(term)
    }

    async fn create(&self, mut record: Record) -> Result<Created> {
        let mut tables = self.tables();
        if let Some(request) = &record.request
            && let Some(made) = tables.made_by(request.id)
        {
            return if made.request.as_ref() == Some(request) {
                Ok(Created::Same(made.clone()))
            } else {
                Err(StoreError::RequestReused(made.id))
            };
        }
        if let Some(other) = tables.unfinished_of(record.guest) {
            return Err(StoreError::GuestBusy(other));
        }
        record.generation = 1;
        tables.migrations.insert(record.id, record.clone());
        Ok(Created::New(record))
    }

    async fn by_request(&self, request: Uuid) -> Result<Option<Record>> {
        Ok(self.tables().made_by(request).cloned())
    }

    async fn migration(&self, id: MigrationId) -> Result<Option<Record>> {
        Ok(self.tables().migrations.get(&id).cloned())
    }

    async fn migrations(&self, filter: &Filter, before: Option<MigrationId>, limit: u32) -> Result<Vec<Record>> {
        let tables = self.tables();
        let older = |row: &&Record| before.is_none_or(|before| row.id < before);
        let rows = tables
            .migrations
            .values()
            .rev()
            .filter(older)
            .filter(|row| filter.matches(row));
        Ok(rows.take(limit as usize).cloned().collect())
    }

    async fn unfinished(&self) -> Result<Vec<Record>> {
        Ok(self
            .tables()
            .migrations
            .values()
            .filter(|row| !row.position.is_final())
            .cloned()
            .collect())
    }

    async fn unfinished_of(&self, guest: GuestId) -> Result<Option<MigrationId>> {
        Ok(self.tables().unfinished_of(guest))
    }

    async fn write(&self, write: Write) -> Result<Record> {
        let mut tables = self.tables();
        let mut record = write.record;
        let current = tables.migrations.get(&record.id).ok_or(StoreError::NotFound)?;
        if current.generation != record.generation {
            return Err(StoreError::Conflict);
        }
        tables.check_step(record.id, &write.step)?;
        record.generation += 1;
        tables.write_step(record.id, write.step);
        tables.add_events(&record, write.events);
        tables.migrations.insert(record.id, record.clone());
        Ok(record)
    }

    async fn steps(&self, id: MigrationId) -> Result<Vec<Step>> {
        Ok(self.tables().steps.get(&id).cloned().unwrap_or_default())
    }

    async fn events(&self, id: MigrationId, after: u64, limit: u32) -> Result<Vec<Event>> {
        let tables = self.tables();
        let all = tables.events.get(&id).map(Vec::as_slice).unwrap_or_default();
        Ok(all
            .iter()
            .filter(|event| event.sequence > after)
            .take(limit as usize)
            .cloned()
            .collect())
    }

    async fn host(&self, id: &HostId) -> Result<Option<HostRecord>> {
        Ok(self.tables().hosts.get(id).cloned())
    }

    async fn hosts(&self, after: Option<&HostId>, limit: u32) -> Result<Vec<HostRecord>> {
        let tables = self.tables();
        let later = |host: &&HostRecord| after.is_none_or(|after| host.id > *after);
        Ok(tables
            .hosts
            .values()
            .filter(later)
            .take(limit as usize)
            .cloned()
            .collect())
    }

    async fn put_host(&self, mut host: HostRecord) -> Result<HostRecord> {
        let mut tables = self.tables();
        let current = tables.hosts.get(&host.id).map_or(0, |current| current.generation);
        if current != host.generation {
            return Err(StoreError::Conflict);
        }
        host.generation += 1;
        tables.hosts.insert(host.id.clone(), host.clone());
        Ok(host)
    }

    async fn check(&self) -> Result<()> {
        Ok(())
    }
}
