//! Drover in a lab: a PKI, a controller in `control`, an agent on each host (as user `drover`), and the command line.

mod backup;
mod command_line;
mod configuration;
mod invariants;
mod journals;
mod points;
mod small_disks;
mod successor;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::{Daemon, Host, Lab, wait_until};

pub use command_line::{Migration, Run, expect};
pub use invariants::Expected;
pub use journals::Page;
pub use points::Process;
pub use successor::{Store, Successor};

/// How long a daemon may take until it serves.
const START: Duration = Duration::from_secs(120);
/// Port of the controller in `control`.
pub const CONTROLLER_PORT: u16 = 7440;
/// Port of every agent.
pub const AGENT_PORT: u16 = 7450;

/// What is different from a plain installation.
#[derive(Debug, Clone, Default)]
pub struct ClusterOptions {
    /// Environment of the controller and the agents: `OTEL_EXPORTER_OTLP_ENDPOINT`, `DROVER_FAULT`, ….
    pub environment: Vec<(String, String)>,
    /// Processes can be held at fault points, see [`Cluster::arm`].
    pub fault_points: bool,
    /// State lies on small file systems, see [`Cluster::fill_disk`].
    pub small_disks: bool,
}

/// A running Drover. Its processes end with it.
#[derive(Debug)]
pub struct Cluster<'lab> {
    lab: &'lab Lab,
    options: ClusterOptions,
    folder: PathBuf,
    controller: Option<Daemon>,
    agents: BTreeMap<String, Daemon>,
}

impl<'lab> Cluster<'lab> {
    /// Starts everything on all hosts of the lab; returns when every host is registered.
    pub fn start(lab: &'lab Lab) -> Result<Cluster<'lab>> {
        Cluster::start_with(lab, ClusterOptions::default())
    }

    /// Its daemons stop where they are told to.
    pub fn start_with_fault_points(lab: &'lab Lab) -> Result<Cluster<'lab>> {
        let options = ClusterOptions {
            fault_points: true,
            ..ClusterOptions::default()
        };
        Cluster::start_with(lab, options)
    }

    pub fn start_with(lab: &'lab Lab, options: ClusterOptions) -> Result<Cluster<'lab>> {
        let folder = lab.layout().folder().join("drover");
        let mut cluster = Cluster {
            lab,
            options,
            folder,
            controller: None,
            agents: BTreeMap::new(),
        };
        cluster.install().context("installing Drover in the lab")?;
        if cluster.options.small_disks {
            cluster.mount_small_disks()?;
        }
        cluster.start_controller()?;
        let names: Vec<String> = lab.hosts().iter().map(|host| host.name().to_string()).collect();
        for name in &names {
            cluster.spawn_agent(name)?;
        }
        for name in &names {
            cluster.wait_for_agent(name)?;
        }
        Ok(cluster)
    }

    pub fn lab(&self) -> &'lab Lab {
        self.lab
    }

    /// PKI, programs, configuration.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Programs are linked or copied into the lab: the agent's user may not be able to enter the folder of the build.
    fn install(&self) -> Result<()> {
        let programs = self.folder.join("bin");
        fs::create_dir_all(&programs)?;
        let built = crate::node::lab_program()?;
        let built = built.parent().context("no folder of programs")?;
        for name in ["drover", "drover-controller", "drover-agent"] {
            let (from, to) = (built.join(name), programs.join(name));
            if !to.exists() && fs::hard_link(&from, &to).is_err() {
                fs::copy(&from, &to).with_context(|| format!("no {}: run `make build`", from.display()))?;
            }
        }
        configuration::write(self)
    }

    pub(crate) fn program(&self, name: &str) -> String {
        self.folder.join("bin").join(name).display().to_string()
    }

    pub fn pki(&self) -> PathBuf {
        self.folder.join("pki")
    }

    pub fn start_controller(&mut self) -> Result<()> {
        let node = self.lab.control();
        let mut command = node.command(&self.program("drover-controller"))?;
        command.arg("--config").arg(self.folder.join("controller.toml"));
        command.envs(self.options.environment.iter().cloned());
        command.envs(self.points_of(&Process::Controller)?);
        let daemon = Daemon::spawn(&node, "controller", &mut command)?;
        let log = daemon.log().display().to_string();
        self.controller = Some(daemon);
        wait_until(&format!("the controller (log: {log})"), START, || {
            let ready = self.lab.control().in_network(|| {
                let address = std::net::SocketAddr::from(([127, 0, 0, 1], configuration::METRICS_PORT));
                Ok(std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1))?)
            });
            ready.map(Some)
        })?;
        Ok(())
    }

    /// SIGKILL, as a crash would.
    pub fn kill_controller(&mut self) -> Result<()> {
        self.controller.take().context("the controller does not run")?.kill()
    }

    pub fn controller(&mut self) -> Result<&mut Daemon> {
        self.controller.as_mut().context("the controller does not run")
    }

    /// Starts a host's agent and waits until the controller knows of it.
    pub fn start_agent(&mut self, host: &str) -> Result<()> {
        self.spawn_agent(host)?;
        self.wait_for_agent(host)
    }

    fn spawn_agent(&mut self, host: &str) -> Result<()> {
        let node = self.lab.host(host);
        let mut command = node.command_as_agent(&self.program("drover-agent"))?;
        command.arg("--config").arg(self.folder.join(format!("{host}.toml")));
        command.envs(self.options.environment.iter().cloned());
        command.envs(self.points_of(&Process::Agent(host.to_string()))?);
        let daemon = Daemon::spawn(node, "agent", &mut command)?;
        self.agents.insert(host.to_string(), daemon);
        Ok(())
    }

    /// Waits until the host's present agent (not an earlier one) is registered.
    fn wait_for_agent(&mut self, host: &str) -> Result<()> {
        let pid = self.agent(host)?.pid()?;
        let log = self.agent(host)?.log().clone();
        wait_until(&format!("the agent of {host} (log: {})", log.display()), START, || {
            let text = fs::read_to_string(&log)?;
            anyhow::ensure!(
                std::path::Path::new(&format!("/proc/{pid}")).exists(),
                "it ended: {}",
                last_line(&text)
            );
            // A host stays UP for some heartbeats after its agent died: what counts is what this one says.
            let registered = self.agents[host].has_said("registered")?;
            Ok((registered && self.hosts()?.iter().any(|known| known == host)).then_some(()))
        })
    }

    /// SIGKILL, as a crash would.
    pub fn kill_agent(&mut self, host: &str) -> Result<()> {
        self.agents
            .remove(host)
            .with_context(|| format!("no agent runs on {host}"))?
            .kill()
    }

    pub fn agent(&mut self, host: &str) -> Result<&mut Daemon> {
        self.agents
            .get_mut(host)
            .with_context(|| format!("no agent runs on {host}"))
    }

    /// Where the host's present agent writes its log.
    pub fn agent_log(&self, host: &str) -> Result<PathBuf> {
        let agent = self.agents.get(host);
        let agent = agent.with_context(|| format!("no agent runs on {host}"))?;
        Ok(agent.log().clone())
    }

    pub fn host(&self, name: &str) -> &'lab Host {
        self.lab.host(name)
    }
}

fn last_line(text: &str) -> &str {
    text.lines().last().unwrap_or("it said nothing")
}
