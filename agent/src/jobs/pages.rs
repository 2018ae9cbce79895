//! Destination in post-copy: the guest runs and pages are missing. `Ran` is written when the last one has arrived.
//!
//! Finish tells it, where this process called it; else, and where it failed, what libvirt shows. No lock is held
//! meanwhile, and nothing is ever destroyed: a broken stream leaves the guest waiting for its pages. When another one
//! has come (`reopen`), Finish is called for that. If the process dies, the restarted one watches again.

use std::sync::Arc;
use std::time::Duration;

use drover_proto::failure::Failure;
use drover_proto::fault_points::{self, point};
use drover_proto::ids::MigrationId;
use tracing::Instrument;

use super::arrive::write_ran;
use super::arrive_early::Finishing;
use super::{Jobs, Seen, lock};
use crate::hypervisor::{Cookie, GuestState};
use crate::journal::{Arrival, DestinationState, Record};

/// How often libvirt is asked.
const INTERVAL: Duration = Duration::from_millis(100);

/// What libvirt shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pages {
    Flow,
    /// Nothing comes until the stream is repaired.
    Wait,
    Arrived,
    /// There is no such guest any more.
    Gone,
}

impl Jobs {
    /// Sees to it that somebody watches. `finishing` is Finish, where this process called it.
    pub(super) fn watch_pages(self: &Arc<Self>, migration: MigrationId, finishing: Option<Finishing>) {
        if !lock(&self.awaiting_pages).insert(migration) {
            return;
        }
        let jobs = Arc::clone(self);
        let watching = async move {
            if let Err(error) = jobs.await_pages(migration, finishing).await {
                tracing::error!(migration_id = %migration, %error, "the arrival of the last page could not be written down");
            }
            lock(&jobs.awaiting_pages).remove(&migration);
        };
        tokio::spawn(watching.in_current_span());
    }

    /// Whether somebody watches.
    pub(super) fn awaits_pages(&self, migration: MigrationId) -> bool {
        lock(&self.awaiting_pages).contains(&migration)
    }

    async fn await_pages(
        self: &Arc<Self>,
        migration: MigrationId,
        finishing: Option<Finishing>,
    ) -> Result<(), Failure> {
        // While pages come the process does not end by itself: it carries them.
        let mut carries = Some(self.critical());
        if let Some(finishing) = finishing {
            match finishing.await {
                Ok(Ok(cookie)) => return self.write_arrived(migration, Some(cookie)).await,
                Ok(Err(error)) => {
                    tracing::warn!(migration_id = %migration, %error, "not every page came with the first stream");
                }
                // The runtime has reported the panic.
                Err(_) => {}
            }
        }
        loop {
            let Some(record) = self.journal.read(migration).filter(|record| is_missing_pages(record)) else {
                return Ok(());
            };
            // A libvirtd that is being restarted does not stop the pages.
            match self.pages(&record).await.unwrap_or(Pages::Wait) {
                Pages::Flow => {
                    carries.get_or_insert_with(|| self.critical());
                    self.finish_again(migration);
                }
                Pages::Wait => carries = None,
                Pages::Arrived => return self.write_arrived(migration, None).await,
                Pages::Gone => {
                    tracing::error!(migration_id = %migration, "the guest is gone, and pages of it were missing");
                    return Ok(());
                }
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    async fn pages(&self, record: &Record) -> Result<Pages, Failure> {
        let guest = match self.look(record).await? {
            Seen::Ours(guest) => guest,
            Seen::Another(_) | Seen::Unknown | Seen::ShutOff(_) => return Ok(Pages::Gone),
        };
        Ok(match guest.state {
            GuestState::RunningPostCopy | GuestState::PausedPostCopy => Pages::Flow,
            GuestState::Running | GuestState::ShuttingDown => Pages::Arrived,
            // By its user meanwhile: whether pages are missing shows in the job.
            GuestState::Paused | GuestState::PausedFault | GuestState::Crashed => {
                let job = self.hypervisor.job(record.guest).await?;
                job.map_or(Pages::Arrived, |_| Pages::Flow)
            }
            GuestState::RunningPostCopyFailed
            | GuestState::PausedPostCopyFailed
            | GuestState::PausedMigrating
            | GuestState::ShutOff => Pages::Wait,
        })
    }

    async fn write_arrived(&self, migration: MigrationId, cookie: Option<Cookie>) -> Result<(), Failure> {
        let mut page = self.lock(migration).await?;
        let Some(record) = page.record().filter(|record| is_missing_pages(record)) else {
            return Ok(());
        };
        self.still_as_it_was(&record).await?;
        let known = record.destination().and_then(|part| part.arrival.clone());
        match (cookie, known) {
            (Some(cookie), Some(arrival)) => {
                let calls = self.incoming_job(migration).map(|job| job.calls.all());
                let calls = calls.unwrap_or_else(|| record.calls.clone());
                write_ran(&mut page, Arrival { cookie, ..arrival }, calls).await?;
            }
            (Some(_) | None, _) => self.write_seen_running(&mut page).await?,
        }
        fault_points::reach(point::DESTINATION_RAN).await;
        self.forget_incoming(migration);
        Ok(())
    }
}

/// It may go post-copy, was told to run, and nobody has written that it did.
fn is_missing_pages(record: &Record) -> bool {
    record.closed.is_none()
        && record
            .destination()
            .is_some_and(|part| part.flags.post_copy && part.state == DestinationState::Resuming)
}
