//! Simulated guests as people write them down: in the agent's configuration, or in a test.

use std::fmt::Write;

use drover_proto::ids::GuestId;
use serde::Deserialize;
use uuid::Uuid;

use super::domain::NAMESPACE;
use super::host::SimHost;
use super::watch::Watch;
use crate::hypervisor::{GuestState, HypervisorError};

/// `[sim]` in agent.toml, for `hypervisor = "sim"`: a host without libvirt, and its guests. They are started anew
/// whenever the agent is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimConfig {
    pub guests: Vec<SimGuest>,
}

/// A guest that exists only in memory.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimGuest {
    pub name: String,
    /// Made from the name where it is left out, so that it is the same at every start.
    #[serde(default)]
    pub uuid: Option<GuestId>,
    #[serde(default = "default_memory")]
    pub memory_mib: u64,
    #[serde(default = "default_vcpus")]
    pub vcpus: u32,
    /// How fast it writes into its memory.
    #[serde(default)]
    pub dirty_mib_per_second: u64,
    #[serde(default = "yes")]
    pub persistent: bool,
    #[serde(default)]
    pub autostart: bool,
    #[serde(default)]
    pub paused: bool,
    /// Image files, as `vda`, `vdb`, …; nothing reads them but Drover's own checks.
    #[serde(default)]
    pub disks: Vec<String>,
    /// What lies beneath the last of them, nearest first.
    #[serde(default)]
    pub layers: Vec<String>,
    /// Bridges of its interfaces.
    #[serde(default)]
    pub bridges: Vec<String>,
    /// Whether it has an emulated TPM; nothing makes its state.
    #[serde(default)]
    pub tpm: bool,
}

fn default_memory() -> u64 {
    64
}

fn default_vcpus() -> u32 {
    1
}

fn yes() -> bool {
    true
}

impl SimConfig {
    /// A host of this name in a world of its own, with its guests running.
    pub fn start(&self, name: &str) -> Result<SimHost, HypervisorError> {
        let host = SimHost::new(name, Watch::default());
        for guest in &self.guests {
            host.add(guest)?;
        }
        Ok(host)
    }
}

impl SimGuest {
    /// A persistent running guest with defaults.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            uuid: None,
            memory_mib: default_memory(),
            vcpus: default_vcpus(),
            dirty_mib_per_second: 0,
            persistent: true,
            autostart: false,
            paused: false,
            disks: Vec::new(),
            layers: Vec::new(),
            bridges: Vec::new(),
            tpm: false,
        }
    }

    pub fn id(&self) -> GuestId {
        self.uuid.unwrap_or_else(|| GuestId::from_uuid(id_of(&self.name)))
    }

    pub(super) fn state(&self) -> GuestState {
        if self.paused {
            GuestState::Paused
        } else {
            GuestState::Running
        }
    }

    fn layers(&self) -> String {
        let beneath = self
            .layers
            .iter()
            .rev()
            .fold("<backingStore/>".to_owned(), |beneath, layer| {
                let layer = escape(layer);
                format!(
                    "<backingStore type='file'><format type='raw'/><source file='{layer}'/>{beneath}</backingStore>"
                )
            });
        if self.layers.is_empty() { String::new() } else { beneath }
    }

    /// The definition that libvirt would show.
    pub fn xml(&self) -> String {
        let Self {
            name,
            memory_mib,
            vcpus,
            ..
        } = self;
        let (id, dirty_rate) = (self.id(), self.dirty_mib_per_second << 20);
        let name = escape(name);
        let mut devices = String::new();
        let last = self.disks.len().saturating_sub(1);
        for (at, (disk, letter)) in self.disks.iter().zip('a'..='z').enumerate() {
            let disk = escape(disk);
            let layers = if at == last { self.layers() } else { String::new() };
            // Writing into a String cannot fail.
            let _ = write!(
                devices,
                "<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/>\
                 <source file='{disk}'/>{layers}<target dev='vd{letter}' bus='virtio'/></disk>"
            );
        }
        let [.., x, y, z] = *id.as_uuid().as_bytes();
        for (bridge, number) in self.bridges.iter().zip(0u8..) {
            let (bridge, last) = (escape(bridge), z.wrapping_add(number));
            let _ = write!(
                devices,
                "<interface type='bridge'><mac address='52:54:00:{x:02x}:{y:02x}:{last:02x}'/>\
                 <source bridge='{bridge}'/><model type='virtio'/></interface>"
            );
        }
        if self.tpm {
            devices.push_str("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>");
        }
        format!(
            "<domain type='kvm'><name>{name}</name><uuid>{id}</uuid>\
             <metadata><sim:sim xmlns:sim='{NAMESPACE}' dirty-rate='{dirty_rate}'/></metadata>\
             <memory unit='MiB'>{memory_mib}</memory><vcpu>{vcpus}</vcpu>\
             <os><type arch='x86_64' machine='pc-q35-10.0'>hvm</type></os>\
             <devices>{devices}</devices></domain>"
        )
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

/// The same id for the same name, and another for another: 128 bits of FNV-1a, marked as a UUID of one's own making.
fn id_of(name: &str) -> Uuid {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let hash = name
        .bytes()
        .fold(OFFSET, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME));
    uuid::Builder::from_custom_bytes(hash.to_be_bytes()).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::super::domain::Spec;
    use super::*;

    #[test]
    fn a_guest_is_what_its_xml_says() {
        let guest = SimGuest {
            dirty_mib_per_second: 3,
            disks: vec!["/images/a&b.raw".to_owned()],
            bridges: vec!["br0".to_owned()],
            ..SimGuest::named("it's <web>")
        };
        let spec = Spec::parse(&guest.xml()).unwrap();
        assert_eq!((spec.id, spec.name.as_str()), (guest.id(), "it's <web>"));
        assert_eq!((spec.memory, spec.dirty_rate), (64 << 20, 3 << 20));
        assert_ne!(guest.id(), SimGuest::named("other").id());
    }
}
