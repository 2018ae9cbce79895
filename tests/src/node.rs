//! A node: a set of namespaces (network, mounts, PIDs, hostname) that behaves like a machine of its own.

use crate::layout::{Layout, start_time};
use crate::namespaces;
use crate::process::{self, Output, wait_until};
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// How long a short program may take before the lab calls it hung.
const SHORT: Duration = Duration::from_secs(60);

/// What a node looks like from inside; read by `node-init`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct NodeSpec {
    /// Empty file systems of its own.
    pub(crate) fresh: Vec<String>,
    /// Folders to make, after the fresh file systems.
    pub(crate) make: Vec<String>,
    /// (from the machine, seen inside as).
    pub(crate) binds: Vec<(String, String)>,
}

impl NodeSpec {
    pub(crate) fn read(layout: &Layout, name: &str) -> Result<NodeSpec> {
        let path = layout.node(name).join("node.json");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(serde_json::from_str(&text)?)
    }
}

/// A machine of the lab, as seen by its owner.
#[derive(Debug, Clone)]
pub struct Node {
    layout: Layout,
    name: String,
}

impl Node {
    pub(crate) fn new(layout: &Layout, name: &str) -> Node {
        Node {
            layout: layout.clone(),
            name: name.to_string(),
        }
    }

    /// Starts the node's first process and its namespaces.
    pub(crate) fn start(&self, spec: &NodeSpec) -> Result<()> {
        let folder = self.folder();
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("node.json"), serde_json::to_string_pretty(spec)?)?;
        let mut command = Command::new(lab_program()?);
        command.args(["start-node", self.layout.id(), &self.name]);
        process::run(&mut command, SHORT).with_context(|| format!("starting node {}", self.name))?;
        Ok(())
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node's folder on the machine; its private system folders are below.
    pub fn folder(&self) -> PathBuf {
        self.layout.node(&self.name)
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// PID of the node's first process, as the machine sees it. Fails when the node is down.
    pub fn pid(&self) -> Result<i32> {
        self.layout
            .live_pid(&self.name)
            .with_context(|| format!("node {} is down", self.name))
    }

    pub fn is_up(&self) -> bool {
        self.pid().is_ok()
    }

    /// A program to run inside, as root. Input, output, exit and signals are the program's; the `Child` of
    /// `spawn()` is a stand-in whose death kills the program.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = self.enter(None)?;
        command.args(["--", program]);
        Ok(command)
    }

    /// Like [`Node::command`], as another user with that user's supplementary groups.
    pub fn command_as(&self, user: &str, program: &str) -> Result<Command> {
        let mut command = self.enter(Some(user))?;
        command.args(["--", program]);
        Ok(command)
    }

    fn enter(&self, user: Option<&str>) -> Result<Command> {
        let mut command = Command::new(lab_program()?);
        command.args(["enter", "--pid", &self.pid()?.to_string()]);
        if let Some(user) = user {
            command.args(["--user", user]);
        }
        Ok(command)
    }

    /// Runs a short program inside, as root, and returns what it said; its failure is an error.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        process::run(self.command(program)?.args(arguments), SHORT).with_context(|| format!("on {}", self.name))
    }

    /// Runs `work` on a thread inside the node's network; sockets made there stay there wherever they are used.
    pub fn in_network<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        namespaces::in_network(self.pid()?, work)
    }

    /// A TCP connection that leaves from this node.
    pub fn connect(&self, address: SocketAddr, limit: Duration) -> Result<TcpStream> {
        self.in_network(|| {
            TcpStream::connect_timeout(&address, limit).with_context(|| format!("from {} to {address}", self.name))
        })
    }

    /// Ends the node as if its power failed: every process in it is gone when this returns.
    pub fn power_off(&self) -> Result<()> {
        let pid = self.pid()?;
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        wait_until(&format!("the end of node {}", self.name), SHORT, || {
            Ok(start_time(pid).is_none().then_some(()))
        })
    }
}

/// The `drover-lab` program, which is also the first process of every node. Cargo builds it next to the tests.
pub(crate) fn lab_program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("DROVER_LAB_PROGRAM") {
        return Ok(path.into());
    }
    let me = std::env::current_exe()?;
    me.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("drover-lab"))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "no drover-lab beside {}: `cargo build -p drover-tests` makes it",
                me.display()
            )
        })
}
