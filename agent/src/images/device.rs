//! Block devices that are copied: what one is at the source, and whether one at the destination may be overwritten. Reads
//! their ends and takes no lock. Blocks.
//!
//! A device is never made, removed or renamed. Whoever copied a device onto itself would destroy the guest's disk, and the
//! path says nothing: so there has to be something at either end of the source's (its partition table, its file system),
//! and nothing at both ends of the destination's. What is of any worth to anybody is not overwritten then either.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::shape::{NotCopied, Shape};
use super::{Identity, NewImage};
use crate::block_devices::{BlockDevices, NotListed};
use crate::offline::image_lock::{self, Others};

/// So much is looked at, at the beginning and at the end: labels of partition tables, RAID, LVM and file systems.
const END: u64 = 1 << 20;

/// A device of this host that may be overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// Bytes.
    pub size: u64,
    /// The kernel's number, whatever its path.
    pub number: u64,
}

/// Why a device is not overwritten.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error(transparent)]
    NotListed(#[from] NotListed),
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is no block device", path = .0.display())]
    NotBlock(PathBuf),
    #[error("{path} is in use: it is mounted, or another device or program has it", path = .0.display())]
    InUse(PathBuf),
    #[error("{path} cannot be written to: it is a read-only device", path = .0.display())]
    ReadOnly(PathBuf),
    /// QEMU refuses to copy onto one that is larger.
    #[error("{path} has {size} bytes, and exactly {needed} are needed", path = path.display())]
    Size { path: PathBuf, size: u64, needed: u64 },
    #[error("there is something on {path} already, at its beginning or at its end", path = .0.display())]
    NotBlank(PathBuf),
}

impl Unfit {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotListed(_) => {
                "list it, or its folder, in block_devices of that host's agent.toml, if it may be overwritten"
            }
            Self::Io { .. } => {
                "make the device, and let the agent's user read it (an ACL: libvirt changes the owner of devices)"
            }
            Self::NotBlock(_) => "make a device of the same name there, or put the disk into a file",
            Self::InUse(_) => "see who has it; unmount it, or name another device",
            Self::ReadOnly(_) => "let it be written to (`blockdev --setrw`), or name another device",
            Self::Size { .. } => "give it the size of the source's, or name another device",
            Self::NotBlank(_) => {
                "if it is the guest's own disk on shared storage, do not copy it; if nobody needs what is on it (a copy \
                 that did not end leaves it half written), wipe it there: `blkdiscard --zeroout DEVICE`"
            }
        }
    }
}

/// What the source's device is. Refused where it has nothing on it that a destination's could be told from.
pub fn read(path: &Path) -> Result<Shape, NotCopied> {
    let mut file = open(path, 0).map_err(NotCopied::Io)?;
    let found = file.metadata().map_err(NotCopied::Io)?;
    if !found.file_type().is_block_device() {
        return Err(NotCopied::Header("it is no block device".to_owned()));
    }
    let size = file.seek(SeekFrom::End(0)).map_err(NotCopied::Io)?;
    if size > 0 && is_blank(&file, size).map_err(NotCopied::Io)? {
        let why = "there is nothing at its beginning and at its end: it could not be told from the device that is to be \
                   overwritten";
        return Err(NotCopied::Header(why.to_owned()));
    }
    Shape::of_device(size, Identity::from_metadata(&found))
}

/// Whether a copy may overwrite the device at its path.
pub fn fit(image: &NewImage, allowed: &BlockDevices) -> Result<Fit, Unfit> {
    let path = image.path.as_path();
    allowed.allow(path)?;
    let failed = |source: io::Error| Unfit::Io {
        path: path.to_owned(),
        source,
    };
    let found = std::fs::metadata(path).map_err(failed)?;
    if !found.file_type().is_block_device() {
        return Err(Unfit::NotBlock(path.to_owned()));
    }
    // Refused by the kernel where anybody has it for himself: a mount, RAID, LVM, a partition of it that is in use.
    let mut file = match open(path, libc::O_EXCL) {
        Ok(file) => file,
        Err(busy) if busy.raw_os_error() == Some(libc::EBUSY) => return Err(Unfit::InUse(path.to_owned())),
        Err(error) => return Err(failed(error)),
    };
    let number = file.metadata().map_err(failed)?.rdev();
    if !image_lock::is_free_for(&file, Others::None).map_err(failed)? {
        return Err(Unfit::InUse(path.to_owned()));
    }
    if is_read_only(number) {
        return Err(Unfit::ReadOnly(path.to_owned()));
    }
    let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
    if size != image.virtual_size {
        return Err(Unfit::Size {
            path: path.to_owned(),
            size,
            needed: image.virtual_size,
        });
    }
    if !is_blank(&file, size).map_err(failed)? {
        return Err(Unfit::NotBlank(path.to_owned()));
    }
    Ok(Fit { size, number })
}

/// The kernel's number of the device at a path; none where there is none.
pub fn number(path: &Path) -> Option<u64> {
    let found = std::fs::metadata(path).ok()?;
    found.file_type().is_block_device().then(|| found.rdev())
}

fn open(path: &Path, more: i32) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | more)
        .open(path)
}

fn is_read_only(number: u64) -> bool {
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let said = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/ro"));
    said.is_ok_and(|text| text.trim() == "1")
}

/// Whether nothing but zeros is at the beginning and at the end.
fn is_blank(file: &File, size: u64) -> io::Result<bool> {
    // What this host read before is not what another one has written since.
    posix_fadvise(file.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    let mut piece = vec![0; usize::try_from(END.min(size)).unwrap_or_default()];
    for at in [0, size - piece.len() as u64] {
        file.read_exact_at(&mut piece, at)?;
        if piece.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::*;

    #[test]
    fn what_is_at_either_end_is_seen() {
        let file = tempfile::tempfile().unwrap();
        let size = 5 * END;
        file.set_len(size).unwrap();
        assert!(is_blank(&file, size).unwrap());
        // Nobody keeps anything but data there.
        file.write_all_at(b"x", 2 * END).unwrap();
        assert!(is_blank(&file, size).unwrap());
        for at in [0, END - 1, size - END, size - 1] {
            file.write_all_at(b"x", at).unwrap();
            assert!(!is_blank(&file, size).unwrap(), "{at}");
            file.write_all_at(&[0], at).unwrap();
        }
        file.set_len(512).unwrap();
        assert!(is_blank(&file, 512).unwrap(), "a small one");
    }

    #[test]
    fn what_is_no_device_or_not_listed_is_neither_read_nor_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"precious").unwrap();
        let image = NewImage {
            target: "vda".to_owned(),
            path: path.clone(),
            format: Format::Raw,
            virtual_size: 1,
            allocated: 1,
            block_device: true,
        };
        let listed = BlockDevices::new(vec![folder.path().to_owned()]).unwrap();
        assert!(matches!(fit(&image, &listed), Err(Unfit::NotBlock(_))));
        assert!(matches!(
            fit(&image, &BlockDevices::default()),
            Err(Unfit::NotListed(_))
        ));
        let absent = NewImage {
            path: folder.path().join("absent"),
            ..image
        };
        assert!(matches!(fit(&absent, &listed), Err(Unfit::Io { .. })));
        assert!(read(&path).is_err());
        assert_eq!(number(&path), None);
    }
}
