//! How a live migration would go: pure arithmetic from what a guest writes and what a link carries.
//!
//! ```text
//!  a guest writes to a set of pages over and over: after t seconds  W·(1 − e^(−D·t/W))  bytes are different
//!  a round sends R bytes in R/B seconds; what was written meanwhile is the next one
//!  rounds shrink until the rest fits into the blackout, or until they stop shrinking: W is too large for it
//! ```
//! What is done on the way is what the agent's control loop and QEMU's auto-converge do (`agent/src/jobs/control.rs`).

mod slowed;
mod writes;

use std::time::Duration;

pub use writes::Writes;

/// What a transfer takes beside its bytes: the channels, QEMU's own rounds, the hand-over.
const FIXED: f64 = 0.15;

/// What a blackout takes beside its bytes: devices, the hand-over, the resume.
const FIXED_BLACKOUT: f64 = 0.05;

/// The control loop lets QEMU have so much at first.
const FIRST: f64 = 0.05;

/// A round shrinks where less than this part of the least so far remains.
const SHRINKS: f64 = 0.96;

/// What the control loop gives QEMU to spare.
const SPARE: f64 = 1.25;

/// Who would have to send so many times its memory until the rest fits goes over, where it may.
const WORTH: f64 = 2.0;

/// After so many such rounds, where it may be slowed down too.
const PATIENT: u32 = 8;

/// No transfer with more rounds would be waited for.
const MOST_ROUNDS: usize = 500;

/// The longest blackout that a policy can allow, seconds.
const LONGEST: f64 = 60.0;

/// A guest that was looked at for a few seconds may write less from now on, or more.
const CASES: [f64; 6] = [0.5, 0.75, 1.0, 1.5, 2.0, 3.0];

/// A guest and the way to its destination.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    /// Bytes of memory that the first round sends.
    pub memory: f64,
    pub writes: Writes,
    /// Bytes of disks, sent before.
    pub disks: f64,
    /// Bytes/s.
    pub bandwidth: f64,
}

/// What the caller allows.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// The longest blackout.
    pub limit: Duration,
    /// From the start of the transfer.
    pub deadline: Option<Duration>,
    /// What happens then, if it is not given up.
    pub pause_at_deadline: bool,
    pub post_copy_at_deadline: bool,
    pub auto_converge: bool,
    pub post_copy: bool,
}

/// Something beyond pre-copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    AutoConverge,
    MaxDowntime,
    PostCopy,
    PauseAndFinish,
}

impl Means {
    /// The word in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::AutoConverge => "auto-converge",
            Self::MaxDowntime => "max-downtime",
            Self::PostCopy => "post-copy",
            Self::PauseAndFinish => "pause-and-finish",
        }
    }
}

/// How a transfer ends that does: seconds and bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    pub duration: f64,
    pub blackout: f64,
    pub bytes: f64,
    /// For so long the guest stands still over and over, where it is slowed down.
    pub asleep: f64,
}

/// What is to be expected.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// None where the guest would not move under these terms.
    pub cost: Option<Cost>,
    /// From 0 to 1.
    pub chance: f64,
    /// What is used, where the guest moves; else what would have to be allowed, each by itself enough.
    pub needed: Vec<Means>,
    /// The shortest limit with which pre-copy alone would do, where that is one of them; seconds.
    pub needed_downtime: Option<f64>,
}

/// What is expected of this guest on this link under these terms.
pub fn forecast(subject: &Subject, terms: &Terms) -> Forecast {
    let (cost, used) = end(subject, terms);
    let good = CASES.iter().filter(|factor| {
        let case = Subject {
            writes: subject.writes.faster(**factor),
            ..*subject
        };
        end(&case, terms).0.is_some()
    });
    let chance = good.count() as f64 / CASES.len() as f64;
    if cost.is_some() {
        return Forecast {
            cost,
            chance,
            needed: used.into_iter().collect(),
            needed_downtime: None,
        };
    }
    let (needed, needed_downtime) = alternatives(subject, terms);
    Forecast {
        cost,
        chance,
        needed,
        needed_downtime,
    }
}

