//! The folders of a guest's own in which the state of its TPM lies: made for the file that comes, and gone with it. All
//! functions block.
//!
//! libvirt makes them when it starts the guest for the first time, and a new TPM with them; where they are there it
//! gives them and what is in them to swtpm's user, and makes none (`qemuTPMEmulatorCreateStorage`, libvirt 9.0). So they
//! are not left behind without the file: the guest would start with a TPM that has no keys.

use std::path::Path;

use super::FileError;
use super::places::Place;
use crate::guest_xml::tpm_folders;
use crate::storage_directories::StorageDirectories;

/// Rights of the outer and the inner one, as libvirt gives them: swtpm's user goes through the one, the other is his.
const MODES: [u32; 2] = [0o711, 0o700];

/// swtpm's own, and empty.
const LOCK: &str = ".lock";

/// The outermost of a file's folders that is still to be made; none where all are there.
pub fn missing(allowed: &StorageDirectories, file: &Path) -> Result<Option<Place>, FileError> {
    for folder in tpm_folders(file).into_iter().flatten() {
        let place = allowed.find(folder)?;
        if place.look()?.is_none() {
            return Ok(Some(place));
        }
    }
    Ok(None)
}

/// Makes those that are not there. Done when they have reached the disk.
pub fn make(allowed: &StorageDirectories, file: &Path) -> Result<(), FileError> {
    for (folder, mode) in tpm_folders(file).into_iter().flatten().zip(MODES) {
        allowed.find(folder)?.make_folder(mode)?;
    }
    Ok(())
}

/// Removes those that are empty. One that this user may not remove was not made by it.
pub fn remove(allowed: &StorageDirectories, file: &Path) -> Result<(), FileError> {
    for folder in tpm_folders(file).into_iter().flatten().rev() {
        match allowed.find(folder).and_then(|place| place.remove_folder()) {
            Ok(()) | Err(FileError::Absent(_) | FileError::Denied { .. } | FileError::Outside(_)) => {}
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

/// The same, of a guest that has left, with what swtpm leaves beside the state.
pub fn leave(allowed: &StorageDirectories, file: &Path) -> Result<(), FileError> {
    let Some([_, inner]) = tpm_folders(file) else {
        return Ok(());
    };
    match allowed.find(&inner.join(LOCK)) {
        Ok(lock) => lock.remove()?,
        Err(FileError::Absent(_)) => {}
        Err(other) => return Err(other),
    }
    remove(allowed, file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const STATE: &str = "0190a1b2-0000-7000-8000-0000000000aa/tpm2/tpm2-00.permall";

    #[test]
    fn folders_are_made_once_and_go_when_they_are_empty() {
        let root = tempfile::tempdir().unwrap();
        let allowed = StorageDirectories::new(vec![root.path().to_owned()]).unwrap();
        let file = root.path().join(STATE);
        let [outer, inner] = tpm_folders(&file).unwrap();
        assert_eq!(missing(&allowed, &file).unwrap().unwrap().path(), outer);
        // As if the agent had died in between: what is there is taken, with the rights that it has to have.
        std::fs::create_dir(outer).unwrap();
        std::fs::set_permissions(outer, PermissionsExt::from_mode(0o700)).unwrap();
        assert_eq!(missing(&allowed, &file).unwrap().unwrap().path(), inner);
        for _ in 0..2 {
            make(&allowed, &file).unwrap();
            assert!(missing(&allowed, &file).unwrap().is_none());
        }
        for (folder, mode) in [(outer, 0o711), (inner, 0o700)] {
            assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, mode);
        }
        std::fs::write(&file, b"keys").unwrap();
        remove(&allowed, &file).unwrap();
        assert!(file.exists(), "what holds something stays");
        std::fs::remove_file(&file).unwrap();
        std::fs::write(inner.join(LOCK), b"").unwrap();
        leave(&allowed, &file).unwrap();
        assert!(!outer.exists());
        remove(&allowed, &file).unwrap();
    }

    #[test]
    fn no_folder_is_made_for_an_image() {
        let root = tempfile::tempdir().unwrap();
        let allowed = StorageDirectories::new(vec![root.path().to_owned()]).unwrap();
        let file = root.path().join("0190a1b2-0000-7000-8000-0000000000aa/disk.raw");
        assert!(missing(&allowed, &file).unwrap().is_none());
        make(&allowed, &file).unwrap();
        leave(&allowed, &file).unwrap();
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_link_in_place_of_a_folder_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let (listed, other) = (root.path().join("swtpm"), root.path().join("other"));
        std::fs::create_dir(&listed).unwrap();
        std::fs::create_dir(&other).unwrap();
        let allowed = StorageDirectories::new(vec![listed.clone()]).unwrap();
        let file = listed.join(STATE);
        std::os::unix::fs::symlink(&other, tpm_folders(&file).unwrap()[0]).unwrap();
        assert!(matches!(missing(&allowed, &file), Err(FileError::Link(_))));
        assert!(matches!(make(&allowed, &file), Err(FileError::Link(_))));
        assert_eq!(std::fs::read_dir(&other).unwrap().count(), 0);
    }
}
