//! Where a lab keeps what: one folder per lab, known by its id.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Short, because unix sockets live below it and their paths end at 108 bytes.
pub(crate) const LABS: &str = "/var/lib/drover-lab";

/// The paths of one lab.
#[derive(Debug, Clone)]
pub struct Layout {
    id: String,
    folder: PathBuf,
}

/// What is written down about a lab, so that another process can join or end it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct LabRecord {
    pub id: String,
    /// The hosts in order; the first has the lowest address.
    pub hosts: Vec<String>,
    pub nfs: bool,
    pub listen_tcp: bool,
    /// Every guest that was ever started in it, by name.
    pub guests: BTreeMap<String, GuestRecord>,
}

/// What stays the same about a guest wherever it runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GuestRecord {
    pub uuid: uuid::Uuid,
    /// Last byte of its address and of its MAC.
    pub number: u8,
    /// Whether it is started with its host, wherever it is defined.
    #[serde(default)]
    pub autostart: bool,
}

impl Layout {
    pub fn new(id: &str) -> Result<Layout> {
        let plain = id
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if id.is_empty() || id.len() > 16 || !plain {
            bail!("lab id {id:?}: use 1 to 16 of a-z, 0-9 and '-'");
        }
        Ok(Layout {
            id: id.to_string(),
            folder: Path::new(LABS).join(id),
        })
    }

    /// Ids of all labs that have a folder on this machine.
    pub fn all() -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(LABS) else {
            return Vec::new();
        };
        let mut ids: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        ids.sort();
        ids
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// All logs of the lab's own machinery and of daemons started in it.
    pub fn logs(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// What one node has for itself: its private `/etc/libvirt`, `/var/lib/libvirt` and so on.
    pub fn node(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn shared(&self) -> PathBuf {
        self.folder.join("shared")
    }

    /// The folder that the NFS server exports.
    pub fn nfs_export(&self) -> PathBuf {
        self.folder.join("export")
    }

    pub fn record(&self) -> Result<LabRecord> {
        let path = self.folder.join("lab.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("no lab here: {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("unreadable: {}", path.display()))
    }

    pub fn write_record(&self, record: &LabRecord) -> Result<()> {
        let path = self.folder.join("lab.json");
        std::fs::write(&path, serde_json::to_string_pretty(record)?)
            .with_context(|| format!("writing {}", path.display()))
    }

    fn pid_file(&self, what: &str) -> PathBuf {
        self.folder.join(format!("{what}.pid"))
    }

    /// Notes a process by pid *and* start time: pids come back, start times do not.
    pub fn write_pid(&self, what: &str, pid: i32) -> Result<()> {
        let start = start_time(pid).with_context(|| format!("{what} is not running"))?;
        let path = self.pid_file(what);
        // Renamed into place: a reader never sees half a line.
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, format!("{pid} {start}\n"))?;
        std::fs::rename(&fresh, &path).with_context(|| format!("writing {}", path.display()))
    }

    /// The noted process, if it still is the one that runs.
    pub fn live_pid(&self, what: &str) -> Option<i32> {
        let text = std::fs::read_to_string(self.pid_file(what)).ok()?;
        let (pid, start) = text.trim().split_once(' ')?;
        let pid = pid.parse().ok()?;
        (start_time(pid) == start.parse().ok()).then_some(pid)
    }
}

/// Start time of a process in clock ticks since boot (field 22 of `/proc/PID/stat`); none if it is gone or a zombie.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name is in parentheses and may hold anything; count from behind it.
    let rest = stat.rsplit_once(") ")?.1;
    if rest.starts_with('Z') {
        return None;
    }
    rest.split(' ').nth(19)?.parse().ok()
}
