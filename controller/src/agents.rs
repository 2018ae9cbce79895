//! The agents, as the controller commands them: one channel per host at its registered address, and only the agent of
//! that very host may answer.
//!
//! Promise: every call has a deadline, carries the trace, and commands only while this controller is in office.
//! An answer is a [`Failure`] that tells a refusal from a lost answer (`is_evidence`).

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use drover_proto::agent::v1::agent_service_client::AgentServiceClient;
use drover_proto::agent::v1::{self as agent, Fence};
use drover_proto::channel::channel;
use drover_proto::failure::{Failure, Reason};
use drover_proto::identity::Identity;
use drover_proto::ids::{HostId, MigrationId};
use drover_proto::tls::Tls;
use drover_proto::trace::inject_current;
use drover_proto::{MAX_DECODING_MESSAGE_BYTES, MAX_ENCODING_MESSAGE_BYTES};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};
use tracing::field::Empty;
use tracing::{Instrument, Span};

use crate::office::Office;
use crate::store::Store;

/// For calls that only look.
const LOOK: Duration = Duration::from_secs(10);

/// For calls that write probe files, which may lie on a slow network file system.
const PROBE: Duration = Duration::from_secs(20);

/// For calls that act through libvirt: longer than the agent itself waits for anything.
const ACT: Duration = Duration::from_secs(90);

/// All agents.
pub struct Agents {
    tls: Tls,
    store: Arc<dyn Store>,
    office: Arc<Office>,
    channels: Mutex<HashMap<HostId, (String, Channel)>>,
}

/// One host's agent.
#[derive(Clone)]
pub struct Agent {
    pub host: HostId,
    /// Where other agents dial it for data, best first.
    pub migration_addresses: Vec<String>,
    /// Where the controller dials it.
    pub management_address: String,
    client: AgentServiceClient<Channel>,
    office: Arc<Office>,
    /// For spans: which migration the calls are about.
    migration: Option<MigrationId>,
}

impl Agents {
    pub fn new(tls: Tls, store: Arc<dyn Store>, office: Arc<Office>) -> Self {
        Self {
            tls,
            store,
            office,
            channels: Mutex::default(),
        }
    }

    /// The agent of a registered host. Connects at its first call.
    pub async fn of(&self, host: &HostId) -> Result<Agent, Failure> {
        let failed = |error| Failure::new(Reason::StoreFailed, format!("cannot look up host {host}: {error}"));
        let record = self.store.host(host).await.map_err(failed)?.ok_or_else(|| {
            Failure::new(Reason::HostNotFound, format!("no host {host} is registered"))
                .with_remedy("`drover host list` shows the hosts whose agents have registered")
        })?;
        let address = &record.registration.management_address;
        let addresses = &record.registration.migration_addresses;
        let migration_addresses = if addresses.is_empty() {
            vec![address.clone()]
        } else {
            addresses.iter().map(|address| address.address.clone()).collect()
        };
        let client = AgentServiceClient::new(self.channel(host, address)?)
            .max_decoding_message_size(MAX_DECODING_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_ENCODING_MESSAGE_BYTES);
        Ok(Agent {
            host: host.clone(),
            migration_addresses,
            management_address: address.clone(),
            client,
            office: Arc::clone(&self.office),
            migration: None,
        })
    }

    /// A host is heard of again: a connection from before may lead nowhere.
    pub fn dial_again(&self, host: &HostId) {
        self.channels
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(host);
    }

    /// The channel to a host: the one there is, unless its agent has moved.
    fn channel(&self, host: &HostId, address: &str) -> Result<Channel, Failure> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, channel)) = channels.get(host)
            && known == address
        {
            return Ok(channel.clone());
        }
        let made = channel(&self.tls, address, Identity::Agent(host.clone())).map_err(|error| {
            Failure::new(
                Reason::HostUnreachable,
                format!("host {host} cannot be dialled: {error}"),
            )
            .at_host(host.clone())
        })?;
        channels.insert(host.clone(), (address.to_owned(), made.clone()));
        Ok(made)
    }
}

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident, $method:literal, $request:ident -> $response:ident, $deadline:expr;)*) => {
        impl Agent {
            $(
                $(#[$doc])*
                pub async fn $name(&self, request: agent::$request) -> Result<agent::$response, Failure> {
                    let mut client = self.client.clone();
                    let call = async move |request| client.$name(request).await;
                    Ok(self.call($method, request, $deadline, call).await?.into_inner())
                }
            )*
        }
    };
}

