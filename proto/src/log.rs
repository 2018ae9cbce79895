//! Log lines, for people or as JSON, each with the trace id and the migration id it belongs to.

use std::fmt::{self, Write as _};
use std::io::Write as _;

use opentelemetry::trace::TraceContextExt;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer};

use crate::telemetry::LogFormat;
use crate::trace::names::{attribute, field};

/// RFC 3339 in UTC, always with milliseconds.
const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// Writes events, a line each.
pub(crate) struct LogLayer {
    format: LogFormat,
    write: Box<dyn Fn(&str) + Send + Sync>,
}

impl LogLayer {
    pub(crate) fn to_stderr(format: LogFormat) -> Self {
        // A log that cannot be written has nowhere to complain.
        Self::new(format, |line| drop(std::io::stderr().lock().write_all(line.as_bytes())))
    }

    fn new(format: LogFormat, write: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self {
            format,
            write: Box::new(write),
        }
    }
}

/// The migration that a span is about.
struct MigrationOf(String);

impl<S> Layer<S> for LogLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        remember(&mut fields, id, &context);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        remember(&mut fields, id, &context);
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut line = Line {
            time: OffsetDateTime::now_utc(),
            level: *event.metadata().level(),
            target: event.metadata().target(),
            message: fields.take_message(),
            migration_id: fields.take_migration(),
            trace_id: current_trace_id(),
            fields: fields.0,
        };
        if line.migration_id.is_none() {
            let mut scope = context.event_scope(event).into_iter().flatten();
            line.migration_id = scope.find_map(|span| Some(span.extensions().get::<MigrationOf>()?.0.clone()));
        }
        let text = match self.format {
            LogFormat::Human => line.human(),
            LogFormat::Json => line.json(),
        };
        (self.write)(&text);
    }
}

fn remember<S>(fields: &mut Fields, id: &Id, context: &Context<'_, S>)
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    if let (Some(migration), Some(span)) = (fields.take_migration(), context.span(id)) {
        span.extensions_mut().replace(MigrationOf(migration));
    }
}

/// The OpenTelemetry layer activates its context with each span that is entered.
fn current_trace_id() -> Option<String> {
    opentelemetry::Context::map_current(|context| {
        let span = context.span();
        let ids = span.span_context();
        ids.is_valid().then(|| ids.trace_id().to_string())
    })
}

/// One log line before it is written.
struct Line {
    time: OffsetDateTime,
    level: Level,
    target: &'static str,
    message: String,
    migration_id: Option<String>,
    trace_id: Option<String>,
    fields: Map<String, Value>,
}

impl Line {
    fn json(self) -> String {
        let mut object = Map::new();
        let mut put = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                object.insert(key.to_owned(), Value::String(value));
            }
        };
        put("time", self.time.format(TIME).ok());
        put("level", Some(self.level.as_str().to_owned()));
        put("target", Some(self.target.to_owned()));
        put("message", Some(self.message));
        put(field::MIGRATION_ID, self.migration_id);
        put(field::TRACE_ID, self.trace_id);
        for (key, value) in self.fields {
            object.entry(key).or_insert(value);
        }
        format!("{}\n", Value::Object(object))
    }

    /// Newlines are escaped: what a peer sent must not look like a line of ours.
    fn human(self) -> String {
        let time = self.time.format(TIME).unwrap_or_default();
        let mut text = format!("{time} {:<5} {}", self.level.as_str(), self.message);
        for (key, value) in &self.fields {
            let _ = match value {
                Value::String(value) if value.contains([' ', '"']) => write!(text, " {key}={value:?}"),
                Value::String(value) => write!(text, " {key}={value}"),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                    write!(text, " {key}={value}")
                }
            };
        }
        for (key, value) in [
            (field::MIGRATION_ID, self.migration_id),
            (field::TRACE_ID, self.trace_id),
        ] {
            if let Some(value) = value {
                let _ = write!(text, " {key}={value}");
            }
        }
        text = text.replace('\n', "\\n").replace('\r', "\\r").replace('\x1b', "\\e");
        text.push('\n');
        text
    }
}

/// The fields of an event or span.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn take(&mut self, key: &str) -> Option<String> {
        let value = self.0.remove(key)?;
        Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    }

    fn take_message(&mut self) -> String {
        self.take("message").unwrap_or_default()
    }

    fn take_migration(&mut self) -> Option<String> {
        let dotted = self.take(attribute::MIGRATION_ID);
        self.take(field::MIGRATION_ID).or(dotted)
    }

    fn put(&mut self, field: &Field, value: Value) {
        self.0.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, Value::String(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::String(value.to_owned()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

/// Filters events only: spans of ours are always followed, so that a line has its ids whatever the filter is.
pub(crate) struct EventsOnly(EnvFilter);

impl EventsOnly {
    pub(crate) fn new(filter: EnvFilter) -> Self {
        Self(filter)
    }

    fn is_span_of_ours(metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target().starts_with("drover")
    }
}

impl<S> Filter<S> for EventsOnly
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn enabled(&self, metadata: &Metadata<'_>, context: &Context<'_, S>) -> bool {
        Self::is_span_of_ours(metadata) || Filter::enabled(&self.0, metadata, context)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if Self::is_span_of_ours(metadata) {
            Interest::always()
        } else {
            Filter::<S>::callsite_enabled(&self.0, metadata)
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(Filter::<S>::max_level_hint(&self.0)?.max(LevelFilter::INFO))
    }
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
