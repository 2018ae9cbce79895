//! Source, a guest that is shut off: its images are held, the journal is written, autostart goes off.
//!
//! If the process dies, nobody holds the images any more: a repeat holds them again, and the copy compares every block
//! with what is there then.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use drover_proto::failure::{Failure, Reason};
use drover_proto::fault_points::{self, point};
use drover_proto::ids::GuestId;

use super::begin::{BeginAnswer, BeginOrder, adapted};
use super::fence::Fence;
use super::offline_files::{Chains, OfflineOrder, Wanted, copied, keep_their_paths, users, wanted};
use super::outgoing::OutgoingJob;
use super::{Jobs, lock};
use crate::guest_xml::overrides::Definition;
use crate::hypervisor::{Begun, GuestFacts, GuestState, Incarnation, MigrateFlags};
use crate::journal::{DefinitionNews, Leaving, LeavingFile, OpenPage, Part, Record, ShutDown, SourcePart, SourceState};
use crate::offline::image::{Image, lock as keep_writers_away};
use crate::offline::image_lock::Others;
use crate::offline::outgoing::OfflineOutgoing;
use crate::offline::{FileError, chain};
use crate::storage_directories::StorageDirectories;

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
        let guest = self.fit_for_offline(order.reference.guest).await?;
        let shut_down = match (guest.state.is_active(), offline.shut_down) {
            (false, _) => None,
            (true, None) => return Err(runs(guest.state)),
            (true, Some(limit)) => {
                Self::fit_to_shut_down(order, &guest)?;
                Some(ShutDown::within(limit))
            }
        };
        let Some(definition) = guest.inactive_xml.clone() else {
            let message = "the guest has no definition that could move: it is transient";
            return Err(Failure::new(Reason::ChecksFailed, message));
        };
        let inactive_xml = adapted(&definition, &order.overrides, Definition::Persistent)?;
        let wanted = wanted(&definition, offline, &self.chains(&definition, offline).await?)?;
        keep_their_paths(&wanted, &inactive_xml)?;
        let mut leaving = Leaving {
            original_xml: Some(definition).filter(|xml| *xml != inactive_xml),
            files: Vec::new(),
            shared: Vec::new(),
            delete_source: offline.delete_source,
            waits_for_off: shut_down.is_some(),
            shut_down: shut_down.clone(),
        };
        let mut held = None;
        if shut_down.is_none() {
            let (handle, files, shared) = self.hold_images(wanted).await?;
            // Somebody may have started it before its images were held.
            self.fit_to_leave_offline(order.reference.guest).await?;
            (leaving.files, leaving.shared, held) = (files, shared, Some(handle));
        }
        let part = self.offline_part(order, guest, inactive_xml, leaving);
        let record = self.new_record(fence, order.reference, Part::Source(Box::new(part)));
        let record = page.create(record).await?;
        match (held, shut_down) {
            (Some(handle), _) => self.hold_guest(page, &record, handle).await,
            (None, Some(shut_down)) => self.shut_down_and_hold(page, &record, &shut_down, order).await,
            (None, None) => Err(Failure::internal("nothing is held of a guest that is shut off")),
        }
    }

    fn offline_part(
        &self,
        order: &BeginOrder,
        guest: GuestFacts,
        inactive_xml: String,
        leaving: Leaving,
    ) -> SourcePart {
        SourcePart {
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
        }
    }

    /// It is off by now.
    pub(super) async fn hold_what_was_shut_down(
        self: &Arc<Self>,
        page: &mut OpenPage,
        offline: &OfflineOrder,
    ) -> Result<BeginAnswer, Failure> {
        let record = page.record().ok_or_else(|| Failure::internal("the record is gone"))?;
        let guest = self.fit_to_leave_offline(record.guest).await?;
        let definition = guest.inactive_xml.as_deref().unwrap_or_default();
        let wanted = wanted(definition, offline, &self.chains(definition, offline).await?)?;
        let (handle, files, shared) = self.hold_images(wanted).await?;
        self.fit_to_leave_offline(record.guest).await?;
        let record = page
            .change(|record| {
                if let Some(leaving) = record.source_mut().and_then(|part| part.offline.as_mut()) {
                    (leaving.files, leaving.shared, leaving.waits_for_off) = (files, shared, false);
                }
            })
            .await?;
        self.hold_guest(page, &record, handle).await
    }

    /// The same answer; the images are held again where a former agent held them.
    pub(super) async fn begin_offline_again(
        self: &Arc<Self>,
        page: &mut OpenPage,
        record: &Record,
        part: &SourcePart,
        leaving: &Leaving,
        order: &BeginOrder,
    ) -> Result<BeginAnswer, Failure> {
        if let Some(shut_down) = leaving.shut_down.as_ref().filter(|_| leaving.waits_for_off) {
            self.refuse_while_stopping()?;
            return self.shut_down_and_hold(page, record, shut_down, order).await;
        }
        let held = self.outgoing_job(record.migration).and_then(|job| job.offline());
        if held.is_some() {
            return Ok(answer(part, leaving));
        }
        self.refuse_while_stopping()?;
        self.fit_to_leave_offline(record.guest).await?;
        let copied = leaving.files.iter().map(|file| Wanted {
            path: file.spec.path.clone(),
            format: file.format.clone(),
            stays: file.stays,
            copied: true,
            optional: false,
            shareable: false,
            is_beneath: false,
            is_device: file.spec.block_device,
        });
        let shared = leaving.shared.iter().map(|path| Wanted {
            path: path.clone(),
            format: "raw".to_owned(),
            stays: true,
            copied: false,
            optional: false,
            shareable: false,
            is_beneath: false,
            is_device: false,
        });
        let (handle, files, _) = self.hold_images(copied.chain(shared).collect()).await?;
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

    async fn fit_to_leave_offline(&self, guest: GuestId) -> Result<GuestFacts, Failure> {
        let found = self.fit_for_offline(guest).await?;
        if found.state.is_active() {
            return Err(runs(found.state));
        }
        Ok(found)
    }

    /// The same, of a guest that may still run.
    async fn fit_for_offline(&self, guest: GuestId) -> Result<GuestFacts, Failure> {
        let unknown = || Failure::new(Reason::GuestNotFound, format!("libvirt does not know guest {guest}"));
        let found = self.hypervisor.guest(guest).await?.ok_or_else(unknown)?;
        match found.kept_here() {
            Some(kept) => Err(Failure::new(Reason::ChecksFailed, kept.to_string()).with_remedy(kept.remedy())),
            None => Ok(found),
        }
    }

    /// What the images that are copied lie on, as far as their heads tell; all of it has to be where this agent may read.
    async fn chains(&self, definition: &str, offline: &OfflineOrder) -> Result<Chains, Failure> {
        let (copied, allowed) = (copied(definition, offline)?, self.storage.clone());
        let read = move || {
            let open = |path: &Path| allowed.find(path)?.open_to_read();
            let chain = |(path, format): (PathBuf, String)| match chain::read(&path, &format, open) {
                (layers, None) => Ok((path, layers)),
                (_, Some(error)) => Err(Failure::from(error)),
            };
            copied.into_iter().map(chain).collect()
        };
        let chains = tokio::task::spawn_blocking(read).await;
        let chains: Result<Chains, Failure> =
            chains.map_err(|error| Failure::internal(format!("looking at the images broke off: {error}")))?;
        chains.map_err(|failure| failure.at_host(self.host.clone()))
    }

    async fn hold_images(
        &self,
        wanted: Vec<Wanted>,
    ) -> Result<(OfflineOutgoing, Vec<LeavingFile>, Vec<PathBuf>), Failure> {
        let allowed = self.storage.clone();
        let held = tokio::task::spawn_blocking(move || hold_all(&allowed, &wanted)).await;
        let held = held.map_err(|error| Failure::internal(format!("the images could not be held: {error}")))?;
        let held = held.map_err(|error| Failure::from(error).at_host(self.host.clone()))?;
        let handle = OfflineOutgoing::new(held.images, held.others, self.gate.clone());
        Ok((handle, held.files, held.shared))
    }
}

