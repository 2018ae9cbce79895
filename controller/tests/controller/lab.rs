//! A controller with two agents, and a user who asks it: everything between them is real gRPC and mTLS.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use drover_controller::config::Config;
use drover_controller::policy::PolicyDefaults;
use drover_controller::server::{Controller, open_store};
use drover_proto::channel::channel;
use drover_proto::identity::Identity;
use drover_proto::identity_patterns::PatternLists;
use drover_proto::roles::{Role, Roles};
use drover_proto::telemetry::LogFormat;
use drover_proto::v1::host_service_client::HostServiceClient;
use drover_proto::v1::migration_service_client::MigrationServiceClient;
use drover_proto::v1::{
    CreateMigrationRequest, FencedSide, GetGuestOwnerRequest, GetGuestOwnerResponse, GetMigrationRequest, Migration,
    MigrationState, PhaseOutcome, RegisterHostRequest, RegisterHostResponse, ResolveMigrationRequest,
};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use super::agent::{self, Agent, registration};
use super::pki::Pki;
use super::world::{GUEST, World, until};

/// Closing it takes milliseconds.
const CLOSED: Duration = Duration::from_secs(80);

pub(crate) struct Lab {
    pub(crate) world: World,
    pub(crate) pki: Pki,
    pub(crate) addresses: [String; 2],
    pub(crate) controller: Option<Process>,
    folder: TempDir,
    /// Name of the database.
    file: &'static str,
    /// Of the configuration, from the next start on.
    pub(crate) policy: PolicyDefaults,
    /// Of the configuration, from the next start on; bytes/s.
    pub(crate) link_speed: u64,
}

/// A controller on a runtime of its own: dropping the runtime is like killing the process.
pub(crate) struct Process {
    runtime: Runtime,
    pub(crate) controller: Controller,
}

