//! One trace over several processes: contexts into and out of gRPC metadata, and spans whose ids were persisted before
//! they could be written.

use std::borrow::Cow;
use std::cell::Cell;
use std::time::SystemTime;

use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{Link, Span as _, SpanBuilder, SpanKind, TraceContextExt, TraceFlags, TraceState, Tracer};
pub use opentelemetry::trace::{SpanContext, SpanId, Status as SpanStatus, TraceId};
pub use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
use tonic::metadata::{KeyAndValueRef, MetadataKey, MetadataMap};
use tonic::service::Interceptor;
use tonic::{Request, Status};
use tracing_opentelemetry::OpenTelemetrySpanExt;

pub use crate::trace_layer::TraceLayer;

#[path = "names.rs"]
pub mod names;

/// A fresh trace id.
pub fn new_trace_id() -> TraceId {
    RandomIdGenerator::default().new_trace_id()
}

/// A fresh span id.
pub fn new_span_id() -> SpanId {
    RandomIdGenerator::default().new_span_id()
}

/// Writes a context as `traceparent` and `tracestate`.
pub fn inject(context: &Context, metadata: &mut MetadataMap) {
    TraceContextPropagator::new().inject_context(context, &mut Outgoing(metadata));
}

/// Writes the context of the current `tracing` span.
pub fn inject_current(metadata: &mut MetadataMap) {
    inject(&tracing::Span::current().context(), metadata);
}

/// Reads a caller's context; an empty one where there is none or it is not valid.
pub fn extract(metadata: &MetadataMap) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &Incoming(metadata))
}

/// The trace and span id in a context, where it has any.
pub fn ids(context: &Context) -> Option<(TraceId, SpanId)> {
    let span = context.span();
    let ids = span.span_context();
    ids.is_valid().then(|| (ids.trace_id(), ids.span_id()))
}

/// The context of a span that is written elsewhere or later: children can be made under it now.
pub fn remote_context(trace_id: TraceId, span_id: SpanId) -> Context {
    let ids = SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, true, TraceState::NONE);
    Context::new().with_remote_span_context(ids)
}

/// Puts a fresh `tracing` span under `parent`. To be called before the span is entered.
pub fn set_parent(span: &tracing::Span, parent: Context) {
    // Fails only where telemetry was not set up (tests) or the span is disabled: then there is nothing to link.
    let _ = span.set_parent(parent);
}

/// A finished span with ids that were chosen long ago.
#[derive(Clone, Debug)]
pub struct RootSpan {
    pub trace_id: TraceId,
    pub span_id: SpanId,
    /// The caller's span, where it sent one.
    pub parent_span_id: Option<SpanId>,
    pub name: Cow<'static, str>,
    pub start: SystemTime,
    pub end: SystemTime,
    pub attributes: Vec<KeyValue>,
    /// Other traces that this one has to do with: a drain, an earlier attempt.
    pub links: Vec<SpanContext>,
    pub status: SpanStatus,
}

/// Exports a finished span under exactly the given ids.
pub fn write_root_span(span: RootSpan) {
    let parent = match span.parent_span_id {
        Some(parent) => remote_context(span.trace_id, parent),
        None => Context::new(),
    };
    let builder = SpanBuilder::from_name(span.name)
        .with_kind(SpanKind::Internal)
        .with_start_time(span.start)
        .with_attributes(span.attributes)
        .with_links(span.links.into_iter().map(Link::with_context).collect());
    let tracer = opentelemetry::global::tracer(names::SCOPE);
    CHOSEN.set(Some((span.trace_id, span.span_id)));
    let mut written = tracer.build_with_context(builder, &parent);
    CHOSEN.set(None);
    written.set_status(span.status);
    written.end_with_timestamp(span.end);
}

/// Exports a span that was measured by other means, under `parent`. Gives its context, for children.
pub fn record_span(
    parent: &Context,
    name: impl Into<Cow<'static, str>>,
    start: SystemTime,
    end: SystemTime,
    attributes: Vec<KeyValue>,
    status: SpanStatus,
) -> Context {
    let builder = SpanBuilder::from_name(name)
        .with_kind(SpanKind::Internal)
        .with_start_time(start)
        .with_attributes(attributes);
    let mut span = opentelemetry::global::tracer(names::SCOPE).build_with_context(builder, parent);
    span.set_status(status);
    span.end_with_timestamp(end);
    Context::new().with_remote_span_context(span.span_context().clone())
}

thread_local! {
    /// Ids for the span that this thread is making right now.
    static CHOSEN: Cell<Option<(TraceId, SpanId)>> = const { Cell::new(None) };
}

/// Random ids, but the chosen ones where `write_root_span` has chosen. (The SDK has no other way to set them; it asks
/// for the span id before the trace id.)
#[derive(Debug, Default)]
pub(crate) struct ChoosableIds(RandomIdGenerator);

impl IdGenerator for ChoosableIds {
    fn new_trace_id(&self) -> TraceId {
        CHOSEN
            .get()
            .map_or_else(|| self.0.new_trace_id(), |(trace_id, _)| trace_id)
    }

    fn new_span_id(&self) -> SpanId {
        CHOSEN
            .get()
            .map_or_else(|| self.0.new_span_id(), |(_, span_id)| span_id)
    }
}

/// A client interceptor that sends the context of the current span along.
#[derive(Clone, Copy, Debug, Default)]
pub struct TraceInterceptor;

impl Interceptor for TraceInterceptor {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        inject_current(request.metadata_mut());
        Ok(request)
    }
}

struct Outgoing<'a>(&'a mut MetadataMap);

impl Injector for Outgoing<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (MetadataKey::from_bytes(key.as_bytes()), value.parse()) {
            self.0.insert(key, value);
        }
    }
}

struct Incoming<'a>(&'a MetadataMap);

impl Extractor for Incoming<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        let text = |entry| {
            if let KeyAndValueRef::Ascii(key, _) = entry {
                Some(key.as_str())
            } else {
                None
            }
        };
        self.0.iter().filter_map(text).collect()
    }
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
