//! A record as the API shows it.

use drover_proto::ids::HostId;
use drover_proto::time::{std_duration, timestamp};
use drover_proto::v1;

use crate::saga::{Phase, Position};
use crate::state::{self, WaitReason};
use crate::store::{Record, Resolution, Step};
use crate::verdict::Side;

/// At most so many attempts are shown, the newest: one that waits for weeks must stay readable.
const MAX_PHASES: usize = 1000;

/// The whole record.
pub fn migration(record: &Record, steps: &[Step]) -> v1::Migration {
    let skipped = steps.len().saturating_sub(MAX_PHASES);
    v1::Migration {
        name: record.id.resource_name(),
        guest_uuid: record.guest.to_string(),
        guest_name: record.guest_name.clone(),
        source_host: record.source.resource_name(),
        destination_host: record.destination.resource_name(),
        labels: record.labels.clone().into_iter().collect(),
        etag: etag(record),
        state: record.state.into(),
        phase: if record.started.is_some() {
            state::phase(record.phase).into()
        } else {
            0
        },
        guest_host: guest_host(record).map(HostId::resource_name).unwrap_or_default(),
        phases: steps[skipped..].iter().map(phase_record).collect(),
        trace_id: record.trace.id.to_string(),
        create_time: Some(timestamp(record.created)),
        start_time: record.started.map(timestamp),
        end_time: record.ended.map(timestamp),
        update_time: Some(timestamp(record.updated)),
        requested_by: record.requested_by.clone(),
        cancel_request_time: record.cancel_requested.map(timestamp),
        cancelled_too_late: record.too_late,
        resolution: record.resolution.as_ref().map(resolution),
        estimate_error: estimate_error(record),
        estimate_blackout_error: blackout_error(record),
        ..record.details.message()
    }
}

/// Where the guest is; none where nobody can say: it was handed over, or may have been, and a host or a person that
/// knows is waited for.
pub fn guest_host(record: &Record) -> Option<&HostId> {
    let undecided = match record.position {
        Position::At(Phase::Transfer | Phase::Abort) => true,
        Position::At(Phase::Validate | Phase::Prepare | Phase::Verify | Phase::Finalize | Phase::Discard)
        | Position::Stuck(_)
        | Position::Ended(_) => false,
    };
    let waits = record.details.waiting_for.as_ref().is_some_and(|wait| {
        let reasons = [WaitReason::HostUnreachable, WaitReason::ResolveNeeded];
        reasons.iter().any(|reason| reason.name() == wait.reason)
    });
    record.guest_host.as_ref().filter(|_| !(undecided && waits))
}

/// By which part of the real duration the expected one was too long, or too short where it is negative.
fn estimate_error(record: &Record) -> Option<f64> {
    let (expected, real) = expected_and_real(record)?;
    off(expected.duration, real.duration)
}

/// The same of the blackout.
fn blackout_error(record: &Record) -> Option<f64> {
    let (expected, real) = expected_and_real(record)?;
    off(expected.blackout, real.blackout)
}

fn expected_and_real(record: &Record) -> Option<(&v1::Estimate, &v1::TransferSummary)> {
    let details = &record.details;
    Some((details.estimate.as_ref()?, details.summary.as_ref()?))
}

fn off(expected: Option<prost_types::Duration>, real: Option<prost_types::Duration>) -> Option<f64> {
    let (expected, real) = (std_duration(&expected?)?, std_duration(&real?)?);
    (!real.is_zero()).then(|| expected.as_secs_f64() / real.as_secs_f64() - 1.0)
}

/// An operator's word, also as the store keeps it.
pub fn resolution(resolution: &Resolution) -> v1::Resolution {
    let fenced_side = match resolution.fenced {
        Side::Source => v1::FencedSide::Source,
        Side::Destination => v1::FencedSide::Destination,
    };
    v1::Resolution {
        fenced_side: fenced_side.into(),
        operator: resolution.operator.clone(),
        time: Some(timestamp(resolution.time)),
        adopt_time: resolution.adopted.map(timestamp),
        copy_ran: resolution.copy_ran,
    }
}

/// As in lists: without what grows.
pub fn listed(record: &Record, steps: &[Step]) -> v1::Migration {
    v1::Migration {
        calls: Vec::new(),
        iterations: Vec::new(),
        checks: Vec::new(),
        ..migration(record, steps)
    }
}

/// As in the events of a watch: everything at rest, without what grows on the way there.
pub fn changed(record: &Record, steps: &[Step]) -> v1::Migration {
    let whole = migration(record, steps);
    if record.position.is_final() {
        return whole;
    }
    v1::Migration {
        calls: Vec::new(),
        iterations: Vec::new(),
        ..whole
    }
}

/// Opaque to callers.
pub fn etag(record: &Record) -> String {
    format!("{:x}", record.generation)
}

fn phase_record(step: &Step) -> v1::PhaseRecord {
    v1::PhaseRecord {
        phase: state::phase(step.phase).into(),
        attempt: i32::try_from(step.attempt).unwrap_or(i32::MAX),
        start_time: Some(timestamp(step.started)),
        end_time: step.end.map(|(ended, _)| timestamp(ended)),
        outcome: step.end.map_or(0, |(_, outcome)| state::outcome(outcome).into()),
        detail: step.detail.clone(),
    }
}
