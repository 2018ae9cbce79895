//! News of migrations for whoever watches, within this process: that something was written, and the newest progress.
//!
//! Bounded: a watcher holds a number and a progress, never a queue. What must not be missed is in the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

    /// From now on, until the subscription is dropped.
    pub fn subscribe(self: &Arc<Self>, id: MigrationId) -> Subscription {
        let receiver = self.channels().entry(id).or_default().subscribe();
        Subscription {
            hub: Arc::clone(self),
            id,
            receiver: Some(receiver),
        }
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
        self.channels()
            .get(&id)
            .and_then(|sender| sender.borrow().progress.clone())
    }

    /// Forgets a migration that nobody works on when its last watcher has gone.
    fn unsubscribed(&self, id: MigrationId) {
        let mut channels = self.channels();
        if channels
            .get(&id)
            .is_some_and(|sender| sender.receiver_count() == 0 && sender.borrow().generation == 0)
        {
            channels.remove(&id);
        }
    }
}

/// Who watches a migration. Costs nothing any more when it is dropped, wherever that happens: also where a request is
/// refused half-way, or its caller goes away.
pub struct Subscription {
    hub: Arc<Hub>,
    id: MigrationId,
    /// None only while it is dropped.
    receiver: Option<watch::Receiver<News>>,
}

impl Subscription {
    /// What is new; counts as seen.
    pub fn newest(&mut self) -> News {
        let newest = self.receiver.as_mut().map(|news| news.borrow_and_update().clone());
        newest.unwrap_or_default()
    }

    /// Waits for news that were not seen; false where nothing more will come.
    pub async fn changed(&mut self) -> bool {
        match &mut self.receiver {
            Some(news) => news.changed().await.is_ok(),
            None => false,
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        drop(self.receiver.take());
        self.hub.unsubscribed(self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_watched_what_nobody_works_on_leaves_nothing_behind() {
        let (hub, id) = (Arc::new(Hub::default()), MigrationId::generate());
        let (first, second) = (hub.subscribe(id), hub.subscribe(id));
        drop(first);
        assert_eq!(hub.channels().len(), 1);
        drop(second);
        assert_eq!(hub.channels().len(), 0);
    }

    #[tokio::test]
    async fn a_migration_at_rest_is_forgotten_and_its_watchers_learn_of_it() {
        let (hub, id) = (Arc::new(Hub::default()), MigrationId::generate());
        hub.written(id, 3, false);
        let mut watcher = hub.subscribe(id);
        assert_eq!(watcher.newest().generation, 3);
        drop(hub.subscribe(id));
        assert_eq!(hub.channels().len(), 1, "somebody works on it");
        hub.written(id, 4, true);
        assert!(watcher.changed().await && watcher.newest().at_rest);
        assert!(!watcher.changed().await, "nothing more will come");
        assert_eq!(hub.channels().len(), 0);
    }
}
