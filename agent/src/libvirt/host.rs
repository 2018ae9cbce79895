//! Facts about the host, from libvirt and from the kernel.

use std::fs;
use std::path::Path;

use super::raw::{Connection, own_error};
use super::{capabilities, kernel};
use crate::hypervisor::{ErrorClass, HostFacts, Result};

/// Where libvirt's QEMU driver is configured.
const QEMU_CONF: &str = "/etc/libvirt/qemu.conf";

/// Blocks.
pub(super) fn read(connection: &Connection) -> Result<HostFacts> {
    let capabilities = capabilities::parse(&connection.capabilities()?)?;
    let (libvirt_version, qemu_version) = connection.versions()?;
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let sys = Path::new("/sys");
    Ok(HostFacts {
        uuid: capabilities.uuid,
        hostname: connection.hostname()?,
        libvirt_version,
        qemu_version,
        arch: capabilities.arch,
        cpus: connection.cpus()?,
        memory_total: meminfo(&memory, "MemTotal:")?,
        memory_available: meminfo(&memory, "MemAvailable:")?,
        machines: capabilities.machines,
        bridges: bridges(Path::new("/sys/class/net")),
        networks: connection.active_networks()?,
        cpu_xml: capabilities.cpu_xml,
        huge_pages: kernel::huge_pages(sys, &memory),
        numa_nodes: kernel::numa_nodes(sys),
        online_cpus: kernel::online_cpus(sys),
        lock_manager: kernel::lock_manager(Path::new(QEMU_CONF)),
        user_faults: kernel::user_faults(Path::new("/"), Path::new(QEMU_CONF)),
    })
}

/// Bytes. The kernel's "kB" are KiB. libvirt's own figure is of the time when it started.
fn meminfo(text: &str, field: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let kibibytes: Option<u64> = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    kibibytes.map(|kibibytes| kibibytes * 1024).ok_or_else(|| {
        own_error(
            ErrorClass::Unavailable,
            "NO_MEMINFO",
            format!("/proc/meminfo does not say {field}"),
        )
    })
}

/// The bridges of the network namespace that /sys was mounted in.
fn bridges(interfaces: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(interfaces) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().join("bridge").is_dir())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_counted_in_bytes() {
        let text = "MemTotal: 8 kB\nMemAvailable:    3 kB\n";
        assert_eq!(meminfo(text, "MemAvailable:").unwrap(), 3072);
        assert!(meminfo("MemTotal: 8 kB\n", "MemAvailable:").is_err());
    }

    #[test]
    fn only_bridges_are_bridges() {
        let net = tempfile::tempdir().unwrap();
        for path in ["br0/bridge", "eth0", "virbr0/bridge"] {
            fs::create_dir_all(net.path().join(path)).unwrap();
        }
        assert_eq!(bridges(net.path()), ["br0", "virbr0"]);
        assert!(bridges(&net.path().join("absent")).is_empty());
    }
}
