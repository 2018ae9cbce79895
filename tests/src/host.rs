//! A host of the lab: a node with libvirtd, and the processes that tests start on it.

use crate::layout::{Layout, start_time};
use crate::libvirtd::{self, AGENT};
use crate::network::{Link, Network};
use crate::node::Node;
use crate::process::{self, Output, wait_until};
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::ops::Deref;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A machine with libvirtd, QEMU and (if a test starts one) an agent.
#[derive(Debug, Clone)]
pub struct Host {
    node: Node,
    number: u8,
    listen_tcp: bool,
}

impl Deref for Host {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

impl Host {
    pub(crate) fn new(layout: &Layout, name: &str, number: u8, listen_tcp: bool) -> Host {
        Host {
            node: Node::new(layout, name),
            number,
            listen_tcp,
        }
    }

    /// Writes the host's configuration, starts its namespaces and joins it to the networks. libvirtd follows.
    pub(crate) fn start_node(&self) -> Result<()> {
        // Fixed by name, so that a host that was powered off comes back as the same machine.
        let uuid = uuid::Uuid::from_u128(0xd20f_e200_0000_4000_8000_0000_0000_0000 + u128::from(self.number));
        let spec = libvirtd::prepare_host(self.layout(), self.name(), &uuid.to_string(), self.listen_tcp)?;
        self.node.start(&spec)?;
        for network in [Network::Management, Network::Guests] {
            let centre = Node::new(self.layout(), network.centre());
            crate::network::join(&centre, &self.node, network, self.number)?;
        }
        self.run(
            "install",
            &[
                "-d",
                "-o",
                AGENT,
                "-g",
                AGENT,
                "-m",
                "755",
                "/run/drover",
                "/var/lib/drover",
            ],
        )?;
        Ok(())
    }

    /// Starts virtlogd and libvirtd; returns when libvirt answers.
    pub(crate) fn start_services(&self) -> Result<()> {
        libvirtd::start(self)
    }

    /// Address on the management network.
    pub fn address(&self) -> Ipv4Addr {
        Network::Management.address(self.number)
    }

    pub(crate) fn listens_on_tcp(&self) -> bool {
        self.listen_tcp
    }

    /// A file below the host's `/var/log/libvirt`.
    pub fn log(&self, name: &str) -> PathBuf {
        self.folder().join("var-log-libvirt").join(name)
    }

    /// The host's link to a network, to limit or cut it.
    pub fn link(&self, network: Network) -> Link<'_> {
        Link {
            centre: Node::new(self.layout(), network.centre()),
            node: &self.node,
            network,
            number: self.number,
        }
    }

    /// Where a file that the host sees as `path` lies on the machine: below `/srv`, `/var/lib/drover`, ….
    pub fn outside(&self, path: &str) -> PathBuf {
        match path.strip_prefix("/srv/shared") {
            Some(rest) => self.layout().shared().join(rest.trim_start_matches('/')),
            None => PathBuf::from(format!("/proc/{}/root{path}", self.pid().unwrap_or(0))),
        }
    }

    /// A program as the agent's user `drover` with its groups (libvirt, kvm, libvirt-qemu).
    pub fn command_as_agent(&self, program: &str) -> Result<Command> {
        self.command_as(AGENT, program)
    }

    /// `virsh` on this host's libvirtd; its failure is an error.
    pub fn virsh(&self, arguments: &[&str]) -> Result<String> {
        Ok(self
            .virsh_within(Duration::from_secs(30), arguments)?
            .stdout
            .trim_end()
            .to_string())
    }

    /// `virsh` with a time limit of the caller's.
    pub fn virsh_within(&self, limit: Duration, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command("virsh")?;
        command.args(["-q", "-c", "qemu:///system"]).args(arguments);
        process::run(&mut command, limit).with_context(|| format!("on {}", self.name()))
    }

    /// PID of the host's libvirtd, as the machine sees it.
    pub fn libvirtd_pid(&self) -> Result<i32> {
        self.processes_named("libvirtd")?
            .first()
            .copied()
            .context("libvirtd does not run")
    }

    /// Kills libvirtd without ceremony; QEMUs live on. [`Host::start_libvirtd`] brings it back.
    pub fn kill_libvirtd(&self) -> Result<()> {
        let pid = self.libvirtd_pid()?;
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        wait_until("the end of libvirtd", Duration::from_secs(60), || {
            Ok(start_time(pid).is_none().then_some(()))
        })
    }

