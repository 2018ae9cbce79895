//! What a file is at this moment, by the word of whoever keeps it: an NFS client may remember an older size. Blocks.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;

/// One file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Of the file system that it lies on; of this host alone.
    pub(super) device: u64,
    pub(super) inode: u64,
    /// Bytes.
    pub(super) size: u64,
}

/// Links are followed: QEMU does so, too.
pub(super) fn look(path: &Path) -> io::Result<Found> {
    let found = statx(CWD, path, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS);
    found_or(found, || path.metadata())
}

pub(super) fn look_at(file: &File) -> io::Result<Found> {
    let how = AtFlags::STATX_FORCE_SYNC | AtFlags::EMPTY_PATH;
    found_or(statx(file, "", how, StatxFlags::BASIC_STATS), || file.metadata())
}

/// Where the kernel, or a filter of system calls, does not know the newer question, the older one has to do.
fn found_or(
    found: Result<rustix::fs::Statx, Errno>,
    otherwise: impl FnOnce() -> io::Result<Metadata>,
) -> io::Result<Found> {
    match found {
        Ok(found) => Ok(Found {
            device: rustix::fs::makedev(found.stx_dev_major, found.stx_dev_minor),
            inode: found.stx_ino,
            size: found.stx_size,
        }),
        Err(Errno::NOSYS) => otherwise().map(|found| Found {
            device: found.dev(),
            inode: found.ino(),
            size: found.len(),
        }),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_the_same_by_its_path_by_a_link_and_open() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("a"), folder.path().join("link"));
        std::fs::write(&path, b"12345").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let found = look(&path).unwrap();
        assert_eq!(look(&link).unwrap(), found);
        assert_eq!(look_at(&File::open(&path).unwrap()).unwrap(), found);
        let known = path.metadata().unwrap();
        assert_eq!((found.device, found.inode, found.size), (known.dev(), known.ino(), 5));
        let old = found_or(Err(Errno::NOSYS), || path.metadata()).unwrap();
        assert_eq!(old, found);
        let absent = look(&folder.path().join("absent")).unwrap_err();
        assert_eq!(absent.kind(), io::ErrorKind::NotFound);
    }
}
