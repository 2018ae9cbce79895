//! What must be true of two hosts before a guest is moved: pure judgements of what their agents said.
//!
//! The controller judges the guest, the agents, their clocks and their ports; what the destination would have to give
//! is judged by the destination's agent. A check that could not be made counts as failed, unless nothing but a hint
//! depends on it ([`HINTS`]): what is not known to be safe is not done.

mod between;

use drover_proto::agent::v1::{Blocker, GuestFacts, HostFacts, LibvirtState};
use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::HostId;
use drover_proto::v1::{Check, CheckResult, Compression, MigrationPolicy};

use super::{Way, offline};
use crate::compression;

pub(super) use between::{Clock, Direction, agents, clock, ports};

/// Checks that the destination's agent makes; it must have made them.
const BY_DESTINATION: [&str; 15] = [
    "migration-calls",
    "host-uuid",
    "uuid-free",
    "name-free",
    "machine-type",
    "cpu",
    "versions",
    "lock-manager",
    "memory",
    "huge-pages",
    "numa",
    "boot-files",
    "bridges",
    "networks",
    "space",
];

/// Made by the destination's agent only where the guest may go post-copy. An older agent does not know it.
const POST_COPY: &str = "post-copy";

/// Checks that may go unmade: where they would have failed, libvirt refuses before anything was touched. Of a repair
/// nobody can tell beforehand whether it is needed; without one both sides keep what they have.
const HINTS: [&str; 5] = ["lock-manager", "boot-files", "space", "clock", "post-copy-repair"];

const TPM: &str = "tpm";

/// Checks of devices, in the order in which they are shown; the guest's ties name one of them.
const DEVICES: [(&str, &str); 4] = [
    ("host-devices", "no device of the host is passed through"),
    (TPM, "none"),
    ("shared-folders", "none"),
    ("devices", "nothing else ties it to its host"),
];

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

/// Whether this check stands in the way of a migration.
fn is_obstacle(check: &Check) -> bool {
    match check.result() {
        CheckResult::Passed => false,
        CheckResult::Failed => true,
        CheckResult::Unspecified | CheckResult::NotChecked => !HINTS.contains(&check.id.as_str()),
    }
}

/// Whether a migration would be accepted.
pub(super) fn acceptable(checks: &[Check]) -> bool {
    !checks.iter().any(is_obstacle)
}

/// The first check that failed, as the reason of a refusal.
pub(super) fn refusal(checks: &[Check], host: &HostId) -> Option<Failure> {
    let bad = || checks.iter().filter(|check| is_obstacle(check));
    let first = bad()
        .find(|check| check.result() == CheckResult::Failed)
        .or_else(|| bad().next())?;
    let reason = match first.id.as_str() {
        "guest-present" => Reason::GuestNotFound,
        "guest-idle" | "guest-state" => Reason::GuestBusy,
        "uuid-free" | "name-free" => Reason::GuestExists,
        "storage-shared" | "storage-path" => Reason::StorageNotShared,
        "storage-copy" => Reason::StorageUnusable,
        "agents" => Reason::FeatureMissing,
        "cordoned" => Reason::HostCordoned,
        "machine-type" | "cpu" | "memory" | "huge-pages" | "numa" | "boot-files" | "bridges" | "networks"
        | "compression" | POST_COPY => Reason::Unfit,
        _ => Reason::ChecksFailed,
    };
    let mut failure = Failure::new(reason, format!("{}: {}", first.id, first.found)).at_host(host.clone());
    failure.remedy = Some(first.remedy.clone()).filter(|remedy| !remedy.is_empty());
    Some(failure)
}

/// Only where the caller wants memory compressed.
pub(super) fn compression(policy: &MigrationPolicy, source: &HostFacts, destination: &HostFacts) -> Option<Check> {
    if policy.compression() != Compression::Zstd {
        return None;
    }
    Some(match compression::lacks(source, destination) {
        None => passed("compression", "libvirt and QEMU of both hosts know zstd"),
        Some(lack) => failed(
            "compression",
            lack,
            "leave `policy.compression` (--compression) out, or have newer ones on both hosts",
        ),
    })
}

