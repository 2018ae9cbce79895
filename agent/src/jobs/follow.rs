//! Source in post-copy: the guest runs at the destination; the copy here gives it its pages, until none is missing.
//!
//! ```text
//!  flows ──the stream breaks──▶ broken ──repaired (`repair`)──▶ flows … every page is there ──▶ Ran
//!                                 │ ▲
//!                                 └─┘ not yet: again, each time a little later, or when somebody asks
//! ```
//!
//! Neither side is destroyed before the destination has said `Ran`. If the process dies the stream breaks; the restarted
//! one follows anew.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::Ticket;
use tokio::time::sleep;
use tracing::Instrument;

use super::outgoing::{OutgoingJob, TransferStep};
use super::progress::{Flow, Progress, Stage};
use super::repair::Repaired;
use super::{Jobs, Seen};
use crate::hypervisor::{Cookie, GuestState};
use crate::journal::Record;
use crate::peer::{Arrived, HandedOver, PeerClient};

/// How often the destination is asked whether every page has arrived.
const INTERVAL: Duration = Duration::from_millis(250);

/// So many times it is asked before those who watch are told how far it is.
const TOLD_EVERY: u32 = 4;

/// One question: a repair must not wait long behind one that nobody answers.
const PATIENCE: Duration = Duration::from_secs(3);

/// A broken stream is repaired after this time, and after twice as much where that failed or did not last.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A stream that flows for so long is sound.
const SOUND: Duration = Duration::from_secs(2);

/// When a broken stream is to be repaired.
#[derive(Debug)]
struct BackOff {
    pause: Duration,
    due: Option<Instant>,
    flows_since: Option<Instant>,
}

impl BackOff {
    fn new() -> Self {
        Self {
            pause: FIRST_PAUSE,
            due: None,
            flows_since: None,
        }
    }

    /// Pages flow.
    fn flows(&mut self, now: Instant) {
        let since = *self.flows_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= SOUND {
            *self = Self {
                flows_since: Some(since),
                ..Self::new()
            };
        }
    }

    /// None flow. Whether it is time to do something.
    fn is_due(&mut self, now: Instant) -> bool {
        self.flows_since = None;
        now >= *self.due.get_or_insert(now + self.pause)
    }

    /// Gives after what time it is tried again, where it was in vain.
    fn tried(&mut self, now: Instant) -> Duration {
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.due = Some(now + self.pause);
        self.pause
    }

    fn at_once(&mut self, now: Instant) {
        self.due = Some(now);
    }
}

/// What is known of the way there.
struct Way {
    peer: Arc<PeerClient>,
    ticket: Ticket,
    /// The next address in turn.
    call: usize,
    /// The destination's agent has answered the last question, whatever it said.
    answers: bool,
}

impl Jobs {
    /// The guest runs at the destination: asks until every page has arrived there, and repairs the stream where it
    /// breaks. Ends early only where somebody else has decided, the copy that has the pages is gone, or the agent is being
    /// stopped and the stream is broken.
    pub(super) async fn follow_pages(
        self: &Arc<Self>,
        job: &OutgoingJob,
        record: &Record,
        started: Instant,
        repaired: &mut Repaired,
    ) -> Result<Arrived, Failure> {
        let (peer, ticket) = self.way_to_peer(job, record)?;
        let mut way = Way {
            peer,
            ticket,
            call: 0,
            answers: true,
        };
        let mut back_off = BackOff::new();
        for turn in 0_u32.. {
            let seen = self.flow(record).await;
            let gone = seen.is_none() && self.is_gone(record).await;
            let flow = seen.or(job.post_copy()).unwrap_or_default();
            if job.saw_flow(flow) || turn % TOLD_EVERY == 0 {
                self.tell(job, flow, started).await;
            }
            match flow {
                Flow::Flows => back_off.flows(Instant::now()),
                Flow::Broken if self.is_stopping() => return Err(stopping()),
                Flow::Broken => {
                    // libvirt lets one connection at a time have it, and sees only a moment later that it has gone.
                    job.let_go_of_handle();
                    // While nobody answers there is nothing to try.
                    if back_off.is_due(Instant::now()) && way.answers {
                        let repair = self.repair(job, record, way.call, repaired);
                        let outcome = job.give_up.run_until_cancelled(repair).await.ok_or_else(ended)?;
                        let next = back_off.tried(Instant::now());
                        if let Err(failure) = outcome {
                            way.call += 1;
                            tracing::warn!(migration_id = %record.migration, %failure, ?next, "the stream is not repaired yet");
                        }
                    }
                }
            }
            tokio::select! {
                () = job.give_up.cancelled() => return Err(ended()),
                () = job.repair_now.notified() => back_off.at_once(Instant::now()),
                () = sleep(INTERVAL) => {}
            }
            let asked = self.ask_for_pages(record, &mut way);
            if let Some(arrived) = job.give_up.run_until_cancelled(asked).await.ok_or_else(ended)?? {
                return Ok(arrived);
            }
            // It was asked after that was seen, and what it lacks is nowhere any more.
            if gone && way.answers {
                return Err(lost());
            }
        }
        Err(ended())
    }

