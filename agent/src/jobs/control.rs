//! The control loop: what is to be done at the end of a pre-copy round. Only a decision, from the rounds so far.
//!
//! ```text
//!  rounds shrink ───────────────────▶ nothing: the next one is shorter, and so is the blackout
//!  they do not, the limit suffices ─▶ at a local minimum QEMU may stop the guest for as long as that needs
//!  they do not, nor does the limit ─▶ QEMU gets all of the limit; or post-copy, where it is allowed
//! ```
//!
//! It judges where rounds end, never by the clock: how long a round takes says nothing, how much remains after it does.
//! QEMU stops a guest as soon as it expects to send the rest within what it was given. All of the limit at once would
//! stop a guest early that one more round had stopped for much less.
//!
//! Promise: what QEMU may use never exceeds the caller's limit, and never falls.

use std::time::Duration;

use drover_proto::units::duration_text;

use crate::hypervisor::JobStats;

/// For the first rounds: more than the fixed part of a switch.
pub(super) const FIRST: Duration = Duration::from_millis(50);

/// A round shrinks where less than so many hundredths of the least so far remain.
const SHRINKS: u64 = 96;

/// So far above the least, in hundredths, a round is still a local minimum.
const NEAR_MINIMUM: u64 = 110;

/// After so many rounds that did not shrink no better moment is waited for.
const PATIENT: u32 = 4;

/// So many rounds that do not shrink call for post-copy, and so many where the guest may be slowed down instead.
const POST_COPY_AFTER: u32 = 2;
pub(super) const POST_COPY_AFTER_THROTTLE: u32 = 8;

/// What was observed when a round began, which is where the one before it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Round {
    /// From 1.
    pub(super) number: u64,
    /// Bytes still to send.
    pub(super) remaining: u64,
    /// Bytes sent so far.
    pub(super) sent: u64,
    /// Bytes/s, as QEMU has them.
    pub(super) bandwidth: u64,
    pub(super) dirty_rate: u64,
    /// Percent by which the guest is slowed down.
    pub(super) throttle: u32,
    /// Since the start of the transfer.
    pub(super) at: Duration,
}

/// What the caller allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    /// The longest blackout.
    pub(super) limit: Duration,
    /// It was changed on the way: QEMU gets all of it at once.
    pub(super) whole: bool,
    /// From the start of the transfer.
    pub(super) deadline: Option<Duration>,
    /// The guest may go over before all its memory has.
    pub(super) post_copy: bool,
    /// It may be slowed down.
    pub(super) auto_converge: bool,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// QEMU may use so much.
    MaxDowntime(Duration),
    PostCopy,
}

/// With why, and the numbers behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) act: Act,
    pub(super) reason: String,
}

/// The rounds so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Control {
    last: Option<Round>,
    /// The least that remained after a round.
    least: Option<u64>,
    /// Rounds in a row that did not shrink, or not fast enough.
    stalled: u32,
}

impl Round {
    pub(super) fn observed(number: u64, stats: &JobStats, at: Duration) -> Self {
        Self {
            number,
            remaining: stats.memory_remaining,
            sent: stats.memory_processed,
            bandwidth: stats.bandwidth,
            dirty_rate: stats.dirty_rate,
            throttle: stats.throttle,
            at,
        }
    }
}

/// What QEMU may use before the first round.
pub(super) fn at_first(policy: &Policy) -> Duration {
    if policy.whole {
        policy.limit
    } else {
        FIRST.min(policy.limit)
    }
}

