//! The images of copied disks, on both sides: looked at before anything is begun, made before Prepare, removed with
//! the verdict.
//!
//! | verdict | source | destination |
//! |---|---|---|
//! | NeverRan | untouched: the guest goes on with them | what this migration made goes |
//! | Ran | kept; with `delete_source` removed when the migration is closed | the guest's disks |
//!
//! What is to be made is in the journal before it is made, what is to be removed is in it from the start.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::MigrationId;

use super::{Jobs, Seen};
use crate::guest_xml::{self, Backing, Disk};
use crate::hypervisor::CopiedDisks;
use crate::images::{self, CopiedImage, MadeImage, NewImage, device, make, remove, room, shape};
use crate::journal::{DestinationState, OpenPage, Record, Verdict};

impl Jobs {
    /// What the copied disks are here, and what the destination has to make. `there` is the definition that it gets.
    pub(super) async fn look_at_copied(
        &self,
        here: &str,
        there: &str,
        copied: Option<&CopiedDisks>,
        delete_source: bool,
    ) -> Result<Vec<CopiedImage>, Failure> {
        let Some(copied) = copied else {
            return Ok(Vec::new());
        };
        let (here, there) = (disks(here)?, disks(there)?);
        let mut wanted = Vec::new();
        for target in copied.targets() {
            let (disk, copy) = (named(&here, target)?, named(&there, target)?);
            fit_to_copy(disk).map_err(|why| not_copied(target, &why))?;
            fit_to_be_made(copy).map_err(|why| not_copied(target, &why))?;
            wanted.push((disk.clone(), PathBuf::from(&copy.source)));
        }
        let storage = self.storage.clone();
        blocking(move || {
            let look = |(disk, there): (Disk, PathBuf)| {
                let path = PathBuf::from(&disk.source);
                if delete_source && !is_device(&disk) {
                    storage.allow(&path).map_err(|error| {
                        not_copied(
                            &disk.target,
                            &format!("its file could not be removed afterwards: {error}"),
                        )
                        .with_remedy(error.remedy())
                    })?;
                }
                let shape = if is_device(&disk) {
                    device::read(&path)
                } else {
                    shape::read(&path, &disk.format)
                };
                let shape = shape.map_err(|error| not_copied(&disk.target, &error.to_string()))?;
                Ok(copied_image(disk, path, there, shape))
            };
            wanted.into_iter().map(look).collect()
        })
        .await?
    }

    /// Before anything is written down: room for all of them, beside what others were promised.
    pub(super) async fn refuse_images(&self, migration: MigrationId, images: &[MadeImage]) -> Result<(), Failure> {
        if images.is_empty() {
            return Ok(());
        }
        let images: Vec<_> = images.iter().map(|made| made.image.clone()).collect();
        let (storage, promised) = (self.storage.clone(), self.promised(migration));
        blocking(move || room::fits(&images, &storage, &promised))
            .await?
            .map_err(|failure| failure.at_host(self.host.clone()))
    }

    /// Makes the images that the journal names, anew where an earlier try has made them. Devices are there.
    pub(super) async fn make_images(self: &Arc<Self>, page: &mut OpenPage) -> Result<(), Failure> {
        let record = page.record().ok_or_else(|| Failure::internal("the record is gone"))?;
        let images = record.destination().map(|part| part.images.clone()).unwrap_or_default();
        let (migration, group) = (record.migration, self.sockets.group());
        for (at, made) in images.into_iter().enumerate() {
            if made.image.block_device {
                make::look_at_device(&made.image, &self.storage).await?;
                continue;
            }
            let former = made.clone();
            blocking(move || remove::made(&former, migration))
                .await?
                .map_err(stays)?;
            let identity = make::make(&made.image, migration, group, &self.storage).await?;
            page.change(|record| {
                if let Some(made) = record.destination_mut().and_then(|part| part.images.get_mut(at)) {
                    made.identity = Some(identity);
                }
            })
            .await?;
            make::place(&made.image, migration).await?;
        }
        Ok(())
    }

    /// Removes what this migration made. No copy of the guest is here any more, and none ran by it.
    pub(super) async fn remove_images(&self, record: &Record) -> Result<(), Failure> {
        let Some(part) = record.destination() else {
            return Ok(());
        };
        match part.state {
            DestinationState::Waiting
            | DestinationState::Finishing
            | DestinationState::Revoked
            | DestinationState::Failed => {}
            // It may have run on them: whoever said that it did not may want to look at them.
            DestinationState::Resuming | DestinationState::Ran => {
                for made in &part.images {
                    tracing::warn!(migration_id = %record.migration, path = %made.image.path.display(), "this image stays: the guest may have written to it");
                }
                return Ok(());
            }
        }
        for made in part.images.iter().filter(|made| made.image.block_device) {
            tracing::warn!(migration_id = %record.migration, path = %made.image.path.display(), "this device may be half written: wipe it before another copy");
        }
        let (images, migration) = (part.images.clone(), record.migration);
        blocking(move || images.iter().try_for_each(|made| remove::made(made, migration)))
            .await?
            .map_err(stays)
    }

