//! The spans of a migration: the root, written when it comes to rest, and the phases under it.
//!
//! Promise: one migration is one trace, under the caller's span where it sent one, also across restarts: the ids
//! are in the store before anything is done under them.

use drover_proto::time::std_duration;
use drover_proto::trace::names::{attribute, span as name};
use drover_proto::trace::{
    Context, KeyValue, RootSpan, SpanStatus, ids, new_span_id, new_trace_id, remote_context, set_parent,
    write_root_span,
};
use tracing::Span;
use tracing::field::Empty;

use crate::saga::Phase;
use crate::store::{Record, Step, StepOutcome, Trace, now};

/// Of a step that was under way when its controller was lost.
pub const INTERRUPTED: &str = "the controller ended meanwhile";

/// The ids of a new migration: in the caller's trace where it sent one.
pub fn begin(caller: &Context) -> Trace {
    match ids(caller) {
        Some((id, parent)) => Trace {
            id,
            root: new_span_id(),
            parent: Some(parent),
        },
        None => Trace {
            id: new_trace_id(),
            root: new_span_id(),
            parent: None,
        },
    }
}

/// The span of one attempt at a phase, under the root that is written later; and its id, to be kept in the step.
pub fn phase(record: &Record, phase: Phase, attempt: u32) -> (Span, drover_proto::trace::SpanId) {
    let span = tracing::info_span!(
        "phase",
        otel.name = name::phase(phase.name()),
        otel.status_code = Empty,
        drover.migration.id = %record.id,
        drover.guest.id = %record.guest,
        drover.source.host = %record.source,
        drover.destination.host = %record.destination,
        drover.phase = phase.name(),
        drover.phase.attempt = attempt,
        drover.phase.outcome = Empty,
        drover.reason = Empty,
    );
    set_parent(&span, remote_context(record.trace.id, record.trace.root));
    let id = ids(&tracing_opentelemetry::OpenTelemetrySpanExt::context(&span))
        .filter(|(trace, _)| *trace == record.trace.id)
        .map_or_else(new_span_id, |(_, id)| id);
    (span, id)
}

/// The span of a change of the policy, under the root that is written later.
pub fn adjust(record: &Record) -> Span {
    let span = tracing::info_span!("adjust", otel.name = name::ADJUST, drover.migration.id = %record.id);
    set_parent(&span, remote_context(record.trace.id, record.trace.root));
    span
}

/// Lets what is logged in `say` carry the trace of the migration, where no span of it is open.
pub fn tell(record: &Record, say: impl FnOnce()) {
    let _attached = remote_context(record.trace.id, record.trace.root).attach();
    say();
}

/// Notes on a phase's span how it came out.
pub fn outcome(span: &Span, outcome: StepOutcome, reason: Option<&str>) {
    span.record("drover.phase.outcome", outcome.name());
    if let Some(reason) = reason {
        span.record("drover.reason", reason);
        span.record("otel.status_code", "ERROR");
    }
}

/// Writes the span of a step whose controller was lost before its span was exported, or the step itself with it. Under
/// the id that was written down before it began: one that was exported after all is the same span again.
pub fn write_step(record: &Record, step: &Step) {
    let (end, outcome) = step.end.unwrap_or((now(), StepOutcome::Interrupted));
    let attributes = vec![
        KeyValue::new(attribute::MIGRATION_ID, record.id.to_string()),
        KeyValue::new(attribute::GUEST_ID, record.guest.to_string()),
        KeyValue::new(attribute::SOURCE_HOST, record.source.to_string()),
        KeyValue::new(attribute::DESTINATION_HOST, record.destination.to_string()),
        KeyValue::new(attribute::PHASE, step.phase.name()),
        KeyValue::new(attribute::PHASE_ATTEMPT, i64::from(step.attempt)),
        KeyValue::new(attribute::PHASE_OUTCOME, outcome.name()),
    ];
    let status = match outcome {
        StepOutcome::Interrupted => SpanStatus::error(INTERRUPTED),
        StepOutcome::Refused => SpanStatus::error(step.detail.clone()),
        StepOutcome::Done | StepOutcome::Unknown => SpanStatus::Unset,
    };
    write_root_span(RootSpan {
        trace_id: record.trace.id,
        span_id: step.span,
        parent_span_id: Some(record.trace.root),
        name: name::phase(step.phase.name()).into(),
        start: step.started,
        end,
        attributes,
        links: Vec::new(),
        status,
    });
}

/// Writes the root span of a migration that has come to rest.
pub fn write_root(record: &Record) {
    let error = record.details.error.as_ref();
    write_root_span(RootSpan {
        trace_id: record.trace.id,
        span_id: record.trace.root,
        parent_span_id: record.trace.parent,
        name: name::MIGRATION.into(),
        start: record.created,
        end: record.ended.unwrap_or_else(now),
        attributes: attributes(record),
        links: Vec::new(),
        status: error.map_or(SpanStatus::Ok, |error| SpanStatus::error(error.message.clone())),
    });
}

fn attributes(record: &Record) -> Vec<KeyValue> {
    let mut all = vec![
        KeyValue::new(attribute::MIGRATION_ID, record.id.to_string()),
        KeyValue::new(attribute::MIGRATION_STATE, record.state.as_str_name()),
        KeyValue::new(attribute::GUEST_ID, record.guest.to_string()),
        KeyValue::new(attribute::GUEST_NAME, record.guest_name.clone()),
        KeyValue::new(attribute::SOURCE_HOST, record.source.to_string()),
        KeyValue::new(attribute::DESTINATION_HOST, record.destination.to_string()),
    ];
    if let Some(summary) = &record.details.summary {
        all.push(KeyValue::new(attribute::MEMORY_SENT, summary.memory_sent_bytes));
        all.push(KeyValue::new(attribute::DISK_SENT, summary.disk_sent_bytes));
        all.push(KeyValue::new(attribute::TUNNEL_BYTES, summary.tunnel_bytes));
        all.push(KeyValue::new(attribute::ITERATIONS, summary.iterations));
        if let Some(blackout) = summary.blackout.as_ref().and_then(std_duration) {
            all.push(KeyValue::new(attribute::BLACKOUT, blackout.as_secs_f64()));
        }
    }
    if let Some(connections) = &record.details.connections {
        all.push(KeyValue::new(attribute::CONNECTIONS, i64::from(connections.count)));
    }
    if let Some(error) = &record.details.error {
        all.push(KeyValue::new(attribute::REASON, error.reason.clone()));
    }
    all
}
