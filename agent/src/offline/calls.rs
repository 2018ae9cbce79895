//! What is done with files of guests, as a [`Gate`] is asked about it: a simulation lets things go wrong there as it
//! does at calls to libvirt.

use std::future::Future;

use crate::gate::{Gate, Moment, Pass};

/// One kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileCall {
    /// Source: all files are sent and verified.
    Send,
    /// Destination: one file is received, and read back.
    Receive,
    /// Destination: one file gets its name.
    Name,
    /// Destination: one file that came is removed.
    Remove,
    /// Source: one file is put away, after its guest has moved.
    PutAway,
}

impl FileCall {
    /// Every kind. A test below proves that none is missing.
    pub const ALL: [Self; 5] = [Self::Send, Self::Receive, Self::Name, Self::Remove, Self::PutAway];

    /// What a gate is asked with.
    pub fn name(self) -> &'static str {
        match self {
            Self::Send => "files.send",
            Self::Receive => "files.receive",
            Self::Name => "files.name",
            Self::Remove => "files.remove",
            Self::PutAway => "files.put-away",
        }
    }

    #[cfg(test)]
    fn place(self) -> usize {
        match self {
            Self::Send => 0,
            Self::Receive => 1,
            Self::Name => 2,
            Self::Remove => 3,
            Self::PutAway => 4,
        }
    }

    /// Does it; `stopped` is what the caller gets where somebody wants it so.
    pub(crate) async fn through<T, E>(
        self,
        gate: &Gate,
        stopped: impl FnOnce(Stopped) -> E,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        match gate.ask(self.name(), Moment::Before).await {
            Pass::Go => {}
            Pass::Refuse => return Err(stopped(Stopped::Refused)),
            Pass::Lose => return Err(stopped(Stopped::Lost)),
        }
        let done = work.await;
        match gate.ask(self.name(), Moment::After).await {
            Pass::Go => done,
            Pass::Refuse | Pass::Lose => Err(stopped(Stopped::Lost)),
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stopped {
    Refused,
    Lost,
}

impl From<Stopped> for std::io::Error {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::Refused => Self::other("refused by the simulation"),
            Stopped::Lost => Self::from(std::io::ErrorKind::ConnectionReset),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A new kind does not compile before it has a place, and its place is in the list.
    #[test]
    fn every_kind_is_in_the_list() {
        for (place, call) in FileCall::ALL.into_iter().enumerate() {
            assert_eq!(call.place(), place, "{call:?}");
        }
    }
}
