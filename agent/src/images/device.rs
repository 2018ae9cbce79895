//! Block devices that are copied: what one is at the source, and whether one at the destination may be overwritten. Blocks.
//!
//! A device is never made, removed or renamed. Whoever copied a device onto itself would destroy the guest's disk, and the
//! path says nothing: so there has to be something at either end of the source's (its partition table, its file system),
//! and nothing at both ends of the destination's. What is of any worth to anybody is not overwritten then either.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::Identity;
use super::shape::{NotCopied, Shape};
use crate::block_devices::{BlockDevices, NotListed};
use crate::offline::image_lock::{self, Others};

/// So much is looked at, at the beginning and at the end: labels of partition tables, RAID, LVM and file systems.
pub const END: u64 = 1 << 20;

/// Whoever only looks has a device for a moment: this agent for another migration, or a tool of the system.
const MOMENT: Duration = Duration::from_millis(100);
const MOMENTS: u32 = 5;

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
    #[error(
        "there is nothing at the beginning and at the end of {path}: it could not be told from the device that is to be \
         overwritten", path = .0.display()
    )]
    Blank(PathBuf),
    #[error("the kernel does not count what is written to {path}: nobody would notice it", path = .0.display())]
    NotCounted(PathBuf),
}

impl Unfit {
    /// What to do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotListed(_) => {
                "list it, or its folder, in block_devices of that host's agent.toml, if the agent may use it"
            }
            Self::Io { .. } => {
                "make the device, and let the agent's user read it (an ACL: libvirt changes the owner of devices)"
            }
            Self::NotBlock(_) => "make a device of the same name there, or put the disk into a file",
            Self::InUse(_) => "see who has it; unmount it, or name another device",
            Self::ReadOnly(_) => "let it be written to (`blockdev --setrw`), or name another device",
            Self::Size { .. } => "give it the size of the source's, or name another device",
            Self::Blank(_) => "if there is anything on it, give it a partition table or a file system; else detach it",
            Self::NotCounted(_) => "let it: `echo 1 >/sys/block/NAME/queue/iostats`",
            Self::NotBlank(_) => {
                "if it is the guest's own disk on shared storage, do not copy it; if nobody needs what is on it (a copy \
                 that did not end leaves it half written), wipe it there: `blkdiscard --zeroout DEVICE`"
            }
        }
    }
}

/// What the source's device is, of a guest that may run. Takes no lock. Refused where it has nothing on it that a
/// destination's could be told from.
pub fn read(path: &Path) -> Result<Shape, NotCopied> {
    let words = |unfit: Unfit| match unfit {
        Unfit::Io { source, .. } => NotCopied::Io(source),
        Unfit::NotListed(_)
        | Unfit::NotBlock(_)
        | Unfit::InUse(_)
        | Unfit::ReadOnly(_)
        | Unfit::Size { .. }
        | Unfit::NotBlank(_)
        | Unfit::Blank(_)
        | Unfit::NotCounted(_) => NotCopied::Header(unfit.to_string()),
    };
    let (file, size) = open(path, Way::Read).map_err(words)?;
    refuse_blank(path, &file, size).map_err(words)?;
    let found = file.metadata().map_err(NotCopied::Io)?;
    Shape::of_device(size, Identity::from_metadata(&found))
}

/// The source's device of a guest that is shut off, and its size in bytes: as long as it is open nobody mounts it. Where
/// it is locked no QEMU opens it under this name; one that libvirt starts has names of its own (a /dev of its own), and
/// what it writes is only counted ([`written`]). Not locked: it is only looked at.
pub fn take(path: &Path, allowed: &BlockDevices, locked: bool) -> Result<(File, u64), Unfit> {
    allowed.allow(path)?;
    let (file, size) = open(path, Way::ReadAlone)?;
    let free = if locked {
        image_lock::hold(&file, Others::None)
    } else {
        image_lock::is_free_for(&file, Others::None)
    };
    if !free.map_err(|source| failed(path, source))? {
        return Err(Unfit::InUse(path.to_owned()));
    }
    let number = file.metadata().map_err(|source| failed(path, source))?.rdev();
    if !is_counted(&sys(number, "")) {
        return Err(Unfit::NotCounted(path.to_owned()));
    }
    refuse_blank(path, &file, size)?;
    Ok((file, size))
}

