//! Where libvirt's blocking calls run: never on an async thread, and always to their end.
//!
//! Dropping the future of a call loses its answer, not the call.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, oneshot};

use super::raw::{Connection, own_error};
use crate::hypervisor::{ErrorClass, Result};

/// Runs one call on a thread made for it: for calls that may take hours, and those that may not queue.
pub(super) async fn on_own_thread<T: Send + 'static>(
    name: &str,
    call: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (answer, answered) = oneshot::channel();
    let span = tracing::Span::current();
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread
        .spawn(move || {
            // Nobody may be waiting any more.
            drop(answer.send(span.in_scope(call)));
        })
        .map_err(|error| own_error(ErrorClass::Unavailable, "NO_THREAD", format!("{name}: {error}")))?;
    answered.await.unwrap_or_else(|_| {
        Err(own_error(
            ErrorClass::Ambiguous,
            "CALL_LOST",
            format!("{name} panicked"),
        ))
    })
}

/// Runs a short call on tokio's blocking threads.
pub(super) async fn blocking<T: Send + 'static>(call: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(call)).await {
        Ok(result) => result,
        Err(error) => Err(own_error(ErrorClass::Ambiguous, "CALL_LOST", error.to_string())),
    }
}

/// How many calls of one kind may be under way.
const CALLS_AT_A_TIME: usize = 8;
/// How many connections are kept for the next calls.
const KEPT_OPEN: usize = 4;

/// Connections for short calls; each is used by one call at a time, and a lost one is replaced.
///
/// Two calls at once on one connection are never made: libvirt's client before 10.0 may then forget to wake
/// the thread that does the sending, and the second call waits for whatever arrives next (measured on 9.0:
/// five seconds, until a keepalive).
#[derive(Debug)]
pub(super) struct Pool {
    uri: String,
    idle: Mutex<Vec<Arc<Connection>>>,
    gate: Arc<Semaphore>,
}

impl Pool {
    pub(super) fn new(uri: &str) -> Arc<Self> {
        let gate = Arc::new(Semaphore::new(CALLS_AT_A_TIME));
        Arc::new(Self {
            uri: uri.to_owned(),
            idle: Mutex::default(),
            gate,
        })
    }

    /// Runs a short call.
    pub(super) async fn call<T: Send + 'static>(
        self: &Arc<Self>,
        call: impl FnOnce(&Arc<Connection>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let permit = Arc::clone(&self.gate)
            .acquire_owned()
            .await
            .map_err(|_| own_error(ErrorClass::Unavailable, "CLOSING", "the agent is stopping"))?;
        let pool = Arc::clone(self);
        blocking(move || {
            let result = pool.call_blocking(call);
            // The place is taken until the call has ended, also when nobody waits for it.
            drop(permit);
            result
        })
        .await
    }

    /// The same, from a thread that may block.
    pub(super) fn call_blocking<T>(&self, call: impl FnOnce(&Arc<Connection>) -> Result<T>) -> Result<T> {
        let connection = self.take()?;
        let result = call(&connection);
        self.put_back(connection);
        result
    }

    fn take(&self) -> Result<Arc<Connection>> {
        let kept = || self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        while let Some(connection) = kept() {
            if connection.is_alive() {
                return Ok(connection);
            }
        }
        let connection = Connection::open(&self.uri)?;
        watch_for_silence(&connection);
        Ok(connection)
    }

    fn put_back(&self, connection: Arc<Connection>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.is_alive() && idle.len() < KEPT_OPEN {
            idle.push(connection);
        }
    }
}

/// Half a minute of silence ends a connection on which nothing hangs. Never used on one that holds a
/// migration: closing that would destroy a waiting copy because libvirtd was slow.
pub(super) fn watch_for_silence(connection: &Connection) {
    if let Err(error) = connection.keep_alive(5, 6) {
        tracing::debug!(%error, "this libvirt connection has no keepalive");
    }
}
