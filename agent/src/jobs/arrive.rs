//! Destination: the guest is handed over. Finish, once; resume; and the journal one step ahead of each.
//!
//! ```text
//!  pre-copy   Finishing (fsync) ▶ Finish ▶ Resuming (fsync) ▶ resume ▶ Ran (fsync) ▶ answer
//!  post-copy  Resuming (fsync) ▶ Finish … the guest runs ▶ answer … every page arrived ▶ Ran (fsync)  (`arrive_early`)
//! ```
//!
//! The migration's lock is held throughout, so a repeat joins the first by waiting for the lock, and finds the
//! result in the journal. If the process dies inside Finish, the copy is gone or stands still: a repeat sees which.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use drover_proto::failure::{Failure, Reason};
use drover_proto::fault_points::{self, point};
use drover_proto::ids::{Attempt, HostId, MigrationId, Ticket};
use drover_proto::trace::names::span;

use super::fence::{Fence, Reference, Side, concerns};
use super::incoming::{IncomingJob, call_log};
use super::reopen::entitled;
use super::{Jobs, Seen, errors};
use crate::hypervisor::{Cookie, GuestFacts, GuestState};
use crate::journal::{Arrival, Call, DestinationPart, DestinationState, FinishStep, Forbidden, OpenPage, Record, Step};

/// The source's word that all is sent.
#[derive(Clone, Debug)]
pub struct HandOverOrder {
    /// Who says so, by its certificate.
    pub from: HostId,
    pub migration: MigrationId,
    pub attempt: Attempt,
    pub ticket: Ticket,
    /// From Perform; may be empty.
    pub cookie: Cookie,
    /// Whether the guest ran until the migration stopped it. None: as Prepare said.
    pub runs: Option<bool>,
    /// When the request arrived.
    pub arrived: Instant,
}

/// The guest runs here, or stands as still as it came.
#[derive(Clone, Debug)]
pub struct Taken {
    pub arrival: Arrival,
    /// From the request's arrival to the switch; `None` in a repeat.
    pub elapsed: Option<Duration>,
    pub calls: Vec<Call>,
    /// Post-copy: it runs, and not all of its memory is here.
    pub pages_missing: bool,
}

impl Jobs {
    /// The source's agent hands over. The ticket alone allows it: the controller may be away.
    pub async fn take_over(self: &Arc<Self>, order: HandOverOrder) -> Result<Taken, Failure> {
        let mut page = self.lock(order.migration).await?;
        entitled(&page, &order.from, order.attempt, &order.ticket)?;
        self.arrive(&mut page, &order.cookie, order.runs, order.arrived).await
    }

    /// The controller asks in place of a source agent that is gone: only where all of the stream has come.
    pub async fn finish_incoming(
        self: &Arc<Self>,
        fence: Fence,
        reference: Reference,
        runs: Option<bool>,
    ) -> Result<Taken, Failure> {
        let arrived = Instant::now();
        let mut page = self.obey_and_lock(&fence, reference.migration).await?;
        let none = || Failure::new(Reason::MigrationNotFound, "this host waits for no such migration");
        let record = page.record().ok_or_else(none)?;
        concerns(&record, &reference, Side::Destination)?;
        let part = record.destination().ok_or_else(none)?;
        if record.is_tombstoned(reference.attempt) {
            return Err(Forbidden::Tombstoned.into());
        }
        let received = |job: Arc<IncomingJob>| job.stream_complete();
        let complete = match &part.offline {
            Some(coming) => coming.verified,
            None => self.incoming_job(record.migration).is_some_and(received),
        };
        if part.state == DestinationState::Waiting && !complete {
            let message = "the main channel was not received to its end";
            return Err(Failure::new(Reason::StreamIncomplete, message));
        }
        self.arrive(&mut page, &Cookie::default(), runs, arrived).await
    }

    async fn arrive(
        self: &Arc<Self>,
        page: &mut OpenPage,
        cookie: &Cookie,
        runs: Option<bool>,
        arrived: Instant,
    ) -> Result<Taken, Failure> {
        let record = page.record().ok_or_else(refused)?;
        let part = record.destination().ok_or_else(refused)?;
        if part.offline.is_some() {
            return self.arrive_offline(page, arrived).await;
        }
        match part.state.finish(part.flags.post_copy)? {
            FinishStep::Ran => taken_before(&record),
            FinishStep::Join => self.go_on(page).await,
            FinishStep::Finish(next) => {
                let job = self.incoming_job(record.migration).filter(|job| job.was_reached());
                let Some((job, handle)) = job.and_then(|job| job.take().map(|handle| (job, handle))) else {
                    // The copy that the memory went to died with a former agent: it never ran, and never will.
                    return self.refuse_without_memory(page, &record).await;
                };
                if let Err(failure) = write_finishing(page, next, runs).await {
                    // Nothing was told to QEMU: the copy still waits, for the next try.
                    job.put_back(handle);
                    return Err(failure);
                }
                fault_points::reach(point::DESTINATION_FINISHING).await;
                if part.flags.post_copy {
                    return self.arrive_early(page, job, handle, cookie.clone(), arrived).await;
                }
                let finished = job.calls.call(span::LIBVIRT_FINISH, handle.finish(cookie)).await;
                drop(handle);
                let result = match finished {
                    Ok(cookie) => self.after_finish(page, &job, cookie, arrived).await,
                    Err(error) => self.after_failed_finish(page, error.to_string()).await,
                };
                self.forget_incoming(record.migration);
                result
            }
        }
    }

