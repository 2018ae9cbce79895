//! The agent of one host of the world: answers over real gRPC and mTLS, and does with a call what the test wants.

mod destination;
mod looks;
mod source;

use std::pin::Pin;
use std::time::Duration;

use drover_proto::agent::v1::agent_service_server::{AgentService, AgentServiceServer};
use drover_proto::agent::v1::watch_outgoing_response::Event;
use drover_proto::agent::v1::*;
use drover_proto::authorization::Authorize;
use drover_proto::failure::{Failure, Reason};
use drover_proto::roles::Roles;
use drover_proto::serve::{GrpcStream, accept};
use drover_proto::time::{now, proto_duration};
use drover_proto::tls::{ALPN_H2, Tls};
use drover_proto::v1::{Check, CheckResult, DestinationOverrides};
use futures::StreamExt;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::world::{Fault, Journal, State, World, progress};

#[derive(Clone)]
pub(crate) struct Agent {
    pub(crate) host: String,
    pub(crate) world: World,
}

/// Serves an agent and gives its address. It lives as long as the runtime of the test.
pub(crate) async fn serve(agent: Agent, tls: Tls) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let incoming = accept(listener, tls, &[ALPN_H2], CancellationToken::new());
    let incoming = incoming.map(|accepted| Ok::<_, std::io::Error>(GrpcStream::new(accepted)));
    tokio::spawn(
        tonic::transport::Server::builder()
            .layer(Authorize::new(Roles::default()))
            .add_service(AgentServiceServer::new(agent))
            .serve_with_incoming(incoming),
    );
    address
}

pub(crate) fn registration(host: &str, address: &str) -> drover_proto::v1::Host {
    drover_proto::v1::Host {
        name: format!("hosts/{host}"),
        management_address: address.to_owned(),
        agent_instance: "first".to_owned(),
        protocol_min: 1,
        protocol_max: 1,
        features: ["live", "tunnel", "overrides"].map(str::to_owned).to_vec(),
        ..drover_proto::v1::Host::default()
    }
}

fn refuse(reason: Reason) -> Status {
    Failure::new(reason, format!("refused: {}", reason.name())).into()
}

fn lost() -> Status {
    Status::unavailable("the connection was lost")
}

impl Agent {
    /// Takes a call in: it may wait, be lost or be refused. It is carried out even if the caller goes away.
    async fn call<R: Send + 'static>(
        &self,
        method: &str,
        fence: Option<Fence>,
        act: impl FnOnce(&mut State) -> Result<R, Status> + Send + 'static,
    ) -> Result<Response<R>, Status> {
        let (agent, method) = (self.clone(), method.to_owned());
        let task = tokio::spawn(async move { agent.take(&method, fence, act).await });
        task.await.expect("the agent's own fault").map(Response::new)
    }

    async fn take<R>(
        &self,
        method: &str,
        fence: Option<Fence>,
        act: impl FnOnce(&mut State) -> Result<R, Status>,
    ) -> Result<R, Status> {
        let held = {
            let mut state = self.world.lock();
            if state.away.contains(&self.host) {
                return Err(lost());
            }
            state.calls.push((self.host.clone(), method.to_owned()));
            state.held.get(method).cloned()
        };
        if let Some(held) = held {
            held.acquire().await.unwrap().forget();
        }
        let mut state = self.world.lock();
        let fault = state
            .faults
            .get_mut(method)
            .filter(|faults| !faults.is_empty())
            .map(|faults| faults.remove(0));
        match fault {
            Some(Fault::LoseRequest) => return Err(lost()),
            Some(Fault::Refuse(reason)) => return Err(refuse(reason)),
            Some(Fault::LoseAnswer) | None => {}
        }
        if let Some(fence) = fence {
            self.obey(&mut state, &fence)?;
        }
        let answer = act(&mut state);
        state.assert_one_runs();
        if fault == Some(Fault::LoseAnswer) {
            Err(lost())
        } else {
            answer
        }
    }

    fn obey(&self, state: &mut State, fence: &Fence) -> Result<(), Status> {
        let host = state.host(&self.host);
        let equal = fence.term == host.highest_term && fence.store_instance == host.store_instance;
        if fence.term > host.highest_term {
            host.highest_term = fence.term;
            host.store_instance.clone_from(&fence.store_instance);
        } else if !equal {
            return Err(refuse(Reason::StaleTerm));
        }
        Ok(())
    }
}

fn peer_of(record: &JournalRecord) -> String {
    record.peer_host.trim_start_matches("hosts/").to_owned()
}

type Watch = Pin<Box<dyn tokio_stream::Stream<Item = Result<WatchOutgoingResponse, Status>> + Send>>;

