//! Removes images: what a migration made and nobody needs, or what it has copied and its policy wants gone.
//!
//! A file goes only where it is the very one that the journal names. Absent is done. A block device stays, whatever is
//! on it. Blocks.

use std::io;
use std::path::Path;

use drover_proto::ids::MigrationId;

use super::make::first_name;
use super::{CopiedImage, Identity, MadeImage};
use crate::storage_directories::{NotAllowed, StorageDirectories};

/// Why a file stays.
#[derive(Debug, thiserror::Error)]
pub enum Stays {
    #[error("{path}: {source}", path = path.display())]
    Io {
        path: std::path::PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    NotAllowed(#[from] NotAllowed),
}

/// What this migration made at the destination. The caller has seen that no copy of the guest is there.
pub fn made(made: &MadeImage, migration: MigrationId) -> Result<(), Stays> {
    if made.image.block_device {
        return Ok(());
    }
    // Its name is this migration's alone.
    unlink(&first_name(&made.image, migration))?;
    match &made.identity {
        Some(identity) => unlink_if(&made.image.path, identity),
        None => Ok(()),
    }
}

/// The source's file of a disk that was copied. The caller has the verdict that the guest ran at the destination.
pub fn original(copied: &CopiedImage, allowed: &StorageDirectories) -> Result<(), Stays> {
    if copied.image.block_device {
        return Ok(());
    }
    match allowed.allow(&copied.path) {
        Ok(()) => unlink_if(&copied.path, &copied.identity),
        // A folder that is gone took its files along.
        Err(NotAllowed::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn unlink_if(path: &Path, identity: &Identity) -> Result<(), Stays> {
    match Identity::of(path) {
        Ok(Some(found)) if found == *identity => unlink(path),
        Ok(found) => {
            if found.is_some() {
                tracing::warn!(path = %path.display(), "another file is there now: it stays");
            }
            Ok(())
        }
        // Not a file any more: somebody else's.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        Err(error) => Err(stays(path, error)),
    }
}

fn unlink(path: &Path) -> Result<(), Stays> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(stays(path, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn stays(path: &Path, source: io::Error) -> Stays {
    Stays::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Format, NewImage};
    use super::*;

    fn image(folder: &Path) -> NewImage {
        NewImage {
            target: "vda".to_owned(),
            path: folder.join("a.raw"),
            format: Format::Raw,
            virtual_size: 512,
            allocated: 0,
            block_device: false,
        }
    }

    #[test]
    fn only_the_file_that_was_made_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (image, migration) = (image(folder.path()), MigrationId::generate());
        std::fs::write(&image.path, b"precious").unwrap();
        std::fs::write(first_name(&image, migration), b"half").unwrap();
        // Nothing of this migration's is known to be there.
        let mut entry = MadeImage { image, identity: None };
        made(&entry, migration).unwrap();
        assert!(entry.image.path.exists() && !first_name(&entry.image, migration).exists());
        // Another file took the place of the one that was made.
        let other = folder.path().join("other");
        std::fs::write(&other, b"x").unwrap();
        entry.identity = Identity::of(&other).unwrap();
        made(&entry, migration).unwrap();
        assert!(entry.image.path.exists());
        entry.identity = Identity::of(&entry.image.path).unwrap();
        made(&entry, migration).unwrap();
        made(&entry, migration).unwrap();
        assert!(!entry.image.path.exists() && other.exists());
    }

    #[test]
    fn an_original_goes_only_from_listed_folders() {
        let folder = tempfile::tempdir().unwrap();
        let image = image(folder.path());
        std::fs::write(&image.path, b"old").unwrap();
        let copied = CopiedImage {
            target: "vda".to_owned(),
            path: image.path.clone(),
            identity: Identity::of(&image.path).unwrap().unwrap(),
            image,
        };
        assert!(original(&copied, &StorageDirectories::default()).is_err());
        assert!(copied.path.exists());
        let allowed = StorageDirectories::new(vec![folder.path().to_owned()]).unwrap();
        original(&copied, &allowed).unwrap();
        original(&copied, &allowed).unwrap();
        assert!(!copied.path.exists());
    }

    #[test]
    fn a_device_stays() {
        let folder = tempfile::tempdir().unwrap();
        let image = NewImage {
            block_device: true,
            ..image(folder.path())
        };
        std::fs::write(&image.path, b"in place of a device").unwrap();
        let identity = Identity::of(&image.path).unwrap().unwrap();
        let entry = MadeImage {
            image: image.clone(),
            identity: Some(identity.clone()),
        };
        made(&entry, MigrationId::generate()).unwrap();
        let copied = CopiedImage {
            target: "vda".to_owned(),
            path: image.path.clone(),
            identity,
            image,
        };
        let allowed = StorageDirectories::new(vec![folder.path().to_owned()]).unwrap();
        original(&copied, &allowed).unwrap();
        assert!(copied.path.exists());
    }
}
