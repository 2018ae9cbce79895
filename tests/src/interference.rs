//! Somebody works on a guest with `virsh` while Drover moves it: what, where, when, and how it has to end.

use std::fmt;

use crate::faults::{Moment, Role};

/// What somebody does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    Destroy,
    Shutdown,
    Suspend,
    Resume,
    /// Moves it by hand, to the other host.
    Migrate,
    Undefine,
    Rename,
    /// Changes its persistent definition.
    Edit,
}

/// A deed on one side at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    pub deed: Deed,
    pub side: Role,
    pub moment: Moment,
}

/// Those within Finish last milliseconds, and nobody works with virsh in them.
const MOMENTS: [Moment; 7] = [
    Moment::Preparing,
    Moment::EarlyTransfer,
    Moment::LateTransfer,
    Moment::AllSent,
    Moment::Finished,
    Moment::Confirming,
    Moment::Finalizing,
];

/// How a case has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It runs at the destination, and nobody notices anything.
    Moved,
    /// It stands still at the destination, as its user wished.
    MovedPaused,
    /// It is at the destination without a definition.
    MovedTransient,
    /// It is at the destination with the newer definition.
    MovedEdited,
    /// It runs on at the source.
    Stayed,
    /// It runs nowhere; its definition is on one host.
    Ended,
    /// Back at the source by its user's hand, and the record says so.
    BroughtBack,
}

impl Deed {
    pub const ALL: [Deed; 8] = [
        Deed::Destroy,
        Deed::Shutdown,
        Deed::Suspend,
        Deed::Resume,
        Deed::Migrate,
        Deed::Undefine,
        Deed::Rename,
        Deed::Edit,
    ];
}

impl Case {
    /// All of them.
    pub fn all() -> Vec<Case> {
        let mut all = Vec::new();
        for deed in Deed::ALL {
            for side in [Role::Source, Role::Destination] {
                all.extend(MOMENTS.map(|moment| Case { deed, side, moment }));
            }
        }
        all
    }

    /// The ends that are right. What libvirt refuses, because the agents hold its job lock, changes nothing.
    pub fn expected(self) -> &'static [End] {
        match self.side {
            Role::Source => self.at_source(),
            Role::Destination => self.at_destination(),
        }
    }

    fn at_source(self) -> &'static [End] {
        let sending = self.moment < Moment::AllSent;
        let here = self.moment < Moment::Finalizing;
        match self.deed {
            Deed::Destroy if sending => &[End::Ended],
            // Its CPUs stand still already once all is sent: nobody can tell this stop from the migration's own.
            Deed::Suspend if sending => &[End::MovedPaused],
            Deed::Edit if here => &[End::MovedEdited],
            Deed::Destroy
            | Deed::Shutdown
            | Deed::Suspend
            | Deed::Resume
            | Deed::Migrate
            | Deed::Undefine
            | Deed::Rename
            | Deed::Edit => &[End::Moved],
        }
    }

    fn at_destination(self) -> &'static [End] {
        let arrived = self.moment > Moment::AllSent;
        match self.deed {
            // libvirt has no running guest to shut down before.
            Deed::Destroy | Deed::Shutdown if arrived => &[End::Ended],
            Deed::Destroy if self.moment == Moment::Preparing => &[End::Moved, End::Stayed],
            Deed::Destroy => &[End::Stayed],
            Deed::Suspend if arrived => &[End::MovedPaused],
            // Until Finalize one that is missing counts as lost on the way.
            Deed::Undefine if arrived => &[End::Moved],
            Deed::Edit if arrived => &[End::MovedEdited],
            // Before that the old copy is in its way.
            Deed::Migrate if self.moment == Moment::Finalizing => &[End::BroughtBack],
            Deed::Shutdown
            | Deed::Suspend
            | Deed::Resume
            | Deed::Migrate
            | Deed::Undefine
            | Deed::Rename
            | Deed::Edit => &[End::Moved],
        }
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Deed::Destroy => "destroy",
            Deed::Shutdown => "shutdown",
            Deed::Suspend => "suspend",
            Deed::Resume => "resume",
            Deed::Migrate => "migrate",
            Deed::Undefine => "undefine",
            Deed::Rename => "domrename",
            Deed::Edit => "edit",
        })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "virsh {} at the {}, {}", self.deed, self.side, self.moment)
    }
}

mod explained;
mod play;

pub use play::{Seen, run_all};
