//! What must be true of two hosts before a guest is moved: pure comparisons of what their agents said.
//!
//! A check that could not be made counts as failed: what is not known to be safe is not done.

use drover_proto::agent::v1::{AgentStatus, GuestFacts, HostFacts, LibvirtState};
use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::HostId;
use drover_proto::v1::{Check, CheckResult};

/// The agent protocol that this controller speaks.
pub(super) const PROTOCOL: i32 = 1;

/// What both agents must be able to do.
const FEATURES: [&str; 2] = ["live", "tunnel"];

/// Checks that only the destination's agent can make; it must have made them.
const BY_DESTINATION: [&str; 2] = ["machine-type", "cpu"];

/// Everything that was asked about one guest and two hosts.
pub(super) struct Facts {
    pub(super) guest: GuestFacts,
    pub(super) source: HostFacts,
    pub(super) destination: HostFacts,
    pub(super) destination_guests: Vec<GuestFacts>,
    pub(super) source_agent: AgentStatus,
    pub(super) destination_agent: AgentStatus,
    /// Made by the destination's agent.
    pub(super) incoming: Vec<Check>,
}

pub(super) fn passed(id: &str, found: impl Into<String>) -> Check {
    Check {
        id: id.to_owned(),
        result: CheckResult::Passed.into(),
        found: found.into(),
        remedy: String::new(),
    }
}

pub(super) fn failed(id: &str, found: impl Into<String>, remedy: impl Into<String>) -> Check {
    Check {
        id: id.to_owned(),
        result: CheckResult::Failed.into(),
        found: found.into(),
        remedy: remedy.into(),
    }
}

pub(super) fn not_checked(id: &str, found: impl Into<String>) -> Check {
    Check {
        id: id.to_owned(),
        result: CheckResult::NotChecked.into(),
        found: found.into(),
        remedy: String::new(),
    }
}

/// Whether a migration would be accepted.
pub(super) fn acceptable(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.result() == CheckResult::Passed)
}

/// The first check that failed, as the reason of a refusal.
pub(super) fn refusal(checks: &[Check], host: &HostId) -> Option<Failure> {
    let bad = || checks.iter().filter(|check| check.result() != CheckResult::Passed);
    let first = bad()
        .find(|check| check.result() == CheckResult::Failed)
        .or_else(|| bad().next())?;
    let reason = match first.id.as_str() {
        "guest-present" => Reason::GuestNotFound,
        "guest-idle" | "guest-state" => Reason::GuestBusy,
        "uuid-free" | "name-free" => Reason::GuestExists,
        "storage-shared" => Reason::StorageNotShared,
        "agents" => Reason::FeatureMissing,
        "machine-type" | "cpu" | "memory" | "bridges" | "networks" | "arch" => Reason::Unfit,
        _ => Reason::ChecksFailed,
    };
    let mut failure = Failure::new(reason, format!("{}: {}", first.id, first.found)).at_host(host.clone());
    failure.remedy = Some(first.remedy.clone()).filter(|remedy| !remedy.is_empty());
    Some(failure)
}

/// All comparisons, in the order in which people would make them. Storage is proved elsewhere.
pub(super) fn compare(facts: &Facts) -> Vec<Check> {
    let own = vec![
        guest_state(&facts.guest),
        guest_idle(&facts.guest),
        devices(&facts.guest),
        snapshots(&facts.guest),
        agents(facts),
        host_uuid(facts),
        architecture(facts),
        uuid_free(facts),
        name_free(facts),
        memory(facts),
        named("bridges", &wanted(&facts.guest, "bridge"), &facts.destination.bridges),
        named(
            "networks",
            &wanted(&facts.guest, "network"),
            &facts.destination.networks,
        ),
    ];
    let missing = BY_DESTINATION
        .into_iter()
        .filter(|id| facts.incoming.iter().all(|check| check.id != *id))
        .map(|id| not_checked(id, "the destination's agent did not say"));
    merge(own.into_iter().chain(facts.incoming.iter().cloned()).chain(missing))
}

/// Of two checks with one id the worse one counts.
fn merge(checks: impl Iterator<Item = Check>) -> Vec<Check> {
    let mut merged: Vec<Check> = Vec::new();
    for check in checks {
        match merged.iter_mut().find(|other| other.id == check.id) {
            Some(other) if badness(&check) > badness(other) => *other = check,
            Some(_) => {}
            None => merged.push(check),
        }
    }
    merged
}

fn badness(check: &Check) -> u8 {
    match check.result() {
        CheckResult::Passed => 0,
        CheckResult::Unspecified | CheckResult::NotChecked => 1,
        CheckResult::Failed => 2,
    }
}

fn guest_state(guest: &GuestFacts) -> Check {
    let id = "guest-state";
    match guest.state() {
        LibvirtState::Running => passed(id, "running"),
        LibvirtState::Paused => passed(id, "paused, will arrive paused"),
        LibvirtState::ShutOff => failed(
            id,
            "shut off: only running and paused guests can be moved by this version",
            "start the guest",
        ),
        LibvirtState::ShuttingDown => failed(id, "shutting down", "wait until it is off or runs again"),
        LibvirtState::Crashed => failed(id, "crashed", "restart the guest"),
        LibvirtState::PausedFault => failed(
            id,
            "paused by an I/O error or a watchdog",
            "remove the cause and resume the guest",
        ),
        LibvirtState::PausedMigrating
        | LibvirtState::PausedPostCopy
        | LibvirtState::PausedPostCopyFailed
        | LibvirtState::RunningPostCopy
        | LibvirtState::RunningPostCopyFailed => {
            failed(id, "being migrated by somebody", "finish or undo that migration first")
        }
        LibvirtState::Unspecified => not_checked(id, "libvirt does not say what it does"),
    }
}

