//! An image at its source: opened once, held by QEMU's lock, and known again later. All functions block.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::image_lock::{self, Others};
use super::places::Place;
use super::{FileError, FileSpec, chain, loops};
use crate::images::{Identity, device};
use crate::storage_directories::StorageDirectories;

/// Permissions of an image: never those of others.
const MODE: u32 = 0o660;

/// An image that nobody writes to while this is there.
#[derive(Debug)]
pub struct Image {
    pub file: File,
    pub spec: FileSpec,
    pub identity: Identity,
}

/// What changes with every write to a file; not with its owner, which libvirt changes, nor with its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    identity: Identity,
    size: u64,
    /// Seconds and nanoseconds; of a block device what was written to it.
    modified: (i64, i64),
}

impl Image {
    /// Opens it and keeps writers away. `InUse` where somebody has it open who may not, `Loop` where the kernel has,
    /// `Chain` where it lies on others than `known`.
    pub fn hold(
        allowed: &StorageDirectories,
        path: &Path,
        format: &str,
        others: Others,
        known: &[PathBuf],
    ) -> Result<Self, FileError> {
        may_go(&allowed.find(path)?, others)?;
        let file = lock(allowed, path, others)?;
        let error = |source| FileError::io(path, source);
        chain::only_on(known, &file, path, format)?;
        let found = file.metadata().map_err(error)?;
        let spec = FileSpec {
            path: path.to_owned(),
            size: found.len(),
            allocated: found.blocks().saturating_mul(512),
            mode: found.mode() & MODE,
            block_device: false,
        };
        let identity = Identity::of_open(&file).map_err(error)?;
        Ok(Self { file, spec, identity })
    }

    /// The same of a block device, which nobody else uses meanwhile.
    pub fn hold_device(allowed: &StorageDirectories, path: &Path) -> Result<Self, FileError> {
        let (file, size) = device::take(path, allowed.devices(), true)?;
        let spec = FileSpec {
            path: path.to_owned(),
            size,
            allocated: size,
            mode: MODE,
            block_device: true,
        };
        let identity = Identity::of_open(&file).map_err(|source| FileError::io(path, source))?;
        Ok(Self { file, spec, identity })
    }

    /// What it is now.
    pub fn mark(&self) -> Result<Mark, FileError> {
        Mark::of(&self.file).map_err(|source| FileError::io(&self.spec.path, source))
    }
}

impl Mark {
    pub fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        // Times of a device tell nothing of its content.
        let modified = if found.file_type().is_block_device() {
            (device::written(file)?, 0)
        } else {
            (found.mtime(), found.mtime_nsec())
        };
        Ok(Self {
            identity: Identity::from_metadata(&found),
            size: found.len(),
            modified,
        })
    }
}

/// Opens a file and keeps writers away until it is closed.
pub fn lock(allowed: &StorageDirectories, path: &Path, others: Others) -> Result<File, FileError> {
    let file = allowed.find(path)?.open_to_read()?;
    match image_lock::hold(&file, others) {
        Ok(true) => loops::refuse(&file, path, others).map(|()| file),
        Ok(false) => Err(FileError::InUse(path.to_owned())),
        Err(source) => Err(FileError::io(path, source)),
    }
}

/// Why it could not be held and taken along, as far as that can be seen. Takes no lock: nobody is kept from it.
pub fn look(
    allowed: &StorageDirectories,
    path: &Path,
    format: &str,
    others: Others,
    known: &[PathBuf],
) -> Result<(), FileError> {
    let place = allowed.find(path)?;
    may_go(&place, others)?;
    let file = place.open_to_read()?;
    match image_lock::is_free_for(&file, others) {
        Ok(true) => {}
        Ok(false) => return Err(FileError::InUse(path.to_owned())),
        Err(source) => return Err(FileError::io(path, source)),
    }
    loops::refuse(&file, path, others)?;
    chain::only_on(known, &file, path, format)
}

/// What others may have stays; the rest gets another name here in the end, or goes.
fn may_go(place: &Place, others: Others) -> Result<(), FileError> {
    match others {
        Others::Read => Ok(()),
        Others::None => place.may_change(),
    }
}
