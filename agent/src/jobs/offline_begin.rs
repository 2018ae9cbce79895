//! Source, a guest that is shut off: its images are held, the journal is written, autostart goes off.
//!
//! If the process dies, nobody holds the images any more: a repeat holds them again, and the copy compares every block
//! with what is there then.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use drover_proto::failure::{Failure, Reason};
use drover_proto::fault_points::{self, point};

use super::begin::{BeginAnswer, BeginOrder, adapted};
use super::fence::Fence;
use super::outgoing::OutgoingJob;
use super::{Jobs, lock};
use crate::guest_xml::overrides::Definition;
use crate::guest_xml::{self, GuestShape};
use crate::hypervisor::{Begun, GuestFacts, Incarnation, MigrateFlags};
use crate::journal::{DefinitionNews, Leaving, LeavingFile, OpenPage, Part, Record, SourcePart, SourceState};
use crate::offline::FileError;
use crate::offline::image::{Image, lock as keep_writers_away};
use crate::offline::image_lock::Others;
use crate::offline::outgoing::OfflineOutgoing;
use crate::storage_directories::StorageDirectories;

/// How a guest that is shut off leaves.
#[derive(Clone, Debug)]
pub struct OfflineOrder {
    /// What is copied; all else is shared.
    pub images: Vec<PathBuf>,
    pub delete_source: bool,
}

/// One image of the guest.
#[derive(Clone, Debug)]
struct Wanted {
    path: PathBuf,
    format: String,
    /// Nobody writes to it: others may have it too.
    stays: bool,
    copied: bool,
    /// It may be missing: a guest that was never started has no variables.
    optional: bool,
    shareable: bool,
}

impl Jobs {
    /// In place of the life of a guest that has none.
    pub fn no_life(&self) -> Incarnation {
        Incarnation {
            boot_id: self.boot_id,
            qemu_pid: 0,
            qemu_start_time: 0,
        }
    }

    pub(super) async fn begin_offline(
        self: &Arc<Self>,
        page: &mut OpenPage,
        fence: &Fence,
        order: &BeginOrder,
        offline: &OfflineOrder,
    ) -> Result<BeginAnswer, Failure> {
        let guest = self.fit_to_leave_offline(order.reference.guest).await?;
        let Some(definition) = guest.inactive_xml.clone() else {
            return Err(Failure::internal("a persistent guest without a definition"));
        };
        let inactive_xml = adapted(&definition, &order.overrides, Definition::Persistent)?;
        let wanted = wanted(&definition, offline)?;
        keep_their_paths(&wanted, &inactive_xml)?;
        let (handle, files) = self.hold_images(wanted).await?;
        // Somebody may have started it before its images were held.
        self.fit_to_leave_offline(order.reference.guest).await?;
        let leaving = Leaving {
            original_xml: Some(definition).filter(|xml| *xml != inactive_xml),
            files,
            delete_source: offline.delete_source,
        };
        let part = SourcePart {
            state: SourceState::Sending,
            peer: order.destination.clone(),
            guest_name: guest.name,
            state_before: guest.state,
            autostart_before: guest.autostart,
            inactive_xml: Some(inactive_xml),
            overrides: order.overrides.clone(),
            runs: None,
            definition: DefinitionNews::default(),
            copied: Vec::new(),
            delete_source: false,
            incarnation: self.no_life(),
            flags: MigrateFlags {
                persistent: true,
                post_copy: false,
                copied: None,
                ..order.flags
            },
            limits: order.limits,
            suspended_by_agent: false,
            ran_on: false,
            post_copy_ordered: false,
            delivery: None,
            offline: Some(leaving),
        };
        let record = self.new_record(fence, order.reference, Part::Source(Box::new(part)));
        let record = page.create(record).await?;
        self.hold_guest(page, &record, handle).await
    }

