//! Source: Perform, watched, then the hand-over. A task of its own: no RPC's deadline is bound to it.
//!
//! If the process dies while memory is sent, the tunnel is cut, Perform fails and the guest runs on here; if it dies
//! after all was sent, the guest stands still and the controller asks to hand over again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use drover_proto::failure::{Failure, Reason};
use drover_proto::fault_points::{self, point};
use drover_proto::trace::names::{attribute, span};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::deadline::Deadline;
use super::fence::{Fence, Reference, Side, concerns};
use super::outgoing::{OutgoingJob, PerformOutcome, TransferStep, UnderWay};
use super::progress::{Problem, What};
use super::steering::longest_blackout;
use super::throttle::Situation;
use super::watching::Watching;
use super::ways::Ways;
use super::{Jobs, throttle};
use crate::hypervisor::{Cookie, Outgoing, PerformRequest, Throttle};
use crate::journal::{Delivery, Forbidden, Limits, Record, SourceState};
use crate::peer::PeerClient;

/// What is to be sent, and where to.
#[derive(Clone, Debug)]
pub struct StartOrder {
    pub reference: Reference,
    pub delivery: Delivery,
    /// From Prepare.
    pub cookie: Cookie,
    /// As they are now; none: as in Begin, or as ordered since.
    pub limits: Option<Limits>,
    pub expected: Expected,
}

/// What was seen of guest and link before, in bytes/s; 0 where nobody looked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expected {
    pub dirty_rate: u64,
    pub link: u64,
}

impl Expected {
    /// How far the guest is slowed down, where it may be.
    fn throttle(self, limits: &Limits, memory: u64) -> Throttle {
        let bandwidth = match (self.link, limits.bandwidth) {
            (link, 0) => link,
            (0, limit) => limit,
            (link, limit) => link.min(limit),
        };
        throttle::choose(&Situation {
            dirty_rate: self.dirty_rate,
            bandwidth,
            memory,
            blackout: longest_blackout(limits),
            deadline: limits.deadline,
        })
    }
}

impl StartOrder {
    fn claim(&self, record: &mut Record, runs: Option<bool>) {
        if let Some(part) = record.source_mut() {
            part.runs = runs;
            part.delivery = Some(self.delivery.clone());
            let now = self.limits.and_then(|now| now.after(&part.limits));
            part.limits = now.unwrap_or(part.limits);
            // Nothing was told to QEMU yet.
            part.limits.whole_downtime = false;
        }
    }
}

impl Jobs {
    /// Returns once the transfer is on its way; a repeat finds it so.
    pub async fn start_migrate(self: &Arc<Self>, fence: Fence, order: StartOrder) -> Result<(), Failure> {
        let Reference { migration, attempt, .. } = order.reference;
        let mut page = self.obey_and_lock(&fence, migration).await?;
        let record = page.record().ok_or_else(|| not_begun("nothing was begun here"))?;
        concerns(&record, &order.reference, Side::Source)?;
        if record.is_tombstoned(attempt) {
            return Err(Forbidden::Tombstoned.into());
        }
        let part = record.source().filter(|_| record.attempt == attempt);
        let part = part.ok_or_else(|| not_begun("another try"))?;
        if part.state == SourceState::HandedOver {
            return Ok(());
        }
        if record.verdict().is_some() {
            return Err(Forbidden::Decided.into());
        }
        let job = self.outgoing_job(migration);
        let job = job.ok_or_else(|| not_begun("the agent was restarted since Begin"))?;
        if job.course().step != TransferStep::NotStarted {
            return Ok(());
        }
        self.refuse_while_stopping()?;
        let handle = job.handle().ok_or_else(|| not_begun("the job lock was given back"))?;
        // Its user may have paused it since Begin: libvirt lets that through, and would let it run at the destination.
        let guest = self.guest_now(&record).await?;
        let runs = guest.as_ref().map(|guest| guest.state.runs());
        let record = page.change(|record| order.claim(record, runs)).await?;
        self.sockets.make(migration).await?;
        let ways = Ways::open(self, &record, &order.delivery, &job)?;
        self.connect_to_peer(&record, &order, &job);
        let Some(part) = record.source() else {
            return Err(not_begun("this host is not the source"));
        };
        let memory = guest.map_or(0, |guest| guest.memory);
        let throttle = order.expected.throttle(&part.limits, memory);
        let max_downtime = job.steering.start(part.limits, part.flags.clone()).await;
        job.claimed.cancel();
        let under_way = job.under_way(TransferStep::Performing);
        let transfer = Transfer {
            jobs: Arc::clone(self),
            job,
            handle,
            ways,
            record,
            started: Instant::now(),
            under_way,
            max_downtime,
            throttle,
        };
        let under = tracing::info_span!("transfer", drover.migration.id = %migration, drover.host.id = %self.host);
        tokio::spawn(transfer.run(order.cookie).instrument(under));
        Ok(())
    }

    /// In advance: no handshake falls into the blackout.
    fn connect_to_peer(&self, record: &Record, order: &StartOrder, job: &OutgoingJob) {
        let Some(part) = record.source() else { return };
        let (host, addresses) = (part.peer.clone(), order.delivery.hand_over_addresses());
        let peer = job.peer(|| PeerClient::new(&self.tls, host, addresses));
        tokio::spawn(async move { peer.connect().await });
    }
}

