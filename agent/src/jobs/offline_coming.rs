//! Destination, a guest that is shut off: what its definition says of the files that come. Pure.
//!
//! A guest that is started here opens what its definition and the heads of its images name. Nothing beneath an image
//! that came may be among it: that would be some other file of this host.

use std::path::{Path, PathBuf};

use drover_proto::failure::{Failure, Reason};

use crate::guest_xml::{self, Disk};
use crate::offline::FileSpec;

/// Refuses a definition in which an image that comes lies on other files.
pub(super) fn refuse_layers(definition: &str, files: &[FileSpec]) -> Result<(), Failure> {
    let layered = |disk: &Disk| comes(files, disk) && !disk.backing.is_empty();
    let Some(disk) = disks(definition)?.into_iter().find(layered) else {
        return Ok(());
    };
    let chain: Vec<&str> = disk.backing.iter().map(|layer| layer.source.as_str()).collect();
    let message = format!(
        "{} would lie on other files of this host ({})",
        disk.source,
        chain.join(", ")
    );
    Err(Failure::new(Reason::StorageUnusable, message).with_field("inactive_xml", "has a backing chain"))
}

/// Paths of those that are opened as qcow2: their heads may name other files.
pub(super) fn qcow2(definition: &str, files: &[FileSpec]) -> Result<Vec<PathBuf>, Failure> {
    let wanted = |disk: &Disk| disk.format == "qcow2" && comes(files, disk);
    let found = disks(definition)?.into_iter().filter(wanted);
    Ok(found.map(|disk| PathBuf::from(disk.source)).collect())
}

/// Those that the definition has as block devices overwrite the ones at their paths.
pub(super) fn mark_devices(definition: &str, mut files: Vec<FileSpec>) -> Result<Vec<FileSpec>, Failure> {
    let disks = disks(definition)?;
    for file in &mut files {
        let is_it = |disk: &Disk| disk.source_type == "block" && Path::new(&disk.source) == file.path;
        file.block_device = disks.iter().any(is_it);
    }
    Ok(files)
}

fn comes(files: &[FileSpec], disk: &Disk) -> bool {
    files.iter().any(|file| file.path == Path::new(&disk.source))
}

fn disks(definition: &str) -> Result<Vec<Disk>, Failure> {
    let unreadable = |error: guest_xml::Unreadable| Failure::invalid("inactive_xml", error.to_string());
    guest_xml::read(definition).map(|shape| shape.disks).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: &str = "<domain><devices>\
        <disk type='file'><driver type='qcow2'/><source file='/images/a.qcow2'/><target dev='vda'/></disk>\
        <disk type='file'><driver type='raw'/><source file='/images/b.raw'/><target dev='vdb'/></disk>\
        <disk type='file'><driver type='qcow2'/><source file='/shared/c.qcow2'/>\
        <backingStore type='file'><source file='/shared/base.qcow2'/></backingStore><target dev='vdc'/></disk>\
        </devices></domain>";

    fn file(path: &str) -> FileSpec {
        FileSpec {
            path: path.into(),
            size: 1,
            allocated: 1,
            mode: 0o600,
            block_device: false,
        }
    }

    #[test]
    fn what_comes_lies_on_nothing() {
        let files = [file("/images/a.qcow2"), file("/images/b.raw"), file("/nvram/a.fd")];
        refuse_layers(GUEST, &files).unwrap();
        assert_eq!(qcow2(GUEST, &files).unwrap(), [Path::new("/images/a.qcow2")]);
        let shared_too = [file("/shared/c.qcow2")];
        let refused = refuse_layers(GUEST, &shared_too).unwrap_err();
        assert!(refused.message.contains("/shared/base.qcow2"), "{}", refused.message);
        assert!(qcow2("<domain", &files).is_err());
    }

    #[test]
    fn what_the_definition_has_as_a_device_is_one() {
        let with_device = GUEST.replace(
            "</devices>",
            "<disk type='block'><source dev='/dev/vg/d'/><target dev='vdd'/></disk></devices>",
        );
        let marked = mark_devices(&with_device, vec![file("/images/b.raw"), file("/dev/vg/d")]).unwrap();
        let devices: Vec<bool> = marked.iter().map(|file| file.block_device).collect();
        assert_eq!(devices, [false, true]);
        assert!(mark_devices("<domain", Vec::new()).is_err());
    }
}
