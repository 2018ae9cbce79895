//! Room that arriving migrations will still take: what is free is not free for the next one. All functions block.
//!
//! Promise: two guests that each fit alone, and not together, are not both let in; and some room stays for those that
//! run here, whose sparse images grow.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use drover_proto::ids::MigrationId;

use crate::images::device;
use crate::images::make::first_name;
use crate::journal::{DestinationPart, DestinationState, Part, Record};
use crate::offline::arriving::partial_name;
use crate::space;
use crate::storage_directories::StorageDirectories;

/// So much of a file system is left to others: the smaller of this many bytes and this part of it.
const LEFT_BYTES: u64 = 1 << 30;
const LEFT_PART: u64 = 50;

/// One file that is to be filled.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Promise {
    folder: PathBuf,
    /// Under which names it may lie.
    names: [PathBuf; 2],
    /// What it takes once it is whole.
    bytes: u64,
}

/// All files that are to be filled on this host, and all block devices that are to be overwritten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Promised {
    files: Vec<Promise>,
    devices: Vec<PathBuf>,
}

impl Promised {
    /// Of all migrations that may still bring something, but for one.
    pub fn of(records: &[Arc<Record>], but: Option<MigrationId>) -> Self {
        let arriving = |record: &&Arc<Record>| {
            record.closed.is_none() && record.verdict().is_none() && Some(record.migration) != but
        };
        let mut all = Self::default();
        for record in records.iter().filter(arriving) {
            match &record.part {
                Part::Destination(part) if fills(part.state) => all.add(part, record.migration),
                Part::Destination(_) | Part::Source(_) | Part::Nothing => {}
            }
        }
        all
    }

    /// Whether a block device is to be overwritten, whatever its path.
    pub fn has_device(&self, number: u64) -> bool {
        self.devices.iter().any(|path| device::number(path) == Some(number))
    }

    fn add(&mut self, part: &DestinationPart, migration: MigrationId) {
        let promise = |first: PathBuf, path: &Path, bytes| Promise {
            folder: path.parent().unwrap_or(path).to_owned(),
            names: [first, path.to_owned()],
            bytes,
        };
        for made in &part.images {
            let image = &made.image;
            if image.block_device {
                self.devices.push(image.path.clone());
            } else {
                let first = first_name(image, migration);
                self.files.push(promise(first, &image.path, image.allocated));
            }
        }
        for file in part.offline.iter().flat_map(|coming| &coming.files) {
            let path = &file.spec.path;
            if file.spec.block_device {
                self.devices.push(path.clone());
            } else {
                let first = partial_name(path, migration);
                self.files.push(promise(first, path, file.spec.allocated));
            }
        }
    }

    /// What of a folder's file system may be taken now, bytes; none where nobody can say.
    pub fn free(&self, folder: &Path, allowed: &StorageDirectories) -> Option<u64> {
        let file_system = space::file_system(folder)?;
        let same = |promise: &&Promise| space::file_system(&allowed.real(&promise.folder)) == Some(file_system);
        let promised: u64 = self
            .files
            .iter()
            .filter(same)
            .map(|promise| promise.missing(allowed))
            .fold(0, u64::saturating_add);
        let left = promised.saturating_add(space::least_left(folder)?);
        Some(space::free(folder)?.saturating_sub(left))
    }
}

impl Promise {
    fn missing(&self, allowed: &StorageDirectories) -> u64 {
        let there = |name: &PathBuf| std::fs::symlink_metadata(allowed.real(name)).ok();
        let taken = self.names.iter().find_map(there);
        self.bytes
            .saturating_sub(taken.map_or(0, |found| found.blocks().saturating_mul(512)))
    }
}

/// Whether more of it may come: afterwards it is the guest's own, and counted as what is not free.
fn fills(state: DestinationState) -> bool {
    match state {
        DestinationState::Waiting => true,
        DestinationState::Finishing
        | DestinationState::Resuming
        | DestinationState::Ran
        | DestinationState::Revoked
        | DestinationState::Failed => false,
    }
}

/// What is kept free of a file system of this size, bytes.
pub fn least_left(size: u64) -> u64 {
    LEFT_BYTES.min(size / LEFT_PART)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_come_is_promised_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let (partial, path) = (folder.path().join("a.partial"), folder.path().join("a"));
        let only = |promise| Promised {
            files: vec![promise],
            devices: Vec::new(),
        };
        let promised = only(Promise {
            folder: folder.path().to_owned(),
            names: [partial.clone(), path],
            bytes: 1 << 20,
        });
        let allowed = StorageDirectories::default();
        assert_eq!(promised.files[0].missing(&allowed), 1 << 20);
        std::fs::write(&partial, vec![1; 64 << 10]).unwrap();
        let missing = promised.files[0].missing(&allowed);
        assert!((1 << 19..(1 << 20) - (32 << 10)).contains(&missing), "{missing}");
        let huge = only(Promise {
            bytes: u64::MAX / 2,
            ..promised.files[0].clone()
        });
        assert_eq!(huge.free(folder.path(), &allowed), Some(0));
        assert!(Promised::default().free(folder.path(), &allowed) > Some(0));
        assert_eq!(promised.free(&folder.path().join("absent"), &allowed), None);
    }

    #[test]
    fn a_small_file_system_keeps_little_free() {
        assert_eq!((least_left(100), least_left(1 << 40)), (2, 1 << 30));
    }
}