    /// Removes the files of copied disks, where the policy says so and the guest is gone from here for good.
    pub(super) async fn remove_originals(&self, record: &Record) -> Result<(), Failure> {
        let Some(part) = record.source().filter(|part| part.delete_source) else {
            return Ok(());
        };
        if record.verdict() != Some(Verdict::Ran) || record.closed.is_some() {
            return Ok(());
        }
        // What ran on here is newer than what the destination has.
        if record.adopted.as_ref().is_some_and(|adopted| adopted.copy_ran) {
            tracing::error!(migration_id = %record.migration, "the source's images stay: the guest ran on here");
            return Ok(());
        }
        // It may have come back, and these may be its disks again.
        let gone = matches!(self.look(record).await?, Seen::Unknown);
        if !gone || self.has_later(record) {
            tracing::warn!(migration_id = %record.migration, "the source's images stay: this host knows the guest again");
            return Ok(());
        }
        let (images, storage) = (part.copied.clone(), self.storage.clone());
        blocking(move || images.iter().try_for_each(|image| remove::original(image, &storage)))
            .await?
            .map_err(stays)
    }
}

/// What the destination was told to make has to be what the definition that it was given names.
pub(super) fn agree(xml: &str, images: &[NewImage]) -> Result<(), Failure> {
    if images.is_empty() {
        return Ok(());
    }
    let disks = disks(xml)?;
    for image in images {
        let disk = named(&disks, &image.target)?;
        fit_to_be_made(disk).map_err(|why| not_copied(&image.target, &why))?;
        let same = image.path == std::path::Path::new(&disk.source) && image.format.name() == disk.format;
        if !same || image.block_device != is_device(disk) {
            let message = format!("the definition has another image for {}", image.target);
            return Err(Failure::new(Reason::InvalidArgument, message).with_field("images", "must agree with xml"));
        }
    }
    Ok(())
}

/// None is there yet.
pub(super) fn to_make(images: &[NewImage]) -> Vec<MadeImage> {
    let entry = |image: &NewImage| MadeImage {
        image: image.clone(),
        identity: None,
    };
    images.iter().map(entry).collect()
}

fn is_device(disk: &Disk) -> bool {
    disk.source_type == "block"
}

/// Why a disk cannot be copied, as far as its definition tells.
pub fn fit_to_copy(disk: &Disk) -> Result<(), String> {
    let why = match disk {
        _ if !is_device(disk) && disk.source_type != "file" => {
            format!(
                "it is of type {}: only files and block devices are copied",
                disk.source_type
            )
        }
        _ if is_device(disk) && disk.image_format() != "raw" => format!(
            "it is a block device with a {} image on it: only raw ones are copied",
            disk.format
        ),
        _ if disk.source.is_empty() => "the drive is empty".to_owned(),
        _ if disk.read_only => "the guest does not write to it: put the same file on the destination".to_owned(),
        _ if disk.shareable => "several guests may write to it".to_owned(),
        _ if disk.encrypted => "it, or what lies beneath it, is encrypted: the copy would not be".to_owned(),
        _ => return Ok(()),
    };
    Err(why)
}

/// Why the destination would not make it: a copy has nothing beneath it, and nobody makes it open another file.
fn fit_to_be_made(disk: &Disk) -> Result<(), String> {
    fit_to_copy(disk)?;
    if disk.backing.is_empty() {
        return Ok(());
    }
    let chain: Vec<_> = disk.backing.iter().map(|layer| layer.source.as_str()).collect();
    Err(format!("the copy would lie on other files ({})", chain.join(", ")))
}

/// Bytes that a copy takes: `own` of the image itself, and of what lies beneath it, as far as the agent may look; else
/// all of what the guest sees. Blocks.
pub fn copy_takes(disk: &Disk, own: u64, virtual_size: u64) -> u64 {
    let file = |layer: &Backing| {
        let found = (layer.source_type == "file").then(|| std::fs::metadata(&layer.source).ok());
        found.flatten().map(|found| found.blocks().saturating_mul(512))
    };
    let beneath: Option<Vec<u64>> = disk.backing.iter().map(file).collect();
    match beneath {
        Some(layers) => layers.into_iter().fold(own, u64::saturating_add),
        None => own.max(virtual_size),
    }
}

fn copied_image(disk: Disk, path: PathBuf, there: PathBuf, shape: images::shape::Shape) -> CopiedImage {
    let allocated = copy_takes(&disk, shape.copy_takes(), shape.virtual_size);
    let block_device = is_device(&disk);
    let target = disk.target;
    let image = NewImage {
        target: target.clone(),
        path: there,
        format: shape.format,
        virtual_size: shape.virtual_size,
        allocated,
        block_device,
    };
    CopiedImage {
        target,
        path,
        identity: shape.identity,
        image,
    }
}

fn disks(xml: &str) -> Result<Vec<Disk>, Failure> {
    match guest_xml::read(xml) {
        Ok(shape) => Ok(shape.disks),
        Err(error) => Err(Failure::new(Reason::LibvirtFailed, error.to_string())),
    }
}

fn named<'a>(disks: &'a [Disk], target: &str) -> Result<&'a Disk, Failure> {
    let found = disks.iter().find(|disk| disk.target == target);
    found.ok_or_else(|| not_copied(target, "the guest has no such disk"))
}

fn not_copied(target: &str, why: &str) -> Failure {
    Failure::new(Reason::ChecksFailed, format!("{target} cannot be copied: {why}"))
}

/// A failed removal is tried again: nothing else is known to be left behind.
// By value, so that it can be named in `map_err`.
#[allow(clippy::needless_pass_by_value)]
fn stays(error: remove::Stays) -> Failure {
    Failure::new(
        Reason::ResourceExhausted,
        format!("an image cannot be removed: {error}"),
    )
    .with_remedy("let the agent's user write to its folder, or remove it by hand")
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Failure::internal(error.to_string()))
}
