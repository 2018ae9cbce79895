//! News of migrations for whoever watches, within this process: that something was written, and the newest progress.
//!
//! Bounded: a watcher holds a number and a progress, never a queue. What must not be missed is in the store.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use drover_proto::ids::MigrationId;
use drover_proto::v1::Progress;
use tokio::sync::watch;

/// What is new of one migration.
#[derive(Clone, Debug, Default)]
pub struct News {
    /// The newest generation that was written.
    pub generation: u64,
    /// The newest progress of a transfer that goes on.
    pub progress: Option<Progress>,
    /// Nothing more will come.
    pub at_rest: bool,
}

/// All migrations that somebody works on or watches.
#[derive(Default)]
pub struct Hub {
    channels: Mutex<HashMap<MigrationId, watch::Sender<News>>>,
}

impl Hub {
    fn channels(&self) -> MutexGuard<'_, HashMap<MigrationId, watch::Sender<News>>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on.
    pub fn subscribe(&self, id: MigrationId) -> watch::Receiver<News> {
        self.channels().entry(id).or_default().subscribe()
    }

    /// Something was written.
    pub fn written(&self, id: MigrationId, generation: u64, at_rest: bool) {
        let mut channels = self.channels();
        channels.entry(id).or_default().send_modify(|news| {
            news.generation = news.generation.max(generation);
            news.at_rest |= at_rest;
        });
        // Whoever watches keeps its receiver; a migration at rest has no more news to give.
        if at_rest {
            channels.remove(&id);
        }
    }

    pub fn progress(&self, id: MigrationId, progress: Progress) {
        self.channels()
            .entry(id)
            .or_default()
            .send_modify(|news| news.progress = Some(progress));
    }

    /// The newest progress of a transfer that goes on.
    pub fn latest_progress(&self, id: MigrationId) -> Option<Progress> {
        self.channels().get(&id).and_then(|sender| sender.borrow().progress)
    }

    /// Forgets a migration that nobody works on when its last watcher has gone.
    pub fn unsubscribe(&self, id: MigrationId, receiver: watch::Receiver<News>) {
        drop(receiver);
        let mut channels = self.channels();
        if channels
            .get(&id)
            .is_some_and(|sender| sender.receiver_count() == 0 && sender.borrow().generation == 0)
        {
            channels.remove(&id);
        }
    }
}
