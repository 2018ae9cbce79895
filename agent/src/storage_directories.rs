//! Where this agent may read, make, rename and remove files of guests: the folders that its configuration lists, and
//! nothing else. Which block devices may be overwritten goes along ([`BlockDevices`]).
//!
//! Beneath a listed folder no link is followed: a path leads to where it says, or it is refused. All functions block;
//! callers keep them off the async threads.

use std::borrow::Cow;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crate::block_devices::BlockDevices;

/// The folders of `storage_directories` in agent.toml. Empty: nothing may be used. Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StorageDirectories {
    listed: Arc<Vec<Listed>>,
    devices: BlockDevices,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    path: PathBuf,
    /// Where its files lie, where that is elsewhere.
    real: Option<PathBuf>,
}

impl Listed {
    fn real(&self) -> &Path {
        self.real.as_deref().unwrap_or(&self.path)
    }
}

/// Why a path is none of this agent's.
#[derive(Debug, thiserror::Error)]
pub enum NotAllowed {
    #[error("{path} is no plain absolute path", path = .0.display())]
    Path(PathBuf),
    #[error("storage_directories of the agent lists no folder")]
    NothingListed,
    #[error("{path} is in none of the agent's storage_directories ({listed})", path = path.display())]
    Outside { path: PathBuf, listed: String },
    /// Somewhere beneath the listed folder.
    #[error("a link leads {path} to {real}", path = path.display(), real = real.display())]
    Link { path: PathBuf, real: PathBuf },
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl NotAllowed {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NothingListed | Self::Outside { .. } => {
                "list the folder in storage_directories of that host's agent.toml, or name another place for the disk"
            }
            Self::Path(_) | Self::Link { .. } => "name a path without links, `.` and `..`",
            Self::Io { .. } => "make the folder, and let the agent's user write to it",
        }
    }
}

impl StorageDirectories {
    /// Each has to be a plain absolute path. A listed folder may itself be a link: whoever lists it means it.
    pub fn new(listed: Vec<PathBuf>) -> Result<Self, NotAllowed> {
        match listed.iter().find(|path| !is_plain(path)) {
            Some(bad) => Err(NotAllowed::Path(bad.clone())),
            None => {
                let plain = listed.into_iter().map(|path| Listed { path, real: None });
                Ok(Self {
                    listed: Arc::new(plain.collect()),
                    devices: BlockDevices::default(),
                })
            }
        }
    }

    /// The same folders, and these devices.
    #[must_use]
    pub fn with_devices(self, devices: BlockDevices) -> Self {
        Self { devices, ..self }
    }

    /// What may be overwritten.
    pub fn devices(&self) -> &BlockDevices {
        &self.devices
    }

    /// One more, whose files lie in another folder than paths say: two hosts in one file system have one each. Only
    /// what is found by [`find`](Self::find) or asked for by [`real`](Self::real) is found there.
    #[must_use]
    pub fn with_alias(self, path: PathBuf, real: PathBuf) -> Self {
        let mut listed = Arc::unwrap_or_clone(self.listed);
        listed.push(Listed { path, real: Some(real) });
        Self {
            listed: Arc::new(listed),
            devices: self.devices,
        }
    }

