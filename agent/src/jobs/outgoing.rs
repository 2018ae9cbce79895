//! A migration that leaves this host, in memory: the job lock, the transfer, and those who watch it.
//!
//! Nothing here decides; what must outlive the process is in the journal.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use drover_proto::failure::Failure;
use drover_proto::ids::{GuestId, MigrationId};
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::calls::CallLog;
use super::lock;
use super::progress::{Action, Event, Flow, Iteration, Problem, Progress, Summary, What};
use super::steering::Steering;
use crate::hypervisor::{Cookie, Outgoing};
use crate::offline::outgoing::OfflineOutgoing;
use crate::peer::PeerClient;

/// Messages that a slow watcher may be behind.
const WATCH_BUFFER: usize = 256;
/// Rounds that are kept.
const MOST_ITERATIONS: usize = 256;
/// Actions that are kept: the blackout's limit doubles a few times, the throttle has ten steps.
const MOST_ACTIONS: usize = 64;

/// One leaving migration.
pub struct OutgoingJob {
    pub migration: MigrationId,
    pub guest: GuestId,
    pub calls: CallLog,
    /// What libvirt gave in Begin; `None` once it was let go.
    handle: Mutex<Option<Arc<dyn Outgoing>>>,
    /// The same, for a guest that is shut off.
    offline: Mutex<Option<Arc<OfflineOutgoing>>>,
    events: broadcast::Sender<Event>,
    course: watch::Sender<Course>,
    seen: Mutex<Observed>,
    /// The limits in force.
    pub(super) steering: Steering,
    /// Ends the tries to hand over.
    pub give_up: CancellationToken,
    /// StartMigrate came, or the job is over.
    pub claimed: CancellationToken,
    /// A broken stream is to be repaired without waiting any longer.
    pub(super) repair_now: Notify,
    /// Bytes that went over streams that took the place of broken ones.
    sent_again: AtomicU64,
    /// The way to the destination's agent.
    peer: OnceLock<Arc<PeerClient>>,
}

/// How far the transfer is.
#[derive(Clone, Debug, Default)]
pub struct Course {
    pub step: TransferStep,
    pub outcome: Option<PerformOutcome>,
    pub summary: Option<Summary>,
    pub problem: Option<Problem>,
}

/// What the transfer is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransferStep {
    #[default]
    NotStarted,
    Performing,
    HandingOver,
    Over,
}

/// How Perform came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PerformOutcome {
    /// All is sent; what it gave for Finish.
    Sent(Cookie),
    Failed,
}

/// What was seen on the way.
#[derive(Debug, Default)]
struct Observed {
    progress: Option<Progress>,
    iterations: Vec<Iteration>,
    actions: Vec<Action>,
    stopped: Option<Instant>,
    /// The newest round, and the one in which the CPUs stopped.
    round: u64,
    stopped_in: Option<u64>,
    /// The event of a round was lost.
    rounds_missed: bool,
    expired: bool,
    /// In post-copy.
    flow: Option<Flow>,
}

/// A task works on the job. However the task ends, by a panic too, the job is not busy afterwards.
pub struct UnderWay(Arc<OutgoingJob>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let broke_off = std::thread::panicking();
        if broke_off {
            tracing::error!(migration_id = %self.0.migration, "the transfer broke off by a fault of Drover's own");
        }
        self.0.change_course(|course| {
            if broke_off {
                let failure = Failure::internal("the transfer broke off by a fault of Drover's own");
                course.problem.get_or_insert_with(|| Problem::from(&failure));
                // Nobody took its result, if there is one: nothing may be handed over on the strength of it.
                course.outcome.get_or_insert(PerformOutcome::Failed);
            }
            course.step = TransferStep::Over;
        });
    }
}

