//! What is proved of the guest's disks, from what both agents say. What cannot be proved is refused. Pure.
//!
//! A network disk is the same where its definition is. A file is the same where a file written beside it by one side
//! is read by the other, and the image has the same inode and size there. A block device is the same where the
//! hardware beneath it has the same WWN or serial. An image that the guest only reads may be another file of the same
//! content.

use drover_proto::agent::v1::{DiskFacts, StorageProbeResult};
use drover_proto::v1::Check;

use super::checks::{failed, passed};

/// Something is at the same path on both hosts.
pub(in crate::phases) const PATH: &str = "storage-path";

/// It is the same one.
pub(in crate::phases) const SHARED: &str = "storage-shared";

const REMEDY: &str = "put the disks on storage that both hosts have at the same path, in folders that the user of the \
                      agents may write to (a group or an ACL)";

const PATH_REMEDY: &str = "mount the storage at the same path on both hosts; eject or detach what is not there";

/// How a place of storage can be proved to be shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::phases) enum Proof {
    /// Nothing is there.
    NotNeeded,
    /// The same definition means the same storage.
    ByDefinition,
    /// The agents look at it.
    ByLooking,
    None(&'static str),
}

/// What cannot be the same storage at all.
pub(super) fn refused(problem: String) -> Check {
    failed(SHARED, problem, REMEDY)
}

/// Where a disk, or a layer beneath it, lies.
pub(in crate::phases) struct Place<'a> {
    pub(in crate::phases) path: &'a str,
    pub(in crate::phases) proof: Proof,
    /// The guest never writes to it.
    read_only: bool,
}

/// Whether the agents have to look at anything.
pub(super) fn needs_probes(disks: &[DiskFacts]) -> bool {
    disks
        .iter()
        .any(|disk| places(disk).iter().any(|place| place.proof == Proof::ByLooking))
}

/// Two checks over all disks. `results` are the destination's, `failures` the source's own.
pub(super) fn judge(
    disks: &[DiskFacts],
    results: &[StorageProbeResult],
    failures: &[StorageProbeResult],
) -> Vec<Check> {
    vec![same_path(disks, results), shared(disks, results, failures)]
}

/// The image of a disk and all that lies beneath it.
pub(in crate::phases) fn places(disk: &DiskFacts) -> Vec<Place<'_>> {
    let place = |source_type: &str, path, read_only| Place {
        path,
        proof: proof(source_type, path),
        read_only,
    };
    let mut places = vec![place(&disk.source_type, disk.source.as_str(), disk.read_only)];
    for (at, path) in disk.backing.iter().enumerate() {
        let source_type = disk.backing_types.get(at).map(String::as_str).unwrap_or_default();
        places.push(place(source_type, path.as_str(), false));
    }
    places
}

fn proof(source_type: &str, source: &str) -> Proof {
    match source_type {
        _ if source.is_empty() => Proof::NotNeeded,
        "file" | "block" => Proof::ByLooking,
        "network" if is_local(source) => Proof::None("its address is local to each host"),
        "network" => Proof::ByDefinition,
        _ => Proof::None("sharing of this kind of storage cannot be proved"),
    }
}

/// An address that means another machine on every host.
fn is_local(source: &str) -> bool {
    let lower = source.to_ascii_lowercase();
    [
        "localhost",
        "//127.",
        ",127.",
        "//[::1]",
        "//::1",
        "unix:",
        "+unix",
        "socket=",
    ]
    .iter()
    .any(|word| lower.contains(word))
}

fn same_path(disks: &[DiskFacts], results: &[StorageProbeResult]) -> Check {
    let mut there = Vec::new();
    let mut absent = Vec::new();
    for disk in disks {
        for place in places(disk).iter().filter(|place| place.proof == Proof::ByLooking) {
            match results.iter().find(|result| result.image_path == place.path) {
                Some(result) if !result.present => absent.push(format!("{} ({})", disk.target, place.path)),
                Some(_) => there.push(place.path),
                // Not looked for: the other check says why.
                None => {}
            }
        }
    }
    if absent.is_empty() {
        let found = if there.is_empty() {
            "no path was looked for".to_owned()
        } else {
            there.join(", ")
        };
        return passed(PATH, found);
    }
    let found = format!("the destination's agent does not see {}", absent.join(", "));
    failed(PATH, found, PATH_REMEDY)
}

