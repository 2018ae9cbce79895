//! One world: two hosts, their agents, a controller, the links between them, one guest. What can be done to it.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use drover_agent::hypervisor::StopReason;
use drover_agent::jobs::{Jobs, Timing};
use drover_agent::server::{Agent, AgentOptions};
use drover_agent::sim::{SimGuest, SimHost, SimWorld};
use drover_controller::config::Config;
use drover_controller::policy::PolicyDefaults;
use drover_controller::server::Controller;
use drover_controller::store::memory::MemoryStore;
use drover_proto::identity_patterns::PatternLists;
use drover_proto::ids::GuestId;
use drover_proto::roles::{Role, Roles};
use drover_proto::telemetry::LogFormat;
use tokio::net::TcpListener;

use super::director::Director;
use super::folder::Folder;
use super::link::{Line, Link};
use super::pki::Pki;
use super::plan::Scenario;
use super::point::Site;
use super::process::Process;

/// Between the death of a process and the next try of its supervisor.
const SUPERVISOR: Duration = Duration::from_millis(20);

/// Shorter than on real hosts, so that what expires does so within a case.
const TIMING: Timing = Timing {
    ticket: Duration::from_secs(3),
    begin: Duration::from_secs(6),
    abort: Duration::from_secs(5),
    hand_over: Duration::from_secs(2),
    probe: Duration::from_secs(3),
    keep_moved: None,
};

type Slot<T> = Mutex<Option<Arc<Process<T>>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A host: its hypervisor, its agent, and the ways to them.
struct HostUnit {
    host: SimHost,
    agent: Slot<Agent>,
    /// The controller's way to the agent, and the agent's to the controller.
    from_controller: Link,
    to_controller: Link,
    /// The other agent's way to this one.
    from_agent: Link,
}

/// A whole world. Everything in it ends with [`end`](Self::end).
pub struct World {
    pub sim: SimWorld,
    pub guest: SimGuest,
    pub store: Arc<MemoryStore>,
    pub director: Arc<Director>,
    source: HostUnit,
    destination: HostUnit,
    controller: Slot<Controller>,
    pub folder: Folder,
    /// Held, so that it is there for all processes of this world.
    _pki: Arc<Pki>,
    /// No other world's: a port that a dead process had must not answer for another world, whose hosts and keys have
    /// the same names.
    address: Ipv4Addr,
}

impl World {
    /// Both agents and the controller are up and know each other.
    pub async fn new(scenario: Scenario) -> anyhow::Result<Arc<Self>> {
        let folder = Folder::new(scenario)?;
        let guest = SimGuest {
            memory_mib: 1,
            dirty_mib_per_second: if scenario.is_busy() { 1000 } else { 0 },
            persistent: scenario != Scenario::MoveTransient,
            autostart: scenario != Scenario::MoveTransient,
            paused: scenario == Scenario::MovePaused,
            disks: folder.disks(scenario),
            tpm: scenario.is_offline(),
            ..SimGuest::named("web")
        };
        let (sim, store) = (SimWorld::new(), Arc::new(MemoryStore::default()));
        let director = Director::new(Arc::clone(&store), guest.id());
        let address = own_address();
        let world = Arc::new(Self {
            source: HostUnit::new(&sim, Site::Source, address).await?,
            destination: HostUnit::new(&sim, Site::Destination, address).await?,
            sim,
            guest,
            store,
            director,
            controller: Mutex::default(),
            folder,
            _pki: Pki::shared(),
            address,
        });
        for site in Site::BOTH {
            world.unit(site).host.set_gate(world.director.gate(site));
        }
        let source = &world.unit(Site::Source).host;
        source.add(&world.guest)?;
        if scenario.is_offline() {
            world.director.one_definition();
        }
        if scenario.is_offline() && !scenario.shuts_down() {
            source.kill(world.guest_id(), StopReason::Shutdown);
        }
        world.director.stand_in(&world);
        world.start_controller().await?;
        for site in Site::BOTH {
            world.start_agent(site).await?;
        }
        Ok(world)
    }

