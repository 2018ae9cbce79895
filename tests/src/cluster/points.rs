//! Fault points of the cluster's processes: each process has a folder of its own, where a test arms, awaits, releases.
//!
//! The protocol is the product's (`proto/src/fault_points.rs`): a file NAME arms a point, NAME.reached says that the
//! process is there, and its removal lets it go on.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Cluster;
use crate::wait_until;

/// Of the product; it must not be linked into the lab.
const VARIABLE: &str = "DROVER_FAULT_POINTS";

/// How long a migration may take to come to a point.
const WAY: Duration = Duration::from_secs(90);

/// One of the cluster's processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Process {
    Controller,
    Agent(String),
}

impl Process {
    fn folder_name(&self) -> &str {
        match self {
            Process::Controller => "controller",
            Process::Agent(host) => host,
        }
    }
}

impl Cluster<'_> {
    /// The variable for a process that is about to start; none where the cluster has no points.
    pub(super) fn points_of(&self, process: &Process) -> Result<Option<(String, String)>> {
        if !self.options.fault_points {
            return Ok(None);
        }
        let folder = self.points_folder(process);
        fs::create_dir_all(&folder)?;
        // Agents are a user of their own.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))?;
        Ok(Some((VARIABLE.to_string(), folder.display().to_string())))
    }

    fn points_folder(&self, process: &Process) -> PathBuf {
        self.folder.join("points").join(process.folder_name())
    }

    /// The process will be held at this point, once.
    pub fn arm(&self, process: &Process, point: &str) -> Result<()> {
        ensure!(
            self.options.fault_points,
            "this cluster was started without fault points"
        );
        let folder = self.points_folder(process);
        // Renamed into place: the process never reads half a word.
        let fresh = folder.join("fresh");
        fs::write(&fresh, "pause")?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o666))?;
        fs::rename(fresh, folder.join(point)).with_context(|| format!("arming {point}"))
    }

    /// Waits until the process is held at this point.
    pub fn wait_for_point(&self, process: &Process, point: &str) -> Result<()> {
        let reached = self.points_folder(process).join(format!("{point}.reached"));
        wait_until(&format!("{process:?} to come to {point}"), WAY, || {
            Ok(reached.exists().then_some(()))
        })
    }

    /// Lets everything go that is held, and disarms what nobody came by.
    pub fn release(&self) -> Result<()> {
        for folder in fs::read_dir(self.folder.join("points"))? {
            for file in fs::read_dir(folder?.path())? {
                let path = file?.path();
                match fs::remove_file(&path) {
                    // Renamed by the process in this moment: it is held now.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        let reached = path.with_file_name(format!(
                            "{}.reached",
                            path.file_name().unwrap_or_default().to_string_lossy()
                        ));
                        let _ = fs::remove_file(reached);
                    }
                    other => other.with_context(|| path.display().to_string())?,
                }
            }
        }
        Ok(())
    }
}
