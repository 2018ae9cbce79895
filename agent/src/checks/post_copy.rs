//! Whether a guest could come here by post-copy, and if not, why. Only where the migration may go that way.

use drover_proto::agent::v1::TransferPolicy;
use drover_proto::v1::{Check, DeadlineAction};
use drover_proto::versions::{release, version};

use super::{Candidate, failed, not_checked, passed};
use crate::hypervisor::UserFaults;

const ID: &str = "post-copy";

const REPAIR: &str = "post-copy-repair";

/// libvirt's daemon crashed here when a stream was made anew (mended in 11.4).
const CRASHES_IN_REPAIR: [(u64, u64); 2] = [(11, 2), (11, 3)];

/// The first QEMU that does several connections and post-copy in one migration.
const WITH_MULTIFD: (u64, u64) = (10, 1);

/// The first QEMU that opens /dev/userfaultfd.
const WITH_DEVICE: (u64, u64) = (8, 1);

const ALLOW_FAULTS: &str =
    "on the destination: `sysctl vm.unprivileged_userfaultfd=1`, or let QEMU's user open /dev/userfaultfd";

/// Whether the migration may go post-copy.
pub fn is_wanted(policy: &TransferPolicy) -> bool {
    policy.post_copy || policy.on_deadline() == DeadlineAction::PostCopy
}

pub(super) fn post_copy(candidate: &Candidate<'_>) -> Option<Check> {
    let policy = candidate.policy.filter(|policy| is_wanted(policy))?;
    let (source, here) = (candidate.source.qemu_version, candidate.host.qemu_version);
    let older = source.min(here);
    if candidate.guest.ties.iter().any(|tie| tie.check_id == "host-devices") {
        let found = "a device of the host writes into the guest's memory, which post-copy cannot follow";
        return Some(failed(ID, found, "detach it, or do without post-copy"));
    }
    if !candidate.guest.huge_pages.is_empty() {
        let found = "its memory is made of huge pages: at every access the guest would wait for a whole one";
        return Some(failed(ID, found, "do without post-copy, or give it ordinary pages"));
    }
    if policy.parallel_connections > 0 && release(older) < WITH_MULTIFD {
        let found = format!("QEMU {} cannot do it over several connections", version(older));
        return Some(failed(
            ID,
            found,
            "leave --parallel and --compression out, or QEMU 10.1 or newer on both hosts",
        ));
    }
    Some(faults(candidate.host.user_faults, here))
}

/// Whether a stream that breaks could be repaired. Who packages libvirt may have mended it: the version does not tell, so
/// this stands in nobody's way. The daemon's death ends neither QEMU; both sides wait for a daemon that can do it.
pub(super) fn repair(candidate: &Candidate<'_>) -> Option<Check> {
    candidate.policy.filter(|policy| is_wanted(policy))?;
    let (source, here) = (candidate.source.libvirt_version, candidate.host.libvirt_version);
    let crashes = |libvirt: u64| CRASHES_IN_REPAIR.contains(&release(libvirt));
    let place = match (crashes(source), crashes(here)) {
        (false, false) => return Some(passed(REPAIR, "no libvirt that is known to crash in it")),
        (true, true) => format!("{} at the source and {} here are", version(source), version(here)),
        (true, false) => format!("{} at the source is", version(source)),
        (false, true) => format!("{} here is", version(here)),
    };
    let found = format!(
        "libvirt {place} of those that crash where a broken stream is repaired, unless the packager has mended it: the \
         guest would wait for what is missing until another libvirt runs"
    );
    Some(not_checked(
        REPAIR,
        found,
        "libvirt 11.4 or newer on both hosts, or do without post-copy",
    ))
}

/// The destination's QEMU has to see accesses to pages that have not arrived.
fn faults(faults: UserFaults, qemu: u64) -> Check {
    match faults {
        UserFaults::Anybody => passed(ID, "QEMU here may catch page faults"),
        UserFaults::ByDevice if release(qemu) >= WITH_DEVICE => passed(ID, "QEMU here may open /dev/userfaultfd"),
        UserFaults::ByDevice => {
            let found = format!("QEMU {} here does not know /dev/userfaultfd", version(qemu));
            failed(ID, found, "on the destination: `sysctl vm.unprivileged_userfaultfd=1`")
        }
        UserFaults::Nobody => failed(ID, "QEMU here may not catch page faults (userfaultfd)", ALLOW_FAULTS),
        UserFaults::Unknown => not_checked(
            ID,
            "whether QEMU here may catch page faults could not be read",
            ALLOW_FAULTS,
        ),
    }
}
