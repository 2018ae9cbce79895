//! Names of the files that arrive: whether they are free and there is room, given to what was verified, removed.
//! A block device has its name, and keeps it. All functions block.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use drover_proto::ids::MigrationId;
use serde::{Deserialize, Serialize};

use super::places::Place;
use super::{FileError, FileSpec, folders};
use crate::images::{Identity, device};
use crate::promised::Promised;
use crate::storage_directories::StorageDirectories;

/// A file that arrives, as the journal has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arriving {
    pub spec: FileSpec,
    /// Of what was made for it here: under its own name only that one is ours.
    pub identity: Option<Identity>,
}

/// Where a file lies until it is whole.
pub fn partial_name(path: &Path, migration: MigrationId) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix(migration));
    PathBuf::from(name)
}

fn suffix(migration: MigrationId) -> String {
    format!(".drover-partial-{migration}")
}

pub(super) fn places(
    allowed: &StorageDirectories,
    path: &Path,
    migration: MigrationId,
) -> Result<(Place, Place), FileError> {
    let place = allowed.find(path)?;
    let partial = place.beside(&suffix(migration))?;
    Ok((place, partial))
}

/// Refuses what could not be received: a name that is taken, a directory that may not be written to, too little space
/// beside what others were promised.
pub fn check_room(
    allowed: &StorageDirectories,
    files: &[Arriving],
    migration: MigrationId,
    promised: &Promised,
) -> Result<(), FileError> {
    let mut needs: Vec<(u64, u64, Place)> = Vec::new();
    for Arriving { spec, .. } in files {
        if spec.block_device {
            let fit = device::fit(&spec.path, spec.size, allowed.devices())?;
            if promised.has_device(fit.number) {
                return Err(FileError::Promised(spec.path.clone()));
            }
            continue;
        }
        let (place, there) = match folders::missing(allowed, &spec.path)? {
            // Nothing can be there yet; what its folder is made in counts.
            Some(folder) => {
                folder.may_change()?;
                (folder, 0)
            }
            None => free_place(allowed, &spec.path, migration)?,
        };
        let (device, needed) = (place.device()?, spec.allocated.saturating_sub(there));
        match needs.iter_mut().find(|(known, _, _)| *known == device) {
            Some((_, sum, _)) => *sum += needed,
            None => needs.push((device, needed, place)),
        }
    }
    for (_, needed, place) in needs {
        let path = place.path().to_owned();
        let folder = allowed.real(path.parent().unwrap_or(&path)).into_owned();
        let free = promised.free(&folder, allowed).map_or_else(|| place.free(), Ok)?;
        if free < needed {
            return Err(FileError::Space { path, needed, free });
        }
    }
    Ok(())
}

/// Where nothing has its name, and bytes of it that are there already.
fn free_place(allowed: &StorageDirectories, path: &Path, migration: MigrationId) -> Result<(Place, u64), FileError> {
    let (place, partial) = places(allowed, path, migration)?;
    place.may_change()?;
    if place.look()?.is_some() {
        return Err(FileError::Exists(path.to_owned()));
    }
    let there = match partial.look()? {
        Some(_) => partial
            .open_to_read()?
            .metadata()
            .map_or(0, |found| found.blocks() * 512),
        None => 0,
    };
    Ok((place, there))
}

/// Gives what was verified its name. A repeat finds it there.
pub fn put_in_place(
    allowed: &StorageDirectories,
    arriving: &Arriving,
    migration: MigrationId,
) -> Result<(), FileError> {
    if arriving.spec.block_device {
        let Arriving { spec, .. } = arriving;
        return Ok(device::refuse_another(&spec.path, spec.size, allowed.devices())?);
    }
    let (place, partial) = places(allowed, &arriving.spec.path, migration)?;
    let ours = &arriving.identity;
    if ours.is_some() && place.look()? == *ours {
        // Where a name is given by a link, the first one may be left.
        if partial.look()? == *ours {
            partial.remove()?;
        }
        return Ok(());
    }
    match partial.look()? {
        Some(found) if Some(&found) == ours.as_ref() => partial.rename_to(&place),
        Some(_) | None => Err(FileError::Absent(partial.path().to_owned())),
    }
}

/// Under which names it may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// Its own, too: it was never the guest's.
    All,
    /// Only the one that it has until it is whole.
    Partial,
}

/// Removes what this migration made here. Absent is done.
pub fn remove(
    allowed: &StorageDirectories,
    arriving: &Arriving,
    migration: MigrationId,
    names: Names,
) -> Result<(), FileError> {
    if arriving.spec.block_device {
        tracing::warn!(path = %arriving.spec.path.display(), "what was copied onto this device stays there");
        return Ok(());
    }
    match places(allowed, &arriving.spec.path, migration) {
        Ok((place, partial)) => {
            partial.remove()?;
            let is_ours = || arriving.identity.is_some() && place.look().ok().flatten() == arriving.identity;
            if names == Names::All && is_ours() {
                place.remove()?;
            }
        }
        Err(FileError::Absent(_)) => {}
        // Nothing can have been made where nothing may be.
        Err(FileError::Outside(_) | FileError::Path(_) | FileError::Link(_)) => return Ok(()),
        Err(other) => return Err(other),
    }
    folders::remove(allowed, &arriving.spec.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_keeps_its_name_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device");
        std::fs::write(&path, b"in place of a device").unwrap();
        let (size, allocated, mode, block_device) = (1, 1, 0o660, true);
        let spec = FileSpec {
            path,
            size,
            allocated,
            mode,
            block_device,
        };
        let identity = Identity::of(&spec.path).unwrap();
        let (device, migration) = (Arriving { spec, identity }, MigrationId::generate());
        let allowed = StorageDirectories::new(vec![folder.path().to_owned()]).unwrap();
        let placed = put_in_place(&allowed, &device, migration);
        assert!(
            matches!(placed, Err(FileError::Device(_))),
            "it is looked at once more: {placed:?}"
        );
        remove(&allowed, &device, migration, Names::All).unwrap();
        assert!(device.spec.path.exists());
    }
}
