//! A door that every RPC of an agent and every call of the simulated hypervisor goes through twice: before it is
//! carried out, and after. In production nobody stands there; a simulation does, and refuses, loses the answer, or
//! lets something die at exactly that moment.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use drover_proto::failure::{Failure, Reason};
use futures::future::BoxFuture;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

/// When somebody is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Moment {
    Before,
    After,
}

/// What becomes of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    Go,
    /// It is refused, and does nothing. After it was carried out: as `Lose`.
    Refuse,
    /// The caller gets no answer. Before: it is not carried out either.
    Lose,
}

type Ask = dyn Fn(&str, Moment) -> BoxFuture<'static, Pass> + Send + Sync;

/// Open unless somebody stands there. Cheap to clone.
#[derive(Clone, Default)]
pub struct Gate(Option<Arc<Ask>>);

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() {
            "Gate(watched)"
        } else {
            "Gate(open)"
        })
    }
}

impl Gate {
    /// Asked with the name of the call: an RPC's path, `/drover.agent.v1.AgentService/HandOver`, or a libvirt call's.
    pub fn watched(ask: impl Fn(&str, Moment) -> BoxFuture<'static, Pass> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(ask)))
    }

    pub(crate) async fn ask(&self, call: &str, moment: Moment) -> Pass {
        match &self.0 {
            None => Pass::Go,
            Some(ask) => ask(call, moment).await,
        }
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated {
            gate: self.clone(),
            inner,
        }
    }
}

/// A service behind a [`Gate`].
#[derive(Clone, Debug)]
pub struct Gated<S> {
    gate: Gate,
    inner: S,
}

impl<S, B> Service<Request<B>> for Gated<S>
where
    S: Service<Request<B>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if self.gate.0.is_none() {
            return Box::pin(self.inner.call(request));
        }
        let (gate, path) = (self.gate.clone(), request.uri().path().to_owned());
        // The one that is ready is taken; the fresh clone stays for the next call.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        Box::pin(async move {
            match gate.ask(&path, Moment::Before).await {
                Pass::Go => {}
                Pass::Refuse => return Ok(Status::from(refused()).into_http()),
                Pass::Lose => return Ok(lost().into_http()),
            }
            let answer = inner.call(request).await?;
            match gate.ask(&path, Moment::After).await {
                Pass::Go => Ok(answer),
                Pass::Refuse | Pass::Lose => Ok(lost().into_http()),
            }
        })
    }
}

fn refused() -> Failure {
    Failure::new(Reason::LibvirtFailed, "refused by the simulation")
}

/// Without details: no evidence of anything.
fn lost() -> Status {
    Status::unavailable("the answer was lost")
}