calls! {
    get_agent_status, "GetAgentStatus", GetAgentStatusRequest -> AgentStatus, LOOK;
    inspect_host, "InspectHost", InspectHostRequest -> HostFacts, LOOK;
    list_guests, "ListGuests", ListGuestsRequest -> ListGuestsResponse, LOOK;
    inspect_guest, "InspectGuest", InspectGuestRequest -> GuestFacts, LOOK;
    check_incoming, "CheckIncoming", CheckIncomingRequest -> CheckIncomingResponse, PROBE;
    write_storage_probes, "WriteStorageProbes", WriteStorageProbesRequest -> WriteStorageProbesResponse, PROBE;
    read_storage_probes, "ReadStorageProbes", ReadStorageProbesRequest -> ReadStorageProbesResponse, PROBE;
    remove_storage_probes, "RemoveStorageProbes", RemoveStorageProbesRequest -> RemoveStorageProbesResponse, PROBE;
    probe_peer, "ProbePeer", ProbePeerRequest -> ProbePeerResponse, LOOK;
    sample_guest, "SampleGuest", SampleGuestRequest -> GuestSample, LOOK;
    begin_outgoing, "BeginOutgoing", BeginOutgoingRequest -> BeginOutgoingResponse, ACT;
    prepare_incoming, "PrepareIncoming", PrepareIncomingRequest -> PrepareIncomingResponse, ACT;
    start_migrate, "StartMigrate", StartMigrateRequest -> StartMigrateResponse, ACT;
    adjust_outgoing, "AdjustOutgoing", AdjustOutgoingRequest -> AdjustOutgoingResponse, LOOK;
    get_migration_status, "GetMigrationStatus", GetMigrationStatusRequest -> MigrationStatus, LOOK;
    hand_over, "HandOver", HandOverRequest -> HandOverResponse, ACT;
    finish_incoming, "FinishIncoming", FinishIncomingRequest -> FinishIncomingResponse, ACT;
    abort_outgoing, "AbortOutgoing", AbortOutgoingRequest -> MigrationStatus, ACT;
    revoke_incoming, "RevokeIncoming", RevokeIncomingRequest -> MigrationStatus, ACT;
    settle_outgoing, "SettleOutgoing", SettleOutgoingRequest -> MigrationStatus, ACT;
    settle_incoming, "SettleIncoming", SettleIncomingRequest -> MigrationStatus, ACT;
    close_migration, "CloseMigration", CloseMigrationRequest -> CloseMigrationResponse, ACT;
}

impl Agent {
    /// The same agent, for calls about one migration.
    #[must_use]
    pub fn about(mut self, migration: MigrationId) -> Self {
        self.migration = Some(migration);
        self
    }

    /// The proof of office for a command.
    pub fn fence(&self) -> Result<Option<Fence>, Failure> {
        self.office.fence().map(Some)
    }

    /// Everything that happens at the source from now on. Only its beginning has a deadline.
    pub async fn watch_outgoing(
        &self,
        request: agent::WatchOutgoingRequest,
    ) -> Result<Streaming<agent::WatchOutgoingResponse>, Failure> {
        let mut client = self.client.clone();
        let span = self.span("WatchOutgoing");
        let work = async {
            let mut request = Request::new(request);
            inject_current(request.metadata_mut());
            let answer = tokio::time::timeout(LOOK, client.watch_outgoing(request)).await;
            self.judge(answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time"))))
        };
        Ok(work.instrument(span).await?.into_inner())
    }

    async fn call<Q, R, F>(
        &self,
        method: &'static str,
        message: Q,
        deadline: Duration,
        call: impl FnOnce(Request<Q>) -> F,
    ) -> Result<Response<R>, Failure>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let span = self.span(method);
        let work = async {
            let mut request = Request::new(message);
            request.set_timeout(deadline);
            inject_current(request.metadata_mut());
            // The peer keeps the deadline too, but a peer that is gone keeps nothing.
            let answer = tokio::time::timeout(deadline, call(request)).await;
            self.judge(answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time"))))
        };
        work.instrument(span).await
    }

    /// Turns a status into a failure at this host, and notices that somebody else is in office.
    fn judge<R>(&self, answer: Result<R, Status>) -> Result<R, Failure> {
        let status = match answer {
            Ok(response) => {
                Span::current().record("rpc.response.status_code", "OK");
                return Ok(response);
            }
            Err(status) => status,
        };
        let failure = Failure::from_status(&status);
        let span = Span::current();
        span.record("rpc.response.status_code", code_name(status.code()));
        span.record("drover.reason", failure.reason.name());
        if !failure.is_evidence() {
            span.record("otel.status_code", "ERROR");
        }
        if failure.reason == Reason::StaleTerm && failure.is_answered() {
            self.office.leave(&format!("{} answers: {failure}", self.host));
        }
        Err(failure.at_host(self.host.clone()))
    }

    fn span(&self, method: &'static str) -> Span {
        let span = tracing::info_span!(
            "rpc",
            otel.name = format!("drover.agent.v1.AgentService/{method}"),
            otel.kind = "client",
            otel.status_code = Empty,
            rpc.system.name = "grpc",
            rpc.method = format!("drover.agent.v1.AgentService/{method}"),
            rpc.response.status_code = Empty,
            drover.host.id = %self.host,
            drover.migration.id = Empty,
            drover.reason = Empty,
        );
        if let Some(migration) = self.migration {
            span.record("drover.migration.id", tracing::field::display(migration));
        }
        span
    }
}

/// The name of a code as gRPC writes it: `NOT_FOUND`.
fn code_name(code: tonic::Code) -> String {
    let words = format!("{code:?}");
    let mut name = String::new();
    for (at, letter) in words.chars().enumerate() {
        if at > 0 && letter.is_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}
