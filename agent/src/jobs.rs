//! The migrations of this host, leaving and arriving: what the controller may ask for, each in a file of its own.
//!
//! - leaving: [`begin`] → [`transfer`] → [`hand_over`] → [`settle_outgoing`], and [`abort`]; on the way [`adjust`],
//!   `control`, `deadline`, `pause`, `post_copy`; in post-copy `follow`, `repair`
//! - arriving: [`prepare`] → [`arrive`] → [`settle_incoming`], and [`revoke`]; in post-copy `arrive_early`, `pages`,
//!   [`reopen`]
//! - a guest that is shut off: [`offline_begin`] → [`transfer`] → `offline_leave`, and `offline_wait` →
//!   `offline_arrive`, within the same operations
//! - both: [`status`], [`close`], [`restart`], [`resolve`], [`ended`]
//!
//! Promise of every operation: it looks first and may be repeated; what it announces is in the journal before it
//! is done; it acts only on the life of the guest that it was meant for. Operations hold the migration's lock and
//! must run to their end: callers start them by [`Jobs::detached`].

pub mod abort;
pub mod adjust;
pub mod arrive;
mod arrive_early;
pub mod begin;
pub mod calls;
pub mod close;
mod control;
mod copies;
mod deadline;
mod definition;
pub mod device_owners;
pub mod ended;
pub mod errors;
pub mod fence;
mod follow;
pub mod hand_over;
pub mod incoming;
pub mod kept;
mod offline_arrive;
pub mod offline_begin;
mod offline_coming;
pub mod offline_files;
mod offline_leave;
mod offline_shut_down;
mod offline_wait;
pub mod outgoing;
mod pages;
mod pause;
mod post_copy;
pub mod prepare;
pub mod progress;
pub mod reopen;
mod repair;
pub mod resolve;
pub mod restart;
pub mod revoke;
pub mod settle_incoming;
pub mod settle_outgoing;
pub mod sockets;
pub mod status;
mod steering;
mod switched;
mod throttle;
pub mod transfer;
mod watching;
mod ways;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::{GuestId, HostId, MigrationId};
use drover_proto::tls::Tls;
use tokio::sync::watch;
use tracing::Instrument;
use uuid::Uuid;

use crate::gate::Gate;
use crate::hypervisor::{GuestFacts, Hypervisor, Incarnation};
use crate::journal::{Journal, OpenPage, Record, Terms};
use crate::promised::Promised;
use crate::storage_directories::StorageDirectories;
use crate::tunnel::Destination;

pub use self::copies::{copy_takes, fit_to_copy};
use self::incoming::IncomingJob;
use self::outgoing::OutgoingJob;
use self::sockets::Sockets;

/// How long an operation waits for another one on the same migration.
const PATIENCE: Duration = Duration::from_secs(25);

/// All that the operations need. One per agent.
pub struct Jobs {
    pub host: HostId,
    pub hypervisor: Arc<dyn Hypervisor>,
    pub journal: Journal,
    pub terms: Terms,
    pub tls: Tls,
    pub tunnel: Destination,
    pub sockets: Sockets,
    /// Where files of guests may be read, made and removed.
    pub storage: StorageDirectories,
    /// Open but in a simulation.
    pub gate: Gate,
    pub limits: Timing,
    /// Of this host since its start.
    pub boot_id: Uuid,
    /// Of this agent since its start.
    pub instance: Uuid,
    outgoing: Mutex<HashMap<MigrationId, Arc<OutgoingJob>>>,
    incoming: Mutex<HashMap<MigrationId, Arc<IncomingJob>>>,
    /// Arriving migrations whose last page somebody waits for.
    awaiting_pages: Mutex<HashSet<MigrationId>>,
    /// Held from the look for room until what takes it is in the journal.
    room: tokio::sync::Mutex<()>,
    /// Operations that must not be cut off by the end of the process.
    critical: watch::Sender<usize>,
    stopping: watch::Sender<bool>,
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// A ticket that no channel came for.
    pub ticket: Duration,
    /// A Begin that no StartMigrate came for.
    pub begin: Duration,
    /// Longest wait for Perform to end after it was aborted.
    pub abort: Duration,
    /// One try of the call to the destination's agent.
    pub hand_over: Duration,
    /// A probe file that nobody asks to have removed.
    pub probe: Duration,
    /// What is kept of a guest that moved away shut off; none: for ever.
    pub keep_moved: Option<Duration>,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            ticket: Duration::from_secs(60),
            begin: Duration::from_secs(120),
            abort: Duration::from_secs(20),
            hand_over: Duration::from_secs(30),
            probe: Duration::from_secs(120),
            keep_moved: None,
        }
    }
}

/// What [`Jobs`] is made of.
pub struct Parts {
    pub host: HostId,
    pub hypervisor: Arc<dyn Hypervisor>,
    pub journal: Journal,
    pub terms: Terms,
    pub tls: Tls,
    pub tunnel: Destination,
    pub sockets: Sockets,
    pub storage: StorageDirectories,
    /// Open but in a simulation.
    pub gate: Gate,
    pub limits: Timing,
    pub boot_id: Uuid,
}