impl OutgoingJob {
    pub fn new(
        migration: MigrationId,
        guest: GuestId,
        host: drover_proto::ids::HostId,
        earlier_calls: Vec<crate::journal::Call>,
    ) -> Self {
        let events = broadcast::Sender::new(WATCH_BUFFER);
        Self {
            migration,
            guest,
            calls: CallLog::new(host, earlier_calls, events.clone()),
            handle: Mutex::default(),
            offline: Mutex::default(),
            events,
            course: watch::Sender::default(),
            seen: Mutex::default(),
            steering: Steering::default(),
            give_up: CancellationToken::new(),
            claimed: CancellationToken::new(),
            repair_now: Notify::new(),
            sent_again: AtomicU64::new(0),
            peer: OnceLock::new(),
        }
    }

    pub fn hold(&self, handle: Box<dyn Outgoing>) {
        *lock(&self.handle) = Some(Arc::from(handle));
    }

    pub fn hold_offline(&self, handle: OfflineOutgoing) {
        let handle = Arc::new(handle);
        *lock(&self.offline) = Some(Arc::clone(&handle));
        *lock(&self.handle) = Some(handle);
    }

    /// What holds the images of a guest that is shut off.
    pub fn offline(&self) -> Option<Arc<OfflineOutgoing>> {
        lock(&self.offline).clone()
    }

    /// The way to the destination's agent: one for the whole migration, so that it is connected before the blackout.
    pub fn peer(&self, make: impl FnOnce() -> PeerClient) -> Arc<PeerClient> {
        Arc::clone(self.peer.get_or_init(|| Arc::new(make())))
    }

    pub fn handle(&self) -> Option<Arc<dyn Outgoing>> {
        lock(&self.handle).clone()
    }

    /// The connection to libvirt goes; another one takes its place.
    pub(super) fn let_go_of_handle(&self) {
        *lock(&self.handle) = None;
    }

