//! What a transfer keeps to, as it was ordered last. Only data, and what an order makes of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a transfer keeps to. A record of an older agent has only the first two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Bytes/s over all channels; 0 is no limit.
    pub bandwidth: u64,
    pub max_downtime: Option<Duration>,
    /// `max_downtime` was changed on the way: QEMU gets all of it at once, not round by round.
    pub whole_downtime: bool,
    /// From the start of the transfer.
    pub deadline: Option<Duration>,
    pub at_deadline: AtDeadline,
    /// Stop the guest as soon as it is being sent.
    pub pause_and_finish: bool,
    /// It may go over as soon as it is found not to converge.
    pub post_copy_early: bool,
    /// Let it go over as soon as it is being sent.
    pub post_copy_now: bool,
    /// Grows with every change.
    pub revision: u64,
}

/// What happens at the deadline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AtDeadline {
    /// The guest stays, and runs on.
    #[default]
    Abort,
    /// It is stopped, and the rest is sent.
    PauseAndFinish,
    /// It goes over, and the rest follows.
    PostCopy,
}

impl Limits {
    /// What is in force when these are ordered after others; none where they came late.
    pub fn after(self, earlier: &Self) -> Option<Self> {
        if self.revision < earlier.revision {
            return None;
        }
        Some(Self {
            whole_downtime: earlier.whole_downtime || self.max_downtime != earlier.max_downtime,
            // A guest that was stopped for it is not let run again.
            pause_and_finish: earlier.pause_and_finish || self.pause_and_finish,
            post_copy_now: earlier.post_copy_now || self.post_copy_now,
            ..self
        })
    }
}