    /// The same answer; the images are held again where a former agent held them.
    pub(super) async fn begin_offline_again(
        self: &Arc<Self>,
        page: &mut OpenPage,
        record: &Record,
        part: &SourcePart,
        leaving: &Leaving,
    ) -> Result<BeginAnswer, Failure> {
        let held = self.outgoing_job(record.migration).and_then(|job| job.offline());
        if held.is_some() {
            return Ok(answer(part, leaving));
        }
        self.refuse_while_stopping()?;
        self.fit_to_leave_offline(record.guest).await?;
        let wanted = leaving.files.iter().map(|file| Wanted {
            path: file.spec.path.clone(),
            format: file.format.clone(),
            stays: file.stays,
            copied: true,
            optional: false,
            shareable: false,
        });
        let (handle, files) = self.hold_images(wanted.collect()).await?;
        let same = |now: &LeavingFile, then: &LeavingFile| now.spec.size == then.spec.size;
        if !files.iter().zip(&leaving.files).all(|(now, then)| same(now, then)) {
            let message = "an image has another size than when the migration began";
            return Err(Failure::new(Reason::StorageUnusable, message));
        }
        page.change(|record| {
            if let Some(leaving) = record.source_mut().and_then(|part| part.offline.as_mut()) {
                leaving.files = files;
            }
        })
        .await?;
        self.fit_to_leave_offline(record.guest).await?;
        self.hold_guest(page, record, handle).await
    }

    async fn hold_guest(
        self: &Arc<Self>,
        page: &mut OpenPage,
        record: &Record,
        handle: OfflineOutgoing,
    ) -> Result<BeginAnswer, Failure> {
        // A source host that reboots must not start it.
        self.hypervisor.set_autostart(record.guest, false).await?;
        let job = OutgoingJob::new(record.migration, record.guest, self.host.clone(), record.calls.clone());
        job.hold_offline(handle);
        let job = Arc::new(job);
        lock(&self.outgoing).insert(record.migration, Arc::clone(&job));
        let instance = self.instance;
        let record = page.change(|record| record.agent_instance = instance).await?;
        self.expire_unclaimed(&job, &record);
        fault_points::reach(point::SOURCE_BEGUN).await;
        let part = record.source();
        let leaving = part.and_then(|part| Some((part, part.offline.as_ref()?)));
        let (part, leaving) = leaving.ok_or_else(|| Failure::internal("the record is of another side"))?;
        Ok(answer(part, leaving))
    }

    async fn fit_to_leave_offline(&self, guest: drover_proto::ids::GuestId) -> Result<GuestFacts, Failure> {
        let unknown = || Failure::new(Reason::GuestNotFound, format!("libvirt does not know guest {guest}"));
        let found = self.hypervisor.guest(guest).await?.ok_or_else(unknown)?;
        if found.state.is_active() {
            let message = format!(
                "the guest is {:?}: it moves with its files only while it is shut off",
                found.state
            );
            return Err(Failure::new(Reason::GuestBusy, message));
        }
        if found.snapshots > 0 {
            let message = format!(
                "the guest has {} snapshots, which libvirt knows on this host alone",
                found.snapshots
            );
            return Err(Failure::new(Reason::ChecksFailed, message).with_remedy("delete its snapshots"));
        }
        if found.managed_save {
            let message = "libvirt keeps the memory of the guest, saved on this host alone";
            let remedy = "start it and shut it down, or give up what was saved: `virsh managedsave-remove`";
            return Err(Failure::new(Reason::ChecksFailed, message).with_remedy(remedy));
        }
        Ok(found)
    }

    async fn hold_images(&self, wanted: Vec<Wanted>) -> Result<(OfflineOutgoing, Vec<LeavingFile>), Failure> {
        let allowed = self.storage.clone();
        let held = tokio::task::spawn_blocking(move || hold_all(&allowed, &wanted)).await;
        let held = held.map_err(|error| Failure::internal(format!("the images could not be held: {error}")))?;
        let (images, others, files) = held.map_err(|error| Failure::from(error).at_host(self.host.clone()))?;
        Ok((OfflineOutgoing::new(images, others, self.gate.clone()), files))
    }
}

type Held = (Vec<Image>, Vec<File>, Vec<LeavingFile>);

