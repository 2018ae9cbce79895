//! A definition for a destination that gets some disks without what lies beneath them: QEMU copies what the guest sees,
//! all layers in one. Pure: text in, text out.

use super::edit::Edits;
use super::{Unreadable, child, children, document};

/// Takes the backing chains of these disks out. What has none stays the very same text.
///
/// An empty `<backingStore/>` is libvirt's word for "nothing beneath": it does not look for more.
pub fn flattened<'a>(xml: &str, targets: impl Iterator<Item = &'a str>) -> Result<String, Unreadable> {
    let document = document::parse(xml)?;
    let wanted: Vec<&str> = targets.collect();
    let mut edits = Edits::new(xml);
    let devices = child(document.root_element(), "devices");
    for disk in devices.into_iter().flat_map(|devices| children(devices, "disk")) {
        let target = child(disk, "target").and_then(|target| target.attribute("dev"));
        if !target.is_some_and(|target| wanted.contains(&target)) {
            continue;
        }
        let layered = |store: &roxmltree::Node<'_, '_>| store.has_children();
        for store in children(disk, "backingStore").filter(layered) {
            edits.replace(store, "<backingStore/>".to_owned());
        }
    }
    // Elements beside each other never meet.
    Ok(edits.finish().unwrap_or_else(|_| xml.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::super::read;
    use super::*;

    const GUEST: &str = "<domain><devices><disk type='file'><source file='/images/a.qcow2'/>\n\
        <backingStore type='file' index='2'><format type='qcow2'/><source file='/images/base.qcow2'/>\
        <backingStore type='block'><source dev='/dev/vg/root'/><backingStore/></backingStore></backingStore>\
        <target dev='vda'/></disk><disk type='file'><source file='/images/b.qcow2'/>\
        <backingStore type='file'><source file='/images/base.qcow2'/></backingStore><target dev='vdb'/></disk>\
        <disk type='file'><source file='/images/c.raw'/><backingStore/><target dev='vdc'/></disk></devices></domain>";

    #[test]
    fn only_the_chains_of_the_named_disks_go() {
        let flat = flattened(GUEST, ["vda", "vdc"].into_iter()).unwrap();
        let shape = read(&flat).unwrap();
        let layers: Vec<_> = shape.disks.iter().map(|disk| disk.backing.len()).collect();
        assert_eq!(layers, [0, 1, 0]);
        assert!(
            flat.contains("<source file='/images/a.qcow2'/>\n<backingStore/><target dev='vda'/>"),
            "{flat}"
        );
        assert!(!flat.contains("/dev/vg/root"));
        assert_eq!(flattened(&flat, ["vda", "vdc"].into_iter()).unwrap(), flat, "again");
    }

    #[test]
    fn what_has_no_chain_stays_as_it_is() {
        assert_eq!(flattened(GUEST, ["vdc", "vdz"].into_iter()).unwrap(), GUEST);
        assert_eq!(flattened(GUEST, std::iter::empty()).unwrap(), GUEST);
        assert!(flattened("<domain", std::iter::empty()).is_err());
    }
}