impl Control {
    /// `given` is what QEMU may use now.
    pub(super) fn observe(&mut self, round: Round, policy: &Policy, given: Duration) -> Option<Decision> {
        let rate = self.rate(&round);
        let shrinks = self
            .least
            .is_none_or(|least| round.remaining < least.saturating_mul(SHRINKS) / 100);
        let near = self
            .least
            .is_none_or(|least| round.remaining <= least.saturating_mul(NEAR_MINIMUM) / 100);
        let before = self.last.replace(round);
        if policy.whole {
            return (given < policy.limit).then(|| Decision {
                act: Act::MaxDowntime(policy.limit),
                reason: "the limit was changed on the way: all of it is given at once".to_owned(),
            });
        }
        // The first round is all of the memory, once; and where nothing remains QEMU stops the guest by itself.
        if round.number < 2 || rate == 0 || round.remaining == 0 {
            return None;
        }
        self.least = Some(self.least.map_or(round.remaining, |least| least.min(round.remaining)));
        let needed = needed(round.remaining, rate);
        let late = policy.deadline.is_some_and(|deadline| {
            let left = deadline.saturating_sub(round.at);
            forecast(before.as_ref(), &round, rate, policy.limit) > left
        });
        // It writes at least as fast as it is sent, and what remains is far from the limit.
        let hopeless = round.dirty_rate.saturating_mul(100) >= rate.saturating_mul(SHRINKS) && needed > policy.limit;
        if shrinks && !late && !hopeless {
            self.stalled = 0;
            return None;
        }
        self.stalled += 1;
        if hopeless {
            self.stalled = self.stalled.max(POST_COPY_AFTER);
        }
        let why = if late {
            "the rounds shrink too slowly for the deadline"
        } else if hopeless && shrinks {
            "the guest writes as fast as it is sent"
        } else {
            "the rounds do not shrink any more"
        };
        let act = self.act(needed, near, policy, given)?;
        Some(Decision {
            act,
            reason: self.reason(why, &round, rate, given),
        })
    }

    /// For a guest that does not converge by itself.
    fn act(&self, needed: Duration, near: bool, policy: &Policy, given: Duration) -> Option<Act> {
        let raise = |to: Duration| (to > given).then_some(Act::MaxDowntime(to));
        let patience = if policy.auto_converge {
            POST_COPY_AFTER_THROTTLE
        } else {
            POST_COPY_AFTER
        };
        let post_copy = |patience| (policy.post_copy && self.stalled >= patience).then_some(Act::PostCopy);
        if needed > policy.limit {
            return post_copy(patience).or_else(|| raise(policy.limit));
        }
        if !near && self.stalled < PATIENT {
            return None;
        }
        // What should have been enough, and was not: QEMU counts otherwise.
        let next = if given < needed { needed } else { given * 2 };
        raise(next.min(policy.limit)).or_else(|| post_copy(patience.max(PATIENT)))
    }

    /// Bytes/s over the round that ended, where it can be said; else as QEMU has it.
    fn rate(&self, round: &Round) -> u64 {
        let measured = self.last.as_ref().and_then(|last| {
            let took = round.at.checked_sub(last.at)?.as_secs_f64();
            let sent = round.sent.checked_sub(last.sent)?;
            // Of a short one the buffers on the way say more than the link.
            (took >= 0.1 && sent > 0).then_some((sent as f64 / took) as u64)
        });
        measured.unwrap_or(round.bandwidth)
    }

    fn reason(&self, why: &str, round: &Round, rate: u64, given: Duration) -> String {
        const MIB: u64 = 1 << 20;
        let slowed = if round.throttle > 0 {
            format!(", slowed down by {} %", round.throttle)
        } else {
            String::new()
        };
        format!(
            "round {} begins and {why}: {} MiB remain (least so far {}), the guest writes {} MiB/s{slowed}, {} MiB/s \
             are sent, which takes {}; {} were allowed",
            round.number,
            round.remaining / MIB,
            self.least.unwrap_or(round.remaining) / MIB,
            round.dirty_rate / MIB,
            rate / MIB,
            duration_text(needed(round.remaining, rate)),
            duration_text(given),
        )
    }
}

/// The blackout in which so much can be sent, with a quarter to spare, in whole milliseconds.
fn needed(remaining: u64, rate: u64) -> Duration {
    let millis = u128::from(remaining) * 1250 / u128::from(rate.max(1)) + 1;
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

/// How long it takes until the rest fits into the limit, where rounds go on to shrink as the last one did.
fn forecast(before: Option<&Round>, round: &Round, rate: u64, limit: Duration) -> Duration {
    let enough = rate as f64 * limit.as_secs_f64();
    let remaining = round.remaining as f64;
    if remaining <= enough {
        return Duration::ZERO;
    }
    // Of the first round only the rates tell: all of the memory is no measure of what was written.
    let by_rounds = before
        .filter(|before| before.number >= 2 && before.remaining > 0)
        .map(|before| remaining / before.remaining as f64);
    let shrinks_by = by_rounds.unwrap_or(round.dirty_rate as f64 / rate as f64);
    if shrinks_by >= 1.0 || enough <= 0.0 {
        return Duration::MAX;
    }
    // remaining + remaining·λ + remaining·λ² + … down to what is enough.
    let seconds = (remaining - enough) / (1.0 - shrinks_by) / rate as f64;
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "control_recorded_tests.rs"]
mod recorded_tests;
