//! Destination: nobody shall finish it any more. `Waiting` becomes `Revoked`; in any other state nothing changes.

use std::sync::Arc;

use drover_proto::failure::Failure;
use drover_proto::trace::names::span;

use super::Jobs;
use super::abort::bury;
use super::fence::{Fence, Reference, Side, concerns};
use crate::journal::{OpenPage, Part, Record, Step, Tombstone};

impl Jobs {
    /// The status tells which state it is now. A migration that this host knows nothing of gets a tombstone, which
    /// is no evidence of anything but refuses a Prepare that is still on its way.
    pub async fn revoke_incoming(self: &Arc<Self>, fence: Fence, reference: Reference) -> Result<(), Failure> {
        let mut page = self.obey_and_lock(&fence, reference.migration).await?;
        let Some(record) = page.record() else {
            let tombstone = Tombstone {
                up_to: reference.attempt,
                reason: "revoked".to_owned(),
            };
            let nothing = self.new_record(&fence, reference, Part::Nothing);
            page.create(Record {
                tombstone: Some(tombstone),
                ..nothing
            })
            .await?;
            return Ok(());
        };
        concerns(&record, &reference, Side::Destination)?;
        if record.closed.is_some() {
            return Ok(());
        }
        match record.destination().map(|part| part.state.revoke()) {
            Some(Ok(Step::Write(_))) => self.revoke_waiting(&mut page, &reference, "revoked").await,
            Some(Ok(Step::Already)) | None => bury(&mut page, &reference, "revoked".to_owned()).await,
            Some(Err(_)) => Ok(()),
        }
    }

    /// The ticket's time is over and no channel came.
    pub(super) async fn revoke_expired(&self, reference: Reference) -> Result<(), Failure> {
        let mut page = self.lock(reference.migration).await?;
        let waits = |record: &Record| {
            let waiting = record
                .destination()
                .is_some_and(|part| matches!(part.state.revoke(), Ok(Step::Write(_))));
            // What is whole may be the only copy.
            let whole = record.destination().and_then(|part| part.offline.as_ref());
            let whole = whole.is_some_and(|coming| coming.verified);
            waiting && !whole && record.attempt == reference.attempt
        };
        // It may have been reached while the lock was awaited.
        let reached = self
            .incoming_job(reference.migration)
            .is_some_and(|job| job.was_reached());
        if reached || !page.record().is_some_and(|record| waits(&record)) {
            return Ok(());
        }
        tracing::warn!(migration_id = %reference.migration, "the source did not come before its ticket expired");
        self.revoke_waiting(&mut page, &reference, "the ticket expired").await
    }

    /// Writes Revoked, and only then lets go of the copy.
    pub(super) async fn revoke_waiting(
        &self,
        page: &mut OpenPage,
        reference: &Reference,
        reason: &str,
    ) -> Result<(), Failure> {
        let record = page.record().ok_or_else(|| Failure::internal("the record is gone"))?;
        let part = record
            .destination()
            .ok_or_else(|| Failure::internal("this host is not the destination"))?;
        if let Step::Write(state) = part.state.revoke()? {
            let tombstone = Tombstone {
                up_to: reference.attempt,
                reason: reason.to_owned(),
            };
            page.change(|record| {
                record.tombstone = Some(tombstone);
                if let Some(part) = record.destination_mut() {
                    part.state = state;
                }
            })
            .await?;
        }
        self.drop_copy(record.migration).await;
        Ok(())
    }

    /// Finish(cancelled) and the connection's end; both only for a copy that was never told to finish.
    async fn drop_copy(&self, migration: drover_proto::ids::MigrationId) {
        if let Some(job) = self.incoming_job(migration)
            && let Some(handle) = job.take()
            && let Err(error) = job.calls.call(span::LIBVIRT_FINISH, handle.cancel()).await
        {
            // Dropping the handle destroys the copy as well; Settle makes sure that it is gone.
            tracing::debug!(%error, "the waiting copy was not cancelled");
        }
        let writing = self.incoming_job(migration).map(|job| Arc::clone(&job.writing));
        self.forget_incoming(migration);
        // What is being written to a file comes to its end first: afterwards nothing makes it again.
        if let Some(writing) = writing {
            drop(writing.lock().await);
        }
    }
}
