//! Source: the limits in force while memory is sent, and how they get there: bandwidth into the tunnel, the blackout's
//! limit into QEMU, deadlines and wishes to whoever waits for them.
//!
//! Promise: what was ordered last is what QEMU has; a step of the agent's own never overtakes an order. A guest that is
//! slowed down may be asleep when it is stopped: QEMU has the limit of the blackout without that.

use std::time::Duration;

use drover_proto::units::duration_text;
use tokio::sync::{Mutex, watch};

use super::control::{Act, Control, Policy, Round, at_first};
use super::progress::{Action, Deed};
use super::throttle::asleep;
use crate::hypervisor::{self, JobStats, MigrateFlags, Outgoing};
use crate::journal::Limits;
use crate::tunnel::Pace;

/// The longest blackout where the caller did not say.
const LIMIT: Duration = Duration::from_millis(500);

/// Of one leaving migration.
pub(super) struct Steering {
    limits: watch::Sender<Limits>,
    /// Why the control loop wants post-copy, once it does.
    post_copy: watch::Sender<Option<String>>,
    pace: Pace,
    /// Held while QEMU is told.
    given: Mutex<Given>,
}

/// What QEMU was told, and from what that follows.
#[derive(Default)]
struct Given {
    flags: Option<MigrateFlags>,
    control: Control,
    round: u64,
    max_downtime: Duration,
    /// By how many percent the guest is slowed down, as it was seen last.
    throttle: u32,
    /// Two calls may have come in another order: what QEMU has is one of them.
    unsure: bool,
}

impl Default for Steering {
    fn default() -> Self {
        Self {
            limits: watch::Sender::default(),
            post_copy: watch::Sender::default(),
            pace: Pace::new(0),
            given: Mutex::default(),
        }
    }
}

pub(super) fn longest_blackout(limits: &Limits) -> Duration {
    limits.max_downtime.unwrap_or(LIMIT)
}

impl Given {
    /// QEMU has slowed the guest down further since it was told.
    fn taken_back(&self, longest: Duration) -> Option<Action> {
        if self.max_downtime <= longest {
            return None;
        }
        let (throttle, asleep) = (self.throttle, duration_text(asleep(self.throttle)));
        let why = format!(
            "slowed down by {throttle} % the guest sleeps for {asleep} at a time, which belongs to its blackout"
        );
        Some(Action::now(Deed::MaxDowntime, duration_text(longest), why))
    }
}

/// What QEMU may use of the longest blackout, in whole milliseconds. Half of it in any case: with nothing no guest ever
/// arrives.
fn without_sleep(limit: Duration, throttle: u32) -> Duration {
    let rest = millis(limit.saturating_sub(asleep(throttle)).max(limit / 2));
    Duration::from_millis(rest.max(1))
}

/// What the control loop may do.
fn policy(limits: &Limits, given: &Given) -> Policy {
    let (flags, limit) = (given.flags.as_ref(), longest_blackout(limits));
    Policy {
        limit: if limits.whole_downtime {
            limit
        } else {
            without_sleep(limit, given.throttle)
        },
        whole: limits.whole_downtime,
        deadline: limits.deadline,
        post_copy: flags.is_some_and(|flags| flags.post_copy) && limits.post_copy_early,
        auto_converge: flags.is_some_and(|flags| flags.auto_converge),
    }
}

impl Steering {
    pub(super) fn limits(&self) -> Limits {
        *self.limits.borrow()
    }

    pub(super) fn watch(&self) -> watch::Receiver<Limits> {
        self.limits.subscribe()
    }

    /// Changes when the control loop wants post-copy.
    pub(super) fn wants_post_copy(&self) -> watch::Receiver<Option<String>> {
        self.post_copy.subscribe()
    }

    pub(super) fn pace(&self) -> Pace {
        self.pace.clone()
    }

    /// Before anything is sent. Gives what Perform tells QEMU at first.
    pub(super) async fn start(&self, limits: Limits, flags: MigrateFlags) -> Duration {
        let mut given = self.given.lock().await;
        self.publish(limits);
        given.flags = Some(flags);
        given.max_downtime = at_first(&policy(&limits, &given));
        given.max_downtime
    }

    /// What is sent after the switch: nothing is told to QEMU.
    pub(super) fn keep_to(&self, limits: Limits) {
        self.publish(limits);
    }

