//! Destination: a guest that may go post-copy is handed over. Finish lets it run, and returns when every page is here.
//!
//! ```text
//!  Resuming (fsync) ▶ Finish, in a task of its own ───────────────────▶ every page is here ▶ Ran (fsync)
//!                       └▶ the guest runs ▶ answer: pages are missing      (`pages`)
//! ```
//!
//! Where all memory came before, Finish returns at once and the answer is as of any hand-over. Nothing is ever
//! destroyed here. If the process dies, the restarted one watches for the pages again.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use drover_proto::failure::Failure;
use drover_proto::fault_points::{self, point};
use drover_proto::trace::names::span;
use tokio::sync::broadcast;
use tokio::task::JoinHandle;
use tracing::Instrument;

use super::arrive::{Taken, arrives_running, refused, taken_before, undecided, write_ran};
use super::incoming::IncomingJob;
use super::{Jobs, Seen, errors};
use crate::hypervisor::{self, Cookie, GuestEvent, GuestState, Happened, HypervisorError, Incoming};
use crate::journal::{Arrival, Call, OpenPage, Record};

/// How often libvirt is asked whether the guest runs, beside its events.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Finish, under way.
pub(super) type Finishing = JoinHandle<hypervisor::Result<Cookie>>;

/// What came first, and when the guest was let run.
enum Seeing {
    /// It runs on what is here.
    Early(Instant),
    /// Finish has ended.
    Whole(hypervisor::Result<Cookie>, Option<Instant>),
}

impl Jobs {
    /// `Resuming` is written, and Finish was not called yet.
    pub(super) async fn arrive_early(
        self: &Arc<Self>,
        page: &mut OpenPage,
        job: Arc<IncomingJob>,
        handle: Box<dyn Incoming>,
        cookie: Cookie,
        arrived: Instant,
    ) -> Result<Taken, Failure> {
        let record = page.record().ok_or_else(refused)?;
        let events = self.hypervisor.events();
        let mut finishing = self.begin_finish(&job, handle, cookie);
        let since = |ran: Instant| ran.saturating_duration_since(arrived);
        match self.runs_or_whole(&record, events, &mut finishing).await {
            Seeing::Early(ran) => {
                // Whatever becomes of the rest of this, somebody waits for the pages.
                self.watch_pages(record.migration, Some(finishing));
                fault_points::reach(point::DESTINATION_RESUMED).await;
                let arrival = arrival_of(ran, Cookie::default());
                write_arrival(page, arrival.clone(), job.calls.all()).await?;
                Ok(Taken {
                    arrival,
                    elapsed: Some(since(ran)),
                    calls: job.calls.all(),
                    pages_missing: true,
                })
            }
            Seeing::Whole(Ok(cookie), ran) => {
                let ran = ran.unwrap_or_else(Instant::now);
                fault_points::reach(point::DESTINATION_RESUMED).await;
                self.still_as_it_was(&record).await?;
                let arrival = arrival_of(ran, cookie);
                write_ran(page, arrival.clone(), job.calls.all()).await?;
                self.forget_incoming(record.migration);
                fault_points::reach(point::DESTINATION_RAN).await;
                Ok(Taken {
                    arrival,
                    elapsed: Some(since(ran)),
                    calls: job.calls.all(),
                    pages_missing: false,
                })
            }
            Seeing::Whole(Err(error), _) => self.after_failed_early(page, &record, &error).await,
        }
    }

    /// Nobody's patience ends it: it may take as long as the pages do.
    pub(super) fn begin_finish(
        self: &Arc<Self>,
        job: &Arc<IncomingJob>,
        handle: Box<dyn Incoming>,
        cookie: Cookie,
    ) -> Finishing {
        let (job, critical) = (Arc::clone(job), self.critical());
        let finish = async move {
            let finished = job.calls.call(span::LIBVIRT_FINISH, handle.finish(&cookie)).await;
            drop(handle);
            drop(critical);
            finished
        };
        tokio::spawn(finish.in_current_span())
    }

