//! The life of a lab from its owner's side: the folder it begins with, the guardian that ends it.

use crate::inside;
use crate::lab::{FIRST_HOST, Lab};
use crate::layout::{LabRecord, Layout};
use crate::network::Network;
use crate::node::lab_program;
use crate::process::wait_until;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// The owner's hold on a lab. Closing the pipe ends the lab, and the kernel closes it when the owner dies.
#[derive(Debug)]
pub(crate) struct Guardian {
    process: Child,
    pipe: Option<ChildStdin>,
    layout: Layout,
}

impl Guardian {
    /// Starts the guardian of a lab; none is returned for a lab that is to be kept.
    pub(crate) fn start(layout: &Layout, keep: bool) -> Result<Option<Guardian>> {
        let log = layout.logs().join("guardian.log");
        let mut command = Command::new(lab_program()?);
        command.args(["guardian", layout.id()]).current_dir("/");
        command.stdout(Stdio::piped()).stderr(File::create(&log)?);
        command.stdin(if keep { Stdio::null() } else { Stdio::piped() });
        if keep {
            command.arg("--keep");
        }
        let mut process = command.spawn().context("starting the guardian")?;
        let pipe = process.stdin.take();
        let mut said = String::new();
        let stdout = process.stdout.take().context("the guardian has no output")?;
        BufReader::new(stdout).read_line(&mut said)?;
        if said.trim() != "ready" {
            let why = fs::read_to_string(&log).unwrap_or_default();
            fs::remove_dir_all(layout.folder())?;
            bail!("the guardian did not start: {why}");
        }
        let guardian = Guardian {
            process,
            pipe,
            layout: layout.clone(),
        };
        Ok((!keep).then_some(guardian))
    }

    /// Ends the lab and waits until nothing of it is left.
    pub(crate) fn end(&mut self) -> Result<()> {
        if self.pipe.take().is_none() {
            return Ok(());
        }
        let folder = self.layout.folder();
        let what = format!("the end of lab {} ({})", self.layout.id(), folder.display());
        let status = wait_until(&what, PATIENCE, || Ok(self.process.try_wait()?))?;
        if !status.success() || folder.exists() {
            bail!("the guardian ended with {status}; left: {}", folder.display());
        }
        Ok(())
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("lab {} did not end cleanly: {error:#}", self.layout.id());
        }
    }
}

/// Ends a lab by its id, whoever owns it and whatever is left of it.
pub(crate) fn remove(layout: &Layout) -> Result<()> {
    match layout.live_pid("lab") {
        // Its guardian sees the death and removes the folder.
        Some(pid) => kill(Pid::from_raw(pid), Signal::SIGKILL)?,
        None => return inside::remove_folder(layout),
    }
    let what = format!("the end of lab {} ({})", layout.id(), layout.folder().display());
    wait_until(&what, PATIENCE, || Ok((!layout.folder().exists()).then_some(())))
}

/// Removes folders of labs that died together with their guardian; the kernel has removed the rest of them.
pub(crate) fn sweep() {
    let old = |layout: &Layout| {
        let changed = fs::metadata(layout.folder()).and_then(|data| data.modified()).ok();
        let age = changed.and_then(|at| at.elapsed().ok());
        age.is_some_and(|age| age > Duration::from_secs(120))
    };
    for layout in Layout::all().iter().filter_map(|id| Layout::new(id).ok()) {
        // A young one may be starting right now.
        if layout.live_pid("lab").is_none() && old(&layout) {
            let _ = inside::remove_folder(&layout);
        }
    }
    crate::loop_device::detach_orphans();
}

/// Makes the folder of a new lab, with what all its nodes share.
pub(crate) fn make_folder(layout: &Layout, record: &LabRecord) -> Result<()> {
    if let Some(parent) = layout.folder().parent() {
        fs::create_dir_all(parent)?;
    }
    let id = layout.id();
    fs::create_dir(layout.folder())
        .with_context(|| format!("lab {id} exists (`drover-lab down --id {id}` ends it)"))?;
    for folder in [layout.logs(), layout.shared(), layout.nfs_export()] {
        fs::create_dir(folder)?;
    }
    crate::storage::open_to_agent(&layout.shared())?;
    crate::storage::open_to_agent(&layout.nfs_export())?;
    let mut names = String::from("127.0.0.1 localhost\n");
    let centre = |network: Network| (network.address(1), network.centre());
    let fixed = [centre(Network::Management), centre(Network::Guests)];
    let nfs = (Network::Management.address(2), Lab::NFS_SERVER);
    let hosts = record.hosts.iter().zip(FIRST_HOST..);
    let hosts = hosts.map(|(name, number)| (Network::Management.address(number), name.as_str()));
    for (address, name) in fixed.into_iter().chain([nfs]).chain(hosts) {
        names.push_str(&format!("{address} {name}\n"));
    }
    fs::write(layout.folder().join("hosts"), names)?;
    layout.write_record(record)
}