    /// More went over a stream that took the place of a broken one.
    pub(super) fn sent_again(&self, bytes: u64) {
        self.sent_again.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that went over all of them.
    pub(super) fn all_sent_again(&self) -> u64 {
        self.sent_again.load(Ordering::Relaxed)
    }

    /// Gives the job lock back once nobody uses the handle any more.
    pub fn let_go(&self) {
        self.claimed.cancel();
        *lock(&self.handle) = None;
        *lock(&self.offline) = None;
        // Those who watch a transfer that will not come need not wait for it.
        self.course.send_if_modified(|course| {
            let never = course.step == TransferStep::NotStarted;
            if never {
                course.step = TransferStep::Over;
            }
            never
        });
    }

    pub fn course(&self) -> Course {
        self.course.borrow().clone()
    }

    pub fn change_course(&self, change: impl FnOnce(&mut Course)) {
        self.course.send_modify(change);
    }

    /// Busy with this step, until what is returned is dropped.
    pub fn under_way(self: &Arc<Self>, step: TransferStep) -> UnderWay {
        self.change_course(|course| course.step = step);
        UnderWay(Arc::clone(self))
    }

    /// Whether a task works on it.
    pub fn is_busy(&self) -> bool {
        self.course.borrow().step.is_busy()
    }

    /// Waits until no task works on it; false where it took longer.
    pub async fn settled_within(&self, limit: Duration) -> bool {
        let mut course = self.course.subscribe();
        let quiet = course.wait_for(|course| !course.step.is_busy());
        tokio::time::timeout(limit, quiet).await.is_ok()
    }

    /// Waits until the guest is known to run at the destination, or no task works on it.
    pub async fn switched_within(&self, limit: Duration) {
        let mut course = self.course.subscribe();
        let known = course.wait_for(|course| course.summary.is_some() || !course.step.is_busy());
        // Whoever waits looks at what is known then.
        let _ = tokio::time::timeout(limit, known).await;
    }

    /// Ends when the transfer and the hand-over have ended.
    pub fn watch(&self) -> (broadcast::Receiver<Event>, watch::Receiver<Course>) {
        (self.events.subscribe(), self.course.subscribe())
    }

    pub fn tell(&self, what: What) {
        // Nobody may be watching.
        let _ = self.events.send(Event::now(what));
    }

    pub fn saw_progress(&self, progress: Progress) {
        lock(&self.seen).progress = Some(progress.clone());
        self.tell(What::Progress(progress));
    }

    pub fn saw_iteration(&self, iteration: Iteration) {
        let mut seen = lock(&self.seen);
        if seen.iterations.len() == MOST_ITERATIONS {
            seen.iterations.remove(0);
        }
        seen.iterations.push(iteration.clone());
        drop(seen);
        self.tell(What::Iteration(iteration));
    }

    /// What this agent did is kept, told to those who watch, and noted in the trace.
    pub fn act(&self, action: Action) {
        let Action {
            deed, value, reason, ..
        } = &action;
        tracing::info!(migration_id = %self.migration, action = deed.name(), value, "{reason}");
        let mut seen = lock(&self.seen);
        if seen.actions.len() < MOST_ACTIONS {
            seen.actions.push(action.clone());
        }
        drop(seen);
        self.tell(What::Action(action));
    }

    pub fn actions(&self) -> Vec<Action> {
        lock(&self.seen).actions.clone()
    }

    /// The guest's CPUs stopped: the first of several reports counts.
    pub fn saw_stop(&self, at: Instant) {
        let mut seen = lock(&self.seen);
        seen.stopped.get_or_insert(at);
        seen.stopped_in = seen.stopped_in.or(Some(seen.round));
    }

    pub fn saw_round(&self, number: u64) {
        let mut seen = lock(&self.seen);
        seen.rounds_missed |= number > seen.round + 1;
        seen.round = seen.round.max(number);
    }

    /// Whether the CPUs stood still before QEMU stopped them to finish: after its own stop it counts one round more,
    /// the last; after anybody else's at least two.
    pub fn was_stopped_on_its_way(&self) -> bool {
        self.was_stopped_before_round(0)
    }

    /// The same, where `newest` rounds are known from elsewhere: events may come late. Where one was lost, nobody knows in
    /// which round they stopped: then the guest is to run, for one that stands still for ever is worse.
    pub fn was_stopped_before_round(&self, newest: u64) -> bool {
        let seen = lock(&self.seen);
        let newest = newest.max(seen.round);
        !seen.rounds_missed && seen.stopped_in.is_some_and(|stopped| newest >= stopped + 2)
    }

    /// They execute again.
    pub fn saw_run(&self) {
        let mut seen = lock(&self.seen);
        (seen.stopped, seen.stopped_in) = (None, None);
    }

    /// The deadline expired: what fails from now on fails by it.
    pub fn expire(&self) {
        lock(&self.seen).expired = true;
    }

    pub fn is_expired(&self) -> bool {
        lock(&self.seen).expired
    }

    /// The guest runs at the destination, and pages are on their way or cannot be. Gives whether that is news.
    pub fn saw_flow(&self, flow: Flow) -> bool {
        lock(&self.seen).flow.replace(flow) != Some(flow)
    }

    /// In post-copy, or not known to be.
    pub fn post_copy(&self) -> Option<Flow> {
        lock(&self.seen).flow
    }

    pub fn stopped(&self) -> Option<Instant> {
        lock(&self.seen).stopped
    }

    pub fn progress(&self) -> Option<Progress> {
        lock(&self.seen).progress.clone()
    }

    pub fn iterations(&self) -> Vec<Iteration> {
        lock(&self.seen).iterations.clone()
    }

    /// The start of the transfer, by what was recorded of it.
    pub fn perform_started(&self) -> Option<SystemTime> {
        let name = drover_proto::trace::names::span::LIBVIRT_PERFORM;
        self.calls
            .all()
            .iter()
            .find(|call| call.name == name)
            .map(|call| call.started)
    }
}

impl TransferStep {
    pub fn is_busy(self) -> bool {
        match self {
            Self::Performing | Self::HandingOver => true,
            Self::NotStarted | Self::Over => false,
        }
    }
}

#[cfg(test)]
#[path = "outgoing_tests.rs"]
mod tests;
