//! A second controller beside one that sleeps: on the same store, or on a copy of its file.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Cluster, Process, Run, START};
use crate::process::{Output, run_any};
use crate::{Daemon, Network, wait_until};

/// Its ports in `control`, beside those of the first.
const PORT: u16 = 7442;
const METRICS_PORT: u16 = 7443;

/// What the second one works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    Same,
    /// A copy, made now. The first one must not be writing.
    Copy,
}

/// A running second controller; it ends with this value.
#[derive(Debug)]
pub struct Successor {
    daemon: Daemon,
    store: Store,
}

impl Cluster<'_> {
    /// Starts a second controller; returns when it serves.
    pub fn start_successor(&self, store: Store) -> Result<Successor> {
        let state = self.folder.join("state");
        let mut text = fs::read_to_string(self.folder.join("controller.toml"))?;
        if store == Store::Copy {
            let copy = self.folder.join("copy");
            fs::create_dir_all(&copy)?;
            for entry in fs::read_dir(&state)?.flatten() {
                fs::copy(entry.path(), copy.join(entry.file_name()))?;
            }
            text = text.replace(&state.display().to_string(), &copy.display().to_string());
        }
        text = text.replace("0.0.0.0:7440", &format!("0.0.0.0:{PORT}"));
        text = text.replace("127.0.0.1:7441", &format!("127.0.0.1:{METRICS_PORT}"));
        ensure!(text.contains("7442") && text.contains("7443"), "other ports: {text}");
        let config = self.folder.join("successor.toml");
        fs::write(&config, text)?;
        let node = self.lab.control();
        let mut command = node.command(&self.program("drover-controller"))?;
        command.arg("--config").arg(&config);
        command.envs(self.points_of(&Process::Controller)?);
        let daemon = Daemon::spawn(&node, "successor", &mut command)?;
        let log = daemon.log().display().to_string();
        wait_until(&format!("the second controller (log: {log})"), START, || {
            let address = SocketAddr::from(([127, 0, 0, 1], METRICS_PORT));
            let ready = node.in_network(|| Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1))?));
            ready.map(Some)
        })?;
        Ok(Successor { daemon, store })
    }

    /// The command as an admin, at the second controller; a failing one is no error.
    pub fn drover_at_successor(&self, arguments: &[&str]) -> Result<Run> {
        let mut command = self.command("alice")?;
        command.env(
            "DROVER_CONTROLLER",
            format!("{}:{PORT}", Network::Management.address(1)),
        );
        let Output {
            status,
            stdout,
            stderr,
            wall,
        } = run_any(command.args(arguments), START)?;
        Ok(Run {
            code: status.code().unwrap_or(-1),
            stdout,
            stderr,
            wall,
        })
    }

    /// Ends both, and starts one in the first one's place, on the store of the second.
    pub fn inherit(&mut self, mut successor: Successor) -> Result<()> {
        self.kill_controller()?;
        successor.daemon.kill()?;
        if successor.store == Store::Copy {
            let state = self.folder.join("state");
            for entry in fs::read_dir(&state)?.flatten() {
                fs::remove_file(entry.path())?;
            }
            for entry in fs::read_dir(self.folder.join("copy"))?.flatten() {
                fs::copy(entry.path(), state.join(entry.file_name()))?;
            }
        }
        self.start_controller()?;
        self.wait_for_hosts().context("after the second controller")
    }
}
