//! What the kernel and qemu.conf say of a host: huge pages, NUMA nodes, CPUs, the lock manager, userfaultfd. All block.
//!
//! What cannot be read is left out: the checks say then that nobody knows.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::guest_xml::{HugePages, set};
use crate::hypervisor::UserFaults;

/// Free huge pages of each size, the default one first. `sys` is /sys, `meminfo` the text of /proc/meminfo.
pub(super) fn huge_pages(sys: &Path, meminfo: &str) -> Vec<HugePages> {
    let default = meminfo.lines().find_map(|line| line.strip_prefix("Hugepagesize:"));
    let default = default.and_then(|line| kib(line.trim()));
    let mut sizes: Vec<HugePages> = names(&sys.join("kernel/mm/hugepages"))
        .into_iter()
        .filter_map(|name| {
            let page = kib(name.strip_prefix("hugepages-")?)?;
            let free = sys.join("kernel/mm/hugepages").join(name).join("free_hugepages");
            let free: u64 = fs::read_to_string(free).ok()?.trim().parse().ok()?;
            Some(HugePages {
                page,
                total: free.saturating_mul(page),
            })
        })
        .collect();
    sizes.sort_by_key(|size| (Some(size.page) != default, size.page));
    sizes
}

/// `2048kB`; the kernel means KiB.
fn kib(text: &str) -> Option<u64> {
    let number: u64 = text.strip_suffix("kB")?.trim().parse().ok()?;
    number.checked_mul(1024)
}

/// NUMA nodes that have memory.
pub(super) fn numa_nodes(sys: &Path) -> Vec<u32> {
    list(&sys.join("devices/system/node/has_memory"))
}

/// CPUs that are online.
pub(super) fn online_cpus(sys: &Path) -> Vec<u32> {
    list(&sys.join("devices/system/cpu/online"))
}

fn list(path: &Path) -> Vec<u32> {
    let text = fs::read_to_string(path).unwrap_or_default();
    set(text.trim()).into_iter().collect()
}

/// As qemu.conf has it: `none` where it names none. Many distributions let only root read that file.
pub(super) fn lock_manager(qemu_conf: &Path) -> Option<String> {
    let text = fs::read_to_string(qemu_conf).ok()?;
    let named = text.lines().rev().find_map(|line| {
        let value = line
            .trim()
            .strip_prefix("lock_manager")?
            .trim_start()
            .strip_prefix('=')?;
        Some(value.trim().trim_matches('"').to_owned())
    });
    Some(named.filter(|name| name != "nop").unwrap_or_else(|| "none".to_owned()))
}

/// Whether QEMU may use userfaultfd. `root` is where /proc and /dev are.
pub(super) fn user_faults(root: &Path, qemu_conf: &Path) -> UserFaults {
    let conf = fs::read_to_string(qemu_conf).unwrap_or_default();
    let mut users = conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("user")?.trim().strip_prefix('='));
    let is_root = users
        .next_back()
        .is_some_and(|user| matches!(user.trim().trim_matches('"'), "root" | "+0" | "0"));
    if is_root {
        return UserFaults::Anybody;
    }
    // Whose the device is: QEMU's user and groups are not known here, so it must be open to more than root.
    let opened = fs::metadata(root.join("dev/userfaultfd"))
        .is_ok_and(|device| device.mode() & 0o006 == 0o006 || (device.mode() & 0o060 == 0o060 && device.gid() != 0));
    match fs::read_to_string(root.join("proc/sys/vm/unprivileged_userfaultfd")) {
        Ok(allowed) if allowed.trim() == "1" => UserFaults::Anybody,
        Ok(_) | Err(_) if opened => UserFaults::ByDevice,
        Ok(_) => UserFaults::Nobody,
        Err(_) => UserFaults::Unknown,
    }
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn huge_pages_are_counted_and_the_default_comes_first() {
        let sys = tempfile::tempdir().unwrap();
        write(
            sys.path(),
            "kernel/mm/hugepages/hugepages-1048576kB/free_hugepages",
            "3\n",
        );
        write(
            sys.path(),
            "kernel/mm/hugepages/hugepages-2048kB/free_hugepages",
            "512\n",
        );
        let found = huge_pages(sys.path(), "MemTotal: 1 kB\nHugepagesize:    1048576 kB\n");
        let big = HugePages {
            page: 1 << 30,
            total: 3 << 30,
        };
        let small = HugePages {
            page: 2 << 20,
            total: 1 << 30,
        };
        assert_eq!(found, [big, small]);
        assert_eq!(huge_pages(sys.path(), "Hugepagesize: 2048 kB"), [small, big]);
        assert!(huge_pages(&sys.path().join("absent"), "").is_empty());
    }

    #[test]
    fn nodes_and_cpus_are_read_as_the_kernel_writes_them() {
        let sys = tempfile::tempdir().unwrap();
        write(sys.path(), "devices/system/node/has_memory", "0,2\n");
        write(sys.path(), "devices/system/cpu/online", "0-2\n");
        assert_eq!(numa_nodes(sys.path()), [0, 2]);
        assert_eq!(online_cpus(sys.path()), [0, 1, 2]);
    }

    #[test]
    fn who_may_catch_page_faults_is_read_from_the_kernel_the_device_and_qemus_user() {
        let root = tempfile::tempdir().unwrap();
        let conf = root.path().join("qemu.conf");
        let found = || user_faults(root.path(), &conf);
        assert_eq!(found(), UserFaults::Unknown);
        write(root.path(), "proc/sys/vm/unprivileged_userfaultfd", "0\n");
        assert_eq!(found(), UserFaults::Nobody);
        write(root.path(), "dev/userfaultfd", "");
        let device = root.path().join("dev/userfaultfd");
        for (mode, expected) in [(0o600, UserFaults::Nobody), (0o666, UserFaults::ByDevice)] {
            fs::set_permissions(&device, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(found(), expected, "{mode:o}");
        }
        write(root.path(), "proc/sys/vm/unprivileged_userfaultfd", "1\n");
        assert_eq!(found(), UserFaults::Anybody);
        write(root.path(), "proc/sys/vm/unprivileged_userfaultfd", "0\n");
        fs::set_permissions(&device, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&conf, "#user = \"x\"\nuser = \"root\"\n").unwrap();
        assert_eq!(found(), UserFaults::Anybody);
    }

    #[test]
    fn the_lock_manager_is_what_the_last_line_says() {
        let folder = tempfile::tempdir().unwrap();
        let conf = folder.path().join("qemu.conf");
        assert_eq!(lock_manager(&conf), None, "nobody can say");
        for (text, expected) in [
            ("# lock_manager = \"lockd\"\nuser = \"x\"\n", "none"),
            ("lock_manager = \"lockd\"\n", "lockd"),
            ("lock_manager=\"lockd\"\n lock_manager = \"sanlock\"", "sanlock"),
            ("lock_manager = \"nop\"", "none"),
        ] {
            fs::write(&conf, text).unwrap();
            assert_eq!(lock_manager(&conf).as_deref(), Some(expected), "{text}");
        }
    }
}