    pub fn start_libvirtd(&self) -> Result<()> {
        libvirtd::start_libvirtd(self)
    }

    /// Powers the host on again after [`Node::power_off`]: same disks and identity, empty `/run`, a new boot id.
    pub fn power_on(&self) -> Result<()> {
        self.start_node()?;
        self.start_services()
    }

    /// PIDs (as the machine sees them) of the host's processes whose program name starts with `name`.
    pub fn processes_named(&self, name: &str) -> Result<Vec<i32>> {
        let mine = fs::read_link(format!("/proc/{}/ns/pid", self.pid()?))?;
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            // Processes end while we look: what cannot be read any more is none of ours.
            let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/pid")) else {
                continue;
            };
            let Ok(program) = fs::read_to_string(format!("/proc/{pid}/comm")) else {
                continue;
            };
            if namespace == mine && program.starts_with(name) && start_time(pid).is_some() {
                found.push(pid);
            }
        }
        found.sort_unstable();
        Ok(found)
    }
}

/// A long-running program on a node; killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    name: String,
    log: PathBuf,
    /// Where this run's part of the log begins.
    log_begins: usize,
}

impl Daemon {
    /// Starts `command` (made by [`Node::command`] or [`Host::command_as_agent`]) with its output in a log file of
    /// the lab. `name` must be unique among what runs; a restarted daemon continues the same log.
    pub fn spawn(node: &Node, name: &str, command: &mut Command) -> Result<Daemon> {
        let log = node.layout().logs().join(format!("{}-{name}.log", node.name()));
        let file = File::options().create(true).append(true).open(&log)?;
        let log_begins = file.metadata()?.len() as usize;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {name} on {}", node.name()))?;
        Ok(Daemon {
            child,
            name: name.to_string(),
            log,
            log_begins,
        })
    }

    pub fn log(&self) -> &PathBuf {
        &self.log
    }

    /// PID of the program itself, as the machine sees it (not of the stand-in that entered the node for it).
    pub fn pid(&self) -> Result<i32> {
        let what = format!("the start of {} (log: {})", self.name, self.log.display());
        let found = wait_until(&what, Duration::from_secs(60), || {
            let stand_in = self.child.id() as i32;
            if start_time(stand_in).is_none() {
                return Ok(Some(None));
            }
            let children = fs::read_to_string(format!("/proc/{stand_in}/task/{stand_in}/children"))?;
            let Ok(pid) = children.trim().parse::<i32>() else {
                return Ok(None);
            };
            // Until it has become the program it is setpriv, or not even that.
            let program = fs::read_to_string(format!("/proc/{pid}/comm"))?;
            Ok((!matches!(program.trim(), "setpriv" | "drover-lab")).then_some(Some(pid)))
        })?;
        found.with_context(|| format!("{} has ended; log: {}", self.name, self.log.display()))
    }

    /// Sends a signal to the program itself.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.pid()?), signal)?)
    }

    /// Kills it at once, as a crash would; it is gone when this returns.
    pub fn kill(&mut self) -> Result<()> {
        // The stand-in ends after it has seen the program's end. Where there is no program, it goes itself.
        if self.signal(Signal::SIGKILL).is_err() {
            self.child.kill()?;
        }
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end and waits; returns its exit code.
    pub fn stop(&mut self, limit: Duration) -> Result<Option<i32>> {
        let _ = self.signal(Signal::SIGTERM);
        let what = format!("the end of {} (log: {})", self.name, self.log.display());
        let status = wait_until(&what, limit, || Ok(self.child.try_wait()?))?;
        Ok(status.code())
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Whether its log, since this start, contains `text`.
    pub fn has_said(&self, text: &str) -> Result<bool> {
        Ok(self.times_said(text)? > 0)
    }

    /// How many times its log, since this start, contains `text`.
    pub fn times_said(&self, text: &str) -> Result<usize> {
        let log = fs::read(&self.log)?;
        let log = String::from_utf8_lossy(log.get(self.log_begins..).unwrap_or_default());
        Ok(log.matches(text).count())
    }

    /// Waits until its log, since this start, contains `text`.
    pub fn wait_for_log(&self, text: &str, limit: Duration) -> Result<()> {
        wait_until(&format!("{text:?} in {}", self.log.display()), limit, || {
            Ok(self.has_said(text)?.then_some(()))
        })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.kill();
        }
    }
}