    fn unit(&self, site: Site) -> &HostUnit {
        match site {
            Site::Source => &self.source,
            Site::Destination => &self.destination,
        }
    }

    pub fn guest_id(&self) -> GuestId {
        self.guest.id()
    }

    pub fn host(&self, site: Site) -> &SimHost {
        &self.unit(site).host
    }

    /// The operations of an agent that is up.
    pub fn jobs(&self, site: Site) -> Option<Arc<Jobs>> {
        let process = lock(&self.unit(site).agent).clone()?;
        process.with(|agent| Arc::clone(agent.jobs()))
    }

    /// Where the controller's API is, while it is up.
    pub fn controller_address(&self) -> Option<SocketAddr> {
        let process = lock(&self.controller).clone()?;
        process.with(|controller| controller.address)
    }

    /// Starts an agent that is not there, as its supervisor would: again and again until it is up. On a host without
    /// power there is no supervisor: `power_on` has one, which starts it.
    pub async fn start_agent(self: &Arc<Self>, site: Site) -> anyhow::Result<()> {
        let unit = self.unit(site);
        let agent = || (!unit.host.is_off()).then(|| self.agent_main(site));
        supervise(&unit.agent, agent, |agent| unit.lead_to(Some(agent.address()))).await
    }

    /// Starts a controller on the store that is there.
    pub async fn start_controller(self: &Arc<Self>) -> anyhow::Result<()> {
        let main = || {
            let (config, store) = (config(self.address), Arc::clone(&self.store));
            Some(async move { Controller::start(&config, store).await })
        };
        supervise(&self.controller, main, |controller| {
            for site in Site::BOTH {
                self.unit(site).to_controller.lead_to(Some(controller.address));
            }
        })
        .await
    }

    fn agent_main(self: &Arc<Self>, site: Site) -> impl Future<Output = anyhow::Result<Agent>> + Send + 'static {
        let unit = self.unit(site);
        let (host, gate) = (unit.host.clone(), self.director.gate(site));
        let (near, far, to_controller) = (
            unit.from_controller.address(),
            unit.from_agent.address(),
            unit.to_controller.address(),
        );
        let storage = self.folder.storage(site);
        let (state_dir, run_dir) = (self.folder.state(site), self.folder.run(site));
        let (address, boot_id) = (self.address, host.boot_id());
        async move {
            Agent::start(AgentOptions {
                host: site.host().parse()?,
                listener: TcpListener::bind((address, 0)).await?,
                management_address: near,
                migration_addresses: vec![far],
                controller: Some(to_controller),
                state_dir,
                run_dir,
                qemu_group: None,
                storage: storage?,
                tls: Pki::shared().tls(&format!("agent/{}", site.host()))?,
                boot_id,
                hypervisor: Arc::new(host),
                unfit: None,
                ailment: Arc::new(|| None),
                limits: TIMING,
                gate,
            })
            .await
        }
    }

    /// SIGKILL.
    pub async fn kill_agent(&self, site: Site) {
        let unit = self.unit(site);
        let process = lock(&unit.agent).take();
        if let Some(process) = process {
            process.kill().await;
        }
        let slot = lock(&unit.agent);
        if slot.is_none() {
            unit.lead_to(None);
        }
    }

    /// SIGKILL.
    pub async fn kill_controller(&self) {
        let process = lock(&self.controller).take();
        if let Some(process) = process {
            process.kill().await;
        }
        let slot = lock(&self.controller);
        if slot.is_none() {
            for site in Site::BOTH {
                self.unit(site).to_controller.lead_to(None);
            }
        }
    }

    /// The power of a host fails: nothing of it is heard of any more, then nothing of it is there.
    pub async fn power_off(&self, site: Site) {
        let unit = self.unit(site);
        unit.lead_to(None);
        unit.host.power_off();
        self.kill_agent(site).await;
        // /run does not outlive a boot. What cannot be removed is found by the invariants.
        let _ = std::fs::remove_dir_all(self.folder.run(site));
    }

    pub fn power_on(&self, site: Site) {
        self.unit(site).host.power_on();
    }

    /// Between the two agents.
    pub fn set_agents(&self, line: Line) {
        for site in Site::BOTH {
            self.unit(site).from_agent.set(line);
        }
    }

    /// Between the controller and one host, both ways.
    pub fn set_controller(&self, site: Site, line: Line) {
        self.unit(site).from_controller.set(line);
        self.unit(site).to_controller.set(line);
    }

    /// Everything ends.
    pub async fn end(&self) {
        self.director.go_home();
        self.kill_controller().await;
        for site in Site::BOTH {
            self.kill_agent(site).await;
        }
    }
}

