//! What a move would cost, beside whether it is possible: the guest is looked at while the checks are made, the link where
//! nobody knows it, and the forecast is made from both.
//!
//! An estimate stands in nobody's way: what fails here is told in it.

use std::time::Duration;

use drover_proto::agent::v1::{GuestFacts, GuestSample, HostFacts, ProbePeerRequest, SampleGuestRequest};
use drover_proto::failure::Failure;
use drover_proto::ids::GuestId;
use drover_proto::time::{proto_duration, std_duration};
use drover_proto::v1::{ChosenCompression, DeadlineAction, DiskAction, DiskPlan, Estimate, MigrationPolicy};

use super::examine::{Examined, Source};
use super::offline::Way;
use super::policy::{may_go_post_copy, of_policy};
use crate::agents::Agent;
use crate::compression;
use crate::connections::{Question, choose};
use crate::estimates::Estimates;
use crate::forecast::{Forecast, Subject, Terms, Writes, forecast};
use crate::links::{Link, limited};

/// A measurement takes a third of a second, one after the other: they would share the source's link.
const MOST_MEASURED: usize = 8;

/// Where nobody named one.
const MAX_DOWNTIME: Duration = Duration::from_millis(500);

/// How much is done for an estimate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thorough {
    /// The guest is looked at now.
    Looks,
    /// It is looked at where nobody did lately.
    LooksOnce,
    /// What is known already, or nothing: no time is spent.
    Remembers,
}

impl Thorough {
    /// For a migration that begins: who named a deadline, or lets the guest be slowed down, gets a look.
    pub fn of(policy: &MigrationPolicy) -> Self {
        if policy.deadline.is_some() || policy.allow_auto_converge() {
            Self::LooksOnce
        } else {
            Self::Remembers
        }
    }
}

/// What was seen of the guest, or why not.
type Seen = Result<GuestSample, String>;

impl Source {
    /// As [`Source::examine`], with what the move would cost and by how many connections, where it is possible.
    pub async fn estimated(
        &self,
        destinations: Vec<Agent>,
        estimates: &Estimates,
        thorough: Thorough,
    ) -> Vec<Result<Examined, Failure>> {
        let (mut all, seen) = tokio::join!(
            self.examine(destinations.clone()),
            self.look_at_writes(estimates, thorough)
        );
        // A link is measured for an estimate only.
        let mut left = if thorough == Thorough::Remembers || seen.is_none() {
            0
        } else {
            MOST_MEASURED
        };
        for (examined, destination) in all.iter_mut().zip(&destinations) {
            let Ok(examined) = examined else { continue };
            let is_live = self.way == Way::Live;
            if examined.refusal.is_some() || (seen.is_none() && !is_live) {
                continue;
            }
            let link = self.link(estimates, destination, &mut left).await;
            // What was learnt or measured is what one connection reached: the link may carry more.
            let carries = estimates
                .configured()
                .into_iter()
                .chain(link)
                .max_by_key(|link| link.speed);
            examined.connections = is_live.then(|| choose(&self.question(&examined.facts, carries)));
            examined.compression = examined
                .connections
                .as_ref()
                .map(|connections| self.compression(&examined.facts, carries, connections.count));
            examined.estimate = seen
                .as_ref()
                .map(|seen| estimate(&self.guest, &self.policy, &examined.disks, seen, link));
        }
        all
    }

    fn question(&self, there: &HostFacts, link: Option<Link>) -> Question {
        Question {
            asked: u32::try_from(self.policy.parallel_connections).unwrap_or(0),
            link: limited(link, self.policy.bandwidth_limit_bytes_per_second),
            cores: self.facts.cpus.min(there.cpus),
            memory: self.guest.memory_bytes,
            post_copy: may_go_post_copy(&of_policy(&self.policy)),
            qemu: self.facts.qemu_version.min(there.qemu_version),
        }
    }

    fn compression(&self, there: &HostFacts, link: Option<Link>, connections: i32) -> ChosenCompression {
        compression::choose(&compression::Question {
            asked: self.policy.compression(),
            lacks: compression::lacks(&self.facts, there),
            link: limited(link, self.policy.bandwidth_limit_bytes_per_second),
            cores: self.facts.cpus.min(there.cpus),
            connections: u32::try_from(connections).unwrap_or(1),
            post_copy: may_go_post_copy(&of_policy(&self.policy)),
        })
    }

    /// None where there is nothing to be said.
    async fn look_at_writes(&self, estimates: &Estimates, thorough: Thorough) -> Option<Seen> {
        if !self.may_move() || self.way == Way::Offline {
            return None;
        }
        let guest: GuestId = self.guest.guest_uuid.parse().ok()?;
        let (host, life) = (&self.agent.host, self.guest.incarnation.as_ref());
        let recent = estimates.recent(guest, host, life);
        match (thorough, recent) {
            (Thorough::Remembers, recent) => return recent.map(Ok),
            (Thorough::LooksOnce, Some(recent)) => return Some(Ok(recent)),
            (Thorough::LooksOnce, None) | (Thorough::Looks, Some(_) | None) => {}
        }
        let request = SampleGuestRequest {
            guest_uuid: self.guest.guest_uuid.clone(),
        };
        let sample = self.agent.sample_guest(request).await;
        Some(match sample {
            Ok(sample) => {
                estimates.keep(guest, host, life, &sample);
                Ok(sample)
            }
            Err(failure) => Err(failure.message),
        })
    }

