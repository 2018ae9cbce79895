//! What a record's state is called in the API: follows from where it is in the saga and what it waits for.

use drover_proto::v1::{MigrationPhase, MigrationState, PhaseOutcome};

use crate::saga::{End, PATIENCE, Phase, Position};
use crate::store::{Record, StepOutcome};

/// What a migration waits for, as in `WaitingFor.reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitReason {
    HostUnreachable,
    ResolveNeeded,
    RetryNeeded,
    Backoff,
}

impl WaitReason {
    pub const ALL: [Self; 4] = [
        Self::HostUnreachable,
        Self::ResolveNeeded,
        Self::RetryNeeded,
        Self::Backoff,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::HostUnreachable => "HOST_UNREACHABLE",
            Self::ResolveNeeded => "RESOLVE_NEEDED",
            Self::RetryNeeded => "RETRY_NEEDED",
            Self::Backoff => "BACKOFF",
        }
    }

    /// Whether only a person can end the wait.
    pub fn needs_a_person(self) -> bool {
        match self {
            Self::ResolveNeeded | Self::RetryNeeded => true,
            Self::HostUnreachable | Self::Backoff => false,
        }
    }
}

/// The state of a record.
pub fn of(record: &Record) -> MigrationState {
    match record.position {
        Position::Ended(End::Migrated) => MigrationState::Succeeded,
        Position::Ended(End::GuestEnded) => MigrationState::GuestEnded,
        Position::Ended(End::RolledBack) if is_cancelled(record) => MigrationState::Cancelled,
        Position::Ended(End::RolledBack) => MigrationState::Failed,
        Position::Stuck(_) => MigrationState::AttentionRequired,
        Position::At(_) if asks_for_attention(record) => MigrationState::AttentionRequired,
        Position::At(_) if is_cancelled(record) && !record.too_late => MigrationState::Cancelling,
        Position::At(_) if record.started.is_none() => MigrationState::Queued,
        Position::At(_) => MigrationState::Running,
    }
}

/// It is undone because somebody asked, not because it failed before.
fn is_cancelled(record: &Record) -> bool {
    record.cancel_requested.is_some() && record.details.error.is_none()
}

fn asks_for_attention(record: &Record) -> bool {
    let reason = record
        .details
        .waiting_for
        .as_ref()
        .map_or("", |waiting| waiting.reason.as_str());
    let needs_a_person = [WaitReason::ResolveNeeded, WaitReason::RetryNeeded]
        .iter()
        .any(|of| of.name() == reason);
    needs_a_person || record.unknowns >= PATIENCE
}

/// A phase as the API names it.
pub fn phase(phase: Phase) -> MigrationPhase {
    match phase {
        Phase::Validate => MigrationPhase::Validate,
        Phase::Prepare => MigrationPhase::Prepare,
        Phase::Transfer => MigrationPhase::Transfer,
        Phase::Verify => MigrationPhase::Verify,
        Phase::Finalize => MigrationPhase::Finalize,
        Phase::Abort => MigrationPhase::Abort,
        Phase::Discard => MigrationPhase::Discard,
    }
}

/// The outcome of a step as the API names it.
pub fn outcome(outcome: StepOutcome) -> PhaseOutcome {
    match outcome {
        StepOutcome::Done => PhaseOutcome::Done,
        StepOutcome::Refused => PhaseOutcome::Refused,
        StepOutcome::Unknown => PhaseOutcome::Unknown,
        StepOutcome::Interrupted => PhaseOutcome::Interrupted,
    }
}
