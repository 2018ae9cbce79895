//! A controller that plays a script: real mTLS and gRPC, no migrations.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use drover_proto::authorization::{Authorize, Roles};
use drover_proto::failure::{Failure, Reason};
use drover_proto::roles::Role;
use drover_proto::serve::{GrpcStream, accept};
use drover_proto::tls::{ALPN_H2, Tls, TlsFiles};
use drover_proto::v1::host_service_server::{HostService, HostServiceServer};
use drover_proto::v1::migration_service_server::{MigrationService, MigrationServiceServer};
use drover_proto::v1::watch_migration_response::Event;
use drover_proto::v1::*;
use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::codegen::http;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tower::util::MapRequestLayer;

pub(crate) const GUEST: &str = "11111111-1111-4111-8111-111111111111";
pub(crate) const ID: &str = "0190a1b2-0000-7000-8000-c3d4e5f60718";

/// What a watch says before its stream ends.
pub(crate) type Script = Vec<Event>;

#[derive(Default)]
pub(crate) struct Stage {
    /// One script for each watch, in order.
    pub(crate) watches: Vec<Script>,
    /// What GetMigration answers.
    pub(crate) record: Migration,
    /// What CreateMigration refuses with.
    pub(crate) refusal: Option<Failure>,
    /// What CheckMigration answers.
    pub(crate) checks: Vec<DestinationChecks>,
    /// Guests that hosts show, in place of the usual one.
    pub(crate) guests: Option<Vec<Guest>>,
    /// No host is silent.
    pub(crate) all_answer: bool,
    /// Whose the guest is, nobody can say.
    pub(crate) undecided: bool,
    /// How often CreateMigration answers that it is not there.
    pub(crate) absences: u32,
    /// What came in.
    pub(crate) created: Vec<CreateMigrationRequest>,
    pub(crate) checked: Vec<CheckMigrationRequest>,
    pub(crate) adjusted: Vec<AdjustMigrationRequest>,
    pub(crate) traceparents: Vec<String>,
    pub(crate) resume_tokens: Vec<String>,
    /// Paths of all RPCs that came in.
    pub(crate) calls: Vec<String>,
}

#[derive(Clone)]
pub(crate) struct StandIn(pub(crate) Arc<Mutex<Stage>>);

impl StandIn {
    pub(crate) fn new(stage: Stage) -> Self {
        Self(Arc::new(Mutex::new(stage)))
    }

    /// Serves with the certificate in `folder`; gives the address.
    pub(crate) async fn serve(&self, folder: &Path) -> String {
        let files = TlsFiles {
            certificate: folder.join("tls.crt"),
            key: folder.join("tls.key"),
            ca: folder.join("ca.crt"),
        };
        let tls = Tls::load(files, "drover.local".parse().unwrap()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let incoming = accept(listener, tls, &[ALPN_H2], CancellationToken::new());
        let incoming = incoming.map(|accepted| Ok::<_, io::Error>(GrpcStream::new(accepted)));
        let stage = Arc::clone(&self.0);
        let record = MapRequestLayer::new(move |request: http::Request<tonic::body::Body>| {
            stage.lock().unwrap().calls.push(request.uri().path().to_owned());
            request
        });
        let server = Server::builder()
            .layer(record)
            .layer(Authorize::new(Roles::default().with("alice", Role::Operator)))
            .add_service(MigrationServiceServer::new(self.clone()))
            .add_service(HostServiceServer::new(self.clone()))
            .serve_with_incoming(incoming);
        tokio::spawn(server);
        address
    }
}

/// What `validate_only` answers: one check failed.
fn examined(migration: Migration) -> Migration {
    let check = |id: &str, result: CheckResult, found: &str, remedy: &str| Check {
        id: id.to_owned(),
        result: result.into(),
        found: found.to_owned(),
        remedy: remedy.to_owned(),
    };
    let error = MigrationError {
        reason: Reason::StorageNotShared.name().to_owned(),
        message: "vda is not shared".to_owned(),
        phase: MigrationPhase::Validate.into(),
        ..MigrationError::default()
    };
    Migration {
        guest_name: "demo".to_owned(),
        checks: vec![
            check("cpu", CheckResult::Passed, "the destination has every feature", ""),
            check(
                "storage-shared",
                CheckResult::Failed,
                "vda: /srv/local/demo.img is another file there",
                "put the image on storage that both hosts share",
            ),
        ],
        error: Some(error),
        ..migration
    }
}

/// The guest, as a host shows it.
pub(crate) fn guest(host: &str) -> Guest {
    Guest {
        name: format!("hosts/{host}/guests/{GUEST}"),
        uuid: GUEST.to_owned(),
        display_name: "demo".to_owned(),
        state: GuestState::Running.into(),
        memory_bytes: 512 << 20,
        vcpus: 1,
        ..Guest::default()
    }
}

fn host(id: &str) -> Host {
    Host {
        name: format!("hosts/{id}"),
        state: HostState::Up.into(),
        management_address: format!("{id}.example:7450"),
        ..Host::default()
    }
}

/// One of the two hosts there are.
fn known(name: &str) -> Result<Host, Status> {
    let id = name.trim_start_matches("hosts/");
    if ["host-a", "host-b"].contains(&id) {
        Ok(host(id))
    } else {
        Err(Failure::new(Reason::HostNotFound, format!("there is no host {id}")).into())
    }
}

fn unimplemented<T>() -> Result<Response<T>, Status> {
    Err(Failure::new(Reason::Unimplemented, "not part of the script").into())
}

#[tonic::async_trait]
impl MigrationService for StandIn {
    type WatchMigrationStream = Pin<Box<dyn Stream<Item = Result<WatchMigrationResponse, Status>> + Send>>;

