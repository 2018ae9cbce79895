//! The store in one SQLite file: write-ahead log, every commit on the disk, foreign keys on.
//!
//! Writers take the write lock at the beginning of their transaction, so that what a transaction reads is still true
//! when it writes. The SQL is in `migrations/` and here, written out.

mod codec;
#[cfg(test)]
mod full_tests;
mod office;

use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use drover_proto::ids::{GuestId, HostId, MigrationId};
use drover_proto::time::unix_micros;
use prost::Message;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, Sqlite, Transaction};
use uuid::Uuid;

use super::{
    Created, Event, Filter, HostRecord, Record, Result, Step, StepWrite, Store, StoreError, Term, Write, sequence,
};
use codec::{host_from, record_from, step_from};

/// Waits this long for another writer.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// One writes, the others read.
const MAX_CONNECTIONS: u32 = 3;

/// A database file.
#[derive(Clone)]
pub struct SqliteStore {
    pool: SqlitePool,
    /// The term that was raised by this handle.
    office: office::Own,
}

impl SqliteStore {
    /// Opens or makes the database and brings its schema up to date. `url`: `sqlite:///path/to/drover.db`.
    pub async fn open(url: &str) -> Result<Self> {
        let options = SqliteConnectOptions::from_str(url)?
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = SqlitePoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            // SQLite ends a transaction by itself where the disk is full, and sqlx believes it open for ever.
            .before_acquire(|connection, _| Box::pin(async move { Ok(!connection.is_in_transaction()) }))
            .connect_with(options)
            .await?;
        sqlx::migrate!("./migrations").run(&pool).await?;
        Ok(Self {
            pool,
            office: office::Own::default(),
        })
    }

    /// Closes the file; the log is written back into it.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// A transaction that holds the write lock from its beginning.
    async fn writer(&self) -> Result<Transaction<'static, Sqlite>> {
        Ok(self.pool.begin_with("BEGIN IMMEDIATE").await?)
    }
}

const BY_REQUEST: &str = "SELECT * FROM migration WHERE request_id = ?";
const UNFINISHED_OF: &str = "SELECT id FROM migration WHERE guest = ? AND finished = 0";

async fn insert(transaction: &mut Transaction<'static, Sqlite>, record: &Record) -> Result<()> {
    let sql = "INSERT INTO migration (
            id, generation, request_id, request_content, guest, guest_name, source, destination, labels, requested_by,
            position, phase, finished, state, attempt, unknowns, cancel_requested, too_late, guest_host, incarnation,
            prepared, trace_id, root_span, parent_span, created, started, transfer_started, ended, updated, details
        ) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
    let (request_id, content) = match &record.request {
        Some(request) => (Some(request.id.to_string()), Some(request.content.clone())),
        None => (None, None),
    };
    sqlx::query(sql)
        .bind(record.id.to_string())
        .bind(codec::signed(record.generation))
        .bind(request_id)
        .bind(content)
        .bind(record.guest.to_string())
        .bind(&record.guest_name)
        .bind(record.source.as_str())
        .bind(record.destination.as_str())
        .bind(codec::labels(&record.labels))
        .bind(&record.requested_by)
        .bind(record.position.name())
        .bind(record.phase.name())
        .bind(record.position.is_final())
        .bind(record.state.as_str_name())
        .bind(record.attempt.0)
        .bind(record.unknowns)
        .bind(record.cancel_requested.map(unix_micros))
        .bind(record.too_late)
        .bind(record.guest_host.as_ref().map(HostId::as_str))
        .bind(record.incarnation.as_ref().map(Message::encode_to_vec))
        .bind(record.prepared.as_ref().map(codec::prepared))
        .bind(record.trace.id.to_string())
        .bind(record.trace.root.to_string())
        .bind(record.trace.parent.map(|span| span.to_string()))
        .bind(unix_micros(record.created))
        .bind(record.started.map(unix_micros))
        .bind(record.transfer_started.map(unix_micros))
        .bind(record.ended.map(unix_micros))
        .bind(unix_micros(record.updated))
        .bind(record.details.message().encode_to_vec())
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

