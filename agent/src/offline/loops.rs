//! Loop devices: the kernel writes to the file beneath one, and takes none of QEMU's locks. All functions block.

use std::fs::{File, read_dir, read_to_string};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::FileError;
use super::image_lock::Others;

const DEVICES: &str = "/sys/block";
/// The kernel adds it where the file has no name any more.
const NAMELESS: &str = " (deleted)";

/// Refuses a file that a loop device lies on; where others may read it, only one that can be written to.
pub fn refuse(file: &File, path: &Path, others: Others) -> Result<(), FileError> {
    let found = on(file, path, Path::new(DEVICES)).map_err(|source| FileError::io(path, source))?;
    match found.filter(|device| !device.read_only || others == Others::None) {
        None => Ok(()),
        Some(Device { name, .. }) => Err(FileError::Loop {
            path: path.to_owned(),
            device: name,
        }),
    }
}

/// A loop device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Device {
    /// `loop0`.
    name: String,
    read_only: bool,
}

/// The loop device that lies on a file; one that can be written to before any other. `devices` is /sys/block.
fn on(file: &File, path: &Path, devices: &Path) -> io::Result<Option<Device>> {
    let ours = file.metadata()?;
    let entries = match read_dir(devices) {
        Ok(entries) => entries,
        // A kernel without block devices.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut found = None;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("loop") {
            continue;
        }
        // One that lies on nothing has no such file.
        let Ok(beneath) = read_to_string(entry.path().join("loop/backing_file")) else {
            continue;
        };
        let beneath = Path::new(beneath.trim_end_matches('\n').trim_end_matches(NAMELESS));
        // A path of another mount namespace leads nowhere here, or elsewhere: then its name has to do.
        let same_file = beneath
            .metadata()
            .is_ok_and(|other| (other.dev(), other.ino()) == (ours.dev(), ours.ino()));
        if !same_file && beneath != path {
            continue;
        }
        let read_only = read_to_string(entry.path().join("ro")).is_ok_and(|text| text.trim() == "1");
        let device = Device { name, read_only };
        if !read_only {
            return Ok(Some(device));
        }
        found = Some(device);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(devices: &Path, name: &str, beneath: &Path, read_only: bool) {
        let folder = devices.join(name).join("loop");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("backing_file"), format!("{}\n", beneath.display())).unwrap();
        let text = if read_only { "1\n" } else { "0\n" };
        std::fs::write(devices.join(name).join("ro"), text).unwrap();
    }

    #[test]
    fn a_file_beneath_a_loop_device_is_found_by_any_of_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let (devices, image, other) = (
            folder.path().join("block"),
            folder.path().join("a.raw"),
            folder.path().join("b.raw"),
        );
        std::fs::create_dir_all(devices.join("loop0")).unwrap();
        std::fs::create_dir_all(devices.join("sda")).unwrap();
        std::fs::write(&image, b"a").unwrap();
        std::fs::write(&other, b"b").unwrap();
        let file = File::open(&image).unwrap();
        let found = || on(&file, Path::new("/images/a.raw"), &devices).unwrap();
        assert_eq!(found(), None);
        device(&devices, "loop1", &other, false);
        assert_eq!(found(), None, "another file's");
        let link = folder.path().join("link");
        std::fs::hard_link(&image, &link).unwrap();
        device(&devices, "loop2", &link, true);
        let name = |device: Option<Device>| device.map(|device| (device.name, device.read_only));
        assert_eq!(name(found()), Some(("loop2".to_owned(), true)));
        device(&devices, "loop3", Path::new("/images/a.raw"), false);
        assert_eq!(name(found()), Some(("loop3".to_owned(), false)));
        assert_eq!(on(&file, &image, &folder.path().join("absent")).unwrap(), None);
    }
}
