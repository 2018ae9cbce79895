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

use super::Jobs;
use super::arrive::{Taken, refused, taken_before, write_ran, write_state};
use crate::hypervisor::Cookie;
use crate::journal::{Arrival, Coming, DestinationPart, DestinationState, FinishStep, OpenPage, Record, Step};
use crate::offline::{FileError, partial};

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
                write_state(page, next).await?;
                fault_points::reach(point::DESTINATION_FINISHING).await;
            }
        }
        self.forget_incoming(record.migration);
        if let Some(why) = self.put_files_in_place(&record, coming).await? {
            return self.never_arrives(page, part, why).await;
        }
        let xml = part.inactive_xml.as_deref().unwrap_or_default();
        if !self.define_arrived(record.guest, xml).await? {
            return self
                .never_arrives(page, part, "libvirt does not take its definition".to_owned())
                .await;
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
        })
    }

    /// Why they never can be, where that is known. An error says nothing.
    async fn put_files_in_place(&self, record: &Arc<Record>, coming: &Coming) -> Result<Option<String>, Failure> {
        let (allowed, files, migration) = (self.allowed.clone(), coming.files.clone(), record.migration);
        let put = move || {
            let mut files = files.iter();
            files.try_for_each(|file| partial::put_in_place(&allowed, file, migration))
        };
        let put = tokio::task::spawn_blocking(put).await;
        match put.map_err(|error| Failure::internal(format!("naming files broke off: {error}")))? {
            Ok(()) => Ok(None),
            Err(error @ (FileError::Exists(_) | FileError::Absent(_) | FileError::Link(_) | FileError::Outside(_))) => {
                Ok(Some(error.to_string()))
            }
            Err(error) => Err(Failure::new(Reason::LibvirtUnavailable, error.to_string())),
        }
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