/// Writes what can change, if the generation is the one named. Gives whether it was.
async fn replace(transaction: &mut Transaction<'static, Sqlite>, record: &Record) -> Result<bool> {
    let sql = "UPDATE migration SET
            generation = generation + 1, guest_name = ?, position = ?, phase = ?, finished = ?, state = ?, attempt = ?,
            unknowns = ?, cancel_requested = ?, too_late = ?, guest_host = ?, incarnation = ?, prepared = ?,
            resolution = ?, started = ?, transfer_started = ?, ended = ?, updated = ?, details = ?
        WHERE id = ? AND generation = ?";
    let done = sqlx::query(sql)
        .bind(&record.guest_name)
        .bind(record.position.name())
        .bind(record.phase.name())
        .bind(record.position.is_final())
        .bind(record.state.as_str_name())
        .bind(record.attempt.0)
        .bind(record.unknowns)
        .bind(record.cancel_requested.map(unix_micros))
        .bind(record.too_late)
        .bind(record.guest_host.as_ref().map(HostId::as_str))
        .bind(record.incarnation.as_ref().map(Message::encode_to_vec))
        .bind(record.prepared.as_ref().map(codec::prepared))
        .bind(record.resolution.as_ref().map(codec::resolution))
        .bind(record.started.map(unix_micros))
        .bind(record.transfer_started.map(unix_micros))
        .bind(record.ended.map(unix_micros))
        .bind(unix_micros(record.updated))
        .bind(record.details.message().encode_to_vec())
        .bind(record.id.to_string())
        .bind(codec::signed(record.generation))
        .execute(&mut **transaction)
        .await?;
    Ok(done.rows_affected() == 1)
}

async fn write_step(transaction: &mut Transaction<'static, Sqlite>, id: MigrationId, step: &StepWrite) -> Result<()> {
    let written = match step {
        StepWrite::Nothing => return Ok(()),
        StepWrite::Start(step) => {
            let sql = "INSERT OR IGNORE INTO step (migration, number, phase, attempt, span_id, started, detail)
                VALUES (?, ?, ?, ?, ?, ?, ?)";
            sqlx::query(sql)
                .bind(id.to_string())
                .bind(step.number)
                .bind(step.phase.name())
                .bind(step.attempt)
                .bind(step.span.to_string())
                .bind(unix_micros(step.started))
                .bind(&step.detail)
                .execute(&mut **transaction)
                .await?
        }
        StepWrite::End(end) => {
            let sql = "UPDATE step SET ended = ?, outcome = ?, detail = ?
                WHERE migration = ? AND number = ? AND ended IS NULL";
            sqlx::query(sql)
                .bind(unix_micros(end.ended))
                .bind(end.outcome.name())
                .bind(&end.detail)
                .bind(id.to_string())
                .bind(end.number)
                .execute(&mut **transaction)
                .await?
        }
    };
    if written.rows_affected() == 1 {
        Ok(())
    } else {
        Err(StoreError::Conflict)
    }
}

