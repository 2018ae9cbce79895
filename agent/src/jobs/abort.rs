//! Source: the undo is ordered. A tombstone first, then Perform is stopped and its end awaited. Decides nothing.

use std::sync::Arc;
use std::time::Duration;

use drover_proto::failure::{Failure, Reason};
use drover_proto::trace::names::span;
use tokio::time::Instant;

use super::fence::{Fence, Reference, Side, concerns};
use super::outgoing::OutgoingJob;
use super::{Jobs, Seen, errors};
use crate::journal::{Forbidden, OpenPage, Part, Record, SourceState, Tombstone, Verdict};

/// An abort that comes before QEMU has begun to send is lost: it is repeated.
const ABORT_AGAIN: Duration = Duration::from_millis(250);

impl Jobs {
    /// After this returns nothing sends and nothing hands over, and nothing will. Refused in post-copy.
    pub async fn abort_outgoing(
        self: &Arc<Self>,
        fence: Fence,
        reference: Reference,
        reason: String,
    ) -> Result<(), Failure> {
        let mut page = self.obey_and_lock(&fence, reference.migration).await?;
        if page.record().is_none() {
            let nothing = self.new_record(&fence, reference, Part::Nothing);
            page.create(Record {
                tombstone: Some(tombstone(&reference, reason)),
                ..nothing
            })
            .await?;
            return Ok(());
        }
        self.bury_source(&mut page, &reference, reason).await?;
        drop(page);
        self.await_silence(&reference).await
    }

    /// Writes the tombstone, unless the guest's memory lies on two hosts already.
    pub(super) async fn bury_source(
        &self,
        page: &mut OpenPage,
        reference: &Reference,
        reason: String,
    ) -> Result<(), Failure> {
        let record = page.record().ok_or_else(|| Failure::internal("the record is gone"))?;
        concerns(&record, reference, Side::Source)?;
        if record.closed.is_some() {
            return Ok(());
        }
        self.refuse_in_post_copy(&record).await?;
        bury(page, reference, reason).await
    }

    /// libvirt is asked, not the journal: only it knows whether the switch was made.
    pub(super) async fn refuse_in_post_copy(&self, record: &Record) -> Result<(), Failure> {
        match self.look(record).await? {
            Seen::Ours(guest) if guest.state.is_post_copy() => Err(Forbidden::PostCopy.into()),
            // It was told to, and may be any moment.
            Seen::Ours(_) if self.is_switching(record) => Err(Forbidden::PostCopy.into()),
            Seen::Ours(_) | Seen::Unknown | Seen::ShutOff(_) | Seen::Another(_) => Ok(()),
        }
    }

    /// Stops what is under way and waits for its end, for a bounded time.
    pub(super) async fn await_silence(&self, reference: &Reference) -> Result<(), Failure> {
        let deadline = Instant::now() + self.limits.abort;
        let Some(job) = self.outgoing_job(reference.migration) else {
            return self.await_lost_job(reference, deadline).await;
        };
        job.claimed.cancel();
        job.give_up.cancel();
        while job.is_busy() {
            self.abort_once(&job).await?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(still_performing());
            }
            job.settled_within(ABORT_AGAIN.min(left)).await;
        }
        Ok(())
    }

    pub(super) async fn abort_once(&self, job: &OutgoingJob) -> Result<(), Failure> {
        if job.course().step != super::outgoing::TransferStep::Performing {
            return Ok(());
        }
        let Some(handle) = job.handle() else { return Ok(()) };
        if let Err(error) = job.calls.call(span::LIBVIRT_ABORT, handle.abort()).await {
            // It may have ended by itself, or not begun; the loop looks. In post-copy it never ends.
            let look = self.hypervisor.guest(job.guest).await.map_err(errors::unsure)?;
            if look.is_some_and(|guest| guest.state.is_post_copy()) {
                return Err(Forbidden::PostCopy.into());
            }
            tracing::debug!(%error, "an abort was not taken");
        }
        Ok(())
    }

    /// Before the process ends: a Perform that came to its end afterwards would leave a guest between two hosts.
    pub(super) async fn end_transfers(&self) {
        let deadline = Instant::now() + self.limits.abort;
        for job in self.outgoing_jobs() {
            // A copy of files is cut off by the end of the process, and goes on when the agent is back.
            if job.offline().is_some() && job.course().step == super::outgoing::TransferStep::Performing {
                continue;
            }
            while job.is_busy() {
                // A hand-over ends by itself: it asks the destination once more at most.
                let sends = job.course().step == super::outgoing::TransferStep::Performing;
                if sends && Instant::now() >= deadline {
                    tracing::warn!(migration_id = %job.migration, "it still sends; the end of the agent cuts it off");
                    break;
                }
                if let Err(error) = self.abort_once(&job).await {
                    tracing::warn!(%error, migration_id = %job.migration, "what it sends could not be stopped");
                    break;
                }
                job.settled_within(ABORT_AGAIN).await;
            }
        }
    }

    /// After a restart of the agent libvirt may still be busy with letting go of what the former one held.
    pub(super) async fn await_lost_job(&self, reference: &Reference, deadline: Instant) -> Result<(), Failure> {
        // A guest that is shut off has no job.
        let holds = |part: &crate::journal::SourcePart| part.state == SourceState::Sending && part.offline.is_none();
        let sending = |record: &Record| record.source().is_some_and(holds);
        if !self
            .journal
            .read(reference.migration)
            .is_some_and(|record| sending(&record))
        {
            return Ok(());
        }
        loop {
            match self.hypervisor.job(reference.guest).await {
                Ok(None) => return Ok(()),
                Err(error) if error.class == crate::hypervisor::ErrorClass::NoGuest => return Ok(()),
                Err(error) => return Err(errors::unsure(error)),
                Ok(Some(_)) if Instant::now() >= deadline => return Err(still_performing()),
                Ok(Some(_)) => tokio::time::sleep(ABORT_AGAIN).await,
            }
        }
    }

    /// Before HandedOver the source may give up by itself: tombstone, then everything as it was before.
    pub(super) async fn give_up(self: &Arc<Self>, reference: Reference, reason: &str) -> Result<(), Failure> {
        let mut page = self.lock(reference.migration).await?;
        let Some(record) = page.record() else { return Ok(()) };
        let job = self.outgoing_job(reference.migration);
        let sending = record.source().is_some_and(|part| part.state == SourceState::Sending);
        let busy = job
            .as_ref()
            .is_some_and(|job| job.is_busy() || job.claimed.is_cancelled());
        if !sending || busy || record.attempt != reference.attempt || record.verdict().is_some() {
            return Ok(());
        }
        tracing::warn!(migration_id = %reference.migration, "giving up before anything was sent: {reason}");
        self.bury_source(&mut page, &reference, reason.to_owned()).await?;
        self.decide_and_settle_source(&mut page, Verdict::NeverRan).await
    }
}

fn still_performing() -> Failure {
    Failure::new(
        Reason::DeadlineExceeded,
        "Perform was told to stop and has not ended yet",
    )
}

fn tombstone(reference: &Reference, reason: String) -> Tombstone {
    Tombstone {
        up_to: reference.attempt,
        reason,
    }
}

/// A tombstone covers what it covered before, and this try.
pub(super) async fn bury(page: &mut OpenPage, reference: &Reference, reason: String) -> Result<(), Failure> {
    let covers = |record: &Record| record.is_tombstoned(reference.attempt);
    if !page.record().is_some_and(|record| covers(&record)) {
        page.change(|record| record.tombstone = Some(tombstone(reference, reason)))
            .await?;
    }
    Ok(())
}
