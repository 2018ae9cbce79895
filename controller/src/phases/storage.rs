//! Proof that the guest's disks are the same ones at the destination. What cannot be proved is refused.
//!
//! A network disk is the same where its definition is. A file is the same where a file written beside it by one side
//! is read by the other, and the image has the same inode and size there. Probe files are removed in any case.

use std::path::Path;

use drover_proto::agent::v1::{
    DiskFacts, GuestFacts, ReadStorageProbesRequest, RemoveStorageProbesRequest, StorageProbe, StorageProbeResult,
    WriteStorageProbesRequest,
};
use drover_proto::failure::Failure;
use drover_proto::v1::Check;

use super::checks::{failed, passed};
use super::overrides;
use crate::agents::Agent;

const ID: &str = "storage-shared";

const REMEDY: &str = "put the disks on storage that both hosts have at the same path, in folders that the user of the \
                      agents may write to (a group or an ACL)";

/// So often the removal of probe files is tried.
const REMOVALS: u32 = 3;

/// How a place of storage can be proved to be shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// Nothing is there.
    NotNeeded,
    /// The same definition means the same storage.
    ByDefinition,
    ByProbe,
    None(&'static str),
}

/// One check over all disks. `there` are the disks as they will be at the destination.
pub(super) async fn check(
    guest: &GuestFacts,
    there: &[DiskFacts],
    source: &Agent,
    destination: &Agent,
) -> Result<Check, Failure> {
    if let Some(problem) = overrides::other_kind(&guest.disks, there) {
        return Ok(failed(ID, problem, REMEDY));
    }
    let by_probe = guest
        .disks
        .iter()
        .any(|disk| places(disk).any(|(_, proof)| proof == Proof::ByProbe));
    let results = if by_probe {
        probe(guest, there, source, destination).await?
    } else {
        Vec::new()
    };
    Ok(judge(&guest.disks, &results))
}

/// Writes on one side, reads on the other, removes.
async fn probe(
    guest: &GuestFacts,
    there: &[DiskFacts],
    source: &Agent,
    destination: &Agent,
) -> Result<Vec<StorageProbeResult>, Failure> {
    let request = WriteStorageProbesRequest {
        fence: source.fence()?,
        guest_uuid: guest.guest_uuid.clone(),
    };
    let written = source.write_storage_probes(request).await?;
    let read = destination
        .read_storage_probes(ReadStorageProbesRequest {
            probes: overrides::where_they_lie(written.probes.clone(), &guest.disks, there),
        })
        .await;
    remove(source, written.probes).await?;
    let mut results = read?.results;
    results.extend(written.failures);
    Ok(results)
}

async fn remove(source: &Agent, probes: Vec<StorageProbe>) -> Result<(), Failure> {
    let mut tries = 0;
    loop {
        tries += 1;
        let request = RemoveStorageProbesRequest {
            fence: source.fence()?,
            probes: probes.clone(),
        };
        match source.remove_storage_probes(request).await {
            Ok(_) => return Ok(()),
            Err(failure) if tries >= REMOVALS => return Err(failure),
            Err(_) => {}
        }
    }
}

/// The image of a disk and all that lies beneath it.
fn places(disk: &DiskFacts) -> impl Iterator<Item = (&str, Proof)> {
    let top = (disk.source.as_str(), proof(&disk.source_type, &disk.source));
    let beneath = disk.backing.iter().map(|path| {
        let is_address = path.contains(':');
        let source_type = if path.starts_with('/') {
            "file"
        } else if is_address {
            "network"
        } else {
            ""
        };
        (path.as_str(), proof(source_type, path))
    });
    std::iter::once(top).chain(beneath)
}

fn proof(source_type: &str, source: &str) -> Proof {
    match source_type {
        _ if source.is_empty() => Proof::NotNeeded,
        "file" => Proof::ByProbe,
        "network" if is_local(source) => Proof::None("its address is local to each host"),
        "network" => Proof::ByDefinition,
        "block" => Proof::None("sharing of block devices cannot be proved by this version"),
        _ => Proof::None("sharing of this kind of storage cannot be proved"),
    }
}

/// An address that means another machine on every host.
fn is_local(source: &str) -> bool {
    let lower = source.to_ascii_lowercase();
    ["localhost", "//127.", "//[::1]", "unix:", "+unix", "socket="]
        .iter()
        .any(|word| lower.contains(word))
}

fn judge(disks: &[DiskFacts], results: &[StorageProbeResult]) -> Check {
    let problems: Vec<String> = disks.iter().filter_map(|disk| problem(disk, results)).collect();
    if problems.is_empty() {
        let targets: Vec<&str> = disks.iter().map(|disk| disk.target.as_str()).collect();
        let found = if targets.is_empty() {
            "no disks".to_owned()
        } else {
            format!("{} shared", targets.join(", "))
        };
        return passed(ID, found);
    }
    failed(ID, problems.join("; "), REMEDY)
}

