//! A guest that is shut off: whether it moves so, what is asked of it, and which of its images are copied. Pure.
//!
//! An image that is proved to be on both hosts is left alone; any other one is copied to the same path, where nothing
//! may be yet.

use drover_proto::agent::v1::{DiskFacts, GuestFacts, LibvirtState, MigrationStatus, OfflineOrder, StorageProbeResult};
use drover_proto::v1::{Check, CheckResult, MigrationMode, MigrationPolicy, OfflinePlan, StoragePolicy};

use super::checks::{failed, passed};
use super::storage::Written;
use super::storage::proof::{PATH, Proof, SHARED, places, prove};
use crate::seen;
use crate::store::Record;

/// What happens to the images.
const COPY: &str = "storage-copy";

/// How a guest moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// With its memory.
    Live,
    /// Shut off, with its definition and the images that the destination does not have.
    Offline,
}

impl Way {
    /// What the caller wants of a guest in this state.
    pub(super) fn of(policy: &MigrationPolicy, guest: &GuestFacts) -> Self {
        match policy.mode() {
            MigrationMode::Offline => Self::Offline,
            MigrationMode::Auto if guest.state() == LibvirtState::ShutOff => Self::Offline,
            MigrationMode::Auto | MigrationMode::Live | MigrationMode::Unspecified => Self::Live,
        }
    }

    /// What the destination has to offer: one that is not started needs no memory, and takes the CPU of its new host.
    pub(super) fn needs(self, guest: GuestFacts) -> GuestFacts {
        match self {
            Self::Live => guest,
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
        delete_source: storage.is_some_and(|storage| storage.delete_source),
    })
}

/// Whether the guest is there as it should be, also at a source that refused to begin and so has no journal of it.
pub(super) fn lives(record: &Record, status: &MigrationStatus) -> bool {
    let moves_so = record.details.offline_plan.is_some();
    seen::lives(status) || (moves_so && status.guest.is_some())
}

pub(super) fn guest_state(guest: &GuestFacts) -> Check {
    let id = "guest-state";
    if guest.state() == LibvirtState::ShutOff {
        return passed(id, "shut off, moves so");
    }
    let state = guest
        .state()
        .as_str_name()
        .trim_start_matches("LIBVIRT_STATE_")
        .to_lowercase();
    failed(
        id,
        format!("it is not shut off but {}", state.replace('_', " ")),
        "shut it down, or move it live: without `--offline`",
    )
}

/// What ties a running guest to its host ties one that is shut off only by what lies on that host.
pub(super) fn devices(checks: Vec<Check>) -> Vec<Check> {
    let of = |check: Check| match check.id.as_str() {
        "host-devices" | "shared-folders" if check.result() == CheckResult::Failed => passed(
            &check.id,
            format!("{}: the destination needs it when the guest is started", check.found),
        ),
        "tpm" if check.result() == CheckResult::Failed => failed(
            &check.id,
            format!("{}: its state is not copied", check.found),
            "detach it",
        ),
        _ => check,
    };
    checks.into_iter().map(of).collect()
}

