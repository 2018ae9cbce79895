//! Whether an image can be made at the destination. Changes nothing. Blocks.

use std::path::Path;

use super::{Identity, NewImage};
use crate::space;
use crate::storage_directories::StorageDirectories;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Why it cannot be made, and what to do about it.
    pub problem: Option<(String, String)>,
    /// Bytes; `None` where nobody can say.
    pub free: Option<u64>,
    /// Images with the same number share that room.
    pub file_system: u64,
}

/// Whether the agent may make it, nothing is there, and the agent can write there.
pub fn look(image: &NewImage, allowed: &StorageDirectories) -> Room {
    let folder = image.path.parent().unwrap_or(Path::new("/"));
    let (free, file_system) = (space::free(folder), space::file_system(folder).unwrap_or_default());
    Room {
        problem: problem(image, folder, allowed).err(),
        free,
        file_system,
    }
}

fn problem(image: &NewImage, folder: &Path, allowed: &StorageDirectories) -> Result<(), (String, String)> {
    allowed
        .allow(&image.path)
        .map_err(|error| (error.to_string(), error.remedy().to_owned()))?;
    refuse_existing(&image.path)?;
    let writable = nix::unistd::access(folder, nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK);
    writable.map_err(|error| {
        let problem = format!("the agent cannot write to {}: {error}", folder.display());
        (problem, "give the agent's user a group or an ACL there".to_owned())
    })
}

/// Copying onto a file that is there would destroy it; where it is the same storage, it would destroy the guest's disk.
pub(super) fn refuse_existing(path: &Path) -> Result<(), (String, String)> {
    match Identity::of(path) {
        Ok(None) => Ok(()),
        Ok(Some(_)) | Err(_) => Err((
            format!("there is something at {} already", path.display()),
            "if it is a leftover, move it away; if it is the guest's own disk on shared storage, do not copy it"
                .to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::*;

    #[test]
    fn a_file_that_is_there_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let allowed = StorageDirectories::new(vec![folder.path().to_owned()]).unwrap();
        let image = NewImage {
            target: "vda".to_owned(),
            path: folder.path().join("a.raw"),
            format: Format::Raw,
            virtual_size: 512,
            allocated: 512,
        };
        let room = look(&image, &allowed);
        assert_eq!(room.problem, None);
        assert!(room.free > Some(0));
        std::fs::write(&image.path, b"precious").unwrap();
        let (problem, _) = look(&image, &allowed).problem.unwrap();
        assert!(problem.contains("already"), "{problem}");
        let (problem, _) = look(&image, &StorageDirectories::default()).problem.unwrap();
        assert!(problem.contains("storage_directories"), "{problem}");
    }
}
