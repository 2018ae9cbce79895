//! An image at its source: opened once, held by QEMU's lock, and known again later. All functions block.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::image_lock::{self, Others};
use super::{FileError, FileSpec, loops};
use crate::images::Identity;
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
    /// Seconds and nanoseconds.
    modified: (i64, i64),
}

impl Image {
    /// Opens it and keeps writers away. `InUse` where somebody has it open who may not, `Loop` where the kernel has.
    pub fn hold(allowed: &StorageDirectories, path: &Path, format: &str, others: Others) -> Result<Self, FileError> {
        // It gets another name here in the end, or goes.
        allowed.find(path)?.may_change()?;
        let file = lock(allowed, path, others)?;
        let error = |source| FileError::io(path, source);
        refuse_chain(&file, path, format)?;
        let found = file.metadata().map_err(error)?;
        let spec = FileSpec {
            path: path.to_owned(),
            size: found.len(),
            allocated: found.blocks().saturating_mul(512),
            mode: found.mode() & MODE,
        };
        let identity = Identity::of_open(&file).map_err(error)?;
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
        Ok(Self {
            identity: Identity::from_metadata(&found),
            size: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
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
pub fn look(allowed: &StorageDirectories, path: &Path, format: &str, others: Others) -> Result<(), FileError> {
    let place = allowed.find(path)?;
    place.may_change()?;
    let file = place.open_to_read()?;
    match image_lock::is_free_for(&file, others) {
        Ok(true) => {}
        Ok(false) => return Err(FileError::InUse(path.to_owned())),
        Err(source) => return Err(FileError::io(path, source)),
    }
    loops::refuse(&file, path, others)?;
    refuse_chain(&file, path, format)
}

/// Only a whole image is copied: what lies beneath one is another file.
fn refuse_chain(file: &File, path: &Path, format: &str) -> Result<(), FileError> {
    const DATA_FILE: u64 = 1 << 2;
    let refused = |what: String| {
        Err(FileError::Chain {
            path: path.to_owned(),
            what,
        })
    };
    match format {
        "raw" => return Ok(()),
        "qcow2" => {}
        other => return refused(format!("format {other:?} is not known to be one file")),
    }
    let mut header = [0; 80];
    let read = |buffer: &mut [u8], at| match file.read_exact_at(buffer, at) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(source) => Err(FileError::io(path, source)),
        Ok(()) => Ok(true),
    };
    if !read(&mut header, 0)? || header[..4] != *b"QFI\xfb" {
        return refused("it is not the qcow2 image that the guest's definition says".to_owned());
    }
    let number = |at: usize, bytes: usize| {
        let digits = header[at..at + bytes].iter();
        digits.fold(0_u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let (version, backing_at, backing_length) = (number(4, 4), number(8, 8), number(16, 4));
    if backing_at != 0 {
        let mut name = vec![0; usize::try_from(backing_length.min(1023)).unwrap_or(0)];
        read(&mut name, backing_at)?;
        return refused(String::from_utf8_lossy(&name).into_owned());
    }
    if version >= 3 && number(72, 8) & DATA_FILE != 0 {
        return refused("its data lie in another file".to_owned());
    }
    Ok(())
}
