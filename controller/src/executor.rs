//! The executor: one task for every unfinished migration, which takes it from phase to phase.
//!
//! Order of writing and doing: the start of a step is on the disk before the phase acts, and its outcome together
//! with the next position in one transaction afterwards. A controller that dies anywhere in between finds the step
//! open, marks it interrupted, and lets the phase look again.
//!
//! Promise: a migration goes on until it is at rest, stuck, or this controller is not in office; never because of
//! the caller, whose request ended long ago.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use drover_proto::fault_points::{self, point};
use drover_proto::ids::{HostId, MigrationId};
use drover_proto::v1::WaitingFor;
use futures::FutureExt;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::agents::Agents;
use crate::estimates::Estimates;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::office::Office;
use crate::phases::{self, Learned, Report, Work};
use crate::progress::{self, Finished, Went};
use crate::saga::{self, Phase, Position};
use crate::store::{Record, StepOutcome, StoreError};
use crate::telling::{Told, told};
use crate::trace;

/// A store that fails is asked again after this time.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// At the end of the process a Validate may finish: it has probe files to remove.
const LAST_WISH: Duration = Duration::from_secs(3);

/// Works on migrations.
#[derive(Clone)]
pub struct Executor(Arc<Inner>);

struct Inner {
    ledger: Ledger,
    agents: Arc<Agents>,
    estimates: Arc<Estimates>,
    office: Arc<Office>,
    metrics: Arc<Metrics>,
    running: Mutex<HashMap<MigrationId, Arc<Running>>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// How others reach a task.
#[derive(Default)]
struct Running {
    /// Look again now.
    wake: Notify,
    /// Somebody wants it undone: leave what can be left.
    cancel: CancellationToken,
    /// What it waits for, as told.
    waits: Mutex<Option<WaitingFor>>,
}

/// What a task does next.
enum Next {
    GoOn,
    Pause(Duration),
    /// Somebody else's turn, or nobody's.
    Stop,
}

impl Executor {
    pub fn new(
        ledger: Ledger,
        agents: Arc<Agents>,
        estimates: Arc<Estimates>,
        office: Arc<Office>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self(Arc::new(Inner {
            ledger,
            agents,
            estimates,
            office,
            metrics,
            running: Mutex::default(),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
        }))
    }

    /// Works on a migration from where it is. One that is worked on already is looked at again.
    pub fn take_up(&self, id: MigrationId) {
        if !self.0.office.is_in_office() || self.0.shutdown.is_cancelled() {
            return;
        }
        let running = Arc::new(Running::default());
        {
            let mut all = self.0.running();
            if let Some(known) = all.get(&id) {
                known.wake.notify_one();
                return;
            }
            all.insert(id, Arc::clone(&running));
        }
        let inner = Arc::clone(&self.0);
        self.0.tasks.spawn(async move {
            inner.work_on(id, &running).await;
            inner.running().remove(&id);
            // Whoever asked between the last look and the removal is not forgotten.
            if running.wake.notified().now_or_never().is_some() && !inner.shutdown.is_cancelled() {
                Self(inner).take_up(id);
            }
        });
    }

    /// A cancellation was written down: whoever works on it leaves what can be left.
    pub fn cancel(&self, id: MigrationId) {
        let running = self.0.running().get(&id).cloned();
        if let Some(running) = running {
            running.cancel.cancel();
            running.wake.notify_one();
        }
    }

    /// A host is heard of again: whatever waits looks at once.
    pub fn wake_all(&self) {
        for running in self.0.running().values() {
            running.wake.notify_one();
        }
    }

    /// A host gives a sign of life: whatever waits for it looks at once, over a new connection.
    pub fn heard_of(&self, host: &HostId) {
        let waits = |running: &&Arc<Running>| {
            running
                .waits()
                .as_ref()
                .is_some_and(|wait| wait.host == host.resource_name())
        };
        let waiting: Vec<_> = self.0.running().values().filter(waits).cloned().collect();
        if waiting.is_empty() {
            return;
        }
        self.0.agents.dial_again(host);
        for running in waiting {
            running.wake.notify_one();
        }
    }

