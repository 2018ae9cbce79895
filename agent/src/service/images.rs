//! Copied disks over gRPC: what the source says of its images, and whether the destination has room for copies.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use drover_proto::agent::v1 as agent;
use drover_proto::failure::{Failure, Reason};

use super::AgentServer;
use super::inspect::blocking;
use crate::guest_xml::{Backing, Disk, GuestShape, Needs};
use crate::images::{Format, NewImage, device, room, shape};
use crate::jobs::device_owners::{self, DeviceOwners};
use crate::jobs::offline_files::{refuse_foreign_variables, refuse_shareable, users};
use crate::jobs::{copy_takes, fit_to_copy};
use crate::offline::chain::{self, Layer};
use crate::offline::{FileError, image};
use crate::promised::Promised;
use crate::storage_directories::StorageDirectories;

/// As many as a guest may have disks.
const MOST_IMAGES: usize = 256;
/// libvirt's names are shorter.
const LONGEST_TARGET: usize = 64;

/// Targets of the disks to copy.
pub(super) fn targets(field: &str, targets: Vec<String>) -> Result<Vec<String>, Failure> {
    let mut known = HashSet::new();
    for target in &targets {
        if !is_target(target) || !known.insert(target.as_str()) {
            return Err(Failure::invalid(field, "targets of disks, each once"));
        }
    }
    if targets.len() > MOST_IMAGES {
        return Err(Failure::invalid(field, format!("at most {MOST_IMAGES}")));
    }
    Ok(targets)
}

/// It becomes part of a file's name.
fn is_target(target: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    !target.is_empty() && target.len() <= LONGEST_TARGET && target.chars().all(plain)
}

pub(super) fn images_from(field: &str, messages: Vec<agent::NewImage>) -> Result<Vec<NewImage>, Failure> {
    targets(field, messages.iter().map(|image| image.target.clone()).collect())?;
    messages.into_iter().map(|message| image_from(field, message)).collect()
}

fn image_from(field: &str, message: agent::NewImage) -> Result<NewImage, Failure> {
    let bad = |why: String| Failure::invalid(field, format!("{}: {why}", message.target));
    let format = match message.format.as_str() {
        "raw" => Format::Raw,
        "qcow2" => Format::Qcow2 {
            version: message.qcow2_version,
            cluster_bits: message.qcow2_cluster_bits,
            lazy_refcounts: message.qcow2_lazy_refcounts,
            extended_l2: message.qcow2_extended_l2,
        },
        other => return Err(bad(format!("the format {other:?} is not known"))),
    };
    if let Format::Qcow2 {
        version, cluster_bits, ..
    } = format
        && !((2..=3).contains(&version) && (9..=21).contains(&cluster_bits))
    {
        return Err(bad("no such qcow2 image can be made".to_owned()));
    }
    // What is larger is no length of a file.
    if message.virtual_size_bytes == 0 || i64::try_from(message.virtual_size_bytes).is_err() {
        return Err(bad("its size is not valid".to_owned()));
    }
    let path = PathBuf::from(&message.path);
    if !crate::storage_directories::is_plain(&path) {
        return Err(bad("its path is not plain and absolute".to_owned()));
    }
    if message.block_device && format != Format::Raw {
        return Err(bad("only raw images are copied onto block devices".to_owned()));
    }
    Ok(NewImage {
        target: message.target,
        path,
        format,
        virtual_size: message.virtual_size_bytes,
        allocated: message.allocated_bytes,
        block_device: message.block_device,
    })
}

pub(super) fn image(image: NewImage) -> agent::NewImage {
    let mut message = agent::NewImage {
        target: image.target,
        path: image.path.to_string_lossy().into_owned(),
        format: image.format.name().to_owned(),
        virtual_size_bytes: image.virtual_size,
        allocated_bytes: image.allocated,
        block_device: image.block_device,
        ..agent::NewImage::default()
    };
    if let Format::Qcow2 {
        version,
        cluster_bits,
        lazy_refcounts,
        extended_l2,
    } = image.format
    {
        message.qcow2_version = version;
        message.qcow2_cluster_bits = cluster_bits;
        message.qcow2_lazy_refcounts = lazy_refcounts;
        message.qcow2_extended_l2 = extended_l2;
    }
    message
}

