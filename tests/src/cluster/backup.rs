//! The controller's database is put aside and restored, as an administrator would; and what he has to do then.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Cluster, Run};
use crate::process::{Output, run_any};
use crate::wait_until;

/// The command asks every host.
const ADOPT: Duration = Duration::from_secs(60);

impl Cluster<'_> {
    fn state(&self) -> PathBuf {
        self.folder().join("state")
    }

    fn backup(&self) -> PathBuf {
        self.folder().join("backup")
    }

    /// Puts the database aside as it is. The controller must not run.
    pub fn back_up_store(&self) -> Result<()> {
        ensure!(self.controller.is_none(), "it is being written to");
        fs::create_dir_all(self.backup())?;
        copy_all(&self.state(), &self.backup())
    }

    /// The database is again what was put aside. The controller must not run.
    pub fn restore_store(&self) -> Result<()> {
        ensure!(self.controller.is_none(), "it is being written to");
        for entry in fs::read_dir(self.state())? {
            fs::remove_file(entry?.path())?;
        }
        copy_all(&self.backup(), &self.state())
    }

    /// `drover-controller adopt-restored`; a failing command is no error. The controller must not run.
    pub fn adopt_restored(&self) -> Result<Run> {
        ensure!(self.controller.is_none(), "it is being written to");
        let mut command = self.lab().control().command(&self.program("drover-controller"))?;
        command.arg("--config").arg(self.folder().join("controller.toml"));
        let Output {
            status,
            stdout,
            stderr,
            wall,
        } = run_any(command.arg("adopt-restored"), ADOPT)?;
        Ok(Run {
            code: status.code().unwrap_or(-1),
            stdout,
            stderr,
            wall,
        })
    }

    /// Waits until every host is heard of by the controller that runs now.
    pub fn wait_for_hosts(&self) -> Result<()> {
        let names: Vec<&str> = self.lab().hosts().iter().map(|host| host.name()).collect();
        wait_until("every agent to be registered", super::START, || {
            let up = self.hosts()?;
            Ok(names
                .iter()
                .all(|name| up.iter().any(|host| host == name))
                .then_some(()))
        })
    }
}

fn copy_all(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name())).with_context(|| entry.path().display().to_string())?;
    }
    Ok(())
}