fn runs(state: GuestState) -> Failure {
    let message = format!("the guest is {state:?}: it moves with its files only while it is shut off");
    Failure::new(Reason::GuestBusy, message)
}

/// What nobody else may write to from now on.
#[derive(Default)]
struct Held {
    images: Vec<Image>,
    files: Vec<LeavingFile>,
    others: Vec<File>,
    /// Paths of `others`.
    shared: Vec<PathBuf>,
}

/// Those that are copied have to be held; the shared ones are held where this agent may.
fn hold_all(allowed: &StorageDirectories, wanted: &[Wanted]) -> Result<Held, FileError> {
    let mut held = Held::default();
    let known: Vec<PathBuf> = wanted
        .iter()
        .filter(|one| one.copied)
        .map(|one| one.path.clone())
        .collect();
    for one in wanted {
        if !one.copied && one.shareable {
            // Other guests may be started with it meanwhile.
            continue;
        }
        if !one.copied {
            match keep_writers_away(allowed, &one.path, Others::Read) {
                Ok(file) => {
                    held.others.push(file);
                    held.shared.push(one.path.clone());
                }
                Err(in_use @ (FileError::InUse(_) | FileError::Loop { .. })) => return Err(in_use),
                // Where it is shut off is looked at once more before it is forgotten.
                Err(error) => tracing::debug!(%error, "a shared image is not held"),
            }
            continue;
        }
        let image = if one.is_device {
            Image::hold_device(allowed, &one.path)
        } else {
            Image::hold(allowed, &one.path, &one.format, users(one.stays), &known)
        };
        match image {
            Ok(image) => {
                held.files.push(LeavingFile {
                    spec: image.spec.clone(),
                    format: one.format.clone(),
                    identity: image.identity.clone(),
                    stays: one.stays,
                    mark: None,
                });
                held.images.push(image);
            }
            Err(FileError::Absent(_)) if one.optional => {}
            Err(error) => return Err(error),
        }
    }
    Ok(held)
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
        is_offline: true,
    }
}
