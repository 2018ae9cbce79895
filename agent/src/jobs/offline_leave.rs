//! Source, a guest that is shut off: forgotten before the destination is told, given back, or its files put away.
//!
//! ```text
//!  all verified ──▶ HandedOver (fsync) ──▶ undefined here ──▶ call ──▶ verdict ──▶ images let go
//! ```
//!
//! Promise: no call leaves while the guest can be started here, and none leaves where an image was changed after it was
//! sent. What was sent is held until somebody has decided: whoever defines the guest here again cannot start it. If the
//! process dies in between, the guest is startable nowhere until the hand-over is repeated or given back.

use std::path::Path;
use std::sync::Arc;

use drover_proto::failure::{Failure, Reason};

use super::kept::moved_suffix;
use super::offline_files::users;
use super::outgoing::{OutgoingJob, PerformOutcome};
use super::progress::{Action, Deed};
use super::{Jobs, Seen, errors};
use crate::hypervisor::GuestFacts;
use crate::images::device::Unfit;
use crate::journal::{Decision, Leaving, LeavingFile, OpenPage, Record, SourcePart, SourceState, Step, Verdict};
use crate::offline::calls::FileCall;
use crate::offline::image::{Image, Mark};
use crate::offline::image_lock::{self, Others};
use crate::offline::loops;
use crate::offline::outgoing::{OfflineOutgoing, Since};
use crate::offline::{FileError, folders};
use crate::storage_directories::StorageDirectories;

impl Jobs {
    /// HandedOver, then the definition goes. A repeat finds it gone.
    pub(super) async fn leave_offline(
        &self,
        page: &mut OpenPage,
        job: Option<&OutgoingJob>,
    ) -> Result<Arc<Record>, Failure> {
        let record = page.record().ok_or_else(|| Failure::internal("the record is gone"))?;
        let (part, leaving) = offline_part(&record)?;
        let tombstoned = record.is_tombstoned(record.attempt);
        let now = match part.state.hand_over(tombstoned, record.decision)? {
            Step::Already => Arc::clone(&record),
            Step::Write(state) => {
                let marks = self.marks_of_what_was_sent(&record, job).await?;
                page.change(|record| write_sent(record, state, &marks)).await?
            }
        };
        let seen = self.look(&now).await?;
        let used = match &seen {
            Seen::Unknown => None,
            Seen::ShutOff(guest) => unlike_begun(guest, part, leaving),
            Seen::Another(_) | Seen::Ours(_) => Some("it was started"),
        };
        if let Some(how) = used {
            return self.stays_here(page, job, how).await;
        }
        if !self.hold_as_sent(&now, job, &seen).await? {
            return self.stays_here(page, job, "one of its images was changed").await;
        }
        if let Seen::ShutOff(_) = seen {
            match self.hypervisor.undefine(record.guest).await {
                Ok(()) => {}
                // A libvirt that refuses once refuses again: without this nobody could start it anywhere.
                Err(refused) if refused.is_certain() => {
                    let how = format!("libvirt does not forget it ({refused})");
                    return self.stays_here(page, job, &how).await;
                }
                Err(error) => return Err(errors::unsure(error)),
            }
            // Where no image could be held somebody may have been quicker.
            if let Seen::Another(_) | Seen::Ours(_) = self.look(&record).await? {
                self.define_again(&record, part, leaving).await?;
                return self.stays_here(page, job, "it was started").await;
            }
        }
        if let Some(offline) = self.outgoing_job(record.migration).and_then(|job| job.offline()) {
            offline.release_shared();
        }
        Ok(now)
    }

    /// Before HandedOver: what the images are. Where they, or the guest, are not what was sent, they never will be again:
    /// that is no hand-over to be repeated but a copy that failed.
    async fn marks_of_what_was_sent(&self, record: &Record, job: Option<&OutgoingJob>) -> Result<Vec<Mark>, Failure> {
        let marks = self.still_what_was_sent(record, job).await;
        if let (Err(failure), Some(job)) = (&marks, job)
            && failure.reason == Reason::GuestBusy
        {
            job.change_course(|course| course.outcome = Some(PerformOutcome::Failed));
        }
        marks
    }

