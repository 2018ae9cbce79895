//! Source: feeds those who watch a transfer: statistics twice a second, rounds, the stop of the guest. Where a round
//! begins the control loop is asked.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use drover_proto::trace::names::attribute;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::outgoing::{OutgoingJob, TransferStep};
use super::progress::{Action, Deed, Iteration, Progress, Stage};
use crate::hypervisor::{GuestEvent, Happened, JobStats};

/// How often the job is asked how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Of a transfer under way.
pub(super) struct Watching {
    pub(super) job: Arc<OutgoingJob>,
    /// Perform has ended, and with it the last round (which begins after the guest was stopped).
    pub(super) sent: CancellationToken,
    pub(super) over: CancellationToken,
    pub(super) started: Instant,
}

/// A round that goes on, with its span.
struct Round {
    record: Iteration,
    clock: Instant,
    span: Span,
}

impl Watching {
    pub(super) async fn run(self, mut events: broadcast::Receiver<GuestEvent>) {
        let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let (mut round, mut throttle) = (None, 0);
        let mut sending = true;
        loop {
            tokio::select! {
                () = self.over.cancelled() => break,
                () = self.sent.cancelled(), if sending => {
                    sending = false;
                    self.end_round(&mut round, Instant::now());
                }
                _ = tick.tick() => self.progress(&mut throttle).await,
                event = events.recv() => match event {
                    Ok(event) if event.guest == self.job.guest => self.event(&event, &mut round, &mut throttle).await,
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => break,
                },
            }
        }
        self.end_round(&mut round, Instant::now());
    }

    async fn event(&self, event: &GuestEvent, round: &mut Option<Round>, throttle: &mut u32) {
        match event.what {
            Happened::Suspended { .. } => {
                self.job.saw_stop(event.instant);
                self.end_round(round, event.instant);
            }
            Happened::Iteration(number) => {
                self.job.saw_round(number);
                self.end_round(round, event.instant);
                *round = Some(self.begin_round(number, event, throttle).await);
            }
            Happened::Resumed => self.job.saw_run(),
            Happened::Started | Happened::Stopped(_) | Happened::JobCompleted(_) | Happened::Changed => {}
        }
    }

    async fn control(&self, number: u64, stats: &JobStats) {
        let at = self.started.elapsed();
        let Some(handle) = self.job.handle() else { return };
        match self.job.steering.next_round(number, stats, at, handle.as_ref()).await {
            Ok(action) => action.into_iter().for_each(|action| self.job.act(action)),
            // The next round tries again.
            Err(error) => tracing::warn!(%error, "what was decided in round {number} could not be done"),
        }
    }

    async fn begin_round(&self, number: u64, event: &GuestEvent, throttle: &mut u32) -> Round {
        let span = tracing::info_span!("iteration", drover.iteration = number, drover.memory.remaining = Empty);
        let stats = self.stats().await;
        // QEMU takes its steps where rounds begin: one in the last half second of a transfer is seen here only.
        if let Some(stats) = &stats {
            self.see_throttle(stats, throttle);
        }
        let stats = stats.unwrap_or_default();
        self.control(number, &stats).await;
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

    /// The handle is held for one call only: whoever repairs a stream has to let go of it.
    async fn stats(&self) -> Option<JobStats> {
        self.job.handle()?.job().await.ok().flatten()
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

    /// QEMU does it by itself; that it was let is this agent's deed.
    fn see_throttle(&self, stats: &JobStats, throttle: &mut u32) {
        if stats.throttle == *throttle {
            return;
        }
        *throttle = stats.throttle;
        let why = format!(
            "QEMU slows the guest down so that it is sent faster than it writes: {} MiB remain, it writes {} MiB/s, {} \
             MiB/s are sent",
            stats.memory_remaining >> 20,
            stats.dirty_rate >> 20,
            stats.bandwidth >> 20
        );
        self.job
            .act(Action::now(Deed::AutoConverge, format!("{throttle} %"), why));
    }

    async fn progress(&self, throttle: &mut u32) {
        // A job that has ended has no statistics: the next event says how it went on.
        let Some(stats) = self.stats().await else { return };
        self.see_throttle(&stats, throttle);
        let step = self.job.course().step;
        let stage = match (self.job.post_copy(), step) {
            (Some(flow), _) => Stage::PostCopy(flow),
            (None, TransferStep::HandingOver) => Stage::Switching,
            (None, TransferStep::NotStarted | TransferStep::Performing | TransferStep::Over) => Stage::PreCopy,
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
