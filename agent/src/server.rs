//! The agent put together: opens the journal, looks after what was unfinished, serves, and ends in order.
//!
//! `main` and the tests start it in the same way; only the hypervisor differs.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use drover_proto::agent::v1::agent_service_server::AgentServiceServer;
use drover_proto::agent::v1::peer_service_server::PeerServiceServer;
use drover_proto::authorization::Authorize;
use drover_proto::deadline::DeadlineLayer;
use drover_proto::ids::HostId;
use drover_proto::tls::Tls;
use drover_proto::trace::TraceLayer;
use drover_proto::v1::{Host, MigrationAddress};
use drover_proto::versions::version;
use drover_proto::{FILE_DESCRIPTOR_SET, MAX_DECODING_MESSAGE_BYTES, MAX_ENCODING_MESSAGE_BYTES};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use uuid::Uuid;

use crate::gate::Gate;
use crate::hypervisor::{HostFacts, Hypervisor};
use crate::jobs::sockets::Sockets;
use crate::jobs::{Jobs, Parts, Timing};
use crate::journal::{Journal, Terms};
use crate::port::Port;
use crate::probe::Probes;
use crate::registration::Registration;
use crate::service::{AgentServer, Folders, PeerServer};
use crate::storage_directories::StorageDirectories;
use crate::tunnel::Destination;

/// The protocol between controller and agents that this agent speaks.
const PROTOCOL: i32 = 1;
/// Streams that stay open do not hold the end of the process up for longer.
const LAST_CALLS: Duration = Duration::from_secs(5);

/// How often old probe files are looked for.
const SHORTEST_SWEEP: Duration = Duration::from_millis(50);
const LONGEST_SWEEP: Duration = Duration::from_secs(10);

/// What an agent is started with.
pub struct AgentOptions {
    pub host: HostId,
    pub listener: TcpListener,
    pub management_address: String,
    pub migration_addresses: Vec<String>,
    pub controller: Option<String>,
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
    /// QEMU's group; `None` leaves the agent's own.
    pub qemu_group: Option<u32>,
    /// Where files of guests may be read, made and removed.
    pub storage: StorageDirectories,
    pub tls: Tls,
    pub hypervisor: Arc<dyn Hypervisor>,
    /// What this host lacks to migrate at all, for people.
    pub unfit: Option<String>,
    /// What keeps this host from migrating just now, for people; asked at every heartbeat.
    pub ailment: Ailment,
    pub boot_id: Uuid,
    pub limits: Timing,
    /// Open but in a simulation.
    pub gate: Gate,
}

/// Nothing, or what is wrong, for people.
pub type Ailment = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// An agent that serves.
pub struct Agent {
    jobs: Arc<Jobs>,
    address: SocketAddr,
    port: Port,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    stop_listening: CancellationToken,
    stop_background: CancellationToken,
}

