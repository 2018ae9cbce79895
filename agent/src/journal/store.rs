//! The journal on disk: a page per migration, one lock per page, and what the page says for everybody to read.
//!
//! Promise: when a write returns `Ok`, it has reached the disk; what is published has reached the disk before. A
//! holder of a page must run to its end (the callers are tasks of their own, never a request that may be dropped).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use drover_proto::ids::MigrationId;
use tokio::sync::OwnedMutexGuard;
use tracing::Instrument;

use super::encoding::{decode, encode, encode_closed, encode_new};
use super::record::Record;
use super::slots::{Slots, SlotsError, room, sync_directory_of};

/// Room for two definitions and the cookies.
const SLOT_SIZE: usize = 128 * 1024;
/// Of a closed record, which is kept without them.
const CLOSED_SLOT_SIZE: usize = 4096;
/// How long a closed record is kept.
const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);
const EXTENSION: &str = "journal";

/// Why the journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error(transparent)]
    Slots(#[from] SlotsError),
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: {message}", path = path.display())]
    Damaged { path: PathBuf, message: String },
    #[error("cannot be written down: {0}")]
    Encoding(String),
    /// The record must keep room for what comes later.
    #[error("the guest's definition is too large for the journal: {length} bytes, the limit is {limit}")]
    TooLarge { length: usize, limit: usize },
}

/// All pages.
#[derive(Debug)]
pub struct Journal {
    directory: PathBuf,
    pages: Mutex<BTreeMap<MigrationId, Arc<Page>>>,
    /// Of the record that was made last.
    last: Arc<AtomicU64>,
}

/// One migration's page.
#[derive(Debug)]
struct Page {
    path: PathBuf,
    /// The lock of the migration; in it the open file, where there is one.
    file: Arc<tokio::sync::Mutex<Option<Slots>>>,
    published: RwLock<Option<Arc<Record>>>,
    /// The file is there and cannot be read: nothing may be begun or decided.
    damage: Option<String>,
}

/// A page with its lock held.
#[derive(Debug)]
pub struct OpenPage {
    page: Arc<Page>,
    file: OwnedMutexGuard<Option<Slots>>,
    last: Arc<AtomicU64>,
}

impl Journal {
    /// Reads every page; sweeps those that were closed long ago and what a cut-off creation left.
    pub async fn open(state_dir: &Path) -> Result<Self, JournalError> {
        let directory = state_dir.join("journal");
        let read = directory.clone();
        let pages = blocking(move || read_directory(&read)).await?;
        let serials = pages.values().filter_map(|page| Some(page.published()?.serial));
        let last = Arc::new(AtomicU64::new(serials.max().unwrap_or(0)));
        Ok(Self {
            directory,
            pages: Mutex::new(pages),
            last,
        })
    }

    /// What every page says, oldest migration first.
    pub fn records(&self) -> Vec<Arc<Record>> {
        self.pages().values().filter_map(|page| page.published()).collect()
    }

    /// What one page says now; does not wait for its lock.
    pub fn read(&self, migration: MigrationId) -> Option<Arc<Record>> {
        self.pages().get(&migration).and_then(|page| page.published())
    }

    /// Whether somebody holds the page's lock: something is being done about this migration.
    pub fn is_locked(&self, migration: MigrationId) -> bool {
        self.pages()
            .get(&migration)
            .is_some_and(|page| page.file.try_lock().is_err())
    }

    /// Waits for the migration's lock. A page that cannot be read is refused.
    pub async fn lock(&self, migration: MigrationId) -> Result<OpenPage, JournalError> {
        let page = Arc::clone(
            self.pages()
                .entry(migration)
                .or_insert_with(|| Arc::new(Page::new(self.directory.join(format!("{migration}.{EXTENSION}"))))),
        );
        if let Some(message) = &page.damage {
            return Err(JournalError::Damaged {
                path: page.path.clone(),
                message: message.clone(),
            });
        }
        let file = Arc::clone(&page.file).lock_owned().await;
        let last = Arc::clone(&self.last);
        Ok(OpenPage { page, file, last })
    }

    fn pages(&self) -> MutexGuard<'_, BTreeMap<MigrationId, Arc<Page>>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Page {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            file: Arc::default(),
            published: RwLock::default(),
            damage: None,
        }
    }

    fn published(&self) -> Option<Arc<Record>> {
        self.published.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn publish(&self, record: Record) -> Arc<Record> {
        let record = Arc::new(record);
        *self.published.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&record));
        record
    }
}

impl OpenPage {
    pub fn record(&self) -> Option<Arc<Record>> {
        self.page.published()
    }

    /// The first record of a migration, or of a new try: takes all the space that it will ever need, and the next
    /// serial number.
    pub async fn create(&mut self, mut record: Record) -> Result<Arc<Record>, JournalError> {
        // One that is lost with a write that fails is missed by nobody.
        record.serial = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let payload = encode_new(&record, room(SLOT_SIZE))?;
        let path = self.page.path.clone();
        *self.file = None;
        let write = blocking(move || Slots::create(&path, SLOT_SIZE, &payload)).instrument(write_span(&record));
        *self.file = Some(write.await?);
        Ok(self.page.publish(record))
    }

