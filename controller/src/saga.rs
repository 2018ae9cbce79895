//! The saga: in which order a migration goes, and where it goes from each step.
//!
//! ```text
//!  Validate ──▶ Prepare ──▶ Transfer ══╪══▶ Verify ──▶ Finalize ──▶ Migrated
//!     │            │          │  ▲     │      │           │
//!     │            ▼          ▼  │     │      ▼           ▼
//!     │          Abort ◀──────┘  │     │  Stuck(Verify) Stuck(Finalize)
//!     │            │ └───────────┘     │
//!     ▼            ▼   too late: ran   └ point of no return
//! RolledBack ◀── Discard ──▶ Stuck(Discard)        (and GuestEnded, from Discard or Finalize)
//! ```
//!
//! Only decisions: no clock, no I/O, nothing that waits. The doing is in `phases/`, the order of writing
//! down and doing in `executor`, and who may run the guest is asked in `verdict`.
//!
//! Promise: after the point of no return no path leads to `RolledBack`; a lost answer (`Unknown`) never
//! moves a migration anywhere; a guest's place in the store is free only at an [`End`].

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// One step. Each looks first and acts on the difference, so that a repeat is harmless.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Promise: both hosts can do it; nothing was changed.
    Validate,
    /// Promise: the destination waits for the guest, the source holds its job lock.
    Prepare,
    /// Promise: the destination's journal says Ran.
    Transfer,
    /// Promise: the source copy is removed, the destination has the guest.
    Verify,
    /// Promise: the source has forgotten the guest, nothing is left over.
    Finalize,
    /// Promise: verdict NeverRan; no job or lock on the source, its state and autostart as before.
    Abort,
    /// Promise: the destination holds nothing of the guest.
    Discard,
}

/// Where a migration came to rest for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// The guest is at the destination.
    Migrated,
    /// The guest is at the source, as it was before.
    RolledBack,
    /// The guest ended by itself meanwhile.
    GuestEnded,
}

/// A phase that was refused and can only be tried again when an operator says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stuck {
    Verify,
    Finalize,
    Discard,
}

/// Where a migration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Position {
    /// Being worked on.
    At(Phase),
    /// Waiting for an operator; keeps the guest's unique place.
    Stuck(Stuck),
    /// At rest.
    Ended(End),
}

/// How an attempt at a phase came out. "Still going on" is not an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It is so, now or since an earlier attempt.
    Done(Guest),
    /// It is not so and no repeat will make it so, by the evidence of the side that would know.
    /// For [`Phase::Abort`] this is "too late": the guest has run at the destination, or must.
    Refused,
    /// A deadline, a lost connection, a restart: look again.
    Unknown,
}

/// What became of the guest, as seen by the phase that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Guest {
    Lives,
    /// It shut down, crashed or was destroyed while it was being moved.
    Ended,
}

/// Where a migration goes from a phase with an outcome. The whole table of the design, and nothing else.
pub fn next(phase: Phase, outcome: Outcome) -> Position {
    use Guest::{Ended, Lives};
    use Outcome::{Done, Refused, Unknown};
    use Position::At;
    match (phase, outcome) {
        (Phase::Validate, Done(Lives | Ended)) => At(Phase::Prepare),
        (Phase::Validate, Refused) => Position::Ended(End::RolledBack),

        (Phase::Prepare, Done(Lives | Ended)) => At(Phase::Transfer),
        (Phase::Prepare, Refused) => At(Phase::Abort),

        (Phase::Transfer, Done(Lives | Ended)) => At(Phase::Verify),
        (Phase::Transfer, Refused) => At(Phase::Abort),

        (Phase::Verify, Done(Lives | Ended)) => At(Phase::Finalize),
        (Phase::Verify, Refused) => Position::Stuck(Stuck::Verify),

        (Phase::Finalize, Done(Lives)) => Position::Ended(End::Migrated),
        (Phase::Finalize, Done(Ended)) => Position::Ended(End::GuestEnded),
        (Phase::Finalize, Refused) => Position::Stuck(Stuck::Finalize),

        (Phase::Abort, Done(Lives | Ended)) => At(Phase::Discard),
        (Phase::Abort, Refused) => At(Phase::Transfer),

        (Phase::Discard, Done(Lives)) => Position::Ended(End::RolledBack),
        (Phase::Discard, Done(Ended)) => Position::Ended(End::GuestEnded),
        (Phase::Discard, Refused) => Position::Stuck(Stuck::Discard),

        (again, Unknown) => At(again),
    }
}

