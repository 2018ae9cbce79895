//! What a destination has to offer a guest, read from the guest's live definition. Pure: text in, facts out.

mod access;
mod blockers;
#[cfg(test)]
pub(crate) mod corpus_tests;
mod document;
mod edit;
pub mod flatten;
mod needs;
pub mod overrides;
mod tpm;

use roxmltree::Node;

pub use access::helper;
pub use document::{MAX_BYTES, Unreadable};

pub use blockers::{Blocker, TPM};
pub use needs::{HugePages, Needs, set};
pub use tpm::tpm_folders;

/// The parts of a definition that matter for a migration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestShape {
    /// `kvm`, `qemu`.
    pub domain_type: String,
    pub arch: String,
    /// The full name, `pc-q35-10.0`.
    pub machine: String,
    /// The `<cpu>` element as text; empty where there is none.
    pub cpu_xml: String,
    pub disks: Vec<Disk>,
    pub interfaces: Vec<Interface>,
    /// What forbids a live migration, one by one.
    pub blockers: Vec<Blocker>,
    pub needs: Needs,
}

/// A disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Disk {
    /// `vda`.
    pub target: String,
    /// `file`, `block`, `network`, `volume`, ….
    pub source_type: String,
    /// A path, or all that names a network disk or volume in one canonical string; empty for an empty drive.
    pub source: String,
    pub format: String,
    pub read_only: bool,
    pub shareable: bool,
    pub cache: String,
    /// The backing chain, nearest first.
    pub backing: Vec<Backing>,
    /// It, or a layer beneath it, is encrypted.
    pub encrypted: bool,
}

impl Disk {
    /// The format as which QEMU opens it, also where the definition does not say.
    pub fn image_format(&self) -> &str {
        if self.format.is_empty() { "raw" } else { &self.format }
    }
}

/// A layer beneath an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backing {
    /// As in [`Disk`].
    pub source_type: String,
    pub source: String,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub mac_address: String,
    /// `bridge`, `network`, `ethernet`, ….
    pub source_type: String,
    pub source: String,
}

/// Whose definition it is; empty where it does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    pub uuid: String,
    pub name: String,
}

/// Reads whose definition it is.
pub fn named(xml: &str) -> Result<Named, Unreadable> {
    let document = document::parse(xml)?;
    let text = |name| {
        let found = child(document.root_element(), name).and_then(|node| node.text());
        found.map(|text| text.trim().to_owned()).unwrap_or_default()
    };
    Ok(Named {
        uuid: text("uuid"),
        name: text("name"),
    })
}

/// Reads a definition.
pub fn read(xml: &str) -> Result<GuestShape, Unreadable> {
    let document = document::parse(xml)?;
    let domain = document.root_element();
    let kind = child(domain, "os").and_then(|os| child(os, "type"));
    let devices = child(domain, "devices");
    let each = |name: &'static str| devices.into_iter().flat_map(move |devices| children(devices, name));
    Ok(GuestShape {
        domain_type: attribute(domain, "type"),
        arch: kind.map(|kind| attribute(kind, "arch")).unwrap_or_default(),
        machine: kind.map(|kind| attribute(kind, "machine")).unwrap_or_default(),
        cpu_xml: child(domain, "cpu")
            .map(|cpu| xml[cpu.range()].to_owned())
            .unwrap_or_default(),
        disks: each("disk").map(disk).collect(),
        interfaces: each("interface").map(interface).collect(),
        blockers: blockers::read(domain, devices),
        needs: needs::read(domain),
    })
}

/// Elements of libvirt's own; those of other namespaces are nobody's business here.
fn children<'a>(node: Node<'a, 'a>, name: &'static str) -> impl Iterator<Item = Node<'a, 'a>> {
    let own = move |child: &Node<'a, 'a>| child.has_tag_name(name) && child.tag_name().namespace().is_none();
    node.children().filter(own)
}

fn child<'a>(node: Node<'a, 'a>, name: &'static str) -> Option<Node<'a, 'a>> {
    children(node, name).next()
}

fn attribute(node: Node<'_, '_>, name: &str) -> String {
    node.attribute(name).unwrap_or_default().to_owned()
}

fn disk(node: Node<'_, '_>) -> Disk {
    let driver = child(node, "driver");
    let source_type = attribute(node, "type");
    Disk {
        target: child(node, "target")
            .map(|target| attribute(target, "dev"))
            .unwrap_or_default(),
        source: child(node, "source")
            .map(|source| source_name(source, &source_type))
            .unwrap_or_default(),
        source_type,
        format: driver.map(|driver| attribute(driver, "type")).unwrap_or_default(),
        cache: driver.map(|driver| attribute(driver, "cache")).unwrap_or_default(),
        read_only: child(node, "readonly").is_some(),
        shareable: child(node, "shareable").is_some(),
        backing: backing(node),
        encrypted: node.descendants().any(|part| part.has_tag_name("encryption")),
    }
}

