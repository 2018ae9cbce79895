//! Source: tells the destination's agent, directly, that the guest is its own.
//!
//! ```text
//!  all sent ──▶ HandedOver (fsync) ──▶ call ──▶ Ran ──▶ verdict Ran (fsync) ──▶ Confirm: the copy is gone
//!                                       │ ▲
//!                                       │ └─ no answer: again, while nobody decides otherwise
//!                                       └──▶ NeverRan: the guest stays still; the controller settles
//! ```
//!
//! Promise: after HandedOver this host never resumes its copy by itself.

use std::sync::Arc;
use std::time::{Duration, Instant};

use drover_proto::failure::{Failure, Reason};
use drover_proto::fault_points::{self, point};
use drover_proto::ids::Ticket;
use drover_proto::trace::names::{attribute, metric};
use opentelemetry::global;
use tracing::Instrument;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::fence::{Fence, Reference, Side, concerns};
use super::outgoing::{OutgoingJob, PerformOutcome, TransferStep};
use super::progress::{Flow, Problem, Summary, What};
use super::switched::{Answer, switched};
use super::transfer::fail;
use super::{Jobs, Seen};
use crate::hypervisor::Cookie;
use crate::journal::{Decision, Forbidden, OpenPage, Record, Step};
use crate::peer::{HandedOver, PeerClient};

