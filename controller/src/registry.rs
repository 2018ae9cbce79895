//! Which agents are heard of: in memory, since the start of this process. What they say of themselves is in the store.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use drover_proto::ids::{HostId, MigrationId};
use drover_proto::v1::HostState;

/// So many heartbeats may be missing.
const MISSING: u32 = 3;

/// So many earlier instances of an agent are remembered, to find out two agents that claim one host.
const INSTANCES: usize = 16;

/// An agent that was refused tries again within 30 seconds: one that does not has gone.
const RIVALRY: Duration = Duration::from_secs(120);

/// Heartbeats of all hosts.
pub struct Registry {
    interval: Duration,
    started: Instant,
    heard: Mutex<HashMap<HostId, Heard>>,
}

struct Heard {
    at: Instant,
    time: SystemTime,
    /// The present one last.
    instances: Vec<String>,
    /// Journals of migrations that the store does not know.
    orphans: Vec<MigrationId>,
    /// Another agent that claimed this host, and when it did so last.
    rival: Option<(String, Instant)>,
}

/// What a heartbeat meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beat {
    /// As before.
    Usual,
    /// A new agent, or one that was silent.
    Back,
    /// Another agent of this host was heard of since: two claim to be it.
    Conflict,
}

impl Registry {
    pub fn new(interval: Duration) -> Self {
        Self {
            interval,
            started: Instant::now(),
            heard: Mutex::default(),
        }
    }

    /// When agents are to call again.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    fn heard(&self) -> MutexGuard<'_, HashMap<HostId, Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limit(&self) -> Duration {
        self.interval * MISSING
    }

    /// An agent was heard of.
    pub fn beat(&self, host: &HostId, instance: &str) -> Beat {
        let mut all = self.heard();
        let Some(heard) = all.get_mut(host) else {
            let heard = Heard {
                at: Instant::now(),
                time: SystemTime::now(),
                instances: vec![instance.to_owned()],
                orphans: Vec::new(),
                rival: None,
            };
            all.insert(host.clone(), heard);
            return Beat::Back;
        };
        let same = heard.instances.last().is_some_and(|last| last == instance);
        if !same && heard.instances.iter().any(|earlier| earlier == instance) {
            return Beat::Conflict;
        }
        let was_silent = heard.at.elapsed() > self.limit();
        heard.at = Instant::now();
        heard.time = SystemTime::now();
        if same && !was_silent {
            return Beat::Usual;
        }
        if !same {
            heard.instances.push(instance.to_owned());
            let excess = heard.instances.len().saturating_sub(INSTANCES);
            heard.instances.drain(..excess);
        }
        Beat::Back
    }

    /// Notes that somebody else claims to be this host's agent.
    pub fn note_rival(&self, host: &HostId, address: &str) {
        let mut all = self.heard();
        if let Some(heard) = all.get_mut(host) {
            heard.rival = Some((address.to_owned(), Instant::now()));
        }
    }

    /// The address of somebody else who claimed this host a short while ago.
    pub fn rival(&self, host: &HostId) -> Option<String> {
        let all = self.heard();
        let (address, at) = all.get(host)?.rival.as_ref()?;
        (at.elapsed() <= RIVALRY).then(|| address.clone())
    }

    /// Notes the journals that the store does not know, and gives those that are new.
    pub fn note_orphans(&self, host: &HostId, orphans: Vec<MigrationId>) -> Vec<MigrationId> {
        let mut all = self.heard();
        let Some(heard) = all.get_mut(host) else { return orphans };
        let new = orphans
            .iter()
            .filter(|id| !heard.orphans.contains(id))
            .copied()
            .collect();
        heard.orphans = orphans;
        new
    }

    pub fn orphans(&self, host: &HostId) -> Vec<MigrationId> {
        self.heard()
            .get(host)
            .map(|heard| heard.orphans.clone())
            .unwrap_or_default()
    }

    /// A host that was not heard of yet has as long as any other since the start of this process.
    pub fn state(&self, host: &HostId) -> HostState {
        let since = self.heard().get(host).map_or(self.started, |heard| heard.at);
        if since.elapsed() > self.limit() {
            HostState::Silent
        } else {
            HostState::Up
        }
    }

    pub fn last_seen(&self, host: &HostId) -> Option<SystemTime> {
        self.heard().get(host).map(|heard| heard.time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_agents_that_claim_one_host_are_found_out() {
        let registry = Registry::new(Duration::from_secs(10));
        let host: HostId = "host-1".parse().unwrap();
        assert_eq!(registry.beat(&host, "a"), Beat::Back);
        assert_eq!(registry.beat(&host, "a"), Beat::Usual);
        assert_eq!(registry.beat(&host, "b"), Beat::Back, "a restart");
        assert_eq!(registry.beat(&host, "a"), Beat::Conflict, "the one before lives on");
        assert_eq!(registry.beat(&host, "b"), Beat::Usual);
    }

    #[test]
    fn a_silent_host_is_seen_and_comes_back() {
        let registry = Registry::new(Duration::ZERO);
        let host: HostId = "host-1".parse().unwrap();
        registry.beat(&host, "a");
        assert_eq!(registry.state(&host), HostState::Silent);
        assert_eq!(registry.beat(&host, "a"), Beat::Back);
    }

    #[test]
    fn an_unknown_journal_is_new_once() {
        let registry = Registry::new(Duration::from_secs(10));
        let host: HostId = "host-1".parse().unwrap();
        registry.beat(&host, "a");
        let id = MigrationId::generate();
        assert_eq!(registry.note_orphans(&host, vec![id]), [id]);
        assert!(registry.note_orphans(&host, vec![id]).is_empty());
        assert_eq!(registry.orphans(&host), [id]);
    }
}