fn problem(disk: &DiskFacts, results: &[StorageProbeResult]) -> Option<String> {
    places(disk).find_map(|(place, proof)| {
        let why = match proof {
            Proof::NotNeeded | Proof::ByDefinition => return None,
            Proof::None(why) => why.to_owned(),
            Proof::ByProbe => not_proved(place, results)?,
        };
        Some(format!("{} ({place}): {why}", disk.target))
    })
}

/// Why a file is not proved to be shared; none where it is.
fn not_proved(image: &str, results: &[StorageProbeResult]) -> Option<String> {
    match results.iter().find(|result| result.image_path == image) {
        Some(result) if result.shared => None,
        Some(result) if result.problem.is_empty() => Some("the destination has another file there".to_owned()),
        Some(result) => Some(result.problem.clone()),
        // A file beneath the image was not probed by itself: a proved folder proves what lies in it.
        None if folder_is_proved(image, results) => None,
        None => Some("it was not probed".to_owned()),
    }
}

fn folder_is_proved(image: &str, results: &[StorageProbeResult]) -> bool {
    let folder = Path::new(image).parent();
    results
        .iter()
        .any(|result| result.shared && Path::new(&result.image_path).parent() == folder)
}

#[cfg(test)]
mod tests {
    use drover_proto::v1::CheckResult;

    use super::*;

    fn disk(source_type: &str, source: &str) -> DiskFacts {
        DiskFacts {
            target: "vda".to_owned(),
            source_type: source_type.to_owned(),
            source: source.to_owned(),
            ..DiskFacts::default()
        }
    }

    fn result(path: &str, shared: bool) -> StorageProbeResult {
        StorageProbeResult {
            image_path: path.to_owned(),
            shared,
            problem: String::new(),
        }
    }

    fn is_shared(disk: DiskFacts, results: &[StorageProbeResult]) -> bool {
        judge(&[disk], results).result() == CheckResult::Passed
    }

    #[test]
    fn a_file_is_shared_only_where_its_probe_was_read() {
        assert!(is_shared(disk("file", "/d/a"), &[result("/d/a", true)]));
        assert!(!is_shared(disk("file", "/d/a"), &[result("/d/a", false)]));
        assert!(!is_shared(disk("file", "/d/a"), &[]));
    }

    #[test]
    fn a_read_only_image_has_to_be_proved_too() {
        let cdrom = DiskFacts {
            read_only: true,
            ..disk("file", "/iso/a.iso")
        };
        assert!(!is_shared(cdrom, &[]));
    }

    #[test]
    fn an_empty_drive_is_nothing_to_prove() {
        assert!(is_shared(disk("file", ""), &[]));
    }

    #[test]
    fn a_backing_file_has_to_be_proved_itself_or_by_its_folder() {
        let layered = |backing: &str| DiskFacts {
            backing: vec![backing.to_owned()],
            ..disk("file", "/d/a")
        };
        assert!(is_shared(layered("/d/base"), &[result("/d/a", true)]));
        assert!(!is_shared(layered("/local/base"), &[result("/d/a", true)]));
        assert!(is_shared(
            layered("/x/base"),
            &[result("/d/a", true), result("/x/base", true)]
        ));
        assert!(!is_shared(
            layered("/d/base"),
            &[result("/d/a", true), result("/d/base", false)]
        ));
        assert!(is_shared(layered("nbd://10.0.0.5/base"), &[result("/d/a", true)]));
        assert!(
            !is_shared(layered("base"), &[result("/d/a", true)]),
            "nobody knows where that is"
        );
    }

    #[test]
    fn a_network_disk_is_shared_by_its_definition_unless_it_is_local() {
        assert!(is_shared(disk("network", "nfs://10.0.0.5/export/a.raw"), &[]));
        assert!(is_shared(disk("network", "rbd:pool/image@mon1:6789"), &[]));
        assert!(!is_shared(disk("network", "nbd://localhost:10809/a"), &[]));
        assert!(!is_shared(disk("network", "iscsi://127.0.0.1/iqn"), &[]));
        assert!(!is_shared(disk("network", "nbd+unix:///run/nbd.sock"), &[]));
    }

    #[test]
    fn what_cannot_be_proved_is_refused() {
        for source_type in ["block", "volume", "dir", "vhostuser", "nvme", ""] {
            assert!(
                !is_shared(disk(source_type, "/dev/sda"), &[result("/dev/sda", true)]),
                "{source_type}"
            );
        }
    }
}
