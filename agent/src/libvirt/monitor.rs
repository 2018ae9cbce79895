//! The monitor: a connection that only listens, on a thread that keeps it open.
//!
//! ```text
//! open, register ──▶ listening ──lost──▶ wait (doubling, 0.2 to 10 s) ──▶ open, register, "look at everything"
//! ```
//! Events of the time in between are lost, so after each reconnection every guest that was ever seen gets a
//! `Changed`.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use drover_proto::ids::GuestId;
use tokio::sync::broadcast;

use super::raw::{Connection, Domain, RawEvent, Sink, Watch, own_error};
use super::states;
use super::threads::watch_for_silence;
use crate::hypervisor::{ErrorClass, GuestEvent, Happened, Result};

/// Events that a slow reader may be behind.
const QUEUE: usize = 1024;
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// libvirt reports a lost connection; should it not, this finds it.
const LOOK: Duration = Duration::from_secs(30);

/// Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct Monitor {
    events: broadcast::Sender<GuestEvent>,
    signals: Sender<Signal>,
    listens: Arc<AtomicBool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    Lost,
    Stop,
}

/// What the callbacks and the thread share.
struct Listening {
    events: broadcast::Sender<GuestEvent>,
    signals: Sender<Signal>,
    seen: Mutex<HashSet<GuestId>>,
}

impl Monitor {
    /// Opens the connection and listens. An error is that of the first attempt. Blocks.
    pub(super) fn start(uri: &str) -> Result<Self> {
        let (events, _) = broadcast::channel(QUEUE);
        let (signals, inbox) = mpsc::channel();
        let seen = Mutex::default();
        let listening = Arc::new(Listening {
            events: events.clone(),
            signals: signals.clone(),
            seen,
        });
        let watch = listening.listen(uri)?;
        let uri = uri.to_owned();
        let listens = Arc::new(AtomicBool::new(true));
        let told = Arc::clone(&listens);
        std::thread::Builder::new()
            .name("libvirt-monitor".to_owned())
            .spawn(move || stay(&uri, &listening, watch, &inbox, &told))
            .map_err(|error| own_error(ErrorClass::Unavailable, "NO_THREAD", error.to_string()))?;
        Ok(Self {
            events,
            signals,
            listens,
        })
    }

    /// Whether the connection is open. A libvirtd that is stopped counts as silent once its keepalive is.
    pub(super) fn listens(&self) -> bool {
        self.listens.load(Ordering::Relaxed)
    }

    pub(super) fn events(&self) -> broadcast::Receiver<GuestEvent> {
        self.events.subscribe()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        // The thread may have ended.
        let _ = self.signals.send(Signal::Stop);
    }
}

/// Listens until it is told to stop.
fn stay(uri: &str, listening: &Arc<Listening>, mut watch: Watch, inbox: &Receiver<Signal>, listens: &AtomicBool) {
    while wait_for_loss(&watch, inbox) == Signal::Lost {
        tracing::warn!("the connection to libvirt is lost, opening it again");
        listens.store(false, Ordering::Relaxed);
        drop(watch);
        match reopen(uri, listening, inbox) {
            Some(again) => watch = again,
            None => return,
        }
        listens.store(true, Ordering::Relaxed);
        tracing::info!("listening to libvirt again");
        listening.say_changed(watch.connection());
    }
}

fn wait_for_loss(watch: &Watch, inbox: &Receiver<Signal>) -> Signal {
    loop {
        match inbox.recv_timeout(LOOK) {
            Ok(Signal::Lost) if watch.connection().is_alive() => {} // From the connection before.
            Ok(signal) => return signal,
            Err(RecvTimeoutError::Timeout) if watch.connection().is_alive() => {}
            Err(RecvTimeoutError::Timeout) => return Signal::Lost,
            Err(RecvTimeoutError::Disconnected) => return Signal::Stop,
        }
    }
}

/// `None` when told to stop.
fn reopen(uri: &str, listening: &Arc<Listening>, inbox: &Receiver<Signal>) -> Option<Watch> {
    let mut wait = FIRST_WAIT;
    loop {
        match inbox.recv_timeout(wait) {
            Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
            Ok(Signal::Lost) | Err(RecvTimeoutError::Timeout) => {}
        }
        match listening.listen(uri) {
            Ok(watch) => return Some(watch),
            Err(error) => tracing::debug!(%error, ?wait, "libvirt does not answer yet"),
        }
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

impl Listening {
    fn listen(self: &Arc<Self>, uri: &str) -> Result<Watch> {
        let connection = Connection::open(uri)?;
        watch_for_silence(&connection);
        let listening = Arc::clone(self);
        let sink: Sink = Arc::new(move |event| listening.take(event));
        let watch = Watch::start(connection, &sink)?;
        let guests = Domain::all(watch.connection())?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.extend(guests.iter().filter_map(|domain| domain.id().ok()));
        drop(seen);
        Ok(watch)
    }

    /// Called on libvirt's event thread: must not wait.
    fn take(&self, raw: RawEvent) {
        let Some(event) = states::guest_event(raw) else {
            let _ = self.signals.send(Signal::Lost);
            return;
        };
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(event.guest);
        // Nobody may be listening.
        drop(self.events.send(event));
    }

    /// One `Changed` for each guest that was seen or is there now; those that are gone are then forgotten.
    fn say_changed(&self, connection: &Arc<Connection>) {
        let here: HashSet<GuestId> = match Domain::all(connection) {
            Ok(all) => all.iter().filter_map(|domain| domain.id().ok()).collect(),
            Err(error) => {
                tracing::warn!(%error, "libvirt does not list its guests");
                HashSet::new()
            }
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<GuestId> = seen.union(&here).copied().collect();
        if !here.is_empty() {
            *seen = here;
        }
        drop(seen);
        for guest in all {
            drop(self.events.send(states::now(guest, Happened::Changed)));
        }
    }
}