impl AgentServer {
    /// Whether these images could be made here.
    pub(super) async fn rooms(&self, images: Vec<agent::NewImage>) -> Result<Vec<agent::ImageRoom>, Failure> {
        if images.is_empty() {
            return Ok(Vec::new());
        }
        let (images, storage) = (images_from("images", images)?, self.jobs.storage.clone());
        let promised = Promised::of(&self.jobs.journal.records(), None);
        let owners = if images.iter().any(|image| image.block_device) {
            self.jobs.device_owners().await?
        } else {
            DeviceOwners::default()
        };
        blocking(move || {
            let look = |image: NewImage| {
                let found = room::look(&image, &storage, &promised);
                let of_guest = owners.refuse(&image.path).err().filter(|_| image.block_device);
                let of_guest = of_guest.map(|why| (why, device_owners::REMEDY.to_owned()));
                let (problem, remedy) = of_guest.or(found.problem).unwrap_or_default();
                agent::ImageRoom {
                    target: image.target,
                    problem,
                    remedy,
                    free_bytes: found.free,
                    file_system: found.file_system,
                }
            };
            images.into_iter().map(look).collect()
        })
        .await
    }
}

/// Adds to each disk how large it is, or why it cannot be copied. `disks` are of the same guest, in the same order.
pub(super) async fn add_sizes(facts: &mut agent::GuestFacts, disks: Vec<Disk>) -> Result<(), Failure> {
    let found: Vec<_> = blocking(move || disks.into_iter().map(|disk| size(&disk)).collect()).await?;
    for (facts, (allocated, found)) in facts.disks.iter_mut().zip(found) {
        facts.allocated_bytes = allocated;
        match found {
            Ok(virtual_size) => facts.virtual_size_bytes = virtual_size,
            Err(problem) => facts.copy_problem = problem,
        }
    }
    Ok(())
}

/// What its file and what lies beneath it take, and what the guest sees or why it cannot be copied.
fn size(disk: &Disk) -> (u64, Result<u64, String>) {
    let unfit = fit_to_copy(disk);
    if disk.source_type == "block" && !disk.source.is_empty() {
        let shape = unfit.and_then(|()| device::read(Path::new(&disk.source)).map_err(|error| error.to_string()));
        let size = shape.map(|shape| shape.virtual_size);
        return (size.as_ref().copied().unwrap_or_default(), size);
    }
    if disk.source_type != "file" || disk.source.is_empty() {
        return (0, unfit.map(|()| 0));
    }
    let path = PathBuf::from(&disk.source);
    let own = std::fs::metadata(&path).map_or(0, |found| found.blocks().saturating_mul(512));
    let shape = shape::read(&path, &disk.format).map_err(|error| error.to_string());
    let virtual_size = shape.as_ref().map_or(0, |shape| shape.virtual_size);
    (
        copy_takes(disk, own, virtual_size),
        unfit.and_then(|()| Ok(shape?.virtual_size)),
    )
}

/// Adds to each disk of a guest that is shut off, to its variables and to its TPM's state, why the file could not be taken along.
pub(super) async fn add_offline_problems(
    facts: &mut agent::GuestFacts,
    shape: GuestShape,
    storage: StorageDirectories,
) -> Result<(), Failure> {
    let (disks, needs) = (shape.disks, shape.needs);
    let look = move || {
        let disks: Vec<_> = disks.iter().map(|disk| fit_to_leave(disk, &storage)).collect();
        (disks, fit_variables(&needs, &storage), fit_tpm(&needs, &storage))
    };
    let (disks, variables, tpm) = blocking(look).await?;
    let words = |problem: Result<(), Failure>| {
        let failure = problem.err();
        failure.map_or_else(Default::default, |failure| {
            (failure.message, failure.remedy.unwrap_or_default())
        })
    };
    for (facts, problem) in facts.disks.iter_mut().zip(disks) {
        (facts.offline_problem, facts.offline_remedy) = words(problem);
    }
    (facts.variables_problem, facts.variables_remedy) = words(variables);
    (facts.tpm_problem, facts.tpm_remedy) = words(tpm);
    Ok(())
}

fn fit_to_leave(disk: &Disk, storage: &StorageDirectories) -> Result<(), Failure> {
    if disk.source_type == "block" && !disk.source.is_empty() {
        refuse_shareable(disk)?;
        fit_to_copy(disk).map_err(|why| Failure::new(Reason::ChecksFailed, why))?;
        let taken = device::take(Path::new(&disk.source), storage.devices(), false);
        return taken.map(drop).map_err(|unfit| FileError::from(unfit).into());
    }
    if disk.source_type != "file" || disk.source.is_empty() {
        return Ok(());
    }
    refuse_shareable(disk)?;
    let path = Path::new(&disk.source);
    let open = |path: &Path| storage.find(path)?.open_to_read();
    let (layers, problem) = chain::read(path, disk.image_format(), open);
    let known: Vec<PathBuf> = layers.iter().map(|layer| layer.path.clone()).collect();
    // What is said of the image itself comes first.
    image::look(storage, path, disk.image_format(), users(disk.read_only), &known).map_err(Failure::from)?;
    for layer in &layers {
        image::look(storage, &layer.path, &layer.format, users(true), &known).map_err(Failure::from)?;
    }
    problem.map_or(Ok(()), |error| Err(error.into()))
}

