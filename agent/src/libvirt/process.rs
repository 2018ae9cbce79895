//! Which process is a guest's QEMU: its pid and start time name one life of the guest.
//!
//! libvirt's API does not say, and its pid files are root's affair; but QEMU carries `-uuid` in its arguments,
//! which everybody may read. The agent must be in libvirtd's pid namespace: a QEMU of an inner one (another
//! libvirtd in a container) is left aside, for its pid means something else in there.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use drover_proto::ids::GuestId;
use uuid::Uuid;

use super::raw::own_error;
use crate::hypervisor::{ErrorClass, Incarnation, Result};

/// A process of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    pid: u32,
    parent: u32,
    start_time: u64,
}

/// The QEMU processes at one moment.
#[derive(Debug)]
pub(super) struct Processes {
    boot_id: Uuid,
    by_guest: HashMap<GuestId, Vec<Process>>,
}

impl Processes {
    /// Looks through this host's processes. Blocks a little.
    pub(super) fn look() -> Result<Self> {
        Self::look_in(Path::new("/proc"))
    }

    fn look_in(proc: &Path) -> Result<Self> {
        let unreadable = |error: io::Error| own_error(ErrorClass::Unavailable, "NO_PROC", format!("/proc: {error}"));
        let boot_id = fs::read_to_string(proc.join("sys/kernel/random/boot_id")).map_err(unreadable)?;
        let boot_id = Uuid::try_parse(boot_id.trim())
            .map_err(|error| own_error(ErrorClass::Unavailable, "NO_BOOT_ID", error.to_string()))?;
        let mut by_guest: HashMap<GuestId, Vec<Process>> = HashMap::new();
        for entry in fs::read_dir(proc).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // A process that ends while we look is not there.
            if let Some((guest, process)) = read_process(pid, &entry.path()) {
                by_guest.entry(guest).or_default().push(process);
            }
        }
        Ok(Self { boot_id, by_guest })
    }

    /// The life that the guest has now; `None` where there is no such process.
    pub(super) fn incarnation(&self, guest: GuestId) -> Result<Option<Incarnation>> {
        let all = self.by_guest.get(&guest).map_or(&[][..], Vec::as_slice);
        // A child that QEMU has forked looks like QEMU until it executes something else.
        let mut own = all.iter().filter(|one| all.iter().all(|other| other.pid != one.parent));
        match (own.next(), own.next()) {
            (None, _) => Ok(None),
            (Some(process), None) => Ok(Some(Incarnation {
                boot_id: self.boot_id,
                qemu_pid: process.pid,
                qemu_start_time: process.start_time,
            })),
            (Some(one), Some(other)) => {
                let message = format!("processes {} and {} both have -uuid {guest}", one.pid, other.pid);
                Err(own_error(ErrorClass::Ambiguous, "TWO_PROCESSES", message))
            }
        }
    }
}

/// The guest whose QEMU this is, and the process; `None` for any other process.
fn read_process(pid: u32, path: &Path) -> Option<(GuestId, Process)> {
    let guest = guest_of(&fs::read(path.join("cmdline")).ok()?)?;
    let status = fs::read_to_string(path.join("status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let in_inner_namespace = field("NSpid:").is_some_and(|pids| pids.split_whitespace().count() > 1);
    let parent = field("PPid:")?.trim().parse().ok()?;
    let start_time = start_time_of(&fs::read_to_string(path.join("stat")).ok()?)?;
    // Read again: the pid may have been given to another process in between.
    let same = fs::read(path.join("cmdline"))
        .ok()
        .and_then(|cmdline| guest_of(&cmdline))
        == Some(guest);
    (same && !in_inner_namespace).then_some((
        guest,
        Process {
            pid,
            parent,
            start_time,
        },
    ))
}

/// The value of `-uuid` among NUL-terminated arguments.
fn guest_of(cmdline: &[u8]) -> Option<GuestId> {
    let mut arguments = cmdline.split(|&byte| byte == 0);
    arguments.find(|&argument| argument == b"-uuid")?;
    std::str::from_utf8(arguments.next()?).ok()?.parse().ok()
}

/// Field 22. The second one is the program's name in parentheses, which may contain anything.
fn start_time_of(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: &str = "0190a1b2-0000-7000-8000-000000000001";

    fn host(processes: &[(u32, u32, &str, &str)]) -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        let random = proc.path().join("sys/kernel/random");
        fs::create_dir_all(&random).unwrap();
        fs::write(random.join("boot_id"), "7cbbbd71-b327-4b4b-8b2e-15d6b7b0c0ff\n").unwrap();
        for (pid, parent, cmdline, namespaces) in processes {
            let path = proc.path().join(pid.to_string());
            fs::create_dir(&path).unwrap();
            fs::write(path.join("cmdline"), cmdline.replace(' ', "\0")).unwrap();
            fs::write(
                path.join("status"),
                format!("Name:\tq\nPPid:\t{parent}\nNSpid:\t{namespaces}\n"),
            )
            .unwrap();
            let stat = format!("{pid} (a) b (c) S {parent} 1 1 0 -1 1 2 3 4 5 6 7 8 9 20 0 1 0 {pid}00 1 1");
            fs::write(path.join("stat"), stat).unwrap();
        }
        proc
    }

    fn find(processes: &[(u32, u32, &str, &str)]) -> Result<Option<Incarnation>> {
        Processes::look_in(host(processes).path())
            .unwrap()
            .incarnation(GUEST.parse().unwrap())
    }

    #[test]
    fn qemu_is_found_by_its_uuid() {
        let qemu = format!("qemu -name guest=a -uuid {GUEST} -S");
        let found = find(&[(7, 1, "bash -c x", "7"), (9, 1, &qemu, "9")]).unwrap().unwrap();
        assert_eq!((found.qemu_pid, found.qemu_start_time), (9, 900));
    }

    #[test]
    fn no_process_is_no_life() {
        assert_eq!(
            find(&[(7, 1, "bash", "7"), (8, 1, "", "8"), (9, 1, "x -uuid", "9")]).unwrap(),
            None
        );
    }

    #[test]
    fn a_fork_of_qemu_and_one_in_an_inner_namespace_are_left_aside() {
        let qemu = format!("qemu -uuid {GUEST}");
        let found = find(&[(9, 1, &qemu, "9"), (10, 9, &qemu, "10"), (11, 1, &qemu, "11 3")])
            .unwrap()
            .unwrap();
        assert_eq!(found.qemu_pid, 9);
    }

    #[test]
    fn two_lives_at_once_are_an_error() {
        let qemu = format!("qemu -uuid {GUEST}");
        assert_eq!(
            find(&[(9, 1, &qemu, "9"), (12, 1, &qemu, "12")]).unwrap_err().code,
            "DROVER_TWO_PROCESSES"
        );
    }

    #[test]
    fn this_host_can_be_looked_through() {
        assert!(Processes::look().is_ok());
    }
}
