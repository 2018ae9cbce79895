//! A thread that watches until it is told to stop, and then hands over what it saw.

use anyhow::{Context, Result, bail};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Tells a worker when to end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(crate) fn wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Tells the starter that from now on nothing is missed.
pub(crate) struct Ready(Sender<()>);

impl Ready {
    pub(crate) fn now(&self) {
        // The starter may have given up waiting; it reported that.
        let _ = self.0.send(());
    }
}

#[derive(Debug)]
pub(crate) struct Worker<T> {
    what: String,
    stop: Stop,
    thread: Option<JoinHandle<Result<T>>>,
}

impl<T: Send + 'static> Worker<T> {
    /// Returns when the worker is ready; its failure before that is the error.
    pub(crate) fn start(
        what: &str,
        work: impl FnOnce(&Stop, &Ready) -> Result<T> + Send + 'static,
    ) -> Result<Worker<T>> {
        let stop = Stop::default();
        let (sender, receiver) = channel();
        let its_stop = stop.clone();
        let thread = std::thread::spawn(move || work(&its_stop, &Ready(sender)));
        let ready = receiver.recv_timeout(Duration::from_secs(60));
        let mut worker = Worker {
            what: what.to_string(),
            stop,
            thread: Some(thread),
        };
        if ready.is_err() {
            worker.finish()?;
            bail!("watching {what} did not begin");
        }
        Ok(worker)
    }

    /// Stops it and returns what it saw.
    pub(crate) fn finish(&mut self) -> Result<T> {
        self.stop.0.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("finished before")?;
        match thread.join() {
            Ok(result) => result.with_context(|| format!("watching {}", self.what)),
            Err(_) => bail!("watching {} panicked", self.what),
        }
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        self.stop.0.store(true, Ordering::Relaxed);
    }
}
