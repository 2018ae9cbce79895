//! Gives every error of the public API its `google.rpc.ErrorInfo`, also where gRPC itself refuses a request before
//! our code sees it: a message that is too large, is no protobuf, or has text that is not UTF-8.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::MAX_DECODING_MESSAGE_BYTES;
use crate::failure::{Failure, Reason};

/// The layer. For the public API only: between controller and agents what Drover did not say must not look as if it
/// had.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExplainLayer;

impl<S> Layer<S> for ExplainLayer {
    type Service = Explained<S>;

    fn layer(&self, inner: S) -> Explained<S> {
        Explained { inner }
    }
}

/// A service behind `ExplainLayer`.
#[derive(Clone, Debug)]
pub struct Explained<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for Explained<S>
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
        let work = self.inner.call(request);
        Box::pin(async move {
            let response = work.await?;
            Ok(match Status::from_header_map(response.headers()) {
                Some(status) if status.code() != Code::Ok && status.details().is_empty() => {
                    Status::from(explain(&status)).into_http()
                }
                Some(_) | None => response,
            })
        })
    }
}

/// What a status of gRPC's own means. Its words are those of tonic and prost; where they change, the nearest reason
/// is left.
fn explain(status: &Status) -> Failure {
    let message = status.message();
    if message.contains("message length too large") {
        let limit = MAX_DECODING_MESSAGE_BYTES >> 20;
        return Failure::new(Reason::MessageTooLarge, message)
            .with_remedy(format!("send at most {limit} MiB in one message"));
    }
    if message.starts_with("failed to decode Protobuf message") {
        let failure = Failure::new(Reason::InvalidArgument, message);
        return failure.with_remedy("is the client made from the same .proto files, and all its text UTF-8?");
    }
    let guessed = Failure::from_status(status);
    Failure::new(guessed.reason, guessed.message)
}

#[cfg(test)]
mod tests {
    use tower::{ServiceExt, service_fn};

    use super::*;

    async fn through(status: Status) -> Status {
        let refusing = service_fn(move |_: Request<()>| {
            let response = status.clone().into_http::<Body>();
            async move { Ok::<_, Status>(response) }
        });
        let response = ExplainLayer.layer(refusing).oneshot(Request::new(())).await.unwrap();
        Status::from_header_map(response.headers()).unwrap()
    }

    #[tokio::test]
    async fn what_grpc_refuses_has_a_reason_too() {
        let large = "Error, decoded message length too large: found 5 bytes, the limit is: 4 bytes";
        let broken = "failed to decode Protobuf message: ListHostsRequest.page_token: invalid string value";
        for (status, code, reason) in [
            (
                Status::out_of_range(large),
                Code::ResourceExhausted,
                Reason::MessageTooLarge,
            ),
            (Status::internal(broken), Code::InvalidArgument, Reason::InvalidArgument),
            (
                Status::unimplemented("no such compression"),
                Code::Unimplemented,
                Reason::Unimplemented,
            ),
        ] {
            let explained = through(status).await;
            let failure = Failure::from_status(&explained);
            assert_eq!((explained.code(), failure.reason), (code, reason));
            assert!(failure.is_answered() && !failure.message.is_empty());
        }
    }

    #[tokio::test]
    async fn what_has_a_reason_keeps_it() {
        let failure = Failure::new(Reason::HostCordoned, "host-1 is cordoned").with_remedy("uncordon it");
        let explained = through(failure.clone().into()).await;
        assert_eq!(Failure::from_status(&explained), failure);
    }
}
