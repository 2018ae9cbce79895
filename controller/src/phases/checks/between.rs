//! What must be true between two hosts: agents that understand each other, clocks, and the one port in both directions.

use std::time::{Duration, SystemTime};

use drover_proto::agent::v1::{AgentStatus, PeerProbe};
use drover_proto::ids::HostId;
use drover_proto::v1::Check;

use super::super::Way;
use super::{failed, not_checked, passed};

/// The agent protocol that this controller speaks.
const PROTOCOL: i32 = 1;

/// What both agents must be able to do.
const FEATURES: [&str; 2] = ["live", "tunnel"];

/// And for a guest that is shut off.
const OFFLINE: &str = "offline";

/// Clocks that differ by more are worth a word.
const NOTED_SKEW: Duration = Duration::from_secs(1);

/// Clocks that differ by more are refused: certificates and the order of what happened are judged by them, and the
/// guest's own clock jumps where it follows its host's.
const REFUSED_SKEW: Duration = Duration::from_secs(10);

pub(in crate::phases) fn agents(source: &AgentStatus, destination: &AgentStatus, way: Way) -> Check {
    let id = "agents";
    for (side, status) in [("source", source), ("destination", destination)] {
        let Some(host) = &status.host else {
            return not_checked(id, format!("the {side}'s agent did not say what it can do"));
        };
        if !(host.protocol_min..=host.protocol_max).contains(&PROTOCOL) {
            let speaks = format!("{} to {}", host.protocol_min, host.protocol_max);
            let found = format!("the {side}'s agent speaks protocol {speaks}, the controller {PROTOCOL}");
            return failed(id, found, "update the older one of the two");
        }
        let lacks = FEATURES
            .iter()
            .chain(way.is_offline().then_some(&OFFLINE))
            .find(|feature| !host.features.iter().any(|has| has == *feature));
        if let Some(lacks) = lacks {
            let why = if host.problem.is_empty() {
                String::new()
            } else {
                format!(" ({})", host.problem)
            };
            let found = format!("the {side}'s agent cannot do {lacks}{why}");
            return failed(id, found, "update its agent or its libvirt");
        }
    }
    passed(id, format!("both speak protocol {PROTOCOL}"))
}

/// An agent's clock, as the controller saw it between question and answer.
#[derive(Clone, Copy, Debug)]
pub(in crate::phases) struct Clock {
    /// Seconds that it is ahead of the controller's.
    ahead: f64,
    /// It may be so much more or less, seconds.
    uncertain: f64,
}

impl Clock {
    /// The agent read its clock somewhere between the question and the answer.
    pub(in crate::phases) fn seen(asked: SystemTime, told: SystemTime, answered: SystemTime) -> Self {
        let since = |later: SystemTime, earlier: SystemTime| match later.duration_since(earlier) {
            Ok(time) => time.as_secs_f64(),
            Err(error) => -error.duration().as_secs_f64(),
        };
        let uncertain = since(answered, asked).abs() / 2.0;
        Self {
            ahead: since(told, asked) - uncertain,
            uncertain,
        }
    }
}

pub(in crate::phases) fn clock(source: Option<Clock>, destination: Option<Clock>) -> Check {
    let id = "clock";
    let (Some(source), Some(destination)) = (source, destination) else {
        return not_checked(id, "an agent does not tell its clock");
    };
    let (apart, uncertain) = (
        (source.ahead - destination.ahead).abs(),
        source.uncertain + destination.uncertain,
    );
    let found = format!("they differ by {apart:.3} s, give or take {uncertain:.3} s");
    let surely = (apart - uncertain).max(0.0);
    if surely > REFUSED_SKEW.as_secs_f64() {
        failed(
            id,
            found,
            "synchronise the clocks of both hosts (chrony, systemd-timesyncd)",
        )
    } else if surely > NOTED_SKEW.as_secs_f64() {
        passed(id, format!("{found}: synchronise them"))
    } else {
        passed(id, found)
    }
}

/// What one agent found when it tried to reach the other one.
pub(in crate::phases) struct Direction<'a> {
    pub(in crate::phases) from: &'a HostId,
    pub(in crate::phases) to: &'a HostId,
    pub(in crate::phases) probes: &'a [PeerProbe],
}

/// Open in both directions: one address that answers is enough for each.
pub(in crate::phases) fn ports(directions: &[Direction<'_>]) -> Check {
    let id = "ports";
    let mut shut = Vec::new();
    let mut open = Vec::new();
    for Direction { from, to, probes } in directions {
        match probes.iter().find(|probe| probe.reachable) {
            Some(probe) => {
                let others = probes.iter().take_while(|probe| !probe.reachable);
                let worse: Vec<&str> = others.map(|probe| probe.address.as_str()).collect();
                let note = if worse.is_empty() {
                    String::new()
                } else {
                    format!(", but not {}", worse.join(", "))
                };
                open.push(format!("{from} reaches {to} at {}{note}", probe.address));
            }
            None => {
                let why: Vec<String> = probes
                    .iter()
                    .map(|probe| format!("{}: {}", probe.address, probe.problem))
                    .collect();
                shut.push(format!("{from} does not reach {to} ({})", why.join("; ")));
            }
        }
    }
    if shut.is_empty() {
        return passed(id, open.join("; "));
    }
    let remedy = "open the agents' port between the two hosts, in both directions, and compare their certificates";
    failed(id, shut.join("; "), remedy)
}
