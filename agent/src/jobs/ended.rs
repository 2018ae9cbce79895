//! Notices guests that end by themselves while their migration is open, and writes it down.

use std::sync::Arc;

use drover_proto::failure::Failure;
use drover_proto::ids::MigrationId;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::Jobs;
use crate::hypervisor::{GuestEvent, Happened, StopReason};
use crate::journal::{DestinationState, Part, Record, SourceState};

impl Jobs {
    /// Listens until it is told to stop.
    pub async fn notice_ends(self: Arc<Self>, stop: CancellationToken) {
        let mut events = self.hypervisor.events();
        loop {
            let event = tokio::select! {
                () = stop.cancelled() => return,
                event = events.recv() => event,
            };
            match event {
                Ok(event) => self.notice(&event),
                // What was missed shows in libvirt's state; only the reason is lost.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn notice(self: &Arc<Self>, event: &GuestEvent) {
        for record in self
            .journal
            .records()
            .into_iter()
            .filter(|record| record.guest == event.guest)
        {
            let (jobs, migration) = (Arc::clone(self), record.migration);
            // Tasks of their own: the lock may be held for long by what made the guest end.
            if ends(&record, &event.what) {
                tokio::spawn(async move { jobs.write_end(migration).await });
            } else if may_run(&event.what) && must_stand_still(&record) {
                tokio::spawn(async move {
                    if let Err(error) = jobs.keep_still(migration).await {
                        tracing::error!(migration_id = %migration, %error, "a handed-over guest may run and cannot be stopped");
                    }
                });
            }
        }
    }

    /// Stops a copy that runs although it was handed over and nobody has decided.
    pub(super) async fn keep_still(&self, migration: MigrationId) -> Result<(), Failure> {
        let mut page = self.lock(migration).await?;
        match page.record() {
            Some(record) if must_stand_still(&record) => self.suspend_if_running(&mut page, &record).await,
            Some(_) | None => Ok(()),
        }
    }

    async fn write_end(&self, migration: MigrationId) {
        let written = async {
            let mut page = self.journal.lock(migration).await?;
            if page.record().is_some_and(|record| concerns(&record)) {
                page.change(|record| record.guest_ended = true).await?;
                tracing::info!(migration_id = %migration, "the guest ended by itself");
            }
            Ok::<_, crate::journal::JournalError>(())
        };
        if let Err(error) = written.await {
            tracing::warn!(%error, migration_id = %migration, "the end of a guest could not be journaled");
        }
    }
}

/// Whether the guest of this record has ended by its own or its user's wish.
fn ends(record: &Record, what: &Happened) -> bool {
    // A guest that was handed over stands still: it cannot shut down or crash, only its process can be ended, by a
    // host that goes down. What waits at the destination may then be the only copy.
    let handed_over = record
        .source()
        .is_some_and(|part| part.state == SourceState::HandedOver);
    concerns(record)
        && match what {
            Happened::Stopped(StopReason::Destroyed) => true,
            Happened::Stopped(StopReason::Shutdown | StopReason::Crashed) => !handed_over,
            Happened::Stopped(StopReason::Migrated | StopReason::Failed | StopReason::Other)
            | Happened::Started
            | Happened::Resumed
            | Happened::Suspended { .. }
            | Happened::Iteration(_)
            | Happened::JobCompleted(_)
            | Happened::Changed => false,
        }
}

/// Whether the event may mean that a copy runs that stood still before.
fn may_run(what: &Happened) -> bool {
    match what {
        Happened::Started | Happened::Resumed | Happened::Changed => true,
        Happened::Stopped(_) | Happened::Suspended { .. } | Happened::Iteration(_) | Happened::JobCompleted(_) => false,
    }
}

/// Handed over, and nobody has decided.
fn must_stand_still(record: &Record) -> bool {
    let handed_over = record
        .source()
        .is_some_and(|part| part.state == SourceState::HandedOver);
    handed_over && record.verdict().is_none() && record.closed.is_none()
}

/// The end of a waiting copy is not the end of the guest.
fn concerns(record: &Record) -> bool {
    let open = record.verdict().is_none() && record.closed.is_none();
    match &record.part {
        // One that moves shut off has no life to end: what shuts it down may be the migration itself.
        Part::Source(part) => open && part.offline.is_none(),
        Part::Destination(part) => part.state == DestinationState::Ran && record.closed.is_none(),
        Part::Nothing => false,
    }
}

#[cfg(test)]
#[path = "ended_tests.rs"]
mod tests;
