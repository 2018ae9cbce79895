//! What ties a guest to its host, one by one and by name, read from its live definition. Pure.

use roxmltree::Node;

use super::{attribute, child, children, tpm};

/// One thing that a live migration cannot take along.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blocker {
    /// Id of the check that it fails, listed in docs/checks.md.
    pub check: &'static str,
    /// What it is, by name.
    pub what: String,
    /// It holds data that lie on this host alone, also while the guest is shut off.
    pub holds_data: bool,
}

const HOST_DEVICES: &str = "host-devices";
/// Of a guest's TPM.
pub const TPM: &str = "tpm";
const FOLDERS: &str = "shared-folders";
const OTHERS: &str = "devices";

/// Everything that forbids a live migration.
pub(super) fn read(domain: Node<'_, '_>, devices: Option<Node<'_, '_>>) -> Vec<Blocker> {
    let mut found: Vec<Blocker> = beside_devices(domain).into_iter().collect();
    let elements = devices.into_iter().flat_map(|devices| devices.children());
    found.extend(elements.filter(Node::is_element).filter_map(of_device));
    found.sort();
    found.dedup();
    found
}

fn other(what: impl Into<String>) -> Blocker {
    blocker(OTHERS, what)
}

fn blocker(check: &'static str, what: impl Into<String>) -> Blocker {
    let what = what.into();
    Blocker {
        check,
        what,
        holds_data: false,
    }
}

/// Also a guest that is shut off would lose something.
fn with_data(blocker: Blocker) -> Blocker {
    Blocker {
        holds_data: true,
        ..blocker
    }
}

fn beside_devices(domain: Node<'_, '_>) -> Vec<Blocker> {
    let mut found = Vec::new();
    if let Some(security) = child(domain, "launchSecurity") {
        let kind = attribute(security, "type");
        found.push(other(format!(
            "its memory is encrypted for this host (launchSecurity {kind})"
        )));
    }
    // QEMU refuses a guest whose time stamp counter may not change its rate, unless the rate is fixed.
    let invariant = child(domain, "cpu")
        .into_iter()
        .flat_map(|cpu| children(cpu, "feature"));
    let invariant = invariant.filter(|feature| {
        feature.attribute("name") == Some("invtsc") && matches!(feature.attribute("policy"), Some("require" | "force"))
    });
    let timers = child(domain, "clock")
        .into_iter()
        .flat_map(|clock| children(clock, "timer"));
    let fixed = timers
        .filter(|timer| timer.attribute("name") == Some("tsc"))
        .any(|timer| timer.has_attribute("frequency"));
    if invariant.count() > 0 && !fixed {
        found.push(other(
            "its CPU has invtsc, and the frequency of its tsc timer is not fixed",
        ));
    }
    found
}

fn of_device(device: Node<'_, '_>) -> Option<Blocker> {
    let kind = device.attribute("type").unwrap_or_default();
    let source = |name: &str| {
        child(device, "source")
            .map(|source| attribute(source, name))
            .unwrap_or_default()
    };
    let found = match (device.tag_name().name(), kind) {
        ("hostdev", _) => blocker(HOST_DEVICES, format!("{} is passed through", host_device(device))),
        ("interface", "hostdev") => blocker(
            HOST_DEVICES,
            format!("network device {} is passed through", address(device)),
        ),
        ("interface", "vdpa") => blocker(HOST_DEVICES, format!("vDPA device {} is passed through", source("dev"))),
        ("interface", "vhostuser") => other(format!(
            "an interface is served by another process (vhost-user {})",
            source("path")
        )),
        ("disk", "nvme") => blocker(
            HOST_DEVICES,
            format!("NVMe device {} is passed through", address(device)),
        ),
        ("disk", "vhostvdpa") => blocker(HOST_DEVICES, format!("vDPA disk {} is passed through", source("dev"))),
        ("disk", "vhostuser") => other(format!(
            "a disk is served by another process (vhost-user {})",
            source("path")
        )),
        ("tpm", _) => of_tpm(device),
        ("filesystem", _) => shared_folder(device),
        ("shmem", _) => other(format!(
            "it shares memory with other processes (shmem {})",
            attribute(device, "name")
        )),
        ("memory", _) if matches!(device.attribute("model"), Some("nvdimm" | "virtio-pmem")) => {
            let path = child(device, "source").and_then(|source| child(source, "path"));
            let path = path.and_then(|path| path.text()).unwrap_or_default();
            with_data(other(format!("it has an NVDIMM on this host ({path})")))
        }
        ("input", "passthrough" | "evdev") => {
            let device = format!("{}{}", source("evdev"), source("dev"));
            blocker(HOST_DEVICES, format!("input device {device} is passed through"))
        }
        ("smartcard", _) if device.attribute("mode") != Some("passthrough") => {
            blocker(HOST_DEVICES, "the smart card reader of this host is passed through")
        }
        ("video", _) if is_accelerated(device) => other("its video card draws with this host's GPU (accel3d)"),
        _ => return None,
    };
    Some(found)
}

