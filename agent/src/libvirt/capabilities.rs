//! Reading libvirt's XML: the host's capabilities. Pure.

use roxmltree::{Document, Node};
use uuid::Uuid;

use super::raw::own_error;
use crate::hypervisor::{ErrorClass, MachineTypes, Result};

/// What Drover needs of `virConnectGetCapabilities`.
#[derive(Clone, Debug, Default)]
pub(super) struct Capabilities {
    pub(super) uuid: Uuid,
    pub(super) arch: String,
    pub(super) machines: Vec<MachineTypes>,
    /// The host's `<cpu>` element; empty where there is none.
    pub(super) cpu_xml: String,
}

pub(super) fn parse(xml: &str) -> Result<Capabilities> {
    let broken = |what: String| own_error(ErrorClass::Unavailable, "CAPABILITIES", what);
    let document = Document::parse(xml).map_err(|error| broken(format!("libvirt's capabilities: {error}")))?;
    let root = document.root_element();
    let host = child(root, "host").ok_or_else(|| broken("libvirt's capabilities have no <host>".to_owned()))?;
    let uuid = child(host, "uuid").map(content).unwrap_or_default();
    let uuid = Uuid::try_parse(&uuid).map_err(|_| broken(format!("the host's UUID is {uuid:?}")))?;
    let arch = child(host, "cpu")
        .and_then(|cpu| child(cpu, "arch"))
        .map(content)
        .unwrap_or_default();
    let machines = children(root, "guest")
        .flat_map(|guest| children(guest, "arch"))
        .flat_map(machine_types);
    Ok(Capabilities {
        uuid,
        arch,
        machines: machines.collect(),
        cpu_xml: child(host, "cpu")
            .map(|cpu| xml[cpu.range()].to_owned())
            .unwrap_or_default(),
    })
}

/// One entry for each kind of domain of an architecture. A kind without machines of its own has the common ones.
fn machine_types(arch: Node<'_, '_>) -> Vec<MachineTypes> {
    let of_domain = |domain: Node<'_, '_>| {
        let own = machine_names(domain);
        MachineTypes {
            domain_type: domain.attribute("type").unwrap_or_default().to_owned(),
            arch: arch.attribute("name").unwrap_or_default().to_owned(),
            names: if own.is_empty() { machine_names(arch) } else { own },
        }
    };
    children(arch, "domain").map(of_domain).collect()
}

fn machine_names(of: Node<'_, '_>) -> Vec<String> {
    children(of, "machine").map(content).collect()
}

fn children<'a, 'input: 'a>(of: Node<'a, 'input>, name: &'static str) -> impl Iterator<Item = Node<'a, 'input>> {
    of.children().filter(move |node| node.has_tag_name(name))
}

fn child<'a, 'input: 'a>(of: Node<'a, 'input>, name: &'static str) -> Option<Node<'a, 'input>> {
    children(of, name).next()
}

fn content(node: Node<'_, '_>) -> String {
    node.text().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const XML: &str = r"<capabilities>
      <host><uuid>11111111-1111-4111-8111-11111111111a</uuid><cpu><arch>x86_64</arch><model>kvm64</model></cpu></host>
      <guest><os_type>hvm</os_type>
        <arch name='x86_64'><wordsize>64</wordsize>
          <machine canonical='pc-i440fx-10.0' maxCpus='255'>pc</machine>
          <machine maxCpus='255'>pc-i440fx-10.0</machine>
          <domain type='qemu'/>
          <domain type='kvm'><machine maxCpus='288'>q35</machine></domain>
        </arch>
      </guest>
    </capabilities>";

    #[test]
    fn a_kind_of_domain_has_its_own_machines_or_the_common_ones() {
        let found = parse(XML).unwrap();
        assert_eq!(found.arch, "x86_64");
        assert_eq!(found.cpu_xml, "<cpu><arch>x86_64</arch><model>kvm64</model></cpu>");
        assert_eq!(found.uuid.to_string(), "11111111-1111-4111-8111-11111111111a");
        let kinds: Vec<_> = found
            .machines
            .iter()
            .map(|one| (one.domain_type.as_str(), one.names.len()))
            .collect();
        assert_eq!(kinds, [("qemu", 2), ("kvm", 1)]);
        assert_eq!(found.machines[0].names, ["pc", "pc-i440fx-10.0"]);
    }

    #[test]
    fn a_host_without_a_uuid_is_an_error() {
        assert!(parse("<capabilities><host/></capabilities>").is_err());
        assert!(parse("<capabilities/>").is_err());
        assert!(parse("nonsense").is_err());
    }
}
