//! What estimates are made from: the last look at each guest, kept for a while, and what is known of the links.
//!
//! In memory only: after a restart somebody looks again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use drover_proto::agent::v1::{GuestSample, Incarnation};
use drover_proto::ids::{GuestId, HostId};
use drover_proto::v1::{LinkKnowledge, MigrationState};

use crate::links::{Link, learnt};
use crate::store::{Filter, Store};

/// What a guest did longer ago says nothing of what it does.
const FRESH: Duration = Duration::from_secs(600);

/// More guests than anybody checks in that time; the oldest looks go first.
const MOST_LOOKS: usize = 10_000;

/// So many migrations of a pair of hosts are looked through.
const LOOKED_THROUGH: u32 = 20;

/// Looks and links.
pub struct Estimates {
    store: Arc<dyn Store>,
    /// Bytes/s as configured; 0 where it is not.
    link_speed: u64,
    looks: Mutex<HashMap<GuestId, Look>>,
    /// By source and destination: bytes/s, and when that was measured.
    measured: Mutex<HashMap<(HostId, HostId), (u64, Instant)>>,
}

/// A look at a guest.
struct Look {
    sample: GuestSample,
    at: Instant,
    source: HostId,
    life: Option<Incarnation>,
}

impl Estimates {
    /// `link_speed` is in bytes/s, 0 for not known.
    pub fn new(store: Arc<dyn Store>, link_speed: u64) -> Self {
        Self {
            store,
            link_speed,
            looks: Mutex::default(),
            measured: Mutex::default(),
        }
    }

    fn measurements(&self) -> MutexGuard<'_, HashMap<(HostId, HostId), (u64, Instant)>> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what was measured between two hosts, bytes/s.
    pub fn keep_measured(&self, source: &HostId, destination: &HostId, speed: u64) {
        let mut all = self.measurements();
        all.retain(|_, (_, at)| at.elapsed() < FRESH);
        all.insert((source.clone(), destination.clone()), (speed, Instant::now()));
    }

    /// What was measured lately.
    pub fn measured(&self, source: &HostId, destination: &HostId) -> Option<Link> {
        let all = self.measurements();
        let (speed, at) = all.get(&(source.clone(), destination.clone()))?;
        (at.elapsed() < FRESH).then_some(Link {
            speed: *speed,
            known: LinkKnowledge::Measured,
        })
    }

    fn looks(&self) -> MutexGuard<'_, HashMap<GuestId, Look>> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what was seen of a guest in this life on this host.
    pub fn keep(&self, guest: GuestId, source: &HostId, life: Option<&Incarnation>, sample: &GuestSample) {
        let mut looks = self.looks();
        looks.retain(|_, look| look.at.elapsed() < FRESH);
        if looks.len() >= MOST_LOOKS {
            let oldest = looks.iter().min_by_key(|(_, look)| look.at).map(|(guest, _)| *guest);
            oldest.and_then(|guest| looks.remove(&guest));
        }
        let look = Look {
            sample: sample.clone(),
            at: Instant::now(),
            source: source.clone(),
            life: life.cloned(),
        };
        looks.insert(guest, look);
    }

    /// What was seen of the guest lately, in this very life.
    pub fn recent(&self, guest: GuestId, source: &HostId, life: Option<&Incarnation>) -> Option<GuestSample> {
        let looks = self.looks();
        let look = looks.get(&guest)?;
        let same = look.source == *source && look.life.as_ref() == life && look.at.elapsed() < FRESH;
        same.then(|| look.sample.clone())
    }

    /// What migrations between these hosts have shown; the way back counts where nobody went there.
    pub async fn learnt(&self, source: &HostId, destination: &HostId) -> Option<Link> {
        for (from, to) in [(source, destination), (destination, source)] {
            let filter = Filter {
                state: Some(MigrationState::Succeeded),
                source: Some(from.clone()),
                destination: Some(to.clone()),
                ..Filter::default()
            };
            match self.store.migrations(&filter, None, LOOKED_THROUGH).await {
                Ok(records) => {
                    if let Some(link) = learnt(&records) {
                        return Some(link);
                    }
                }
                Err(error) => tracing::warn!(%error, "earlier migrations cannot be looked through"),
            }
        }
        None
    }

    /// What the configuration says of every link.
    pub fn configured(&self) -> Option<Link> {
        (self.link_speed > 0).then_some(Link {
            speed: self.link_speed,
            known: LinkKnowledge::Configured,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    #[test]
    fn a_look_counts_for_the_life_and_the_host_it_was_made_in() {
        let estimates = Estimates::new(Arc::new(MemoryStore::default()), 0);
        let guest: GuestId = "0190a1b2-0000-7000-8000-00000000000a".parse().unwrap();
        let (here, there): (HostId, HostId) = ("a".parse().unwrap(), "b".parse().unwrap());
        let life = |qemu_pid| Incarnation {
            qemu_pid,
            ..Incarnation::default()
        };
        assert_eq!(estimates.recent(guest, &here, None), None);
        let sample = GuestSample {
            resident_bytes: Some(7),
            ..GuestSample::default()
        };
        estimates.keep(guest, &here, Some(&life(1)), &sample);
        assert_eq!(estimates.recent(guest, &here, Some(&life(1))), Some(sample));
        assert_eq!(estimates.recent(guest, &there, Some(&life(1))), None);
        assert_eq!(estimates.recent(guest, &here, Some(&life(2))), None, "it was restarted");
    }

    #[tokio::test]
    async fn without_a_migration_nothing_is_learnt() {
        let estimates = Estimates::new(Arc::new(MemoryStore::default()), 5);
        let (here, there): (HostId, HostId) = ("a".parse().unwrap(), "b".parse().unwrap());
        assert_eq!(estimates.learnt(&here, &there).await, None);
        assert_eq!(estimates.configured().unwrap().speed, 5);
    }
}
