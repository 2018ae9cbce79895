//! A migration that arrives at this host, in memory: the waiting copy and its way in.
//!
//! Dropping it lets libvirt destroy a copy that was not told to finish.

use std::sync::{Arc, Mutex};

use drover_proto::ids::{HostId, MigrationId};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::calls::CallLog;
use super::lock;
use crate::hypervisor::Incoming;
use crate::journal::Call;
use crate::tunnel;

/// One arriving migration.
pub struct IncomingJob {
    pub migration: MigrationId,
    pub calls: CallLog,
    /// The waiting copy; taken by the one who tells it how it goes on.
    handle: Mutex<Option<Box<dyn Incoming>>>,
    pub tunnel: tunnel::Waiting,
    /// Held by whoever writes a file of a guest that comes shut off.
    pub writing: Arc<tokio::sync::Mutex<()>>,
    /// It was told, or is gone.
    pub over: CancellationToken,
}

impl IncomingJob {
    pub fn new(migration: MigrationId, calls: CallLog, handle: Box<dyn Incoming>, tunnel: tunnel::Waiting) -> Self {
        Self {
            migration,
            calls,
            handle: Mutex::new(Some(handle)),
            tunnel,
            writing: Arc::default(),
            over: CancellationToken::new(),
        }
    }

    /// Of a guest that comes shut off: there is no copy, only files.
    pub fn of_files(
        migration: MigrationId,
        calls: CallLog,
        tunnel: tunnel::Waiting,
        writing: Arc<tokio::sync::Mutex<()>>,
        over: CancellationToken,
    ) -> Self {
        Self {
            migration,
            calls,
            handle: Mutex::default(),
            tunnel,
            writing,
            over,
        }
    }

    /// The copy, once: Finish is called at most once per Prepare.
    pub fn take(&self) -> Option<Box<dyn Incoming>> {
        lock(&self.handle).take()
    }

    /// It was not told after all: the journal could not be written.
    pub fn put_back(&self, handle: Box<dyn Incoming>) {
        *lock(&self.handle) = Some(handle);
    }

    pub fn is_waiting(&self) -> bool {
        lock(&self.handle).is_some()
    }

    /// Whether memory has come, or begun to come.
    pub fn was_reached(&self) -> bool {
        *self.tunnel.main_attached().borrow()
    }

    /// Whether the main channel is there: what is missing may still come.
    pub fn stream_flows(&self) -> bool {
        self.tunnel.main_flows()
    }

    /// Whether the main channel was received to its announced end.
    pub fn stream_complete(&self) -> bool {
        *self.tunnel.main_complete().borrow()
    }
}

/// A log without watchers: the destination's calls travel in the answer.
pub fn call_log(host: &HostId, earlier: Vec<Call>) -> CallLog {
    CallLog::new(host.clone(), earlier, broadcast::Sender::new(1))
}