    /// From earlier migrations, else by a measurement, else as configured.
    async fn link(&self, estimates: &Estimates, destination: &Agent, left: &mut usize) -> Option<Link> {
        let (here, there) = (&self.agent.host, &destination.host);
        if let Some(link) = estimates.learnt(here, there).await {
            return Some(link);
        }
        if let Some(link) = estimates.measured(here, there) {
            return Some(link);
        }
        if *left > 0 {
            *left -= 1;
            if let Some(speed) = measure(&self.agent, destination).await {
                estimates.keep_measured(here, there, speed);
                return estimates.measured(here, there);
            }
        }
        estimates.configured()
    }
}

/// Bytes/s, where it can be measured.
async fn measure(from: &Agent, to: &Agent) -> Option<u64> {
    let request = ProbePeerRequest {
        peer_host: to.host.resource_name(),
        addresses: to.migration_addresses.clone(),
        measure: true,
    };
    let probes = from.probe_peer(request).await.ok()?.probes;
    let speed = probes.iter().map(|probe| probe.bytes_per_second).max()?;
    (speed > 0).then_some(speed)
}

/// What follows from what was seen.
fn estimate(
    guest: &GuestFacts,
    policy: &MigrationPolicy,
    disks: &[DiskPlan],
    seen: &Seen,
    link: Option<Link>,
) -> Estimate {
    let link = limited(link, policy.bandwidth_limit_bytes_per_second);
    let mut told = Estimate::default();
    if let Some(link) = link {
        told.bandwidth_bytes_per_second = whole(link.speed as f64);
        told.link_knowledge = link.known.into();
    }
    let sample = match seen {
        Ok(sample) => sample,
        Err(why) => {
            told.unknown = format!("what the guest writes could not be seen: {why}");
            return told;
        }
    };
    let memory = sample
        .resident_bytes
        .map_or(guest.memory_bytes, |bytes| bytes.min(guest.memory_bytes));
    let writes = writes(sample, guest.memory_bytes as f64);
    told.sample_time = sample.time;
    told.dirty_bytes_per_second = whole(writes.rate());
    told.writable_set_bytes = whole(writes.set());
    let Some(link) = link else {
        told.unknown =
            "the speed of the link is not known: no migration has used it, it could not be measured, and the \
                        controller's configuration has no link_speed"
                .to_owned();
        return told;
    };
    let subject = Subject {
        memory: memory as f64,
        writes,
        disks: copied(disks),
        bandwidth: (link.speed as f64).max(1.0),
    };
    fill(&mut told, &forecast(&subject, &terms(policy)));
    told
}

fn writes(sample: &GuestSample, memory: f64) -> Writes {
    let look = |window: &drover_proto::agent::v1::WriteWindow| {
        let length = window.duration.as_ref().and_then(std_duration).unwrap_or_default();
        (length.as_secs_f64(), window.changed_bytes as f64)
    };
    Writes::seen(&sample.windows.iter().map(look).collect::<Vec<_>>(), memory)
}

/// Bytes of the disks that are copied while the guest runs.
fn copied(disks: &[DiskPlan]) -> f64 {
    let copied = disks.iter().filter(|disk| disk.action() == DiskAction::CopyLive);
    copied.map(|disk| disk.allocated_bytes.max(0) as f64).sum()
}

fn terms(policy: &MigrationPolicy) -> Terms {
    let time = |time: Option<&prost_types::Duration>| time.and_then(std_duration);
    Terms {
        limit: time(policy.max_downtime.as_ref()).unwrap_or(MAX_DOWNTIME),
        deadline: time(policy.deadline.as_ref()),
        pause_at_deadline: policy.on_deadline() == DeadlineAction::PauseAndFinish,
        post_copy_at_deadline: policy.on_deadline() == DeadlineAction::PostCopy,
        auto_converge: policy.allow_auto_converge(),
        post_copy: policy.allow_post_copy(),
    }
}

fn fill(told: &mut Estimate, forecast: &Forecast) {
    if let Some(cost) = &forecast.cost {
        told.duration = Some(seconds(cost.duration));
        told.blackout = Some(seconds(cost.blackout));
        told.transfer_bytes = whole(cost.bytes);
        told.standstill = (cost.asleep > 0.0).then(|| seconds(cost.asleep));
    }
    told.convergence_probability = forecast.chance;
    told.needed_means = forecast.needed.iter().map(|means| means.name().to_owned()).collect();
    told.needed_max_downtime = forecast.needed_downtime.map(seconds);
}

/// In whole milliseconds: it is no more precise than that.
fn seconds(seconds: f64) -> prost_types::Duration {
    let millis = (seconds * 1e3).round().clamp(0.0, 1e15);
    proto_duration(Duration::from_millis(millis as u64))
}

fn whole(value: f64) -> i64 {
    value.round().clamp(0.0, 9e18) as i64
}

#[cfg(test)]
#[path = "estimate_tests.rs"]
mod tests;
