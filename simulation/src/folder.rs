//! What lies on the disks of a world: the folder that both hosts have, and what each has for itself.
//!
//! ```text
//!  images/web.raw        both hosts' one
//!  host-a/local/…        only the source's           host-b/local/…
//!  host-a/swtpm/…        where libvirt keeps TPMs    host-b/swtpm/…
//!  host-a/{run,state}    an agent's own              host-b/{run,state}
//! ```
//! A guest that is shut off has its files by the same paths on both hosts, below `/guests` and where libvirt keeps TPMs:
//! each agent finds its own folder there.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Once;

use anyhow::Context;
use drover_agent::sim::SimGuest;
use drover_agent::storage_directories::{NotAllowed, StorageDirectories};
use tempfile::TempDir;

use super::plan::Scenario;
use super::point::Site;

/// Name and content of a file.
pub type Named = (String, Vec<u8>);

/// Of files that keep their path when they move.
const SHARED: &str = "/guests/shared";
const LOCAL: &str = "/guests/local";
const TPM_STATES: &str = "/var/lib/libvirt/swtpm";

/// Of the folders of worlds; the number of the process comes next.
const PREFIX: &str = "drover-simulation-";

/// One world's. It goes with it.
#[derive(Debug)]
pub struct Folder(TempDir);

impl Folder {
    /// With the guest's disks in it, as a scenario begins.
    pub fn new(scenario: Scenario) -> anyhow::Result<Self> {
        let folder = Self(memory_folder()?);
        for path in [
            folder.shared(),
            folder.local(Site::Source),
            folder.local(Site::Destination),
            folder.tpm_states(Site::Source),
            folder.tpm_states(Site::Destination),
        ] {
            std::fs::create_dir_all(path)?;
        }
        std::fs::write(folder.shared().join("web.raw"), b"disk")?;
        for (name, content) in disk_files(scenario) {
            write_sparse(&folder.local(Site::Source).join(name), &content)?;
        }
        for (name, content) in tpm_files(scenario) {
            let path = folder.tpm_states(Site::Source).join(name);
            std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
            std::fs::write(path, content)?;
        }
        Ok(folder)
    }

    fn shared(&self) -> PathBuf {
        self.0.path().join("images")
    }

    fn local(&self, site: Site) -> PathBuf {
        self.0.path().join(site.host()).join("local")
    }

    fn tpm_states(&self, site: Site) -> PathBuf {
        self.0.path().join(site.host()).join("swtpm")
    }

    pub fn run(&self, site: Site) -> PathBuf {
        self.0.path().join(site.host()).join("run")
    }

    pub fn state(&self, site: Site) -> PathBuf {
        self.0.path().join(site.host()).join("state")
    }

    /// Paths of the guest's disks, as its definition has them.
    pub fn disks(&self, scenario: Scenario) -> Vec<String> {
        let (shared, local) = if scenario.is_offline() {
            (PathBuf::from(SHARED), PathBuf::from(LOCAL))
        } else {
            (self.shared(), self.local(Site::Source))
        };
        let files = disk_files(scenario);
        let used = files.iter().filter(|_| scenario.copies() || scenario.is_offline());
        let paths = used.map(|(name, _)| local.join(name));
        std::iter::once(shared.join("web.raw"))
            .chain(paths)
            .map(|path| path.display().to_string())
            .collect()
    }

    /// Where a host's agent may use files of guests.
    pub fn storage(&self, site: Site) -> Result<StorageDirectories, NotAllowed> {
        let own = StorageDirectories::new(vec![self.local(site)])?;
        Ok(own
            .with_alias(LOCAL.into(), self.local(site))
            .with_alias(SHARED.into(), self.shared())
            .with_alias(TPM_STATES.into(), self.tpm_states(site)))
    }

    /// Both hosts are in one file system: where a copied disk lies at the destination.
    pub fn local_there(&self) -> String {
        let path = self.local(Site::Destination).join("data.raw");
        path.display().to_string()
    }

    /// Names of what lies where the guest's shared disk is.
    pub fn images(&self) -> Vec<String> {
        names(&self.shared())
    }