fn shared(disks: &[DiskFacts], results: &[StorageProbeResult], failures: &[StorageProbeResult]) -> Check {
    let mut problems = Vec::new();
    let mut copies = Vec::new();
    for disk in disks {
        for place in places(disk) {
            match prove(&place, results, failures) {
                Ok(Proved::Same) => {}
                Ok(Proved::Copy) => copies.push(disk.target.as_str()),
                Err(why) => problems.push(format!("{} ({}): {why}", disk.target, place.path)),
            }
        }
    }
    if !problems.is_empty() {
        return failed(SHARED, problems.join("; "), REMEDY);
    }
    let targets: Vec<&str> = disks.iter().map(|disk| disk.target.as_str()).collect();
    let same: Vec<&str> = targets
        .iter()
        .copied()
        .filter(|target| !copies.contains(target))
        .collect();
    let mut found = Vec::new();
    if !same.is_empty() {
        found.push(format!("{} shared", same.join(", ")));
    }
    if !copies.is_empty() {
        found.push(format!("{} read-only with the same content", copies.join(", ")));
    }
    let found = if found.is_empty() {
        "no disks".to_owned()
    } else {
        found.join("; ")
    };
    passed(SHARED, found)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::phases) enum Proved {
    Same,
    /// Another file, which nobody writes to, with the same content.
    Copy,
}

/// What both agents said.
#[derive(Clone, Copy)]
pub(super) struct Said<'a> {
    /// The destination's.
    pub(super) results: &'a [StorageProbeResult],
    /// The source's own.
    pub(super) failures: &'a [StorageProbeResult],
}

/// That a disk, with all that lies beneath it, is the same on both hosts, or why it is not proved to be.
pub(super) fn prove_disk(disk: &DiskFacts, said: Said<'_>) -> Result<Proved, String> {
    let mut proved = Proved::Same;
    for place in places(disk) {
        if prove(&place, said.results, said.failures)? == Proved::Copy {
            proved = Proved::Copy;
        }
    }
    Ok(proved)
}

