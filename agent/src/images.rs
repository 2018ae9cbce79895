//! Disk images that a migration copies: what they are at the source, and the empty ones that the destination makes; or
//! the block device there that it overwrites.
//!
//! ```text
//! source                     destination
//! shape::read ──NewImage──▶  room::look, make::make ──▶ QEMU fills it
//!                            remove::made, where the guest never ran here
//! remove::original, where the guest was seen there and its policy says so
//! ```

pub mod device;
pub mod identity;
pub mod make;
pub mod remove;
pub mod room;
pub mod shape;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use identity::Identity;

/// What can be copied at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    Raw,
    Qcow2 {
        /// Of the header: 2 or 3.
        version: u32,
        /// A cluster has 2 to the power of this many bytes.
        cluster_bits: u32,
        lazy_refcounts: bool,
        extended_l2: bool,
    },
}

impl Format {
    /// As libvirt and qemu-img call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 { .. } => "qcow2",
        }
    }
}

/// An image that is to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewImage {
    /// `vda`.
    pub target: String,
    /// At the destination.
    pub path: PathBuf,
    pub format: Format,
    /// What the guest sees, in bytes.
    pub virtual_size: u64,
    /// What the source's file takes, in bytes.
    pub allocated: u64,
    /// Nothing is made: a block device at this path is overwritten. It is never removed or renamed.
    #[serde(default)]
    pub block_device: bool,
}

/// An image of the destination, as its journal knows it: written before the file is made, and again with what names
/// the file before it is put in its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeImage {
    pub image: NewImage,
    /// `None`: it may not be there yet, and what is at its path is somebody else's.
    pub identity: Option<Identity>,
}

/// An image of the source that is copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopiedImage {
    pub target: String,
    /// At the source.
    pub path: PathBuf,
    /// As it was before anything was begun.
    pub identity: Identity,
    /// What the destination has to make.
    pub image: NewImage,
}