    async fn create_migration(&self, request: Request<CreateMigrationRequest>) -> Result<Response<Migration>, Status> {
        let mut stage = self.0.lock().unwrap();
        let parent = request
            .metadata()
            .get("traceparent")
            .map(|parent| parent.to_str().unwrap().to_owned());
        stage.traceparents.extend(parent);
        let request = request.into_inner();
        let mut migration = request.migration.clone().unwrap();
        if migration.source_host.is_empty() {
            migration.source_host = "hosts/host-a".to_owned();
        }
        stage.created.push(request);
        if stage.absences > 0 {
            stage.absences -= 1;
            return Err(Failure::new(Reason::NotServing, "starting").into());
        }
        if let Some(refusal) = &stage.refusal {
            return Err(refusal.clone().into());
        }
        if stage.created.last().is_some_and(|request| request.validate_only) {
            return Ok(Response::new(examined(migration)));
        }
        let state = MigrationState::Queued.into();
        Ok(Response::new(Migration {
            name: format!("migrations/{ID}"),
            state,
            ..migration
        }))
    }

    async fn get_migration(&self, _: Request<GetMigrationRequest>) -> Result<Response<Migration>, Status> {
        Ok(Response::new(self.0.lock().unwrap().record.clone()))
    }

    async fn list_migrations(
        &self,
        request: Request<ListMigrationsRequest>,
    ) -> Result<Response<ListMigrationsResponse>, Status> {
        // Two pages of one.
        let record = self.0.lock().unwrap().record.clone();
        let request = request.into_inner();
        let state = request.filter.strip_prefix("state = ");
        if state.is_some_and(|state| state != record.state().as_str_name()) {
            return Ok(Response::new(ListMigrationsResponse::default()));
        }
        let next_page_token = if request.page_token.is_empty() {
            "2".to_owned()
        } else {
            String::new()
        };
        Ok(Response::new(ListMigrationsResponse {
            migrations: vec![record],
            next_page_token,
        }))
    }

    async fn watch_migration(
        &self,
        request: Request<WatchMigrationRequest>,
    ) -> Result<Response<Self::WatchMigrationStream>, Status> {
        let mut stage = self.0.lock().unwrap();
        stage.resume_tokens.push(request.into_inner().resume_token);
        if stage.watches.is_empty() {
            return Err(Failure::new(Reason::NotServing, "the script is over").into());
        }
        let part = stage.resume_tokens.len();
        let script = stage.watches.remove(0);
        let messages = script.into_iter().enumerate().map(move |(index, event)| {
            Ok(WatchMigrationResponse {
                resume_token: format!("{part}.{index}"),
                time: None,
                event: Some(event),
            })
        });
        // A controller that goes away in the middle.
        let end = tokio_stream::once(Err(Failure::new(Reason::NotServing, "shutting down").into()));
        Ok(Response::new(Box::pin(tokio_stream::iter(messages).chain(end))))
    }

