//! The store: what survives the controller.
//!
//! Promise: a write is on the disk when it returns, whole or not at all, and only if nobody wrote since the
//! generation that it names. Two implementations, [`memory`] and [`sqlite`], behind one conformance suite.

pub mod memory;
pub mod record;
pub mod sqlite;

use async_trait::async_trait;
use drover_proto::ids::{GuestId, HostId, MigrationId};
use uuid::Uuid;

pub use record::{
    Event, Filter, HostRecord, Prepared, Record, RequestKey, Resolution, Step, StepEnd, StepOutcome, Term, Trace, now,
};

pub type Result<T> = std::result::Result<T, StoreError>;

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody wrote since the generation that was named: read again.
    #[error("the record was changed by somebody else meanwhile")]
    Conflict,
    #[error("there is no such record")]
    NotFound,
    /// The guest has another unfinished migration.
    #[error("the guest has the unfinished migration {0}")]
    GuestBusy(MigrationId),
    /// The request id was used with another content.
    #[error("the request id was used for {0} with another content")]
    RequestReused(MigrationId),
    /// Another controller has raised the term since this one did: it writes no migration any more.
    #[error("another controller has taken office on this store")]
    NotInOffice,
    /// What was read cannot be understood: written by another version, or damaged.
    #[error("the store holds what cannot be understood: {0}")]
    Unreadable(String),
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    #[error("the database's schema cannot be brought up to date: {0}")]
    Schema(#[from] sqlx::migrate::MigrateError),
}

/// What became of a wish to create.
#[derive(Clone, Debug, PartialEq)]
pub enum Created {
    New(Record),
    /// The same request had been made before.
    Same(Record),
}

/// One write to one migration, in one transaction.
#[derive(Clone, Debug)]
pub struct Write {
    /// The whole record, with the generation that was read.
    pub record: Record,
    pub step: StepWrite,
    /// What watchers must not miss; sequences are given by the store.
    pub events: Vec<Event>,
}

/// What happens to the migration's steps in a write.
#[derive(Clone, Debug)]
pub enum StepWrite {
    Nothing,
    /// Written before the phase acts.
    Start(Step),
    End(StepEnd),
}

/// Durable truth. Every method is one transaction.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The term as it is; none before the first start.
    async fn term(&self) -> Result<Option<Term>>;

    /// Begins a new term, above `at_least` and above its own, with a fresh instance id. From then on this handle writes
    /// migrations only while that term is the one in the store; one that never raised a term is not bound.
    async fn raise_term(&self, at_least: u64, instance: Uuid) -> Result<Term>;

    /// Inserts a migration (generation 1), unless its request was made before or its guest has an unfinished one.
    async fn create(&self, record: Record) -> Result<Created>;

    /// The migration that a request made.
    async fn by_request(&self, request: Uuid) -> Result<Option<Record>>;

    async fn migration(&self, id: MigrationId) -> Result<Option<Record>>;

    /// Newest first, at most `limit`, older than `before`.
    async fn migrations(&self, filter: &Filter, before: Option<MigrationId>, limit: u32) -> Result<Vec<Record>>;

    /// Every migration that is active or stuck, oldest first.
    async fn unfinished(&self) -> Result<Vec<Record>>;

    /// The unfinished migration of a guest.
    async fn unfinished_of(&self, guest: GuestId) -> Result<Option<MigrationId>>;

    /// Replaces a record if its generation is still the one named. Gives it with its new generation.
    async fn write(&self, write: Write) -> Result<Record>;

    /// The attempts at phases, in order.
    async fn steps(&self, id: MigrationId) -> Result<Vec<Step>>;

    /// What happened after `after`, in order, at most `limit`.
    async fn events(&self, id: MigrationId, after: u64, limit: u32) -> Result<Vec<Event>>;

    async fn host(&self, id: &HostId) -> Result<Option<HostRecord>>;

    /// By id, at most `limit`, after `after`.
    async fn hosts(&self, after: Option<&HostId>, limit: u32) -> Result<Vec<HostRecord>>;

    /// Writes a host; generation 0 inserts, any other must be the one that is there.
    async fn put_host(&self, host: HostRecord) -> Result<HostRecord>;

    /// Whether the store can be written to right now.
    async fn check(&self) -> Result<()>;
}

/// The sequence of the event with this index in the write that made this generation.
pub(crate) fn sequence(generation: u64, index: usize) -> u64 {
    generation * EVENTS_PER_WRITE + index as u64
}

/// At most so many events in one write.
pub(crate) const EVENTS_PER_WRITE: u64 = 4;

#[cfg(test)]
pub(crate) mod conformance;
