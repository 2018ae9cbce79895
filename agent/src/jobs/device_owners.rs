//! Which block devices of this host its guests have, running or not: the disk of a guest that has written nothing yet is
//! as blank as one that nobody has.

use std::path::{Path, PathBuf};

use drover_proto::failure::{Failure, Reason};

use super::Jobs;
use crate::guest_xml;
use crate::hypervisor::GuestFacts;
use crate::images::device;

/// What to do about a device that a guest has.
pub const REMEDY: &str = "name another device, or detach it from that guest";

/// Block devices, each with the guest whose disk it is or lies on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceOwners(Vec<(PathBuf, String)>);

impl DeviceOwners {
    /// As the definitions say, the live ones and those of the next start.
    pub fn of(guests: &[GuestFacts]) -> Self {
        let mut all = Vec::new();
        for guest in guests {
            for xml in [Some(&guest.xml), guest.inactive_xml.as_ref()].into_iter().flatten() {
                let Ok(shape) = guest_xml::read(xml) else {
                    tracing::warn!(
                        guest = guest.name,
                        "a definition that cannot be read: its disks are not known"
                    );
                    continue;
                };
                for disk in shape.disks {
                    let own = (disk.source_type == "block").then_some(disk.source);
                    let beneath = disk.backing.into_iter().filter(|layer| layer.source_type == "block");
                    let paths = own.into_iter().chain(beneath.map(|layer| layer.source));
                    all.extend(paths.map(|path| (PathBuf::from(path), guest.name.clone())));
                }
            }
        }
        Self(all)
    }

    /// Why the device at a path must not be overwritten: a guest has it, whatever it calls it. Blocks.
    pub fn refuse(&self, path: &Path) -> Result<(), String> {
        let number = device::number(path);
        let is_it = |theirs: &Path| theirs == path || (number.is_some() && device::number(theirs) == number);
        match self.0.iter().find(|(theirs, _)| is_it(theirs)) {
            None => Ok(()),
            Some((_, guest)) => Err(format!("{} is a disk of guest {guest} of that host", path.display())),
        }
    }
}

impl Jobs {
    /// Of all guests that libvirt knows here.
    pub async fn device_owners(&self) -> Result<DeviceOwners, Failure> {
        let guests = self.hypervisor.guests().await?;
        Ok(DeviceOwners::of(&guests))
    }

    /// Before anything is written down.
    pub(super) async fn refuse_devices_of_guests(&self, devices: Vec<PathBuf>) -> Result<(), Failure> {
        if devices.is_empty() {
            return Ok(());
        }
        let owners = self.device_owners().await?;
        let look = move || devices.iter().try_for_each(|path| owners.refuse(path));
        let looked = tokio::task::spawn_blocking(look).await;
        let looked = looked.map_err(|error| Failure::internal(format!("a check broke off: {error}")))?;
        looked.map_err(|why| {
            let failure = Failure::new(Reason::StorageUnusable, why).with_remedy(REMEDY);
            failure.at_host(self.host.clone())
        })
    }
}

#[cfg(test)]
mod tests {
    use drover_proto::ids::GuestId;

    use super::*;
    use crate::hypervisor::GuestState;

    fn guest(name: &str, xml: &str, inactive_xml: Option<&str>) -> GuestFacts {
        GuestFacts {
            id: GuestId::from_uuid(uuid::Uuid::from_u128(1)),
            name: name.to_owned(),
            state: GuestState::Running,
            persistent: inactive_xml.is_some(),
            autostart: false,
            xml: xml.to_owned(),
            inactive_xml: inactive_xml.map(str::to_owned),
            memory: 1,
            vcpus: 1,
            snapshots: 0,
            checkpoints: 0,
            managed_save: false,
            incarnation: None,
        }
    }

    fn disk(kind: &str, source: &str) -> String {
        format!("<domain><devices><disk type='{kind}'><source {source}/><target dev='vda'/></disk></devices></domain>")
    }

    #[test]
    fn a_device_that_a_guest_has_is_known_by_its_name_there() {
        let (runs, off) = (disk("block", "dev='/dev/vg/runs'"), disk("block", "dev='/dev/vg/off'"));
        let owners = DeviceOwners::of(&[
            guest("both", &runs, Some(&off)),
            guest("file", &disk("file", "file='/images/a.raw'"), None),
            guest("broken", "<domain", None),
        ]);
        for taken in ["/dev/vg/runs", "/dev/vg/off"] {
            let why = owners.refuse(Path::new(taken)).unwrap_err();
            assert!(why.contains("guest both"), "{why}");
        }
        for free in ["/dev/vg/free", "/images/a.raw", ""] {
            assert_eq!(owners.refuse(Path::new(free)), Ok(()), "{free}");
        }
    }
}
