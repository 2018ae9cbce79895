//! Several simulated hosts under one watch.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use drover_proto::ids::GuestId;

use super::host::SimHost;
use super::watch::{Violation, Watch};

/// A world of hosts. Cheap to clone; it lives on when an agent that uses one of its hosts is gone.
#[derive(Clone, Debug, Default)]
pub struct SimWorld {
    watch: Watch,
    hosts: Arc<Mutex<HashMap<String, SimHost>>>,
}

impl SimWorld {
    pub fn new() -> Self {
        Self::default()
    }

    /// The host of this name; made when it is asked for the first time.
    pub fn host(&self, name: &str) -> SimHost {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts
            .entry(name.to_owned())
            .or_insert_with(|| SimHost::new(name, self.watch.clone()))
            .clone()
    }

    /// Every moment at which two copies of a guest ran, or an old one ran on. Empty is right.
    pub fn violations(&self) -> Vec<Violation> {
        self.watch.violations()
    }

    /// How long no copy of the guest ran, each time that one ran again afterwards.
    pub fn standstills(&self, guest: GuestId) -> Vec<Duration> {
        self.watch.standstills(guest)
    }

    /// Names of the hosts on which the guest runs now.
    pub fn running(&self, guest: GuestId) -> Vec<String> {
        self.watch.running(guest)
    }
}
