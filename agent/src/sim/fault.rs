//! Faults that a test plants in a host: what happens at the next call of a kind.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// The calls that can be told to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    Look,
    Begin,
    Prepare,
    Perform,
    Abort,
    Finish,
    CancelIncoming,
    ConfirmMoved,
    ConfirmCancelled,
    Resume,
    Start,
    Suspend,
    SetAutostart,
    Define,
    Undefine,
}

/// What happens instead of, or around, a call.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It is refused and does nothing.
    Refuse,
    /// It is done, and the answer is lost.
    LoseAnswer,
    /// It is done after this time.
    Delay(Duration),
    /// It is done when the token is cancelled.
    Until(CancellationToken),
    /// It is done at once, and answered when the token is cancelled.
    AnswerAfter(CancellationToken),
    /// The agent's own code panics in it.
    Panic,
    /// libvirtd dies before it does anything, and is started again at once.
    Die,
}

/// What is planted, oldest first.
#[derive(Debug, Default)]
pub(super) struct Script(HashMap<Call, VecDeque<Fault>>);

impl Script {
    pub(super) fn plant(&mut self, call: Call, fault: Fault) {
        self.0.entry(call).or_default().push_back(fault);
    }

    pub(super) fn take(&mut self, call: Call) -> Option<Fault> {
        self.0.get_mut(&call)?.pop_front()
    }
}
