//! What others may ask of this agent, over gRPC: reads a message, asks [`crate::jobs`], writes a message.
//!
//! Every call that changes something runs as a task of its own, so that a caller that goes away cuts nothing off.

mod convert;
mod images;
mod inspect;
mod limits;
mod link;
mod orders;
mod peer;
mod probes;
mod reach;
pub mod readers;
pub(crate) mod report;
mod sample;
mod watch;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use drover_proto::agent::v1 as agent;
use drover_proto::agent::v1::agent_service_server::AgentService;
use drover_proto::failure::Failure;
use drover_proto::v1::{Host, UnfinishedJournal};
use futures::Stream;
use tonic::{Request, Response, Status};
use tracing::Span;

use crate::jobs::Jobs;
use crate::jobs::fence::Reference;
use crate::jobs::resolve::By;
use crate::probe::Probes;

pub use peer::PeerServer;

type Reply<T> = Result<Response<T>, Status>;

/// The service for the controller.
pub struct AgentServer {
    jobs: Arc<Jobs>,
    probes: Probes,
    folders: Folders,
    /// What the agent says of its host when it registers.
    about: Arc<dyn Fn() -> Host + Send + Sync>,
    /// What this host lacks to migrate at all.
    unfit: Option<String>,
}

/// Where the agent writes.
#[derive(Clone, Debug)]
pub struct Folders {
    /// Journal, term, probes.
    pub state: PathBuf,
    /// Sockets.
    pub run: PathBuf,
}

impl AgentServer {
    pub fn new(
        jobs: Arc<Jobs>,
        probes: Probes,
        folders: Folders,
        about: Arc<dyn Fn() -> Host + Send + Sync>,
        unfit: Option<String>,
    ) -> Self {
        Self {
            jobs,
            probes,
            folders,
            about,
            unfit,
        }
    }

    async fn status(&self, reference: Reference) -> Result<agent::MigrationStatus, Failure> {
        Ok(report::status(&self.jobs.host, self.jobs.status(reference).await?))
    }
}

/// Journals that are not closed, as the controller's registry wants them.
pub fn unfinished(jobs: &Jobs) -> Vec<UnfinishedJournal> {
    let open = jobs
        .journal
        .records()
        .into_iter()
        .filter(|record| record.closed.is_none());
    open.map(|record| report::unfinished(&jobs.host, &record)).collect()
}

/// Which migration a call is about; also for the span and the log lines of the call.
fn about(reference: Option<agent::MigrationRef>) -> Result<Reference, Failure> {
    let reference = convert::reference(reference)?;
    Span::current().record("drover.migration.id", reference.migration.to_string());
    Ok(reference)
}

#[tonic::async_trait]
impl AgentService for AgentServer {
    async fn get_agent_status(&self, request: Request<agent::GetAgentStatusRequest>) -> Reply<agent::AgentStatus> {
        if let Some(fence) = request.into_inner().fence {
            self.jobs.obey(&convert::fence(Some(fence))?).await?;
        }
        let term = self.jobs.terms.known();
        Ok(Response::new(agent::AgentStatus {
            host: Some((self.about)()),
            highest_term: term.as_ref().map_or(0, |term| term.number),
            store_instance: term.map(|term| term.store_instance).unwrap_or_default(),
            unfinished_journals: unfinished(&self.jobs),
        }))
    }

    async fn inspect_host(&self, _: Request<agent::InspectHostRequest>) -> Reply<agent::HostFacts> {
        Ok(Response::new(self.host_facts().await?))
    }

    async fn list_guests(&self, _: Request<agent::ListGuestsRequest>) -> Reply<agent::ListGuestsResponse> {
        Ok(Response::new(self.all_guests().await?))
    }

    async fn inspect_guest(&self, request: Request<agent::InspectGuestRequest>) -> Reply<agent::GuestFacts> {
        Ok(Response::new(self.one_guest(&request.into_inner()).await?))
    }

    async fn check_incoming(
        &self,
        request: Request<agent::CheckIncomingRequest>,
    ) -> Reply<agent::CheckIncomingResponse> {
        Ok(Response::new(self.checks(request.into_inner()).await?))
    }