/// That a place is the same on both hosts, or why it is not proved to be.
pub(in crate::phases) fn prove(
    place: &Place<'_>,
    results: &[StorageProbeResult],
    failures: &[StorageProbeResult],
) -> Result<Proved, String> {
    match place.proof {
        Proof::NotNeeded | Proof::ByDefinition => return Ok(Proved::Same),
        Proof::None(why) => return Err(why.to_owned()),
        Proof::ByLooking => {}
    }
    let of_place = |said: &&StorageProbeResult| said.image_path == place.path;
    let Some(result) = results.iter().find(of_place) else {
        let problem = failures.iter().find(of_place).map(|failure| failure.problem.clone());
        return Err(problem.unwrap_or_else(|| "it was not looked at".to_owned()));
    };
    match result {
        _ if result.shared => Ok(Proved::Same),
        _ if result.same_content && place.read_only => Ok(Proved::Copy),
        _ if result.problem.is_empty() => Err("the destination has another one there".to_owned()),
        _ => Err(result.problem.clone()),
    }
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
            present: true,
            ..StorageProbeResult::default()
        }
    }

    fn is_shared(disk: DiskFacts, results: &[StorageProbeResult]) -> bool {
        let [path, shared] = judge(&[disk], results, &[]).try_into().unwrap();
        assert_eq!((path.id.as_str(), shared.id.as_str()), (PATH, SHARED));
        shared.result() == CheckResult::Passed
    }

    #[test]
    fn a_file_or_device_is_shared_only_where_it_was_found_so() {
        for source_type in ["file", "block"] {
            assert!(needs_probes(&[disk(source_type, "/d/a")]));
            assert!(is_shared(disk(source_type, "/d/a"), &[result("/d/a", true)]));
            assert!(!is_shared(disk(source_type, "/d/a"), &[result("/d/a", false)]));
            assert!(!is_shared(disk(source_type, "/d/a"), &[]));
        }
    }

    #[test]
    fn a_path_that_is_not_there_fails_the_check_of_paths() {
        let path = |present| {
            let result = StorageProbeResult {
                present,
                ..result("/d/a", false)
            };
            same_path(&[disk("file", "/d/a")], &[result])
        };
        assert_eq!(path(true).result(), CheckResult::Passed);
        let absent = path(false);
        assert_eq!(absent.result(), CheckResult::Failed);
        assert!(absent.found.contains("vda (/d/a)"), "{}", absent.found);
        assert!(!absent.remedy.is_empty());
    }

    #[test]
    fn what_the_source_could_not_show_is_said() {
        let failure = StorageProbeResult {
            problem: "no WWN".to_owned(),
            ..result("/dev/loop0", false)
        };
        let checks = judge(&[disk("block", "/dev/loop0")], &[], &[failure]);
        assert_eq!(checks[1].result(), CheckResult::Failed);
        assert!(checks[1].found.contains("no WWN"), "{}", checks[1].found);
    }

    #[test]
    fn only_a_read_only_image_may_be_a_copy() {
        let copy = StorageProbeResult {
            same_content: true,
            ..result("/iso/a.iso", false)
        };
        let cdrom = DiskFacts {
            read_only: true,
            ..disk("file", "/iso/a.iso")
        };
        assert!(!is_shared(cdrom.clone(), &[]));
        assert!(is_shared(cdrom, std::slice::from_ref(&copy)));
        assert!(!is_shared(disk("file", "/iso/a.iso"), &[copy]));
    }

    #[test]
    fn an_empty_drive_is_nothing_to_prove() {
        assert!(is_shared(disk("file", ""), &[]));
        assert!(!needs_probes(&[disk("file", "")]));
    }

    #[test]
    fn every_layer_beneath_an_image_has_to_be_proved_itself() {
        let layered = |source_type: &str, backing: &str| DiskFacts {
            backing: vec![backing.to_owned()],
            backing_types: vec![source_type.to_owned()],
            ..disk("file", "/d/a")
        };
        let top = result("/d/a", true);
        let both = [top.clone(), result("/d/base", true)];
        assert!(is_shared(layered("file", "/d/base"), &both));
        assert!(!is_shared(layered("file", "/d/base"), std::slice::from_ref(&top)));
        let other = [top.clone(), result("/d/base", false)];
        assert!(!is_shared(layered("file", "/d/base"), &other));
        let top = std::slice::from_ref(&top);
        assert!(is_shared(layered("network", "nbd://10.0.0.5/base"), top));
        assert!(!is_shared(layered("", "base"), top), "nobody knows where that is");
        // The layer of a read-only disk could be written to by another one.
        let copy = StorageProbeResult {
            same_content: true,
            ..result("/d/base", false)
        };
        let cdrom = DiskFacts {
            read_only: true,
            ..layered("file", "/d/base")
        };
        assert!(!is_shared(cdrom, &[result("/d/a", true), copy]));
    }

    #[test]
    fn a_network_disk_is_shared_by_its_definition_unless_it_is_local() {
        assert!(is_shared(disk("network", "nfs://10.0.0.5/export/a.raw"), &[]));
        assert!(is_shared(disk("network", "rbd://mon1:6789,mon2:6789/pool/image"), &[]));
        assert!(!needs_probes(&[disk("network", "rbd://a/b")]));
        for local in [
            "nbd://localhost:10809/a",
            "iscsi://127.0.0.1/iqn",
            "rbd://10.0.0.1,127.0.0.1/a",
            "nbd+unix:///run/nbd.sock",
            "nbd://unix:/run/nbd.sock/",
            "nbd://[::1]:10809/a",
        ] {
            assert!(!is_shared(disk("network", local), &[]), "{local}");
        }
    }

    #[test]
    fn what_cannot_be_proved_is_refused() {
        for source_type in ["volume", "dir", "vhostuser", "nvme", ""] {
            assert!(
                !is_shared(disk(source_type, "/dev/sda"), &[result("/dev/sda", true)]),
                "{source_type}"
            );
        }
    }
}
