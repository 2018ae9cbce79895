//! Deciding what a journal may become: pure functions, no clock, no I/O.
//!
//! ```text
//!  source        Sending ──▶ HandedOver
//!
//!  destination   Waiting ──▶ Finishing ──▶ Resuming ──▶ Ran
//!                   │            │  └────────(arrives paused)──▶ Ran
//!                   ▼            ▼
//!                Revoked       Failed
//! ```
//!
//! Promise: `Revoked`, `Failed` and `Ran` are final, and no state after `Waiting` can be revoked. Who may run the
//! guest follows from these records alone, so nothing outside this file changes a state.

use serde::{Deserialize, Serialize};

/// How far the source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SourceState {
    /// From before Begin until all is sent.
    Sending,
    /// Perform succeeded; the destination may have been told that the guest is its own.
    HandedOver,
}

/// How far the destination is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DestinationState {
    /// From before Prepare.
    Waiting,
    /// Finish may have been called; the guest was not told to run.
    Finishing,
    /// The guest may have been told to run.
    Resuming,
    /// The guest runs, or ran, here.
    Ran,
    /// It will never run by this migration.
    Revoked,
    /// Finish failed before the guest could run.
    Failed,
}

/// Who may run the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// It never ran at the destination: it belongs to the source.
    NeverRan,
    /// It ran at the destination: the source's copy goes.
    Ran,
}

/// What became of a verdict. It is journaled before it is acted upon, and once more when that is done: a late
/// repeat must not act on what the guest has become since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Decision {
    /// Nobody starts or resumes a copy.
    Open,
    /// Written, perhaps not carried out yet.
    Decided(Verdict),
    /// Carried out.
    Settled(Verdict),
}

/// A change that the record forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// An undo was ordered before.
    #[error("this try of the migration was undone")]
    Tombstoned,
    /// The journal says that the guest never ran here and never will by this migration.
    #[error("the guest never ran at the destination")]
    NeverRan,
    /// The guest ran, or may have run, here.
    #[error("the guest ran, or may have run, at the destination")]
    MayHaveRun,
    /// A verdict was journaled that says otherwise.
    #[error("another verdict was journaled before")]
    Decided,
    /// The step before was not made.
    #[error("the step before it was not made")]
    TooEarly,
    /// The memory of the guest lies on both hosts.
    #[error("the guest is in post-copy")]
    PostCopy,
}

/// What to do about a state that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<State> {
    /// Write this, then act.
    Write(State),
    /// It is so already.
    Already,
}

/// What a request to finish has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishStep {
    /// Write `Finishing` (`Resuming` where the migration may go post-copy), then call Finish, once.
    Finish(DestinationState),
    /// Finish was called before: join it, or go on from what libvirt shows.
    Join,
    /// It ran: answer with what was journaled.
    Ran,
}

impl SourceState {
    /// Before any hand-over leaves.
    pub fn hand_over(self, tombstoned: bool, decision: Decision) -> Result<Step<Self>, Forbidden> {
        match (tombstoned, decision) {
            (true, _) => Err(Forbidden::Tombstoned),
            (false, Decision::Decided(_) | Decision::Settled(_)) => Err(Forbidden::Decided),
            (false, Decision::Open) => Ok(match self {
                Self::Sending => Step::Write(Self::HandedOver),
                Self::HandedOver => Step::Already,
            }),
        }
    }
}

impl DestinationState {
    /// The source, or the controller in its place, says that all is sent.
    pub fn finish(self, post_copy: bool) -> Result<FinishStep, Forbidden> {
        match self {
            Self::Waiting if post_copy => Ok(FinishStep::Finish(Self::Resuming)),
            Self::Waiting => Ok(FinishStep::Finish(Self::Finishing)),
            Self::Finishing | Self::Resuming => Ok(FinishStep::Join),
            Self::Ran => Ok(FinishStep::Ran),
            Self::Revoked | Self::Failed => Err(Forbidden::NeverRan),
        }
    }

    /// Before the guest is told to run.
    pub fn resume(self) -> Result<Step<Self>, Forbidden> {
        match self {
            Self::Finishing => Ok(Step::Write(Self::Resuming)),
            Self::Resuming | Self::Ran => Ok(Step::Already),
            Self::Waiting => Err(Forbidden::TooEarly),
            Self::Revoked | Self::Failed => Err(Forbidden::NeverRan),
        }
    }

    /// The guest was told to run and does, or arrived as still as it was.
    pub fn ran(self, arrives_paused: bool) -> Result<Step<Self>, Forbidden> {
        match self {
            Self::Resuming => Ok(Step::Write(Self::Ran)),
            Self::Finishing if arrives_paused => Ok(Step::Write(Self::Ran)),
            Self::Ran => Ok(Step::Already),
            Self::Waiting | Self::Finishing => Err(Forbidden::TooEarly),
            Self::Revoked | Self::Failed => Err(Forbidden::NeverRan),
        }
    }

    /// Finish failed and the copy is gone.
    pub fn fail(self) -> Result<Step<Self>, Forbidden> {
        match self {
            Self::Finishing => Ok(Step::Write(Self::Failed)),
            Self::Failed | Self::Revoked => Ok(Step::Already),
            Self::Waiting => Err(Forbidden::TooEarly),
            Self::Resuming | Self::Ran => Err(Forbidden::MayHaveRun),
        }
    }

    /// Nobody shall finish it any more.
    pub fn revoke(self) -> Result<Step<Self>, Forbidden> {
        match self {
            Self::Waiting => Ok(Step::Write(Self::Revoked)),
            Self::Revoked | Self::Failed => Ok(Step::Already),
            Self::Finishing | Self::Resuming | Self::Ran => Err(Forbidden::MayHaveRun),
        }
    }

    /// Whether this record agrees with a verdict.
    pub fn agrees(self, verdict: Verdict) -> Result<(), Forbidden> {
        match (self, verdict) {
            (Self::Revoked | Self::Failed, Verdict::NeverRan) | (Self::Ran, Verdict::Ran) => Ok(()),
            (Self::Ran | Self::Resuming | Self::Finishing, Verdict::NeverRan) => Err(Forbidden::MayHaveRun),
            (Self::Revoked | Self::Failed, Verdict::Ran) => Err(Forbidden::NeverRan),
            (Self::Waiting, _) | (Self::Finishing | Self::Resuming, Verdict::Ran) => Err(Forbidden::TooEarly),
        }
    }
}

impl Decision {
    /// The verdict, carried out or not.
    pub fn verdict(self) -> Option<Verdict> {
        match self {
            Self::Open => None,
            Self::Decided(verdict) | Self::Settled(verdict) => Some(verdict),
        }
    }

    /// A verdict is to be journaled: the same one again is fine, another one is not.
    pub fn decide(self, verdict: Verdict) -> Result<Step<Self>, Forbidden> {
        match self {
            Self::Open => Ok(Step::Write(Self::Decided(verdict))),
            Self::Decided(earlier) | Self::Settled(earlier) if earlier == verdict => Ok(Step::Already),
            Self::Decided(_) | Self::Settled(_) => Err(Forbidden::Decided),
        }
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "sequences_tests.rs"]
mod sequences;