impl Jobs {
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts {
            host,
            hypervisor,
            journal,
            terms,
            tls,
            tunnel,
            sockets,
            storage,
            gate,
            limits,
            boot_id,
        } = parts;
        Arc::new(Self {
            host,
            hypervisor,
            journal,
            terms,
            tls,
            tunnel,
            sockets,
            storage,
            gate,
            limits,
            boot_id,
            instance: Uuid::now_v7(),
            outgoing: Mutex::default(),
            incoming: Mutex::default(),
            awaiting_pages: Mutex::default(),
            room: tokio::sync::Mutex::default(),
            critical: watch::Sender::new(0),
            stopping: watch::Sender::new(false),
        })
    }

    /// Runs an operation as a task of its own: a caller that goes away, or whose deadline expires, cuts nothing off.
    pub async fn detached<T: Send + 'static>(
        self: &Arc<Self>,
        operation: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> Result<T, Failure> {
        let critical = self.critical();
        let task = async move {
            let result = operation.await;
            drop(critical);
            result
        };
        match tokio::spawn(task.in_current_span()).await {
            Ok(result) => result,
            Err(error) => Err(Failure::internal(format!("an operation broke off: {error}"))),
        }
    }

    /// The process does not end by itself while this is held.
    fn critical(self: &Arc<Self>) -> Critical {
        self.critical.send_modify(|count| *count += 1);
        Critical(Arc::clone(self))
    }

    /// Refuses new migrations from now on, and waits until nothing critical is under way, nor can come to be: what
    /// still sends stays here, what was sent is handed over. May be called again.
    pub async fn stop(&self) {
        self.stopping.send_replace(true);
        self.end_transfers().await;
        // The sender is part of `self`: the wait cannot fail.
        let _ = self.critical.subscribe().wait_for(|count| *count == 0).await;
    }

    pub fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    fn refuse_while_stopping(&self) -> Result<(), Failure> {
        if self.is_stopping() {
            return Err(Failure::new(Reason::NotServing, "the agent is being stopped").at_host(self.host.clone()));
        }
        Ok(())
    }

    /// The migration's lock, or an error that is no evidence of anything.
    async fn lock(&self, migration: MigrationId) -> Result<OpenPage, Failure> {
        match tokio::time::timeout(PATIENCE, self.journal.lock(migration)).await {
            Ok(page) => Ok(page?),
            Err(_) => Err(Failure::new(
                Reason::DeadlineExceeded,
                "another call for this migration is under way",
            )),
        }
    }

    pub fn outgoing_job(&self, migration: MigrationId) -> Option<Arc<OutgoingJob>> {
        lock(&self.outgoing).get(&migration).cloned()
    }

    fn outgoing_jobs(&self) -> Vec<Arc<OutgoingJob>> {
        lock(&self.outgoing).values().cloned().collect()
    }

    pub fn incoming_job(&self, migration: MigrationId) -> Option<Arc<IncomingJob>> {
        lock(&self.incoming).get(&migration).cloned()
    }

    /// Room that all other migrations will still take here.
    fn promised(&self, but: MigrationId) -> Promised {
        Promised::of(&self.journal.records(), Some(but))
    }

    /// The guest, if it is the life that the record speaks of.
    async fn look(&self, record: &Record) -> Result<Seen, Failure> {
        let found = self.hypervisor.guest(record.guest).await.map_err(errors::unsure)?;
        Ok(see(found, record.incarnation()))
    }

    /// Another migration of this guest on this host about which nothing was decided.
    fn undecided_other(&self, guest: GuestId, migration: MigrationId) -> Option<Arc<Record>> {
        let undecided = |record: &Arc<Record>| {
            record.guest == guest
                && record.migration != migration
                && record.closed.is_none()
                && record.verdict().is_none()
                && !matches!(record.part, crate::journal::Part::Nothing)
        };
        self.journal.records().into_iter().find(undecided)
    }

    /// Whether a later migration of the same guest was recorded on this host: its definition is not ours any more.
    fn has_later(&self, record: &Record) -> bool {
        let later = |other: &Arc<Record>| {
            other.guest == record.guest
                && other.migration != record.migration
                && other.serial > record.serial
                && !matches!(other.part, crate::journal::Part::Nothing)
        };
        self.journal.records().iter().any(later)
    }
}

/// What was found where a record's guest should be.
#[derive(Clone, Debug)]
pub enum Seen {
    /// libvirt does not know the guest.
    Unknown,
    /// Defined, not active.
    ShutOff(Box<GuestFacts>),
    /// The life that the record speaks of.
    Ours(Box<GuestFacts>),
    /// Another life of the guest.
    Another(Box<GuestFacts>),
}

fn see(found: Option<GuestFacts>, expected: Option<&Incarnation>) -> Seen {
    match found {
        None => Seen::Unknown,
        Some(guest) if !guest.state.is_active() => Seen::ShutOff(Box::new(guest)),
        Some(guest) if expected.is_some() && guest.incarnation.as_ref() == expected => Seen::Ours(Box::new(guest)),
        Some(guest) => Seen::Another(Box::new(guest)),
    }
}

/// Held by what must not be cut off by SIGTERM.
struct Critical(Arc<Jobs>);

impl Drop for Critical {
    fn drop(&mut self) {
        self.0.critical.send_modify(|count| *count -= 1);
    }
}

/// No holder panics half-way through a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
