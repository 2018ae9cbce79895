//! HostService: agents register here, and everybody else asks for hosts and guests.

use std::time::Duration;

use drover_proto::agent::v1::GetAgentStatusRequest;
use drover_proto::failure::{Failure, Reason};
use drover_proto::identity::Identity;
use drover_proto::ids::HostId;
use drover_proto::serve::peer;
use drover_proto::time::{proto_duration, timestamp};
use drover_proto::v1::host_service_server::HostService;
use drover_proto::v1::{self, Host};
use tonic::{Request, Response, Status};

use super::validation::{Fields, guest_uuid, host_name};
use super::{Api, errors, page};
use crate::registry::Beat;
use crate::store::{HostRecord, StoreError, now};

/// Hosts in a page where the caller does not say.
const PAGE: u32 = 100;

/// The agent that is registered answers within this time, or it is not there any more.
const STILL_THERE: Duration = Duration::from_secs(3);
const MOVED_IN: Duration = Duration::from_millis(500);

/// So often a write is tried again where somebody else wrote meanwhile.
const MAX_CONFLICTS: u32 = 20;

#[tonic::async_trait]
impl HostService for Api {
    async fn register_host(
        &self,
        request: Request<v1::RegisterHostRequest>,
    ) -> Result<Response<v1::RegisterHostResponse>, Status> {
        let identity = peer(&request)?.identity;
        let resolutions = self.register(request.into_inner(), &identity).await?;
        let heartbeat_interval = Some(proto_duration(self.registry.interval()));
        let fence = self.office.fence().unwrap_or_default();
        Ok(Response::new(v1::RegisterHostResponse {
            heartbeat_interval,
            resolutions,
            term: fence.term,
            store_instance: fence.store_instance,
        }))
    }

    async fn list_hosts(
        &self,
        request: Request<v1::ListHostsRequest>,
    ) -> Result<Response<v1::ListHostsResponse>, Status> {
        let request = request.into_inner();
        let size = page::size(request.page_size, PAGE)?;
        let after = page::key("hosts", &request.page_token, HostId::from_resource_name)?;
        let mut rows = self
            .ledger
            .store
            .hosts(after.as_ref(), size + 1)
            .await
            .map_err(errors::store)?;
        let more = rows.len() > size as usize;
        rows.truncate(size as usize);
        let next_page_token = match rows.last() {
            Some(last) if more => page::token("hosts", last.id.as_str()),
            Some(_) | None => String::new(),
        };
        let hosts = rows.iter().map(|row| self.shown_host(row)).collect();
        Ok(Response::new(v1::ListHostsResponse { hosts, next_page_token }))
    }

    async fn get_host(&self, request: Request<v1::GetHostRequest>) -> Result<Response<Host>, Status> {
        let host = self.host(&host_name("name", &request.get_ref().name)?).await?;
        Ok(Response::new(self.shown_host(&host)))
    }

    async fn cordon_host(&self, request: Request<v1::CordonHostRequest>) -> Result<Response<Host>, Status> {
        Ok(Response::new(self.set_cordoned(&request.get_ref().name, true).await?))
    }

    async fn uncordon_host(&self, request: Request<v1::UncordonHostRequest>) -> Result<Response<Host>, Status> {
        Ok(Response::new(self.set_cordoned(&request.get_ref().name, false).await?))
    }

    async fn drain_host(
        &self,
        request: Request<v1::DrainHostRequest>,
    ) -> Result<Response<v1::DrainHostResponse>, Status> {
        self.host(&host_name("name", &request.get_ref().name)?).await?;
        let why = "this version does not drain hosts by itself";
        let remedy = "cordon the host and migrate its guests one by one";
        Err(Failure::new(Reason::Unimplemented, why).with_remedy(remedy).into())
    }

    async fn list_guests(
        &self,
        request: Request<v1::ListGuestsRequest>,
    ) -> Result<Response<v1::ListGuestsResponse>, Status> {
        Ok(Response::new(self.guests(request.get_ref()).await?))
    }

    async fn get_guest_owner(
        &self,
        request: Request<v1::GetGuestOwnerRequest>,
    ) -> Result<Response<v1::GetGuestOwnerResponse>, Status> {
        let guest = guest_uuid("guest_uuid", &request.get_ref().guest_uuid)?;
        Ok(Response::new(self.owner(guest).await?))
    }
}

/// A registration whose fields are good.
pub(super) struct Said {
    pub(super) id: HostId,
    pub(super) host: Host,
    pub(super) journals: Vec<v1::UnfinishedJournal>,
    pub(super) adopted: Vec<v1::AdoptedResolution>,
}

pub(super) fn read(request: v1::RegisterHostRequest) -> Result<Said, Failure> {
    let Some(host) = request.host else {
        return Err(Failure::invalid("host", "is required"));
    };
    let mut fields = Fields::default();
    let id = fields.required("host.name", &host.name, HostId::from_resource_name);
    if host
        .management_address
        .rsplit_once(':')
        .is_none_or(|(_, port)| port.parse::<u16>().is_err())
    {
        fields.bad("host.management_address", "expected host:port");
    }
    if host.agent_instance.is_empty() {
        fields.bad("host.agent_instance", "is required");
    }
    fields.registration(&host, request.unfinished_journals.len());
    fields.check()?;
    let Some(id) = id else {
        return Err(Failure::invalid("host.name", "is required"));
    };
    Ok(Said {
        id,
        host,
        journals: request.unfinished_journals,
        adopted: request.adopted_resolutions,
    })
}