/// Whether a copy of `needed` bytes may overwrite the device at this path.
pub fn fit(path: &Path, needed: u64, allowed: &BlockDevices) -> Result<Fit, Unfit> {
    allowed.allow(path)?;
    let (file, size) = open(path, Way::ReadAlone)?;
    let failed = |source| failed(path, source);
    let number = file.metadata().map_err(failed)?.rdev();
    if !image_lock::is_free_for(&file, Others::None).map_err(failed)? {
        return Err(Unfit::InUse(path.to_owned()));
    }
    if is_read_only(number) {
        return Err(Unfit::ReadOnly(path.to_owned()));
    }
    if size != needed {
        let path = path.to_owned();
        return Err(Unfit::Size { path, size, needed });
    }
    if !is_blank(&file, size).map_err(failed)? {
        return Err(Unfit::NotBlank(path.to_owned()));
    }
    Ok(Fit { size, number })
}

/// Opens the device that is overwritten, for nobody but the caller, and says whether it is blank: it was when a copy onto
/// it was prepared, but a path may lead to another device since.
pub fn open_to_overwrite(path: &Path, needed: u64, allowed: &BlockDevices) -> Result<(File, bool), Unfit> {
    allowed.allow(path)?;
    let (file, size) = open(path, Way::WriteAlone)?;
    let failed = |source| failed(path, source);
    if !image_lock::hold(&file, Others::None).map_err(failed)? {
        return Err(Unfit::InUse(path.to_owned()));
    }
    if size != needed {
        let path = path.to_owned();
        return Err(Unfit::Size { path, size, needed });
    }
    let blank = is_blank(&file, size).map_err(failed)?;
    Ok((file, blank))
}

/// Whether the path can still lead to what was copied: before the guest is told to use it.
pub fn refuse_another(path: &Path, needed: u64, allowed: &BlockDevices) -> Result<(), Unfit> {
    allowed.allow(path)?;
    let (file, size) = open(path, Way::ReadAlone)?;
    if size != needed {
        let path = path.to_owned();
        return Err(Unfit::Size { path, size, needed });
    }
    refuse_blank(path, &file, size)
}

/// How much was written to the device of an open file since the kernel knows it, in sectors. All that was written before
/// is counted.
pub fn written(file: &File) -> io::Result<i64> {
    file.sync_all()?;
    let number = file.metadata()?.rdev();
    if !is_counted(&sys(number, "")) {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the kernel does not count what is written to it",
        ));
    }
    let said = std::fs::read_to_string(sys(number, "stat"))?;
    // The seventh, as the kernel's Documentation/block/stat.rst has it. The number of writes grows with every flush.
    let sectors = said.split_whitespace().nth(6).and_then(|word| word.parse().ok());
    sectors.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "its statistics are not known"))
}

/// The kernel's number of the device at a path; none where there is none.
pub fn number(path: &Path) -> Option<u64> {
    let found = std::fs::metadata(path).ok()?;
    found.file_type().is_block_device().then(|| found.rdev())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Read,
    /// Refused by the kernel where anybody has it for himself: a mount, RAID, LVM, a partition of it that is in use.
    ReadAlone,
    WriteAlone,
}

