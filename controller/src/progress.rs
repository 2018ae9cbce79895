//! What an attempt makes of a record: pure changes, asked again where somebody else wrote meanwhile.

use std::time::SystemTime;

use drover_proto::ids::HostId;
use drover_proto::time::timestamp;
use drover_proto::trace::SpanId;
use drover_proto::v1;

use crate::ledger::Change;
use crate::phases::{Answer, Report, Wait};
use crate::saga::{self, Cancel, Outcome, Phase, Position};
use crate::state::{self, WaitReason};
use crate::store::{Record, Resolution, Step, StepEnd, StepOutcome, StepWrite, now};
use crate::trace;

/// The beginning of an attempt.
pub struct Start {
    pub number: u32,
    pub phase: Phase,
    pub attempt: u32,
    pub span: SpanId,
}

/// The end of an attempt.
pub struct Finished {
    pub number: u32,
    pub phase: Phase,
    pub went: Went,
}

/// How an attempt went.
pub enum Went {
    Through(Box<Report>),
    /// It was left before it was through; why, for people.
    Left(&'static str),
}

impl Went {
    pub fn outcome(&self) -> StepOutcome {
        match self {
            Self::Left(_) => StepOutcome::Interrupted,
            Self::Through(report) => match report.answer.outcome() {
                Outcome::Done(_) => StepOutcome::Done,
                Outcome::Refused => StepOutcome::Refused,
                Outcome::Unknown => StepOutcome::Unknown,
            },
        }
    }

    pub fn detail(&self) -> &str {
        match self {
            Self::Left(why) => why,
            Self::Through(report) => &report.detail,
        }
    }