/// Those that are copied have to be held; the shared ones are held where this agent may.
fn hold_all(allowed: &StorageDirectories, wanted: &[Wanted]) -> Result<Held, FileError> {
    let (mut images, mut others, mut files) = (Vec::new(), Vec::new(), Vec::new());
    for one in wanted {
        if !one.copied && one.shareable {
            // Other guests may be started with it meanwhile.
            continue;
        }
        if !one.copied {
            match keep_writers_away(allowed, &one.path, Others::Read) {
                Ok(file) => others.push(file),
                Err(in_use @ FileError::InUse(_)) => return Err(in_use),
                // Where it is shut off is looked at once more before it is forgotten.
                Err(error) => tracing::debug!(%error, "a shared image is not held"),
            }
            continue;
        }
        match Image::hold(allowed, &one.path, &one.format, users(one.stays)) {
            Ok(image) => {
                files.push(LeavingFile {
                    spec: image.spec.clone(),
                    format: one.format.clone(),
                    identity: image.identity.clone(),
                    stays: one.stays,
                    mark: None,
                });
                images.push(image);
            }
            Err(FileError::Absent(_)) if one.optional => {}
            Err(error) => return Err(error),
        }
    }
    Ok((images, others, files))
}

/// What gets another name or goes must be nobody else's: also those who only read would lose it.
pub(super) fn users(stays: bool) -> Others {
    if stays { Others::Read } else { Others::None }
}

/// The guest's images and its UEFI variables, as its definition says.
fn wanted(definition: &str, order: &OfflineOrder) -> Result<Vec<Wanted>, Failure> {
    let unreadable = |error: guest_xml::Unreadable| Failure::new(Reason::ChecksFailed, error.to_string());
    let GuestShape { disks, needs, .. } = guest_xml::read(definition).map_err(unreadable)?;
    let mut all: Vec<Wanted> = Vec::new();
    for disk in disks {
        let path = PathBuf::from(&disk.source);
        let copied = order.images.contains(&path);
        if copied && disk.shareable {
            let message = format!(
                "{} may be used by several guests at once: it is not taken from them",
                path.display()
            );
            return Err(Failure::new(Reason::ChecksFailed, message).with_remedy("put it on shared storage"));
        }
        if disk.source.is_empty() || disk.source_type != "file" || all.iter().any(|known| known.path == path) {
            continue;
        }
        all.push(Wanted {
            path,
            format: if disk.format.is_empty() {
                "raw".to_owned()
            } else {
                disk.format
            },
            stays: disk.read_only,
            copied,
            optional: false,
            shareable: disk.shareable || disk.read_only,
        });
    }
    if let Some(unknown) = order
        .images
        .iter()
        .find(|path| !all.iter().any(|one| one.path == **path))
    {
        let message = format!("{} is not an image file of this guest", unknown.display());
        return Err(Failure::invalid("offline.images", message));
    }
    if Path::new(&needs.nvram).is_absolute() {
        all.push(Wanted {
            path: PathBuf::from(needs.nvram),
            format: "raw".to_owned(),
            stays: false,
            copied: true,
            optional: true,
            shareable: false,
        });
    }
    Ok(all)
}

/// A file is copied to its own path: a definition that names another one would start without it.
fn keep_their_paths(wanted: &[Wanted], there: &str) -> Result<(), Failure> {
    let unreadable = |error: guest_xml::Unreadable| Failure::new(Reason::ChecksFailed, error.to_string());
    let GuestShape { disks, needs, .. } = guest_xml::read(there).map_err(unreadable)?;
    let is_there =
        |path: &Path| Path::new(&needs.nvram) == path || disks.iter().any(|disk| Path::new(&disk.source) == path);
    match wanted.iter().find(|one| one.copied && !is_there(&one.path)) {
        None => Ok(()),
        Some(moved) => {
            let message = format!("{} is copied, and only to the same path", moved.path.display());
            Err(Failure::new(Reason::StorageUnusable, message).with_remedy("leave out --disk for it"))
        }
    }
}

fn answer(part: &SourcePart, leaving: &Leaving) -> BeginAnswer {
    BeginAnswer {
        begun: Begun::default(),
        inactive_xml: part.inactive_xml.clone(),
        guest_name: part.guest_name.clone(),
        state_before: part.state_before,
        autostart_before: part.autostart_before,
        images: Vec::new(),
        files: leaving.files.iter().map(|file| file.spec.clone()).collect(),
    }
}