    fn publish(&self, limits: Limits) {
        self.pace.set(limits.bandwidth);
        self.limits.send_replace(limits);
    }

    /// Somebody ordered something else while memory is sent: in force when this returns.
    pub(super) async fn adjust(&self, limits: Limits, handle: &dyn Outgoing) -> hypervisor::Result<()> {
        let mut given = self.given.lock().await;
        self.publish(limits);
        let policy = policy(&limits, &given);
        let now = if policy.whole {
            policy.limit
        } else {
            given.max_downtime.min(policy.limit)
        };
        if given.max_downtime == now {
            return Ok(());
        }
        handle.set_max_downtime(now).await?;
        given.max_downtime = now;
        // Before the first round Perform may be about to tell QEMU what it began with: then it is told again.
        given.unsure = given.round == 0;
        Ok(())
    }

    /// A round began. What was done, where something was.
    pub(super) async fn next_round(
        &self,
        number: u64,
        stats: &JobStats,
        at: Duration,
        handle: &dyn Outgoing,
    ) -> hypervisor::Result<Option<Action>> {
        let mut given = self.given.lock().await;
        (given.round, given.throttle) = (number, stats.throttle);
        let policy = policy(&self.limits(), &given);
        let so_far = given.max_downtime.min(policy.limit);
        let taken_back = given.taken_back(so_far);
        if given.unsure || taken_back.is_some() {
            // An order that is repeated is not a decision of this agent.
            handle.set_max_downtime(so_far).await?;
            (given.max_downtime, given.unsure) = (so_far, false);
        }
        let round = Round::observed(number, stats, at);
        note(&round, so_far);
        let Some(decision) = given.control.observe(round, &policy, so_far) else {
            return Ok(taken_back);
        };
        match decision.act {
            Act::MaxDowntime(longest) => {
                handle.set_max_downtime(longest).await?;
                given.max_downtime = longest;
                Ok(Some(Action::now(
                    Deed::MaxDowntime,
                    duration_text(longest),
                    decision.reason,
                )))
            }
            Act::PostCopy => {
                self.post_copy.send_if_modified(|wish| {
                    let news = wish.is_none();
                    wish.get_or_insert(decision.reason);
                    news
                });
                Ok(taken_back)
            }
        }
    }
}

/// What the control loop is told, for those who want to see why it did what it did: `agent/tests/data/transfers` are such
/// lines.
fn note(round: &Round, given: Duration) {
    tracing::debug!(
        number = round.number,
        at_ms = millis(round.at),
        remaining = round.remaining,
        sent = round.sent,
        bandwidth = round.bandwidth,
        dirty_rate = round.dirty_rate,
        throttle = round.throttle,
        given_ms = millis(given),
        "a round begins"
    );
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_sleeps_is_a_part_of_its_blackout() {
        let left = |limit, throttle| without_sleep(Duration::from_millis(limit), throttle).as_micros();
        assert_eq!(left(500, 0), 500_000);
        assert_eq!(left(500, 90), 410_000);
        assert_eq!(left(500, 65), 481_000);
        assert_eq!(left(500, 96), 260_000);
        assert_eq!(left(500, 99), 250_000, "half of it stays");
        assert_eq!(
            (left(1, 0), left(1, 99)),
            (1000, 1000),
            "0 is no limit that QEMU could keep"
        );
    }

    #[test]
    fn a_guest_that_is_slowed_down_further_gets_less_and_is_told_why() {
        let limits = Limits {
            max_downtime: Some(Duration::from_millis(500)),
            ..Limits::default()
        };
        let given = |throttle, limits: &Limits| {
            let given = Given {
                max_downtime: Duration::from_millis(500),
                throttle,
                ..Given::default()
            };
            given.taken_back(policy(limits, &given).limit)
        };
        assert_eq!(given(0, &limits), None);
        let less = given(96, &limits).unwrap();
        assert_eq!(less.value, "260 ms");
        assert!(
            less.reason.contains("96 %") && less.reason.contains("240 ms"),
            "{less:?}"
        );
        // What an operator orders on the way is not judged.
        let whole = Limits {
            whole_downtime: true,
            ..limits
        };
        assert_eq!(given(96, &whole), None);
    }
}
