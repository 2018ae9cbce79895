//! A guest that is shut off: whether it moves so, and what is asked of it. What becomes of its disks is decided in
//! `storage`. Pure.

use drover_proto::agent::v1::{GuestFacts, LibvirtState, MigrationStatus, OfflineOrder};
use drover_proto::v1::{Check, CheckResult, MigrationMode, MigrationPolicy};

use super::checks::{failed, passed};
use crate::seen;
use crate::store::Record;

/// How a guest moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// With its memory.
    Live,
    /// Shut off, with its definition and the images that the destination does not have.
    Offline,
    /// The same; it runs, is shut down first, and is started where it has come to.
    ShutDown,
}

impl Way {
    /// What the caller wants of a guest in this state.
    pub(super) fn of(policy: &MigrationPolicy, guest: &GuestFacts) -> Self {
        match policy.mode() {
            MigrationMode::Offline if policy.shutdown_timeout.is_some() && guest.state() != LibvirtState::ShutOff => {
                Self::ShutDown
            }
            MigrationMode::Offline => Self::Offline,
            MigrationMode::Auto if guest.state() == LibvirtState::ShutOff => Self::Offline,
            MigrationMode::Auto | MigrationMode::Live | MigrationMode::Unspecified => Self::Live,
        }
    }

    /// Whether it moves with its files.
    pub(super) fn is_offline(self) -> bool {
        match self {
            Self::Live => false,
            Self::Offline | Self::ShutDown => true,
        }
    }

    /// What the destination has to offer: one that is not started needs no memory, and takes the CPU of its new host.
    pub(super) fn needs(self, guest: GuestFacts) -> GuestFacts {
        match self {
            Self::Live | Self::ShutDown => guest,
            Self::Offline => GuestFacts {
                memory_bytes: 0,
                huge_pages: Vec::new(),
                cpu_xml: String::new(),
                ..guest
            },
        }
    }
}

/// What the source is told; none where the guest runs.
pub(super) fn order(record: &Record) -> Option<OfflineOrder> {
    let plan = record.details.offline_plan.as_ref()?;
    let storage = record
        .details
        .policy
        .as_ref()
        .and_then(|policy| policy.storage.as_ref());
    Some(OfflineOrder {
        images: plan.copied_images.clone(),
        shared: plan.shared_images.clone(),
        delete_source: storage.is_some_and(|storage| storage.delete_source),
        shutdown_timeout: record
            .details
            .policy
            .as_ref()
            .and_then(|policy| policy.shutdown_timeout),
    })
}

/// Whether the guest is there as it should be, also at a source that refused to begin and so has no journal of it.
pub(super) fn lives(record: &Record, status: &MigrationStatus) -> bool {
    let moves_so = record.details.offline_plan.is_some();
    seen::lives(status) || (moves_so && status.guest.is_some())
}

pub(super) fn guest_state(guest: &GuestFacts, way: Way) -> Check {
    let id = "guest-state";
    match (guest.state(), way) {
        (LibvirtState::ShutOff, _) => return passed(id, "shut off, moves so"),
        (LibvirtState::Running, Way::ShutDown) if guest.persistent => {
            return passed(id, "running, is shut down first and started at the destination");
        }
        (LibvirtState::Running, Way::ShutDown) => {
            let remedy = "move it live, or give it a definition: `virsh define`";
            return failed(id, "transient: it would be gone once it is shut down", remedy);
        }
        _ => {}
    }
    let state = guest
        .state()
        .as_str_name()
        .trim_start_matches("LIBVIRT_STATE_")
        .to_lowercase();
    failed(
        id,
        format!("it is not shut off but {}", state.replace('_', " ")),
        "shut it down (`--shutdown` does so with a guest that runs), or move it live: without `--offline`",
    )
}

/// What ties a running guest to its host ties one that is shut off only by what lies on that host.
pub(super) fn devices(guest: &GuestFacts, checks: Vec<Check>) -> Vec<Check> {
    let of = |check: Check| {
        if check.result() != CheckResult::Failed {
            return check;
        }
        // What an agent does not tell apart counts as what it was before.
        let with_data = guest.ties.iter().find(|tie| tie.holds_data && tie.check_id == check.id);
        match with_data {
            Some(tie) => failed(&check.id, format!("{}: its state is not copied", tie.what), "detach it"),
            None if check.id == "tpm" => failed(
                &check.id,
                format!("{}: its state is not copied", check.found),
                "detach it",
            ),
            None => passed(
                &check.id,
                format!("{}: the destination needs it when the guest is started", check.found),
            ),
        }
    };
    checks.into_iter().map(of).collect()
}

/// What tools that make backups leave is known to one libvirt alone, which does not forget the guest with it.
pub(super) fn checkpoints(guest: &GuestFacts) -> Check {
    let id = "checkpoints";
    match guest.checkpoints {
        0 => passed(id, "none"),
        count => failed(
            id,
            format!("libvirt knows {count} checkpoints of it, on this host alone"),
            "end the chain of incremental backups: start the guest, `virsh checkpoint-delete GUEST NAME --children`, and \
             shut it down; or only have libvirt forget them: the same with `--metadata`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use drover_proto::agent::v1::Blocker;

    use super::*;
    use crate::phases::checks::of_guest;

    fn guest(check_id: &str, what: &str, holds_data: bool) -> GuestFacts {
        GuestFacts {
            state: LibvirtState::ShutOff.into(),
            ties: vec![Blocker {
                check_id: check_id.to_owned(),
                what: what.to_owned(),
                holds_data,
            }],
            ..GuestFacts::default()
        }
    }

    fn failing(guest: &GuestFacts) -> Vec<String> {
        let checks = of_guest(guest, Way::Offline);
        let failed = checks.iter().filter(|check| check.result() == CheckResult::Failed);
        failed.map(|check| check.id.clone()).collect()
    }

    #[test]
    fn what_only_a_running_guest_cannot_leave_is_no_obstacle() {
        for (check, what) in [
            ("devices", "its CPU has invtsc"),
            ("host-devices", "PCI device"),
            ("shared-folders", "/srv"),
        ] {
            assert_eq!(failing(&guest(check, what, false)), [""; 0], "{check}");
        }
        assert_eq!(failing(&guest("devices", "it has an NVDIMM", true)), ["devices"]);
        assert_eq!(
            failing(&guest("tpm", "it has a TPM", false)),
            ["tpm"],
            "an older agent's"
        );
        let along = |holds_data| GuestFacts {
            tpm_state: "/swtpm/tpm2-00.permall".to_owned(),
            ..guest("tpm", "it has a TPM", holds_data)
        };
        assert_eq!(failing(&along(false)), [""; 0]);
        assert_eq!(failing(&along(true)), ["tpm"], "another one of the host's");
    }

    #[test]
    fn a_guest_with_checkpoints_is_refused_only_where_it_moves_shut_off() {
        let with = GuestFacts {
            checkpoints: 2,
            ..guest("", "", false)
        };
        let with = GuestFacts {
            ties: Vec::new(),
            ..with
        };
        assert_eq!(failing(&with), ["checkpoints"]);
        let live = of_guest(&with, Way::Live);
        assert!(live.iter().all(|check| check.id != "checkpoints"));
    }
}
