//! Everything that is asked before a guest is moved: the source once, then each destination, then one proof of storage
//! for all of them. Nothing is changed but probe files, which are removed at once.

use std::time::{Duration, SystemTime};

use drover_proto::agent::v1::{
    AgentStatus, CheckIncomingRequest, GetAgentStatusRequest, GuestFacts, HostFacts, InspectGuestRequest,
    InspectHostRequest, PeerProbe, ProbePeerRequest,
};
use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::GuestId;
use drover_proto::overrides::Overrides;
use drover_proto::time::system_time;
use drover_proto::v1::{Check, ChosenCompression, ChosenConnections, DiskPlan, Estimate, MigrationPolicy, OfflinePlan};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};

use super::checks::{self, Clock, Direction};
use super::policy::{may_go_post_copy, of_policy};
use super::{Way, overrides, storage};
use crate::agents::Agent;
use crate::zeroes;

/// So many destinations at once.
const AT_ONCE: usize = 16;

/// The longest that one destination is waited for.
const PATIENCE: Duration = Duration::from_secs(25);

/// A guest at its source, with what can be said without any destination.
pub struct Source {
    pub(super) agent: Agent,
    pub guest: GuestFacts,
    /// As it will be at the destination.
    there: GuestFacts,
    overrides: Overrides,
    pub(super) facts: HostFacts,
    status: AgentStatus,
    clock: Option<Clock>,
    /// What the caller wants, and what follows from it for a guest in this state.
    pub(super) policy: MigrationPolicy,
    pub(super) way: Way,
    checks: Vec<Check>,
}

/// What a caller wants that changes what has to be checked.
#[derive(Clone)]
pub struct Wanted<'a> {
    pub overrides: &'a Overrides,
    pub policy: MigrationPolicy,
}

impl<'a> Wanted<'a> {
    pub fn new(overrides: &'a Overrides, policy: Option<&MigrationPolicy>) -> Self {
        let policy = policy.cloned().unwrap_or_default();
        Self { overrides, policy }
    }
}

/// What one destination has answered so far.
#[derive(Default)]
struct Answer {
    checks: Vec<Check>,
    facts: HostFacts,
    disks: Vec<DiskPlan>,
    offline_plan: Option<OfflinePlan>,
}

/// What was found of one guest and one destination.
pub struct Examined {
    pub checks: Vec<Check>,
    /// What would be done with each disk; empty where storage was not looked at.
    pub disks: Vec<DiskPlan>,
    /// Why it would not be accepted.
    pub refusal: Option<Failure>,
    /// What is copied of a guest that is shut off.
    pub offline_plan: Option<OfflinePlan>,
    /// What the move would cost, where somebody asked and it can be said.
    pub estimate: Option<Estimate>,
    /// How many connections would carry its memory, where the guest runs.
    pub connections: Option<ChosenConnections>,
    /// Whether it would be compressed, where the guest runs.
    pub compression: Option<ChosenCompression>,
    /// Of the destination.
    pub(super) facts: HostFacts,
}

impl Source {
    /// Asks the source; none where its libvirt does not know the guest.
    pub async fn look(guest: GuestId, wanted: Wanted<'_>, agent: &Agent) -> Result<Option<Self>, Failure> {
        let Wanted { overrides, policy } = wanted;
        let (found, status, facts) = tokio::join!(
            find(guest, overrides, agent),
            agent.get_agent_status(GetAgentStatusRequest { fence: None }),
            clocked(agent),
        );
        let Some(guest) = found? else { return Ok(None) };
        let (facts, clock) = facts?;
        let mut checks = vec![checks::passed(
            "guest-present",
            format!("{} on {}", guest.name, agent.host),
        )];
        let way = Way::of(&policy, &guest);
        checks.extend(checks::of_guest(&guest, way));
        Ok(Some(Self {
            agent: agent.clone(),
            there: way.needs(overrides::at_destination(&guest, overrides)),
            policy,
            way,
            overrides: overrides.clone(),
            guest,
            facts,
            status: status?,
            clock,
            checks,
        }))
    }