    /// Whether every page has arrived. Fails only where the answer would be the same for ever.
    async fn ask_for_pages(&self, record: &Record, way: &mut Way) -> Result<Option<Arrived>, Failure> {
        let again = HandedOver {
            cookie: &Cookie::default(),
            runs: None,
        };
        let patience = self.limits.hand_over.min(PATIENCE);
        let asked = way
            .peer
            .hand_over(record.migration, record.attempt, &way.ticket, again, way.call, patience);
        let failure = match asked.await {
            Ok(arrived) => {
                way.answers = true;
                return Ok((!arrived.pages_missing).then_some(arrived));
            }
            Err(failure) if failure.is_evidence() => return Err(failure),
            Err(failure) => failure,
        };
        way.call += 1;
        let answers = failure.is_answered() && failure.reason != Reason::HostUnreachable;
        if way.answers && !answers {
            tracing::warn!(migration_id = %record.migration, %failure, "in post-copy the destination's agent does not answer");
        }
        way.answers = answers;
        Ok(None)
    }

    async fn tell(&self, job: &OutgoingJob, flow: Flow, started: Instant) {
        let known = self.hypervisor.job(job.guest).await.ok().flatten();
        let stats = known.or_else(|| job.progress().map(|progress| progress.stats));
        job.saw_progress(Progress {
            time: SystemTime::now(),
            stage: Stage::PostCopy(flow),
            stats: stats.unwrap_or_default(),
            elapsed: started.elapsed(),
            blackout: None,
        });
    }

    /// What this side shows of the stream; none where it shows nothing.
    pub(super) async fn flow(&self, record: &Record) -> Option<Flow> {
        match self.look(record).await.ok()? {
            Seen::Ours(guest) => match guest.state {
                GuestState::PausedPostCopyFailed => Some(Flow::Broken),
                GuestState::PausedPostCopy => Some(Flow::Flows),
                GuestState::Running
                | GuestState::RunningPostCopy
                | GuestState::RunningPostCopyFailed
                | GuestState::Paused
                | GuestState::PausedMigrating
                | GuestState::PausedFault
                | GuestState::ShuttingDown
                | GuestState::Crashed
                | GuestState::ShutOff => None,
            },
            Seen::Another(_) | Seen::ShutOff(_) | Seen::Unknown => None,
        }
    }

    /// Whether the copy that has the pages is not here any more. What libvirt does not say is no evidence.
    async fn is_gone(&self, record: &Record) -> bool {
        match self.look(record).await {
            Ok(Seen::Unknown | Seen::ShutOff(_) | Seen::Another(_)) => true,
            Ok(Seen::Ours(_)) | Err(_) => false,
        }
    }

    /// After a restart: a former agent followed the pages, this one goes on.
    pub(super) fn follow_anew(self: &Arc<Self>, record: &Arc<Record>) {
        let job = self.outgoing_job(record.migration);
        let job = job.unwrap_or_else(|| self.adopt(record));
        if job.is_busy() {
            return;
        }
        let under_way = job.under_way(TransferStep::HandingOver);
        let (jobs, record) = (Arc::clone(self), Arc::clone(record));
        let following = async move {
            let nothing = Cookie::default();
            if let Err(failure) = jobs.ask_and_follow(job, &record, under_way, &nothing).await {
                tracing::warn!(migration_id = %record.migration, %failure, "the destination does not say who has the guest");
            }
        };
        tokio::spawn(following.in_current_span());
    }
}

fn stopping() -> Failure {
    let why = "the agent is being stopped while post-copy is broken";
    Failure::new(Reason::NotServing, why)
}

fn lost() -> Failure {
    let why = "the copy of the guest that had its missing pages has ended in post-copy: the guest is lost";
    Failure::new(Reason::GuestEnded, why)
}

fn ended() -> Failure {
    Failure::new(Reason::Cancelled, "somebody else has decided")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_stream_is_repaired_later_each_time_but_never_too_late() {
        let (start, mut back_off) = (Instant::now(), BackOff::new());
        assert!(!back_off.is_due(start), "the other side has to notice it first");
        assert!(back_off.is_due(start + FIRST_PAUSE));
        back_off.tried(start);
        assert!(!back_off.is_due(start + FIRST_PAUSE));
        assert!(back_off.is_due(start + 2 * FIRST_PAUSE));
        for _ in 0..20 {
            back_off.tried(start);
        }
        assert!(back_off.is_due(start + LONGEST_PAUSE));
        assert!(!back_off.is_due(start + LONGEST_PAUSE / 2));
        back_off.at_once(start);
        assert!(back_off.is_due(start), "somebody asked");
    }

    #[test]
    fn a_repair_that_does_not_last_counts_as_one_that_failed() {
        let (start, mut back_off) = (Instant::now(), BackOff::new());
        back_off.tried(start);
        back_off.flows(start);
        back_off.flows(start + SOUND / 2);
        assert!(!back_off.is_due(start + FIRST_PAUSE), "it broke again");
        back_off.flows(start);
        back_off.flows(start + SOUND);
        assert!(!back_off.is_due(start + SOUND));
        assert!(
            back_off.is_due(start + SOUND + FIRST_PAUSE),
            "it was sound: as at first"
        );
    }
}
