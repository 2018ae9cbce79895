//! What names a block device on every host that has it: the WWN or serial of the hardware beneath. Blocks.
//!
//! A path or a device number proves nothing, and neither does a UUID that lies on the disk itself (LVM's, a partition
//! table's): a cloned machine has the same. So a device-mapper device counts only together with the hardware names of
//! all that lies beneath it, and loop devices, RAM disks and the like have no name at all.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Device-mapper tables on top of each other; more than anybody stacks.
const DEEPEST: u32 = 8;

/// A serial that its owner could choose counts only where it is at least so long.
const LEAST_SERIAL: usize = 16;

/// A block device of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub path: PathBuf,
    /// `wwid:…`, `serial:…`, `dm:… on …`, with the partition's number.
    pub identity: String,
    /// Bytes.
    pub size: u64,
}

/// Why a block device has no name that proves anything.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path} is no block device", path = .0.display())]
    NotBlock(PathBuf),
    #[error("{path} has no WWN or serial that could prove which device it is", path = .0.display())]
    Nameless(PathBuf),
    /// The same path is another device.
    #[error("{path} is another device here: {what}", path = path.display())]
    Other { path: PathBuf, what: String },
}

/// What a device is called. `sys` is /sys.
pub fn look(path: &Path, sys: &Path) -> Result<Device, DeviceError> {
    let found = fs::metadata(path).map_err(|source| DeviceError::Io {
        path: path.to_owned(),
        source,
    })?;
    if !found.file_type().is_block_device() {
        return Err(DeviceError::NotBlock(path.to_owned()));
    }
    let number = found.rdev();
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    named(path, &sys.join(format!("dev/block/{major}:{minor}")))
}

/// `folder` is the device's in sysfs.
fn named(path: &Path, folder: &Path) -> Result<Device, DeviceError> {
    let nameless = || DeviceError::Nameless(path.to_owned());
    let folder = fs::canonicalize(folder).map_err(|_| nameless())?;
    let identity = identity(&folder, DEEPEST).ok_or_else(nameless)?;
    let sectors: u64 = read(&folder.join("size"))
        .and_then(|text| text.parse().ok())
        .ok_or_else(nameless)?;
    Ok(Device {
        path: path.to_owned(),
        identity,
        size: sectors.saturating_mul(512),
    })
}

/// Whether the device at this path here is the one that the other side saw at it.
pub fn compare(theirs: &Device, sys: &Path) -> Result<(), DeviceError> {
    let here = look(&theirs.path, sys)?;
    differences(theirs, &here)
}

fn differences(theirs: &Device, here: &Device) -> Result<(), DeviceError> {
    let other = |what| {
        Err(DeviceError::Other {
            path: theirs.path.clone(),
            what,
        })
    };
    if theirs.identity != here.identity {
        return other(format!("{} instead of {}", here.identity, theirs.identity));
    }
    if theirs.size != here.size {
        return other(format!("{} bytes instead of {}", here.size, theirs.size));
    }
    Ok(())
}

fn identity(folder: &Path, depth: u32) -> Option<String> {
    if let Some(number) = read(&folder.join("partition")) {
        return Some(format!("{} partition {number}", identity(folder.parent()?, depth)?));
    }
    if let Some(uuid) = read(&folder.join("dm/uuid")) {
        return Some(format!("dm:{uuid} on {}", beneath(folder, depth)?));
    }
    let wwid = read(&folder.join("wwid")).or_else(|| read(&folder.join("device/wwid")));
    if let Some(wwid) = wwid.filter(|wwid| is_unique(wwid)) {
        return Some(format!("wwid:{wwid}"));
    }
    let serial = read(&folder.join("serial")).filter(|serial| serial.len() >= LEAST_SERIAL);
    serial.map(|serial| format!("serial:{serial}"))
}

/// The names of everything that a device-mapper device lies on: paths to one disk count once.
fn beneath(folder: &Path, depth: u32) -> Option<String> {
    let depth = depth.checked_sub(1)?;
    let entries = fs::read_dir(folder.join("slaves")).ok()?;
    let mut names = BTreeSet::new();
    for entry in entries {
        let slave = fs::canonicalize(entry.ok()?.path()).ok()?;
        names.insert(identity(&slave, depth)?);
    }
    (!names.is_empty()).then(|| names.into_iter().collect::<Vec<_>>().join("+"))
}

/// Emulated disks all have the same names, if nobody gives them others.
fn is_unique(wwid: &str) -> bool {
    let known = ["naa.", "eui.", "nvme.", "uuid.", "t10."]
        .iter()
        .any(|kind| wwid.starts_with(kind));
    known && !wwid.contains("QEMU") && !wwid.contains("VBOX")
}

