//! A process of the simulation: what runs in it, on a runtime of its own. Ending the runtime is the death of the
//! process: its tasks are gone in the middle of what they did, its sockets and libvirt connections are closed as the
//! kernel would close them. It can be killed while it starts.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// A write to the disk that has begun may end.
const LAST_WRITE: Duration = Duration::from_secs(10);

/// A process. Only [`kill`](Self::kill) ends it in order.
#[derive(Debug)]
pub struct Process<T> {
    runtime: Mutex<Option<Runtime>>,
    inner: Arc<Mutex<Option<T>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Send + 'static> Process<T> {
    /// Begins to start it; the handle says how that went.
    pub fn spawn(
        main: impl Future<Output = anyhow::Result<T>> + Send + 'static,
    ) -> anyhow::Result<(Self, JoinHandle<anyhow::Result<()>>)> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(4)
            .enable_all()
            .build()?;
        let inner = Arc::new(Mutex::new(None));
        let place = Arc::clone(&inner);
        let started = runtime.spawn(async move {
            let main = main.await.context("it did not start")?;
            *lock(&place) = Some(main);
            Ok(())
        });
        let process = Self {
            runtime: Mutex::new(Some(runtime)),
            inner,
        };
        Ok((process, started))
    }

    /// What runs in it, once it has started.
    pub fn with<R>(&self, look: impl FnOnce(&T) -> R) -> Option<R> {
        lock(&self.inner).as_ref().map(look)
    }

    /// SIGKILL. Nothing of it runs any more when this returns.
    pub async fn kill(&self) {
        let runtime = lock(&self.runtime).take();
        let inner = Arc::clone(&self.inner);
        let ended = tokio::task::spawn_blocking(move || {
            if let Some(runtime) = runtime {
                runtime.shutdown_timeout(LAST_WRITE);
            }
            // Handles to libvirt that it held are closed last: the tasks that used them are gone.
            drop(lock(&inner).take());
        });
        // A panic in a destructor would have been reported.
        let _ = ended.await;
    }
}

impl<T> Drop for Process<T> {
    fn drop(&mut self) {
        // A runtime may not be waited for in another one's task.
        if let Some(runtime) = lock(&self.runtime).take() {
            runtime.shutdown_background();
        }
    }
}
