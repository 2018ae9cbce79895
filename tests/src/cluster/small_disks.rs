//! State on file systems of a few MiB, so that a test can fill them: the controller's store, an agent's journal.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use super::{Cluster, Process};
use crate::libvirtd::AGENT;

const SIZE_MIB: usize = 32;
const FILLER: &str = "filler";

/// Writes SQLite's log back into the database and cuts it to nothing: what is written next needs new room on the disk.
/// A log that has room already takes some thousand more writes of a controller whose disk is full.
const CUT_THE_LOG: &str = "
import sqlite3, sys, time
store = sqlite3.connect(sys.argv[1], timeout=1)
for _ in range(100):
    if store.execute('pragma wal_checkpoint(truncate)').fetchone()[0] == 0:
        break
    time.sleep(0.02)
";

/// What the controller writes into its log when its store has no room.
const FULL: &str = "database or disk is full";

impl Cluster<'_> {
    /// Puts a small file system under the state of the controller and of every agent.
    pub(super) fn mount_small_disks(&self) -> Result<()> {
        let size = format!("size={SIZE_MIB}m,mode=0755");
        let store = self.folder.join("state").display().to_string();
        let control = self.lab.control();
        control.run("mount", &["-t", "tmpfs", "-o", &size, "drover", &store])?;
        for host in self.lab.hosts() {
            let state = "/var/lib/drover";
            host.run("mount", &["-t", "tmpfs", "-o", &size, "drover", state])?;
            host.run("chown", &[&format!("{AGENT}:{AGENT}"), state])?;
        }
        Ok(())
    }

    /// Takes all space that is left, as a log that nobody rotates would. The next write of a controller fails then,
    /// unless somebody stopped it while it was writing.
    pub fn fill_disk(&self, of: &Process) -> Result<()> {
        let path = self.filler(of)?;
        if *of == Process::Controller {
            let store = self.folder.join("state/drover.db").display().to_string();
            self.lab.control().run("python3", &["-c", CUT_THE_LOG, &store])?;
        }
        let mut file = fs::File::create(&path).with_context(|| path.display().to_string())?;
        let block = vec![1; 4096];
        for _ in 0..=(SIZE_MIB << 20) / block.len() {
            match file.write_all(&block) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => return Ok(()),
                Err(error) => return Err(error).context("filling a small disk"),
            }
        }
        fs::remove_file(&path)?;
        bail!("{} is not on a small disk", path.display());
    }

    /// Gives the space back.
    pub fn empty_disk(&self, of: &Process) -> Result<()> {
        fs::remove_file(self.filler(of)?).context("emptying a small disk")
    }

    /// How often the controller has said that its store is full, since it was started.
    pub fn store_was_full(&mut self) -> Result<usize> {
        self.controller()?.times_said(FULL)
    }

    /// As the machine sees the file: through the root of the node's first process.
    fn filler(&self, of: &Process) -> Result<PathBuf> {
        ensure!(self.options.small_disks, "this cluster was started without small disks");
        let (pid, folder) = match of {
            Process::Controller => (self.lab.control().pid()?, self.folder.join("state")),
            Process::Agent(host) => (self.lab.host(host).pid()?, PathBuf::from("/var/lib/drover")),
        };
        Ok(PathBuf::from(format!("/proc/{pid}/root{}", folder.display())).join(FILLER))
    }
}
