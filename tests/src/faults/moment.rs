//! The moments of a migration at which something breaks.

use std::fmt;

use super::Role;

/// A moment, in the order of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// The source has begun, a copy waits at the destination, nobody was told.
    Preparing,
    /// Memory is being sent for the first time.
    EarlyTransfer,
    /// Memory is being sent again, and again.
    LateTransfer,
    /// The guest stands still, all is sent, HandedOver is written; Finish was not asked for.
    AllSent,
    /// Finishing is written, Finish was not called.
    Finishing,
    /// Finish is through, the guest stands still at the destination; Resuming is written, it was not told to run.
    Resuming,
    /// The guest runs at the destination, and that is not written.
    Running,
    /// The guest runs at the destination and that is written; the source's agent has no answer.
    Finished,
    /// The source's agent knows; its copy is still there.
    Confirming,
    /// Nothing is left but to tidy up.
    Finalizing,
}

/// How a moment is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// A fault point of the agent on this side.
    Agent(Role, &'static str),
    /// A fault point of the controller.
    Controller(&'static str),
    /// A slow link and a guest that dirties faster: memory is sent for so many rounds and longer.
    Rounds(u64),
}

impl Moment {
    pub const ALL: [Moment; 10] = [
        Moment::Preparing,
        Moment::EarlyTransfer,
        Moment::LateTransfer,
        Moment::AllSent,
        Moment::Finishing,
        Moment::Resuming,
        Moment::Running,
        Moment::Finished,
        Moment::Confirming,
        Moment::Finalizing,
    ];

    /// The names of points are the product's; a test compares them.
    pub fn hold(self) -> Hold {
        match self {
            Moment::Preparing => Hold::Agent(Role::Destination, "destination.prepared"),
            Moment::EarlyTransfer => Hold::Rounds(0),
            Moment::LateTransfer => Hold::Rounds(2),
            Moment::AllSent => Hold::Agent(Role::Source, "source.handed-over"),
            Moment::Finishing => Hold::Agent(Role::Destination, "destination.finishing"),
            Moment::Resuming => Hold::Agent(Role::Destination, "destination.resuming"),
            Moment::Running => Hold::Agent(Role::Destination, "destination.resumed"),
            Moment::Finished => Hold::Agent(Role::Destination, "destination.ran"),
            Moment::Confirming => Hold::Agent(Role::Source, "source.confirming"),
            Moment::Finalizing => Hold::Controller("controller.finalize-started"),
        }
    }

    /// The fault point that holds it, if one does.
    pub fn point(self) -> Option<&'static str> {
        match self.hold() {
            Hold::Agent(_, point) | Hold::Controller(point) => Some(point),
            Hold::Rounds(_) => None,
        }
    }

    /// Memory is on its way.
    pub fn is_transfer(self) -> bool {
        matches!(self, Moment::EarlyTransfer | Moment::LateTransfer)
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Moment::Preparing => "preparing",
            Moment::EarlyTransfer => "early transfer",
            Moment::LateTransfer => "late transfer",
            Moment::AllSent => "all sent, before Finish",
            Moment::Finishing => "Finishing is written",
            Moment::Resuming => "Resuming is written",
            Moment::Running => "runs, Ran is not written",
            Moment::Finished => "between Finish and its answer",
            Moment::Confirming => "between Finish and Confirm",
            Moment::Finalizing => "finalizing",
        })
    }
}