async fn write_events(
    transaction: &mut Transaction<'static, Sqlite>,
    id: MigrationId,
    generation: u64,
    events: &[Event],
) -> Result<()> {
    for (index, event) in events.iter().enumerate() {
        sqlx::query("INSERT INTO event (migration, sequence, time, content) VALUES (?, ?, ?, ?)")
            .bind(id.to_string())
            .bind(codec::signed(sequence(generation, index)))
            .bind(unix_micros(event.time))
            .bind(codec::event(event))
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}

#[async_trait]
impl Store for SqliteStore {
    async fn term(&self) -> Result<Option<Term>> {
        let row = sqlx::query(office::TERM).fetch_optional(&self.pool).await?;
        row.as_ref().map(codec::term_from).transpose()
    }

    async fn raise_term(&self, at_least: u64, instance: Uuid) -> Result<Term> {
        self.raise(at_least, instance).await
    }

    async fn create(&self, mut record: Record) -> Result<Created> {
        let mut transaction = self.writer_in_office().await?;
        if let Some(request) = &record.request {
            let made = sqlx::query(BY_REQUEST)
                .bind(request.id.to_string())
                .fetch_optional(&mut *transaction)
                .await?;
            if let Some(made) = made.as_ref().map(record_from).transpose()? {
                return if made.request.as_ref() == Some(request) {
                    Ok(Created::Same(made))
                } else {
                    Err(StoreError::RequestReused(made.id))
                };
            }
        }
        let busy = sqlx::query(UNFINISHED_OF)
            .bind(record.guest.to_string())
            .fetch_optional(&mut *transaction)
            .await?;
        if let Some(row) = busy {
            return Err(StoreError::GuestBusy(codec::parse(&row, "id")?));
        }
        record.generation = 1;
        insert(&mut transaction, &record).await?;
        transaction.commit().await?;
        Ok(Created::New(record))
    }

    async fn by_request(&self, request: Uuid) -> Result<Option<Record>> {
        let query = sqlx::query(BY_REQUEST).bind(request.to_string());
        query
            .fetch_optional(&self.pool)
            .await?
            .as_ref()
            .map(record_from)
            .transpose()
    }

    async fn migration(&self, id: MigrationId) -> Result<Option<Record>> {
        let query = sqlx::query("SELECT * FROM migration WHERE id = ?").bind(id.to_string());
        query
            .fetch_optional(&self.pool)
            .await?
            .as_ref()
            .map(record_from)
            .transpose()
    }

    async fn migrations(&self, filter: &Filter, before: Option<MigrationId>, limit: u32) -> Result<Vec<Record>> {
        let sql = "SELECT * FROM migration
            WHERE (?1 IS NULL OR id < ?1)
                AND (?2 IS NULL OR state = ?2)
                AND (?3 IS NULL OR guest = ?3)
                AND (?4 IS NULL OR source = ?4)
                AND (?5 IS NULL OR destination = ?5)
                AND NOT EXISTS (
                    SELECT 1 FROM json_each(?6) AS wanted WHERE NOT EXISTS (
                        SELECT 1 FROM json_each(migration.labels) AS label
                        WHERE label.key = wanted.key AND label.value = wanted.value))
            ORDER BY id DESC LIMIT ?7";
        let rows = sqlx::query(sql)
            .bind(before.map(|id| id.to_string()))
            .bind(filter.state.map(|state| state.as_str_name()))
            .bind(filter.guest.map(|guest| guest.to_string()))
            .bind(filter.source.as_ref().map(HostId::as_str))
            .bind(filter.destination.as_ref().map(HostId::as_str))
            .bind(codec::labels(&filter.labels))
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        rows.iter().map(record_from).collect()
    }

    async fn unfinished(&self) -> Result<Vec<Record>> {
        let query = sqlx::query("SELECT * FROM migration WHERE finished = 0 ORDER BY id");
        query.fetch_all(&self.pool).await?.iter().map(record_from).collect()
    }

    async fn unfinished_of(&self, guest: GuestId) -> Result<Option<MigrationId>> {
        let row = sqlx::query(UNFINISHED_OF)
            .bind(guest.to_string())
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| codec::parse(&row, "id")).transpose()
    }

    async fn write(&self, write: Write) -> Result<Record> {
        let mut record = write.record;
        let mut transaction = self.writer_in_office().await?;
        if !replace(&mut transaction, &record).await? {
            let known = sqlx::query("SELECT 1 FROM migration WHERE id = ?")
                .bind(record.id.to_string())
                .fetch_optional(&mut *transaction)
                .await?;
            return Err(if known.is_some() {
                StoreError::Conflict
            } else {
                StoreError::NotFound
            });
        }
        record.generation += 1;
        write_step(&mut transaction, record.id, &write.step).await?;
        write_events(&mut transaction, record.id, record.generation, &write.events).await?;
        transaction.commit().await?;
        Ok(record)
    }

    async fn steps(&self, id: MigrationId) -> Result<Vec<Step>> {
        let query = sqlx::query("SELECT * FROM step WHERE migration = ? ORDER BY number").bind(id.to_string());
        query.fetch_all(&self.pool).await?.iter().map(step_from).collect()
    }

    async fn events(&self, id: MigrationId, after: u64, limit: u32) -> Result<Vec<Event>> {
        let sql = "SELECT sequence, time, content FROM event WHERE migration = ? AND sequence > ?
            ORDER BY sequence LIMIT ?";
        let query = sqlx::query(sql)
            .bind(id.to_string())
            .bind(codec::signed(after))
            .bind(limit);
        query
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(codec::event_from)
            .collect()
    }

    async fn host(&self, id: &HostId) -> Result<Option<HostRecord>> {
        let query = sqlx::query("SELECT * FROM host WHERE id = ?").bind(id.as_str());
        query
            .fetch_optional(&self.pool)
            .await?
            .as_ref()
            .map(host_from)
            .transpose()
    }

    async fn hosts(&self, after: Option<&HostId>, limit: u32) -> Result<Vec<HostRecord>> {
        let sql = "SELECT * FROM host WHERE (?1 IS NULL OR id > ?1) ORDER BY id LIMIT ?2";
        let query = sqlx::query(sql).bind(after.map(HostId::as_str)).bind(limit);
        query.fetch_all(&self.pool).await?.iter().map(host_from).collect()
    }

    async fn put_host(&self, mut host: HostRecord) -> Result<HostRecord> {
        let sql = "INSERT INTO host (id, registration, cordoned, generation, registered)
            SELECT ?1, ?2, ?3, ?4 + 1, ?5 WHERE ?4 = 0 OR EXISTS (SELECT 1 FROM host WHERE id = ?1)
            ON CONFLICT (id) DO UPDATE
            SET registration = ?2, cordoned = ?3, generation = ?4 + 1, registered = ?5 WHERE generation = ?4";
        let done = sqlx::query(sql)
            .bind(host.id.as_str())
            .bind(host.registration.encode_to_vec())
            .bind(host.cordoned)
            .bind(codec::signed(host.generation))
            .bind(unix_micros(host.registered))
            .execute(&self.pool)
            .await?;
        if done.rows_affected() != 1 {
            return Err(StoreError::Conflict);
        }
        host.generation += 1;
        Ok(host)
    }

    async fn check(&self) -> Result<()> {
        let transaction = self.writer().await?;
        transaction.rollback().await?;
        Ok(())
    }
}
