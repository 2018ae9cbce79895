//! What a phase learned of a migration, and how that goes into its record. Only additions: what was learned once
//! is not forgotten because a later answer says less.

use drover_proto::agent::v1::{Incarnation, MigrationStatus};
use drover_proto::ids::HostId;
use drover_proto::v1::{
    ActionRecord, CallRecord, Check, ChosenCompression, ChosenConnections, DiskPlan, Estimate, IterationRecord,
    OfflinePlan, Progress, TransferSummary,
};

use crate::store::{Prepared, Record};

/// At most so many pre-copy rounds are kept, the newest.
const MAX_ITERATIONS: usize = 256;

/// At most so many calls are kept, the newest.
const MAX_CALLS: usize = 256;

/// At most so many actions are kept, the newest.
const MAX_ACTIONS: usize = 256;

/// Unset fields change nothing.
#[derive(Clone, Debug, Default)]
pub struct Learned {
    pub guest_name: Option<String>,
    pub checks: Option<Vec<Check>>,
    /// What is done with each disk.
    pub disks: Option<Vec<DiskPlan>>,
    /// How a guest that is shut off moves; counts where `disks` are given.
    pub offline_plan: Option<OfflinePlan>,
    /// What is expected of the transfer.
    pub estimate: Option<Estimate>,
    /// How many connections carry memory.
    pub connections: Option<ChosenConnections>,
    /// Whether memory is compressed.
    pub compression: Option<ChosenCompression>,
    pub incarnation: Option<Incarnation>,
    pub prepared: Option<Prepared>,
    pub guest_host: Option<Whereabouts>,
    pub progress: Option<Progress>,
    pub summary: Option<TransferSummary>,
    /// As the agents have them, each host's in its order.
    pub calls: Vec<CallRecord>,
    pub iterations: Vec<IterationRecord>,
    /// What the source's agent did by itself.
    pub actions: Vec<ActionRecord>,
}

/// Where the guest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    At(HostId),
    NobodyKnows,
}

impl Learned {
    /// What an agent's status tells.
    pub fn add(&mut self, status: &MigrationStatus, host: &HostId) {
        let named = |call: &CallRecord| {
            let host = if call.host.is_empty() {
                host.resource_name()
            } else {
                call.host.clone()
            };
            CallRecord { host, ..call.clone() }
        };
        self.calls.extend(status.calls.iter().map(named));
        if !status.iterations.is_empty() {
            self.iterations.clone_from(&status.iterations);
        }
        self.actions.extend_from_slice(&status.actions);
        self.progress = status.progress.clone().or(self.progress.take());
        self.summary = status.summary.or(self.summary);
    }

    #[must_use]
    pub fn with_guest_at(mut self, host: &HostId) -> Self {
        self.guest_host = Some(Whereabouts::At(host.clone()));
        self
    }

    #[must_use]
    pub fn with_guest_nowhere_known(mut self) -> Self {
        self.guest_host = Some(Whereabouts::NobodyKnows);
        self
    }

    /// Writes it into the record.
    pub fn apply(&self, record: &mut Record) {
        if let Some(name) = &self.guest_name {
            record.guest_name.clone_from(name);
        }
        if let Some(whereabouts) = &self.guest_host {
            record.guest_host = match whereabouts {
                Whereabouts::At(host) => Some(host.clone()),
                Whereabouts::NobodyKnows => None,
            };
        }
        record.incarnation = self.incarnation.clone().or(record.incarnation.take());
        record.prepared = self.prepared.clone().or(record.prepared.take());
        let details = &mut record.details;
        if let Some(checks) = &self.checks {
            details.checks.clone_from(checks);
        }
        // One look tells both: a guest that was started meanwhile has no plan any more.
        if let Some(disks) = &self.disks {
            details.disks.clone_from(disks);
            details.offline_plan.clone_from(&self.offline_plan);
        }
        details.estimate = self.estimate.clone().or(details.estimate.take());
        details.connections = self.connections.clone().or(details.connections.take());
        details.compression = self.compression.clone().or(details.compression.take());
        details.progress = self.progress.clone().or(details.progress.take());
        details.summary = merge_summaries(details.summary, self.summary);
        merge_calls(&mut details.calls, &self.calls);
        merge_actions(&mut details.actions, &self.actions);
        if self.iterations.len() >= details.iterations.len() {
            details.iterations = newest(&self.iterations, MAX_ITERATIONS);
        }
    }
}

/// The later word counts, but an answer without a time does not take back one that had it.
fn merge_summaries(old: Option<TransferSummary>, new: Option<TransferSummary>) -> Option<TransferSummary> {
    let (Some(old), Some(new)) = (old, new) else {
        return new.or(old);
    };
    Some(TransferSummary {
        switch_time: new.switch_time.or(old.switch_time),
        blackout: new.blackout.or(old.blackout),
        libvirt_downtime: new.libvirt_downtime.or(old.libvirt_downtime),
        memory_sent_bytes: new.memory_sent_bytes.max(old.memory_sent_bytes),
        disk_sent_bytes: new.disk_sent_bytes.max(old.disk_sent_bytes),
        tunnel_bytes: new.tunnel_bytes.max(old.tunnel_bytes),
        iterations: new.iterations.max(old.iterations),
        dirty_bytes_per_second: new.dirty_bytes_per_second,
        duration: new.duration.or(old.duration),
    })
}

/// One list by time; the same call of the same host is there once, with its newest end.
fn merge_calls(known: &mut Vec<CallRecord>, news: &[CallRecord]) {
    for call in news {
        let same = |other: &&mut CallRecord| {
            (&other.host, &other.call, other.start_time) == (&call.host, &call.call, call.start_time)
        };
        match known.iter_mut().find(same) {
            Some(old) => *old = call.clone(),
            None => known.push(call.clone()),
        }
    }
    known.sort_by_key(|call| call.start_time.map(|time| (time.seconds, time.nanos)));
    *known = newest(known, MAX_CALLS);
}

/// One list by time, each action once.
pub(crate) fn merge_actions(known: &mut Vec<ActionRecord>, news: &[ActionRecord]) {
    let before = known.len();
    for action in news {
        if !known.contains(action) {
            known.push(action.clone());
        }
    }
    if known.len() > before {
        known.sort_by_key(|action| action.time.map(|time| (time.seconds, time.nanos)));
        *known = newest(known, MAX_ACTIONS);
    }
}

fn newest<T: Clone>(all: &[T], limit: usize) -> Vec<T> {
    all[all.len().saturating_sub(limit)..].to_vec()
}