    /// What a host has for itself: disks, then TPMs.
    pub fn local_images(&self, site: Site) -> Vec<Named> {
        let all = |folder: PathBuf, names: Vec<String>| {
            let content = |name: &String| std::fs::read(folder.join(name)).unwrap_or_default();
            let named: Vec<Named> = names.iter().map(|name| (name.clone(), content(name))).collect();
            named
        };
        let (local, states) = (self.local(site), self.tpm_states(site));
        let (disks, tpms) = (names(&local), leaves(&states));
        [all(local, disks), all(states, tpms)].concat()
    }

    /// Names of the socket directories of a host's agent.
    pub fn sockets(&self, site: Site) -> Vec<String> {
        names(&self.run(site))
    }
}

/// What only the source has, as [`Folder::local_images`] tells it.
pub fn local_files(scenario: Scenario) -> Vec<Named> {
    [disk_files(scenario), tpm_files(scenario)].concat()
}

/// Of a guest that is shut off: it has a TPM.
fn tpm_files(scenario: Scenario) -> Vec<Named> {
    let name = format!("{}/tpm2/tpm2-00.permall", SimGuest::named("web").id());
    let own = scenario.is_offline().then(|| (name, vec![9; 7000]));
    own.into_iter().collect()
}

/// Whole sectors. Of a guest that is shut off: blocks with data, holes and an end.
fn disk_files(scenario: Scenario) -> Vec<Named> {
    let small = vec![7; 1024];
    if !scenario.is_offline() {
        return vec![("data.raw".to_owned(), small)];
    }
    let mut large = vec![0; (5 << 19) + 512];
    large[..1 << 20].fill(3);
    large[2 << 20..].fill(5);
    vec![("data.raw".to_owned(), large), ("more.raw".to_owned(), small)]
}

fn write_sparse(path: &Path, content: &[u8]) -> io::Result<()> {
    let file = std::fs::File::create_new(path)?;
    file.set_len(content.len() as u64)?;
    for (piece, at) in content.chunks(4096).zip((0..).step_by(4096)) {
        if piece.iter().any(|byte| *byte != 0) {
            file.write_all_at(piece, at)?;
        }
    }
    Ok(())
}

/// Where fsync costs nothing, if there is such a place: what is simulated here is the death of processes.
fn memory_folder() -> anyhow::Result<TempDir> {
    static ONCE: Once = Once::new();
    let memory = Path::new("/dev/shm");
    ONCE.call_once(|| remove_what_was_left(memory));
    let prefix = format!("{PREFIX}{}-", std::process::id());
    let builder = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix(&prefix);
        builder
    };
    builder()
        .tempdir_in(memory)
        .or_else(|_| builder().tempdir())
        .context("no folder for a world")
}

/// By processes that were killed. What cannot be removed is in nobody's way.
fn remove_what_was_left(folder: &Path) {
    for name in names(folder) {
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-'));
        let process = process.and_then(|(process, _)| process.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            let _ = std::fs::remove_dir_all(folder.join(name));
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// What lies anywhere beneath: files, and folders that hold nothing.
fn leaves(folder: &Path) -> Vec<String> {
    let beneath = |name: String| {
        let inner = folder.join(&name);
        if !inner.is_dir() {
            return vec![name];
        }
        match leaves(&inner) {
            none if none.is_empty() => vec![name],
            some => some.into_iter().map(|leaf| format!("{name}/{leaf}")).collect(),
        }
    };
    names(folder).into_iter().flat_map(beneath).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_left_that_was_killed_is_removed() {
        let folder = TempDir::new().unwrap();
        // No system has so many processes.
        let dead = format!("{PREFIX}{}-abc", u32::MAX);
        let mine = format!("{PREFIX}{}-abc", std::process::id());
        for name in [dead.as_str(), mine.as_str(), "drover-simulation-abc", "other"] {
            std::fs::create_dir_all(folder.path().join(name).join("images")).unwrap();
        }
        remove_what_was_left(folder.path());
        assert_eq!(names(folder.path()), [mine.as_str(), "drover-simulation-abc", "other"]);
    }
}