    /// The reason of a refusal.
    pub fn reason(&self) -> Option<&str> {
        let Self::Through(report) = self else { return None };
        match &report.answer {
            Answer::Refused(error) => Some(&error.reason),
            Answer::Done(_) | Answer::Unknown(_) => None,
        }
    }
}

/// Which attempt at a phase the next one is.
pub fn attempt_number(steps: &[Step], phase: Phase) -> u32 {
    steps
        .iter()
        .filter(|step| step.phase == phase)
        .map(|step| step.attempt)
        .max()
        .unwrap_or(0)
        + 1
}

/// Whether an attempt can be left in the middle for a cancellation: what undoes it copes with every half of it.
/// Validate is short, and has probe files to remove.
pub fn can_be_left(phase: Phase) -> bool {
    match phase {
        Phase::Prepare | Phase::Transfer => true,
        Phase::Validate | Phase::Verify | Phase::Finalize | Phase::Abort | Phase::Discard => false,
    }
}

/// Where a wish to cancel leads a record that has one; none where it goes on as it is.
pub fn cancel_leads_to(record: &Record) -> Option<Position> {
    if record.cancel_requested.is_none() || record.too_late {
        return None;
    }
    match saga::cancel(record.position) {
        Cancel::GoTo(there) => Some(there),
        Cancel::Undoing | Cancel::TooLate => None,
    }
}

/// Goes where the wish to cancel leads.
pub fn follow_cancel(record: &mut Record) -> Change {
    let Some(there) = cancel_leads_to(record) else {
        return Change::Leave;
    };
    go_to(record, there);
    Change::Write(StepWrite::Nothing)
}

/// Somebody wishes it undone: recorded in any case, and too late where the saga says so.
pub fn request_cancel(record: &mut Record) -> Change {
    // A record at rest says by its state whether the wish came in time.
    if record.cancel_requested.is_some() || record.position.is_final() {
        return Change::Leave;
    }
    match saga::cancel(record.position) {
        Cancel::GoTo(_) | Cancel::Undoing => {}
        Cancel::TooLate => record.too_late = true,
    }
    record.cancel_requested = Some(now());
    Change::Write(StepWrite::Nothing)
}

/// An operator lets a stuck migration work again.
pub fn retry(record: &mut Record) -> Change {
    let Position::Stuck(stuck) = record.position else {
        return Change::Leave;
    };
    let phase = saga::retry(stuck);
    // Why it is undone stays; why it was stuck goes.
    record.details.error = record
        .details
        .error
        .take()
        .filter(|error| error.phase() != state::phase(phase));
    go_to(record, Position::At(phase));
    Change::Write(StepWrite::Nothing)
}

/// An operator's word is written down, where nobody moved the migration since it was weighed. One that is stuck goes
/// on.
pub fn resolve(record: &mut Record, weighed_at: Position, resolution: &Resolution) -> Change {
    if record.resolution.is_some() || record.position != weighed_at || record.position.is_final() {
        return Change::Leave;
    }
    // Nothing to write: `Leave` is the answer of one that is not stuck.
    let _ = retry(record);
    record.resolution = Some(resolution.clone());
    record.unknowns = 0;
    Change::Write(StepWrite::Nothing)
}

/// The agent of a fenced host has adopted the word.
pub fn adopted(record: &mut Record, by: &HostId, at: SystemTime, copy_ran: bool) -> Change {
    let is_fenced = record.fenced().is_some_and(|side| record.host_of(side) == by);
    match &mut record.resolution {
        Some(resolution) if is_fenced && resolution.adopted.is_none() => {
            resolution.adopted = Some(at);
            resolution.copy_ran = copy_ran;
            Change::Write(StepWrite::Nothing)
        }
        Some(_) | None => Change::Leave,
    }
}

/// Before the phase acts.
pub fn start(record: &mut Record, start: &Start) -> Change {
    if record.position != Position::At(start.phase) || cancel_leads_to(record).is_some() {
        return Change::Leave;
    }
    let time = now();
    record.started = record.started.or(Some(time));
    if start.phase == Phase::Transfer {
        record.transfer_started = record.transfer_started.or(Some(time));
    }
    Change::Write(StepWrite::Start(Step {
        number: start.number,
        phase: start.phase,
        attempt: start.attempt,
        span: start.span,
        started: time,
        end: None,
        detail: String::new(),
    }))
}

/// After the phase: its outcome and where that leads.
pub fn finish(record: &mut Record, finished: &Finished) -> Change {
    if let Went::Through(report) = &finished.went {
        report.learned.apply(record);
        match &report.answer {
            Answer::Done(_) => {}
            Answer::Refused(error) => refused(record, finished.phase, error),
            Answer::Unknown(wait) => unknown(record, wait, &report.detail),
        }
        lead_on(record, finished.phase, report.answer.outcome());
    }
    Change::Write(StepWrite::End(StepEnd {
        number: finished.number,
        ended: now(),
        outcome: finished.went.outcome(),
        detail: finished.went.detail().to_owned(),
    }))
}

/// After a restart: the attempt was lost with the controller that made it.
pub fn interrupted(step: &Step) -> StepWrite {
    StepWrite::End(StepEnd {
        number: step.number,
        ended: now(),
        outcome: StepOutcome::Interrupted,
        detail: trace::INTERRUPTED.to_owned(),
    })
}

fn lead_on(record: &mut Record, phase: Phase, outcome: Outcome) {
    // A Validate that somebody wants undone has nothing to undo, however it came out.
    let validated = match phase {
        Phase::Validate => cancel_leads_to(record),
        Phase::Prepare | Phase::Transfer | Phase::Verify | Phase::Finalize | Phase::Abort | Phase::Discard => None,
    };
    match (validated, outcome) {
        (Some(there), _) => go_to(record, there),
        (None, Outcome::Unknown) => {}
        (None, Outcome::Done(_) | Outcome::Refused) => go_to(record, saga::next(phase, outcome)),
    }
}

fn go_to(record: &mut Record, position: Position) {
    record.position = position;
    record.unknowns = 0;
    record.details.waiting_for = None;
    match position {
        Position::At(phase) => {
            record.phase = phase;
            let too_late = saga::cancel(position) == Cancel::TooLate;
            record.too_late |= record.cancel_requested.is_some() && too_late;
        }
        Position::Stuck(_) => {
            record.details.waiting_for = Some(v1::WaitingFor {
                reason: WaitReason::RetryNeeded.name().to_owned(),
                host: String::new(),
                since_time: Some(timestamp(now())),
                remedy: "remove the cause, then `drover migration retry`".to_owned(),
            });
        }
        Position::Ended(_) => record.ended = Some(now()),
    }
}

fn refused(record: &mut Record, phase: Phase, error: &v1::MigrationError) {
    if phase == Phase::Abort {
        // "Too late": the guest is the destination's, whatever was the reason to undo it.
        record.too_late |= record.cancel_requested.is_some();
        record.details.error = None;
        return;
    }
    // The first reason is why it failed; what comes while it is undone is in the steps.
    let first = record.details.error.is_none() || phase != Phase::Discard;
    if first {
        record.details.error = Some(v1::MigrationError {
            phase: state::phase(phase).into(),
            ..error.clone()
        });
    }
}

fn unknown(record: &mut Record, wait: &Wait, detail: &str) {
    record.unknowns = record.unknowns.saturating_add(1);
    let host = wait.host.as_ref().map(HostId::resource_name).unwrap_or_default();
    let reason = wait.reason.name().to_owned();
    let before = record.details.waiting_for.take();
    let since = before
        .filter(|old| old.reason == reason && old.host == host)
        .and_then(|old| old.since_time);
    let remedy = match &wait.host {
        _ if !wait.remedy.is_empty() => wait.remedy.clone(),
        Some(host) if wait.reason == WaitReason::HostUnreachable => {
            format!("bring {host} or its agent back: {detail}")
        }
        Some(_) | None => format!("nothing, it is tried again by itself: {detail}"),
    };
    record.details.waiting_for = Some(v1::WaitingFor {
        reason,
        host,
        since_time: since.or_else(|| Some(timestamp(now()))),
        remedy,
    });
}

#[cfg(test)]
mod tests;
