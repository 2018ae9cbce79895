//! The files of a guest that is shut off: how they are held, read, sent, received, verified and put in their place.
//!
//! ```text
//!  source                                              destination
//!  image, QEMU's lock held ──▶ blocks ══ drover-data/1 ══▶ NAME.drover-partial-ID ──▶ fsync ──▶ read again
//!                                 │ ◀─ which blocks are there already ─│                            │
//!                                 │ ◀──────────────── verified ────────────────────────────────────┘
//! ```
//!
//! Promises: a file is copied byte for byte, whatever is in it; nobody can write to it meanwhile; what is said to be
//! verified was read back after it had reached the disk; nothing outside of the allowed directories is touched, and
//! nothing that was there before is overwritten but a blank block device that is listed. Who may start the guest is the journal's business (`jobs/`).

pub mod arriving;
pub mod blocks;
pub mod calls;
pub mod chain;
pub mod ends;
pub mod folders;
pub mod image;
pub mod image_lock;
pub mod loops;
pub mod outgoing;
pub mod partial;
mod patience;
pub mod places;
pub mod receive;
pub mod send;
pub mod sink;
pub mod spare;
pub mod stripes;
pub mod uncached;
pub mod wire;

#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

use drover_proto::failure::{Failure, Reason};
use serde::{Deserialize, Serialize};

use crate::images::device::Unfit;

/// What is hashed, sent and repeated at once, in bytes.
pub const BLOCK: usize = 1 << 20;

/// No file that is copied is larger, in bytes: both sides remember 32 bytes of each block.
pub const LARGEST: u64 = 1 << 44;

/// A file that is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSpec {
    /// Absolute, the same on both hosts.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Bytes that it takes on the source's disk.
    pub allocated: u64,
    pub mode: u32,
    /// A block device: at the destination the one at its path is overwritten.
    #[serde(default)]
    pub block_device: bool,
}

/// Why a file cannot be held, read, written or put in its place.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{path} is no plain absolute path", path = .0.display())]
    Path(PathBuf),
    #[error("{path} is not in one of this agent's storage_directories", path = .0.display())]
    Outside(PathBuf),
    #[error("{path} leads through a symbolic link or out of its storage directory", path = .0.display())]
    Link(PathBuf),
    #[error("{path} is not there", path = .0.display())]
    Absent(PathBuf),
    #[error("{path} is there already", path = .0.display())]
    Exists(PathBuf),
    #[error("{path} is not a regular file", path = .0.display())]
    Kind(PathBuf),
    #[error("{path} is in use by another process", path = .0.display())]
    InUse(PathBuf),
    #[error("{path} is what the loop device {device} lies on", path = path.display())]
    Loop { path: PathBuf, device: String },
    #[error("{path} was changed after it was sent", path = .0.display())]
    Changed(PathBuf),
    #[error("{path} has a backing file or a data file ({what})", path = path.display())]
    Chain { path: PathBuf, what: String },
    #[error("there is no space for {path}: {needed} bytes are needed, {free} are free", path = path.display())]
    Space { path: PathBuf, needed: u64, free: u64 },
    #[error("the agent may not use {path}: {source}", path = path.display())]
    Denied { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Device(Unfit),
    #[error("another migration copies onto {path} already", path = .0.display())]
    Promised(PathBuf),
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl FileError {
    pub(crate) fn io(path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match source.raw_os_error() {
            Some(libc::ENOENT) => Self::Absent(path),
            Some(libc::EEXIST) => Self::Exists(path),
            Some(libc::EPERM | libc::EACCES | libc::EROFS) => Self::Denied { path, source },
            Some(libc::ELOOP | libc::EXDEV) => Self::Link(path),
            Some(_) | None => Self::Io { path, source },
        }
    }

    /// What a person can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Path(_) | Self::Kind(_) => "give the guest's disks plain files by their absolute paths",
            Self::Outside(_) => "add its directory to storage_directories in agent.toml, on both hosts",
            Self::Link(_) => "name the directory that it really lies in, in the guest's definition and in agent.toml",
            Self::Absent(_) => "see whether its storage is mounted",
            Self::Exists(_) => "move what is there out of the way, if nobody needs it",
            Self::Changed(_) => "see who uses it",
            Self::Loop { .. } => "unmount what lies on it and detach it: `losetup --detach`",
            Self::InUse(_) => "end what uses it (a guest, qemu-nbd, a backup), then try again",
            Self::Chain { .. } => {
                "flatten it while the guest is off (`qemu-img convert`, or `qemu-img rebase -b ''`), or move the guest \
                 while it runs: a disk that is copied live becomes one image"
            }
            Self::Space { .. } => "make room, or choose another destination",
            Self::Denied { .. } => "give the agent's user the right to it; docs/operating.md tells which it needs",
            Self::Device(unfit) => unfit.remedy(),
            Self::Promised(_) => "wait for it, or name another device",
            Self::Io { .. } => "see the system log of that host",
        }
    }
}

impl From<Unfit> for FileError {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Io { path, source } => Self::io(path, source),
            other @ (Unfit::NotListed(_)
            | Unfit::NotBlock(_)
            | Unfit::InUse(_)
            | Unfit::ReadOnly(_)
            | Unfit::Size { .. }
            | Unfit::NotBlank(_)
            | Unfit::Blank(_)
            | Unfit::NotCounted(_)) => Self::Device(other),
        }
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        let reason = match &error {
            FileError::InUse(_) | FileError::Loop { .. } | FileError::Device(Unfit::InUse(_)) => Reason::GuestBusy,
            FileError::Space { .. } => Reason::NoSpace,
            FileError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => Reason::NoSpace,
            FileError::Path(_)
            | FileError::Outside(_)
            | FileError::Link(_)
            | FileError::Absent(_)
            | FileError::Exists(_)
            | FileError::Kind(_)
            | FileError::Changed(_)
            | FileError::Chain { .. }
            | FileError::Denied { .. }
            | FileError::Device(_)
            | FileError::Promised(_)
            | FileError::Io { .. } => Reason::StorageUnusable,
        };
        Self::new(reason, error.to_string()).with_remedy(error.remedy())
    }
}