    async fn write_storage_probes(
        &self,
        request: Request<agent::WriteStorageProbesRequest>,
    ) -> Reply<agent::WriteStorageProbesResponse> {
        let request = request.into_inner();
        self.jobs.obey(&convert::fence(request.fence)?).await?;
        Ok(Response::new(self.write_probes(&request.guest_uuid).await?))
    }

    async fn read_storage_probes(
        &self,
        request: Request<agent::ReadStorageProbesRequest>,
    ) -> Reply<agent::ReadStorageProbesResponse> {
        let request = request.into_inner();
        let mut response = self.read_probes(limits::probes("probes", request.probes)?).await?;
        response.rooms = self.rooms(request.images).await?;
        Ok(Response::new(response))
    }

    async fn remove_storage_probes(
        &self,
        request: Request<agent::RemoveStorageProbesRequest>,
    ) -> Reply<agent::RemoveStorageProbesResponse> {
        let request = request.into_inner();
        self.jobs.obey(&convert::fence(request.fence)?).await?;
        self.remove_probes(limits::probes("probes", request.probes)?).await?;
        Ok(Response::new(agent::RemoveStorageProbesResponse {}))
    }

    async fn probe_peer(&self, request: Request<agent::ProbePeerRequest>) -> Reply<agent::ProbePeerResponse> {
        Ok(Response::new(reach::probe(&self.jobs.tls, request.into_inner()).await?))
    }

    async fn sample_guest(&self, request: Request<agent::SampleGuestRequest>) -> Reply<agent::GuestSample> {
        Ok(Response::new(
            sample::take(&self.jobs, &request.into_inner().guest_uuid).await?,
        ))
    }

    async fn begin_outgoing(
        &self,
        request: Request<agent::BeginOutgoingRequest>,
    ) -> Reply<agent::BeginOutgoingResponse> {
        let (fence, order) = orders::begin(request.into_inner(), self.jobs.no_life())?;
        let jobs = Arc::clone(&self.jobs);
        let answer = self
            .jobs
            .detached(async move { jobs.begin_outgoing(fence, order).await })
            .await?;
        Ok(Response::new(convert::begun(answer)))
    }

    async fn prepare_incoming(
        &self,
        request: Request<agent::PrepareIncomingRequest>,
    ) -> Reply<agent::PrepareIncomingResponse> {
        let (fence, order) = orders::prepare(request.into_inner())?;
        let jobs = Arc::clone(&self.jobs);
        let answer = self
            .jobs
            .detached(async move { jobs.prepare_incoming(fence, order).await })
            .await?;
        Ok(Response::new(agent::PrepareIncomingResponse {
            ticket: answer.ticket.as_bytes().to_vec().into(),
            cookie: answer.cookie.0.into(),
        }))
    }

    async fn start_migrate(&self, request: Request<agent::StartMigrateRequest>) -> Reply<agent::StartMigrateResponse> {
        let (fence, order) = orders::start(request.into_inner())?;
        let jobs = Arc::clone(&self.jobs);
        self.jobs
            .detached(async move { jobs.start_migrate(fence, order).await })
            .await?;
        Ok(Response::new(agent::StartMigrateResponse {}))
    }

    async fn adjust_outgoing(
        &self,
        request: Request<agent::AdjustOutgoingRequest>,
    ) -> Reply<agent::AdjustOutgoingResponse> {
        let (fence, reference, limits) = orders::adjust(request.into_inner())?;
        let jobs = Arc::clone(&self.jobs);
        self.jobs
            .detached(async move { jobs.adjust_outgoing(fence, reference, limits).await })
            .await?;
        Ok(Response::new(agent::AdjustOutgoingResponse {}))
    }

    type WatchOutgoingStream = Pin<Box<dyn Stream<Item = Result<agent::WatchOutgoingResponse, Status>> + Send>>;

    async fn watch_outgoing(&self, request: Request<agent::WatchOutgoingRequest>) -> Reply<Self::WatchOutgoingStream> {
        let reference = about(request.into_inner().migration)?;
        Ok(Response::new(watch::outgoing(&self.jobs, reference)?))
    }