fn of_tpm(device: Node<'_, '_>) -> Blocker {
    match tpm::words(device) {
        (what, None) => blocker(TPM, format!("{what}, whose state lies outside of its memory")),
        (what, Some(why)) => with_data(blocker(TPM, format!("{what}: {why}"))),
    }
}

fn shared_folder(device: Node<'_, '_>) -> Blocker {
    let of = |part, name| {
        child(device, part)
            .map(|part| attribute(part, name))
            .unwrap_or_default()
    };
    let (folder, tag) = (of("source", "dir"), of("target", "dir"));
    blocker(FOLDERS, format!("it shares the folder {folder} of this host as {tag}"))
}

fn is_accelerated(video: Node<'_, '_>) -> bool {
    let acceleration = child(video, "model").and_then(|model| child(model, "acceleration"));
    acceleration.is_some_and(|acceleration| acceleration.attribute("accel3d") == Some("yes"))
}

fn host_device(device: Node<'_, '_>) -> String {
    let kind = device.attribute("type").unwrap_or_default();
    match kind {
        "pci" => format!("PCI device {}", address(device)),
        "usb" => format!("USB device {}", usb(device)),
        "mdev" => format!("mediated device {}", address(device)),
        "" => "a device of this host".to_owned(),
        other => format!("{other} device {}", scsi(device)).trim_end().to_owned(),
    }
}

fn source_address<'a>(device: Node<'a, 'a>) -> Option<Node<'a, 'a>> {
    child(device, "source").and_then(|source| child(source, "address"))
}

/// `0000:06:12.5`, or the UUID of a mediated device.
fn address(device: Node<'_, '_>) -> String {
    let Some(address) = source_address(device) else {
        return attribute(device, "type");
    };
    if let Some(uuid) = address.attribute("uuid") {
        return uuid.to_owned();
    }
    let part = |name: &str| {
        let text = address.attribute(name).unwrap_or_default();
        text.trim_start_matches("0x").to_owned()
    };
    format!(
        "{:0>4}:{:0>2}:{:0>2}.{}",
        part("domain"),
        part("bus"),
        part("slot"),
        part("function")
    )
}

fn usb(device: Node<'_, '_>) -> String {
    let source = child(device, "source");
    let id = |name| {
        source
            .and_then(|source| child(source, name))
            .map(|node| attribute(node, "id"))
    };
    match (id("vendor"), id("product"), source_address(device)) {
        (Some(vendor), Some(product), _) => {
            format!(
                "{}:{}",
                vendor.trim_start_matches("0x"),
                product.trim_start_matches("0x")
            )
        }
        (_, _, Some(address)) => format!(
            "on bus {}, device {}",
            attribute(address, "bus"),
            attribute(address, "device")
        ),
        (_, _, None) => String::new(),
    }
}

