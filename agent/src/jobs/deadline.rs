//! Source: what ends a transfer that does not end by itself: its deadline, a wish, the control loop. Kept by this agent
//! alone: the controller may be away.
//!
//! | then | what is done | if this process dies |
//! |---|---|---|
//! | abort | Perform is told to stop; it fails and the guest runs on | Perform fails, the guest runs on |
//! | pause and finish | the guest is stopped, the rest is sent; one that is shut off: abort | it is given back (`pause`) |
//! | post-copy | the guest goes over, the rest follows | before the switch it runs on; after it both sides wait |
//!
//! A transfer that is all sent at that moment is handed over: that is the sooner end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use drover_proto::units::duration_text;
use tokio_util::sync::CancellationToken;

use super::Jobs;
use super::outgoing::OutgoingJob;
use super::progress::{Action, Deed};
use crate::journal::{AtDeadline, Limits};

/// What libvirt did not do is asked for again after this time.
const AGAIN: Duration = Duration::from_millis(500);

/// Of a transfer under way.
pub(super) struct Deadline {
    pub(super) jobs: Arc<Jobs>,
    pub(super) job: Arc<OutgoingJob>,
    pub(super) started: Instant,
    /// Perform has ended.
    pub(super) sent: CancellationToken,
}

/// What is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Nothing,
    In(Duration),
    Abort(Duration),
    Pause(Why),
    PostCopy(Why),
}

/// Why the guest is stopped, or goes over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Asked,
    Expired(Duration),
    /// By the control loop, with the numbers.
    DoesNotConverge(String),
}

/// A guest that stands still anyway has nothing to stop: what comes too late is given up.
pub(super) fn due(limits: &Limits, elapsed: Duration, stuck: Option<String>, is_off: bool) -> Due {
    if limits.pause_and_finish && !is_off {
        return Due::Pause(Why::Asked);
    }
    if limits.post_copy_now {
        return Due::PostCopy(Why::Asked);
    }
    if let Some(reason) = stuck {
        return Due::PostCopy(Why::DoesNotConverge(reason));
    }
    match (limits.deadline, limits.at_deadline) {
        (None, _) => Due::Nothing,
        (Some(deadline), _) if elapsed < deadline => Due::In(deadline - elapsed),
        (Some(deadline), AtDeadline::Abort) => Due::Abort(deadline),
        (Some(deadline), AtDeadline::PauseAndFinish) if is_off => Due::Abort(deadline),
        (Some(deadline), AtDeadline::PauseAndFinish) => Due::Pause(Why::Expired(deadline)),
        (Some(deadline), AtDeadline::PostCopy) => Due::PostCopy(Why::Expired(deadline)),
    }
}

impl Deadline {
    /// Until Perform has ended.
    pub(super) async fn run(self) {
        let (sent, is_off) = (self.sent.clone(), self.job.offline().is_some());
        // What was begun is carried to its end: a guest is not stopped by half.
        while !sent.is_cancelled() {
            let (mut changes, mut stuck) = (self.job.steering.watch(), self.job.steering.wants_post_copy());
            let limits = *changes.borrow_and_update();
            let wish = stuck.borrow_and_update().clone();
            let wait = match due(&limits, self.started.elapsed(), wish, is_off) {
                Due::Nothing => None,
                Due::In(left) => Some(left),
                Due::Abort(deadline) => {
                    self.abort(deadline).await;
                    return;
                }
                Due::Pause(why) => {
                    if self.pause(why).await {
                        return;
                    }
                    Some(AGAIN)
                }
                Due::PostCopy(why) => {
                    if self.post_copy(why).await {
                        return;
                    }
                    Some(AGAIN)
                }
            };
            tokio::select! {
                () = sent.cancelled() => return,
                () = after(wait) => {}
                // The sender is part of the job: this cannot fail.
                _ = changes.changed() => {}
                _ = stuck.changed() => {}
            }
        }
    }

