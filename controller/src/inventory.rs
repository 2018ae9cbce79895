//! What the agents say of their guests right now: all are asked at once, and who does not answer is named.

use std::time::Duration;

use drover_proto::agent::v1::{GuestFacts, InspectGuestRequest, ListGuestsRequest};
use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::{GuestId, HostId};
use futures::future::join_all;

use crate::agents::{Agent, Agents};

/// So long an agent may take before its host counts as one that does not answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a guest was found.
pub struct Found {
    pub on: Vec<HostId>,
    pub silent: Vec<HostId>,
}

/// Asks each of these hosts for a guest.
pub async fn find(agents: &Agents, hosts: &[HostId], guest: GuestId) -> Found {
    let request = || InspectGuestRequest {
        guest_uuid: guest.to_string(),
        destination_overrides: None,
    };
    let answers = join_all(hosts.iter().map(|host| {
        ask(agents, host, async move |agent: Agent| {
            match agent.inspect_guest(request()).await {
                Ok(_) => Ok(true),
                Err(failure) if failure.reason == Reason::GuestNotFound && failure.is_evidence() => Ok(false),
                Err(failure) => Err(failure),
            }
        })
    }));
    let mut found = Found {
        on: Vec::new(),
        silent: Vec::new(),
    };
    for (host, answer) in hosts.iter().zip(answers.await) {
        match answer {
            Ok(true) => found.on.push(host.clone()),
            Ok(false) => {}
            Err(_) => found.silent.push(host.clone()),
        }
    }
    found
}

/// The guests of each host; an error where it does not answer.
pub async fn list(agents: &Agents, hosts: &[HostId]) -> Vec<(HostId, Result<Vec<GuestFacts>, Failure>)> {
    let answers = join_all(hosts.iter().map(|host| {
        ask(agents, host, async |agent: Agent| {
            Ok(agent.list_guests(ListGuestsRequest {}).await?.guests)
        })
    }));
    hosts.iter().cloned().zip(answers.await).collect()
}

async fn ask<T>(
    agents: &Agents,
    host: &HostId,
    question: impl AsyncFnOnce(Agent) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let agent = agents.of(host).await?;
    let silent = || Failure::new(Reason::HostUnreachable, format!("{host} does not answer")).at_host(host.clone());
    tokio::time::timeout(PATIENCE, question(agent))
        .await
        .map_err(|_| silent())?
}
