//! Destination, a guest that is shut off: its files get their names, it is defined, and belongs here.
//!
//! ```text
//!  Waiting, verified ──▶ Finishing (fsync) ──▶ names ──▶ defined ──▶ Ran (fsync) ──▶ answer
//!                            │ ▲ a repeat does what is not done yet
//!                            └──▶ Failed (fsync), where a name is taken or libvirt refuses: it is not defined here
//! ```
//!
//! The source has forgotten the guest before it asks: here is the only place where it can be started from then on.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use drover_proto::failure::{Failure, Reason};
use drover_proto::fault_points::{self, point};

use super::arrive::{Taken, refused, taken_before, write_ran, write_state};
use super::fence::Reference;
use super::{Jobs, errors};
use crate::hypervisor::Cookie;
use crate::journal::{Arrival, Coming, DestinationPart, DestinationState, FinishStep, OpenPage, Record, Step};
use crate::offline::calls::FileCall;
use crate::offline::{FileError, arriving};
use crate::storage_directories::StorageDirectories;

impl Jobs {
    pub(super) async fn arrive_offline(&self, page: &mut OpenPage, arrived: Instant) -> Result<Taken, Failure> {
        let record = page.record().ok_or_else(refused)?;
        let (part, coming) = offline_part(&record)?;
        match part.state.finish(false)? {
            FinishStep::Ran => return taken_before(&record),
            FinishStep::Join => {}
            FinishStep::Finish(_) if !coming.verified => {
                let message = "not all of the guest's files were received and verified";
                return Err(Failure::new(Reason::StreamIncomplete, message));
            }
            FinishStep::Finish(next) => {
                if let Some(why) = self.in_the_way(record.guest, &part.guest_name).await? {
                    return self.refuse_arrival(page, &record, &why).await;
                }
                write_state(page, next).await?;
                fault_points::reach(point::DESTINATION_FINISHING).await;
            }
        }
        self.end_writing(&record).await;
        // Defined is what comes after the names: it is here already, whatever became of its files since.
        let known = self.hypervisor.guest(record.guest).await.map_err(errors::unsure)?;
        if known.is_none() {
            if let Some(why) = self.put_files_in_place(&record, coming).await? {
                return self.never_arrives(page, part, why).await;
            }
            let xml = part.inactive_xml.as_deref().unwrap_or_default();
            if !self.define_arrived(record.guest, &part.guest_name, xml).await? {
                let why = "libvirt does not take its definition".to_owned();
                return self.never_arrives(page, part, why).await;
            }
        }
        fault_points::reach(point::DESTINATION_FINISHED).await;
        let arrival = Arrival {
            switched: SystemTime::now(),
            cookie: Cookie::default(),
        };
        let elapsed = Some(arrived.elapsed());
        write_ran(page, arrival.clone(), record.calls.clone()).await?;
        fault_points::reach(point::DESTINATION_RAN).await;
        Ok(Taken {
            arrival,
            elapsed,
            calls: record.calls.clone(),
            pages_missing: false,
        })
    }

    /// Whatever still comes is not written any more.
    async fn end_writing(&self, record: &Record) {
        let writing = self.incoming_job(record.migration).map(|job| Arc::clone(&job.writing));
        self.forget_incoming(record.migration);
        if let Some(writing) = writing {
            drop(writing.lock().await);
        }
    }

    /// It still waits: it is revoked, and its source has it back.
    async fn refuse_arrival(&self, page: &mut OpenPage, record: &Record, why: &str) -> Result<Taken, Failure> {
        let reference = Reference {
            migration: record.migration,
            attempt: record.attempt,
            guest: record.guest,
        };
        self.revoke_waiting(page, &reference, why).await?;
        Err(Failure::new(
            Reason::NeverRan,
            format!("the guest cannot be taken here: {why}"),
        ))
    }

    /// Why they never can be, where that is known. An error says nothing.
    async fn put_files_in_place(&self, record: &Arc<Record>, coming: &Coming) -> Result<Option<String>, Failure> {
        let migration = record.migration;
        for file in coming.files.clone() {
            let path = file.spec.path.clone();
            let work = move |allowed: &StorageDirectories| arriving::put_in_place(allowed, &file, migration);
            match self.with_file(FileCall::Name, path, work).await {
                Ok(()) => {}
                Err(
                    error @ (FileError::Exists(_)
                    | FileError::Absent(_)
                    | FileError::Link(_)
                    | FileError::Outside(_)
                    | FileError::Device(_)),
                ) => return Ok(Some(error.to_string())),
                Err(error) => return Err(Failure::new(Reason::LibvirtUnavailable, error.to_string())),
            }
        }
        Ok(None)
    }

    /// It is not defined here, and never will be by this migration: written before anybody is told.
    async fn never_arrives(&self, page: &mut OpenPage, part: &DestinationPart, why: String) -> Result<Taken, Failure> {
        let state = page
            .record()
            .and_then(|record| record.destination().map(|part| part.state));
        if let Step::Write(failed) = state.unwrap_or(part.state).fail()? {
            write_state(page, failed).await?;
        }
        Err(Failure::new(
            Reason::NeverRan,
            format!("the guest cannot be taken here: {why}"),
        ))
    }

    /// An operator's word that the source is off: what was verified is taken without it.
    pub(super) async fn arrive_by_word(&self, page: &mut OpenPage) -> Result<(), Failure> {
        let record = page.record().ok_or_else(refused)?;
        let (part, _) = offline_part(&record)?;
        if part.state == DestinationState::Ran {
            return Ok(());
        }
        self.arrive_offline(page, Instant::now()).await.map(|_| ())
    }
}

fn offline_part(record: &Record) -> Result<(&DestinationPart, &Coming), Failure> {
    let part = record.destination();
    part.and_then(|part| Some((part, part.offline.as_ref()?)))
        .ok_or_else(refused)
}
