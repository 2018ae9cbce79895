//! The server's side of a trace: one span per RPC, as a child of the caller's.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::field::Empty;
use tracing::{Instrument, Span};

use crate::serve::Peer;
use crate::trace::{extract, set_parent};

/// RPCs that come all the time and tell nothing: no spans of their own.
const QUIET: &[&str] = &[
    "/grpc.health.v1.",
    "/grpc.reflection.v1.",
    "/drover.v1.HostService/RegisterHost",
];

/// The layer. The span has an empty field `drover.migration.id`, which handlers fill by
/// `Span::current().record(…)`.
#[derive(Clone, Copy, Debug, Default)]
pub struct TraceLayer;

impl<S> Layer<S> for TraceLayer {
    type Service = Traced<S>;

    fn layer(&self, inner: S) -> Traced<S> {
        Traced { inner }
    }
}

/// A service behind `TraceLayer`.
#[derive(Clone, Debug)]
pub struct Traced<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for Traced<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let path = request.uri().path();
        if QUIET.iter().any(|prefix| path.starts_with(prefix)) {
            return Box::pin(self.inner.call(request));
        }
        let span = open(&request);
        let work = span.in_scope(|| self.inner.call(request));
        let reported = span.clone();
        Box::pin(
            async move {
                let response = work.await?;
                close(&reported, &response);
                Ok(response)
            }
            .instrument(span),
        )
    }
}

fn open<B>(request: &Request<B>) -> Span {
    let method = request.uri().path().trim_start_matches('/');
    let peer = request.extensions().get::<Peer>().map(|peer| peer.identity.to_string());
    let span = tracing::info_span!(
        target: "drover::rpc",
        "rpc",
        otel.name = method,
        otel.kind = "server",
        otel.status_code = Empty,
        rpc.system.name = "grpc",
        rpc.method = method,
        rpc.response.status_code = Empty,
        drover.peer = peer,
        drover.migration.id = Empty,
    );
    set_parent(&span, extract(&MetadataMap::from_headers(request.headers().clone())));
    span
}

/// A refusal has its code in the headers; a stream's own end, in the trailers, is not waited for.
fn close(span: &Span, response: &Response<Body>) {
    let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
    span.record("rpc.response.status_code", code_name(code));
    if is_fault(code) {
        span.record("otel.status_code", "ERROR");
    }
}

/// By the semantic conventions only these are errors of the server; a refusal is not.
fn is_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// The name of a code, as gRPC writes it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use opentelemetry::trace::TracerProvider;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tower::{ServiceExt, service_fn};
    use tracing_opentelemetry::OpenTelemetrySpanExt;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::trace::{ids, new_span_id, new_trace_id};

    /// The trace in which a call of `path` is handled, asked for with this `traceparent`.
    async fn trace_of(path: &str, traceparent: &str) -> Option<String> {
        let handler = service_fn(|_: Request<()>| async {
            let trace = ids(&Span::current().context()).map(|(trace_id, _)| trace_id.to_string());
            let response = Response::builder()
                .header("trace", trace.unwrap_or_default())
                .body(Body::empty());
            Ok::<_, Infallible>(response.unwrap())
        });
        let request = Request::builder()
            .uri(path)
            .header("traceparent", traceparent)
            .body(())
            .unwrap();
        let response = TraceLayer.layer(handler).oneshot(request).await.unwrap();
        let trace = response.headers()["trace"].to_str().unwrap().to_owned();
        Some(trace).filter(|trace| !trace.is_empty())
    }

    #[tokio::test]
    async fn a_call_belongs_to_the_trace_of_its_caller() {
        let tracer = SdkTracerProvider::builder().build().tracer("test");
        let subscriber = tracing_subscriber::registry().with(tracing_opentelemetry::layer().with_tracer(tracer));
        let _guard = tracing::subscriber::set_default(subscriber);
        let trace_id = new_trace_id();
        let parent = format!("00-{trace_id}-{}-01", new_span_id());
        let get = "/drover.v1.MigrationService/GetMigration";
        assert_eq!(trace_of(get, &parent).await, Some(trace_id.to_string()));
        let own = trace_of(get, "nonsense").await;
        assert!(own.is_some() && own != Some(trace_id.to_string()));
        assert_eq!(trace_of("/grpc.health.v1.Health/Check", &parent).await, None);
    }
}