    /// What the images are, where neither they nor the guest were used while they were sent.
    async fn still_what_was_sent(&self, record: &Record, job: Option<&OutgoingJob>) -> Result<Vec<Mark>, Failure> {
        let (part, leaving) = offline_part(record)?;
        let busy = |why: &str| {
            let message = format!("{why} while the guest's files were sent: it stays as it is");
            Failure::new(Reason::GuestBusy, message)
                .with_remedy("see who uses the guest or its images, then move it again")
        };
        let held = job.and_then(|job| job.offline()).filter(|offline| offline.is_held());
        let not_held = || Failure::new(Reason::MigrationState, "the images are not held any more");
        let offline = held.ok_or_else(not_held)?;
        let Seen::ShutOff(guest) = self.look(record).await? else {
            return Err(busy("it was started, or removed,"));
        };
        if let Some(how) = unlike_begun(&guest, part, leaving) {
            return Err(busy(how));
        }
        match blocking(move || offline.as_sent()).await? {
            Since::Same(marks) => Ok(marks),
            Since::Changed(path) => Err(busy(&format!("{} was changed", path.display()))),
        }
    }

    /// What was sent is older than what is here: it is written down that it must not be used.
    async fn stays_here(
        &self,
        page: &mut OpenPage,
        job: Option<&OutgoingJob>,
        how: &str,
    ) -> Result<Arc<Record>, Failure> {
        tracing::error!("the guest stays: {how}, after its files were sent");
        page.change(|record| {
            if let Some(part) = record.source_mut() {
                part.ran_on = true;
            }
        })
        .await?;
        // Its user may go on with it.
        if let Some(offline) = job.and_then(OutgoingJob::offline) {
            offline.release();
        }
        let message = format!("the guest stays at its source: {how}, after its files were sent");
        Err(Failure::new(Reason::MigrationState, message))
    }

    /// While the destination is asked: a guest that runs again is stopped; one that was shut off stays gone.
    pub(super) async fn stays_as_sent(&self, job: &OutgoingJob, record: &Record) -> Result<(), Failure> {
        if record.is_offline() {
            self.stay_gone(job).await
        } else {
            self.keep_still(record.migration).await
        }
    }

    /// Whoever defines the guest here again keeps it.
    async fn stay_gone(&self, job: &OutgoingJob) -> Result<(), Failure> {
        let mut page = self.lock(job.migration).await?;
        let Some(record) = page.record().filter(|record| record.verdict().is_none()) else {
            return Ok(());
        };
        match self.look(&record).await {
            Ok(Seen::ShutOff(_) | Seen::Another(_) | Seen::Ours(_)) => {
                self.stays_here(&mut page, Some(job), "it was defined here again")
                    .await?;
                Ok(())
            }
            // A libvirt that is away shows nothing; the images are held in any case.
            Ok(Seen::Unknown) | Err(_) => Ok(()),
        }
    }

    /// Whether the images are what was sent. They are held then: by this agent since Begin, or again from now on.
    async fn hold_as_sent(&self, record: &Record, job: Option<&OutgoingJob>, seen: &Seen) -> Result<bool, Failure> {
        let leaving = offline_part(record)?.1;
        let held = job.and_then(|job| job.offline()).filter(|offline| offline.is_held());
        if let Some(offline) = held {
            let now = blocking(move || offline.marks()).await?;
            return Ok(now
                .iter()
                .map(Some)
                .eq(leaving.files.iter().map(|file| file.mark.as_ref())));
        }
        let (allowed, files) = (self.storage.clone(), leaving.files.clone());
        let images = match blocking(move || hold_again(&allowed, &files)).await? {
            Again::Held(images) => images,
            Again::Used => return Ok(false),
            // The destination has the only ones.
            Again::Gone if matches!(seen, Seen::Unknown) => return Ok(true),
            Again::Gone => {
                let message = "an image of the guest is not there any more, though it is defined here";
                return Err(Failure::new(Reason::LibvirtUnavailable, message));
            }
        };
        let handle = OfflineOutgoing::new(images, Vec::new(), self.gate.clone());
        match job {
            Some(job) => job.hold_offline(handle),
            None => self.adopt(record).hold_offline(handle),
        }
        Ok(true)
    }

