//! What is true of a lab at rest: who runs where, and what was left behind.

use crate::guest::Guest;
use crate::host::Host;
use crate::lab::Lab;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};

/// A guest that changes while it is looked at is looked at so often.
const LOOKS: u32 = 5;

/// A guest as one host's libvirt knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    pub host: String,
    pub name: String,
    pub uuid: uuid::Uuid,
    /// As `virsh domstate --reason` says: `running`, `paused`, `shut off`, …
    pub state: String,
    /// `migrated`, `booted`, `post-copy failed`, …
    pub reason: String,
    pub persistent: bool,
    pub autostart: bool,
    /// A job (a migration, most likely) is going on.
    pub job: bool,
}

impl Domain {
    /// Whether there is a QEMU behind it, running or not.
    pub fn is_active(&self) -> bool {
        self.state != "shut off"
    }
}

impl Lab {
    /// All guests on all hosts that are up.
    pub fn domains(&self) -> Result<Vec<Domain>> {
        let mut all = Vec::new();
        for host in self.hosts().iter().filter(|host| host.is_up()) {
            all.extend(self.domains_on(host)?);
        }
        Ok(all)
    }

    /// The guests of one host.
    pub fn domains_on(&self, host: &Host) -> Result<Vec<Domain>> {
        let mut found = Vec::new();
        for uuid in uuids_on(host)? {
            let mut looks = 1..=LOOKS;
            loop {
                let last = looks.next() == Some(LOOKS);
                match look_at(host, &uuid) {
                    Ok(domain) => break found.push(domain),
                    // It ended while it was looked at: gone from the list, or shut off, which is seen at another look.
                    Err(_) if !uuids_on(host)?.contains(&uuid) => break,
                    Err(error) if last => return Err(error),
                    Err(_) => {}
                }
            }
        }
        Ok(found)
    }

    /// The copies of a guest that run now. More than one must never be.
    pub fn running_copies(&self, guest: &Guest) -> Result<Vec<Domain>> {
        let mut domains = self.domains()?;
        domains.retain(|domain| domain.uuid == guest.uuid() && domain.state == "running");
        Ok(domains)
    }

    /// Kills the QEMU of a guest's copy on one host, as the kernel does where memory runs out.
    pub fn kill_qemu(&self, host: &str, guest: &Guest) -> Result<()> {
        let host = self.host(host);
        let (pid, _) = qemus(host)?
            .into_iter()
            .find(|(_, name)| name == guest.name())
            .with_context(|| format!("no QEMU of {} on {}", guest.name(), host.name()))?;
        Ok(kill(Pid::from_raw(pid), Signal::SIGKILL)?)
    }

    /// Everything that a move may leave behind and must not, in words; nothing is what it should be.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let domains = self.domains()?;
        for domain in domains.iter().filter(|domain| domain.job) {
            found.push(format!("{}: guest {} has an active job", domain.host, domain.name));
        }
        for host in self.hosts().iter().filter(|host| host.is_up()) {
            let on_host = |name: &str| {
                domains
                    .iter()
                    .any(|domain| domain.host == host.name() && domain.name == name && domain.is_active())
            };
            for (pid, name) in qemus(host)?.into_iter().filter(|(_, name)| !on_host(name)) {
                found.push(format!(
                    "{}: QEMU {pid} of guest {name} is unknown to libvirt",
                    host.name()
                ));
            }
            for path in files_below(&host.outside("/run/drover"), &|_| true) {
                found.push(format!("{}: {}", host.name(), path.display()));
            }
        }
        for path in files_below(self.layout().folder(), &|name| name.starts_with(".drover-probe-")) {
            found.push(format!("probe file {}", path.display()));
        }
        for path in files_below(self.layout().folder(), &|name| name.contains(".drover-partial-")) {
            found.push(format!("half a file {}", path.display()));
        }
        Ok(found)
    }

    /// The invariants at rest: each guest runs on exactly this host, is known to no other one, found all its memory
    /// and disk right, and nothing was left behind.
    pub fn check_at_rest(&self, guests: &[(&Guest, &str)]) -> Result<()> {
        let domains = self.domains()?;
        for (guest, host) in guests {
            let known: Vec<&Domain> = domains.iter().filter(|domain| domain.uuid == guest.uuid()).collect();
            match known.as_slice() {
                [domain] if domain.host == *host && domain.state == "running" => {}
                _ => bail!(
                    "guest {} should run on {host} and be nowhere else: {known:#?}",
                    guest.name()
                ),
            }
            guest.verify()?;
        }
        let leftovers = self.leftovers()?;
        if !leftovers.is_empty() {
            bail!("left behind: {leftovers:#?}");
        }
        Ok(())
    }
}

fn uuids_on(host: &Host) -> Result<Vec<String>> {
    let listed = host.virsh(&["list", "--all", "--uuid"])?;
    let uuids = listed.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(uuids.map(str::to_string).collect())
}

fn look_at(host: &Host, uuid: &str) -> Result<Domain> {
    let said = host.virsh(&[&format!("dominfo {uuid}; domstate --reason {uuid}")])?;
    let field = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        line.with_context(|| format!("no {name} in: {said}"))
    };
    let state_line = said
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default();
    let (state, reason) = state_line
        .trim_end_matches(')')
        .split_once(" (")
        .unwrap_or((state_line, ""));
    // Refused for a guest that is shut off, which has no job.
    let job = state != "shut off" && !host.virsh(&["domjobinfo", uuid])?.contains("None");
    Ok(Domain {
        host: host.name().to_string(),
        name: field("Name:")?.to_string(),
        uuid: uuid.parse()?,
        state: state.to_string(),
        reason: reason.to_string(),
        persistent: field("Persistent:")? == "yes",
        autostart: field("Autostart:")? == "enable",
        job,
    })
}

/// QEMU processes of a host that run a guest (not those that libvirt asks for their abilities).
pub(crate) fn qemus(host: &Host) -> Result<Vec<(i32, String)>> {
    let mut found = Vec::new();
    for pid in host.processes_named("qemu-system")? {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let name = line.split('\0').find_map(|word| word.strip_prefix("guest="));
        let name = name.and_then(|rest| rest.split(',').next());
        found.extend(name.map(|name| (pid, name.to_string())));
    }
    Ok(found)
}

/// Files (and sockets) below a folder whose names are wanted; unreadable folders are empty.
fn files_below(folder: &Path, wanted: &dyn Fn(&str) -> bool) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder {
            found.extend(files_below(&entry.path(), wanted));
        } else if wanted(&entry.file_name().to_string_lossy()) {
            found.push(entry.path());
        }
    }
    found
}
