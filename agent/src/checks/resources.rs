//! What a guest takes of its host: memory, huge pages, NUMA nodes and CPUs, files to start from; and what the agents
//! themselves write.

use drover_proto::v1::Check;

use super::{Candidate, failed, not_checked, passed};

/// Memory that a QEMU needs beside its guest's, bytes.
const OVERHEAD: u64 = 128 << 20;

/// What each agent must still be able to write for a migration: journal, sockets. Far more than that takes.
const LEAST_FREE: u64 = 16 << 20;

pub(super) fn memory(candidate: &Candidate<'_>) -> Check {
    let huge: u64 = candidate.guest.huge_pages.iter().map(|pages| pages.total_bytes).sum();
    // Huge pages are set apart by the host: they are no part of what is free.
    let ordinary = candidate.guest.memory_bytes.saturating_sub(huge);
    let (needed, free) = (ordinary.saturating_add(OVERHEAD), candidate.host.memory_available);
    let found = format!(
        "needs {} MiB with QEMU's own, {} MiB are free",
        needed >> 20,
        free >> 20
    );
    if needed <= free {
        return passed("memory", found);
    }
    failed("memory", found, "free memory here, or choose another host")
}

pub(super) fn huge_pages(candidate: &Candidate<'_>) -> Check {
    let id = "huge-pages";
    let needs = &candidate.guest.huge_pages;
    if needs.is_empty() {
        return passed(id, "the guest uses none");
    }
    let mut found = Vec::new();
    let mut lacks = false;
    for need in needs {
        let here = &candidate.host.huge_pages;
        let of_size = here
            .iter()
            .find(|pages| pages.page == need.page_bytes || need.page_bytes == 0);
        let Some(pages) = of_size else {
            lacks = true;
            found.push(format!("no pages of {} KiB here", need.page_bytes >> 10));
            continue;
        };
        lacks |= pages.total < need.total_bytes;
        found.push(format!(
            "needs {} MiB in pages of {} KiB, {} MiB are free",
            need.total_bytes >> 20,
            pages.page >> 10,
            pages.total >> 20
        ));
    }
    let found = found.join("; ");
    if lacks {
        failed(
            id,
            found,
            "set huge pages apart here (vm.nr_hugepages), or choose another host",
        )
    } else {
        passed(id, found)
    }
}

/// NUMA nodes and CPUs by number: a definition that names some means the same numbers everywhere.
pub(super) fn numa(candidate: &Candidate<'_>) -> Check {
    let id = "numa";
    let (guest, host) = (candidate.guest, candidate.host);
    if guest.numa_nodes.is_empty() && guest.host_cpus.is_empty() {
        return passed(id, "the guest is bound to no node and no CPU");
    }
    if host.online_cpus.is_empty() || (host.numa_nodes.is_empty() && !guest.numa_nodes.is_empty()) {
        let remedy = "see that the agent can read /sys/devices/system";
        return not_checked(id, "the kernel here does not tell its nodes and CPUs", remedy);
    }
    let missing = |needed: &[u32], here: &[u32]| {
        let missing = needed.iter().filter(|number| !here.contains(number));
        missing.map(u32::to_string).collect::<Vec<_>>().join(", ")
    };
    let nodes = missing(&guest.numa_nodes, &host.numa_nodes);
    let cpus = missing(&guest.host_cpus, &host.online_cpus);
    let lacks: Vec<String> = [("NUMA node", nodes), ("CPU", cpus)]
        .into_iter()
        .filter(|(_, numbers)| !numbers.is_empty())
        .map(|(what, numbers)| format!("{what} {numbers}"))
        .collect();
    if lacks.is_empty() {
        return passed(id, "the nodes and CPUs that the guest is bound to are here");
    }
    let remedy = "choose a host of the same build, or change the guest's pinning (numatune, cputune)";
    failed(id, format!("not here: {}", lacks.join("; ")), remedy)
}

/// Firmware, kernel, initrd: QEMU opens them on every host by the same path.
pub(super) fn boot_files(candidate: &Candidate<'_>) -> Check {
    let id = "boot-files";
    if candidate.guest.boot_files.is_empty() {
        return passed(id, "the guest needs none");
    }
    let of = |wanted: Presence| {
        let files = candidate.boot_files.iter().filter(|(_, presence)| *presence == wanted);
        files.map(|(path, _)| path.as_str()).collect::<Vec<_>>().join(", ")
    };
    let (absent, hidden) = (of(Presence::Absent), of(Presence::Unknown));
    if !absent.is_empty() {
        let remedy = "install the same firmware or kernel here, at the same path";
        return failed(id, format!("not here: {absent}"), remedy);
    }
    if !hidden.is_empty() {
        let found = format!("the agent may not look at {hidden}");
        return not_checked(id, found, "see that they are here");
    }
    passed(id, candidate.guest.boot_files.join(", "))
}

/// Whether a file is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Present,
    Absent,
    /// The agent may not look.
    Unknown,
}

/// Looks at files of this host. Blocks.
pub fn look(paths: &[String]) -> Vec<(String, Presence)> {
    let presence = |path: &String| match std::fs::metadata(path) {
        Ok(_) => Presence::Present,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Presence::Absent,
        Err(_) => Presence::Unknown,
    };
    paths.iter().map(|path| (path.clone(), presence(path))).collect()
}

/// The journal and the sockets of both agents.
pub(super) fn space(candidate: &Candidate<'_>) -> Check {
    let (source, here) = (candidate.source, &candidate.space);
    let places = [
        ("the source's state directory", source.state_free_bytes),
        ("the source's run directory", source.run_free_bytes),
        ("the state directory here", here.state),
        ("the run directory here", here.run),
    ];
    let mut full = Vec::new();
    let mut unknown = Vec::new();
    for (place, free) in places {
        match free {
            Some(free) if free >= LEAST_FREE => {}
            Some(free) => full.push(format!("{place} has {} MiB left", free >> 20)),
            None => unknown.push(place),
        }
    }
    if !full.is_empty() {
        let remedy = "free at least 16 MiB: the agents write their journal there";
        return failed("space", full.join("; "), remedy);
    }
    if !unknown.is_empty() {
        let found = format!("nobody knows how much {} has left", unknown.join(", "));
        return not_checked("space", found, "look with df");
    }
    passed("space", "both agents can write their journal and sockets")
}