/// What would do if it were allowed.
fn alternatives(subject: &Subject, terms: &Terms) -> (Vec<Means>, Option<f64>) {
    let mut needed = Vec::new();
    let slowed = Terms {
        auto_converge: true,
        ..*terms
    };
    if end(subject, &slowed).0.is_some() {
        needed.push(Means::AutoConverge);
    }
    let downtime = shortest_limit(subject, terms);
    needed.extend(downtime.map(|_| Means::MaxDowntime));
    let over = Terms {
        post_copy: true,
        ..*terms
    };
    if end(subject, &over).0.is_some() {
        needed.push(Means::PostCopy);
    }
    if terms.deadline.is_some() {
        needed.push(Means::PauseAndFinish);
    }
    (needed, downtime)
}

/// How it ends, and by which means beyond pre-copy.
fn end(subject: &Subject, terms: &Terms) -> (Option<Cost>, Option<Means>) {
    let deadline = terms.deadline.map_or(f64::INFINITY, |deadline| deadline.as_secs_f64());
    let in_time = |cost: &Cost| cost.duration <= deadline;
    for (slow, means) in [(false, None), (terms.auto_converge, Some(Means::AutoConverge))] {
        if means.is_some() && !slow {
            continue;
        }
        // Where waiting for the smallest blackout takes too long, all of the limit is given at once.
        for hurry in [false, true] {
            let cost = pre_copy(subject, terms, slow, hurry);
            if let Some(cost) = cost.filter(in_time) {
                return (Some(cost), means);
            }
        }
    }
    if terms.post_copy
        && let Some(cost) = Some(post_copy(subject, terms)).filter(in_time)
    {
        return (Some(cost), Some(Means::PostCopy));
    }
    if !deadline.is_finite() {
        return (None, None);
    }
    let rest = rest_at(subject, deadline);
    if terms.pause_at_deadline {
        let cost = Cost {
            blackout: rest.blackout + rest.duration - deadline,
            ..rest
        };
        return (Some(cost), Some(Means::PauseAndFinish));
    }
    if terms.post_copy_at_deadline {
        return (Some(rest), Some(Means::PostCopy));
    }
    (None, None)
}

/// One round after the other.
struct Rounds<'a> {
    subject: &'a Subject,
    /// Since the start.
    seconds: f64,
    sent: f64,
    /// What the next round sends.
    rest: f64,
    /// Part of its time that the guest is kept from running.
    slowed: f64,
}

impl<'a> Rounds<'a> {
    fn new(subject: &'a Subject) -> Self {
        Self {
            subject,
            seconds: FIXED + subject.disks / subject.bandwidth,
            sent: subject.disks,
            rest: subject.memory,
            slowed: 0.0,
        }
    }

    /// Sends the rest; what was written meanwhile is the next one.
    fn next(&mut self) {
        let took = self.rest / self.subject.bandwidth;
        self.seconds += took;
        self.sent += self.rest;
        self.rest = self.subject.writes.within(took, self.slowed);
    }

    /// Seconds that the rest takes.
    fn rest_takes(&self) -> f64 {
        self.rest / self.subject.bandwidth
    }

    /// The guest is stopped for the rest.
    fn stop(&self) -> Cost {
        Cost {
            duration: self.seconds + self.rest_takes(),
            blackout: FIXED_BLACKOUT + self.rest_takes(),
            bytes: self.sent + self.rest,
            asleep: slowed::asleep(self.slowed),
        }
    }
}