    /// An abort that comes before QEMU has begun to send is lost: it is repeated until Perform has ended.
    async fn abort(&self, deadline: Duration) {
        let why = expired(deadline);
        self.job.expire();
        self.job.act(Action::now(Deed::Abort, "", why));
        while !self.sent.is_cancelled() {
            if let Err(error) = self.jobs.abort_once(&self.job).await {
                tracing::warn!(migration_id = %self.job.migration, %error, "the transfer cannot be stopped at its deadline");
            }
            let _ = tokio::time::timeout(AGAIN, self.sent.cancelled()).await;
        }
    }

    /// Gives whether there is nothing more to do.
    async fn pause(&self, why: Why) -> bool {
        match self.jobs.pause_to_finish(&self.job).await {
            Ok(true) => {
                self.note(Deed::PauseAndFinish, why);
                true
            }
            // It stands still already.
            Ok(false) => true,
            Err(error) => {
                tracing::warn!(migration_id = %self.job.migration, %error, "the guest cannot be stopped so that it moves");
                false
            }
        }
    }

    /// Gives whether there is nothing more to do.
    async fn post_copy(&self, why: Why) -> bool {
        match self.jobs.switch_to_post_copy(&self.job).await {
            Ok(true) => {
                self.note(Deed::PostCopy, why);
                true
            }
            // It stands still, and arrives by itself; or it was undone meanwhile.
            Ok(false) => true,
            Err(error) => {
                tracing::warn!(migration_id = %self.job.migration, %error, "QEMU does not go post-copy");
                false
            }
        }
    }

    /// What somebody asked for is in the controller's record already.
    fn note(&self, deed: Deed, why: Why) {
        let reason = match why {
            Why::Asked => return,
            Why::Expired(deadline) => expired(deadline),
            Why::DoesNotConverge(reason) => reason,
        };
        self.job.act(Action::now(deed, "", reason));
    }
}

fn expired(deadline: Duration) -> String {
    format!(
        "the deadline of {} expired before the guest had moved",
        duration_text(deadline)
    )
}

async fn after(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_follows_from_the_limits_and_the_time() {
        let second = Duration::from_secs(1);
        let limits = |deadline, at_deadline| Limits {
            deadline,
            at_deadline,
            ..Limits::default()
        };
        let none = limits(None, AtDeadline::PauseAndFinish);
        assert_eq!(due(&none, 1000 * second, None, false), Due::Nothing);
        let abort = limits(Some(2 * second), AtDeadline::Abort);
        assert_eq!(due(&abort, second, None, false), Due::In(second));
        assert_eq!(due(&abort, 2 * second, None, false), Due::Abort(2 * second));
        let pause = limits(Some(second), AtDeadline::PauseAndFinish);
        assert_eq!(due(&pause, second, None, false), Due::Pause(Why::Expired(second)));
        let asked = Limits {
            pause_and_finish: true,
            ..abort
        };
        assert_eq!(
            due(&asked, 3 * second, None, false),
            Due::Pause(Why::Asked),
            "a wish to finish is stronger"
        );
        let over = limits(Some(second), AtDeadline::PostCopy);
        assert_eq!(due(&over, second, None, false), Due::PostCopy(Why::Expired(second)));
        let stuck = || Some("it does not converge".to_owned());
        let why = Why::DoesNotConverge("it does not converge".to_owned());
        assert_eq!(due(&abort, second, stuck(), false), Due::PostCopy(why));
        let now = Limits {
            post_copy_now: true,
            ..abort
        };
        assert_eq!(due(&now, Duration::ZERO, None, false), Due::PostCopy(Why::Asked));
        assert_eq!(due(&asked, second, stuck(), false), Due::Pause(Why::Asked));
        for limits in [&pause, &asked] {
            let off = due(limits, 2 * second, None, true);
            assert_eq!(off, Due::Abort(limits.deadline.unwrap()), "there is nothing to stop");
        }
    }
}