    /// Whether nothing of the guest itself stands in the way.
    pub(super) fn may_move(&self) -> bool {
        checks::acceptable(&self.checks)
    }

    /// Makes every check of every destination. An error in place of an answer is a missing answer, or an agent that
    /// refuses to answer.
    pub async fn examine(&self, destinations: Vec<Agent>) -> Vec<Result<Examined, Failure>> {
        let mut asked: Vec<BoxFuture<'_, Result<Answer, Failure>>> = Vec::new();
        for destination in &destinations {
            asked.push(within(destination, self.ask(destination)).boxed());
        }
        let mut answers: Vec<_> = stream::iter(asked).buffered(AT_ONCE).collect().await;
        self.prove_storage(&destinations, &mut answers).await;
        let examined = answers.into_iter().zip(&destinations);
        examined
            .map(|(answer, destination)| {
                let Answer {
                    checks,
                    facts,
                    disks,
                    offline_plan,
                } = answer?;
                let checks = [self.checks.clone(), checks].concat();
                Ok(Examined {
                    refusal: checks::refusal(&checks, &destination.host),
                    checks,
                    disks,
                    offline_plan,
                    estimate: None,
                    connections: None,
                    compression: None,
                    facts,
                })
            })
            .collect()
    }

    /// What one destination says, and what is between it and the source; nothing of disks.
    async fn ask(&self, destination: &Agent) -> Result<Answer, Failure> {
        let question = CheckIncomingRequest {
            // What the destination must have is what the guest will be there.
            guest: Some(self.there.clone()),
            source: Some(self.facts.clone()),
            policy: Some(of_policy(&self.policy)),
        };
        let (status, (facts, clock), incoming, there, back) = tokio::try_join!(
            destination.get_agent_status(GetAgentStatusRequest { fence: None }),
            clocked(destination),
            destination.check_incoming(question),
            reach(&self.agent, destination),
            reach(destination, &self.agent),
        )?;
        let (source, destination) = (&self.agent.host, &destination.host);
        let directions = [(source, destination, &there), (destination, source, &back)];
        let directions = directions.map(|(from, to, probes)| Direction { from, to, probes });
        let mut checks = vec![
            checks::agents(&self.status, &status, self.way),
            checks::ports(&directions),
            checks::clock(self.clock, clock),
        ];
        checks.extend(overrides::check(&self.guest, &self.overrides, &self.status, &status));
        let post_copy = self.way == Way::Live && may_go_post_copy(&of_policy(&self.policy));
        checks.extend(checks::complete(incoming.checks, post_copy));
        if self.way == Way::Live {
            checks.extend(checks::compression(&self.policy, &self.facts, &facts));
        }
        Ok(Answer {
            checks,
            facts,
            ..Answer::default()
        })
    }

    /// Whether the destination has the disks, or what of them is copied to it.
    async fn look_at_storage(&self, written: &storage::Written, destination: &Agent) -> Result<Answer, Failure> {
        let wanted = self.policy.storage.clone().unwrap_or_default();
        match self.way {
            Way::Live => {
                let looked = storage::look(&self.guest, &self.there.disks, &wanted, written, destination).await?;
                Ok(Answer {
                    checks: looked.checks,
                    disks: looked.plans,
                    ..Answer::default()
                })
            }
            Way::Offline | Way::ShutDown => {
                let found =
                    storage::look_offline(&self.guest, &self.there.disks, &wanted, written, destination).await?;
                Ok(Answer {
                    checks: found.checks,
                    disks: found.plans,
                    offline_plan: Some(found.order),
                    ..Answer::default()
                })
            }
        }
    }

