//! Where the agent may read, make, rename and remove files of guests: only beneath directories that its configuration
//! names, and never through a symbolic link.
//!
//! Promise: a path is resolved once, by the kernel, beneath its allowed directory; everything after happens in the
//! directory that was found, whatever its path leads to by then. All functions block.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, RenameFlags, ResolveFlag, openat2, renameat2};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{AccessFlags, UnlinkatFlags, faccessat, geteuid, linkat, unlinkat};

use super::FileError;
use crate::images::Identity;
use crate::storage_directories::StorageDirectories;

/// A name in a directory that was found beneath an allowed one.
#[derive(Debug)]
pub struct Place {
    parent: OwnedFd,
    name: OsString,
    path: PathBuf,
}

impl StorageDirectories {
    /// Finds the directory of a path. The file itself need not be there.
    pub fn find(&self, path: &Path) -> Result<Place, FileError> {
        let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
        let spelled: PathBuf = path.components().collect();
        let same = spelled.as_os_str() == path.as_os_str();
        let name = path.file_name().filter(|_| path.is_absolute() && same);
        let Some(name) = name.filter(|_| path.components().all(plain)) else {
            return Err(FileError::Path(path.to_owned()));
        };
        let Some((root, between)) = path.parent().and_then(|folder| self.root(folder)) else {
            return Err(FileError::Outside(path.to_owned()));
        };
        let error = |errno: Errno| FileError::io(path, errno.into());
        let folder = File::open(root).map_err(|source| FileError::io(path, source))?;
        let between = Some(between).filter(|between| !between.as_os_str().is_empty());
        let how = how(OFlag::O_RDONLY | OFlag::O_DIRECTORY);
        let parent = openat2(folder.as_fd(), between.unwrap_or(Path::new(".")), how).map_err(error)?;
        Ok(Place {
            parent,
            name: name.to_owned(),
            path: path.to_owned(),
        })
    }
}

fn how(flags: OFlag) -> OpenHow {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    // A pipe or a device is not waited for; nor is it opened where only its name is looked at.
    let patient = if flags.contains(OFlag::O_PATH) {
        OFlag::empty()
    } else {
        OFlag::O_NONBLOCK
    };
    OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | patient)
        .resolve(resolve)
}

impl Place {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Another name in the same directory.
    pub fn beside(&self, suffix: &str) -> Result<Self, FileError> {
        let parent = self
            .parent
            .try_clone()
            .map_err(|source| FileError::io(&self.path, source))?;
        let with = |text: &OsStr| {
            let mut longer = text.to_owned();
            longer.push(suffix);
            longer
        };
        Ok(Self {
            parent,
            name: with(&self.name),
            path: PathBuf::from(with(self.path.as_os_str())),
        })
    }

    fn open(&self, how: OpenHow) -> Result<File, FileError> {
        let file = openat2(self.parent.as_fd(), self.name.as_os_str(), how);
        let file = File::from(file.map_err(|errno| self.error(errno))?);
        let kind = file.metadata().map_err(|source| FileError::io(&self.path, source))?;
        if !kind.is_file() {
            return Err(FileError::Kind(self.path.clone()));
        }
        Ok(file)
    }

    pub fn open_to_read(&self) -> Result<File, FileError> {
        self.open(how(OFlag::O_RDONLY))
    }

    pub fn open_to_write(&self) -> Result<File, FileError> {
        self.open(how(OFlag::O_RDWR))
    }

    /// A new file; `Exists` where something is there.
    pub fn create(&self, mode: u32) -> Result<File, FileError> {
        let how = how(OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL);
        self.open(how.mode(Mode::from_bits_truncate(mode & 0o777)))
    }

    /// What has this name now; none where nothing has it.
    pub fn look(&self) -> Result<Option<Identity>, FileError> {
        match openat2(self.parent.as_fd(), self.name.as_os_str(), how(OFlag::O_PATH)) {
            Ok(found) => {
                let found = File::from(found).metadata();
                let found = found.map_err(|source| FileError::io(&self.path, source))?;
                Ok(Some(Identity::from_metadata(&found)))
            }
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(self.error(errno)),
        }
    }

