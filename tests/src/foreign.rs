//! Clients that know nothing of Drover but its `.proto` files: Python programs with grpcio, and `buf curl`, both from
//! the project's `.venv`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::{CONTROLLER_PORT, Cluster};
use crate::{Daemon, Network, run, wait_until};

/// How long a program may take to tell something.
const PATIENCE: Duration = Duration::from_secs(120);

/// A Python program that talks to the cluster's controller from `control`, and what it has told: JSON, one object a line.
#[derive(Debug)]
pub struct Foreign {
    daemon: Daemon,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn from_venv(name: &str) -> Result<PathBuf> {
    let path = root().join(".venv/bin").join(name);
    ensure!(path.exists(), "no {}: run `make test` first", path.display());
    // The interpreter is a link that must be called by its own name: only the folder is made plain.
    let folder = path.parent().context("no folder")?.canonicalize()?;
    Ok(folder.join(name))
}

/// Makes the stubs from the `.proto` files, as anybody would.
fn stubs(cluster: &Cluster<'_>) -> Result<PathBuf> {
    let (folder, protos) = (cluster.folder().join("stubs"), root().join("proto/proto"));
    if folder.exists() {
        return Ok(folder);
    }
    std::fs::create_dir_all(&folder)?;
    let mut command = Command::new(from_venv("python")?);
    command.args(["-m", "grpc_tools.protoc", "-I"]).arg(&protos);
    for kind in ["--python_out", "--grpc_python_out"] {
        command.arg(format!("{kind}={}", folder.display()));
    }
    for file in std::fs::read_dir(protos.join("drover/v1"))? {
        command.arg(file?.path());
    }
    run(&mut command, Duration::from_secs(60)).context("making Python stubs")?;
    Ok(folder)
}

fn controller() -> String {
    format!("{}:{CONTROLLER_PORT}", Network::Management.address(1))
}

impl Cluster<'_> {
    /// Starts a Python program of `examples/python` or `tests/foreign` as user `alice`. `name` must be unique in the lab.
    pub fn python(&self, program: &str, name: &str, arguments: &[&str]) -> Result<Foreign> {
        let (root, stubs) = (root().canonicalize()?, stubs(self)?);
        let examples = root.join("examples/python");
        let mut command = self
            .lab()
            .control()
            .command(&from_venv("python")?.display().to_string())?;
        let path = format!("{}:{}", stubs.display(), examples.display());
        command.env("PYTHONPATH", path).env("PYTHONDONTWRITEBYTECODE", "1");
        command.arg(root.join(program)).args(arguments);
        command.args(["--controller", &controller()]);
        let pki = self.pki();
        for (option, file) in [
            ("--cert", "user-alice/tls.crt"),
            ("--key", "user-alice/tls.key"),
            ("--ca", "ca.crt"),
        ] {
            command.arg(option).arg(pki.join(file));
        }
        let daemon = Daemon::spawn(&self.lab().control(), name, &mut command)?;
        Ok(Foreign { daemon })
    }

    /// Calls a method by what the controller's reflection says of it, as user `alice`. Gives code and output.
    pub fn buf_curl(&self, method: &str, request: &str) -> Result<(i32, String)> {
        let mut command = self.lab().control().command(&from_venv("buf")?.display().to_string())?;
        let pki = self.pki();
        command.args(["curl", "--protocol", "grpc", "--data", request]);
        command.arg("--cacert").arg(pki.join("ca.crt"));
        command.arg("--cert").arg(pki.join("user-alice/tls.crt"));
        command.arg("--key").arg(pki.join("user-alice/tls.key"));
        // It keeps a cache, and wants a home for it.
        command
            .env("HOME", self.folder())
            .env("XDG_CACHE_HOME", self.folder().join("cache"));
        command.arg(format!("https://{}/{method}", controller()));
        let output = crate::process::run_any(&mut command, Duration::from_secs(60))?;
        let code = output.status.code().unwrap_or(-1);
        Ok((code, output.stdout + &output.stderr))
    }

    /// Cuts every connection from a client in `control` to the controller; those of the agents stay. Gives how many.
    pub fn cut_clients(&self) -> Result<usize> {
        let filter = [
            "dst",
            &Network::Management.address(1).to_string(),
            "dport",
            "=",
            &format!(":{CONTROLLER_PORT}"),
        ];
        let said = self
            .lab()
            .control()
            .run("ss", &[&["--kill", "--tcp", "--no-header"], &filter[..]].concat())?;
        Ok(said.stdout.lines().count())
    }

    /// Memory of the controller's process that is in RAM, in bytes: all of it, and at its peak.
    pub fn controller_memory(&mut self) -> Result<(u64, u64)> {
        let pid = self.controller()?.pid()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = |field: &str| {
            let line = status.lines().find(|line| line.starts_with(field))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        let read = |field: &str| Ok::<_, anyhow::Error>(kib(field).with_context(|| format!("no {field}"))? << 10);
        Ok((read("VmRSS:")?, read("VmHWM:")?))
    }
}

impl Foreign {
    /// All that it has told so far.
    pub fn told(&self) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(self.daemon.log())?;
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let objects = whole.lines().filter(|line| line.starts_with('{'));
        objects
            .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()))
            .collect()
    }

    /// Waits until it has told something of which `found` gives a value.
    pub fn wait_for<T>(&mut self, what: &str, found: impl Fn(&[Value]) -> Option<T>) -> Result<T> {
        let what = format!("{what} (log: {})", self.daemon.log().display());
        wait_until(&what, PATIENCE, || {
            let runs = self.daemon.is_running();
            let value = found(&self.told()?);
            // What it told before it ended counts.
            Ok((value.is_some() || !runs).then_some(value))
        })?
        .with_context(|| format!("it ended before that: {what}"))
    }

    /// Waits for its end, and gives all that it has told.
    pub fn finish(mut self) -> Result<Vec<Value>> {
        let what = format!("the end of a foreign client (log: {})", self.daemon.log().display());
        wait_until(&what, PATIENCE, || Ok((!self.daemon.is_running()).then_some(())))?;
        self.told()
    }
}