    /// Changes the record. `Ok` is on disk; after `Err` the older one stays in force here.
    pub async fn change(&mut self, change: impl FnOnce(&mut Record)) -> Result<Arc<Record>, JournalError> {
        let Some(current) = self.record() else {
            return Err(JournalError::Encoding("there is no record to change".to_owned()));
        };
        let mut record = Record::clone(&current);
        change(&mut record);
        if record == *current {
            return Ok(current);
        }
        let (path, slots) = (self.page.path.clone(), self.file.take());
        let to_write = record.clone();
        let (slots, result) = blocking(move || {
            let mut slots = match slots.map_or_else(|| open_slots(&path).map(|(slots, _)| slots), Ok) {
                Ok(slots) => slots,
                Err(error) => return (None, Err(JournalError::from(error))),
            };
            let written = encode(&to_write, slots.room()).and_then(|payload| Ok(slots.write(&payload)?));
            (Some(slots), written)
        })
        .instrument(write_span(&record))
        .await;
        *self.file = slots;
        result?;
        Ok(self.page.publish(record))
    }

    /// Closes the record: it is kept small, without definitions and calls.
    pub async fn close(&mut self, now: SystemTime) -> Result<(), JournalError> {
        self.change(|record| record.closed = Some(now)).await?;
        let Some(current) = self.record() else { return Ok(()) };
        let mut small = Record::clone(&current);
        let payload = encode_closed(&mut small, room(CLOSED_SLOT_SIZE))?;
        let path = self.page.path.clone();
        *self.file = None;
        // It is closed already; only the space is not given back where this fails.
        if let Err(error) = blocking(move || Slots::create(&path, CLOSED_SLOT_SIZE, &payload)).await {
            tracing::warn!(%error, migration_id = %small.migration, "a closed journal page stays large");
        }
        self.page.publish(small);
        Ok(())
    }
}

/// Each write waits for the disk: some of them are part of the blackout.
fn write_span(record: &Record) -> tracing::Span {
    tracing::info_span!(
        "journal.write",
        drover.migration.id = %record.migration,
        drover.journal.state = record.state_name()
    )
}

fn open_slots(path: &Path) -> Result<(Slots, Vec<u8>), SlotsError> {
    Slots::open(path, &[CLOSED_SLOT_SIZE, SLOT_SIZE])
}

fn read_directory(directory: &Path) -> Result<BTreeMap<MigrationId, Arc<Page>>, JournalError> {
    let io_error = |source| JournalError::Io {
        path: directory.to_owned(),
        source,
    };
    std::fs::create_dir_all(directory).map_err(io_error)?;
    sync_directory_of(directory).map_err(io_error)?;
    let mut pages = BTreeMap::new();
    for entry in std::fs::read_dir(directory).map_err(io_error)? {
        let path = entry.map_err(io_error)?.path();
        let Some(migration) = migration_of(&path) else {
            // Nothing was announced before the file had its final name.
            if path.extension().is_some_and(|extension| extension == "partial") {
                std::fs::remove_file(&path).map_err(io_error)?;
            }
            continue;
        };
        if let Some(page) = read_page(&path)? {
            pages.insert(migration, Arc::new(page));
        }
    }
    Ok(pages)
}

fn migration_of(path: &Path) -> Option<MigrationId> {
    let stem = path.file_stem()?.to_str()?;
    (path.extension()? == EXTENSION).then(|| stem.parse().ok()).flatten()
}

/// `None` where the page was swept.
fn read_page(path: &Path) -> Result<Option<Page>, JournalError> {
    let mut page = Page::new(path.to_owned());
    let read = open_slots(path)
        .map_err(JournalError::from)
        .and_then(|(slots, payload)| Ok((slots, decode(&payload)?)));
    match read {
        Ok((_, record)) if is_old(&record) => {
            std::fs::remove_file(path).map_err(|source| JournalError::Io {
                path: path.to_owned(),
                source,
            })?;
            return Ok(None);
        }
        Ok((slots, record)) => {
            let open = record.closed.is_none().then_some(slots);
            page.file = Arc::new(tokio::sync::Mutex::new(open));
            page.publish(record);
        }
        Err(error) => {
            tracing::error!(%error, path = %path.display(), "a journal page cannot be read; its migration stays open");
            page.damage = Some(error.to_string());
        }
    }
    Ok(Some(page))
}

fn is_old(record: &Record) -> bool {
    // A clock that went backwards sweeps nothing.
    record
        .closed
        .is_some_and(|closed| closed.elapsed().is_ok_and(|age| age > KEPT))
}

/// Runs file work off the async threads.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only at the end of the runtime: nobody waits for the value any more.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
