//! What lines look like, and that each has its ids.

use std::sync::{Arc, Mutex};

use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::layer::SubscriberExt;

use super::*;
use crate::trace::{new_span_id, new_trace_id, remote_context, set_parent};

fn line() -> Line {
    Line {
        time: OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap(),
        level: Level::WARN,
        target: "drover_agent",
        message: "a \"strange\"\nthing".to_owned(),
        migration_id: Some("m-1".to_owned()),
        trace_id: Some("t-1".to_owned()),
        fields: Map::from_iter([("host".to_owned(), "host 1".into()), ("tries".to_owned(), 3.into())]),
    }
}

#[test]
fn a_line_for_people_is_one_line() {
    let expected =
        "2023-11-14T22:13:20.000Z WARN  a \"strange\"\\nthing host=\"host 1\" tries=3 migration_id=m-1 trace_id=t-1\n";
    assert_eq!(line().human(), expected);
}

#[test]
fn a_json_line_reads_back() {
    let value: Value = serde_json::from_str(&line().json()).unwrap();
    assert_eq!(value["message"], "a \"strange\"\nthing");
    assert_eq!(value["migration_id"], "m-1");
    assert_eq!(value["trace_id"], "t-1");
    assert_eq!(value["tries"], 3);
    assert_eq!(value["level"], "WARN");
}

#[test]
fn lines_carry_the_ids_of_the_spans_around_them_whatever_the_filter() {
    let lines = Arc::new(Mutex::new(Vec::<Value>::new()));
    let kept = Arc::clone(&lines);
    let log = LogLayer::new(LogFormat::Json, move |line| {
        kept.lock().unwrap().push(serde_json::from_str(line).unwrap());
    });
    let tracer = SdkTracerProvider::builder().build().tracer("test");
    let subscriber = tracing_subscriber::registry()
        .with(tracing_opentelemetry::layer().with_tracer(tracer))
        .with(log.with_filter(EventsOnly::new(EnvFilter::new("warn"))));
    let trace_id = new_trace_id();
    tracing::subscriber::with_default(subscriber, || {
        let outer = tracing::info_span!(target: "drover_test", "outer", drover.migration.id = tracing::field::Empty);
        set_parent(&outer, remote_context(trace_id, new_span_id()));
        outer.record("drover.migration.id", "m-1");
        outer.in_scope(|| {
            tracing::info_span!(target: "drover_test", "inner").in_scope(|| {
                tracing::info!("left out");
                tracing::warn!(tries = 3, "inside");
            });
        });
        tracing::warn!(migration_id = %"m-2", "outside");
    });
    let lines = lines.lock().unwrap();
    let [inside, outside] = &lines[..] else {
        panic!("{lines:?}")
    };
    assert_eq!(
        (&inside["message"], &inside["migration_id"]),
        (&"inside".into(), &"m-1".into())
    );
    assert_eq!(inside["trace_id"], trace_id.to_string());
    assert_eq!(
        (&outside["migration_id"], &outside["trace_id"]),
        (&"m-2".into(), &Value::Null)
    );
}
