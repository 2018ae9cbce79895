//! The agent of one host of the world: answers over real gRPC and mTLS, and does with a call what the test wants.

use std::pin::Pin;
use std::time::Duration;

use drover_proto::agent::v1::agent_service_server::{AgentService, AgentServiceServer};
use drover_proto::agent::v1::watch_outgoing_response::Event;
use drover_proto::agent::v1::*;
use drover_proto::authorization::Authorize;
use drover_proto::failure::{Failure, Reason};
use drover_proto::roles::Roles;
use drover_proto::serve::{GrpcStream, accept};
use drover_proto::time::now;
use drover_proto::tls::{ALPN_H2, Tls};
use drover_proto::v1::{Check, CheckResult};
use futures::StreamExt;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::world::{Fault, Journal, State, World, progress};

#[derive(Clone)]
pub struct Agent {
    pub host: String,
    pub world: World,
}

/// Serves an agent and gives its address. It lives as long as the runtime of the test.
pub async fn serve(agent: Agent, tls: Tls) -> String {
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

pub fn registration(host: &str, address: &str) -> drover_proto::v1::Host {
    drover_proto::v1::Host {
        name: format!("hosts/{host}"),
        management_address: address.to_owned(),
        agent_instance: "first".to_owned(),
        protocol_min: 1,
        protocol_max: 1,
        features: vec!["live".to_owned(), "tunnel".to_owned()],
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
        let fault = state.faults.get_mut(method).filter(|faults| !faults.is_empty()).map(|faults| faults.remove(0));
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
        if fault == Some(Fault::LoseAnswer) { Err(lost()) } else { answer }
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

    async fn get_agent_status(&self, _: Request<GetAgentStatusRequest>) -> Result<Response<AgentStatus>, Status> {
        let host = self.host.clone();
        self.call("GetAgentStatus", None, move |state| {
            let (highest_term, store_instance) = {
                let host = state.host(&host);
                (host.highest_term, host.store_instance.clone())
            };
            let host = Some(registration(&host, "127.0.0.1:1"));
            Ok(AgentStatus { host, highest_term, store_instance, unfinished_journals: Vec::new() })
        })
        .await
    }

    async fn inspect_host(&self, _: Request<InspectHostRequest>) -> Result<Response<HostFacts>, Status> {
        let host = self.host.clone();
        self.call("InspectHost", None, move |_| {
            Ok(HostFacts {
                host_uuid: host,
                arch: "x86_64".to_owned(),
                memory_available_bytes: 1 << 40,
                bridges: vec!["br0".to_owned()],
                ..HostFacts::default()
            })
        })
        .await
    }

    async fn list_guests(&self, _: Request<ListGuestsRequest>) -> Result<Response<ListGuestsResponse>, Status> {
        let host = self.host.clone();
        self.call("ListGuests", None, move |state| {
            Ok(ListGuestsResponse { guests: state.host(&host).guests.values().cloned().collect() })
        })
        .await
    }

    async fn inspect_guest(&self, request: Request<InspectGuestRequest>) -> Result<Response<GuestFacts>, Status> {
        let (host, uuid) = (self.host.clone(), request.into_inner().guest_uuid);
        self.call("InspectGuest", None, move |state| {
            state.host(&host).guests.get(&uuid).cloned().ok_or_else(|| refuse(Reason::GuestNotFound))
        })
        .await
    }

    async fn check_incoming(
        &self,
        _: Request<CheckIncomingRequest>,
    ) -> Result<Response<CheckIncomingResponse>, Status> {
        let passed = |id: &str| Check {
            id: id.to_owned(),
            result: CheckResult::Passed.into(),
            ..Check::default()
        };
        self.call("CheckIncoming", None, move |_| {
            Ok(CheckIncomingResponse { checks: vec![passed("machine-type"), passed("cpu")] })
        })
        .await
    }

    async fn write_storage_probes(
        &self,
        request: Request<WriteStorageProbesRequest>,
    ) -> Result<Response<WriteStorageProbesResponse>, Status> {
        let (host, request) = (self.host.clone(), request.into_inner());
        self.call("WriteStorageProbes", request.fence, move |state| {
            let disks = state.host(&host).guests[&request.guest_uuid].disks.clone();
            // A repeat replaces what an earlier one left.
            state.host(&host).probes.clear();
            let probes = disks.into_iter().map(|disk| {
                state.host(&host).probes.insert(disk.source.clone());
                StorageProbe { image_path: disk.source, ..StorageProbe::default() }
            });
            Ok(WriteStorageProbesResponse { probes: probes.collect(), failures: Vec::new() })
        })
        .await
    }

    async fn read_storage_probes(
        &self,
        request: Request<ReadStorageProbesRequest>,
    ) -> Result<Response<ReadStorageProbesResponse>, Status> {
        let (host, request) = (self.host.clone(), request.into_inner());
        self.call("ReadStorageProbes", None, move |state| {
            let shared = state.host(&host).shares;
            let result = |probe: StorageProbe| StorageProbeResult {
                image_path: probe.image_path,
                shared,
                problem: String::new(),
            };
            Ok(ReadStorageProbesResponse { results: request.probes.into_iter().map(result).collect() })
        })
        .await
    }

    async fn remove_storage_probes(
        &self,
        request: Request<RemoveStorageProbesRequest>,
    ) -> Result<Response<RemoveStorageProbesResponse>, Status> {
        let (host, request) = (self.host.clone(), request.into_inner());
        self.call("RemoveStorageProbes", request.fence, move |state| {
            for probe in request.probes {
                state.host(&host).probes.remove(&probe.image_path);
            }
            Ok(RemoveStorageProbesResponse {})
        })
        .await
    }

    async fn begin_outgoing(
        &self,
        request: Request<BeginOutgoingRequest>,
    ) -> Result<Response<BeginOutgoingResponse>, Status> {
        let (name, request) = (self.host.clone(), request.into_inner());
        self.call("BeginOutgoing", request.fence, move |state| {
            let reference = request.migration.unwrap();
            let host = state.host(&name);
            let guest = host.guests.get_mut(&reference.guest_uuid).ok_or_else(|| refuse(Reason::GuestNotFound))?;
            if guest.incarnation != request.incarnation {
                return Err(refuse(Reason::IncarnationMismatch));
            }
            let journal = host.journals.entry(reference.migration_id.clone()).or_insert_with(|| Journal {
                record: JournalRecord {
                    migration: Some(reference.clone()),
                    state: JournalState::Sending.into(),
                    state_before: guest.state,
                    autostart_before: guest.autostart,
                    persistent: guest.persistent,
                    incarnation: guest.incarnation.clone(),
                    peer_host: request.destination_host.clone(),
                    ..JournalRecord::default()
                },
                ..Journal::default()
            });
            if journal.record.tombstoned {
                return Err(refuse(Reason::Tombstoned));
            }
            guest.autostart = false;
            Ok(BeginOutgoingResponse {
                xml: "<domain/>".to_owned(),
                guest_name: guest.name.clone(),
                state_before: journal.record.state_before,
                autostart_before: journal.record.autostart_before,
                ..BeginOutgoingResponse::default()
            })
        })
        .await
    }

    async fn prepare_incoming(
        &self,
        request: Request<PrepareIncomingRequest>,
    ) -> Result<Response<PrepareIncomingResponse>, Status> {
        let (name, request) = (self.host.clone(), request.into_inner());
        self.call("PrepareIncoming", request.fence, move |state| {
            let reference = request.migration.unwrap();
            let incarnation = state.incarnation();
            let source = request.source_host.trim_start_matches("hosts/").to_owned();
            let mut copy = state.host(&source).guests[&reference.guest_uuid].clone();
            let host = state.host(&name);
            if let Some(known) = host.journals.get(&reference.migration_id) {
                if known.record.tombstoned || known.record.state() != JournalState::Waiting {
                    return Err(refuse(Reason::Tombstoned));
                }
            } else {
                copy.set_state(LibvirtState::PausedMigrating);
                copy.incarnation = Some(incarnation.clone());
                copy.persistent = false;
                host.guests.insert(reference.guest_uuid.clone(), copy);
                let record = JournalRecord {
                    migration: Some(reference.clone()),
                    state: JournalState::Waiting.into(),
                    incarnation: Some(incarnation),
                    autostart_before: request.autostart_before,
                    peer_host: request.source_host.clone(),
                    ..JournalRecord::default()
                };
                host.journals.insert(reference.migration_id, Journal { record, ..Journal::default() });
            }
            Ok(PrepareIncomingResponse { ticket: vec![7; 32].into(), cookie: vec![8].into() })
        })
        .await
    }

    async fn start_migrate(
        &self,
        request: Request<StartMigrateRequest>,
    ) -> Result<Response<StartMigrateResponse>, Status> {
        let (name, request, world) = (self.host.clone(), request.into_inner(), self.world.clone());
        self.call("StartMigrate", request.fence, move |state| {
            let id = request.migration.unwrap().migration_id;
            let journal = state.host(&name).journals.get_mut(&id).ok_or_else(|| refuse(Reason::MigrationState))?;
            if journal.record.tombstoned {
                return Err(refuse(Reason::Tombstoned));
            }
            assert_eq!(request.ticket.as_ref(), [7; 32]);
            assert!(!request.destination_addresses.is_empty());
            if journal.performing || journal.outcome != PerformOutcome::Unspecified {
                return Ok(StartMigrateResponse {});
            }
            (journal.performing, journal.in_flight) = (true, true);
            let destination = peer_of(&journal.record);
            tokio::spawn(async move {
                world.gate.acquire().await.unwrap().forget();
                world.lock().complete(&name, &destination, &id);
            });
            Ok(StartMigrateResponse {})
        })
        .await
    }

    async fn watch_outgoing(&self, request: Request<WatchOutgoingRequest>) -> Result<Response<Watch>, Status> {
        let reference = request.into_inner().migration.unwrap();
        let (host, id) = (self.host.clone(), reference.migration_id.clone());
        self.call("WatchOutgoing", None, |_| Ok(())).await?;
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let world = self.world.clone();
        tokio::spawn(async move {
            let send = |event| WatchOutgoingResponse { time: Some(now()), event: Some(event) };
            loop {
                let (goes_on, summary) = {
                    let mut state = world.lock();
                    let away = state.away.contains(&host);
                    let journal = state.host(&host).journals.get(&id).cloned().unwrap_or_default();
                    (journal.in_flight && journal.performing && !away, journal.summary)
                };
                let event = match summary {
                    _ if goes_on => Event::Progress(progress()),
                    Some(summary) => Event::Switched(summary),
                    None => return,
                };
                if sender.send(Ok(send(event))).await.is_err() || !goes_on {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))))
    }

    async fn get_migration_status(
        &self,
        request: Request<GetMigrationStatusRequest>,
    ) -> Result<Response<MigrationStatus>, Status> {
        let (host, reference) = (self.host.clone(), request.into_inner().migration.unwrap());
        self.call("GetMigrationStatus", None, move |state| Ok(state.status(&host, &reference))).await
    }

    async fn hand_over(&self, request: Request<HandOverRequest>) -> Result<Response<HandOverResponse>, Status> {
        let (host, request) = (self.host.clone(), request.into_inner());
        self.call("HandOver", request.fence, move |state| {
            let id = request.migration.unwrap().migration_id;
            let journal = &state.host(&host).journals[&id];
            if journal.performing {
                return Err(refuse(Reason::StillPerforming));
            }
            if journal.record.tombstoned {
                return Err(refuse(Reason::Tombstoned));
            }
            let destination = peer_of(&journal.record);
            state.hand_over(&host, &destination, &id);
            Ok(HandOverResponse { summary: state.host(&host).journals[&id].summary })
        })
        .await
    }

    async fn finish_incoming(
        &self,
        request: Request<FinishIncomingRequest>,
    ) -> Result<Response<FinishIncomingResponse>, Status> {
        let (host, request) = (self.host.clone(), request.into_inner());
        self.call("FinishIncoming", request.fence, move |state| {
            let id = request.migration.unwrap().migration_id;
            let source = peer_of(&state.host(&host).journals[&id].record);
            state.hand_over(&source, &host, &id);
            Ok(FinishIncomingResponse { switch_time: Some(now()) })
        })
        .await
    }

    async fn abort_outgoing(&self, request: Request<AbortOutgoingRequest>) -> Result<Response<MigrationStatus>, Status> {
        let (host, request) = (self.host.clone(), request.into_inner());
        self.call("AbortOutgoing", request.fence, move |state| {
            let reference = request.migration.unwrap();
            let journal = state.host(&host).journals.entry(reference.migration_id.clone()).or_default();
            journal.record.tombstoned = true;
            if journal.performing {
                (journal.performing, journal.in_flight) = (false, false);
                journal.outcome = PerformOutcome::Failed;
            }
            Ok(state.status(&host, &reference))
        })
        .await
    }

    async fn revoke_incoming(
        &self,
        request: Request<RevokeIncomingRequest>,
    ) -> Result<Response<MigrationStatus>, Status> {
        let (name, request) = (self.host.clone(), request.into_inner());
        self.call("RevokeIncoming", request.fence, move |state| {
            let reference = request.migration.unwrap();
            let host = state.host(&name);
            let journal = host.journals.entry(reference.migration_id.clone()).or_default();
            match journal.record.state() {
                JournalState::Waiting => {
                    journal.record.tombstoned = true;
                    journal.record.set_state(JournalState::Revoked);
                    host.guests.remove(&reference.guest_uuid);
                }
                JournalState::Unspecified => journal.record.tombstoned = true,
                _ => {}
            }
            Ok(state.status(&name, &reference))
        })
        .await
    }

    async fn settle_outgoing(
        &self,
        request: Request<SettleOutgoingRequest>,
    ) -> Result<Response<MigrationStatus>, Status> {
        let (name, request) = (self.host.clone(), request.into_inner());
        self.call("SettleOutgoing", request.fence, move |state| {
            let (verdict, reference) = (request.verdict(), request.migration.clone().unwrap());
            let host = state.host(&name);
            let journal = host.journals.get_mut(&reference.migration_id).ok_or_else(|| refuse(Reason::MigrationNotFound))?;
            let decided = journal.record.verdict();
            if decided != Verdict::Unspecified && decided != verdict {
                return Err(refuse(Reason::VerdictConflict));
            }
            journal.record.set_verdict(verdict);
            match verdict {
                Verdict::Ran => {
                    if host.guests.get(GUEST_ID).is_some_and(|guest| guest.incarnation == journal.record.incarnation) {
                        host.guests.remove(&reference.guest_uuid);
                    }
                }
                Verdict::NeverRan => {
                    if let Some(guest) = host.guests.get_mut(&reference.guest_uuid)
                        && journal.record.state() != JournalState::Unspecified
                    {
                        guest.state = journal.record.state_before;
                        guest.autostart = journal.record.autostart_before;
                    }
                }
                Verdict::Unspecified => return Err(refuse(Reason::InvalidArgument)),
            }
            Ok(state.status(&name, &reference))
        })
        .await
    }

    async fn settle_incoming(
        &self,
        request: Request<SettleIncomingRequest>,
    ) -> Result<Response<MigrationStatus>, Status> {
        let (name, request) = (self.host.clone(), request.into_inner());
        self.call("SettleIncoming", request.fence, move |state| {
            let (verdict, reference) = (request.verdict(), request.migration.clone().unwrap());
            let host = state.host(&name);
            let journal = host.journals.entry(reference.migration_id.clone()).or_default();
            let decided = journal.record.verdict();
            if decided != Verdict::Unspecified && decided != verdict {
                return Err(refuse(Reason::VerdictConflict));
            }
            journal.record.set_verdict(verdict);
            if verdict == Verdict::Ran
                && let Some(guest) = host.guests.get_mut(&reference.guest_uuid)
            {
                guest.autostart = journal.record.autostart_before;
            }
            Ok(state.status(&name, &reference))
        })
        .await
    }

    async fn close_migration(
        &self,
        request: Request<CloseMigrationRequest>,
    ) -> Result<Response<CloseMigrationResponse>, Status> {
        let (name, request) = (self.host.clone(), request.into_inner());
        self.call("CloseMigration", request.fence, move |state| {
            let id = request.migration.unwrap().migration_id;
            let journal = state.host(&name).journals.get_mut(&id).ok_or_else(|| refuse(Reason::MigrationNotFound))?;
            if journal.record.verdict() == Verdict::Unspecified {
                return Err(refuse(Reason::NoVerdict));
            }
            journal.record.closed = true;
            Ok(CloseMigrationResponse {})
        })
        .await
    }
}

const GUEST_ID: &str = super::world::GUEST;
