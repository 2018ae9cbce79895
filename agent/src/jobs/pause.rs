//! Source: stops the guest so that its transfer finishes, and gives it back where that fails.
//!
//! The journal says that this agent stopped it before it does. If Perform fails then, or the process dies, nothing was
//! handed over: this agent may give up by itself, and the guest runs on here, also while the controller is away.

use std::sync::Arc;

use drover_proto::failure::Failure;

use super::fence::Reference;
use super::outgoing::{OutgoingJob, TransferStep};
use super::{Jobs, Seen, errors};
use crate::journal::{Decision, Record, SourceState, Verdict};

impl Jobs {
    /// Stops the guest if it runs and is being sent. Gives whether it was stopped here.
    pub(super) async fn pause_to_finish(&self, job: &OutgoingJob) -> Result<bool, Failure> {
        // While this is held nothing is handed over, given back or removed.
        let mut page = self.lock(job.migration).await?;
        let Some(record) = page.record() else { return Ok(false) };
        let course = job.course();
        let performing = course.step == TransferStep::Performing && course.outcome.is_none();
        if !performing || !is_being_sent(&record) {
            return Ok(false);
        }
        match self.look(&record).await? {
            Seen::Ours(guest) if guest.state.runs() && !guest.state.is_post_copy() => {}
            Seen::Ours(_) | Seen::Another(_) | Seen::ShutOff(_) | Seen::Unknown => return Ok(false),
        }
        page.change(|record| {
            if let Some(part) = record.source_mut() {
                part.suspended_by_agent = true;
            }
        })
        .await?;
        self.hypervisor.suspend(record.guest).await.map_err(errors::unsure)?;
        Ok(true)
    }

    /// Perform failed, or was lost with a former agent, and the guest may stand still because an agent stopped it.
    pub(super) async fn give_back_paused(self: &Arc<Self>, reference: Reference) -> Result<(), Failure> {
        let mut page = self.lock(reference.migration).await?;
        let stopped_here = |record: &Record| record.source().is_some_and(|part| part.suspended_by_agent);
        let Some(record) = page.record() else { return Ok(()) };
        let sending = record.source().is_some_and(|part| part.state == SourceState::Sending);
        let open = record.decision == Decision::Open && record.attempt == reference.attempt;
        if !sending || !open || !stopped_here(&record) {
            return Ok(());
        }
        // One that is gone, or was started anew, is the controller's business.
        if !matches!(self.look(&record).await?, Seen::Ours(_)) {
            return Ok(());
        }
        tracing::warn!(migration_id = %reference.migration, "the guest was stopped so that it moves, and did not: it is given back");
        let why = "it was stopped so that it moves, and the transfer failed";
        self.bury_source(&mut page, &reference, why.to_owned()).await?;
        self.decide_and_settle_source(&mut page, Verdict::NeverRan).await
    }
}

/// Nothing was handed over, decided or undone.
fn is_being_sent(record: &Record) -> bool {
    let sending = record.source().is_some_and(|part| part.state == SourceState::Sending);
    sending && record.decision == Decision::Open && !record.is_tombstoned(record.attempt)
}