impl HostUnit {
    async fn new(sim: &SimWorld, site: Site, address: Ipv4Addr) -> anyhow::Result<Self> {
        Ok(Self {
            host: sim.host(site.host()),
            agent: Mutex::default(),
            from_controller: Link::new(address).await?,
            to_controller: Link::new(address).await?,
            from_agent: Link::new(address).await?,
        })
    }

    fn lead_to(&self, agent: Option<SocketAddr>) {
        self.from_controller.lead_to(agent);
        self.from_agent.lead_to(agent);
    }
}

/// Starts what should be in a slot until it is up, or somebody else has put something there, or has killed it, or it
/// cannot be started now.
async fn supervise<T, F>(slot: &Slot<T>, main: impl Fn() -> Option<F>, up: impl FnOnce(&T)) -> anyhow::Result<()>
where
    T: Send + 'static,
    F: Future<Output = anyhow::Result<T>> + Send + 'static,
{
    for _ in 0..100 {
        let (process, started) = {
            let mut place = lock(slot);
            if place.is_some() {
                return Ok(());
            }
            // With the slot held: whoever takes the power away kills what is in it afterwards.
            let Some(main) = main() else { return Ok(()) };
            let (process, started) = Process::spawn(main)?;
            let process = Arc::new(process);
            *place = Some(Arc::clone(&process));
            (process, started)
        };
        let is_this = |there: &Arc<Process<T>>| Arc::ptr_eq(there, &process);
        match started.await {
            Ok(Ok(())) => {
                // With the slot held: whoever kills it leads nobody to it afterwards.
                let place = lock(slot);
                if place.as_ref().is_some_and(is_this) {
                    process.with(up);
                }
                return Ok(());
            }
            // Killed while it started: whoever did that starts it again.
            Err(_) if !take_if(slot, is_this) => return Ok(()),
            Err(error) => tracing::error!("a process broke off in its start: {error}"),
            Ok(Err(error)) => {
                take_if(slot, is_this);
                tracing::warn!("a process did not start: {error:#}");
            }
        }
        process.kill().await;
        tokio::time::sleep(SUPERVISOR).await;
    }
    anyhow::bail!("a process could not be started")
}

/// Whether it was the wanted one, which is out of the slot now.
fn take_if<T>(slot: &Slot<T>, wanted: impl Fn(&Arc<Process<T>>) -> bool) -> bool {
    let mut place = lock(slot);
    let found = place.as_ref().is_some_and(wanted);
    if found {
        place.take();
    }
    found
}

/// A loopback address that no other world has: of this process by its id, of its worlds by their number.
fn own_address() -> Ipv4Addr {
    static NUMBER: AtomicU16 = AtomicU16::new(1);
    let [high, low] = NUMBER.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let process = u8::try_from(std::process::id() % 250).unwrap_or(0) + 2;
    Ipv4Addr::new(127, process, high, low)
}

fn config(address: Ipv4Addr) -> Config {
    Config {
        listen: SocketAddr::from((address, 0)),
        metrics_listen: SocketAddr::from((address, 0)),
        store: "memory:".to_owned(),
        tls: Pki::shared().files("controller"),
        trust_domain: "drover.local".parse().expect("a valid name"),
        identities: PatternLists::default(),
        policy: PolicyDefaults::default(),
        roles: Roles::default().with("operator", Role::Admin),
        link_speed: 0,
        heartbeat_interval_seconds: 1,
        log_format: LogFormat::Human,
        log_filter: "info".to_owned(),
    }
}
