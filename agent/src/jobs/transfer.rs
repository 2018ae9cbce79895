//! Source: Perform, watched, then the hand-over. A task of its own: no RPC's deadline is bound to it.
//!
//! If the process dies while memory is sent, the tunnel is cut, Perform fails and the guest runs on here; if it dies
//! after all was sent, the guest stands still and the controller asks to hand over again.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use drover_proto::failure::{Failure, Reason};
use drover_proto::fault_points::{self, point};
use drover_proto::identity::Identity;
use drover_proto::trace::names::{attribute, span};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::Jobs;
use super::downtime::allowed;
use super::fence::{Fence, Reference, Side, concerns};
use super::outgoing::{OutgoingJob, PerformOutcome, TransferStep, UnderWay};
use super::progress::{Iteration, Problem, Progress, Stage, What};
use crate::hypervisor::{Cookie, GuestEvent, Happened, Outgoing, PerformRequest};
use crate::journal::{Delivery, Forbidden, Record, SourceState};
use crate::peer::PeerClient;
use crate::tunnel::{ChannelPlan, HelloTemplate, Source, SourceOptions};

/// How often the job is asked how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// What is to be sent, and where to.
#[derive(Clone, Debug)]
pub struct StartOrder {
    pub reference: Reference,
    pub delivery: Delivery,
    /// From Prepare.
    pub cookie: Cookie,
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
        let part = record
            .source()
            .filter(|_| record.attempt == attempt)
            .ok_or_else(|| not_begun("another try"))?;
        let job = self.outgoing_job(migration);
        if part.state == SourceState::HandedOver {
            return Ok(());
        }
        if record.verdict().is_some() {
            return Err(Forbidden::Decided.into());
        }
        let job = job.ok_or_else(|| not_begun("the agent was restarted since Begin"))?;
        if job.course().step != TransferStep::NotStarted {
            return Ok(());
        }
        self.refuse_while_stopping()?;
        let handle = job.handle().ok_or_else(|| not_begun("the job lock was given back"))?;
        let record = page
            .change(|record| {
                if let Some(part) = record.source_mut() {
                    part.delivery = Some(order.delivery.clone());
                }
            })
            .await?;
        self.sockets.make(migration).await?;
        let tunnel = Source::open(self.tunnel_options(&record, &order))?;
        if let Some(part) = record.source() {
            let (host, addresses) = (part.peer.clone(), order.delivery.hand_over_addresses());
            let peer = job.peer(|| PeerClient::new(&self.tls, host, addresses));
            tokio::spawn(async move { peer.connect().await });
        }
        job.claimed.cancel();
        let under_way = job.under_way(TransferStep::Performing);
        let transfer = Transfer {
            jobs: Arc::clone(self),
            job,
            handle,
            tunnel,
            record,
            started: Instant::now(),
            under_way,
        };
        let under = tracing::info_span!("transfer", drover.migration.id = %migration, drover.host.id = %self.host);
        tokio::spawn(transfer.run(order.cookie).instrument(under));
        Ok(())
    }

    fn tunnel_options(&self, record: &Record, order: &StartOrder) -> SourceOptions {
        let (parallel, peer) = record
            .source()
            .map_or((0, self.host.clone()), |part| (part.flags.parallel, part.peer.clone()));
        SourceOptions {
            socket: self.sockets.source(record.migration),
            socket_group: self.sockets.group(),
            channels: ChannelPlan::Memory {
                multifd: u16::try_from(parallel).unwrap_or(u16::MAX),
                postcopy_preempt: false,
            },
            addresses: order.delivery.addresses.clone(),
            expected: Identity::Agent(peer),
            tls: self.tls.clone(),
            hello: HelloTemplate {
                migration: record.migration,
                attempt: record.attempt,
                ticket: order.delivery.ticket.clone(),
            },
        }
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
    tunnel: Source,
    record: Arc<Record>,
    started: Instant,
    /// The last to go: the tunnel is cut by then.
    under_way: UnderWay,
}