    async fn get_migration_status(
        &self,
        request: Request<agent::GetMigrationStatusRequest>,
    ) -> Reply<agent::MigrationStatus> {
        Ok(Response::new(
            self.status(about(request.into_inner().migration)?).await?,
        ))
    }

    async fn hand_over(&self, request: Request<agent::HandOverRequest>) -> Reply<agent::HandOverResponse> {
        let request = request.into_inner();
        let (fence, reference) = (convert::fence(request.fence)?, about(request.migration)?);
        let jobs = Arc::clone(&self.jobs);
        let summary = self
            .jobs
            .detached(async move { jobs.hand_over(fence, reference).await })
            .await?;
        Ok(Response::new(agent::HandOverResponse {
            summary: Some(report::summary(summary)),
        }))
    }

    async fn finish_incoming(
        &self,
        request: Request<agent::FinishIncomingRequest>,
    ) -> Reply<agent::FinishIncomingResponse> {
        let request = request.into_inner();
        let (fence, reference) = (convert::fence(request.fence)?, about(request.migration)?);
        let jobs = Arc::clone(&self.jobs);
        let taken = self
            .jobs
            .detached(async move { jobs.finish_incoming(fence, reference, request.runs).await })
            .await?;
        Ok(Response::new(agent::FinishIncomingResponse {
            switch_time: Some(taken.arrival.switched.into()),
        }))
    }

    async fn abort_outgoing(&self, request: Request<agent::AbortOutgoingRequest>) -> Reply<agent::MigrationStatus> {
        let request = request.into_inner();
        let (fence, reference) = (convert::fence(request.fence)?, about(request.migration)?);
        let jobs = Arc::clone(&self.jobs);
        let reason = limits::reason(request.reason);
        self.jobs
            .detached(async move { jobs.abort_outgoing(fence, reference, reason).await })
            .await?;
        Ok(Response::new(self.status(reference).await?))
    }

    async fn revoke_incoming(&self, request: Request<agent::RevokeIncomingRequest>) -> Reply<agent::MigrationStatus> {
        let request = request.into_inner();
        let (fence, reference) = (convert::fence(request.fence)?, about(request.migration)?);
        let jobs = Arc::clone(&self.jobs);
        self.jobs
            .detached(async move { jobs.revoke_incoming(fence, reference).await })
            .await?;
        Ok(Response::new(self.status(reference).await?))
    }

    async fn settle_outgoing(&self, request: Request<agent::SettleOutgoingRequest>) -> Reply<agent::MigrationStatus> {
        let request = request.into_inner();
        let (verdict, by) = (convert::verdict_from(request.verdict)?, By::from_fenced(request.fenced));
        let (fence, reference) = (convert::fence(request.fence)?, about(request.migration)?);
        let jobs = Arc::clone(&self.jobs);
        self.jobs
            .detached(async move { jobs.settle_outgoing(fence, reference, verdict, by).await })
            .await?;
        Ok(Response::new(self.status(reference).await?))
    }

    async fn settle_incoming(&self, request: Request<agent::SettleIncomingRequest>) -> Reply<agent::MigrationStatus> {
        let (fence, order) = orders::settle_incoming(request.into_inner())?;
        let reference = order.reference;
        let jobs = Arc::clone(&self.jobs);
        self.jobs
            .detached(async move {
                jobs.settle_incoming(fence, reference, order.verdict, order.by, order.news)
                    .await
            })
            .await?;
        Ok(Response::new(self.status(reference).await?))
    }

    async fn close_migration(
        &self,
        request: Request<agent::CloseMigrationRequest>,
    ) -> Reply<agent::CloseMigrationResponse> {
        let request = request.into_inner();
        let (fence, reference) = (convert::fence(request.fence)?, about(request.migration)?);
        let jobs = Arc::clone(&self.jobs);
        self.jobs
            .detached(async move { jobs.close_migration(fence, reference).await })
            .await?;
        Ok(Response::new(agent::CloseMigrationResponse {}))
    }
}
