//! What a guest of the lab is made of: its libvirt XML and how it is started.

use crate::accelerator::Accelerator;
use crate::host::Host;
use crate::image::{self, BootImage};
use crate::lab::Lab;
use crate::network::Network;
use crate::storage;
use anyhow::{Context, Result};
use std::fmt::Write;

/// A disk of a guest. Sizes are in MiB.
#[derive(Debug, Clone)]
pub enum Disk {
    /// A file in the folder that all hosts share (`/srv/shared`).
    Shared { format: &'static str, size_mib: u64 },
    /// A file that only one host has (`/srv/local`).
    Local { format: &'static str, size_mib: u64 },
    /// A block device that is there, by its path on the host.
    Device { path: &'static str, size_mib: u64 },
    /// A raw file on the lab's NFS server: mounted by every host at the same path where the kernel can do that, else
    /// opened by QEMU itself.
    Nfs { size_mib: u64 },
}

impl Disk {
    pub(crate) fn format(&self) -> &'static str {
        match self {
            Disk::Shared { format, .. } | Disk::Local { format, .. } => format,
            Disk::Nfs { .. } | Disk::Device { .. } => "raw",
        }
    }

    pub(crate) fn size_mib(&self) -> u64 {
        match self {
            Disk::Shared { size_mib, .. }
            | Disk::Local { size_mib, .. }
            | Disk::Nfs { size_mib }
            | Disk::Device { size_mib, .. } => *size_mib,
        }
    }

    pub(crate) fn file_name(&self, guest: &str) -> String {
        format!("{guest}.{}", self.format())
    }

    fn xml(&self, guest: &str) -> String {
        let (file, format) = (self.file_name(guest), self.format());
        let driver = format!("<driver name='qemu' type='{format}' cache='none'/>");
        let target = "<target dev='vda' bus='virtio'/>";
        let folder = match self {
            Disk::Shared { .. } => "/srv/shared",
            Disk::Local { .. } => "/srv/local",
            Disk::Device { path, .. } => {
                return format!("<disk type='block' device='disk'>{driver}<source dev='{path}'/>{target}</disk>");
            }
            Disk::Nfs { .. } if storage::kernel_mounts_nfs() => Lab::NFS_FOLDER,
            Disk::Nfs { .. } => {
                return format!(
                    "<disk type='network' device='disk'>{driver}\
                     <source protocol='nfs' name='{}/{file}'><host name='{}'/></source>{target}</disk>",
                    Lab::NFS_FOLDER,
                    Network::Management.address(2),
                );
            }
        };
        format!("<disk type='file' device='disk'>{driver}<source file='{folder}/{file}'/>{target}</disk>")
    }
}

/// A guest to be started. The defaults are an idle persistent guest of 256 MiB without a disk.
#[derive(Debug, Clone)]
pub struct GuestSpec {
    pub name: String,
    /// Fixed here when a test needs two guests of one UUID; random otherwise.
    pub uuid: uuid::Uuid,
    pub memory_mib: u64,
    /// Memory that is filled with a pattern and checked.
    pub fill_mib: u64,
    /// Memory written per second from the start on.
    pub dirty_mib_per_second: u64,
    pub disk: Option<Disk>,
    pub transient: bool,
    pub autostart: bool,
    /// Address on which its VNC listens; `None`: it has none.
    pub graphics: Option<std::net::Ipv4Addr>,
    /// Further elements of `<devices>`.
    pub devices: String,
}

impl GuestSpec {
    pub fn new(name: &str) -> GuestSpec {
        GuestSpec {
            name: name.to_string(),
            uuid: uuid::Uuid::new_v4(),
            memory_mib: 256,
            fill_mib: 32,
            dirty_mib_per_second: 0,
            disk: None,
            transient: false,
            autostart: false,
            graphics: None,
            devices: String::new(),
        }
    }

    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.memory_mib = mib;
        self
    }

    pub fn fill_mib(mut self, mib: u64) -> Self {
        self.fill_mib = mib;
        self
    }

    pub fn dirty_mib_per_second(mut self, rate: u64) -> Self {
        self.dirty_mib_per_second = rate;
        self
    }

    pub fn disk(mut self, disk: Disk) -> Self {
        self.disk = Some(disk);
        self
    }

    pub fn transient(mut self) -> Self {
        self.transient = true;
        self
    }

    pub fn autostart(mut self) -> Self {
        self.autostart = true;
        self
    }

    pub fn graphics(mut self, listen: std::net::Ipv4Addr) -> Self {
        self.graphics = Some(listen);
        self
    }

    pub fn devices(mut self, xml: &str) -> Self {
        self.devices = xml.to_string();
        self
    }

    /// The guest's MAC address, which follows from its number.
    pub fn mac(number: u8) -> String {
        format!("52:54:00:d2:0f:{number:02x}")
    }

    /// The domain's XML, as `virsh define` takes it.
    pub(crate) fn xml(&self, number: u8, image: &BootImage, accelerator: Accelerator) -> String {
        let (name, uuid, memory) = (&self.name, self.uuid, self.memory_mib);
        let disk = self.disk.as_ref().map_or(String::new(), |disk| disk.xml(name));
        let graphics = self.graphics.map_or(String::new(), |address| {
            format!(
                "<graphics type='vnc' port='-1' autoport='yes' listen='{address}'/><video><model type='none'/></video>"
            )
        });
        format!(
            "<domain type='{kind}'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><kernel>{kernel}</kernel><initrd>{initrd}</initrd>\
             <cmdline>{cmdline}</cmdline></os><features><acpi/><apic/></features>\
             {processor}\
             <clock offset='utc'/><on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot>\
             <on_crash>destroy</on_crash><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{disk}\
             <interface type='bridge'><mac address='{mac}'/><source bridge='br0'/><model type='virtio'/></interface>\
             <serial type='file'><source path='/var/log/libvirt/console/{name}.log' append='on'/></serial>\
             {graphics}<memballoon model='none'/>{random}<controller type='usb' model='none'/>{devices}</devices></domain>",
            devices = self.devices,
            kernel = image.kernel.display(),
            initrd = image.initrd.display(),
            cmdline = self.cmdline(number),
            mac = Self::mac(number),
            kind = accelerator.domain_type(),
            processor = accelerator.processor(),
            random = accelerator.random_device(),
        )
    }

    fn cmdline(&self, number: u8) -> String {
        let address = Network::Guests.address(number);
        let broadcast = Network::Guests.address(255);
        let (name, fill, dirty) = (&self.name, self.fill_mib, self.dirty_mib_per_second);
        let mut line = format!(
            "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check random.trust_cpu=on \
             drover.name={name} drover.ip={address}/24 drover.broadcast={broadcast} drover.fill={fill} drover.dirty={dirty}"
        );
        if self.disk.is_some() {
            let _ = write!(line, " drover.disk=/dev/vda");
        }
        line
    }
}

/// Makes a guest's disk, defines it on a host (or creates it, if transient) and starts it.
pub(crate) fn start(lab: &Lab, host: &Host, spec: &GuestSpec, number: u8) -> Result<()> {
    if let Some(disk) = &spec.disk {
        storage::make_image(lab, host, &spec.name, disk).with_context(|| format!("disk of {}", spec.name))?;
    }
    let path = lab.layout().folder().join(format!("{}.xml", spec.name));
    let image = image::boot_image()?;
    std::fs::write(&path, spec.xml(number, &image, Accelerator::find(&image)?))?;
    let path = path.display().to_string();
    if spec.transient {
        host.virsh(&["create", &path])?;
        return Ok(());
    }
    host.virsh(&["define", &path])?;
    if spec.autostart {
        host.virsh(&["autostart", &spec.name])?;
    }
    host.virsh(&["start", &spec.name])?;
    Ok(())
}