/// A short text without control characters and blanks around; `None` where there is none.
fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    let usable = !text.is_empty() && text.len() <= 512 && !text.chars().any(char::is_control);
    usable.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sys(tempfile::TempDir);

    impl Sys {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn write(&self, path: &str, text: &str) -> &Self {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
            self
        }

        fn slave(&self, of: &str, slave: &str) -> &Self {
            let folder = self.0.path().join(of).join("slaves");
            fs::create_dir_all(&folder).unwrap();
            let link = folder.join(Path::new(slave).file_name().unwrap());
            std::os::unix::fs::symlink(self.0.path().join(slave), link).unwrap();
            self
        }

        fn name(&self, folder: &str) -> Option<String> {
            self.write(&format!("{folder}/size"), "2048\n");
            let found = named(Path::new("/dev/x"), &self.0.path().join(folder)).ok()?;
            assert_eq!(found.size, 1 << 20);
            Some(found.identity)
        }
    }

    #[test]
    fn hardware_names_itself() {
        let sys = Sys::new();
        sys.write("sda/device/wwid", "naa.600140508b1a\n");
        assert_eq!(sys.name("sda").unwrap(), "wwid:naa.600140508b1a");
        sys.write("nvme0n1/wwid", "eui.0025388b71b0\n");
        assert_eq!(sys.name("nvme0n1").unwrap(), "wwid:eui.0025388b71b0");
        sys.write("vdb/serial", "0190a1b2-0000-7000-8");
        assert_eq!(sys.name("vdb").unwrap(), "serial:0190a1b2-0000-7000-8");
    }

    #[test]
    fn what_has_no_name_of_its_own_proves_nothing() {
        let sys = Sys::new();
        assert_eq!(sys.name("loop0"), None);
        sys.write(
            "sda/device/wwid",
            "t10.ATA     QEMU HARDDISK                           QM00001\n",
        );
        assert_eq!(sys.name("sda"), None);
        sys.write("vda/serial", "disk1");
        assert_eq!(sys.name("vda"), None);
        sys.write("ram0/wwid", "  \n");
        assert_eq!(sys.name("ram0"), None);
    }

    #[test]
    fn a_partition_is_its_disk_and_a_number() {
        let sys = Sys::new();
        sys.write("sda/device/wwid", "naa.6001")
            .write("sda/sda2/partition", "2");
        assert_eq!(sys.name("sda/sda2").unwrap(), "wwid:naa.6001 partition 2");
    }

    #[test]
    fn a_volume_counts_only_with_the_hardware_beneath_it() {
        let sys = Sys::new();
        sys.write("dm-0/dm/uuid", "LVM-abc").slave("dm-0", "sda");
        sys.write("sda/size", "1");
        assert_eq!(sys.name("dm-0"), None, "a cloned disk has the same LVM names");
        sys.write("sda/device/wwid", "naa.6001");
        assert_eq!(sys.name("dm-0").unwrap(), "dm:LVM-abc on wwid:naa.6001");
        // Two paths to one disk, and a volume on the map of them.
        sys.write("sdb/device/wwid", "naa.6001");
        sys.write("dm-1/dm/uuid", "mpath-36001")
            .slave("dm-1", "sda")
            .slave("dm-1", "sdb");
        sys.write("dm-2/dm/uuid", "LVM-def").slave("dm-2", "dm-1");
        assert_eq!(
            sys.name("dm-2").unwrap(),
            "dm:LVM-def on dm:mpath-36001 on wwid:naa.6001"
        );
        sys.write("dm-3/dm/uuid", "LVM-ghi").slave("dm-3", "dm-3");
        assert_eq!(sys.name("dm-3"), None, "what goes round in a circle ends");
    }

    #[test]
    fn another_device_or_size_is_noticed() {
        let device = |identity: &str, size| Device {
            path: "/dev/x".into(),
            identity: identity.to_owned(),
            size,
        };
        differences(&device("wwid:a", 1), &device("wwid:a", 1)).unwrap();
        assert!(differences(&device("wwid:a", 1), &device("wwid:b", 1)).is_err());
        assert!(differences(&device("wwid:a", 1), &device("wwid:a", 2)).is_err());
    }

    #[test]
    fn a_file_is_no_device() {
        let sys = Sys::new();
        sys.write("file", "");
        assert!(matches!(
            look(&sys.0.path().join("file"), sys.0.path()),
            Err(DeviceError::NotBlock(_))
        ));
        assert!(matches!(
            look(Path::new("/dev/absent"), sys.0.path()),
            Err(DeviceError::Io { .. })
        ));
    }
}
