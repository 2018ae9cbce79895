//! Notices guests that end by themselves while their migration is open, and writes it down.

use std::sync::Arc;

use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::Jobs;
use crate::hypervisor::{GuestEvent, Happened, StopReason};
use crate::journal::{DestinationState, Part, Record};

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
        if !is_end(&event.what) {
            return;
        }
        for record in self.journal.records() {
            if record.guest == event.guest && concerns(&record) {
                let (jobs, migration) = (Arc::clone(self), record.migration);
                // The lock may be held for long by what made the guest end.
                tokio::spawn(async move { jobs.write_end(migration).await });
            }
        }
    }

    async fn write_end(&self, migration: drover_proto::ids::MigrationId) {
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

fn is_end(what: &Happened) -> bool {
    match what {
        Happened::Stopped(reason) => match reason {
            StopReason::Shutdown | StopReason::Destroyed | StopReason::Crashed => true,
            StopReason::Migrated | StopReason::Failed | StopReason::Other => false,
        },
        Happened::Started
        | Happened::Resumed
        | Happened::Suspended { .. }
        | Happened::Iteration(_)
        | Happened::JobCompleted(_)
        | Happened::Changed => false,
    }
}

/// The end of a waiting copy is not the end of the guest.
fn concerns(record: &Record) -> bool {
    let open = record.verdict().is_none() && record.closed.is_none();
    match &record.part {
        Part::Source(_) => open,
        Part::Destination(part) => part.state == DestinationState::Ran && record.closed.is_none(),
        Part::Nothing => false,
    }
}
