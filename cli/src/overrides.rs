//! What must be different at the destination, as people type it: `vda=/path`, `52:54:00:12:34:56=bridge:br1`.
//!
//! The same rules as at the controller, so that a mistake is told before anything is asked.

use drover_proto::overrides::{DiskTarget, InterfaceName, MacAddress, SourcePath};
use drover_proto::v1::interface_override::Network;
use drover_proto::v1::{DestinationOverrides, DiskOverride, InterfaceOverride};

use crate::args::Overrides;

impl Overrides {
    /// As it goes to the controller; unset where nothing is different.
    pub(crate) fn message(self) -> Option<DestinationOverrides> {
        let message = DestinationOverrides {
            disks: self.disks,
            interfaces: self.interfaces,
            graphics_listen_address: self
                .graphics_listen
                .map(|address| address.to_string())
                .unwrap_or_default(),
        };
        (message != DestinationOverrides::default()).then_some(message)
    }
}

/// Each override as it would be typed.
pub(crate) fn words(overrides: &DestinationOverrides) -> Vec<String> {
    let disks = overrides
        .disks
        .iter()
        .map(|disk| format!("disk {}={}", disk.target, disk.source));
    let interfaces = overrides.interfaces.iter().map(|interface| {
        let network = match &interface.network {
            Some(Network::Bridge(name)) => format!("bridge:{name}"),
            Some(Network::TargetDevice(name)) => format!("device:{name}"),
            None => String::new(),
        };
        format!("interface {}={network}", interface.mac_address)
    });
    let graphics = Some(&overrides.graphics_listen_address).filter(|address| !address.is_empty());
    let graphics = graphics.map(|address| format!("graphics-listen {address}"));
    disks.chain(interfaces).chain(graphics).collect()
}

/// `TARGET=PATH`.
pub(crate) fn disk(text: &str) -> Result<DiskOverride, String> {
    let (target, source) = text
        .split_once('=')
        .ok_or("expected TARGET=PATH, as in vda=/srv/vms/web.qcow2")?;
    let expected = |expected| format!("expected TARGET=PATH with {expected}");
    Ok(DiskOverride {
        target: target.parse::<DiskTarget>().map_err(expected)?.to_string(),
        source: source.parse::<SourcePath>().map_err(expected)?.to_string(),
    })
}

/// `MAC=bridge:NAME` or `MAC=device:NAME`.
pub(crate) fn interface(text: &str) -> Result<InterfaceOverride, String> {
    let form = "expected MAC=bridge:NAME or MAC=device:NAME, as in 52:54:00:12:34:56=bridge:br1";
    let (mac, network) = text.split_once('=').ok_or(form)?;
    let (kind, name) = network.split_once(':').ok_or(form)?;
    let expected = |expected| format!("{form}, with {expected}");
    let mac_address = mac.parse::<MacAddress>().map_err(expected)?.to_string();
    let name = name.parse::<InterfaceName>().map_err(expected)?.to_string();
    let network = match kind {
        "bridge" => Network::Bridge(name),
        "device" => Network::TargetDevice(name),
        _ => return Err(form.to_owned()),
    };
    Ok(InterfaceOverride {
        mac_address,
        network: Some(network),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_what_is_asked_for() {
        let disk = disk("vda=/srv/a=b.qcow2").unwrap();
        assert_eq!((disk.target.as_str(), disk.source.as_str()), ("vda", "/srv/a=b.qcow2"));
        let bridge = interface("52:54:00:AB:00:01=bridge:br1").unwrap();
        assert_eq!(bridge.mac_address, "52:54:00:ab:00:01");
        assert_eq!(bridge.network, Some(Network::Bridge("br1".to_owned())));
        let device = interface("52:54:00:ab:00:01=device:tap7").unwrap();
        assert_eq!(device.network, Some(Network::TargetDevice("tap7".to_owned())));
        let overrides = Overrides {
            disks: vec![disk],
            ..Overrides::default()
        };
        assert_eq!(words(&overrides.message().unwrap()), ["disk vda=/srv/a=b.qcow2"]);
        assert_eq!(Overrides::default().message(), None);
    }

    #[test]
    fn a_mistake_is_answered_with_what_is_expected() {
        for bad in ["vda", "vda=relative", "vda=/a/../b", "=/a"] {
            assert!(disk(bad).unwrap_err().contains("TARGET=PATH"), "{bad}");
        }
        for bad in [
            "br1",
            "52:54:00:ab:00:01=br1",
            "52:54=bridge:br1",
            "52:54:00:ab:00:01=tap:t",
            "52:54:00:ab:00:01=bridge:",
        ] {
            assert!(interface(bad).unwrap_err().contains("MAC=bridge:NAME"), "{bad}");
        }
    }
}