    async fn cancel_migration(&self, _: Request<CancelMigrationRequest>) -> Result<Response<Migration>, Status> {
        let state = MigrationState::Cancelling.into();
        Ok(Response::new(Migration {
            state,
            ..self.0.lock().unwrap().record.clone()
        }))
    }

    async fn check_migration(
        &self,
        request: Request<CheckMigrationRequest>,
    ) -> Result<Response<CheckMigrationResponse>, Status> {
        let mut stage = self.0.lock().unwrap();
        let request = request.into_inner();
        let mut destinations = stage.checks.clone();
        let wanted = &request.destination_hosts;
        destinations.retain(|one| wanted.is_empty() || wanted.contains(&one.destination_host));
        let estimate_view = match request.estimate_view() {
            EstimateView::None => EstimateView::None,
            EstimateView::Full | EstimateView::Unspecified => EstimateView::Full,
        };
        if estimate_view == EstimateView::None {
            for destination in &mut destinations {
                destination.estimate = None;
            }
        }
        stage.checked.push(request);
        Ok(Response::new(CheckMigrationResponse {
            destinations,
            estimate_view: estimate_view.into(),
        }))
    }

    async fn adjust_migration(&self, request: Request<AdjustMigrationRequest>) -> Result<Response<Migration>, Status> {
        let mut stage = self.0.lock().unwrap();
        stage.adjusted.push(request.into_inner());
        Ok(Response::new(stage.record.clone()))
    }

    async fn retry_migration(&self, _: Request<RetryMigrationRequest>) -> Result<Response<Migration>, Status> {
        unimplemented()
    }

    async fn resolve_migration(&self, _: Request<ResolveMigrationRequest>) -> Result<Response<Migration>, Status> {
        unimplemented()
    }
}

#[tonic::async_trait]
impl HostService for StandIn {
    async fn list_hosts(&self, _: Request<ListHostsRequest>) -> Result<Response<ListHostsResponse>, Status> {
        let hosts = vec![host("host-a"), host("host-b")];
        Ok(Response::new(ListHostsResponse {
            hosts,
            next_page_token: String::new(),
        }))
    }

    async fn list_guests(&self, _: Request<ListGuestsRequest>) -> Result<Response<ListGuestsResponse>, Status> {
        let stage = self.0.lock().unwrap();
        let guests = stage.guests.clone().unwrap_or_else(|| vec![guest("host-a")]);
        let silent = (!stage.all_answer).then(|| "hosts/host-c".to_owned());
        let unreachable_hosts = silent.into_iter().collect();
        Ok(Response::new(ListGuestsResponse {
            guests,
            next_page_token: String::new(),
            unreachable_hosts,
        }))
    }

    async fn register_host(&self, _: Request<RegisterHostRequest>) -> Result<Response<RegisterHostResponse>, Status> {
        unimplemented()
    }

    async fn get_host(&self, request: Request<GetHostRequest>) -> Result<Response<Host>, Status> {
        known(&request.get_ref().name).map(Response::new)
    }

    async fn cordon_host(&self, request: Request<CordonHostRequest>) -> Result<Response<Host>, Status> {
        let cordoned = true;
        let host = known(&request.get_ref().name)?;
        Ok(Response::new(Host { cordoned, ..host }))
    }

    async fn uncordon_host(&self, request: Request<UncordonHostRequest>) -> Result<Response<Host>, Status> {
        known(&request.get_ref().name).map(Response::new)
    }

    async fn drain_host(&self, _: Request<DrainHostRequest>) -> Result<Response<DrainHostResponse>, Status> {
        unimplemented()
    }

    async fn get_guest_owner(
        &self,
        request: Request<GetGuestOwnerRequest>,
    ) -> Result<Response<GetGuestOwnerResponse>, Status> {
        assert_eq!(request.get_ref().guest_uuid, GUEST);
        let undecided = self.0.lock().unwrap().undecided;
        let (owner, migration) = if undecided { ("", ID) } else { ("hosts/host-a", "") };
        Ok(Response::new(GetGuestOwnerResponse {
            owner_host: owner.to_owned(),
            migration: migration.to_owned(),
            ..GetGuestOwnerResponse::default()
        }))
    }
}
