//! Sees every start and stop of every copy, and remembers what should never happen.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use drover_proto::ids::GuestId;

/// One life of a copy on one host.
type Life = (String, u64);

/// A moment at which something was wrong.
#[derive(Clone, Debug)]
pub struct Violation {
    pub guest: GuestId,
    pub at: Instant,
    pub what: Wrong,
}

/// What was wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Copies on these hosts ran at the same time.
    RanTwice { hosts: Vec<String> },
    /// A copy ran on with its old memory after another one had run: the disks are newer than the memory.
    RanStale { host: String },
}

/// Shared by all hosts of a world.
#[derive(Clone, Debug, Default)]
pub(crate) struct Watch(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    running: HashMap<GuestId, BTreeSet<Life>>,
    last: HashMap<GuestId, Life>,
    overtaken: HashSet<(GuestId, Life)>,
    violations: Vec<Violation>,
    /// Since when no copy runs.
    still: HashMap<GuestId, Instant>,
    standstills: HashMap<GuestId, Vec<Duration>>,
}

impl Watch {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn violations(&self) -> Vec<Violation> {
        self.seen().violations.clone()
    }

    /// How long no copy ran, each time that one ran again afterwards.
    pub(crate) fn standstills(&self, guest: GuestId) -> Vec<Duration> {
        self.seen().standstills.get(&guest).cloned().unwrap_or_default()
    }

    pub(crate) fn running(&self, guest: GuestId) -> Vec<String> {
        let seen = self.seen();
        seen.running
            .get(&guest)
            .into_iter()
            .flatten()
            .map(|(host, _)| host.clone())
            .collect()
    }

    pub(crate) fn started(&self, guest: GuestId, host: &str, life: u64) {
        let mut seen = self.seen();
        let life = (host.to_owned(), life);
        if seen.overtaken.contains(&(guest, life.clone())) {
            seen.wrong(guest, Wrong::RanStale { host: host.to_owned() });
        }
        if let Some(former) = seen.last.insert(guest, life.clone())
            && former != life
        {
            seen.overtaken.insert((guest, former));
        }
        if let Some(since) = seen.still.remove(&guest) {
            seen.standstills.entry(guest).or_default().push(since.elapsed());
        }
        let running = seen.running.entry(guest).or_default();
        running.insert(life);
        let hosts: Vec<_> = running.iter().map(|(host, _)| host.clone()).collect();
        if hosts.len() > 1 {
            seen.wrong(guest, Wrong::RanTwice { hosts });
        }
    }

    pub(crate) fn stopped(&self, guest: GuestId, host: &str, life: u64) {
        let mut seen = self.seen();
        let Some(running) = seen.running.get_mut(&guest) else {
            return;
        };
        running.remove(&(host.to_owned(), life));
        if running.is_empty() {
            seen.still.insert(guest, Instant::now());
        }
    }
}

impl Seen {
    fn wrong(&mut self, guest: GuestId, what: Wrong) {
        self.violations.push(Violation {
            guest,
            at: Instant::now(),
            what,
        });
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn wrongs(watch: &Watch) -> Vec<Wrong> {
        watch.violations().into_iter().map(|violation| violation.what).collect()
    }

    #[test]
    fn one_copy_after_another_is_right() {
        let (watch, guest) = (Watch::default(), GuestId::from_uuid(Uuid::from_u128(1)));
        for (host, life) in [("a", 1), ("b", 1), ("a", 2)] {
            watch.started(guest, host, life);
            assert_eq!(watch.running(guest), [host]);
            watch.stopped(guest, host, life);
        }
        assert_eq!(wrongs(&watch), []);
        assert_eq!(watch.standstills(guest).len(), 2, "between three lives");
    }

    #[test]
    fn two_copies_at_once_are_seen() {
        let (watch, guest) = (Watch::default(), GuestId::from_uuid(Uuid::from_u128(1)));
        watch.started(guest, "a", 1);
        watch.started(guest, "b", 1);
        assert_eq!(
            wrongs(&watch),
            [Wrong::RanTwice {
                hosts: vec!["a".to_owned(), "b".to_owned()]
            }]
        );
    }

    #[test]
    fn old_memory_over_newer_disks_is_seen() {
        let (watch, guest) = (Watch::default(), GuestId::from_uuid(Uuid::from_u128(1)));
        for (host, life) in [("a", 1), ("b", 1), ("a", 1)] {
            watch.started(guest, host, life);
            watch.stopped(guest, host, life);
        }
        assert_eq!(wrongs(&watch), [Wrong::RanStale { host: "a".to_owned() }]);
    }
}
