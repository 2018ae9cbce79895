//! Sets up what a process tells of itself: log lines on stderr, and traces and metrics to a collector (OTLP/gRPC) where
//! the standard `OTEL_*` variables name one.

use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{MetricExporter, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::{BatchConfig, BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
use serde::{Deserialize, Serialize};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::log::{EventsOnly, LogLayer};
use crate::trace::{ChoosableIds, names};

/// Limit of the last flush.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an ended span waits for company. (The SDK's own default is five seconds.)
const EXPORT_DELAY: Duration = Duration::from_millis(500);

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line for people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// What to tell, and how.
#[derive(Clone, Debug)]
pub struct TelemetryOptions {
    pub log_format: LogFormat,
    /// As in `RUST_LOG`, which replaces it where it is set.
    pub log_filter: String,
    /// Added to every span and metric, beside `service.name`: `drover.host.id` of an agent.
    pub resource: Vec<(&'static str, String)>,
}

impl Default for TelemetryOptions {
    fn default() -> Self {
        Self {
            log_format: LogFormat::Human,
            log_filter: "info".to_owned(),
            resource: Vec::new(),
        }
    }
}

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("the log filter {filter:?} is not valid: {why}")]
    Filter { filter: String, why: String },
    #[error("telemetry was set up already")]
    Twice,
    #[error("the OTLP exporter cannot be made: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// Keeps telemetry going; `shutdown` sends what is left.
#[must_use = "telemetry ends when this is dropped"]
pub struct TelemetryGuard {
    traces: SdkTracerProvider,
    metrics: Option<SdkMeterProvider>,
}

impl TelemetryGuard {
    /// Sends what is left, for at most five seconds.
    pub async fn shutdown(self) {
        // Blocks on a thread of its own: the exporter needs this runtime to go on.
        let flush = tokio::task::spawn_blocking(move || {
            let spans = self.traces.shutdown_with_timeout(FLUSH_TIMEOUT);
            let metrics = self
                .metrics
                .map_or(Ok(()), |metrics| metrics.shutdown_with_timeout(FLUSH_TIMEOUT));
            spans.and(metrics)
        });
        match flush.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("the last telemetry was not delivered: {error}"),
            Err(error) => tracing::warn!("the last telemetry was not delivered: {error}"),
        }
    }
}

/// Sets up logs, traces and metrics for `service`, which `OTEL_SERVICE_NAME` replaces. Within a tokio runtime, once.
pub fn init(service: &'static str, options: &TelemetryOptions) -> Result<TelemetryGuard, TelemetryError> {
    let resource = resource(service, options);
    let traces = traces(&resource)?;
    let metrics = metrics(resource)?;

    let filter = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_else(|_| options.log_filter.clone());
    // The SDK tells of its own set-up at level info; a filter that names it has the last word.
    let filter = EnvFilter::builder()
        .parse(format!("opentelemetry=warn,{filter}"))
        .map_err(|error| TelemetryError::Filter {
            filter,
            why: error.to_string(),
        })?;
    // Spans of libraries are of no use in a trace of a migration. Targets match by prefix.
    let ours = Targets::new().with_target("drover", LevelFilter::INFO);
    let spans = tracing_opentelemetry::layer()
        .with_tracer(traces.tracer(names::SCOPE))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_target(false)
        .with_filter(ours);
    let log = LogLayer::to_stderr(options.log_format).with_filter(EventsOnly::new(filter));
    tracing_subscriber::registry()
        .with(spans)
        .with(log)
        .try_init()
        .map_err(|_| TelemetryError::Twice)?;

    opentelemetry::global::set_tracer_provider(traces.clone());
    if let Some(metrics) = &metrics {
        opentelemetry::global::set_meter_provider(metrics.clone());
    }
    Ok(TelemetryGuard { traces, metrics })
}

fn resource(service: &'static str, options: &TelemetryOptions) -> Resource {
    let extra = options
        .resource
        .iter()
        .map(|(key, value)| KeyValue::new(*key, value.clone()));
    let builder = Resource::builder()
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attributes(extra);
    if std::env::var_os("OTEL_SERVICE_NAME").is_some() {
        builder
    } else {
        builder.with_service_name(service)
    }
    .build()
}

/// Without a collector spans are still made: their ids go into logs and to other processes.
fn traces(resource: &Resource) -> Result<SdkTracerProvider, TelemetryError> {
    let mut builder = SdkTracerProvider::builder()
        .with_id_generator(ChoosableIds::default())
        .with_resource(resource.clone());
    if is_wanted("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
        let exporter = SpanExporter::builder().with_tonic().build()?;
        builder = builder.with_span_processor(
            BatchSpanProcessor::builder(exporter)
                .with_batch_config(batches())
                .build(),
        );
    }
    Ok(builder.build())
}

/// A process that is killed loses the spans that it has not sent: they are sent soon, unless told otherwise.
fn batches() -> BatchConfig {
    let config = BatchConfigBuilder::default();
    let told = std::env::var_os("OTEL_BSP_SCHEDULE_DELAY").is_some();
    if told {
        config
    } else {
        config.with_scheduled_delay(EXPORT_DELAY)
    }
    .build()
}

fn metrics(resource: Resource) -> Result<Option<SdkMeterProvider>, TelemetryError> {
    if !is_wanted("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT") {
        return Ok(None);
    }
    let exporter = MetricExporter::builder().with_tonic().build()?;
    Ok(Some(
        SdkMeterProvider::builder()
            .with_periodic_exporter(exporter)
            .with_resource(resource)
            .build(),
    ))
}

/// Whether the environment names a collector for this signal, or for all.
fn is_wanted(variable: &str) -> bool {
    is_wanted_by(variable, |name| std::env::var(name).ok())
}

fn is_wanted_by(variable: &str, value: impl Fn(&str) -> Option<String>) -> bool {
    let set = |name: &str| value(name).is_some_and(|value| !value.is_empty());
    let disabled = value("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    !disabled && (set(variable) || set("OTEL_EXPORTER_OTLP_ENDPOINT"))
}

#[cfg(test)]
mod tests {
    use super::is_wanted_by;

    const ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    const METRICS: &str = "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT";

    #[test]
    fn nothing_is_sent_unless_a_collector_is_named_for_it() {
        let collector = "http://127.0.0.1:4317";
        let wanted = |signal: &str, set: &[(&str, &str)]| {
            is_wanted_by(signal, |name| {
                let found = set.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        assert!(!wanted(TRACES, &[]));
        assert!(!wanted(TRACES, &[(ALL, "")]));
        assert!(wanted(TRACES, &[(ALL, collector)]));
        assert!(wanted(TRACES, &[(TRACES, collector)]) && !wanted(METRICS, &[(TRACES, collector)]));
        assert!(!wanted(TRACES, &[(ALL, collector), ("OTEL_SDK_DISABLED", "TRUE")]));
    }
}
