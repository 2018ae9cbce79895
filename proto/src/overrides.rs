//! What must be different at the destination, read from the API's message: every value checked, every bad field named.
//!
//! What passes here can be written into a definition and given to a hypervisor: paths without tricks, names that the
//! kernel accepts for interfaces, addresses that are addresses.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::v1;
use crate::v1::interface_override::Network as Message;

/// Most disks, and most interfaces, in one request.
pub const MOST: usize = 256;

/// Longest path in bytes: the kernel's PATH_MAX without its NUL.
const MAX_PATH_BYTES: usize = 4095;

/// Longest name of an interface in bytes: the kernel's IFNAMSIZ without its NUL.
const MAX_INTERFACE_BYTES: usize = 15;

/// Names of tap devices that libvirt gives and takes away by itself.
const OF_LIBVIRT: [&str; 2] = ["vnet", "macvtap"];

/// Why a value is not valid, for people: what is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Expected(pub &'static str);

/// A field of `DestinationOverrides` and why it is not valid.
pub type Problem = (String, String);

/// All overrides of one migration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overrides {
    /// In the caller's order: problems are told by index.
    pub disks: Vec<DiskSource>,
    pub interfaces: Vec<InterfaceNetwork>,
    pub graphics_listen: Option<IpAddr>,
}

/// Another source for one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSource {
    pub target: DiskTarget,
    pub source: SourcePath,
}

/// Another network for one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceNetwork {
    pub mac_address: MacAddress,
    pub network: Network,
}

/// Where an interface goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    Bridge(InterfaceName),
    /// A tap device.
    Device(InterfaceName),
}