    async fn refuse_without_memory(&self, page: &mut OpenPage, record: &Record) -> Result<Taken, Failure> {
        let reference = Reference {
            migration: record.migration,
            attempt: record.attempt,
            guest: record.guest,
        };
        self.revoke_waiting(page, &reference, "the waiting copy has no memory")
            .await?;
        Err(Forbidden::NeverRan.into())
    }

    async fn after_finish(
        &self,
        page: &mut OpenPage,
        job: &IncomingJob,
        cookie: Cookie,
        arrived: Instant,
    ) -> Result<Taken, Failure> {
        fault_points::reach(point::DESTINATION_FINISHED).await;
        self.start_guest(page, job).await?;
        let switched = (SystemTime::now(), arrived.elapsed());
        let arrival = Arrival {
            switched: switched.0,
            cookie,
        };
        fault_points::reach(point::DESTINATION_RESUMED).await;
        write_ran(page, arrival.clone(), job.calls.all()).await?;
        fault_points::reach(point::DESTINATION_RAN).await;
        Ok(Taken {
            arrival,
            elapsed: Some(switched.1),
            calls: job.calls.all(),
            pages_missing: false,
        })
    }

    /// Finish failed. Where the copy is gone it never ran: that is written before anybody is told.
    async fn after_failed_finish(&self, page: &mut OpenPage, said: String) -> Result<Taken, Failure> {
        let record = page.record().ok_or_else(refused)?;
        tracing::warn!(migration_id = %record.migration, "Finish failed: {said}");
        match self.look(&record).await? {
            Seen::Unknown | Seen::ShutOff(_) => {
                if let Step::Write(state) = self.state(&record)?.fail()? {
                    write_state(page, state).await?;
                }
                Err(Failure::new(
                    Reason::NeverRan,
                    format!("the destination's QEMU did not take the guest: {said}"),
                ))
            }
            Seen::Ours(guest) | Seen::Another(guest) => {
                let message = format!("Finish failed, and the copy is {:?}: {said}", guest.state);
                Err(Failure::new(Reason::LibvirtUnavailable, message))
            }
        }
    }

    /// Resuming, resume; nothing where the guest was still before it left.
    async fn start_guest(&self, page: &mut OpenPage, job: &IncomingJob) -> Result<(), Failure> {
        let record = page.record().ok_or_else(refused)?;
        if !arrives_running(&record) {
            return Ok(());
        }
        if let Step::Write(state) = self.state(&record)?.resume()? {
            write_state(page, state).await?;
        }
        fault_points::reach(point::DESTINATION_RESUMING).await;
        let resumed = job
            .calls
            .call(span::LIBVIRT_RESUME, self.hypervisor.resume(record.guest))
            .await;
        let Err(error) = resumed else { return Ok(()) };
        // What libvirt says of it matters less than whether the guest runs.
        match self.look(&record).await? {
            Seen::Ours(guest) if guest.state.runs() => Ok(()),
            Seen::Ours(_) | Seen::Another(_) | Seen::Unknown | Seen::ShutOff(_) => Err(errors::unsure(error)),
        }
    }

    /// Finish was called before, and whoever called it did not write how it came out. What is here now decides;
    /// Finish is not called again.
    async fn go_on(self: &Arc<Self>, page: &mut OpenPage) -> Result<Taken, Failure> {
        let record = page.record().ok_or_else(refused)?;
        let state = self.state(&record)?;
        if self.awaits_pages(record.migration) {
            return self.runs_without_pages(page, &record).await;
        }
        match self.look(&record).await? {
            Seen::Ours(guest) => self.go_on_with(page, &record, &guest).await,
            Seen::Unknown | Seen::ShutOff(_) if state == DestinationState::Finishing => {
                if let Step::Write(state) = state.fail()? {
                    write_state(page, state).await?;
                }
                Err(Forbidden::NeverRan.into())
            }
            Seen::Unknown | Seen::ShutOff(_) | Seen::Another(_) => Err(undecided()),
        }
    }