    /// The deepest listed folder in which a path lies, and the rest of the path: what is between it and another listed
    /// one may be a link there.
    fn beneath<'a>(&self, path: &'a Path) -> Option<(&Listed, &'a Path)> {
        let beneath = self
            .listed
            .iter()
            .filter_map(|one| Some((one, path.strip_prefix(&one.path).ok()?)));
        beneath.max_by_key(|(one, _)| one.path.components().count())
    }

    /// A listed folder as it is opened, and the rest of the path beneath it; none where the path is in none.
    pub(crate) fn root<'a>(&self, path: &'a Path) -> Option<(&Path, &'a Path)> {
        self.beneath(path).map(|(one, rest)| (one.real(), rest))
    }

    /// Where a path leads to: itself but in a simulation.
    pub fn real<'a>(&self, path: &'a Path) -> Cow<'a, Path> {
        match self.beneath(path) {
            Some((Listed { real: Some(real), .. }, rest)) => Cow::Owned(real.join(rest)),
            Some((Listed { real: None, .. }, _)) | None => Cow::Borrowed(path),
        }
    }

    /// Whether a file may be made or removed at `path`. Its folder must be there; the file itself need not be.
    pub fn allow(&self, path: &Path) -> Result<(), NotAllowed> {
        let Some(folder) = path.parent().filter(|_| is_plain(path) && path.file_name().is_some()) else {
            return Err(NotAllowed::Path(path.to_owned()));
        };
        if self.listed.is_empty() {
            return Err(NotAllowed::NothingListed);
        }
        let failed = |source| NotAllowed::Io {
            path: folder.to_owned(),
            source,
        };
        let Some((listed, beneath)) = self.beneath(folder) else {
            return Err(NotAllowed::Outside {
                path: path.to_owned(),
                listed: self.words(),
            });
        };
        let real = folder.canonicalize().map_err(failed)?;
        let expected = listed.path.canonicalize().map_err(failed)?.join(beneath);
        // Joining nothing adds a slash, which does not count in a comparison.
        if real != expected {
            return Err(NotAllowed::Link {
                path: folder.to_owned(),
                real,
            });
        }
        Ok(())
    }

    fn words(&self) -> String {
        let words: Vec<_> = self.listed.iter().map(|one| one.path.display().to_string()).collect();
        words.join(", ")
    }
}

/// Absolute, with neither `.` nor `..` nor a NUL in it.
pub fn is_plain(path: &Path) -> bool {
    let normal = path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let exact = path
        .to_str()
        .is_some_and(|text| !text.contains('\0') && !text.contains("/./") && !text.ends_with("/."));
    path.is_absolute() && normal && exact
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_what_lies_in_a_listed_folder_is_allowed() {
        let root = tempfile::tempdir().unwrap();
        let (images, other) = (root.path().join("images"), root.path().join("images-of-others"));
        std::fs::create_dir_all(images.join("deep")).unwrap();
        std::fs::create_dir(&other).unwrap();
        let listed = StorageDirectories::new(vec![images.clone()]).unwrap();
        assert!(listed.allow(&images.join("a.raw")).is_ok());
        assert!(listed.allow(&images.join("deep/a.raw")).is_ok());
        let outside = listed.allow(&other.join("a.raw")).unwrap_err();
        assert!(matches!(outside, NotAllowed::Outside { .. }), "{outside}");
        let absent = listed.allow(&images.join("absent/a.raw")).unwrap_err();
        assert!(matches!(absent, NotAllowed::Io { .. }), "{absent}");
        let nothing = StorageDirectories::default().allow(&images.join("a.raw")).unwrap_err();
        assert!(matches!(nothing, NotAllowed::NothingListed), "{nothing}");
    }

    #[test]
    fn nobody_climbs_out_of_a_listed_folder() {
        let root = tempfile::tempdir().unwrap();
        let (images, other) = (root.path().join("images"), root.path().join("other"));
        std::fs::create_dir(&images).unwrap();
        std::fs::create_dir(&other).unwrap();
        let listed = StorageDirectories::new(vec![images.clone()]).unwrap();
        for bad in ["../other/a.raw", "./a.raw", "a/../a.raw"] {
            let climbing = format!("{}/{bad}", images.display());
            let refused = listed.allow(Path::new(&climbing)).unwrap_err();
            assert!(matches!(refused, NotAllowed::Path(_)), "{bad}: {refused}");
        }
        for bad in ["", "a.raw", "images/a.raw"] {
            assert!(listed.allow(Path::new(bad)).is_err(), "{bad}");
        }
        symlink(&other, images.join("link")).unwrap();
        let led = listed.allow(&images.join("link/a.raw")).unwrap_err();
        assert!(matches!(led, NotAllowed::Link { .. }), "{led}");
    }

    #[test]
    fn a_listed_folder_may_be_a_link_itself() {
        let root = tempfile::tempdir().unwrap();
        let (real, link) = (root.path().join("real"), root.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        symlink(&real, &link).unwrap();
        let listed = StorageDirectories::new(vec![link.clone()]).unwrap();
        assert!(listed.allow(&link.join("a.raw")).is_ok());
        assert!(StorageDirectories::new(vec!["relative".into()]).is_err());
    }
}