/// With the guest slowed down where that is allowed and needed; none where it does not end.
fn pre_copy(subject: &Subject, terms: &Terms, slow: bool, hurry: bool) -> Option<Cost> {
    let limit = terms.limit.as_secs_f64();
    let mut rounds = Rounds::new(subject);
    let (mut least, mut much) = (f64::INFINITY, 0);
    for _ in 0..MOST_ROUNDS {
        let before = rounds.rest;
        rounds.next();
        let takes = rounds.rest_takes();
        let shrinks = rounds.rest < least * SHRINKS;
        if takes <= FIRST.min(limit) || (takes * SPARE <= limit && (hurry || !shrinks)) {
            return Some(rounds.stop());
        }
        if !shrinks && !slow {
            return None;
        }
        least = least.min(rounds.rest);
        // As QEMU does it: twice more than half of what was sent, then a step.
        much += u32::from(rounds.rest > before / 2.0);
        if slow && much >= 2 {
            much = 0;
            let (first, next) = slowed::steps(subject, terms);
            rounds.slowed = if rounds.slowed == 0.0 {
                first
            } else {
                rounds.slowed + next
            }
            .min(0.99);
        }
    }
    None
}

/// Once to go on until the rest fits is too much, as the agent finds it.
fn post_copy(subject: &Subject, terms: &Terms) -> Cost {
    let enough = terms.limit.as_secs_f64() * subject.bandwidth / SPARE;
    let deadline = terms.deadline.map_or(f64::INFINITY, |deadline| deadline.as_secs_f64());
    let (mut rounds, mut bad) = (Rounds::new(subject), 0);
    for _ in 0..MOST_ROUNDS {
        let before = rounds.rest;
        rounds.next();
        if rounds.rest <= enough {
            break;
        }
        let lambda = rounds.rest / before;
        let ahead = if lambda < 1.0 {
            (rounds.rest - enough) / (1.0 - lambda)
        } else {
            f64::INFINITY
        };
        let left = deadline - rounds.seconds;
        let costly = ahead > WORTH * subject.memory || ahead / subject.bandwidth > left;
        bad = if costly || lambda > SHRINKS { bad + 1 } else { 0 };
        let patient = terms.auto_converge && 2.0 * rounds.rest_takes() <= left;
        if bad >= if patient { PATIENT } else { 1 } {
            break;
        }
    }
    Cost {
        blackout: FIXED_BLACKOUT,
        ..rounds.stop()
    }
}

/// What it takes to send the rest from the deadline on; `blackout` is without it.
fn rest_at(subject: &Subject, deadline: f64) -> Cost {
    let mut rounds = Rounds::new(subject);
    for _ in 0..MOST_ROUNDS {
        if rounds.seconds + rounds.rest_takes() >= deadline || rounds.rest < 1.0 {
            break;
        }
        rounds.next();
    }
    let within = (deadline - rounds.seconds).clamp(0.0, rounds.rest_takes());
    let sent = within * subject.bandwidth;
    let rest = rounds.rest - sent + subject.writes.within(within, 0.0);
    Cost {
        duration: deadline.max(rounds.seconds) + rest.min(subject.memory) / subject.bandwidth,
        blackout: FIXED_BLACKOUT,
        bytes: rounds.sent + sent + rest,
        asleep: 0.0,
    }
}

/// The shortest limit with which rounds of pre-copy end in time, whole hundredths of a second.
fn shortest_limit(subject: &Subject, terms: &Terms) -> Option<f64> {
    let deadline = terms.deadline.map_or(f64::INFINITY, |deadline| deadline.as_secs_f64());
    let (mut rounds, mut best) = (Rounds::new(subject), f64::INFINITY);
    for _ in 0..MOST_ROUNDS {
        rounds.next();
        if rounds.stop().duration > deadline {
            break;
        }
        let shrinks = rounds.rest_takes() < best * SHRINKS;
        best = best.min(rounds.rest_takes());
        if !shrinks {
            break;
        }
    }
    let limit = (best * SPARE * 100.0).ceil() / 100.0;
    (limit <= LONGEST).then_some(limit)
}

#[cfg(test)]
mod tests;