fn not_begun(why: &str) -> Failure {
    Failure::new(Reason::MigrationState, format!("this host cannot start to send: {why}"))
}

/// A transfer under way.
struct Transfer {
    jobs: Arc<Jobs>,
    job: Arc<OutgoingJob>,
    handle: Arc<dyn Outgoing>,
    ways: Ways,
    record: Arc<Record>,
    started: Instant,
    /// The last to go: the tunnel is cut by then.
    under_way: UnderWay,
    /// What QEMU may use at first.
    max_downtime: Duration,
    throttle: Throttle,
}

impl Transfer {
    async fn run(self, cookie: Cookie) {
        let (sent, over) = (CancellationToken::new(), CancellationToken::new());
        let watched = over.clone().drop_guard();
        let events = self.jobs.hypervisor.events();
        let watching = Watching {
            job: Arc::clone(&self.job),
            sent: sent.clone(),
            over: over.clone(),
            started: self.started,
        };
        let watching = tokio::spawn(watching.run(events).in_current_span());
        fault_points::reach(point::SOURCE_SENDING).await;
        let deadline = Deadline {
            jobs: Arc::clone(&self.jobs),
            job: Arc::clone(&self.job),
            started: self.started,
            sent: sent.clone(),
        };
        let deadline = tokio::spawn(deadline.run().in_current_span());
        let performed = self.perform(cookie).await;
        sent.cancel();
        let Self {
            under_way,
            jobs,
            job,
            handle,
            ways,
            record,
            started,
            ..
        } = self;
        drop(handle);
        let bytes = || match job.offline() {
            Some(offline) => offline.wire_bytes(),
            None => ways.sent(),
        };
        let failed = performed.is_err();
        if failed && job.was_stopped_on_its_way() {
            jobs.note_pause(&record).await;
        }
        match performed {
            // The tunnel stays until the hand-over has ended: its last bytes may still be on their way.
            Ok(cookie) => {
                jobs.hand_over_after_perform(&job, &record, cookie, started, bytes)
                    .await;
            }
            Err(problem) => fail(&job, problem),
        }
        Span::current().set_attribute(attribute::TUNNEL_BYTES, i64::try_from(ways.sent()).unwrap_or(i64::MAX));
        drop(watched);
        // A panic in them was reported by the runtime.
        let _ = (watching.await, deadline.await);
        ways.close().await;
        // The process does not end by itself while a guest may stand still for a transfer that failed.
        let critical = jobs.critical();
        drop(under_way);
        if failed {
            jobs.give_back_after_failure(&record).await;
        }
        drop(critical);
        jobs.forget_if_settled(&job);
    }

    async fn perform(&self, cookie: Cookie) -> Result<Cookie, Problem> {
        let Some(part) = self.record.source() else {
            return Err(Problem::from(&Failure::internal(
                "a record without a source cannot be sent",
            )));
        };
        let request = PerformRequest {
            cookie,
            socket: self.jobs.sockets.source(self.record.migration),
            disks_socket: self.jobs.sockets.source_disks(self.record.migration),
            persistent_xml: part.inactive_xml.clone(),
            // The tunnel keeps the limit: QEMU does not keep it over several channels, nor in the blackout.
            bandwidth: 0,
            max_downtime: Some(self.max_downtime),
            throttle: self.throttle,
        };
        let performed = self
            .job
            .calls
            .call(span::LIBVIRT_PERFORM, self.handle.perform(request))
            .await;
        let outcome = match &performed {
            Ok(cookie) => PerformOutcome::Sent(cookie.clone()),
            Err(_) => PerformOutcome::Failed,
        };
        self.job.change_course(|course| course.outcome = Some(outcome));
        performed.map_err(|error| {
            // The hypervisor says only that its stream broke.
            let cause = self.ways.error();
            let mut problem = Problem::from(&Failure::from(error));
            if self.job.is_expired() {
                return expired(&problem);
            }
            if let Some(cause) = cause {
                problem.reason = Reason::TransferFailed.name();
                problem.message = format!("{cause} ({})", problem.message);
            }
            problem
        })
    }
}

pub(super) fn fail(job: &OutgoingJob, problem: Problem) {
    tracing::warn!(reason = problem.reason, "the transfer failed: {}", problem.message);
    job.change_course(|course| course.problem = Some(problem.clone()));
    job.tell(What::Failed(problem));
}

/// What libvirt says of an abort matters less than why it was aborted.
fn expired(said: &Problem) -> Problem {
    Problem {
        reason: Reason::TransferDeadline.name(),
        message: format!("the deadline expired before the guest had moved ({})", said.message),
        remedy: "give it a longer deadline, more bandwidth or a longer blackout, or let it pause to finish".to_owned(),
    }
}

impl Jobs {
    /// The controller settles it where this does not succeed.
    async fn give_back_after_failure(self: &Arc<Self>, record: &Record) {
        let reference = Reference {
            migration: record.migration,
            attempt: record.attempt,
            guest: record.guest,
        };
        if let Err(error) = self.give_back_paused(reference).await {
            tracing::error!(migration_id = %record.migration, %error, "a guest that was stopped so that it moves cannot be given back yet");
        }
    }
}
