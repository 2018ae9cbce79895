//! What goes wrong in one world, and when.

use std::fmt;
use std::time::Duration;

use super::fault::{Fault, Outage, SHORT};
use drover_agent::offline::calls::FileCall;
use drover_agent::sim::Call;

use super::point::{Moment, Point, Site};

/// When it happens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum When {
    At(Point, Moment),
    /// At the call with this number, of all calls of the world: for schedules that are drawn blindly.
    Crossing(u32),
}

/// One fault at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    pub when: When,
    pub fault: Fault,
    /// After so long everything is back.
    pub outage: Outage,
    /// The call that met it waits for so long, where it goes on.
    pub hold: Duration,
    /// What is cut falls silent instead: nothing ends, nothing is refused, and all of it arrives when it is over.
    pub silent: bool,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.when {
            When::At(point, Moment::Before) => write!(f, "before {point}")?,
            When::At(point, Moment::After) => write!(f, "after {point}")?,
            When::Crossing(number) => write!(f, "at call {number}")?,
        }
        write!(f, ": {}", self.fault)?;
        if self.silent {
            f.write_str(" silently")?;
        }
        if self.outage != SHORT || !self.hold.is_zero() {
            write!(
                f,
                " ({} ms, held {} ms)",
                self.outage.as_millis(),
                self.hold.as_millis()
            )?;
        }
        Ok(())
    }
}

/// What the user wants, before anything goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scenario {
    /// A running guest with autostart moves.
    Move,
    /// A guest that its user paused moves, and arrives as still.
    MovePaused,
    /// A transient guest moves.
    MoveTransient,
    /// The move is cancelled while memory is sent.
    Undo,
    /// All is sent, the source agent dies before it hands over: the controller has it handed over.
    HandOver,
    /// All is sent and handed over, then the source host is gone for a while: the destination finishes in its place.
    Finish,
    /// A guest that is shut off moves with its files.
    MoveOffline,
    /// The same, cancelled when one of its files has come.
    UndoOffline,
    /// A guest that does not converge goes over, and its pages follow.
    PostCopy,
    /// The same, and the stream breaks when the guest runs there.
    Repair,
    /// A guest that runs is shut down, moves with its files, and is started there.
    MoveShutDown,
    /// The same, cancelled when one of its files has come: it is started where it was.
    UndoShutDown,
    /// The rounds of a busy guest do not shrink: its agent lets QEMU have more of the blackout.
    Raise,
    /// An operator allows a busy guest more while it is sent.
    Adjust,
    /// A busy guest is stopped at its deadline, and the rest is sent.
    PauseAtDeadline,
    /// A busy guest stays where it is when its deadline is over.
    AbortAtDeadline,
}

impl Scenario {
    pub const ALL: [Self; 16] = [
        Self::Move,
        Self::MovePaused,
        Self::MoveTransient,
        Self::Undo,
        Self::HandOver,
        Self::Finish,
        Self::MoveOffline,
        Self::UndoOffline,
        Self::PostCopy,
        Self::Repair,
        Self::MoveShutDown,
        Self::UndoShutDown,
        Self::Raise,
        Self::Adjust,
        Self::PauseAtDeadline,
        Self::AbortAtDeadline,
    ];
}

/// A scenario with what goes wrong in it, in order of no importance: each waits for its own moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    pub scenario: Scenario,
    pub events: Vec<Event>,
    /// Where it was drawn: replays it.
    pub seed: Option<u64>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(seed) = self.seed {
            write!(f, "DROVER_SEED={seed} ")?;
        }
        write!(f, "{:?}", self.scenario)?;
        for event in &self.events {
            write!(f, ", {event}")?;
        }
        Ok(())
    }
}

/// What goes from host to host, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Memory.
    Live,
    /// Memory, and a disk that only the source has: it is copied, and its original removed.
    Copying,
    /// Memory; the guest runs at the destination before all of it is there.
    GoingOver,
    /// Memory, of a guest that writes faster than it is sent, before.
    Busy,
    /// The files of a guest that is shut off.
    Offline,
    /// The same, of a guest that ran before and is to run wherever it ends.
    ShutDown,
}