/// What a wish to cancel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cancel {
    /// Go there instead of going on.
    GoTo(Position),
    /// It is being undone already.
    Undoing,
    /// The guest belongs to the destination, or the migration is at rest: recorded, and nothing else.
    TooLate,
}

/// What becomes of a migration that is asked to stop.
pub fn cancel(position: Position) -> Cancel {
    match position {
        Position::At(Phase::Validate) => Cancel::GoTo(Position::Ended(End::RolledBack)),
        Position::At(Phase::Prepare | Phase::Transfer) => Cancel::GoTo(Position::At(Phase::Abort)),
        Position::At(Phase::Abort | Phase::Discard) | Position::Stuck(Stuck::Discard) => Cancel::Undoing,
        Position::At(Phase::Verify | Phase::Finalize)
        | Position::Stuck(Stuck::Verify | Stuck::Finalize)
        | Position::Ended(End::Migrated | End::RolledBack | End::GuestEnded) => Cancel::TooLate,
    }
}

/// The phase that an operator's retry lets work again.
pub fn retry(stuck: Stuck) -> Phase {
    match stuck {
        Stuck::Verify => Phase::Verify,
        Stuck::Finalize => Phase::Finalize,
        Stuck::Discard => Phase::Discard,
    }
}

/// So many answers may be missing in a row before a person is asked to look.
pub const PATIENCE: u32 = 8;

/// How to go on after missing answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How long to wait before looking again.
    pub delay: Duration,
    /// Whether the migration asks for attention meanwhile. It never guesses, and never stops looking.
    pub attention: bool,
}

/// How to go on after `unknowns` missing answers in a row: quickly at first, at a slow pace for ever after.
pub fn pace(unknowns: u32) -> Pace {
    const FIRST: Duration = Duration::from_millis(250);
    const LONGEST: Duration = Duration::from_secs(15);
    const SLOW: Duration = Duration::from_secs(30);
    if unknowns >= PATIENCE {
        return Pace {
            delay: SLOW,
            attention: true,
        };
    }
    let doubled = 1_u32 << unknowns.saturating_sub(1);
    Pace {
        delay: (FIRST * doubled).min(LONGEST),
        attention: false,
    }
}

impl Phase {
    pub const ALL: [Self; 7] = [
        Self::Validate,
        Self::Prepare,
        Self::Transfer,
        Self::Verify,
        Self::Finalize,
        Self::Abort,
        Self::Discard,
    ];

    /// The word in the store, in logs and in traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::Validate => "validate",
            Self::Prepare => "prepare",
            Self::Transfer => "transfer",
            Self::Verify => "verify",
            Self::Finalize => "finalize",
            Self::Abort => "abort",
            Self::Discard => "discard",
        }
    }
}

impl Position {
    /// Every position there is.
    pub fn all() -> impl Iterator<Item = Self> {
        let stuck = [Stuck::Verify, Stuck::Finalize, Stuck::Discard].map(Self::Stuck);
        let ends = [End::Migrated, End::RolledBack, End::GuestEnded].map(Self::Ended);
        Phase::ALL.map(Self::At).into_iter().chain(stuck).chain(ends)
    }

    /// The word in the store.
    pub fn name(self) -> &'static str {
        match self {
            Self::At(phase) => phase.name(),
            Self::Stuck(Stuck::Verify) => "stuck-verify",
            Self::Stuck(Stuck::Finalize) => "stuck-finalize",
            Self::Stuck(Stuck::Discard) => "stuck-discard",
            Self::Ended(End::Migrated) => "migrated",
            Self::Ended(End::RolledBack) => "rolled-back",
            Self::Ended(End::GuestEnded) => "guest-ended",
        }
    }

    /// Whether the guest's unique place is free again.
    pub fn is_final(self) -> bool {
        match self {
            Self::Ended(End::Migrated | End::RolledBack | End::GuestEnded) => true,
            Self::At(_) | Self::Stuck(_) => false,
        }
    }
}

/// A word that names no phase or position: the store was written by another version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a position of the saga")]
pub struct NoSuchPosition(pub String);

impl FromStr for Position {
    type Err = NoSuchPosition;

    fn from_str(word: &str) -> Result<Self, NoSuchPosition> {
        Self::all()
            .find(|position| position.name() == word)
            .ok_or_else(|| NoSuchPosition(word.to_owned()))
    }
}

impl FromStr for Phase {
    type Err = NoSuchPosition;

    fn from_str(word: &str) -> Result<Self, NoSuchPosition> {
        Self::ALL
            .into_iter()
            .find(|phase| phase.name() == word)
            .ok_or_else(|| NoSuchPosition(word.to_owned()))
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests;
