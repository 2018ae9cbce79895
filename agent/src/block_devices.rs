//! Which block devices of this host a migration may overwrite: those that the agent's configuration lists, and nothing
//! else. Pure.
//!
//! Names of devices are links more often than not (`/dev/vg/web`), and only root makes them: where a listed one leads to
//! is its own business.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::storage_directories::is_plain;

/// `block_devices` in agent.toml: devices, and folders of devices. Empty: none. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockDevices(Arc<Vec<PathBuf>>);

/// Why a device is none of this agent's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotListed {
    #[error("{path} is no plain absolute path", path = .0.display())]
    Path(PathBuf),
    #[error("block_devices of that host's agent lists none")]
    Nothing,
    #[error("{path} is not among the agent's block_devices ({listed})", path = path.display())]
    Outside { path: PathBuf, listed: String },
}

impl BlockDevices {
    /// Each has to be a plain absolute path.
    pub fn new(listed: Vec<PathBuf>) -> Result<Self, NotListed> {
        match listed.iter().find(|path| !is_plain(path)) {
            Some(bad) => Err(NotListed::Path(bad.clone())),
            None => Ok(Self(Arc::new(listed))),
        }
    }

    /// Whether the device at `path` may be overwritten, as far as the configuration says.
    pub fn allow(&self, path: &Path) -> Result<(), NotListed> {
        if !is_plain(path) {
            return Err(NotListed::Path(path.to_owned()));
        }
        if self.0.is_empty() {
            return Err(NotListed::Nothing);
        }
        if self.0.iter().any(|listed| path.starts_with(listed)) {
            return Ok(());
        }
        let words: Vec<_> = self.0.iter().map(|path| path.display().to_string()).collect();
        Err(NotListed::Outside {
            path: path.to_owned(),
            listed: words.join(", "),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_listed_may_be_overwritten() {
        let listed = BlockDevices::new(vec!["/dev/drover".into(), "/dev/vg/web".into()]).unwrap();
        for good in ["/dev/drover/a", "/dev/drover/deep/a", "/dev/vg/web"] {
            assert_eq!(listed.allow(Path::new(good)), Ok(()));
        }
        for bad in [
            "/dev/sda",
            "/dev/vg/web-2",
            "/dev/drover/../sda",
            "/dev/./drover/a",
            "dev/drover/a",
            "",
        ] {
            assert!(listed.allow(Path::new(bad)).is_err(), "{bad}");
        }
        let nothing = BlockDevices::default().allow(Path::new("/dev/sda"));
        assert_eq!(nothing, Err(NotListed::Nothing));
        assert!(BlockDevices::new(vec!["dev".into()]).is_err());
    }
}