impl Transfer {
    async fn run(self, cookie: Cookie) {
        let (sent, over) = (CancellationToken::new(), CancellationToken::new());
        let watched = over.clone().drop_guard();
        let events = self.jobs.hypervisor.events();
        let watching = Watching {
            job: Arc::clone(&self.job),
            handle: Arc::clone(&self.handle),
            limit: self.record.source().and_then(|part| part.limits.max_downtime),
            sent: sent.clone(),
            over: over.clone(),
            started: self.started,
        };
        let watching = tokio::spawn(watching.run(events).in_current_span());
        fault_points::reach(point::SOURCE_SENDING).await;
        let performed = self.perform(cookie).await;
        sent.cancel();
        let Self {
            under_way,
            jobs,
            job,
            handle,
            tunnel,
            record,
            started,
        } = self;
        drop(handle);
        let bytes = || tunnel.bytes().sent;
        match performed {
            // The tunnel stays until the hand-over has ended: its last bytes may still be on their way.
            Ok(cookie) => {
                jobs.hand_over_after_perform(&job, &record, cookie, started, bytes)
                    .await;
            }
            Err(problem) => fail(&job, problem),
        }
        Span::current().set_attribute(
            attribute::TUNNEL_BYTES,
            i64::try_from(tunnel.bytes().sent).unwrap_or(i64::MAX),
        );
        drop(watched);
        // It only watches: a panic in it was reported by the runtime.
        let _ = watching.await;
        tunnel.close().await;
        drop(under_way);
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
            persistent_xml: part.inactive_xml.clone(),
            bandwidth: part.limits.bandwidth,
            max_downtime: Some(allowed(0, part.limits.max_downtime)),
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
            let cause = self.tunnel.errors().borrow().clone();
            let mut problem = Problem::from(&Failure::from(error));
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

/// Feeds those who watch: statistics twice a second, rounds, the stop of the guest.
struct Watching {
    job: Arc<OutgoingJob>,
    handle: Arc<dyn Outgoing>,
    /// The longest blackout that the caller accepts.
    limit: Option<Duration>,
    /// Perform has ended, and with it the last round (which begins after the guest was stopped).
    sent: CancellationToken,
    over: CancellationToken,
    started: Instant,
}

/// A round that goes on, with its span.
struct Round {
    record: Iteration,
    clock: Instant,
    span: Span,
}

impl Watching {
    async fn run(self, mut events: broadcast::Receiver<GuestEvent>) {
        let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut round = None;
        let mut sending = true;
        loop {
            tokio::select! {
                () = self.over.cancelled() => break,
                () = self.sent.cancelled(), if sending => {
                    sending = false;
                    self.end_round(&mut round, Instant::now());
                }
                _ = tick.tick() => self.progress().await,
                event = events.recv() => match event {
                    Ok(event) if event.guest == self.job.guest => self.event(&event, &mut round).await,
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => break,
                },
            }
        }
        self.end_round(&mut round, Instant::now());
    }

    async fn event(&self, event: &GuestEvent, round: &mut Option<Round>) {
        match event.what {
            Happened::Suspended { .. } => {
                self.job.saw_stop(event.instant);
                self.end_round(round, event.instant);
            }
            Happened::Iteration(number) => {
                self.end_round(round, event.instant);
                self.allow_longer(number).await;
                *round = Some(self.begin_round(number, event).await);
            }
            Happened::Started
            | Happened::Resumed
            | Happened::Stopped(_)
            | Happened::JobCompleted(_)
            | Happened::Changed => {}
        }
    }

    async fn allow_longer(&self, number: u64) {
        let now = allowed(number, self.limit);
        if now != allowed(number.saturating_sub(1), self.limit)
            && let Err(error) = self.handle.set_max_downtime(now).await
        {
            // The next round tries again, with more.
            tracing::warn!(%error, "the longest blackout could not be set to {now:?}");
        }
    }

    async fn begin_round(&self, number: u64, event: &GuestEvent) -> Round {
        let span = tracing::info_span!("iteration", drover.iteration = number, drover.memory.remaining = Empty);
        let stats = self.handle.job().await.ok().flatten().unwrap_or_default();
        span.record("drover.memory.remaining", stats.memory_remaining);
        span.set_attribute(
            attribute::DIRTY_RATE,
            i64::try_from(stats.dirty_rate).unwrap_or(i64::MAX),
        );
        span.set_attribute(attribute::BANDWIDTH, i64::try_from(stats.bandwidth).unwrap_or(i64::MAX));
        let record = Iteration {
            number,
            started: event.at,
            duration: None,
            remaining: stats.memory_remaining,
            dirty_rate: stats.dirty_rate,
            bandwidth: stats.bandwidth,
        };
        Round {
            record,
            clock: event.instant,
            span,
        }
    }

    fn end_round(&self, round: &mut Option<Round>, at: Instant) {
        if let Some(Round {
            mut record,
            clock,
            span,
        }) = round.take()
        {
            record.duration = Some(at.saturating_duration_since(clock));
            self.job.saw_iteration(record);
            drop(span);
        }
    }

    async fn progress(&self) {
        // A job that has ended has no statistics: the next event says how it went on.
        let Ok(Some(stats)) = self.handle.job().await else {
            return;
        };
        let step = self.job.course().step;
        let stage = if step == TransferStep::HandingOver {
            Stage::Switching
        } else {
            Stage::PreCopy
        };
        let (time, elapsed) = (SystemTime::now(), self.started.elapsed());
        self.job.saw_progress(Progress {
            time,
            stage,
            stats,
            elapsed,
            blackout: None,
        });
    }
}
