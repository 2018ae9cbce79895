//! What a hypervisor tells of its host and its guests. Only data, and questions about it.

use drover_proto::ids::GuestId;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::guest_xml::HugePages;

/// Facts about a host.
#[derive(Clone, Debug, Default)]
pub struct HostFacts {
    /// libvirt's host UUID; two hosts with the same one refuse each other.
    pub uuid: Uuid,
    pub hostname: String,
    /// As libvirt counts: major * 1,000,000 + minor * 1,000 + release.
    pub libvirt_version: u64,
    pub qemu_version: u64,
    pub arch: String,
    pub cpus: u32,
    /// Bytes.
    pub memory_total: u64,
    /// Bytes that a new guest could take, page cache counted as free.
    pub memory_available: u64,
    /// Names of the machine types that each kind of domain (`kvm`, `qemu`) can have here.
    pub machines: Vec<MachineTypes>,
    /// Network bridges of this host.
    pub bridges: Vec<String>,
    /// libvirt networks that are active.
    pub networks: Vec<String>,
    /// The `<cpu>` element of libvirt's capabilities; empty where there is none.
    pub cpu_xml: String,
    /// Free huge pages, the default size first.
    pub huge_pages: Vec<HugePages>,
    /// Numbers of the NUMA nodes that have memory.
    pub numa_nodes: Vec<u32>,
    /// Numbers of the CPUs that are online.
    pub online_cpus: Vec<u32>,
    /// `none`, `lockd`, `sanlock`; `None` where nobody can say.
    pub lock_manager: Option<String>,
    /// Whether QEMU may catch page faults, which a destination in post-copy has to.
    pub user_faults: UserFaults,
}

/// The first libvirt that has QEMU's multifd compress: `VIR_MIGRATE_PARAM_COMPRESSION` "zstd" with `VIR_MIGRATE_PARALLEL`
/// (libvirt-domain.h: "Since: 9.4.0"; older ones know only `mt` and `xbzrle`, which exclude parallel connections).
const LIBVIRT_WITH_ZSTD: u64 = 9_004_000;

/// The first QEMU whose multifd does (commit 87dc6f5). One that was built without zstd says so in Prepare.
const QEMU_WITH_ZSTD: u64 = 5_000_000;

/// The first libvirt that looks for zeros in copied disks: `VIR_MIGRATE_PARAM_MIGRATE_DISKS_DETECT_ZEROES` (its NEWS of
/// 10.9.0, "zero block detection for non-shared-storage migration"). Older ones refuse a parameter that they do not know.
const LIBVIRT_THAT_DETECTS_ZEROES: u64 = 10_009_000;

impl HostFacts {
    /// Whether libvirt can be told not to send blocks of zeros of copied disks.
    pub fn detects_zeroes(&self) -> bool {
        self.libvirt_version >= LIBVIRT_THAT_DETECTS_ZEROES
    }

    /// Whether memory can be sent from here, and received, compressed by zstd.
    pub fn knows_zstd(&self) -> bool {
        self.libvirt_version >= LIBVIRT_WITH_ZSTD && self.qemu_version >= QEMU_WITH_ZSTD
    }
}

/// Who may use userfaultfd on a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UserFaults {
    /// Nobody could say.
    #[default]
    Unknown,
    /// Every process, or QEMU is root.
    Anybody,
    /// Whoever may open /dev/userfaultfd, and QEMU's user may.
    ByDevice,
    Nobody,
}

#[derive(Clone, Debug, Default)]
pub struct MachineTypes {
    /// `kvm`, `qemu`.
    pub domain_type: String,
    pub arch: String,
    pub names: Vec<String>,
}

/// What a host knows of a guest.
#[derive(Clone, Debug)]
pub struct GuestFacts {
    pub id: GuestId,
    pub name: String,
    pub state: GuestState,
    pub persistent: bool,
    pub autostart: bool,
    /// The live definition with security-sensitive parts left out; the persistent one where it is shut off.
    pub xml: String,
    /// The persistent definition, complete (VIR_DOMAIN_XML_SECURE); `None` for a transient guest.
    pub inactive_xml: Option<String>,
    /// Bytes.
    pub memory: u64,
    pub vcpus: u32,
    pub snapshots: u32,
    /// What tools that make backups leave; like snapshots known on this host alone.
    pub checkpoints: u32,
    /// Its memory was saved by libvirt when it was shut off; on this host alone.
    pub managed_save: bool,
    /// `None` while it is shut off.
    pub incarnation: Option<Incarnation>,
}

