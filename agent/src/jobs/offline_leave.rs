//! Source, a guest that is shut off: forgotten before the destination is told, given back, or its files put away.
//!
//! ```text
//!  all verified ──▶ HandedOver (fsync) ──▶ undefined here ──▶ images let go ──▶ call
//! ```
//!
//! Promise: no call leaves while the guest can be started here, and none leaves where an image was changed after it was
//! sent. If the process dies in between, the guest is startable nowhere until the hand-over is repeated or given back.

use std::path::Path;
use std::sync::Arc;

use drover_proto::failure::{Failure, Reason};

use super::hand_over::newer_here;
use super::outgoing::OutgoingJob;
use super::{Jobs, Seen, errors};
use crate::journal::{Decision, Leaving, LeavingFile, OpenPage, Record, SourcePart, SourceState, Step, Verdict};
use crate::offline::FileError;
use crate::offline::image::{Image, Mark};
use crate::offline::places::Allowed;

impl Jobs {
    /// HandedOver, then the definition goes. A repeat finds it gone.
    pub(super) async fn leave_offline(
        &self,
        page: &mut OpenPage,
        job: Option<&OutgoingJob>,
    ) -> Result<Arc<Record>, Failure> {
        let record = page.record().ok_or_else(|| Failure::internal("the record is gone"))?;
        let (part, leaving) = offline_part(&record)?;
        let offline = job.and_then(|job| job.offline());
        let now = match part
            .state
            .hand_over(record.is_tombstoned(record.attempt), record.decision)?
        {
            Step::Already => Arc::clone(&record),
            Step::Write(state) => {
                let not_held = || Failure::new(Reason::MigrationState, "the images are not held any more");
                let offline = Arc::clone(offline.as_ref().ok_or_else(not_held)?);
                let Seen::ShutOff(guest) = self.look(&record).await? else {
                    let message = "the guest was started, or removed, while its files were sent";
                    return Err(Failure::new(Reason::GuestBusy, message));
                };
                let began_with = leaving.original_xml.as_ref().or(part.inactive_xml.as_ref());
                if guest.inactive_xml.as_ref() != began_with {
                    let message = "the guest's definition was changed while its files were sent";
                    return Err(Failure::new(Reason::GuestBusy, message));
                }
                if guest.managed_save || guest.snapshots > 0 {
                    let message = "the guest was saved, or a snapshot was made, while its files were sent";
                    return Err(Failure::new(Reason::GuestBusy, message));
                }
                let marks = blocking(move || offline.marks()).await?;
                page.change(|record| write_sent(record, state, &marks)).await?
            }
        };
        match self.look(&now).await? {
            Seen::Unknown => {}
            Seen::ShutOff(_) => {
                let held = self.hold_as_sent(leaving_of(&now)?, offline.is_some()).await;
                let _held = match held {
                    Ok(held) => held,
                    Err(failure) => return self.stays_here(page, &failure).await,
                };
                self.hypervisor.undefine(record.guest).await.map_err(errors::unsure)?;
                // Where no image could be held somebody may have been quicker.
                if let Seen::Another(_) | Seen::Ours(_) = self.look(&record).await? {
                    self.define_again(&record, part, leaving).await?;
                    return self.stays_here(page, &newer_here()).await;
                }
            }
            Seen::Another(_) | Seen::Ours(_) => return self.stays_here(page, &newer_here()).await,
        }
        if let Some(offline) = offline {
            offline.release();
        }
        Ok(now)
    }

    /// What was sent is older than what is here: it is written down that it must not be used.
    async fn stays_here(&self, page: &mut OpenPage, why: &Failure) -> Result<Arc<Record>, Failure> {
        tracing::error!("the guest was used here after its files were sent: it stays ({why})");
        page.change(|record| {
            if let Some(part) = record.source_mut() {
                part.ran_on = true;
            }
        })
        .await?;
        Err(newer_here())
    }

    /// The images, held until the definition is gone: by this agent since Begin, or again and unchanged.
    async fn hold_as_sent(&self, leaving: &Leaving, is_held: bool) -> Result<Vec<Image>, Failure> {
        if is_held {
            return Ok(Vec::new());
        }
        let (allowed, files) = (self.allowed.clone(), leaving.files.clone());
        let held = blocking(move || hold_again(&allowed, &files)).await?;
        held.ok_or_else(newer_here)
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
        let handed_over = part.state == SourceState::HandedOver;
        let gone = matches!(self.look(record).await?, Seen::Unknown);
        if gone && handed_over && !self.has_later(record) {
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
        page.change(|record| {
            record.decision = Decision::Settled(Verdict::NeverRan);
            // Before it was handed over only its user can have removed it.
            record.guest_ended = gone && !handed_over;
        })
        .await?;
        Ok(())
    }

    /// Verdict Ran: nobody starts from them by mistake. What cannot be put away is told, and does no harm: the guest is
    /// not defined here.
    pub(super) async fn put_sources_away(&self, record: &Record, leaving: &Leaving) {
        if self.has_later(record) {
            return;
        }
        let (allowed, leaving, migration) = (self.allowed.clone(), leaving.clone(), record.migration);
        let away = move || {
            for file in leaving.files.iter().filter(|file| !file.stays) {
                let suffix = format!(".moved-{migration}");
                if let Err(error) = put_away(&allowed, file, &suffix, leaving.delete_source) {
                    let path = file.spec.path.display();
                    tracing::error!(migration_id = %migration, %error, "{path} stays as it is, though its guest has moved");
                }
            }
        };
        if let Err(error) = tokio::task::spawn_blocking(away).await {
            tracing::error!(migration_id = %migration, %error, "files of a guest that has moved were not put away");
        }
    }
}

fn put_away(allowed: &Allowed, file: &LeavingFile, suffix: &str, delete: bool) -> Result<(), FileError> {
    let place = allowed.find(Path::new(&file.spec.path))?;
    // Another file of this name came later.
    if place.look()? != Some(file.identity) {
        return Ok(());
    }
    if delete {
        return place.remove();
    }
    place.rename_to(&place.beside(suffix)?)
}

/// None where one of them was changed.
fn hold_again(allowed: &Allowed, files: &[LeavingFile]) -> Result<Option<Vec<Image>>, FileError> {
    let mut held = Vec::new();
    for file in files {
        let image = match Image::hold(allowed, &file.spec.path, &file.format) {
            Ok(image) => image,
            Err(FileError::InUse(_) | FileError::Absent(_)) => return Ok(None),
            Err(other) => return Err(other),
        };
        if file.mark != Some(image.mark()?) {
            return Ok(None);
        }
        held.push(image);
    }
    Ok(Some(held))
}

fn offline_part(record: &Record) -> Result<(&SourcePart, &Leaving), Failure> {
    let part = record.source();
    part.and_then(|part| Some((part, part.offline.as_ref()?)))
        .ok_or_else(|| Failure::internal("this host is not the source of a guest that is shut off"))
}

fn leaving_of(record: &Record) -> Result<&Leaving, Failure> {
    Ok(offline_part(record)?.1)
}

fn write_sent(record: &mut Record, state: SourceState, marks: &[Mark]) {
    let Some(part) = record.source_mut() else { return };
    part.state = state;
    if let Some(leaving) = &mut part.offline {
        for (file, mark) in leaving.files.iter_mut().zip(marks) {
            file.mark = Some(*mark);
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
