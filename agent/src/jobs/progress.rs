//! What a transfer shows to those who watch it. Only data.

use std::time::{Duration, SystemTime};

use crate::hypervisor::JobStats;
use crate::journal::Call;

/// Something that happened, by this host's clock.
#[derive(Clone, Debug)]
pub struct Event {
    pub time: SystemTime,
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum What {
    Progress(Progress),
    /// All is sent; the guest stands still.
    AllSent,
    /// The guest runs at the destination.
    Switched(Summary),
    /// A pre-copy round ended.
    Iteration(Iteration),
    /// Perform or the hand-over failed. Says nothing of who has the guest.
    Failed(Problem),
    /// A call to libvirt ended.
    Call(Call),
    /// This agent changed something by itself.
    Action(Action),
}

impl Event {
    pub fn now(what: What) -> Self {
        Self {
            time: SystemTime::now(),
            what,
        }
    }
}

/// A moment of the transfer.
#[derive(Clone, Debug)]
pub struct Progress {
    pub time: SystemTime,
    pub stage: Stage,
    pub stats: JobStats,
    pub elapsed: Duration,
    pub blackout: Option<Duration>,
}

/// What a transfer is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    PreCopy,
    Switching,
    /// The guest runs at the destination, and its pages follow, or cannot.
    PostCopy(Flow),
    Switched,
}

/// The stream in post-copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flow {
    #[default]
    Flows,
    /// Both sides keep what they have.
    Broken,
}

/// One pre-copy round.
#[derive(Clone, Debug)]
pub struct Iteration {
    /// From 1.
    pub number: u64,
    pub started: SystemTime,
    pub duration: Option<Duration>,
    /// Bytes, at its start.
    pub remaining: u64,
    /// Bytes/s.
    pub dirty_rate: u64,
    /// Bytes/s.
    pub bandwidth: u64,
}

/// Something that this agent changed while memory was sent, by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    pub time: SystemTime,
    pub deed: Deed,
    /// The new value with its unit, for people.
    pub value: String,
    /// With the numbers behind it, for people.
    pub reason: String,
}

/// What an agent does by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// QEMU may use more of the blackout.
    MaxDowntime,
    /// QEMU slows the guest down.
    AutoConverge,
    /// The guest is stopped, and the rest is sent.
    PauseAndFinish,
    /// The guest goes over before all its memory has.
    PostCopy,
    /// The transfer is given up.
    Abort,
    /// A file of the source stays, though its guest has moved.
    FileStays,
}

impl Deed {
    /// Every one. A test below proves that none is missing.
    pub const ALL: [Self; 6] = [
        Self::MaxDowntime,
        Self::AutoConverge,
        Self::PauseAndFinish,
        Self::PostCopy,
        Self::Abort,
        Self::FileStays,
    ];

    /// The word in records, streams and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::MaxDowntime => "max-downtime",
            Self::AutoConverge => "auto-converge",
            Self::PauseAndFinish => "pause-and-finish",
            Self::PostCopy => "post-copy",
            Self::Abort => "abort",
            Self::FileStays => "file-stays",
        }
    }

    #[cfg(test)]
    fn place(self) -> usize {
        match self {
            Self::MaxDowntime => 0,
            Self::AutoConverge => 1,
            Self::PauseAndFinish => 2,
            Self::PostCopy => 3,
            Self::Abort => 4,
            Self::FileStays => 5,
        }
    }
}

impl Action {
    pub fn now(deed: Deed, value: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            time: SystemTime::now(),
            deed,
            value: value.into(),
            reason: reason.into(),
        }
    }
}

/// Totals, once the guest runs at the destination.
#[derive(Clone, Debug)]
pub struct Summary {
    /// By the destination's clock; unset where it did not say.
    pub switched: Option<SystemTime>,
    /// Unset where it could not be measured: the guest arrived paused, or an answer was lost.
    pub blackout: Option<Duration>,
    pub stats: JobStats,
    /// Through the tunnel.
    pub tunnel_bytes: u64,
    pub duration: Duration,
}

/// Why it failed, with the stable word for it.
#[derive(Clone, Debug)]
pub struct Problem {
    pub reason: &'static str,
    pub message: String,
    pub remedy: String,
}

impl From<&drover_proto::failure::Failure> for Problem {
    fn from(failure: &drover_proto::failure::Failure) -> Self {
        Self {
            reason: failure.reason.name(),
            message: failure.message.clone(),
            remedy: failure.remedy.clone().unwrap_or_default(),
        }
    }
}

/// The blackout: from the stop of the CPUs here to their start there. The destination measures from the request's
/// arrival; half of what is left of the round trip is the request's way.
pub fn blackout(
    stopped: std::time::Instant,
    sent: std::time::Instant,
    answered: std::time::Instant,
    at_destination: Duration,
) -> Duration {
    let on_the_way = answered.saturating_duration_since(sent).saturating_sub(at_destination);
    sent.saturating_duration_since(stopped) + on_the_way / 2 + at_destination
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A new deed does not compile before it has a place, and its place is in the list.
    #[test]
    fn every_deed_is_in_the_list() {
        for (place, deed) in Deed::ALL.into_iter().enumerate() {
            assert_eq!(deed.place(), place, "{deed:?}");
        }
    }

    #[test]
    fn the_blackout_is_the_sum_of_its_parts() {
        let stopped = std::time::Instant::now();
        let ms = Duration::from_millis;
        let (sent, answered) = (stopped + ms(10), stopped + ms(10) + ms(24));
        assert_eq!(blackout(stopped, sent, answered, ms(20)), ms(10 + 2 + 20));
        // A clock that disagrees makes it no shorter than what was seen here.
        assert_eq!(blackout(stopped, sent, answered, ms(50)), ms(60));
        assert_eq!(blackout(answered, sent, answered, ms(0)), ms(12));
    }
}
