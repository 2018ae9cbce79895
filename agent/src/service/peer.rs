//! What another agent may ask of this one: to take a guest over, or another stream for its pages, by ticket; and how fast
//! its data arrives.

use std::sync::Arc;
use std::time::Instant;

use drover_proto::agent::v1::peer_service_server::PeerService;
use drover_proto::agent::v1::{
    HandOverGuestRequest, HandOverGuestResponse, MeasureLinkRequest, MeasureLinkResponse, ReopenStreamRequest,
    ReopenStreamResponse,
};
use drover_proto::failure::{Failure, Reason};
use drover_proto::identity::Identity;
use drover_proto::ids::{Attempt, HostId};
use drover_proto::time::proto_duration;
use tonic::{Request, Response, Status, Streaming};
use tracing::Span;

use super::{convert, limits, link, report};
use crate::hypervisor::Cookie;
use crate::jobs::Jobs;
use crate::jobs::arrive::HandOverOrder;
use crate::jobs::reopen::ReopenOrder;

/// The service for other agents.
pub struct PeerServer {
    jobs: Arc<Jobs>,
}

impl PeerServer {
    pub fn new(jobs: Arc<Jobs>) -> Self {
        Self { jobs }
    }
}

/// Whose agent asks.
fn agent<T>(request: &Request<T>) -> Result<HostId, Failure> {
    let peer = drover_proto::serve::peer(request).map_err(|status| Failure::from_status(&status))?;
    match peer.identity {
        Identity::Agent(from) => Ok(from),
        Identity::Controller | Identity::User(_) => Err(Failure::new(
            Reason::PermissionDenied,
            "only an agent hands guests over",
        )),
    }
}

#[tonic::async_trait]
impl PeerService for PeerServer {
    async fn hand_over_guest(
        &self,
        request: Request<HandOverGuestRequest>,
    ) -> Result<Response<HandOverGuestResponse>, Status> {
        let arrived = Instant::now();
        let from = agent(&request)?;
        let request = request.into_inner();
        let migration = convert::migration_id("migration_id", &request.migration_id)?;
        Span::current().record("drover.migration.id", migration.to_string());
        let order = HandOverOrder {
            from,
            migration,
            attempt: Attempt(request.attempt),
            ticket: convert::ticket(&request.ticket)?,
            cookie: Cookie(request.cookie.to_vec()),
            runs: request.runs,
            arrived,
        };
        let jobs = Arc::clone(&self.jobs);
        let taken = self.jobs.detached(async move { jobs.take_over(order).await }).await?;
        Ok(Response::new(HandOverGuestResponse {
            cookie: taken.arrival.cookie.0.into(),
            switch_time: Some(taken.arrival.switched.into()),
            elapsed: taken.elapsed.map(proto_duration),
            calls: taken.calls.into_iter().map(report::call).collect(),
            pages_missing: taken.pages_missing,
        }))
    }

    async fn reopen_stream(
        &self,
        request: Request<ReopenStreamRequest>,
    ) -> Result<Response<ReopenStreamResponse>, Status> {
        let from = agent(&request)?;
        let request = request.into_inner();
        let migration = convert::migration_id("migration_id", &request.migration_id)?;
        Span::current().record("drover.migration.id", migration.to_string());
        let order = ReopenOrder {
            from,
            migration,
            attempt: Attempt(request.attempt),
            ticket: convert::ticket(&request.ticket)?,
            xml: limits::xml("xml", request.xml)?,
            cookie: limits::cookie("cookie", &request.cookie)?,
        };
        let jobs = Arc::clone(&self.jobs);
        let reopened = self
            .jobs
            .detached(async move { jobs.reopen_stream(order).await })
            .await?;
        Ok(Response::new(ReopenStreamResponse {
            ticket: reopened.ticket.as_bytes().to_vec().into(),
            cookie: reopened.cookie.0.into(),
        }))
    }

    async fn measure_link(
        &self,
        request: Request<Streaming<MeasureLinkRequest>>,
    ) -> Result<Response<MeasureLinkResponse>, Status> {
        Ok(Response::new(link::take(request.into_inner()).await?))
    }
}
