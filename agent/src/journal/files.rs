//! What an agent durably knows of the files of a guest that moves shut off. Only data.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::images::Identity;
use crate::offline::FileSpec;
use crate::offline::arriving::Arriving;
use crate::offline::image::Mark;

/// A guest that leaves shut off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Leaving {
    /// As it was defined here; none where the destination is to have the same.
    pub original_xml: Option<String>,
    /// What is copied, in order.
    pub files: Vec<LeavingFile>,
    /// Images that both hosts have and that are held here while the guest is sent.
    #[serde(default)]
    pub shared: Vec<PathBuf>,
    /// What was copied is removed once the destination has the guest; else it gets another name.
    pub delete_source: bool,
    /// Set where the guest ran: this migration shuts it down, and whoever keeps it starts it.
    #[serde(default)]
    pub shut_down: Option<ShutDown>,
    /// It was told to, and nobody has seen it off yet: its files are not known before.
    #[serde(default)]
    pub waits_for_off: bool,
}

/// A guest that is told to shut down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShutDown {
    pub within: Duration,
    /// When that was written down, the first time.
    pub since: SystemTime,
    /// It may have heard of it.
    pub told: bool,
}

/// A file that is copied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LeavingFile {
    pub spec: FileSpec,
    /// `raw`, `qcow2`.
    pub format: String,
    pub identity: Identity,
    /// Others may use it too: it stays as it is.
    pub stays: bool,
    /// What it was when all was sent: whoever has changed it since has changed more than was sent.
    pub mark: Option<Mark>,
}

/// What comes with a guest that is shut off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Coming {
    pub files: Vec<Arriving>,
    /// All of them were read back from the disk, and are what was sent.
    pub verified: bool,
}

impl Coming {
    /// Nothing of it is here yet.
    pub fn expected(files: Vec<FileSpec>) -> Self {
        let arriving = |spec| Arriving { spec, identity: None };
        Self {
            files: files.into_iter().map(arriving).collect(),
            verified: false,
        }
    }
}
