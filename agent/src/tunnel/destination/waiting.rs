//! The holder's side of a registration: what came of a migration so far, and the way to end it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{Destination, Migration, lock};
use crate::tunnel::Bytes;
use crate::tunnel::error::TunnelError;

/// A registration that is held. Dropping it lets nobody in any more and cuts the channels.
#[derive(Debug)]
pub struct Waiting {
    pub(super) destination: Destination,
    pub(super) migration: Arc<Migration>,
}

impl Waiting {
    /// Becomes true when the main channel is connected to QEMU.
    pub fn main_attached(&self) -> watch::Receiver<bool> {
        self.migration.main_attached.subscribe()
    }

    /// Becomes true when the source announced the end of the main channel and QEMU was given every byte of it.
    /// A cut, an agent's or a host's death never make it true; the death of the source's QEMU does, because it ends
    /// a socket like a finished one. So it is evidence of a whole stream only where the source's journal says
    /// HandedOver.
    pub fn main_complete(&self) -> watch::Receiver<bool> {
        self.migration.main_complete.subscribe()
    }

    /// Whether the main channel is there: what is missing may still come. Ask it before [`main_complete`], so that a
    /// channel that ends in between is not taken for one that broke.
    ///
    /// [`main_complete`]: Self::main_complete
    pub fn main_flows(&self) -> bool {
        self.migration.main_flows.load(Ordering::Acquire)
    }

    /// What went wrong last.
    pub fn errors(&self) -> watch::Receiver<Option<TunnelError>> {
        self.migration.error.subscribe()
    }

    pub fn bytes(&self) -> Bytes {
        self.migration.counters.read()
    }

    /// Waits until the ticket has expired unused; never returns once the main channel is attached.
    pub async fn expired(&self) {
        let deadline = lock(&self.migration.entry).expires;
        tokio::time::sleep_until(deadline).await;
        while !lock(&self.migration.entry).has_expired(Instant::now()) {
            // A disk may hold it open and go: looked at again now and then, for nobody waits for this moment.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Lets nobody in any more and cuts the channels.
    pub fn cut(&self) {
        self.migration.revoke();
    }

    /// The same, and waits until they are gone.
    pub async fn revoke(self) {
        self.cut();
        self.migration.channels.wait().await;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.migration.revoke();
        self.destination.forget(&self.migration);
    }
}