    /// Gives the file the other name, in the same directory, where nothing has it yet. Done when both directory entries
    /// have reached the disk.
    pub fn rename_to(&self, other: &Self) -> Result<(), FileError> {
        let (from, to) = (self.name.as_os_str(), other.name.as_os_str());
        let renamed = renameat2(
            self.parent.as_fd(),
            from,
            other.parent.as_fd(),
            to,
            RenameFlags::RENAME_NOREPLACE,
        );
        let both_names = match renamed {
            // A file system that cannot do that in one step: a link fails where something is there, too.
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                let linked = linkat(self.parent.as_fd(), from, other.parent.as_fd(), to, AtFlags::empty());
                linked.map(|()| true)
            }
            renamed => renamed.map(|()| false),
        };
        match both_names {
            Ok(false) => {}
            Ok(true) => self.remove()?,
            // Whoever linked it may have died before the first name was gone.
            Err(Errno::EEXIST) if self.is_also(other)? => self.remove()?,
            Err(Errno::EEXIST) => return Err(FileError::Exists(other.path.clone())),
            Err(errno) => return Err(self.error(errno)),
        }
        self.sync()
    }

    /// Whether both are names of one file.
    fn is_also(&self, other: &Self) -> Result<bool, FileError> {
        let here = self.look()?;
        Ok(here.is_some() && here == other.look()?)
    }

    /// Absent is done.
    pub fn remove(&self) -> Result<(), FileError> {
        match unlinkat(self.parent.as_fd(), self.name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) => self.sync(),
            Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(self.error(errno)),
        }
    }

    /// A directory of this name; where it is this user's own, with just these rights. Also where it is there: whoever
    /// made it may have died before it had them, or before its entry had reached the disk.
    pub fn make_folder(&self, mode: u32) -> Result<(), FileError> {
        match mkdirat(
            self.parent.as_fd(),
            self.name.as_os_str(),
            Mode::from_bits_truncate(mode),
        ) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(self.error(errno)),
        }
        let how = how(OFlag::O_RDONLY | OFlag::O_DIRECTORY);
        let folder = openat2(self.parent.as_fd(), self.name.as_os_str(), how).map_err(|errno| self.error(errno))?;
        let (folder, error) = (File::from(folder), |source| FileError::io(&self.path, source));
        if folder.metadata().map_err(error)?.uid() == geteuid().as_raw() {
            folder.set_permissions(PermissionsExt::from_mode(mode)).map_err(error)?;
        }
        self.sync()
    }

    /// Removes a directory. Absent is done, and so is one that holds something.
    pub fn remove_folder(&self) -> Result<(), FileError> {
        match unlinkat(self.parent.as_fd(), self.name.as_os_str(), UnlinkatFlags::RemoveDir) {
            Ok(()) => self.sync(),
            Err(Errno::ENOENT | Errno::ENOTEMPTY | Errno::EEXIST) => Ok(()),
            Err(errno) => Err(self.error(errno)),
        }
    }

    /// Waits until the directory's entries have reached the disk.
    pub fn sync(&self) -> Result<(), FileError> {
        let folder = self.parent.try_clone().map(File::from);
        folder
            .and_then(|folder| folder.sync_all())
            .map_err(|source| FileError::io(&self.path, source))
    }

    /// Whether files may be made, renamed and removed here.
    pub fn may_change(&self) -> Result<(), FileError> {
        let wanted = AccessFlags::W_OK | AccessFlags::X_OK;
        faccessat(self.parent.as_fd(), ".", wanted, AtFlags::AT_EACCESS).map_err(|errno| {
            let folder = self.path.parent().unwrap_or(&self.path);
            FileError::io(folder, errno.into())
        })
    }

    /// Bytes that may still be written here.
    pub fn free(&self) -> Result<u64, FileError> {
        let found = nix::sys::statvfs::fstatvfs(self.parent.as_fd()).map_err(|errno| self.error(errno))?;
        // Both are C types whose width differs between platforms.
        #[allow(clippy::useless_conversion)]
        let (blocks, size) = (u64::from(found.blocks_available()), u64::from(found.fragment_size()));
        Ok(blocks.saturating_mul(size))
    }

    /// Bytes of the file system, taken or free.
    pub fn size(&self) -> Result<u64, FileError> {
        let found = nix::sys::statvfs::fstatvfs(self.parent.as_fd()).map_err(|errno| self.error(errno))?;
        // As above.
        #[allow(clippy::useless_conversion)]
        let (blocks, size) = (u64::from(found.blocks()), u64::from(found.fragment_size()));
        Ok(blocks.saturating_mul(size))
    }

    /// Of the file system: files on the same one share its space.
    pub fn device(&self) -> Result<u64, FileError> {
        let found = nix::sys::stat::fstat(self.parent.as_fd()).map_err(|errno| self.error(errno))?;
        Ok(found.st_dev)
    }

    fn error(&self, errno: Errno) -> FileError {
        FileError::io(&self.path, errno.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_linked_by_a_former_try_loses_its_first_name() {
        let folder = tempfile::tempdir().unwrap();
        let allowed = StorageDirectories::new(vec![folder.path().to_owned()]).unwrap();
        let path = folder.path().join("a.raw");
        std::fs::write(&path, b"mine").unwrap();
        let place = allowed.find(&path).unwrap();
        let moved = place.beside(".moved").unwrap();
        std::fs::hard_link(&path, moved.path()).unwrap();
        place.rename_to(&moved).unwrap();
        assert!(!path.exists());
        assert_eq!(std::fs::read(moved.path()).unwrap(), b"mine");
        // What is another's stays.
        std::fs::write(&path, b"new").unwrap();
        assert!(matches!(place.rename_to(&moved), Err(FileError::Exists(_))));
        assert_eq!(std::fs::read(moved.path()).unwrap(), b"mine");
    }
}