impl Scenario {
    pub fn way(self) -> Way {
        match self {
            Self::MoveTransient => Way::Live,
            Self::Move | Self::MovePaused | Self::Undo | Self::HandOver | Self::Finish => Way::Copying,
            Self::PostCopy | Self::Repair => Way::GoingOver,
            Self::Raise | Self::Adjust | Self::PauseAtDeadline | Self::AbortAtDeadline => Way::Busy,
            Self::MoveOffline | Self::UndoOffline => Way::Offline,
            Self::MoveShutDown | Self::UndoShutDown => Way::ShutDown,
        }
    }

    pub fn copies(self) -> bool {
        self.way() == Way::Copying
    }

    pub fn goes_over(self) -> bool {
        self.way() == Way::GoingOver
    }

    /// Whether the guest writes faster than anything can be sent.
    pub fn is_busy(self) -> bool {
        matches!(self.way(), Way::GoingOver | Way::Busy)
    }

    /// Whether its files go with the guest.
    pub fn is_offline(self) -> bool {
        matches!(self.way(), Way::Offline | Way::ShutDown)
    }

    pub fn shuts_down(self) -> bool {
        self.way() == Way::ShutDown
    }

    /// What happens in it by itself.
    pub fn events(self) -> Vec<Event> {
        let at = |call: &str, site| {
            When::At(
                Point {
                    phase: "transfer",
                    site,
                    call: call.to_owned(),
                    nth: 0,
                },
                Moment::Before,
            )
        };
        let event = |when, fault, outage, hold| Event {
            when,
            fault,
            outage: Duration::from_millis(outage),
            hold: Duration::from_millis(hold),
            silent: false,
        };
        const HAND_OVER: &str = "/drover.agent.v1.PeerService/HandOverGuest";
        match self {
            Self::Move
            | Self::MovePaused
            | Self::MoveTransient
            | Self::MoveOffline
            | Self::MoveShutDown
            | Self::Raise
            | Self::Adjust
            | Self::PauseAtDeadline
            | Self::AbortAtDeadline
            | Self::PostCopy => Vec::new(),
            Self::UndoOffline | Self::UndoShutDown => vec![Event {
                when: after_first_file(),
                fault: Fault::Cancel,
                outage: Duration::ZERO,
                hold: Duration::from_millis(3000),
                silent: false,
            }],
            Self::Undo => vec![event(at(Call::Sending.name(), Site::Source), Fault::Cancel, 0, 3000)],
            Self::HandOver => vec![event(
                at(HAND_OVER, Site::Destination),
                Fault::AgentDies(Site::Source),
                80,
                0,
            )],
            Self::Finish => vec![event(at(HAND_OVER, Site::Destination), Fault::AgentsCut, 7000, 0)],
            Self::Repair => vec![event(runs_there(), Fault::AgentsCut, 300, 0)],
        }
    }
}

/// The guest runs at the destination, and pages of it are missing.
fn runs_there() -> When {
    When::At(
        Point {
            phase: "transfer",
            site: Site::Destination,
            call: Call::Finishing.name().to_owned(),
            nth: 0,
        },
        Moment::After,
    )
}

/// The first file of a guest that is shut off has come.
fn after_first_file() -> When {
    When::At(
        Point {
            phase: "transfer",
            site: Site::Destination,
            call: FileCall::Receive.name().to_owned(),
            nth: 0,
        },
        Moment::After,
    )
}

impl Event {
    /// A fault at a point that lasts as long as most do.
    pub fn at(point: Point, moment: Moment, fault: Fault) -> Self {
        Self {
            when: When::At(point, moment),
            fault,
            outage: SHORT,
            hold: Duration::ZERO,
            silent: false,
        }
    }
}
