//! What names a file beyond its path: whoever removes a file later must find the same one there.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// One regular file. The number of its device is left out: it changes with a reboot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    inode: u64,
    /// When the file was made; `None` where the file system does not say. Numbers of inodes are used again.
    born: Option<SystemTime>,
}

impl Identity {
    /// `None`: nothing is there. A link, a folder or a device is an error.
    pub fn of(path: &Path) -> io::Result<Option<Self>> {
        match std::fs::symlink_metadata(path) {
            Ok(found) if found.is_file() => Ok(Some(Self::from_metadata(&found))),
            Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "is no regular file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Of a file that is open.
    pub fn of_open(file: &File) -> io::Result<Self> {
        Ok(Self::from_metadata(&file.metadata()?))
    }

    pub fn from_metadata(found: &Metadata) -> Self {
        Self {
            inode: found.ino(),
            born: found.created().ok(),
        }
    }
}