fn scsi(device: Node<'_, '_>) -> String {
    let adapter = child(device, "source").and_then(|source| child(source, "adapter"));
    adapter.map(|adapter| attribute(adapter, "name")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::read as read_guest;

    fn found(devices: &str) -> Vec<(String, String)> {
        let xml = format!("<domain><devices>{devices}<memory model='dimm'/></devices></domain>");
        let blockers = read_guest(&xml).unwrap().blockers;
        blockers
            .into_iter()
            .map(|one| (one.check.to_owned(), one.what))
            .collect()
    }

    /// A device, the check that it fails, a word of what is said.
    const DEVICES: [(&str, &str, &str); 16] = [
        (
            "<hostdev mode='subsystem' type='pci'><source><address domain='0x0000' bus='0x06' slot='0x12' \
                 function='0x5'/></source></hostdev>",
            "host-devices",
            "PCI device 0000:06:12.5",
        ),
        (
            "<hostdev mode='subsystem' type='usb'><source><vendor id='0x046d'/><product id='0xc52b'/></source>\
                 </hostdev>",
            "host-devices",
            "USB device 046d:c52b",
        ),
        (
            "<hostdev mode='subsystem' type='usb'><source><address bus='1' device='4'/></source></hostdev>",
            "host-devices",
            "bus 1, device 4",
        ),
        (
            "<hostdev mode='subsystem' type='mdev'><source><address uuid='c2177883'/></source></hostdev>",
            "host-devices",
            "mediated device c2177883",
        ),
        (
            "<hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/></source></hostdev>",
            "host-devices",
            "scsi_host0",
        ),
        (
            "<interface type='hostdev'><source><address domain='0x0001' bus='0x03' slot='0x00' function='0x1'/>\
                 </source></interface>",
            "host-devices",
            "0001:03:00.1",
        ),
        (
            "<interface type='vdpa'><source dev='/dev/vhost-vdpa-0'/></interface>",
            "host-devices",
            "/dev/vhost-vdpa-0",
        ),
        (
            "<interface type='vhostuser'><source path='/run/v'/></interface>",
            "devices",
            "/run/v",
        ),
        (
            "<disk type='vhostuser'><source path='/run/d'/></disk>",
            "devices",
            "/run/d",
        ),
        ("<disk type='nvme'/>", "host-devices", "NVMe"),
        (
            "<tpm model='tpm-crb'><backend type='emulator'/></tpm>",
            "tpm",
            "(tpm-crb, emulator)",
        ),
        (
            "<filesystem type='mount'><source dir='/data'/><target dir='data'/></filesystem>",
            "shared-folders",
            "/data of this host as data",
        ),
        ("<shmem name='x'/>", "devices", "shmem x"),
        (
            "<memory model='nvdimm'><source><path>/dev/pmem0</path></source></memory>",
            "devices",
            "/dev/pmem0",
        ),
        (
            "<input type='evdev'><source dev='/dev/input/event3'/></input>",
            "host-devices",
            "/dev/input/event3",
        ),
        (
            "<video><model type='virtio'><acceleration accel3d='yes'/></model></video>",
            "devices",
            "accel3d",
        ),
    ];

    #[test]
    fn each_device_is_named_and_has_its_check() {
        for (device, check, word) in DEVICES {
            let found = found(&format!("{device}{device}"));
            assert_eq!(found.len(), 1, "{device}: {found:?}");
            assert_eq!(found[0].0, check, "{device}");
            assert!(found[0].1.contains(word), "{device}: {found:?}");
        }
    }

    #[test]
    fn two_devices_are_two_blockers() {
        let device = |slot| {
            format!(
                "<hostdev type='pci'><source><address domain='0' bus='1' slot='{slot}' function='0'/></source></hostdev>"
            )
        };
        assert_eq!(found(&format!("{}{}", device(1), device(2))).len(), 2);
    }

    #[test]
    fn what_moves_is_no_blocker() {
        assert!(
            found(
                "<input type='tablet' bus='usb'/><video><model type='virtio'/></video><smartcard mode='passthrough'/>\
                 <interface type='bridge'/><disk type='file'/><rng/><vsock/><redirdev/>"
            )
            .is_empty()
        );
    }

    #[test]
    fn what_lies_beside_the_devices_is_found_too() {
        let blockers = |xml: &str| read_guest(xml).unwrap().blockers.len();
        assert_eq!(blockers("<domain><launchSecurity type='sev'/></domain>"), 1);
        let cpu = "<cpu><feature policy='require' name='invtsc'/></cpu>";
        assert_eq!(blockers(&format!("<domain>{cpu}</domain>")), 1);
        let clock = "<clock><timer name='tsc' frequency='2000000000'/></clock>";
        assert_eq!(blockers(&format!("<domain>{cpu}{clock}</domain>")), 0);
        assert_eq!(
            blockers("<domain><cpu><feature policy='disable' name='invtsc'/></cpu></domain>"),
            0
        );
    }
}
