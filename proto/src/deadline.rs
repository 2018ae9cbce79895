//! Answers DEADLINE_EXCEEDED when a caller's deadline expires. tonic alone would answer CANCELLED, which reads as if
//! somebody had wanted it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tower::{Layer, Service};

use crate::failure::{Failure, Reason};

/// tonic watches the same deadline: ours expires a little earlier, so that our answer is the one that is sent.
const HEAD_START: Duration = Duration::from_millis(5);

/// The deadline of a caller that gives none: a request that never comes to its end must not be held for ever. Streams
/// are limited only up to their beginning.
const LONGEST: Duration = Duration::from_secs(900);

/// The layer. Put it on every server.
#[derive(Clone, Copy, Debug, Default)]
pub struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline { inner }
    }
}

/// A service behind `DeadlineLayer`.
#[derive(Clone, Debug)]
pub struct Deadline<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for Deadline<S>
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
        let limit = requested(request.headers()).unwrap_or(LONGEST);
        let work = self.inner.call(request);
        Box::pin(async move {
            let early = limit.saturating_sub(HEAD_START).max(limit / 2);
            tokio::time::timeout(early, work).await.unwrap_or_else(|_| {
                let failure = Failure::new(Reason::DeadlineExceeded, "the deadline of this call expired");
                Ok(Status::from(failure).into_http())
            })
        })
    }
}

/// The `grpc-timeout` header: up to eight digits and a unit.
fn requested(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tower::{ServiceExt, service_fn};

    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("40m", Some(Duration::from_millis(40))),
            ("50u", Some(Duration::from_micros(50))),
            ("60n", Some(Duration::from_nanos(60))),
            ("", None),
            ("S", None),
            ("-1S", None),
            ("123456789S", None),
            ("1x", None),
        ] {
            let headers = HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), text.parse().unwrap())]);
            assert_eq!(requested(&headers), expected, "{text:?}");
        }
        assert_eq!(requested(&HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn an_expired_deadline_has_its_own_code() {
        let never = service_fn(|_: Request<()>| std::future::pending::<Result<Response<Body>, Status>>());
        let request = Request::builder().header("grpc-timeout", "30m").body(()).unwrap();
        let response = DeadlineLayer.layer(never).oneshot(request).await.unwrap();
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(!Failure::from_status(&status).is_evidence());
    }
}