/// The pauses between tries grow up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Jobs {
    /// What follows Perform. The guest stands still: nothing here waits for anybody but the destination.
    pub(super) async fn hand_over_after_perform(
        self: &Arc<Self>,
        job: &Arc<OutgoingJob>,
        record: &Record,
        cookie: Cookie,
        started: Instant,
        tunnel_bytes: impl Fn() -> u64,
    ) {
        let critical = self.critical();
        job.change_course(|course| course.step = TransferStep::HandingOver);
        job.tell(What::AllSent);
        let switchover = tracing::info_span!("switchover", drover.migration.id = %record.migration);
        let handed_over = self
            .journal_and_call(job, record.migration, &cookie)
            .instrument(switchover.clone())
            .await;
        match handed_over {
            Ok(answer) => {
                let summary = self.summary(job, &answer, started, tunnel_bytes()).await;
                if let Some(blackout) = summary.blackout {
                    switchover.set_attribute(attribute::BLACKOUT, blackout.as_secs_f64());
                    global::meter("drover")
                        .f64_histogram(metric::BLACKOUT)
                        .build()
                        .record(blackout.as_secs_f64(), &[]);
                }
                drop(switchover);
                switched(job, summary, started, answer.arrived.pages_missing);
                self.after_switch(job, record, answer, started, tunnel_bytes).await;
            }
            Err(failure) => fail(job, Problem::from(&failure)),
        }
        drop(critical);
    }

    /// Writes HandedOver, then asks the destination until it answers.
    async fn journal_and_call(
        self: &Arc<Self>,
        job: &OutgoingJob,
        migration: drover_proto::ids::MigrationId,
        cookie: &Cookie,
    ) -> Result<Answer, Failure> {
        fault_points::reach(point::SOURCE_ALL_SENT).await;
        let paused = paused_on_its_way(job).await;
        let mut page = self.lock(migration).await?;
        let record = self.leave(&mut page, Some(job), paused).await?;
        drop(page);
        fault_points::reach(point::SOURCE_HANDED_OVER).await;
        self.call_until_answered(job, &record, cookie).await
    }

    /// The way to the destination's agent, and by what right.
    pub(super) fn way_to_peer(&self, job: &OutgoingJob, record: &Record) -> Result<(Arc<PeerClient>, Ticket), Failure> {
        let (part, delivery) = record
            .source()
            .and_then(|part| Some((part, part.delivery.as_ref()?)))
            .ok_or_else(|| Failure::new(Reason::MigrationState, "nobody has said where the guest goes"))?;
        let addresses = delivery.hand_over_addresses();
        let peer = job.peer(|| PeerClient::new(&self.tls, part.peer.clone(), addresses));
        Ok((peer, delivery.ticket.clone()))
    }

    pub(super) async fn call_until_answered(
        &self,
        job: &OutgoingJob,
        record: &Record,
        cookie: &Cookie,
    ) -> Result<Answer, Failure> {
        let (peer, ticket) = self.way_to_peer(job, record)?;
        let runs = record.source().and_then(|part| part.runs);
        let (ways, has_management) = record
            .source()
            .and_then(|part| part.delivery.as_ref())
            .map_or((0, false), |to| {
                (to.hand_over_addresses().len(), !to.management.is_empty())
            });
        let mut pause = Duration::from_millis(50);
        let mut call = 0;
        loop {
            let sent = Instant::now();
            let asked = peer.hand_over(
                record.migration,
                record.attempt,
                &ticket,
                HandedOver { cookie, runs },
                call,
                self.limits.hand_over,
            );
            // What was asked may be done over there all the same: its journal decides, not this answer.
            let called_off = || Failure::new(Reason::Cancelled, "the hand-over was called off before it was answered");
            let failure = match job.give_up.run_until_cancelled(asked).await.ok_or_else(called_off)? {
                Ok(arrived) => {
                    return Ok(Answer {
                        arrived,
                        sent,
                        answered: Instant::now(),
                    });
                }
                Err(failure) => failure,
            };
            call += 1;
            // An answer that stays the same; everything else says nothing of what happened over there.
            if failure.is_evidence() {
                return Err(failure);
            }
            tracing::warn!(%failure, "the destination's agent did not say who has the guest; asking again");
            if call == ways && !has_management {
                tracing::warn!("no migration address answers, and the management address is not known here: not tried");
            }
            if job
                .give_up
                .run_until_cancelled(tokio::time::sleep(pause))
                .await
                .is_none()
            {
                return Err(called_off());
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            self.still_ours_to_ask(record)?;
            self.stays_as_sent(job, record).await?;
        }
    }

    fn still_ours_to_ask(&self, record: &Record) -> Result<(), Failure> {
        if self.is_stopping() {
            return Err(Failure::new(
                Reason::NotServing,
                "the agent is being stopped; the destination has not answered",
            ));
        }
        match self.journal.read(record.migration) {
            Some(now) if now.verdict().is_some() => Err(Forbidden::Decided.into()),
            Some(now) if now.is_tombstoned(now.attempt) => Err(Forbidden::Tombstoned.into()),
            Some(now) if ran_on(&now) => Err(newer_here()),
            Some(_) | None => Ok(()),
        }
    }

    /// The controller asks for a hand-over, the first or another one.
    pub async fn hand_over(self: &Arc<Self>, fence: Fence, reference: Reference) -> Result<Summary, Failure> {
        let mut page = self.obey_and_lock(&fence, reference.migration).await?;
        let none = || Failure::new(Reason::MigrationNotFound, "this host knows nothing of this migration");
        let record = page.record().ok_or_else(none)?;
        concerns(&record, &reference, Side::Source)?;
        if record.is_tombstoned(reference.attempt) {
            return Err(Forbidden::Tombstoned.into());
        }
        let job = self.outgoing_job(reference.migration);
        match job.as_ref().map(|job| (job, job.course().step)) {
            Some((_, TransferStep::Performing)) => {
                return Err(Failure::new(Reason::StillPerforming, "the source is sending right now"));
            }
            Some((job, TransferStep::HandingOver)) => {
                drop(page);
                // Whoever asks does not want to wait for the next try.
                if job.post_copy() == Some(Flow::Broken) {
                    job.repair_now.notify_one();
                }
                return join(job).await;
            }
            Some((_, TransferStep::NotStarted | TransferStep::Over)) | None => {}
        }
        let sent = job
            .as_ref()
            .is_some_and(|job| matches!(job.course().outcome, Some(PerformOutcome::Sent(_))));
        self.stands_still(&record, sent).await?;
        let paused = match &job {
            Some(job) => paused_on_its_way(job).await,
            None => false,
        };
        let record = self.leave(&mut page, job.as_deref(), paused).await?;
        // What was held again is in one.
        let job = job.or_else(|| self.outgoing_job(record.migration));
        let job = job.unwrap_or_else(|| self.adopt(&record));
        let under_way = job.under_way(TransferStep::HandingOver);
        drop(page);
        let cookie = cookie_of(&job);
        self.ask_and_follow(job, &record, under_way, &cookie).await
    }

    /// HandedOver is written; a guest that is shut off is forgotten here, too.
    async fn leave(
        &self,
        page: &mut OpenPage,
        job: Option<&OutgoingJob>,
        paused: bool,
    ) -> Result<Arc<Record>, Failure> {
        if page.record().is_some_and(|record| record.is_offline()) {
            self.leave_offline(page, job).await
        } else {
            write_handed_over(page, paused).await
        }
    }

    /// All must be sent: Perform said so, now or before HandedOver was written. That the guest stands still is no
    /// proof of it: libvirt may have stopped it for a Perform that failed, and may yet resume it.
    async fn stands_still(&self, record: &Record, sent: bool) -> Result<(), Failure> {
        let handed_over = record
            .source()
            .is_some_and(|part| part.state == crate::journal::SourceState::HandedOver);
        if ran_on(record) {
            return Err(newer_here());
        }
        if record.is_offline() {
            // Whether it still is what was sent, is looked at when it is forgotten.
            let not_yet = || Failure::new(Reason::StillPerforming, "not all of the guest's files are sent");
            return (handed_over || sent).then_some(()).ok_or_else(not_yet);
        }
        match self.look(record).await? {
            // Whatever the reason: by the migration, by its user before, by this agent, or lost with libvirtd.
            Seen::Ours(guest) if (handed_over || sent) && !guest.state.runs() => Ok(()),
            // The switch was made: only the destination can go on.
            Seen::Ours(guest) if guest.state.is_post_copy() => Ok(()),
            Seen::Unknown | Seen::ShutOff(_) if handed_over => Ok(()),
            Seen::Ours(guest) => {
                let message = format!("the guest is {:?} here: not all is sent", guest.state);
                Err(Failure::new(Reason::StillPerforming, message))
            }
            Seen::Unknown | Seen::ShutOff(_) | Seen::Another(_) => Err(Failure::new(
                Reason::IncarnationMismatch,
                "the guest that was being sent is not here any more",
            )),
        }
    }
}