#[tonic::async_trait]
impl AgentService for Agent {
    type WatchOutgoingStream = Watch;

    async fn get_agent_status(&self, request: Request<GetAgentStatusRequest>) -> Result<Response<AgentStatus>, Status> {
        self.do_get_agent_status(request).await
    }

    async fn inspect_host(&self, request: Request<InspectHostRequest>) -> Result<Response<HostFacts>, Status> {
        self.do_inspect_host(request).await
    }

    async fn list_guests(&self, request: Request<ListGuestsRequest>) -> Result<Response<ListGuestsResponse>, Status> {
        self.do_list_guests(request).await
    }

    async fn inspect_guest(&self, request: Request<InspectGuestRequest>) -> Result<Response<GuestFacts>, Status> {
        self.do_inspect_guest(request).await
    }

    async fn check_incoming(
        &self,
        request: Request<CheckIncomingRequest>,
    ) -> Result<Response<CheckIncomingResponse>, Status> {
        self.do_check_incoming(request).await
    }

    async fn write_storage_probes(
        &self,
        request: Request<WriteStorageProbesRequest>,
    ) -> Result<Response<WriteStorageProbesResponse>, Status> {
        self.do_write_storage_probes(request).await
    }

    async fn read_storage_probes(
        &self,
        request: Request<ReadStorageProbesRequest>,
    ) -> Result<Response<ReadStorageProbesResponse>, Status> {
        self.do_read_storage_probes(request).await
    }

    async fn remove_storage_probes(
        &self,
        request: Request<RemoveStorageProbesRequest>,
    ) -> Result<Response<RemoveStorageProbesResponse>, Status> {
        self.do_remove_storage_probes(request).await
    }

    async fn probe_peer(&self, request: Request<ProbePeerRequest>) -> Result<Response<ProbePeerResponse>, Status> {
        self.do_probe_peer(request).await
    }

    async fn sample_guest(&self, request: Request<SampleGuestRequest>) -> Result<Response<GuestSample>, Status> {
        self.do_sample_guest(request).await
    }

    async fn begin_outgoing(
        &self,
        request: Request<BeginOutgoingRequest>,
    ) -> Result<Response<BeginOutgoingResponse>, Status> {
        self.do_begin_outgoing(request).await
    }

    async fn prepare_incoming(
        &self,
        request: Request<PrepareIncomingRequest>,
    ) -> Result<Response<PrepareIncomingResponse>, Status> {
        self.do_prepare_incoming(request).await
    }

    async fn start_migrate(
        &self,
        request: Request<StartMigrateRequest>,
    ) -> Result<Response<StartMigrateResponse>, Status> {
        self.do_start_migrate(request).await
    }

    async fn adjust_outgoing(
        &self,
        request: Request<AdjustOutgoingRequest>,
    ) -> Result<Response<AdjustOutgoingResponse>, Status> {
        self.do_adjust_outgoing(request).await
    }

    async fn watch_outgoing(&self, request: Request<WatchOutgoingRequest>) -> Result<Response<Watch>, Status> {
        self.do_watch_outgoing(request).await
    }

    async fn get_migration_status(
        &self,
        request: Request<GetMigrationStatusRequest>,
    ) -> Result<Response<MigrationStatus>, Status> {
        self.do_get_migration_status(request).await
    }

    async fn hand_over(&self, request: Request<HandOverRequest>) -> Result<Response<HandOverResponse>, Status> {
        self.do_hand_over(request).await
    }

    async fn finish_incoming(
        &self,
        request: Request<FinishIncomingRequest>,
    ) -> Result<Response<FinishIncomingResponse>, Status> {
        self.do_finish_incoming(request).await
    }

    async fn abort_outgoing(
        &self,
        request: Request<AbortOutgoingRequest>,
    ) -> Result<Response<MigrationStatus>, Status> {
        self.do_abort_outgoing(request).await
    }

    async fn revoke_incoming(
        &self,
        request: Request<RevokeIncomingRequest>,
    ) -> Result<Response<MigrationStatus>, Status> {
        self.do_revoke_incoming(request).await
    }

    async fn settle_outgoing(
        &self,
        request: Request<SettleOutgoingRequest>,
    ) -> Result<Response<MigrationStatus>, Status> {
        self.do_settle_outgoing(request).await
    }

    async fn settle_incoming(
        &self,
        request: Request<SettleIncomingRequest>,
    ) -> Result<Response<MigrationStatus>, Status> {
        self.do_settle_incoming(request).await
    }

    async fn close_migration(
        &self,
        request: Request<CloseMigrationRequest>,
    ) -> Result<Response<CloseMigrationResponse>, Status> {
        self.do_close_migration(request).await
    }
}
