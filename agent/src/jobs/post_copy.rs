//! Source: the guest goes over before all its memory has, and the rest follows.
//!
//! ```text
//!  sending ──ordered (fsync)──▶ QEMU switches, Perform returns ──▶ HandedOver (fsync) ──▶ the guest runs there
//!                                                                      pages follow ──▶ Ran ──▶ the copy is gone
//! ```
//!
//! The switch is the point of no return, and libvirt shows it only a moment after it was told. So from the order until
//! Perform has ended no undo is taken; after it what libvirt shows counts. Neither side is ever destroyed before the
//! destination has said `Ran`.

use drover_proto::failure::Failure;
use drover_proto::trace::names::span;

use super::outgoing::{OutgoingJob, TransferStep};
use super::{Jobs, Seen};
use crate::hypervisor::ErrorClass;
use crate::journal::{Decision, OpenPage, Record, SourceState};

impl Jobs {
    /// Tells QEMU to switch, if the guest runs and is being sent. Gives whether it was told.
    pub(super) async fn switch_to_post_copy(&self, job: &OutgoingJob) -> Result<bool, Failure> {
        // While this is held no undo is written down.
        let mut page = self.lock(job.migration).await?;
        let Some(record) = page.record() else { return Ok(false) };
        let Some(handle) = job.handle().filter(|_| is_performing(job) && may_switch(&record)) else {
            return Ok(false);
        };
        match self.look(&record).await? {
            Seen::Ours(guest) if guest.state.is_post_copy() => return Ok(true),
            // One that stands still writes nothing: it arrives by itself.
            Seen::Ours(guest) if guest.state.runs() => {}
            Seen::Ours(_) | Seen::Another(_) | Seen::ShutOff(_) | Seen::Unknown => return Ok(false),
        }
        write_ordered(&mut page, true).await?;
        let told = job
            .calls
            .call(span::LIBVIRT_START_POST_COPY, handle.start_post_copy())
            .await;
        let Err(error) = told else { return Ok(true) };
        match self.look(&record).await? {
            Seen::Ours(guest) if guest.state.is_post_copy() => return Ok(true),
            // Where nobody knows whether QEMU was told, the order stands.
            Seen::Ours(_) if error.class != ErrorClass::Ambiguous => write_ordered(&mut page, false).await?,
            Seen::Ours(_) | Seen::Another(_) | Seen::ShutOff(_) | Seen::Unknown => {}
        }
        Err(error.into())
    }

    /// Whether QEMU was told to switch and Perform has not ended: what libvirt shows may be of before.
    pub(super) fn is_switching(&self, record: &Record) -> bool {
        let ordered = record.source().is_some_and(|part| part.post_copy_ordered);
        let job = self.outgoing_job(record.migration);
        ordered && job.is_some_and(|job| is_performing(&job))
    }
}

fn is_performing(job: &OutgoingJob) -> bool {
    let course = job.course();
    course.step == TransferStep::Performing && course.outcome.is_none()
}

/// Allowed from the beginning, and nothing was handed over, decided or undone.
fn may_switch(record: &Record) -> bool {
    let sending = record
        .source()
        .is_some_and(|part| part.state == SourceState::Sending && part.flags.post_copy);
    sending && record.decision == Decision::Open && !record.is_tombstoned(record.attempt)
}

async fn write_ordered(page: &mut OpenPage, ordered: bool) -> Result<(), Failure> {
    page.change(|record| {
        if let Some(part) = record.source_mut() {
            part.post_copy_ordered = ordered;
        }
    })
    .await?;
    Ok(())
}