/// What can be said of the guest alone.
pub(super) fn of_guest(guest: &GuestFacts, way: Way) -> Vec<Check> {
    let mut checks = vec![
        match way {
            Way::Live => guest_state(guest),
            Way::Offline | Way::ShutDown => offline::guest_state(guest, way),
        },
        match way {
            Way::Live | Way::ShutDown => guest_idle(guest),
            Way::Offline => passed("guest-idle", "nothing runs"),
        },
        block_jobs(guest),
        snapshots(guest),
    ];
    checks.extend(match way {
        Way::Live => devices(guest),
        Way::Offline | Way::ShutDown => offline::devices(guest, devices(guest)),
    });
    if way.is_offline() {
        checks.push(offline::checkpoints(guest));
    }
    checks
}

/// What the destination said, and what it should have said. `post_copy`: the guest may go that way.
pub(super) fn complete(mut said: Vec<Check>, post_copy: bool) -> Vec<Check> {
    for id in BY_DESTINATION.into_iter().chain(post_copy.then_some(POST_COPY)) {
        if said.iter().all(|check| check.id != id) {
            said.push(not_checked(id, "the destination's agent did not say"));
        }
    }
    said
}

fn guest_state(guest: &GuestFacts) -> Check {
    let id = "guest-state";
    match guest.state() {
        LibvirtState::Running => passed(id, "running"),
        LibvirtState::Paused => passed(id, "paused, will arrive paused"),
        LibvirtState::ShutOff => failed(id, "shut off", "start the guest, or move it as it is: `--offline`"),
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

fn block_jobs(guest: &GuestFacts) -> Check {
    if guest.block_jobs.is_empty() {
        return passed("block-jobs", "none");
    }
    failed(
        "block-jobs",
        format!("a block job runs on {}", guest.block_jobs.join(", ")),
        "wait for it, or `virsh blockjob GUEST DISK --abort`",
    )
}

/// Each thing that ties the guest to its host is named in the check that it belongs to.
fn devices(guest: &GuestFacts) -> Vec<Check> {
    let known = |id: &str| DEVICES.iter().any(|(known, _)| *known == id);
    let of = |id: &str| {
        let ties = guest.ties.iter();
        // What another agent has a check of its own for is a device all the same.
        let mine = ties.filter(|tie| tie.check_id == id || (id == "devices" && !known(&tie.check_id)));
        mine.map(|tie| tie.what.as_str()).collect::<Vec<_>>().join("; ")
    };
    let check = |(id, good): (&str, &str)| {
        let found = of(id);
        if found.is_empty() {
            passed(id, good)
        } else if id == TPM && goes_along(guest) {
            passed(id, format!("{found}: it goes along"))
        } else {
            failed(id, found, "detach it, or move the guest while it is shut off")
        }
    };
    DEVICES.into_iter().map(check).collect()
}

/// The state of its TPM: libvirt takes that of a guest that runs, the agents take it where it is off. An older agent does
/// not tell which one can.
fn goes_along(guest: &GuestFacts) -> bool {
    let stays = |tie: &Blocker| tie.check_id == TPM && tie.holds_data;
    !guest.tpm_state.is_empty() && !guest.ties.iter().any(stays)
}

fn snapshots(guest: &GuestFacts) -> Check {
    if guest.managed_save {
        return failed(
            "snapshots",
            "libvirt keeps its memory, saved on this host alone",
            "start it and shut it down, or give up what was saved: `virsh managedsave-remove`",
        );
    }
    if guest.snapshots == 0 {
        return passed("snapshots", "none");
    }
    failed(
        "snapshots",
        format!("it has {}", guest.snapshots),
        "delete its snapshots",
    )
}

#[cfg(test)]
mod tests;