impl Lab {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (pki, world) = (Pki::new(folder.path()), World::new());
        let serve = async |host: &str| {
            let agent = Agent {
                host: host.to_owned(),
                world: world.clone(),
            };
            agent::serve(agent, pki.tls(&format!("agent/{host}"))).await
        };
        let addresses = [serve("host-1").await, serve("host-2").await];
        let mut lab = Self {
            world,
            pki,
            addresses,
            controller: None,
            folder,
            file: "drover.db",
            policy: PolicyDefaults::default(),
            link_speed: 0,
        };
        lab.start().await;
        for (host, address) in ["host-1", "host-2"].into_iter().zip(lab.addresses.clone()) {
            lab.register(host, &address).await.unwrap();
        }
        lab
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            metrics_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            store: format!("sqlite://{}/{}", self.folder.path().display(), self.file),
            tls: self.pki.files("controller"),
            trust_domain: "drover.local".parse().unwrap(),
            identities: PatternLists::default(),
            policy: self.policy.clone(),
            roles: Roles::default().with("alice", Role::Admin).with("vera", Role::Viewer),
            link_speed: self.link_speed,
            // Nobody here calls by himself: no host is to be taken for silent in the middle of a test.
            heartbeat_interval_seconds: 100,
            log_format: LogFormat::Human,
            log_filter: "info".to_owned(),
        }
    }

    /// Starts a controller on the store that is there.
    pub(crate) async fn start(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let config = self.config();
        let start = runtime.spawn(async move {
            let store = open_store(&config.store).await?;
            Controller::start(&config, store).await
        });
        let controller = start.await.unwrap().unwrap();
        self.controller = Some(Process { runtime, controller });
    }

    /// Ends the controller in the middle of whatever it does.
    pub(crate) fn kill(&mut self) {
        if let Some(process) = self.controller.take() {
            process.runtime.shutdown_background();
        }
    }

    /// Ends the controller as SIGTERM does.
    pub(crate) async fn stop(&mut self) {
        if let Some(process) = self.controller.take() {
            let stopped = process.runtime.spawn(process.controller.stop());
            stopped.await.unwrap();
            process.runtime.shutdown_background();
        }
    }

    pub(crate) fn channel(&self, identity: &str) -> Channel {
        let address = self.controller.as_ref().unwrap().controller.address.to_string();
        channel(&self.pki.tls(identity), &address, Identity::Controller).unwrap()
    }

    pub(crate) fn local_address(&self) -> SocketAddr {
        self.controller.as_ref().unwrap().controller.local_address
    }

    pub(crate) fn migrations(&self) -> MigrationServiceClient<Channel> {
        MigrationServiceClient::new(self.channel("user/alice"))
    }

    pub(crate) fn hosts(&self) -> HostServiceClient<Channel> {
        HostServiceClient::new(self.channel("user/alice"))
    }

    pub(crate) async fn register(&self, host: &str, address: &str) -> Result<(), tonic::Status> {
        let request = RegisterHostRequest {
            host: Some(registration(host, address)),
            ..RegisterHostRequest::default()
        };
        self.register_as(host, request).await?;
        Ok(())
    }

    pub(crate) async fn register_as(
        &self,
        host: &str,
        request: RegisterHostRequest,
    ) -> Result<RegisterHostResponse, tonic::Status> {
        let mut client = HostServiceClient::new(self.channel(&format!("agent/{host}")));
        Ok(client.register_host(request).await?.into_inner())
    }

    /// A host's agent calls as at its start, with what it has not closed.
    pub(crate) async fn comes_back(&self, host: &str) -> RegisterHostResponse {
        let address = &self.addresses[usize::from(host == "host-2")];
        let request = RegisterHostRequest {
            host: Some(registration(host, address)),
            unfinished_journals: self.world.lock().unfinished(host),
            ..RegisterHostRequest::default()
        };
        self.register_as(host, request).await.unwrap()
    }

    pub(crate) async fn resolve(&self, name: &str, side: FencedSide) -> Result<Migration, tonic::Status> {
        let request = ResolveMigrationRequest {
            name: name.to_owned(),
            fenced_side: side.into(),
            etag: String::new(),
        };
        let before = std::mem::replace(&mut self.world.lock().word, true);
        let said = self.migrations().resolve_migration(request).await;
        if said.is_err() {
            self.world.lock().word = before;
        }
        Ok(said?.into_inner())
    }

    pub(crate) async fn owner_of(&self, guest: &str) -> GetGuestOwnerResponse {
        let request = GetGuestOwnerRequest {
            guest_uuid: guest.to_owned(),
        };
        self.hosts().get_guest_owner(request).await.unwrap().into_inner()
    }

    /// The text at `/metrics`.
    pub(crate) async fn metrics(&self) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(self.local_address()).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nhost: controller\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    /// From now on controllers start on a copy of the file that is in use.
    pub(crate) fn move_store(&mut self) {
        let folder = self.folder.path();
        for rest in ["", "-wal"] {
            let (from, to) = (
                folder.join(format!("{}{rest}", self.file)),
                folder.join(format!("copy.db{rest}")),
            );
            let _ = std::fs::copy(from, to);
        }
        self.file = "copy.db";
    }

    /// The store as it is, put aside. The controller must not run.
    pub(crate) fn back_up(&self) {
        self.wait_until_closed();
        let folder = self.folder.path();
        for part in ["", "-wal"] {
            let _ = std::fs::copy(
                folder.join(format!("drover.db{part}")),
                folder.join(format!("backup.db{part}")),
            );
        }
    }

    /// The store is again what was put aside.
    pub(crate) fn restore(&self) {
        self.wait_until_closed();
        let folder = self.folder.path();
        for part in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(folder.join(format!("drover.db{part}")));
        }
        for part in ["", "-wal"] {
            let _ = std::fs::copy(
                folder.join(format!("backup.db{part}")),
                folder.join(format!("drover.db{part}")),
            );
        }
    }

    /// Waits until nobody in this process has the store open any more: whoever closes it last removes its log by name,
    /// also where that is another file by then. The controller must not run.
    fn wait_until_closed(&self) {
        assert!(self.controller.is_none());
        let store = self.folder.path().join(self.file).display().to_string();
        let is_open = || {
            let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
            let mut files = open.filter_map(|file| std::fs::read_link(file.path()).ok());
            files.any(|file| file.display().to_string().starts_with(&store))
        };
        let begun = Instant::now();
        while is_open() {
            assert!(begun.elapsed() < CLOSED, "{store} stays open");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) async fn create(&self) -> Migration {
        self.migrations().create_migration(wish()).await.unwrap().into_inner()
    }

    pub(crate) async fn get(&self, name: &str) -> Migration {
        let request = GetMigrationRequest { name: name.to_owned() };
        self.migrations().get_migration(request).await.unwrap().into_inner()
    }

    /// How many looks at a migration have ended without an answer, all phases together.
    pub(crate) async fn looked_in_vain(&self, name: &str) -> usize {
        let phases = self.get(name).await.phases;
        let in_vain = phases.iter().filter(|phase| phase.outcome() == PhaseOutcome::Unknown);
        in_vain.count()
    }

    pub(crate) async fn cancel(&self, name: &str) -> Migration {
        let request = drover_proto::v1::CancelMigrationRequest {
            name: name.to_owned(),
            etag: String::new(),
        };
        self.migrations().cancel_migration(request).await.unwrap().into_inner()
    }

    /// Waits until a migration is at rest.
    pub(crate) async fn at_rest(&self, name: &str) -> Migration {
        let mut client = self.migrations();
        let mut last = None;
        until(&format!("{name} is at rest"), async || {
            let request = GetMigrationRequest { name: name.to_owned() };
            let migration = client.get_migration(request).await.unwrap().into_inner();
            let rests = migration.end_time.is_some();
            last = Some(migration);
            rests
        })
        .await;
        last.unwrap()
    }

    /// The guest has moved, and nothing is left behind.
    pub(crate) async fn assert_moved(&self, name: &str) -> Migration {
        let migration = self.at_rest(name).await;
        assert_eq!(migration.state(), MigrationState::Succeeded, "{migration:#?}");
        assert_eq!(migration.guest_host, "hosts/host-2");
        self.world.assert_clean("host-2");
        migration
    }

    /// The guest is where it was, and nothing is left behind.
    pub(crate) async fn assert_unmoved(&self, name: &str, state: MigrationState) -> Migration {
        let migration = self.at_rest(name).await;
        assert_eq!(migration.state(), state, "{migration:#?}");
        self.world.assert_clean("host-1");
        migration
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(crate) fn wish() -> CreateMigrationRequest {
    CreateMigrationRequest {
        migration: Some(Migration {
            guest_uuid: GUEST.to_owned(),
            destination_host: "hosts/host-2".to_owned(),
            ..Migration::default()
        }),
        ..CreateMigrationRequest::default()
    }
}

/// The reason of a refusal.
pub(crate) fn reason(status: &tonic::Status) -> drover_proto::failure::Reason {
    drover_proto::failure::Failure::from_status(status).reason
}