impl Agent {
    /// Looks after unfinished migrations first, adopts what was decided meanwhile, then serves.
    pub async fn start(options: AgentOptions) -> anyhow::Result<Self> {
        let address = options.listener.local_addr()?;
        let tunnel = Destination::new();
        std::fs::create_dir_all(&options.run_dir)
            .with_context(|| format!("cannot make {}", options.run_dir.display()))?;
        let jobs = Jobs::new(Parts {
            host: options.host.clone(),
            hypervisor: Arc::clone(&options.hypervisor),
            journal: Journal::open(&options.state_dir)
                .await
                .context("cannot open the journal")?,
            terms: Terms::open(&options.state_dir).await.context("cannot read the term")?,
            tls: options.tls.clone(),
            tunnel: tunnel.clone(),
            sockets: Sockets::new(options.run_dir.clone(), options.qemu_group),
            storage: options.storage.clone(),
            gate: options.gate.clone(),
            limits: options.limits,
            boot_id: options.boot_id,
        });
        let probes = Probes::open(&options.state_dir).context("cannot open the journal of probes")?;
        jobs.recover().await;

        let stop_background = CancellationToken::new();
        look_after(&jobs, &stop_background);
        let facts = options
            .hypervisor
            .host()
            .await
            .context("libvirt does not tell about this host")?;
        let about = about(&options, &jobs, &facts);
        tokio::spawn(expire_probes(
            probes.clone(),
            jobs.limits.probe,
            stop_background.clone(),
        ));
        let agent = AgentServer::new(
            Arc::clone(&jobs),
            probes,
            folders(&options),
            Arc::clone(&about),
            options.unfit.clone(),
        );

        let registration = register_first(&options, &jobs, &about).await?;

        let stop_listening = CancellationToken::new();
        let (port, incoming) = Port::open(options.listener, options.tls.clone(), tunnel, stop_listening.clone());
        let services = services(agent, PeerServer::new(Arc::clone(&jobs)), options.gate)?;
        let server =
            tokio::spawn(services.serve_with_incoming_shutdown(incoming, stop_listening.clone().cancelled_owned()));
        if let Some(registration) = registration {
            tokio::spawn(registration.keep(stop_background.clone()));
        }
        Ok(Self {
            jobs,
            address,
            port,
            server,
            stop_listening,
            stop_background,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn jobs(&self) -> &Arc<Jobs> {
        &self.jobs
    }

    /// Refuses new migrations, waits for a hand-over in flight, then ends.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.jobs.stop().await;
        self.stop_background.cancel();
        self.stop_listening.cancel();
        let mut server = self.server;
        if tokio::time::timeout(LAST_CALLS, &mut server).await.is_err() {
            server.abort();
        }
        // What was asked for while it closed runs to its end as well.
        self.jobs.stop().await;
        // Data channels end with their migrations; what is still there is cut by the end of the process.
        let _ = tokio::time::timeout(LAST_CALLS, self.port.closed()).await;
        Ok(())
    }
}

fn look_after(jobs: &Arc<Jobs>, stop: &CancellationToken) {
    tokio::spawn(Arc::clone(jobs).notice_ends(stop.clone()));
    tokio::spawn(Arc::clone(jobs).remove_what_was_kept_long_enough(stop.clone()));
}

/// What an operator decided while this host was away is adopted before anything is served.
async fn register_first(
    options: &AgentOptions,
    jobs: &Arc<Jobs>,
    about: &Arc<dyn Fn() -> Host + Send + Sync>,
) -> anyhow::Result<Option<Registration>> {
    let Some(controller) = options.controller.clone() else {
        return Ok(None);
    };
    let registration = Registration::new(&options.tls, controller, Arc::clone(jobs), Arc::clone(about));
    let mut registration = registration.context("this host cannot register")?;
    registration.first_word().await;
    Ok(Some(registration))
}

fn folders(options: &AgentOptions) -> Folders {
    Folders {
        state: options.state_dir.clone(),
        run: options.run_dir.clone(),
    }
}

/// Removes probe files whose name nobody knows any more, because the answer that told it was lost.
async fn expire_probes(probes: Probes, life: Duration, stop: CancellationToken) {
    let pause = (life / 8).clamp(SHORTEST_SWEEP, LONGEST_SWEEP);
    while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        let probes = probes.clone();
        // Removing may hang on a network file system; the next round waits for it.
        if let Err(error) = tokio::task::spawn_blocking(move || probes.expire(life)).await {
            tracing::error!(%error, "probe files could not be looked after");
        }
    }
}

type Stack<Inner, Outer> = tower::layer::util::Stack<Inner, Outer>;
type Layers = Stack<Gate, Stack<Authorize, Stack<DeadlineLayer, Stack<TraceLayer, tower::layer::util::Identity>>>>;

fn services(
    agent: AgentServer,
    peer: PeerServer,
    gate: Gate,
) -> anyhow::Result<tonic::transport::server::Router<Layers>> {
    let (health, health_service) = tonic_health::server::health_reporter();
    // It serves from the moment it listens; the reporter only holds the state.
    drop(health);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let agent = AgentServiceServer::new(agent)
        .max_decoding_message_size(MAX_DECODING_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_ENCODING_MESSAGE_BYTES);
    let peer = PeerServiceServer::new(peer)
        .max_decoding_message_size(MAX_DECODING_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_ENCODING_MESSAGE_BYTES);
    Ok(Server::builder()
        .layer(TraceLayer)
        .layer(DeadlineLayer)
        .layer(Authorize::default())
        .layer(gate)
        .add_service(health_service)
        .add_service(reflection)
        .add_service(agent)
        .add_service(peer))
}

/// What the agent says of its host.
fn about(options: &AgentOptions, jobs: &Jobs, facts: &HostFacts) -> Arc<dyn Fn() -> Host + Send + Sync> {
    let addresses = match options.migration_addresses.as_slice() {
        [] => std::slice::from_ref(&options.management_address),
        addresses => addresses,
    };
    let address = |address: &String| MigrationAddress {
        address: address.clone(),
        network: String::new(),
    };
    let host = Host {
        name: options.host.resource_name(),
        management_address: options.management_address.clone(),
        migration_addresses: addresses.iter().map(address).collect(),
        boot_id: options.boot_id.to_string(),
        agent_instance: jobs.instance.to_string(),
        protocol_min: PROTOCOL,
        protocol_max: PROTOCOL,
        features: ["live", "tunnel", "overrides", "copy-disks", "offline"]
            .map(str::to_owned)
            .to_vec(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        libvirt_version: version(facts.libvirt_version),
        qemu_version: version(facts.qemu_version),
        problem: options.unfit.clone().unwrap_or_default(),
        ..Host::default()
    };
    let (tls, ailment) = (options.tls.clone(), Arc::clone(&options.ailment));
    Arc::new(move || Host {
        problem: [
            host.problem.clone(),
            ailment().unwrap_or_default(),
            tls.problem().unwrap_or_default(),
        ]
        .into_iter()
        .filter(|problem| !problem.is_empty())
        .collect::<Vec<_>>()
        .join("; "),
        ..host.clone()
    })
}