    /// Whether this process works on nothing any more.
    pub fn is_over(&self) -> bool {
        self.0.shutdown.is_cancelled() || !self.0.office.is_in_office()
    }

    /// The numbers of this process.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Ends all tasks where they are. What they did not write down is looked at after the next start.
    pub async fn stop(&self) {
        self.0.shutdown.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl Running {
    fn waits(&self) -> MutexGuard<'_, Option<WaitingFor>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn running(&self) -> MutexGuard<'_, HashMap<MigrationId, Arc<Running>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn work_on(&self, id: MigrationId, running: &Running) {
        loop {
            let next = match self.step(id, running).await {
                Ok(next) => next,
                Err(StoreError::NotInOffice) => {
                    self.office.leave("another controller has taken office on this store");
                    Next::Stop
                }
                Err(error) => {
                    tracing::error!(migration_id = %id, "the record cannot be read or written: {error}");
                    Next::Pause(STORE_RETRY)
                }
            };
            match next {
                Next::GoOn => {}
                Next::Stop => return,
                Next::Pause(delay) => tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = running.wake.notified() => {}
                    () = self.shutdown.cancelled() => return,
                    () = self.office.left() => return,
                },
            }
        }
    }

    /// One step of the saga: a cancellation, or an attempt at the phase.
    async fn step(&self, id: MigrationId, running: &Running) -> Result<Next, StoreError> {
        if self.shutdown.is_cancelled() || !self.office.is_in_office() {
            return Ok(Next::Stop);
        }
        let Some(record) = self.ledger.store.migration(id).await? else {
            return Ok(Next::Stop);
        };
        match record.position {
            Position::At(phase) if progress::cancel_leads_to(&record).is_none() => {
                self.attempt(record, phase, running).await
            }
            Position::At(_) => {
                let moved = self.ledger.change(id, progress::follow_cancel).await?;
                self.note_end(&moved);
                Ok(Next::GoOn)
            }
            Position::Stuck(_) | Position::Ended(_) => Ok(Next::Stop),
        }
    }

    async fn attempt(&self, record: Record, phase: Phase, running: &Running) -> Result<Next, StoreError> {
        let steps = self.ledger.store.steps(record.id).await?;
        let attempt = progress::attempt_number(&steps, phase);
        let (span, span_id) = trace::phase(&record, phase, attempt);
        let number = steps.last().map_or(0, |step| step.number) + 1;
        let start = progress::Start {
            number,
            phase,
            attempt,
            span: span_id,
        };
        let record = self
            .ledger
            .change(record.id, |record| progress::start(record, &start))
            .await?;
        // Somebody moved it meanwhile: nothing was started.
        if record.position != Position::At(phase) || progress::cancel_leads_to(&record).is_some() {
            return Ok(Next::GoOn);
        }
        let (id, began) = (record.id, Instant::now());
        let work = Work {
            record,
            agents: Arc::clone(&self.agents),
            ledger: self.ledger.clone(),
            estimates: Arc::clone(&self.estimates),
        };
        let went = self.run(phase, &work, running).instrument(span.clone()).await;
        fault_points::reach_one_of(&point::CONTROLLER_OVER, phase as usize).await;
        if !self.office.is_in_office() {
            // What the agents answered was meant for somebody who is not in office.
            return Ok(Next::Stop);
        }
        let finished = Finished { number, phase, went };
        let outcome = finished.went.outcome();
        trace::outcome(&span, outcome, finished.went.reason());
        if let Went::Through(report) = &finished.went {
            self.metrics.attempt(phase, report.answer.outcome(), began.elapsed());
        }
        let after = self.write_down(id, &finished, &span).await?;
        drop(span);
        self.note_end(&after);
        if self.shutdown.is_cancelled() {
            return Ok(Next::Stop);
        }
        Ok(match outcome {
            StepOutcome::Unknown => Next::Pause(pace(&after, &finished, running)),
            StepOutcome::Done | StepOutcome::Refused | StepOutcome::Interrupted => {
                running.waits().take();
                Next::GoOn
            }
        })
    }

    /// The phase, unless somebody wants it left.
    async fn run(&self, phase: Phase, work: &Work, running: &Running) -> Went {
        let attempt = async {
            fault_points::reach_one_of(&point::CONTROLLER_STARTED, phase as usize).await;
            match AssertUnwindSafe(phases::run(phase, work)).catch_unwind().await {
                Ok(report) => Went::Through(Box::new(report)),
                // The panic itself was reported where it happened.
                Err(_) => Went::Through(Box::new(Report::again("a fault of the controller", Learned::default()))),
            }
        };
        tokio::pin!(attempt);
        let cancelled = async {
            if progress::can_be_left(phase) && !work.record.too_late {
                running.cancel.cancelled().await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            // An outcome that is there counts.
            biased;
            went = &mut attempt => return went,
            () = cancelled => return Went::Left("left for a cancellation"),
            () = self.office.left() => return Went::Left("not in office any more"),
            () = self.shutdown.cancelled() => {}
        }
        match phase {
            Phase::Validate => tokio::time::timeout(LAST_WISH, attempt)
                .await
                .unwrap_or(Went::Left("the controller was stopped")),
            Phase::Prepare | Phase::Transfer | Phase::Verify | Phase::Finalize | Phase::Abort | Phase::Discard => {
                Went::Left("the controller was stopped")
            }
        }
    }

    /// Outcome and next position, in one transaction. A store that fails is asked until it answers: the outcome is
    /// true and must not be lost while this process lives.
    async fn write_down(
        &self,
        id: MigrationId,
        finished: &Finished,
        span: &tracing::Span,
    ) -> Result<Record, StoreError> {
        loop {
            match self
                .ledger
                .change(id, |record| progress::finish(record, finished))
                .await
            {
                Err(error @ StoreError::Database(_)) if !self.shutdown.is_cancelled() => {
                    span.in_scope(|| tracing::error!("the outcome cannot be written yet: {error}"));
                    tokio::time::sleep(STORE_RETRY).await;
                }
                written => return written,
            }
        }
    }

    /// What is told once when a migration comes to rest or gets stuck.
    fn note_end(&self, record: &Record) {
        let (id, position) = (record.id, record.position);
        let why = record.details.error.as_ref().map_or("", |error| error.message.as_str());
        match position {
            Position::Ended(_) => {
                trace::write_root(record);
                self.metrics.ended(record);
                let state = record.state.as_str_name();
                trace::tell(
                    record,
                    || tracing::info!(migration_id = %id, state, "the migration is at rest {why}"),
                );
            }
            Position::Stuck(_) => {
                trace::tell(
                    record,
                    || tracing::error!(migration_id = %id, %position, "stuck: {why}"),
                );
            }
            Position::At(_) => {}
        }
    }
}

/// When to look again. What is waited for is told once, not at every look.
fn pace(record: &Record, finished: &Finished, running: &Running) -> Duration {
    let pace = saga::pace(record.unknowns);
    let detail = finished.went.detail();
    let (id, phase, unknowns) = (record.id, finished.phase, record.unknowns);
    let waits = record.details.waiting_for.clone();
    let before = std::mem::replace(&mut *running.waits(), waits.clone());
    let told = told(before.as_ref(), waits.as_ref(), unknowns);
    let WaitingFor { reason, host, .. } = waits.unwrap_or_default();
    trace::tell(record, || match told {
        Told::Attention => {
            tracing::error!(migration_id = %id, %phase, reason, host, "the migration asks for attention: {detail}");
        }
        Told::Waits => {
            tracing::warn!(migration_id = %id, %phase, reason, host, "the migration waits: {detail}");
        }
        Told::Again => {
            tracing::debug!(migration_id = %id, %phase, unknowns, "looks again in {:?}: {detail}", pace.delay);
        }
    });
    pace.delay
}