/// What Perform gave for Finish; nothing where a former agent had it.
fn cookie_of(job: &OutgoingJob) -> Cookie {
    match job.course().outcome {
        Some(PerformOutcome::Sent(cookie)) => cookie,
        Some(PerformOutcome::Failed) | None => Cookie::default(),
    }
}

/// A hand-over is under way already: its result, if it comes soon. In post-copy it is known long before the end.
async fn join(job: &OutgoingJob) -> Result<Summary, Failure> {
    job.switched_within(super::PATIENCE).await;
    let open = || Failure::new(Reason::DeadlineExceeded, "the destination has not answered yet");
    job.course().summary.ok_or_else(open)
}

/// Whether somebody resumed the copy after it was handed over: this agent had to suspend it.
fn ran_on(record: &Record) -> bool {
    record.source().is_some_and(|part| part.ran_on)
}

/// What was sent is older than what is here: the destination must not run it.
fn newer_here() -> Failure {
    let message = "the guest was used here after it was handed over: what is here is newer than what was sent";
    Failure::new(Reason::MigrationState, message)
}

/// Whether the CPUs were stopped while memory was sent, before QEMU itself stopped them. Where only one round was seen
/// since, the event of the second may be late: libvirt knows how many there were.
async fn paused_on_its_way(job: &OutgoingJob) -> bool {
    if job.was_stopped_on_its_way() {
        return true;
    }
    let (Some(handle), Some(_)) = (job.handle(), job.stopped()) else {
        return false;
    };
    let sent = handle.completed_job().await.ok().flatten();
    sent.is_some_and(|sent| job.was_stopped_before_round(sent.iteration))
}

/// Before any hand-over leaves. With it, in one write, that somebody paused the guest on its way: the destination is
/// told by this record alone. A stop by this agent, so that it finishes, is none.
async fn write_handed_over(page: &mut OpenPage, paused: bool) -> Result<Arc<Record>, Failure> {
    let record = page.record().ok_or_else(|| Failure::internal("the record is gone"))?;
    let tombstoned = record.is_tombstoned(record.attempt);
    let part = record
        .source()
        .ok_or_else(|| Failure::internal("this host is not the source"))?;
    match part.state.hand_over(tombstoned, record.decision)? {
        Step::Already => Ok(record),
        Step::Write(state) => Ok(page
            .change(|record| {
                if let Some(part) = record.source_mut() {
                    part.state = state;
                    if paused && part.tells_pauses() {
                        part.runs = Some(false);
                    }
                }
            })
            .await?),
    }
}

impl Jobs {
    /// A job in memory for a record whose job lock was lost with the agent that held it.
    pub(super) fn adopt(&self, record: &Record) -> Arc<OutgoingJob> {
        let job = OutgoingJob::new(record.migration, record.guest, self.host.clone(), record.calls.clone());
        job.claimed.cancel();
        let job = Arc::new(job);
        super::lock(&self.outgoing).insert(record.migration, Arc::clone(&job));
        job
    }

    /// A job whose verdict was carried out is not needed any more.
    pub(super) fn forget_if_settled(&self, job: &Arc<OutgoingJob>) {
        let settled = |record: Arc<Record>| matches!(record.decision, Decision::Settled(_));
        if self.journal.read(job.migration).is_some_and(settled) {
            job.let_go();
        }
    }
}
