//! The policy on the way: what was adjusted since the attempt began is brought into force at the source.
//!
//! AdjustMigration tells the agent itself; this is for what it could not tell, and for what a restart interrupted.

use std::time::Duration;

use drover_proto::agent::v1::AdjustOutgoingRequest;
use drover_proto::failure::{Failure, Reason};
use drover_proto::time::std_duration;
use drover_proto::v1::{ActionRecord, DeadlineAction};

use super::look::Look;
use super::policy::{is_in_force, transfer_policy};
use super::{Work, merge_actions};
use crate::ledger::Change;
use crate::store::{Record, StepWrite, now};

/// The source's agent keeps the deadline. One that does not, so long after it, is told to give up.
const GRACE: Duration = Duration::from_secs(5);

/// The record as it is now.
pub(super) async fn fresh(work: &Work) -> Result<Record, Failure> {
    let read = work.ledger.store.migration(work.record.id).await;
    let failed = |why: String| Failure::new(Reason::StoreFailed, format!("the record could not be read: {why}"));
    read.map_err(|error| failed(error.to_string()))?
        .ok_or_else(|| failed("it is gone".to_owned()))
}

/// Sees to it that the source keeps to the policy as it is now.
pub(super) async fn bring_into_force(work: &Work, record: &Record, look: &Look) -> Result<(), Failure> {
    // An adopted migration: only its source knows how it was to be done.
    if record.details.policy.is_none() {
        return Ok(());
    }
    let wanted = transfer_policy(record);
    let known = look.source.as_ref().ok().and_then(|status| status.policy);
    if known.is_none_or(|known| is_in_force(&wanted, &known)) {
        return Ok(());
    }
    let source = work.source().await?;
    let request = AdjustOutgoingRequest {
        fence: source.fence()?,
        migration: Some(work.reference()),
        policy: Some(wanted),
    };
    match source.adjust_outgoing(request).await {
        // It came too late for this transfer: how that came out is looked at.
        Err(failure) if failure.is_evidence() && failure.reason != Reason::StaleTerm => Ok(()),
        told => told.map(drop),
    }
}

/// How long the source's agent has to keep the deadline; none where nothing is given up then.
pub(super) fn until_late(record: &Record) -> Option<Duration> {
    let policy = record.details.policy.as_ref()?;
    let ends_otherwise = match policy.on_deadline() {
        DeadlineAction::PauseAndFinish | DeadlineAction::PostCopy => true,
        DeadlineAction::Unspecified | DeadlineAction::Abort => false,
    };
    // What has gone over is not given up any more.
    let switched = record
        .details
        .summary
        .is_some_and(|summary| summary.switch_time.is_some());
    let pauses = ends_otherwise || record.details.pause_and_finish_requested.is_some();
    // One that is shut off cannot be paused: it is given up.
    if switched || (pauses && record.details.offline_plan.is_none()) {
        return None;
    }
    let limit = policy.deadline.as_ref().and_then(std_duration)?.saturating_add(GRACE);
    let since = record.transfer_started.unwrap_or_else(now);
    Some(limit.saturating_sub(now().duration_since(since).unwrap_or_default()))
}

/// What the source's agent did by itself, written down and told when it is heard.
pub(super) async fn acted(work: &Work, action: ActionRecord) -> Result<(), Failure> {
    let told = move |record: &mut Record| {
        let before = record.details.actions.len();
        merge_actions(&mut record.details.actions, std::slice::from_ref(&action));
        if record.details.actions.len() == before {
            return Change::Leave;
        }
        Change::Write(StepWrite::Nothing)
    };
    super::transfer::write(work, told).await
}
