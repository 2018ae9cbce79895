//! Versions of libvirt and QEMU: their known traps, and which side is older.

use drover_proto::v1::Check;
use drover_proto::versions::{release, version};

use super::{Candidate, failed, not_checked, passed};

/// QEMU is made to accept guests of older ones; a newer one's guest it accepts where it knows its machine type, which is
/// a check of its own. If it does not, the transfer fails and the guest stays where it is.
pub(super) fn versions(candidate: &Candidate<'_>) -> Check {
    let (source, here) = (candidate.source, candidate.host);
    let found = format!(
        "QEMU {} at the source, {} here; libvirt {} at the source, {} here",
        version(source.qemu_version),
        version(here.qemu_version),
        version(source.libvirt_version),
        version(here.libvirt_version)
    );
    // QEMU 7.2 emulating a CPU corrupts guests that are busy while they migrate. With KVM it does not.
    let corrupts = |qemu: u64| candidate.guest.domain_type == "qemu" && release(qemu) == (7, 2);
    if corrupts(source.qemu_version) || corrupts(here.qemu_version) {
        let remedy = "use another QEMU (10.0 is known to be good), or move the guest while it is shut off";
        return failed(
            "versions",
            format!("QEMU 7.2 corrupts emulated guests that move: {found}"),
            remedy,
        );
    }
    let mut notes = Vec::new();
    if release(source.qemu_version) > release(here.qemu_version) {
        notes.push("QEMU is older here, prefer a host whose QEMU is not");
    }
    if release(source.libvirt_version) > release(here.libvirt_version) {
        notes.push("libvirt is older here, and may not know all of the guest's definition");
    }
    passed("versions", [vec![found.as_str()], notes].concat().join(": "))
}

/// A lock manager of one side only would refuse the guest, or leave it without a lock.
pub(super) fn lock_manager(candidate: &Candidate<'_>) -> Check {
    let id = "lock-manager";
    match (
        candidate.source.lock_manager.as_str(),
        candidate.host.lock_manager.as_deref(),
    ) {
        ("", _) | (_, None) => not_checked(
            id,
            "an agent may not read /etc/libvirt/qemu.conf",
            "see that lock_manager is the same on both hosts",
        ),
        (there, Some(here)) if there == here => passed(id, format!("{here} on both hosts")),
        (there, Some(here)) => failed(
            id,
            format!("{there} at the source, {here} here"),
            "set the same lock_manager in qemu.conf on both hosts",
        ),
    }
}
