//! One state of the model: everything that is true at one moment. Small, and compared as a whole.

use drover_agent::journal::{Decision, DestinationState, SourceState};
use drover_controller::saga::{Phase, Position};
use drover_controller::verdict;

/// Everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub source: Source,
    pub destination: Destination,
    pub controller: Controller,
    /// What was ever sent: it may arrive at any time, again and again, or never.
    pub sent: Mail,
    /// Faults that may still happen.
    pub faults: u8,
    /// The guest was told to run at the destination, and did.
    pub ran: bool,
    /// The source's copy was removed before it had run anywhere else.
    pub removed_too_early: bool,
}

/// The guest's copy at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceCopy {
    Running,
    /// Its CPUs are stopped.
    Still,
    Gone,
    /// Another life of it, started with its host.
    Anew,
}

/// libvirt's job at the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Job {
    None,
    Begun,
    Performing,
    /// The guest is stopped, the last of it is on its way.
    LastRound,
    Sent,
    /// Perform has failed while libvirtd was going down: its successor will resume what it had stopped.
    Dangling,
}

/// What the source's agent knows of its transfer, in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transfer {
    NotStarted,
    Performing,
    /// Perform succeeded: HandedOver is about to be written, or is.
    HandingOver,
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceJournal {
    None,
    /// An undo came before Begin.
    Nothing,
    Part(SourceState),
}

/// What the source's agent is in the middle of, with the migration's lock held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceWork {
    Idle,
    /// Sending is written.
    Beginning,
    /// NeverRan is written.
    GivingBack,
    /// Ran is written.
    Removing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    pub copy: SourceCopy,
    pub autostart: bool,
    pub job: Job,
    pub up: bool,
    /// Another agent than the one that took the job lock.
    pub restarted: bool,
    pub transfer: Transfer,
    /// Perform's outcome, in memory.
    pub outcome: Option<bool>,
    /// The tries to hand over are called off.
    pub give_up: bool,
    pub work: SourceWork,
    pub journal: SourceJournal,
    pub tombstoned: bool,
    pub decision: Decision,
    /// Its agent saw that the copy ran after it was handed over; in its journal.
    pub ran_on: bool,
    /// The truth of that: its memory is newer than what was sent.
    pub newer: bool,
}

/// How much of the memory has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    Nothing,
    Some,
    All,
}

/// The guest's copy at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationCopy {
    Absent,
    Waiting(Stream),
    /// Finish is through: in place, and still.
    Placed,
    Running,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationJournal {
    None,
    Nothing,
    Part(DestinationState),
}

/// What the destination's agent is in the middle of, with the migration's lock held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationWork {
    Idle,
    /// Waiting is written.
    Preparing,
    /// Finishing is written, Finish is called.
    Finishing,
    /// Finish has failed and the copy is gone.
    Failing,
    /// Finish is through, Resuming is not written.
    Finished,
    /// Resuming is written.
    Resuming,
    /// It runs, Ran is not written.
    Resumed,
    /// Revoked is written.
    Dropping,
    /// NeverRan is written.
    Discarding,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    pub copy: DestinationCopy,
    /// The agent holds the waiting copy's connection.
    pub handle: bool,
    pub up: bool,
    pub work: DestinationWork,
    pub journal: DestinationJournal,
    pub tombstoned: bool,
    pub decision: Decision,
}

/// What the controller waits for within a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Look,
    AwaitBegin,
    AwaitPrepare,
    AwaitAbort,
    AwaitRevoke,
    AwaitSource,
    AwaitDestination,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Controller {
    pub position: Position,
    pub step: Step,
    pub prepared: bool,
    /// What it saw last, and perhaps not at the same time.
    pub source: Option<verdict::Seen<verdict::Source>>,
    pub destination: Option<verdict::Seen<verdict::Destination>>,
}

/// Commands, and the source agent's word to the destination's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Letter {
    Begin,
    Prepare,
    Start,
    /// From agent to agent.
    HandOverGuest,
    /// From the controller to the source.
    HandOver,
    FinishIncoming,
    Abort,
    Revoke,
    SourceNeverRan,
    SourceRan,
    DestinationNeverRan,
    DestinationRan,
}

impl Letter {
    pub const ALL: [Self; 12] = [
        Self::Begin,
        Self::Prepare,
        Self::Start,
        Self::HandOverGuest,
        Self::HandOver,
        Self::FinishIncoming,
        Self::Abort,
        Self::Revoke,
        Self::SourceNeverRan,
        Self::SourceRan,
        Self::DestinationNeverRan,
        Self::DestinationRan,
    ];
}

/// A set of letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mail(u16);

impl Mail {
    pub fn holds(self, letter: Letter) -> bool {
        self.0 & 1 << letter as u16 != 0
    }

    pub fn add(&mut self, letter: Letter) {
        self.0 |= 1 << letter as u16;
    }
}

impl State {
    /// Validate is done: the guest runs at the source, nobody knows of a migration.
    pub fn first(faults: u8) -> Self {
        Self {
            source: Source {
                copy: SourceCopy::Running,
                autostart: true,
                job: Job::None,
                up: true,
                restarted: false,
                transfer: Transfer::NotStarted,
                outcome: None,
                give_up: false,
                work: SourceWork::Idle,
                journal: SourceJournal::None,
                tombstoned: false,
                decision: Decision::Open,
                ran_on: false,
                newer: false,
            },
            destination: Destination {
                copy: DestinationCopy::Absent,
                handle: false,
                up: true,
                work: DestinationWork::Idle,
                journal: DestinationJournal::None,
                tombstoned: false,
                decision: Decision::Open,
            },
            controller: Controller {
                position: Position::At(Phase::Prepare),
                step: Step::Look,
                prepared: false,
                source: None,
                destination: None,
            },
            sent: Mail::default(),
            faults,
            ran: false,
            removed_too_early: false,
        }
    }

    /// What must never be, if it is.
    pub fn wrong(&self) -> Option<&'static str> {
        let source_runs = matches!(self.source.copy, SourceCopy::Running | SourceCopy::Anew);
        let destination_runs = self.destination.copy == DestinationCopy::Running;
        if source_runs && destination_runs {
            return Some("two copies run");
        }
        if source_runs && self.ran {
            return Some("the source runs after the destination ran");
        }
        if destination_runs && self.source.newer {
            return Some("old memory runs over newer disks");
        }
        if self.removed_too_early {
            return Some("the only copy was removed");
        }
        None
    }

    /// A migration that has come to its rest for good.
    pub fn rests(&self) -> bool {
        self.controller.position.is_final()
    }

    /// The one case that nobody can decide: the destination died between Resuming and Ran, and the copy is gone.
    pub fn is_undecidable(&self) -> bool {
        self.destination.journal == DestinationJournal::Part(DestinationState::Resuming)
            && self.destination.copy == DestinationCopy::Absent
    }
}