    /// After a start of the agent: nobody starts the guest from what was sent, while nobody has decided.
    pub(super) async fn hold_left_images(&self, record: &Record) -> Result<(), Failure> {
        if self.outgoing_job(record.migration).is_some() {
            return Ok(());
        }
        let seen = self.look(record).await?;
        if let Seen::Unknown | Seen::ShutOff(_) = seen {
            // What was changed is found again when it is to be handed over.
            self.hold_as_sent(record, None, &Seen::Unknown).await?;
        }
        Ok(())
    }

    async fn define_again(&self, record: &Record, part: &SourcePart, leaving: &Leaving) -> Result<(), Failure> {
        let Some(xml) = leaving.original_xml.as_ref().or(part.inactive_xml.as_ref()) else {
            return Err(Failure::internal(
                "the definition of a guest that is shut off is not in the journal",
            ));
        };
        tracing::info!(migration_id = %record.migration, "the guest is defined here again");
        self.hypervisor.define(xml).await.map_err(errors::unsure)
    }

    /// Verdict NeverRan: it is defined as before; its files were never touched.
    pub(super) async fn give_back_offline(
        &self,
        page: &mut OpenPage,
        record: &Record,
        part: &SourcePart,
        leaving: &Leaving,
        job: Option<&Arc<OutgoingJob>>,
    ) -> Result<(), Failure> {
        self.await_shut_down(record, leaving).await?;
        let handed_over = part.state == SourceState::HandedOver;
        let seen = self.look(record).await?;
        let gone = matches!(seen, Seen::Unknown);
        // Somebody may have started it as it was undefined: then it would be gone with its end.
        let transient = match &seen {
            Seen::Another(guest) | Seen::Ours(guest) => !guest.persistent,
            Seen::ShutOff(_) | Seen::Unknown => false,
        };
        if (gone || transient) && handed_over && !self.has_later(record) {
            self.define_again(record, part, leaving).await?;
        }
        self.restore_autostart(record, part).await?;
        if let Some(job) = job {
            // Only now: whoever waited for the images finds the guest as it was.
            if let Some(offline) = job.offline() {
                offline.release();
            }
            job.let_go();
        }
        self.sockets.remove(record.migration).await?;
        // Last of all: a repeat after something that failed would start it again, and its user may have shut it down.
        self.start_again(record, leaving).await?;
        page.change(|record| {
            record.decision = Decision::Settled(Verdict::NeverRan);
            // Before it was handed over only its user can have removed it.
            record.guest_ended = gone && !handed_over;
        })
        .await?;
        Ok(())
    }

    /// Verdict Ran: nobody starts from them by mistake. What cannot be put away is told, and does no harm: the guest is
    /// not defined here. An error where libvirt does not say whether it is: then this is to be asked for again.
    pub(super) async fn put_sources_away(&self, record: &Record, leaving: &Leaving) -> Result<(), Failure> {
        if self.has_later(record) {
            return Ok(());
        }
        match self.look(record).await? {
            Seen::Unknown => {}
            // It may have come back, and these may be its images again.
            Seen::Ours(_) | Seen::ShutOff(_) | Seen::Another(_) => {
                let why = "the guest's files stay as they are at the source: that host knows it again";
                self.tell_stays(record, "", why.to_owned());
                return Ok(());
            }
        }
        let (migration, delete) = (record.migration, leaving.delete_source);
        for file in leaving.files.iter().filter(|file| !file.stays).cloned() {
            let path = file.spec.path.clone();
            let suffix = moved_suffix(migration);
            let work = move |allowed: &StorageDirectories| put_away(allowed, &file, &suffix, delete);
            if let Err(error) = self.with_file(FileCall::PutAway, path.clone(), work).await {
                let path = path.to_string_lossy();
                self.tell_stays(record, &path, format!("it stays at the source as it is: {error}"));
            }
        }
        Ok(())
    }

    /// In the log, and to the controller, which has it in its record.
    fn tell_stays(&self, record: &Record, path: &str, why: String) {
        tracing::error!(migration_id = %record.migration, path, "{why}");
        let job = self.outgoing_job(record.migration);
        let job = job.unwrap_or_else(|| self.adopt(record));
        job.act(Action::now(Deed::FileStays, path, why));
    }
}