impl Api {
    /// Gives what the agent has to adopt.
    async fn register(
        &self,
        request: v1::RegisterHostRequest,
        identity: &Identity,
    ) -> Result<Vec<v1::HostResolution>, Failure> {
        let Said {
            id,
            host,
            journals,
            adopted,
        } = read(request)?;
        if *identity != Identity::Agent(id.clone()) {
            let message = format!("{identity} may not register host {id}");
            return Err(Failure::new(Reason::PermissionDenied, message));
        }
        self.refuse_second(&id, &host).await?;
        let beat = self.registry.beat(&id, &host.agent_instance);
        if beat == Beat::Conflict {
            return Err(self.conflict(&id, &host.management_address));
        }
        self.store_registration(&id, host).await?;
        self.note_journals(&id, &journals).await?;
        self.note_adopted(&id, &adopted).await?;
        let resolutions = self.resolutions(&id, &journals).await?;
        if beat == Beat::Back {
            tracing::info!(host = %id, "heard of");
            self.agents.dial_again(&id);
            self.executor.wake_all();
        } else {
            self.executor.heard_of(&id);
        }
        Ok(resolutions)
    }

    /// One identity is one agent: where the agent that is registered still answers, another one is refused. Its host
    /// is not the one whose guests and journals this host id stands for.
    async fn refuse_second(&self, id: &HostId, said: &Host) -> Result<(), Failure> {
        let Some(known) = self.ledger.store.host(id).await.map_err(errors::store)? else {
            return Ok(());
        };
        if known.registration.agent_instance == said.agent_instance {
            return Ok(());
        }
        // The address that is registered: a restarted agent answers there as its new self.
        let registered = self.agents.of(id).await?;
        let patience = if known.registration.management_address == said.management_address {
            // Its successor has the address already, and does not serve before it has been answered.
            MOVED_IN
        } else {
            STILL_THERE
        };
        let asked = tokio::time::timeout(patience, registered.get_agent_status(GetAgentStatusRequest::default())).await;
        let answers = match asked {
            Ok(Ok(status)) => status
                .host
                .is_some_and(|host| host.agent_instance == known.registration.agent_instance),
            Ok(Err(_)) | Err(_) => false,
        };
        if answers {
            return Err(self.conflict(id, &said.management_address));
        }
        Ok(())
    }

    fn conflict(&self, id: &HostId, address: &str) -> Failure {
        let message = format!("two agents claim to be {id}; the one at {address} is refused");
        tracing::error!("{message}");
        self.registry.note_rival(id, address);
        Failure::new(Reason::HostConflict, message)
            .with_remedy("give each agent a host id and a certificate of its own")
    }

    /// Written only where the agent says something new: a heartbeat costs no write.
    async fn store_registration(&self, id: &HostId, said: Host) -> Result<(), Failure> {
        let registration = only_said(id, said);
        for _ in 0..MAX_CONFLICTS {
            let known = self.ledger.store.host(id).await.map_err(errors::store)?;
            let host = match known {
                Some(known) if known.registration == registration => return Ok(()),
                Some(known) => HostRecord {
                    registration: registration.clone(),
                    registered: now(),
                    ..known
                },
                None => HostRecord {
                    id: id.clone(),
                    registration: registration.clone(),
                    cordoned: false,
                    generation: 0,
                    registered: now(),
                },
            };
            match self.ledger.store.put_host(host).await {
                Err(StoreError::Conflict) => {}
                written => return written.map(drop).map_err(errors::store),
            }
        }
        Err(errors::store(StoreError::Conflict))
    }

    fn shown_host(&self, row: &HostRecord) -> Host {
        let orphans = self.registry.orphans(&row.id);
        let rival = self.registry.rival(&row.id);
        let problems = [
            rival.map(|address| format!("another agent, at {address}, claims to be this host and is refused")),
            (!row.registration.problem.is_empty()).then(|| row.registration.problem.clone()),
            orphans.first().map(|id| {
                let (count, id) = (orphans.len(), id.resource_name());
                format!("{count} unfinished journals are not in the store, like {id}")
            }),
        ];
        let problem = problems.into_iter().flatten().collect::<Vec<_>>().join("; ");
        Host {
            name: row.id.resource_name(),
            state: self.registry.state(&row.id).into(),
            last_seen_time: Some(timestamp(self.registry.last_seen(&row.id).unwrap_or(row.registered))),
            cordoned: row.cordoned,
            etag: format!("{:x}", row.generation),
            problem,
            ..row.registration.clone()
        }
    }

    async fn set_cordoned(&self, name: &str, cordoned: bool) -> Result<Host, Failure> {
        let id = host_name("name", name)?;
        for _ in 0..MAX_CONFLICTS {
            let host = self.host(&id).await?;
            if host.cordoned == cordoned {
                return Ok(self.shown_host(&host));
            }
            match self.ledger.store.put_host(HostRecord { cordoned, ..host }).await {
                Ok(host) => return Ok(self.shown_host(&host)),
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(errors::store(error)),
            }
        }
        Err(errors::store(StoreError::Conflict))
    }
}

/// What an agent says of its host, without what only the controller knows.
fn only_said(id: &HostId, said: Host) -> Host {
    Host {
        name: id.resource_name(),
        state: 0,
        last_seen_time: None,
        cordoned: false,
        etag: String::new(),
        ..said
    }
}