fn guest_idle(guest: &GuestFacts) -> Check {
    if guest.job_active {
        failed(
            "guest-idle",
            "a libvirt job runs on the guest",
            "wait for it, or `virsh domjobabort`",
        )
    } else if guest.incarnation.is_none() {
        not_checked("guest-idle", "the process of the guest could not be identified")
    } else {
        passed("guest-idle", "no job runs on it")
    }
}

fn devices(guest: &GuestFacts) -> Check {
    if guest.blockers.is_empty() {
        return passed("devices", "nothing ties it to its host");
    }
    failed("devices", guest.blockers.join("; "), "detach what cannot move")
}

fn snapshots(guest: &GuestFacts) -> Check {
    if guest.snapshots == 0 {
        return passed("snapshots", "none");
    }
    failed(
        "snapshots",
        format!("it has {}", guest.snapshots),
        "delete its snapshots",
    )
}

fn agents(facts: &Facts) -> Check {
    let id = "agents";
    for (side, status) in [
        ("source", &facts.source_agent),
        ("destination", &facts.destination_agent),
    ] {
        let Some(host) = &status.host else {
            return not_checked(id, format!("the {side}'s agent did not say what it can do"));
        };
        if !(host.protocol_min..=host.protocol_max).contains(&PROTOCOL) {
            let speaks = format!("{} to {}", host.protocol_min, host.protocol_max);
            let found = format!("the {side}'s agent speaks protocol {speaks}, the controller {PROTOCOL}");
            return failed(id, found, "update the older one of the two");
        }
        if let Some(lacks) = FEATURES
            .iter()
            .find(|feature| !host.features.iter().any(|has| has == *feature))
        {
            let why = if host.problem.is_empty() {
                String::new()
            } else {
                format!(" ({})", host.problem)
            };
            return failed(
                id,
                format!("the {side}'s agent cannot do {lacks}{why}"),
                "update its agent or its libvirt",
            );
        }
    }
    passed(id, format!("both speak protocol {PROTOCOL}"))
}

fn host_uuid(facts: &Facts) -> Check {
    let (source, destination) = (&facts.source.host_uuid, &facts.destination.host_uuid);
    if source.is_empty() || destination.is_empty() {
        not_checked("host-uuid", "libvirt does not say them")
    } else if source == destination {
        let remedy = "set another host_uuid in one libvirtd.conf";
        failed(
            "host-uuid",
            format!("both hosts have the UUID {source}: libvirt takes them for one"),
            remedy,
        )
    } else {
        passed("host-uuid", "they differ")
    }
}

fn architecture(facts: &Facts) -> Check {
    let (needs, has) = (&facts.guest.arch, &facts.destination.arch);
    if facts.guest.domain_type == "kvm" && needs != has {
        failed(
            "arch",
            format!("the guest is {needs}, the destination {has}"),
            "choose another destination",
        )
    } else {
        passed("arch", needs.clone())
    }
}

fn uuid_free(facts: &Facts) -> Check {
    match facts
        .destination_guests
        .iter()
        .find(|guest| guest.guest_uuid == facts.guest.guest_uuid)
    {
        Some(guest) => {
            let found = format!("the destination has a guest {} with this UUID", guest.name);
            failed("uuid-free", found, "remove it there, if it is nothing but a leftover")
        }
        None => passed("uuid-free", "no guest with this UUID there"),
    }
}

fn name_free(facts: &Facts) -> Check {
    let same = |guest: &&GuestFacts| guest.name == facts.guest.name && guest.guest_uuid != facts.guest.guest_uuid;
    match facts.destination_guests.iter().find(same) {
        Some(guest) => {
            let found = format!(
                "the destination has another guest {} ({})",
                guest.name, guest.guest_uuid
            );
            failed("name-free", found, "rename one of the two")
        }
        None => passed("name-free", "no guest of this name there"),
    }
}

fn memory(facts: &Facts) -> Check {
    let (needs, free) = (facts.guest.memory_bytes, facts.destination.memory_available_bytes);
    let found = format!("needs {} MiB, {} MiB are free", needs >> 20, free >> 20);
    if needs > free {
        failed("memory", found, "choose another destination")
    } else {
        passed("memory", found)
    }
}

fn wanted<'a>(guest: &'a GuestFacts, source_type: &str) -> Vec<&'a str> {
    let of_type = |interface: &&drover_proto::agent::v1::InterfaceFacts| interface.source_type == source_type;
    guest
        .interfaces
        .iter()
        .filter(of_type)
        .map(|interface| interface.source.as_str())
        .collect()
}

fn named(id: &str, wanted: &[&str], there: &[String]) -> Check {
    let lacks: Vec<&str> = wanted
        .iter()
        .copied()
        .filter(|name| !there.iter().any(|has| has == name))
        .collect();
    if lacks.is_empty() {
        let found = if wanted.is_empty() {
            "none needed".to_owned()
        } else {
            wanted.join(", ")
        };
        return passed(id, found);
    }
    failed(
        id,
        format!("the destination lacks {}", lacks.join(", ")),
        "create it there",
    )
}

#[cfg(test)]
mod tests;