/// The device and its size.
fn open(path: &Path, way: Way) -> Result<(File, u64), Unfit> {
    let failed = |source| failed(path, source);
    let found = std::fs::metadata(path).map_err(failed)?;
    if !found.file_type().is_block_device() {
        return Err(Unfit::NotBlock(path.to_owned()));
    }
    let alone = if way == Way::Read { 0 } else { libc::O_EXCL };
    let once = || {
        let mut options = OpenOptions::new();
        options.read(true).write(way == Way::WriteAlone);
        options.custom_flags(libc::O_NONBLOCK | alone).open(path)
    };
    let is_busy = |opened: &io::Result<File>| matches!(opened, Err(error) if error.raw_os_error() == Some(libc::EBUSY));
    let mut opened = once();
    for _ in 0..MOMENTS {
        if !is_busy(&opened) {
            break;
        }
        std::thread::sleep(MOMENT);
        opened = once();
    }
    let mut file = match opened {
        busy if is_busy(&busy) => return Err(Unfit::InUse(path.to_owned())),
        opened => opened.map_err(failed)?,
    };
    // Its name may have been given to something else in between.
    if !file.metadata().map_err(failed)?.file_type().is_block_device() {
        return Err(Unfit::NotBlock(path.to_owned()));
    }
    let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
    Ok((file, size))
}

fn failed(path: &Path, source: io::Error) -> Unfit {
    Unfit::Io {
        path: path.to_owned(),
        source,
    }
}

fn sys(number: u64, file: &str) -> String {
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    format!("/sys/dev/block/{major}:{minor}/{file}")
}

fn is_read_only(number: u64) -> bool {
    let said = std::fs::read_to_string(sys(number, "ro"));
    said.is_ok_and(|text| text.trim() == "1")
}

/// Whether the kernel keeps statistics of a device, by its folder in sysfs. A partition's are its disk's to switch off.
fn is_counted(folder: &str) -> bool {
    let queue = |at: &str| std::fs::read_to_string(Path::new(folder).join(at).join("queue/iostats"));
    let said = queue("").or_else(|_| queue(".."));
    !said.is_ok_and(|text| text.trim() == "0")
}

fn refuse_blank(path: &Path, file: &File, size: u64) -> Result<(), Unfit> {
    match is_blank(file, size) {
        Ok(false) => Ok(()),
        Ok(true) => Err(Unfit::Blank(path.to_owned())),
        Err(source) => Err(failed(path, source)),
    }
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
    fn a_device_whose_writes_nobody_counts_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let partition = folder.path().join("sda/sda1");
        std::fs::create_dir_all(folder.path().join("sda/queue")).unwrap();
        std::fs::create_dir_all(&partition).unwrap();
        let both = |folder: &Path| {
            let counted = |at: &Path| is_counted(at.to_str().unwrap());
            (counted(&folder.join("sda")), counted(&partition))
        };
        assert_eq!(both(folder.path()), (true, true), "one that does not say");
        for (said, counted) in [("1\n", true), ("0\n", false)] {
            std::fs::write(folder.path().join("sda/queue/iostats"), said).unwrap();
            assert_eq!(both(folder.path()), (counted, counted));
        }
    }

    #[test]
    fn what_is_no_device_or_not_listed_is_neither_read_nor_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"precious").unwrap();
        let listed = BlockDevices::new(vec![folder.path().to_owned()]).unwrap();
        let nothing = BlockDevices::default();
        assert!(matches!(fit(&path, 1, &listed), Err(Unfit::NotBlock(_))));
        assert!(matches!(fit(&path, 1, &nothing), Err(Unfit::NotListed(_))));
        assert!(matches!(take(&path, &listed, true), Err(Unfit::NotBlock(_))));
        assert!(matches!(take(&path, &nothing, false), Err(Unfit::NotListed(_))));
        assert!(matches!(open_to_overwrite(&path, 8, &listed), Err(Unfit::NotBlock(_))));
        assert!(matches!(
            open_to_overwrite(&path, 8, &nothing),
            Err(Unfit::NotListed(_))
        ));
        assert!(matches!(refuse_another(&path, 8, &listed), Err(Unfit::NotBlock(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let absent = folder.path().join("absent");
        assert!(matches!(fit(&absent, 1, &listed), Err(Unfit::Io { .. })));
        assert!(read(&path).is_err());
        assert_eq!(number(&path), None);
    }
}