/// Which images are copied, and whether they can be.
pub(super) fn plan(
    disks: &[DiskFacts],
    there: &[DiskFacts],
    policy: &StoragePolicy,
    results: &[StorageProbeResult],
    written: &Written,
) -> (Vec<Check>, OfflinePlan) {
    let (mut copied, mut shared, mut problems, mut taken) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut plan = OfflinePlan::default();
    // Without a word about disks all are copied that have to be.
    let may_copy =
        |target: &String| policy.copy_unshared || policy.copy_disks.is_empty() || policy.copy_disks.contains(target);
    for disk in disks {
        for place in places(disk) {
            let Err(why) = prove(&place, results, &written.failures) else {
                shared.push(disk.target.clone());
                continue;
            };
            let named = format!("{} ({})", disk.target, place.path);
            let is_file = disk.source_type == "file" && place.path == disk.source;
            let looked_at = results.iter().find(|result| result.image_path == place.path);
            match looked_at {
                Some(_) if place.proof != Proof::ByLooking || !is_file => {
                    problems.push(format!("{named} is not shared and is no image file: {why}"));
                }
                Some(_) if is_elsewhere(disk, there) => {
                    problems.push(format!("{named} is to be elsewhere at the destination (--disk), and only files that keep their path are copied"));
                }
                Some(_) if !may_copy(&disk.target) => problems.push(format!("{named} is not shared: {why}")),
                Some(result) if result.present => taken.push(format!("{named}: {why}")),
                Some(_) => {
                    let probe = written.probes.iter().find(|probe| probe.image_path == place.path);
                    let size = probe.map_or(0, |probe| probe.image_size_bytes);
                    copied.push(format!("{named}, {} MiB", size.div_ceil(1 << 20)));
                    plan.copied_images.push(place.path.to_owned());
                }
                None => problems.push(format!("{named}: {why}")),
            }
        }
    }
    (checks(&shared, &copied, &problems, &taken), plan)
}

/// An override gives the disk another source.
fn is_elsewhere(disk: &DiskFacts, there: &[DiskFacts]) -> bool {
    let same = |other: &&DiskFacts| other.target == disk.target;
    there.iter().find(same).is_none_or(|other| other.source != disk.source)
}

fn checks(shared: &[String], copied: &[String], problems: &[String], taken: &[String]) -> Vec<Check> {
    let or_none = |found: &[String]| {
        if found.is_empty() {
            "none".to_owned()
        } else {
            found.join("; ")
        }
    };
    let path = if taken.is_empty() {
        passed(PATH, "nothing is in the way at the destination")
    } else {
        let found = format!(
            "not proved to be shared, and the destination has a file there: {}",
            taken.join("; ")
        );
        let remedy = "if it is the guest's own disk on shared storage, leave it and see why it could not be proved to be \
                      the same; if it is a leftover, move it away";
        failed(PATH, found, remedy)
    };
    let copy = if problems.is_empty() {
        passed(COPY, or_none(copied))
    } else {
        let remedy =
            "put it on shared storage, or copy it: --copy-disks names it, or is left out; only image files are copied";
        failed(COPY, problems.join("; "), remedy)
    };
    vec![path, passed(SHARED, or_none(shared)), copy]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(result: StorageProbeResult) -> (Vec<Check>, OfflinePlan) {
        let disk = DiskFacts {
            target: "vda".to_owned(),
            source_type: "file".to_owned(),
            source: "/d/a".to_owned(),
            ..DiskFacts::default()
        };
        let disks = [disk];
        plan(
            &disks,
            &disks,
            &StoragePolicy::default(),
            &[result],
            &Written::default(),
        )
    }

    #[test]
    fn what_may_be_the_guests_own_disk_is_not_said_to_be_anothers() {
        let (checks, plan) = looked(StorageProbeResult {
            image_path: "/d/a".to_owned(),
            present: true,
            problem: "inode 5 instead of 7".to_owned(),
            ..StorageProbeResult::default()
        });
        let path = checks.iter().find(|check| check.id == PATH).unwrap();
        assert_eq!(path.result(), CheckResult::Failed);
        assert!(path.found.contains("inode 5 instead of 7"), "{}", path.found);
        assert!(path.remedy.contains("leave it"), "{}", path.remedy);
        assert!(plan.copied_images.is_empty());
    }

    #[test]
    fn what_the_destination_does_not_have_is_copied() {
        let (checks, plan) = looked(StorageProbeResult {
            image_path: "/d/a".to_owned(),
            problem: "absent".to_owned(),
            ..StorageProbeResult::default()
        });
        assert!(
            checks.iter().all(|check| check.result() == CheckResult::Passed),
            "{checks:?}"
        );
        assert_eq!(plan.copied_images, ["/d/a"]);
    }
}