    async fn runs_or_whole(
        &self,
        record: &Record,
        mut events: broadcast::Receiver<GuestEvent>,
        finishing: &mut Finishing,
    ) -> Seeing {
        let mut ran = None;
        loop {
            tokio::select! {
                biased;
                ended = &mut *finishing => return Seeing::Whole(ended.unwrap_or_else(|error| Err(broke_off(&error))), ran),
                event = events.recv() => match event {
                    Ok(GuestEvent { guest, instant, what: Happened::Resumed, .. }) if guest == record.guest => {
                        ran.get_or_insert(instant);
                    }
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => continue,
                    // The connection for events is gone: libvirt is asked.
                    Err(broadcast::error::RecvError::Closed) => tokio::time::sleep(LOOK_INTERVAL).await,
                },
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
            // One that runs with all of its memory: Finish is about to return.
            match self.look(record).await {
                Ok(Seen::Ours(guest)) if guest.state.is_post_copy() && guest.state.runs() => {
                    return Seeing::Early(ran.unwrap_or_else(Instant::now));
                }
                Ok(Seen::Ours(_) | Seen::Another(_) | Seen::Unknown | Seen::ShutOff(_)) | Err(_) => {}
            }
        }
    }

    /// Finish failed: nobody may conclude from that. What is here now decides.
    async fn after_failed_early(
        self: &Arc<Self>,
        page: &mut OpenPage,
        record: &Record,
        error: &HypervisorError,
    ) -> Result<Taken, Failure> {
        tracing::warn!(migration_id = %record.migration, "Finish failed: {error}");
        match self.look(record).await? {
            Seen::Ours(guest) => self.go_on_with(page, record, &guest).await,
            Seen::Another(_) | Seen::Unknown | Seen::ShutOff(_) => Err(undecided()),
        }
    }

    /// The guest runs and pages are missing: when it switched is told as it was.
    pub(super) async fn runs_without_pages(
        self: &Arc<Self>,
        page: &mut OpenPage,
        record: &Record,
    ) -> Result<Taken, Failure> {
        self.watch_pages(record.migration, None);
        if record.destination().is_none_or(|part| part.arrival.is_none()) {
            let arrival = arrival_of(Instant::now(), Cookie::default());
            write_arrival(page, arrival, record.calls.clone()).await?;
        }
        let record = page.record().ok_or_else(refused)?;
        Ok(Taken {
            pages_missing: true,
            ..taken_before(&record)?
        })
    }

    /// Finish lets it run without being asked. One that its user had paused before is stopped again.
    pub(super) async fn still_as_it_was(&self, record: &Record) -> Result<(), Failure> {
        if arrives_running(record) {
            return Ok(());
        }
        match self.look(record).await? {
            Seen::Ours(guest) if guest.state == GuestState::Running => {
                self.hypervisor.suspend(record.guest).await.map_err(errors::unsure)
            }
            Seen::Ours(_) | Seen::Another(_) | Seen::Unknown | Seen::ShutOff(_) => Ok(()),
        }
    }
}

fn arrival_of(ran: Instant, cookie: Cookie) -> Arrival {
    Arrival {
        switched: SystemTime::now() - ran.elapsed(),
        cookie,
    }
}

/// It runs here; the state says so only when no page is missing any more.
async fn write_arrival(page: &mut OpenPage, arrival: Arrival, calls: Vec<Call>) -> Result<(), Failure> {
    page.change(|record| {
        record.calls = calls;
        if let Some(part) = record.destination_mut() {
            part.arrival = Some(arrival);
        }
    })
    .await?;
    Ok(())
}

fn broke_off(error: &tokio::task::JoinError) -> HypervisorError {
    HypervisorError {
        class: hypervisor::ErrorClass::Ambiguous,
        code: "FINISH_BROKE_OFF".to_owned(),
        message: error.to_string(),
    }
}