fn put_away(allowed: &StorageDirectories, file: &LeavingFile, suffix: &str, delete: bool) -> Result<(), FileError> {
    if folders::missing(allowed, &file.spec.path)?.is_some() {
        // An earlier try has removed what was in them, and perhaps died before both were gone.
        return if delete {
            folders::remove(allowed, &file.spec.path)
        } else {
            Ok(())
        };
    }
    let place = allowed.find(Path::new(&file.spec.path))?;
    let opened = match place.open_to_read() {
        Ok(opened) => opened,
        // An earlier try may have died before the folders went.
        Err(FileError::Absent(_)) if delete => return folders::leave(allowed, &file.spec.path),
        Err(FileError::Absent(_)) => return Ok(()),
        Err(other) => return Err(other),
    };
    let error = |source| FileError::io(&file.spec.path, source);
    // Held until it has its other name: nobody loses what he has open.
    if !image_lock::hold(&opened, Others::None).map_err(error)? {
        return Err(FileError::InUse(file.spec.path.clone()));
    }
    loops::refuse(&opened, &file.spec.path, Others::None)?;
    // It was used again, or another file has this name now.
    if Some(Mark::of(&opened).map_err(error)?) != file.mark {
        return Err(FileError::Changed(file.spec.path.clone()));
    }
    if delete {
        place.remove()?;
        return folders::leave(allowed, &file.spec.path);
    }
    place.rename_to(&place.beside(suffix)?)
}

/// What became of images that were sent.
enum Again {
    /// They are as they were, and nobody else can write to them.
    Held(Vec<Image>),
    /// Somebody uses one of them, or has changed it.
    Used,
    Gone,
}

fn hold_again(allowed: &StorageDirectories, files: &[LeavingFile]) -> Result<Again, FileError> {
    let mut held = Vec::new();
    let known: Vec<_> = files.iter().map(|file| file.spec.path.clone()).collect();
    for file in files {
        let image = if file.spec.block_device {
            Image::hold_device(allowed, &file.spec.path)
        } else {
            Image::hold(allowed, &file.spec.path, &file.format, users(file.stays), &known)
        };
        let image = match image {
            Ok(image) => image,
            Err(FileError::InUse(_) | FileError::Loop { .. }) => return Ok(Again::Used),
            Err(FileError::Device(Unfit::InUse(_) | Unfit::NotBlock(_) | Unfit::Blank(_))) => return Ok(Again::Used),
            Err(FileError::Absent(_)) => return Ok(Again::Gone),
            Err(other) => return Err(other),
        };
        if file.mark != Some(image.mark()?) {
            return Ok(Again::Used);
        }
        held.push(image);
    }
    Ok(Again::Held(held))
}

/// What was done with the guest since Begin, where that can be seen.
fn unlike_begun(guest: &GuestFacts, part: &SourcePart, leaving: &Leaving) -> Option<&'static str> {
    let began_with = leaving.original_xml.as_ref().or(part.inactive_xml.as_ref());
    if guest.inactive_xml.as_ref() != began_with {
        return Some("its definition was changed");
    }
    let kept = guest.kept_here();
    kept.map(|_| "it was saved, or a snapshot or checkpoint was made")
}

fn offline_part(record: &Record) -> Result<(&SourcePart, &Leaving), Failure> {
    let part = record.source();
    part.and_then(|part| Some((part, part.offline.as_ref()?)))
        .ok_or_else(|| Failure::internal("this host is not the source of a guest that is shut off"))
}

fn write_sent(record: &mut Record, state: SourceState, marks: &[Mark]) {
    let Some(part) = record.source_mut() else { return };
    part.state = state;
    if let Some(leaving) = &mut part.offline {
        for (file, mark) in leaving.files.iter_mut().zip(marks) {
            file.mark = Some(mark.clone());
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| Failure::internal(format!("looking at the images broke off: {error}")))?;
    // A storage that does not answer proves nothing of the guest.
    done.map_err(|error| Failure::new(Reason::LibvirtUnavailable, error.to_string()))
}
