//! Whether images can be made at the destination, or block devices overwritten. Changes nothing. Blocks.

use std::collections::HashMap;
use std::path::Path;

use drover_proto::failure::{Failure, Reason};

use super::{Identity, NewImage, device};
use crate::offline::{FileError, folders};
use crate::promised::Promised;
use crate::space;
use crate::storage_directories::StorageDirectories;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Why it cannot be made, and what to do about it.
    pub problem: Option<(String, String)>,
    /// Bytes that are neither taken nor promised to others; `None` where nobody can say.
    pub free: Option<u64>,
    /// Images with the same number share that room. Of a block device its own: two copies do not fit on it.
    pub file_system: u64,
}

/// Whether the agent may make it, nothing is there, and the agent can write there.
pub fn look(image: &NewImage, allowed: &StorageDirectories, promised: &Promised) -> Room {
    if image.block_device {
        return on_device(image, allowed, promised);
    }
    let folder = allowed.real(image.path.parent().unwrap_or(Path::new("/")));
    Room {
        problem: problem(image, allowed).err(),
        free: promised.free(&folder, allowed),
        file_system: space::file_system(&folder).unwrap_or_default(),
    }
}

fn on_device(image: &NewImage, allowed: &StorageDirectories, promised: &Promised) -> Room {
    let found = device::fit(&image.path, image.virtual_size, allowed.devices());
    let number = found.as_ref().map_or(0, |fit| fit.number);
    let problem = match &found {
        Err(unfit) => Some((unfit.to_string(), unfit.remedy().to_owned())),
        Ok(fit) if promised.has_device(fit.number) => Some((
            format!("another migration copies onto {} already", image.path.display()),
            "wait for it, or name another device".to_owned(),
        )),
        Ok(_) => None,
    };
    Room {
        problem,
        free: found.ok().map(|fit| fit.size),
        file_system: number,
    }
}

fn problem(image: &NewImage, allowed: &StorageDirectories) -> Result<(), (String, String)> {
    let words = |error: FileError| (error.to_string(), error.remedy().to_owned());
    if let Some(folder) = folders::missing(allowed, &image.path).map_err(words)? {
        return folder.may_change().map_err(words);
    }
    let place = allowed.find(&image.path).map_err(words)?;
    refuse_existing(&allowed.real(&image.path))?;
    place.may_change().map_err(words)
}

/// Refuses images for which there is no room, all together. Where nobody can say, the copy itself will.
pub fn fits(images: &[NewImage], allowed: &StorageDirectories, promised: &Promised) -> Result<(), Failure> {
    let mut needed: HashMap<u64, u64> = HashMap::new();
    for image in images {
        let Room {
            problem,
            free,
            file_system,
        } = look(image, allowed, promised);
        // Of a file this is found when it is made; a device is looked at beside what others were promised.
        if let Some((why, remedy)) = problem.filter(|_| image.block_device) {
            let message = format!("{} cannot be copied: {why}", image.target);
            return Err(Failure::new(Reason::ChecksFailed, message).with_remedy(remedy));
        }
        let sum = needed.entry(file_system).or_default();
        *sum = sum.saturating_add(image.allocated);
        if let Some(free) = free.filter(|free| *sum > *free) {
            let message = format!(
                "there is no space for {}: {sum} bytes are needed, {free} are free",
                image.path.display()
            );
            let remedy = "make room there, wait for other migrations to that host, or name another place for the disk";
            return Err(Failure::new(Reason::NoSpace, message).with_remedy(remedy));
        }
    }
    Ok(())
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
            block_device: false,
        };
        let look = |allowed: &StorageDirectories| super::look(&image, allowed, &Promised::default());
        let room = look(&allowed);
        assert_eq!(room.problem, None);
        assert!(room.free > Some(0));
        std::fs::write(&image.path, b"precious").unwrap();
        let (problem, _) = look(&allowed).problem.unwrap();
        assert!(problem.contains("already"), "{problem}");
        let (problem, _) = look(&StorageDirectories::default()).problem.unwrap();
        assert!(problem.contains("storage_directories"), "{problem}");
    }

    #[test]
    fn images_that_fit_alone_and_not_together_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let allowed = StorageDirectories::new(vec![folder.path().to_owned()]).unwrap();
        let free = Promised::default().free(folder.path(), &allowed).unwrap();
        let image = |name: &str| NewImage {
            target: name.to_owned(),
            path: folder.path().join(name),
            format: Format::Raw,
            virtual_size: free,
            allocated: free / 3 * 2,
            block_device: false,
        };
        let fits = |images: &[NewImage]| fits(images, &allowed, &Promised::default());
        fits(&[image("vda")]).unwrap();
        let refused = fits(&[image("vda"), image("vdb")]).unwrap_err();
        assert_eq!(refused.reason, Reason::NoSpace);
    }
}