    pub(super) async fn go_on_with(
        self: &Arc<Self>,
        page: &mut OpenPage,
        record: &Record,
        guest: &GuestFacts,
    ) -> Result<Taken, Failure> {
        let busy = || {
            let message = format!("libvirt is still busy with the arriving copy ({:?})", guest.state);
            Failure::new(Reason::LibvirtUnavailable, message)
        };
        match guest.state {
            GuestState::Running | GuestState::ShuttingDown => {}
            GuestState::RunningPostCopy | GuestState::RunningPostCopyFailed => {
                return self.runs_without_pages(page, record).await;
            }
            // Finish has ended: during it libvirt says that a migration pauses the guest, and holds a job.
            GuestState::Paused => {
                if self
                    .hypervisor
                    .job(record.guest)
                    .await
                    .map_err(errors::unsure)?
                    .is_some()
                {
                    return Err(busy());
                }
                let job = call_log(&self.host, record.calls.clone());
                if arrives_running(record) {
                    if let Step::Write(state) = self.state(record)?.resume()? {
                        write_state(page, state).await?;
                    }
                    let resume = job
                        .call(span::LIBVIRT_RESUME, self.hypervisor.resume(record.guest))
                        .await;
                    resume.map_err(errors::unsure)?;
                }
            }
            GuestState::PausedMigrating
            | GuestState::PausedPostCopy
            | GuestState::PausedPostCopyFailed
            | GuestState::PausedFault
            | GuestState::Crashed
            | GuestState::ShutOff => return Err(busy()),
        }
        self.write_seen_running(page).await?;
        let record = page.record().ok_or_else(refused)?;
        taken_before(&record)
    }

    /// The guest is seen where it was told to run, or had no need to be told.
    pub(super) async fn write_seen_running(&self, page: &mut OpenPage) -> Result<(), Failure> {
        let record = page.record().ok_or_else(refused)?;
        let now = || Arrival {
            switched: SystemTime::now(),
            cookie: Cookie::default(),
        };
        let known = record.destination().and_then(|part| part.arrival.clone());
        let arrival = known.unwrap_or_else(now);
        if arrives_running(&record)
            && let Step::Write(state) = self.state(&record)?.resume()?
        {
            write_state(page, state).await?;
        }
        write_ran(page, arrival, record.calls.clone()).await
    }

    fn state(&self, record: &Record) -> Result<DestinationState, Failure> {
        record.destination().map(|part| part.state).ok_or_else(refused)
    }
}

pub(super) fn arrives_running(record: &Record) -> bool {
    record.destination().is_none_or(DestinationPart::arrives_running)
}

/// Once, with the last word about whether the guest is to run: a repeat finds both.
async fn write_finishing(page: &mut OpenPage, state: DestinationState, runs: Option<bool>) -> Result<(), Failure> {
    page.change(|record| {
        if let Some(part) = record.destination_mut() {
            part.state = state;
            part.runs = runs;
        }
    })
    .await?;
    Ok(())
}

pub(super) async fn write_state(page: &mut OpenPage, state: DestinationState) -> Result<(), Failure> {
    page.change(|record| {
        if let Some(part) = record.destination_mut() {
            part.state = state;
        }
    })
    .await?;
    Ok(())
}

pub(super) async fn write_ran(page: &mut OpenPage, arrival: Arrival, calls: Vec<Call>) -> Result<(), Failure> {
    let record = page.record().ok_or_else(refused)?;
    let part = record.destination().ok_or_else(refused)?;
    if let Step::Write(state) = part.state.ran(!arrives_running(&record))? {
        page.change(|record| {
            record.calls = calls;
            if let Some(part) = record.destination_mut() {
                part.state = state;
                part.arrival = Some(arrival);
            }
        })
        .await?;
        tracing::info!(migration_id = %record.migration, "the guest has arrived");
    }
    Ok(())
}

pub(super) fn taken_before(record: &Record) -> Result<Taken, Failure> {
    let arrival = record
        .destination()
        .and_then(|part| part.arrival.clone())
        .ok_or_else(refused)?;
    Ok(Taken {
        arrival,
        elapsed: None,
        calls: record.calls.clone(),
        pages_missing: false,
    })
}

/// One answer for an unknown migration, a wrong ticket and a wrong host.
pub(super) fn refused() -> Failure {
    Failure::new(
        Reason::TicketRefused,
        "this host waits for no such guest from this host with this ticket",
    )
}

/// Between Resuming and Ran: nobody can say, so nobody may conclude. Asking again does not change it.
pub(super) fn undecided() -> Failure {
    let message = "the guest may have run here and is not here any more: only an operator can tell";
    Failure::new(Reason::MigrationState, message)
        .with_remedy("fence one of the two hosts, then `drover migration resolve`")
}
