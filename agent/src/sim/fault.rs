//! Faults that a test plants in a host: what happens at the next call of a kind.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// The calls that can be told to fail, and moments inside the long ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// Every call that only looks.
    Look,
    Begin,
    Prepare,
    Perform,
    /// Inside Perform: a disk was copied, memory comes after the disks.
    Copying,
    /// Inside Perform: memory was sent once, the guest runs.
    Sending,
    /// Inside Perform: the guest was stopped, its last memory is not sent.
    LastRound,
    SetLimits,
    Abort,
    Finish,
    /// Inside Finish: the stream is whole, the guest is not in place yet.
    Finishing,
    CancelIncoming,
    ConfirmMoved,
    ConfirmCancelled,
    Resume,
    Start,
    Suspend,
    /// Asks the guest to shut itself down.
    ShutDown,
    SetAutostart,
    Define,
    Undefine,
    /// Looks at what a guest writes, which takes its time.
    Sample,
    StartPostCopy,
}

impl Call {
    /// Every call. A test below proves that none is missing.
    pub const ALL: [Self; 23] = [
        Self::Look,
        Self::Begin,
        Self::Prepare,
        Self::Perform,
        Self::Sending,
        Self::LastRound,
        Self::SetLimits,
        Self::Abort,
        Self::Finish,
        Self::Finishing,
        Self::CancelIncoming,
        Self::ConfirmMoved,
        Self::ConfirmCancelled,
        Self::Resume,
        Self::Suspend,
        Self::SetAutostart,
        Self::Define,
        Self::Undefine,
        Self::Start,
        Self::Copying,
        Self::Sample,
        Self::StartPostCopy,
        Self::ShutDown,
    ];

    /// What a [`crate::gate::Gate`] is asked with.
    pub fn name(self) -> &'static str {
        match self {
            Self::Look => "libvirt.look",
            Self::Begin => "libvirt.begin",
            Self::Prepare => "libvirt.prepare",
            Self::Perform => "libvirt.perform",
            Self::Copying => "libvirt.perform:copying",
            Self::Sending => "libvirt.perform:sending",
            Self::LastRound => "libvirt.perform:last-round",
            Self::SetLimits => "libvirt.set-limits",
            Self::Abort => "libvirt.abort",
            Self::Finish => "libvirt.finish",
            Self::Finishing => "libvirt.finish:inside",
            Self::CancelIncoming => "libvirt.finish-cancelled",
            Self::ConfirmMoved => "libvirt.confirm",
            Self::ConfirmCancelled => "libvirt.confirm-cancelled",
            Self::Resume => "libvirt.resume",
            Self::Start => "libvirt.start",
            Self::Suspend => "libvirt.suspend",
            Self::ShutDown => "libvirt.shutdown",
            Self::SetAutostart => "libvirt.set-autostart",
            Self::Define => "libvirt.define",
            Self::Undefine => "libvirt.undefine",
            Self::Sample => "libvirt.sample",
            Self::StartPostCopy => "libvirt.start-post-copy",
        }
    }

    #[cfg(test)]
    fn place(self) -> usize {
        match self {
            Self::Look => 0,
            Self::Begin => 1,
            Self::Prepare => 2,
            Self::Perform => 3,
            Self::Sending => 4,
            Self::LastRound => 5,
            Self::SetLimits => 6,
            Self::Abort => 7,
            Self::Finish => 8,
            Self::Finishing => 9,
            Self::CancelIncoming => 10,
            Self::ConfirmMoved => 11,
            Self::ConfirmCancelled => 12,
            Self::Resume => 13,
            Self::Suspend => 14,
            Self::SetAutostart => 15,
            Self::Define => 16,
            Self::Undefine => 17,
            Self::Start => 18,
            Self::Copying => 19,
            Self::Sample => 20,
            Self::StartPostCopy => 21,
            Self::ShutDown => 22,
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A new call does not compile before it has a place, and its place is in the list.
    #[test]
    fn every_call_is_in_the_list() {
        for (place, call) in Call::ALL.into_iter().enumerate() {
            assert_eq!(call.place(), place, "{call:?}");
        }
    }
}