    /// One set of probe files for all destinations.
    async fn prove_storage(&self, destinations: &[Agent], answers: &mut [Result<Answer, Failure>]) {
        // A guest that cannot move anyway needs no probe files.
        if !self.may_move() {
            for answer in answers.iter_mut().flatten() {
                answer
                    .checks
                    .extend(storage::not_checked("other checks of the guest failed before"));
            }
            return;
        }
        if answers.iter().all(Result::is_err) {
            return;
        }
        let written = match storage::write(&self.guest, &self.agent).await {
            Ok(written) => written,
            Err(failure) => return spoil(answers, &failure),
        };
        let mut looks: Vec<BoxFuture<'_, Result<Answer, Failure>>> = Vec::new();
        for (destination, _) in destinations.iter().zip(&*answers).filter(|(_, answer)| answer.is_ok()) {
            looks.push(within(destination, self.look_at_storage(&written, destination)).boxed());
        }
        let found: Vec<_> = stream::iter(looks).buffered(AT_ONCE).collect().await;
        for (answer, found) in answers.iter_mut().filter(|answer| answer.is_ok()).zip(found) {
            match (answer.as_mut(), found) {
                (Ok(answer), Ok(found)) => {
                    answer.checks.extend(found.checks);
                    answer.disks = found.disks;
                    zeroes::tell(&mut answer.disks, &self.facts, &answer.facts);
                    answer.offline_plan = found.offline_plan;
                }
                (_, Err(failure)) => *answer = Err(failure),
                (Err(_), Ok(_)) => {}
            }
        }
        // What is not known to be removed is looked at again; the agent itself removes it after a while in any case.
        if let Err(failure) = storage::remove(&self.agent, written).await {
            tracing::warn!(host = %self.agent.host, "probe files were not removed: {failure}");
            spoil(answers, &failure);
        }
    }
}

fn spoil(answers: &mut [Result<Answer, Failure>], failure: &Failure) {
    for answer in answers.iter_mut().filter(|answer| answer.is_ok()) {
        *answer = Err(failure.clone());
    }
}

/// Nobody waits for one destination for ever.
async fn within<T>(destination: &Agent, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(answer) => answer,
        Err(_) => {
            let message = format!("{} did not answer within {} s", destination.host, PATIENCE.as_secs());
            Err(Failure::new(Reason::HostUnreachable, message).at_host(destination.host.clone()))
        }
    }
}

/// Where the source has no such guest.
pub fn absent(guest: GuestId, source: &Agent) -> Examined {
    let found = format!("{} has no guest {guest}", source.host);
    let checks = vec![checks::failed(
        "guest-present",
        found,
        "`drover guest list` shows where it is",
    )];
    Examined {
        refusal: checks::refusal(&checks, &source.host),
        checks,
        disks: Vec::new(),
        offline_plan: None,
        estimate: None,
        connections: None,
        compression: None,
        facts: HostFacts::default(),
    }
}

/// The guest at its source, and what overrides make of it; none where libvirt does not know it.
pub async fn find(guest: GuestId, overrides: &Overrides, source: &Agent) -> Result<Option<GuestFacts>, Failure> {
    let request = InspectGuestRequest {
        guest_uuid: guest.to_string(),
        destination_overrides: (!overrides.is_empty()).then(|| overrides.message()),
    };
    match source.inspect_guest(request).await {
        Ok(found) => Ok(Some(found)),
        Err(failure) if failure.reason == Reason::GuestNotFound && failure.is_evidence() => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// A host's facts, and its clock as it was meanwhile.
async fn clocked(agent: &Agent) -> Result<(HostFacts, Option<Clock>), Failure> {
    let asked = SystemTime::now();
    let facts = agent.inspect_host(InspectHostRequest {}).await?;
    let answered = SystemTime::now();
    let told = facts.clock.as_ref().and_then(system_time);
    let clock = told.map(|told| Clock::seen(asked, told, answered));
    Ok((facts, clock))
}

/// Whether one agent reaches the other one at the addresses that this one has registered.
async fn reach(from: &Agent, to: &Agent) -> Result<Vec<PeerProbe>, Failure> {
    let request = ProbePeerRequest {
        peer_host: to.host.resource_name(),
        addresses: to.migration_addresses.clone(),
        measure: false,
    };
    Ok(from.probe_peer(request).await?.probes)
}
