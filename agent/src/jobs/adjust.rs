//! Source: the limits of a transfer are changed while it goes on, or before it starts.
//!
//! Journal, then act. A repeat puts the same in force again; what is older than what was obeyed changes nothing. If the
//! process dies in between, the transfer is lost with it, and the controller tells the next one.

use std::sync::Arc;

use drover_proto::failure::{Failure, Reason};

use super::fence::{Fence, Reference, Side, concerns};
use super::outgoing::TransferStep;
use super::{Jobs, Seen};
use crate::journal::{AtDeadline, Decision, Forbidden, Limits, SourceState};

impl Jobs {
    /// In force when this returns, or from the start of the transfer. Refused once all is sent.
    pub async fn adjust_outgoing(
        self: &Arc<Self>,
        fence: Fence,
        reference: Reference,
        limits: Limits,
    ) -> Result<(), Failure> {
        let mut page = self.obey_and_lock(&fence, reference.migration).await?;
        let none = || Failure::new(Reason::MigrationNotFound, "nothing was begun here");
        let record = page.record().ok_or_else(none)?;
        concerns(&record, &reference, Side::Source)?;
        if record.is_tombstoned(reference.attempt) {
            return Err(Forbidden::Tombstoned.into());
        }
        let part = record
            .source()
            .filter(|_| record.attempt == reference.attempt)
            .ok_or_else(none)?;
        if record.decision != Decision::Open {
            return Err(Forbidden::Decided.into());
        }
        let job = self.outgoing_job(reference.migration);
        let course = job.as_ref().map(|job| job.course()).unwrap_or_default();
        if part.state == SourceState::HandedOver || course.outcome.is_some() {
            let message = "all is sent, or the transfer has ended: there is nothing left to change";
            return Err(Failure::new(Reason::TooLate, message));
        }
        if (limits.post_copy_now || limits.at_deadline == AtDeadline::PostCopy) && !part.flags.post_copy {
            let message = "the migration was begun without post-copy, or with a guest that stood still";
            return Err(Failure::new(Reason::MigrationState, message));
        }
        let Some(limits) = limits.after(&part.limits) else {
            return Ok(());
        };
        self.refuse_another_life(&record).await?;
        page.change(|record| {
            if let Some(part) = record.source_mut() {
                part.limits = limits;
            }
        })
        .await?;
        match job.as_ref().and_then(|job| Some((job, job.handle()?))) {
            Some((job, handle)) if course.step == TransferStep::Performing => {
                Ok(job.steering.adjust(limits, handle.as_ref()).await?)
            }
            Some(_) | None => Ok(()),
        }
    }

    async fn refuse_another_life(&self, record: &crate::journal::Record) -> Result<(), Failure> {
        match self.look(record).await? {
            Seen::Ours(_) => Ok(()),
            Seen::Unknown | Seen::ShutOff(_) | Seen::Another(_) => Err(Failure::new(
                Reason::IncarnationMismatch,
                "the guest that is being sent is not here any more",
            )),
        }
    }
}