/// The disks of a guest that is shut off with what they lie on: its definition does not say. As far as the agent may
/// read their heads.
pub(super) fn with_chains(mut disks: Vec<Disk>, storage: &StorageDirectories) -> Vec<Disk> {
    for disk in &mut disks {
        if disk.source_type != "file" || disk.source.is_empty() || !disk.backing.is_empty() {
            continue;
        }
        let open = |path: &Path| open_file(&storage.real(path)).map_err(|source| FileError::io(path, source));
        let (layers, problem) = chain::read(Path::new(&disk.source), disk.image_format(), open);
        if let Some(error) = problem {
            tracing::debug!(%error, "a backing chain was not followed to its end");
        }
        let layer = |layer: Layer| Backing {
            source_type: "file".to_owned(),
            source: layer.path.to_string_lossy().into_owned(),
        };
        disk.backing = layers.into_iter().map(layer).collect();
    }
    disks
}

/// Not through a link, and no pipe or device.
fn open_file(path: &Path) -> std::io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(std::io::ErrorKind::InvalidInput.into())
    }
}

fn fit_variables(needs: &Needs, storage: &StorageDirectories) -> Result<(), Failure> {
    refuse_foreign_variables(needs)?;
    let path = Path::new(&needs.nvram);
    if !path.is_absolute() {
        return Ok(());
    }
    match image::look(storage, path, "raw", users(false), &[]) {
        // One that was never started has none yet.
        Ok(()) | Err(FileError::Absent(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What was never started has no state either; that it has none elsewhere nobody can see.
fn fit_tpm(needs: &Needs, storage: &StorageDirectories) -> Result<(), Failure> {
    if needs.tpm_state.is_empty() {
        return Ok(());
    }
    let found = image::look(storage, Path::new(&needs.tpm_state), "raw", users(false), &[]);
    found.map_err(|error| {
        let remedy = if matches!(error, FileError::Absent(_)) {
            "start the guest here once, if it never was: libvirt makes its TPM then; where libvirt keeps it elsewhere, it \
             cannot move shut off"
        } else if matches!(error, FileError::Denied { .. }) {
            "libvirt takes the agent's right to it away whenever the guest is started: the hook in docs/operating.md \
             gives it back"
        } else {
            error.remedy()
        };
        Failure::from(error).with_remedy(remedy)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> agent::NewImage {
        agent::NewImage {
            target: "vda".to_owned(),
            path: "/images/a.qcow2".to_owned(),
            format: "qcow2".to_owned(),
            virtual_size_bytes: 1 << 30,
            allocated_bytes: 1 << 20,
            qcow2_version: 3,
            qcow2_cluster_bits: 16,
            qcow2_lazy_refcounts: true,
            qcow2_extended_l2: false,
            block_device: false,
        }
    }

    #[test]
    fn an_image_survives_its_message() {
        let read = image_from("images", message()).unwrap();
        assert_eq!(image(read), message());
        let onto_device = agent::NewImage {
            format: "raw".to_owned(),
            block_device: true,
            virtual_size_bytes: 1 << 30,
            target: "vda".to_owned(),
            path: "/dev/vg/web".to_owned(),
            ..agent::NewImage::default()
        };
        assert_eq!(image(image_from("images", onto_device.clone()).unwrap()), onto_device);
    }

    #[test]
    fn what_cannot_be_an_image_is_refused() {
        let cases: [fn(&mut agent::NewImage); 7] = [
            |image| image.target = "../x".to_owned(),
            |image| image.target.clear(),
            |image| image.path = "/images/../etc/a".to_owned(),
            |image| image.format = "vmdk".to_owned(),
            |image| image.virtual_size_bytes = u64::MAX,
            |image| image.qcow2_cluster_bits = 40,
            |image| image.block_device = true,
        ];
        for change in cases {
            let mut message = message();
            change(&mut message);
            assert!(images_from("images", vec![message.clone()]).is_err(), "{message:?}");
        }
        assert!(images_from("images", vec![message(), message()]).is_err());
    }
}
