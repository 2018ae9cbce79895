//! Contexts go there and back, and a root span is written under the ids that were chosen for it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};

use super::*;

/// Keeps what is exported.
#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

#[test]
fn a_context_goes_through_metadata() {
    let (trace_id, span_id) = (new_trace_id(), new_span_id());
    let mut metadata = MetadataMap::new();
    inject(&remote_context(trace_id, span_id), &mut metadata);
    assert_eq!(
        metadata.get("traceparent").unwrap(),
        format!("00-{trace_id}-{span_id}-01").as_str()
    );
    assert_eq!(ids(&extract(&metadata)), Some((trace_id, span_id)));

    metadata.insert("traceparent", "00-nonsense".parse().unwrap());
    assert_eq!(ids(&extract(&metadata)), None);
    assert_eq!(ids(&extract(&MetadataMap::new())), None);
}

/// One test for all that needs the global tracer: it can be set only once in a process.
#[test]
fn spans_are_written_with_chosen_ids() {
    let kept = Kept::default();
    let provider = SdkTracerProvider::builder()
        .with_id_generator(ChoosableIds::default())
        .with_simple_exporter(kept.clone())
        .build();
    opentelemetry::global::set_tracer_provider(provider);

    let (trace_id, span_id, caller) = (new_trace_id(), new_span_id(), new_span_id());
    let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
    let child = record_span(
        &remote_context(trace_id, span_id),
        "phase.transfer",
        at(10),
        at(20),
        vec![KeyValue::new(names::attribute::PHASE, "transfer")],
        SpanStatus::Ok,
    );
    let root = RootSpan {
        trace_id,
        span_id,
        parent_span_id: None,
        name: names::span::MIGRATION.into(),
        start: at(1),
        end: at(30),
        attributes: vec![],
        links: vec![],
        status: SpanStatus::error("gone"),
    };
    write_root_span(root.clone());
    write_root_span(RootSpan {
        parent_span_id: Some(caller),
        ..root
    });

    let spans = kept.0.lock().unwrap();
    let [phase, root, called] = &spans[..] else {
        panic!("{spans:?}")
    };
    assert_eq!(phase.span_context.trace_id(), trace_id);
    assert_eq!(phase.parent_span_id, span_id);
    assert_eq!(ids(&child), Some((trace_id, phase.span_context.span_id())));
    assert_ne!(
        phase.span_context.span_id(),
        span_id,
        "the chosen id leaked into another span"
    );
    assert_eq!(
        (root.span_context.trace_id(), root.span_context.span_id()),
        (trace_id, span_id)
    );
    assert_eq!(root.parent_span_id, SpanId::INVALID);
    assert_eq!((root.start_time, root.end_time), (at(1), at(30)));
    assert_eq!(root.status, SpanStatus::error("gone"));
    assert_eq!(
        (called.span_context.trace_id(), called.parent_span_id),
        (trace_id, caller)
    );
}
