//! The control loop: what is to be done at the end of a pre-copy round. Only a decision, from the rounds so far.
//!
//! ```text
//!  rounds shrink ───────────────────▶ nothing: the next one is shorter, and so is the blackout
//!  they do not, the limit suffices ─▶ at a local minimum QEMU may stop the guest for as long as that needs
//!  they do not, nor does the limit ─▶ QEMU gets all of the limit
//!  the limit costs too much to reach ▶ post-copy, where it is allowed
//! ```
//!
//! It judges where rounds end, never by the clock: how long a round takes says nothing, how much remains after it does.
//! QEMU stops a guest as soon as it expects to send the rest within what it was given. All of the limit at once would
//! stop a guest early that one more round had stopped for much less.
//!
//! λ is what remains now over what remained a round ago: so much is written for each byte that is sent. With it
//! `(remaining − what fits into the limit) / (1 − λ)` more bytes are sent until the rest fits; post-copy sends what remains
//! once. QEMU's own dirty rate decides nothing: it counts a page once however often it was written, and stayed below the
//! bandwidth where a guest wrote half as fast again.
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

/// What fits into a blackout leaves a quarter of it to spare.
const SPARE: f64 = 1.25;

/// After so many rounds that did not shrink no better moment is waited for.
const PATIENT: u32 = 4;

/// Who would have to send so many times what the first round sent until the rest fits goes over instead. Where each round
/// leaves two thirds of the one before it is never more.
const WORTH: f64 = 2.0;

/// So many rounds in a row that did not shrink call for post-copy too, and so many where the guest may be slowed down
/// instead: QEMU takes a step every two of them.
const POST_COPY_AFTER: u32 = 2;
const POST_COPY_AFTER_THROTTLE: u32 = 8;
const ROUNDS_OF_A_STEP: u32 = 2;

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
    /// What the first round sent.
    once: Option<u64>,
    /// Rounds in a row that did not shrink, or not fast enough.
    stalled: u32,
}

/// What a round says of those to come.
struct Seen {
    /// The blackout in which what remains can be sent.
    needed: Duration,
    /// Less remains than ever, by more than a little.
    shrinks: bool,
    /// It is a local minimum.
    near: bool,
    /// The rest will not fit before the deadline.
    late: bool,
    /// To go over is allowed, and is much less than to go on.
    costly: bool,
    /// No further step of auto-converge can show before the deadline.
    last_step: bool,
}

impl Seen {
    fn why(&self) -> &'static str {
        if !self.shrinks {
            "the rounds do not shrink any more"
        } else if self.late {
            "the rounds shrink too slowly for the deadline"
        } else {
            "more than twice what the first round sent would follow until the rest fits"
        }
    }
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
        let seen = self.judge(before, &round, rate, policy);
        self.least = Some(self.least.map_or(round.remaining, |least| least.min(round.remaining)));
        if seen.shrinks && !seen.late && !seen.costly {
            self.stalled = 0;
            return None;
        }
        self.stalled += 1;
        let act = self.act(&seen, policy, given)?;
        Some(Decision {
            act,
            reason: self.reason(seen.why(), &round, rate, given),
        })
    }

    /// What a round says, beside those before it.
    fn judge(&mut self, before: Option<Round>, round: &Round, rate: u64, policy: &Policy) -> Seen {
        // Not what there is of memory: pages that nobody ever wrote to are no bytes.
        let once = *self.once.get_or_insert(round.sent.max(round.remaining));
        let within = |hundredths: u64| self.least.map(|least| least.saturating_mul(hundredths) / 100);
        let needed = needed(round.remaining, rate);
        let ahead = ahead(before, round, rate as f64 * policy.limit.as_secs_f64() / SPARE);
        let left = policy
            .deadline
            .map(|deadline| deadline.saturating_sub(round.at).as_secs_f64());
        let takes = |bytes: f64| left.is_some_and(|left| bytes / rate as f64 > left);
        Seen {
            needed,
            shrinks: within(SHRINKS).is_none_or(|bound| round.remaining < bound),
            near: within(NEAR_MINIMUM).is_none_or(|bound| round.remaining <= bound),
            late: takes(ahead),
            costly: policy.post_copy && needed > policy.limit && (ahead > WORTH * once as f64 || takes(ahead)),
            last_step: takes(f64::from(ROUNDS_OF_A_STEP) * round.remaining as f64),
        }
    }

    /// For a guest that does not converge by itself.
    fn act(&self, seen: &Seen, policy: &Policy, given: Duration) -> Option<Act> {
        let raise = |to: Duration| (to > given).then_some(Act::MaxDowntime(to));
        // Slowing it down is tried before, unless another step would come after the deadline.
        let patience = match (policy.auto_converge && !seen.last_step, seen.costly) {
            (true, _) => POST_COPY_AFTER_THROTTLE,
            (false, true) => 1,
            (false, false) => POST_COPY_AFTER,
        };
        let post_copy = |patience| (policy.post_copy && self.stalled >= patience).then_some(Act::PostCopy);
        if seen.needed > policy.limit {
            return post_copy(patience).or_else(|| raise(policy.limit));
        }
        if !seen.near && self.stalled < PATIENT {
            return None;
        }
        // What should have been enough, and was not: QEMU counts otherwise.
        let next = if given < seen.needed { seen.needed } else { given * 2 };
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

/// The blackout in which so much can be sent, with some to spare, in whole milliseconds.
fn needed(remaining: u64, rate: u64) -> Duration {
    // SPARE · 1000.
    let millis = u128::from(remaining) * 1250 / u128::from(rate.max(1)) + 1;
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

/// Bytes that are sent until no more than `enough` remain, where rounds go on to shrink as the last one did; none where
/// nothing is known to go by.
fn ahead(before: Option<Round>, round: &Round, enough: f64) -> f64 {
    let remaining = round.remaining as f64;
    let Some(before) = before.filter(|before| before.remaining > 0 && remaining > enough) else {
        return 0.0;
    };
    // Of the first round it is less than it will be: not all of the memory is written to.
    let lambda = remaining / before.remaining as f64;
    if lambda >= 1.0 {
        return f64::INFINITY;
    }
    // remaining + remaining·λ + remaining·λ² + … down to what is enough.
    (remaining - enough) / (1.0 - lambda)
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "control_recorded_tests.rs"]
mod recorded_tests;