/// One string that two hosts can compare.
fn source_name(source: Node<'_, '_>, source_type: &str) -> String {
    match source_type {
        "file" => attribute(source, "file"),
        "block" => attribute(source, "dev"),
        "dir" => attribute(source, "dir"),
        "volume" => format!("{}/{}", attribute(source, "pool"), attribute(source, "volume")),
        "network" => network_name(source),
        _ => source
            .attributes()
            .map(|a| format!("{}={}", a.name(), a.value()))
            .collect::<Vec<_>>()
            .join(","),
    }
}

/// `protocol://host:port,host:port/name?query`, the hosts in order: they are one cluster, whoever lists them.
fn network_name(source: Node<'_, '_>) -> String {
    let host = |host: Node<'_, '_>| match (host.attribute("name"), host.attribute("socket"), host.attribute("port")) {
        (Some(name), _, Some(port)) => format!("{name}:{port}"),
        (Some(name), _, None) => name.to_owned(),
        (None, Some(socket), _) => format!("unix:{socket}"),
        (None, None, _) => String::new(),
    };
    let mut hosts: Vec<_> = children(source, "host").map(host).collect();
    hosts.sort();
    let name = attribute(source, "name");
    let query = source
        .attribute("query")
        .map(|query| format!("?{query}"))
        .unwrap_or_default();
    let name = name.trim_start_matches('/');
    format!("{}://{}/{name}{query}", attribute(source, "protocol"), hosts.join(","))
}

fn backing(disk: Node<'_, '_>) -> Vec<Backing> {
    let mut chain = Vec::new();
    let mut next = child(disk, "backingStore");
    while let Some(store) = next {
        if let Some(source) = child(store, "source") {
            let source_type = attribute(store, "type");
            chain.push(Backing {
                source: source_name(source, &source_type),
                source_type,
            });
        }
        next = child(store, "backingStore");
    }
    chain
}

fn interface(node: Node<'_, '_>) -> Interface {
    let source_type = attribute(node, "type");
    let source = child(node, "source").map(|source| match source_type.as_str() {
        "bridge" => attribute(source, "bridge"),
        "network" => attribute(source, "network"),
        _ => attribute(source, "dev"),
    });
    Interface {
        mac_address: child(node, "mac")
            .map(|mac| attribute(mac, "address"))
            .unwrap_or_default(),
        source: source.unwrap_or_default(),
        source_type,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = r#"<domain type='kvm' id='3'><name>a</name>
      <os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type></os>
      <cpu mode='custom'><model>EPYC</model></cpu>
      <devices>
        <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/>
          <source file='/images/a.qcow2'/>
          <backingStore type='file'><format type='qcow2'/><source file='/images/base.qcow2'/>
            <backingStore type='block'><source dev='/dev/vg/root'/><backingStore/></backingStore></backingStore>
          <target dev='vda'/></disk>
        <disk type='network' device='disk'><driver type='raw'/>
          <source protocol='rbd' name='pool/image'><host name='b' port='6789'/><host name='a' port='6789'/></source>
          <target dev='vdb'/><shareable/></disk>
        <disk type='file' device='cdrom'><target dev='sda'/><readonly/></disk>
        <interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br0'/></interface>
        <interface type='network'><mac address='52:54:00:00:00:02'/><source network='default' bridge='v0'/></interface>
      </devices></domain>"#;

    #[test]
    fn a_definition_is_read() {
        let shape = read(PLAIN).unwrap();
        assert_eq!((shape.domain_type.as_str(), shape.arch.as_str()), ("kvm", "x86_64"));
        assert_eq!(shape.machine, "pc-q35-10.0");
        assert_eq!(shape.cpu_xml, "<cpu mode='custom'><model>EPYC</model></cpu>");
        assert!(shape.blockers.is_empty(), "{:?}", shape.blockers);

        let [image, network, drive] = shape.disks.as_slice() else {
            panic!("{:?}", shape.disks)
        };
        assert_eq!(
            (image.target.as_str(), image.source.as_str()),
            ("vda", "/images/a.qcow2")
        );
        assert_eq!((image.format.as_str(), image.cache.as_str()), ("qcow2", "none"));
        let layers: Vec<_> = image
            .backing
            .iter()
            .map(|layer| (layer.source_type.as_str(), layer.source.as_str()))
            .collect();
        assert_eq!(layers, [("file", "/images/base.qcow2"), ("block", "/dev/vg/root")]);
        assert_eq!(network.source, "rbd://a:6789,b:6789/pool/image");
        assert!(!image.encrypted);
        let secret =
            "<encryption format='luks'><secret type='passphrase' uuid='u'/></encryption><source dev='/dev/vg/root'/>";
        let encrypted = read(&PLAIN.replace("<source dev='/dev/vg/root'/>", secret)).unwrap();
        let told: Vec<_> = encrypted.disks.iter().map(|disk| disk.encrypted).collect();
        assert_eq!(told, [true, false, false]);
        assert!(network.shareable && !network.read_only);
        assert!(drive.source.is_empty() && drive.read_only);

        let sources: Vec<_> = shape
            .interfaces
            .iter()
            .map(|i| (i.source_type.as_str(), i.source.as_str()))
            .collect();
        assert_eq!(sources, [("bridge", "br0"), ("network", "default")]);
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(read("<domain").is_err());
        assert_eq!(read("<domain/>").unwrap(), GuestShape::default());
    }
}