macro_rules! text {
    ($(#[$doc:meta])* $name:ident, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Expected;

            fn from_str(text: &str) -> Result<Self, Expected> {
                let check: fn(&str) -> Result<(), Expected> = $check;
                check(text).map(|()| Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text! {
    /// A disk's name in its guest: `vda`.
    DiskTarget, |text| {
        let good = (1..=32).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
        good.then_some(()).ok_or(Expected("a disk's target like vda: 1 to 32 letters, digits and _"))
    }
}

text! {
    /// An absolute path of a file or block device, spelled in one way.
    SourcePath, |text| {
        let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        let good = text.len() <= MAX_PATH_BYTES
            && text.strip_prefix('/').is_some_and(|rest| rest.split('/').all(plain))
            && text.chars().all(|c| !c.is_control() && !matches!(c, '\u{fffe}' | '\u{ffff}'));
        let expected = "an absolute path without empty parts, `.`, `..` and control characters, of at most 4095 bytes";
        good.then_some(()).ok_or(Expected(expected))
    }
}

text! {
    /// Name of a network interface, as the kernel takes it.
    InterfaceName, |text| {
        let good = (1..=MAX_INTERFACE_BYTES).contains(&text.len())
            && text.bytes().all(|c| c.is_ascii_graphic() && c != b'/' && c != b':')
            && text != "."
            && text != "..";
        let expected = "the name of an interface: 1 to 15 visible ASCII characters without / and :";
        good.then_some(()).ok_or(Expected(expected))
    }
}

impl SourcePath {
    /// Whether it names a block device; else it is a file.
    pub fn is_device(&self) -> bool {
        self.0.starts_with("/dev/") && !self.0.starts_with("/dev/shm/")
    }
}

/// A MAC address; compared by value, whatever the case of its letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MacAddress([u8; 6]);

impl FromStr for MacAddress {
    type Err = Expected;

    fn from_str(text: &str) -> Result<Self, Expected> {
        let expected = Expected("a MAC address like 52:54:00:12:34:56");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(expected)?;
            let digits = part.bytes().all(|c| c.is_ascii_hexdigit());
            *byte = u8::from_str_radix(part, 16).ok().filter(|_| digits).ok_or(expected)?;
        }
        parts.next().is_none().then_some(Self(bytes)).ok_or(expected)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Overrides {
    /// Nothing is different.
    pub fn is_empty(&self) -> bool {
        self.disks.is_empty() && self.interfaces.is_empty() && self.graphics_listen.is_none()
    }

    /// Reads the message; every bad field at once.
    pub fn read(message: &v1::DestinationOverrides) -> Result<Self, Vec<Problem>> {
        let mut reader = Reader::default();
        reader.count("disks", message.disks.len());
        reader.count("interfaces", message.interfaces.len());
        let graphics = message.graphics_listen_address.as_str();
        let read = Self {
            disks: reader.disks(&message.disks),
            interfaces: reader.interfaces(&message.interfaces),
            graphics_listen: if graphics.is_empty() {
                None
            } else {
                let address = graphics.parse().map_err(|_| Expected("an IP address, or empty"));
                reader.value("graphics_listen_address", address)
            },
        };
        if reader.problems.is_empty() {
            Ok(read)
        } else {
            Err(reader.problems)
        }
    }

    /// As it goes to an agent.
    pub fn message(&self) -> v1::DestinationOverrides {
        let disk = |disk: &DiskSource| v1::DiskOverride {
            target: disk.target.to_string(),
            source: disk.source.to_string(),
        };
        let interface = |interface: &InterfaceNetwork| v1::InterfaceOverride {
            mac_address: interface.mac_address.to_string(),
            network: Some(match &interface.network {
                Network::Bridge(name) => Message::Bridge(name.to_string()),
                Network::Device(name) => Message::TargetDevice(name.to_string()),
            }),
        };
        v1::DestinationOverrides {
            disks: self.disks.iter().map(disk).collect(),
            interfaces: self.interfaces.iter().map(interface).collect(),
            graphics_listen_address: self
                .graphics_listen
                .map(|address| address.to_string())
                .unwrap_or_default(),
        }
    }
}

#[derive(Default)]
struct Reader {
    problems: Vec<Problem>,
}

impl Reader {
    fn bad(&mut self, field: impl Into<String>, why: impl Into<String>) {
        self.problems.push((field.into(), why.into()));
    }

    fn value<T>(&mut self, field: &str, value: Result<T, Expected>) -> Option<T> {
        value
            .map_err(|expected| self.bad(field, format!("expected {expected}")))
            .ok()
    }

    fn count(&mut self, field: &str, count: usize) {
        if count > MOST {
            self.bad(field, format!("at most {MOST}"));
        }
    }

    fn disks(&mut self, messages: &[v1::DiskOverride]) -> Vec<DiskSource> {
        let mut seen = HashSet::new();
        let mut disks = Vec::new();
        for (at, message) in messages.iter().take(MOST).enumerate() {
            let field = format!("disks[{at}]");
            let target = self.value(&format!("{field}.target"), message.target.parse::<DiskTarget>());
            let source = self.value(&format!("{field}.source"), message.source.parse());
            let (Some(target), Some(source)) = (target, source) else {
                continue;
            };
            if !seen.insert(target.clone()) {
                self.bad(format!("{field}.target"), format!("{target} is there twice"));
            }
            disks.push(DiskSource { target, source });
        }
        disks
    }

    fn interfaces(&mut self, messages: &[v1::InterfaceOverride]) -> Vec<InterfaceNetwork> {
        let mut seen = HashSet::new();
        let mut interfaces = Vec::new();
        for (at, message) in messages.iter().take(MOST).enumerate() {
            let field = format!("interfaces[{at}]");
            let mac_address = self.value(
                &format!("{field}.mac_address"),
                message.mac_address.parse::<MacAddress>(),
            );
            let network = self.network(&field, message.network.as_ref());
            let (Some(mac_address), Some(network)) = (mac_address, network) else {
                continue;
            };
            if !seen.insert((mac_address, matches!(network, Network::Bridge(_)))) {
                let why = format!("{mac_address} is there twice for the same thing");
                self.bad(format!("{field}.mac_address"), why);
            }
            interfaces.push(InterfaceNetwork { mac_address, network });
        }
        interfaces
    }

    fn network(&mut self, field: &str, network: Option<&Message>) -> Option<Network> {
        match network {
            None => {
                self.bad(field, "set bridge or target_device");
                None
            }
            Some(Message::Bridge(name)) => self
                .value(&format!("{field}.bridge"), name.parse())
                .map(Network::Bridge),
            Some(Message::TargetDevice(name)) => {
                let field = format!("{field}.target_device");
                let name: InterfaceName = self.value(&field, name.parse())?;
                if OF_LIBVIRT.iter().any(|prefix| name.as_str().starts_with(prefix)) {
                    self.bad(field, "names that begin with vnet or macvtap are libvirt's own");
                    return None;
                }
                Some(Network::Device(name))
            }
        }
    }
}

#[cfg(test)]
#[path = "overrides_tests.rs"]
mod tests;