/// One life of a guest on one host: a command that was meant for it touches no other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incarnation {
    /// /proc/sys/kernel/random/boot_id.
    pub boot_id: Uuid,
    pub qemu_pid: u32,
    /// Clock ticks since boot (field 22 of /proc/PID/stat).
    pub qemu_start_time: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestState {
    Running,
    /// Runs while pages are still missing (destination in post-copy).
    RunningPostCopy,
    /// Runs, and the stream that brings its missing pages is broken.
    RunningPostCopyFailed,
    /// By a user or a tool.
    Paused,
    /// By a migration: all is sent, or it is still being received.
    PausedMigrating,
    /// The source in post-copy.
    PausedPostCopy,
    PausedPostCopyFailed,
    /// By an I/O error, a watchdog, a crash: not by anybody's wish.
    PausedFault,
    ShuttingDown,
    Crashed,
    ShutOff,
}

impl GuestFacts {
    /// What of it libvirt keeps on this host alone: a guest that is shut off cannot leave that behind.
    pub fn kept_here(&self) -> Option<KeptHere> {
        match self {
            Self { managed_save: true, .. } => Some(KeptHere::Memory),
            Self { snapshots: 1.., .. } => Some(KeptHere::Snapshots(self.snapshots)),
            Self { checkpoints: 1.., .. } => Some(KeptHere::Checkpoints(self.checkpoints)),
            Self { .. } => None,
        }
    }
}

/// Something that libvirt knows on one host alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptHere {
    Memory,
    Snapshots(u32),
    Checkpoints(u32),
}

impl std::fmt::Display for KeptHere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Memory => write!(f, "libvirt keeps the memory of the guest, saved on this host alone"),
            Self::Snapshots(count) => {
                write!(
                    f,
                    "the guest has {count} snapshots, which libvirt knows on this host alone"
                )
            }
            Self::Checkpoints(count) => {
                write!(
                    f,
                    "the guest has {count} checkpoints, which libvirt knows on this host alone"
                )
            }
        }
    }
}

impl KeptHere {
    /// What a person can do about it.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Memory => "start it and shut it down, or give up what was saved: `virsh managedsave-remove`",
            Self::Snapshots(_) => "delete its snapshots",
            Self::Checkpoints(_) => {
                "end the chain of incremental backups: start the guest, `virsh checkpoint-delete GUEST NAME --children`, \
                 and shut it down; or only have libvirt forget them: the same with `--metadata`"
            }
        }
    }
}

impl GuestState {
    /// Whether the guest's CPUs execute.
    pub fn runs(self) -> bool {
        match self {
            Self::Running | Self::RunningPostCopy | Self::RunningPostCopyFailed | Self::ShuttingDown => true,
            Self::Paused
            | Self::PausedMigrating
            | Self::PausedPostCopy
            | Self::PausedPostCopyFailed
            | Self::PausedFault
            | Self::Crashed
            | Self::ShutOff => false,
        }
    }

    /// Whether there is a QEMU process with the guest's memory.
    pub fn is_active(self) -> bool {
        !matches!(self, Self::ShutOff)
    }

    /// Whether this is one of the states in which the memory lies on two hosts and neither may be destroyed.
    pub fn is_post_copy(self) -> bool {
        match self {
            Self::RunningPostCopy | Self::RunningPostCopyFailed | Self::PausedPostCopy | Self::PausedPostCopyFailed => {
                true
            }
            Self::Running
            | Self::Paused
            | Self::PausedMigrating
            | Self::PausedFault
            | Self::ShuttingDown
            | Self::Crashed
            | Self::ShutOff => false,
        }
    }
}

/// Can this host run that CPU? Taken from the guest's live XML.
#[derive(Clone, Debug, Default)]
pub struct CpuQuestion {
    /// `kvm`, `qemu`.
    pub domain_type: String,
    pub arch: String,
    pub machine: String,
    /// The `<cpu>` element of the live XML; `None` where it has none.
    pub cpu_xml: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuAnswer {
    Fits,
    /// What is missing, in libvirt's words where it names it.
    Lacks(String),
    /// Nobody can compare it (a CPU passed through, an architecture without comparison), and why.
    Unknown(String),
}
