//! The definition of a guest that never runs: libvirt gives the user that QEMU runs as access to the images that it
//! names, and does not take that away again when it goes, because they are read-only to it.

use std::fmt::Write;

use super::edit::escape;
use super::{Unreadable, child, children, document, read};

/// Such a definition for the images that a guest writes to, from its live definition; `None` where it has none that
/// are files. Read-only images are left alone by libvirt, and device nodes belong to each QEMU by itself.
pub fn helper(live: &str, name: &str) -> Result<Option<String>, Unreadable> {
    let shape = read(live)?;
    let document = document::parse(live)?;
    let domain = document.root_element();
    let written = |disk: &&super::Disk| disk.source_type == "file" && !disk.read_only && !disk.shareable;
    let mut disks = String::new();
    for (number, disk) in shape.disks.iter().filter(written).enumerate() {
        // Raw, whatever it holds: nothing is read from it.
        let _ = write!(
            disks,
            "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/>\
             <target dev='{}' bus='virtio'/><readonly/></disk>",
            escape(&disk.source),
            target(number),
        );
    }
    if disks.is_empty() {
        return Ok(None);
    }
    let emulator = child(domain, "devices").and_then(|devices| child(devices, "emulator")?.text());
    let emulator = emulator.map_or(String::new(), |path| format!("<emulator>{}</emulator>", escape(path)));
    // Without it libvirt 9 gives QEMU an option that QEMU 9 has dropped.
    let features = match shape.arch.as_str() {
        "x86_64" | "i686" => "<features><acpi/></features>",
        _ => "",
    };
    let mut labels = String::new();
    for label in children(domain, "seclabel") {
        match (
            label.attribute("model"),
            child(label, "label").and_then(|label| label.text()),
        ) {
            // The user that this guest's own QEMU runs as.
            (Some("dac"), Some(user)) => {
                let user = escape(user);
                let _ = write!(
                    labels,
                    "<seclabel type='static' model='dac' relabel='yes'><label>{user}</label></seclabel>"
                );
            }
            // Another category would shut the guest itself out.
            (Some("selinux"), _) => labels.push_str("<seclabel type='none' model='selinux'/>"),
            (Some(_) | None, _) => {}
        }
    }
    Ok(Some(format!(
        "<domain type='{}'><name>{}</name><memory unit='MiB'>16</memory><vcpu>1</vcpu>\
         <os><type arch='{}' machine='{}'>hvm</type></os>{features}\
         <devices>{emulator}{disks}<controller type='usb' model='none'/><memballoon model='none'/></devices>\
         {labels}</domain>",
        escape(&shape.domain_type),
        escape(name),
        escape(&shape.arch),
        escape(&shape.machine),
    )))
}

/// `vda` to `vdz`, `vdaa` and so on, as libvirt counts them.
fn target(number: usize) -> String {
    let letter = |at: usize| char::from(b'a' + u8::try_from(at % 26).unwrap_or_default());
    match number / 26 {
        0 => format!("vd{}", letter(number)),
        more => format!("vd{}{}", letter(more - 1), letter(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIVE: &str = "<domain type='kvm'><name>web</name><os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type></os>\
        <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>\
        <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/srv/a&amp;b.qcow2'/>\
        <target dev='sda' bus='sata'/></disk>\
        <disk type='file' device='cdrom'><source file='/srv/cd.iso'/><target dev='sdb'/><readonly/></disk>\
        <disk type='block' device='disk'><source dev='/dev/vg/web'/><target dev='vdb'/></disk>\
        <disk type='file' device='disk'><source file='/srv/common'/><target dev='vdc'/><shareable/></disk></devices>\
        <seclabel type='dynamic' model='dac' relabel='yes'><label>+107:+107</label></seclabel>\
        <seclabel type='dynamic' model='selinux' relabel='yes'><label>a:b:c:s0:c1,c2</label></seclabel></domain>";

    #[test]
    fn it_names_the_images_that_the_guest_writes_to_and_no_other_device() {
        let xml = helper(LIVE, "drover-access-1").unwrap().unwrap();
        let helper = read(&xml).unwrap();
        let images: Vec<_> = helper
            .disks
            .iter()
            .map(|disk| (disk.source.as_str(), disk.read_only))
            .collect();
        assert_eq!(images, [("/srv/a&b.qcow2", true)]);
        assert!(helper.interfaces.is_empty());
        assert_eq!(
            (helper.domain_type.as_str(), helper.machine.as_str()),
            ("kvm", "pc-q35-10.0")
        );
        assert!(
            xml.contains("<emulator>/usr/bin/qemu-system-x86_64</emulator>"),
            "{xml}"
        );
    }

    #[test]
    fn it_runs_as_the_guests_user_and_leaves_other_labels_alone() {
        let xml = helper(LIVE, "drover-access-1").unwrap().unwrap();
        let dac = "<seclabel type='static' model='dac' relabel='yes'><label>+107:+107</label></seclabel>";
        assert!(xml.contains(dac), "{xml}");
        assert!(xml.contains("<seclabel type='none' model='selinux'/>"), "{xml}");
    }

    #[test]
    fn a_guest_without_such_images_needs_none() {
        let none = "<domain type='kvm'><devices><disk type='network' device='disk'><source protocol='rbd' name='a/b'/>\
                    <target dev='vda'/></disk></devices></domain>";
        assert_eq!(helper(none, "drover-access-1").unwrap(), None);
        assert!(helper("<network/>", "drover-access-1").is_err());
    }

    #[test]
    fn disks_are_counted_as_libvirt_counts_them() {
        assert_eq!([0, 25, 26, 51, 52].map(target), ["vda", "vdz", "vdaa", "vdaz", "vdba"]);
    }
}
