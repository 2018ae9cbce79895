//! Whether this host could take a guest: what the guest needs against what is here. Pure comparisons; the facts are
//! gathered by the service. The ids are listed in docs/checks.md.

mod post_copy;
mod resources;
mod versions;

use drover_proto::agent::v1 as agent;
use drover_proto::v1::{Check, CheckResult};

pub use post_copy::is_wanted as post_copy_wanted;
pub use resources::{Presence, look};

use crate::hypervisor::{CpuAnswer, GuestFacts, HostFacts};

/// All that is compared.
#[derive(Debug)]
pub struct Candidate<'a> {
    /// The guest as its source sees it.
    pub guest: &'a agent::GuestFacts,
    pub source: &'a agent::HostFacts,
    /// How it may be moved, where that was said.
    pub policy: Option<&'a agent::TransferPolicy>,
    /// This host.
    pub host: &'a HostFacts,
    /// A guest of the same UUID here.
    pub same_uuid: Option<&'a GuestFacts>,
    /// A guest of the same name here.
    pub same_name: Option<&'a GuestFacts>,
    pub cpu: Result<CpuAnswer, String>,
    /// What this host lacks to migrate at all.
    pub unfit: Option<&'a str>,
    /// The files that the guest starts from, and whether they are here.
    pub boot_files: Vec<(String, Presence)>,
    pub space: Space,
}

/// What this agent can still write, bytes; `None` where nobody knows.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// In its state directory.
    pub state: Option<u64>,
    /// In the directory of its sockets.
    pub run: Option<u64>,
}

/// Every check, in the order in which people should read them.
pub fn all(candidate: &Candidate<'_>) -> Vec<Check> {
    let mut checks = vec![
        migration_calls(candidate),
        host_uuid(candidate),
        uuid_free(candidate),
        name_free(candidate),
        machine_type(candidate),
        cpu(candidate),
        versions::versions(candidate),
        versions::lock_manager(candidate),
        resources::memory(candidate),
        resources::huge_pages(candidate),
        resources::numa(candidate),
        resources::boot_files(candidate),
        names("bridges", "bridge", candidate, &candidate.host.bridges),
        names("networks", "network", candidate, &candidate.host.networks),
        resources::space(candidate),
    ];
    checks.extend(post_copy::post_copy(candidate));
    checks.extend(post_copy::repair(candidate));
    checks
}

fn passed(id: &str, found: impl Into<String>) -> Check {
    let (id, found) = (id.to_owned(), found.into());
    Check {
        id,
        result: CheckResult::Passed.into(),
        found,
        remedy: String::new(),
    }
}

fn failed(id: &str, found: impl Into<String>, remedy: &str) -> Check {
    let (id, found) = (id.to_owned(), found.into());
    Check {
        id,
        result: CheckResult::Failed.into(),
        found,
        remedy: remedy.to_owned(),
    }
}

fn not_checked(id: &str, found: impl Into<String>, remedy: &str) -> Check {
    Check {
        result: CheckResult::NotChecked.into(),
        ..failed(id, found, remedy)
    }
}

fn migration_calls(candidate: &Candidate<'_>) -> Check {
    match candidate.unfit {
        None => passed("migration-calls", "libvirt has the five calls"),
        Some(lack) => failed("migration-calls", lack, "install a libvirt of version 9.0 or newer"),
    }
}

fn host_uuid(candidate: &Candidate<'_>) -> Check {
    let here = candidate.host.uuid.to_string();
    if candidate.source.host_uuid.eq_ignore_ascii_case(&here) {
        let remedy = "set host_uuid in libvirtd.conf of one of them: cloned machines share it";
        return failed("host-uuid", format!("both hosts have the UUID {here}"), remedy);
    }
    passed("host-uuid", "the hosts have different UUIDs")
}

fn uuid_free(candidate: &Candidate<'_>) -> Check {
    match candidate.same_uuid {
        None => passed("uuid-free", "no guest of this UUID here"),
        Some(other) => failed(
            "uuid-free",
            format!("guest {} has this UUID here ({:?})", other.name, other.state),
            "if it is a leftover, undefine it",
        ),
    }
}

fn name_free(candidate: &Candidate<'_>) -> Check {
    match candidate.same_name {
        Some(other) if candidate.same_uuid.is_none_or(|same| same.id != other.id) => failed(
            "name-free",
            format!("guest {} has this name here", other.id),
            "rename one of the two",
        ),
        Some(_) | None => passed("name-free", "no other guest of this name here"),
    }
}

fn machine_type(candidate: &Candidate<'_>) -> Check {
    let agent::GuestFacts {
        machine,
        domain_type,
        arch,
        ..
    } = candidate.guest;
    let mut kinds = candidate
        .host
        .machines
        .iter()
        .filter(|kind| kind.domain_type == *domain_type && kind.arch == *arch);
    let Some(kind) = kinds.next() else {
        let found = format!("this host runs no {domain_type} guests of {arch}");
        return failed("machine-type", found, "choose a host of the same kind");
    };
    if kind.names.iter().any(|name| name == machine) {
        return passed("machine-type", format!("{machine} is known"));
    }
    let remedy = "choose a host whose QEMU is at least as new as the one that made the guest";
    failed("machine-type", format!("QEMU here does not know {machine}"), remedy)
}

fn cpu(candidate: &Candidate<'_>) -> Check {
    match &candidate.cpu {
        Ok(CpuAnswer::Fits) => passed("cpu", "the guest's CPU can be had here"),
        Ok(CpuAnswer::Lacks(what)) => failed(
            "cpu",
            format!("this host's CPU lacks {what}"),
            "choose a host with the same or a newer CPU",
        ),
        Ok(CpuAnswer::Unknown(why)) | Err(why) => not_checked(
            "cpu",
            why.as_str(),
            "give the guest a named CPU model instead of the host's own",
        ),
    }
}

/// Bridges and networks: by name.
fn names(id: &str, source_type: &str, candidate: &Candidate<'_>, here: &[String]) -> Check {
    let needed = candidate
        .guest
        .interfaces
        .iter()
        .filter(|interface| interface.source_type == source_type);
    let mut missing: Vec<_> = needed
        .map(|i| i.source.as_str())
        .filter(|name| !here.iter().any(|h| h == name))
        .collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return passed(id, format!("every {source_type} that the guest is on is here"));
    }
    let found = format!("not here: {}", missing.join(", "));
    failed(id, found, "make it here, or choose another host")
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
