//! The seam to the hypervisor: what Drover needs of a host, in Drover's own words.
//!
//! `libvirt/` implements it on a real host, `sim/` in memory. No libvirt type crosses it, nothing in it
//! blocks, and it decides nothing: who may run a guest is the journal's business (`journal`, `jobs/`).
//!
//! Promise of every call: `Ok` means it is so; `Err` with [`ErrorClass::Ambiguous`] means nobody knows,
//! and the caller has to look before it acts.

mod copied;
mod facts;

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use drover_proto::ids::GuestId;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

pub use copied::CopiedDisks;
pub use facts::{
    CpuAnswer, CpuQuestion, GuestFacts, GuestState, HostFacts, Incarnation, KeptHere, MachineTypes, UserFaults,
};

pub type Result<T> = std::result::Result<T, HypervisorError>;

/// One host's hypervisor.
#[async_trait]
pub trait Hypervisor: Send + Sync + 'static {
    /// Facts about the host that a guest's needs are compared with.
    async fn host(&self) -> Result<HostFacts>;

    /// Every guest the host knows, running or only defined.
    async fn guests(&self) -> Result<Vec<GuestFacts>>;

    /// One guest; `None` is evidence that the host does not know it.
    async fn guest(&self, guest: GuestId) -> Result<Option<GuestFacts>>;

    /// One guest by its name on this host.
    async fn guest_by_name(&self, name: &str) -> Result<Option<GuestFacts>>;

    /// Whether this host can give a guest the CPU it has now.
    async fn cpu_fits(&self, question: &CpuQuestion) -> Result<CpuAnswer>;

    /// The libvirt job that runs on the guest now, if any.
    async fn job(&self, guest: GuestId) -> Result<Option<JobStats>>;

    /// Targets of the guest's disks on which a block job runs.
    async fn block_jobs(&self, guest: GuestId) -> Result<Vec<String>>;

    /// How much of a running guest's memory changes within a window (whole seconds, 1 to 60), by looking at a part of its
    /// pages before and after. Nothing is changed, and where nobody waits for the answer it ends by itself. One that
    /// somebody else has begun is waited for, and counts.
    async fn sample_writes(&self, guest: GuestId, window: Duration) -> Result<WriteSample>;

    /// The statistics of the guest's migration that completed last: on the destination after Finish, with the
    /// blackout as libvirt measured it (to the end of Finish, before `resume`). The source has them only as
    /// [`Happened::JobCompleted`], which comes with Confirm.
    async fn completed_job(&self, guest: GuestId) -> Result<Option<JobStats>>;

    /// Lets a paused guest run; done when it runs. An image that its QEMU may not open any more is made accessible
    /// again, where that can be done without root. Never called without a verdict that this copy may.
    async fn resume(&self, guest: GuestId) -> Result<()>;

    /// Starts a guest that is only defined, in a new life; done when it is active already. Never called without a
    /// verdict that it belongs to this host.
    async fn start(&self, guest: GuestId) -> Result<()>;

    /// Asks a guest that runs to shut itself down: by its guest agent where it has one, else by ACPI. It may not heed
    /// that, and takes its time. Done when it is off already.
    async fn shut_down(&self, guest: GuestId) -> Result<()>;

    /// Stops a guest's CPUs; allowed at any time. Done when it is already still.
    async fn suspend(&self, guest: GuestId) -> Result<()>;

    /// Sets whether the guest is started with its host. Absent guest: `NoGuest`.
    async fn set_autostart(&self, guest: GuestId, autostart: bool) -> Result<()>;

    /// Makes or replaces the guest's persistent definition.
    async fn define(&self, inactive_xml: &str) -> Result<()>;

    /// Forgets the persistent definition; a running guest becomes transient. Absent is done.
    async fn undefine(&self, guest: GuestId) -> Result<()>;

    /// Begin3 on the source: takes the job lock and holds it on a connection of its own.
    async fn begin(&self, request: BeginRequest) -> Result<Box<dyn Outgoing>>;

    /// On the source: takes over what a former process left of a migration whose stream broke in post-copy, to confirm
    /// it and nothing else. Refused where there is none.
    async fn take_up(&self, request: BeginRequest) -> Result<Box<dyn Outgoing>>;

    /// Prepare3 on the destination: a QEMU that waits, paused, on a connection of its own.
    async fn prepare(&self, request: PrepareRequest) -> Result<Box<dyn Incoming>>;

    /// Events of all guests from now on. A slow reader loses the oldest ones (`Lagged`) and must look.
    fn events(&self) -> broadcast::Receiver<GuestEvent>;
}

/// The source's side of one migration, from Begin to Confirm. Dropping it closes the connection: libvirt then
/// cancels a migration that is still sending and leaves the guest running; one that was all sent stays paused.
#[async_trait]
pub trait Outgoing: Send + Sync {
    /// What Begin gave: the XML for the destination and the cookie for Prepare.
    fn begun(&self) -> &Begun;

    /// Perform3: sends disks and memory; returns when all is sent and the guest's CPUs are still
    /// (with post-copy: as soon as the switch was made). May take hours. With [`MigrateFlags::resume`] QEMU was only told
    /// when it returns: the guest's state shows when it has connected.
    async fn perform(&self, request: PerformRequest) -> Result<Cookie>;

    /// Makes a running `perform` fail; the guest stays here and runs. Refused in post-copy.
    async fn abort(&self) -> Result<()>;

    /// Tells a running `perform` to go post-copy, where [`MigrateFlags::post_copy`] allows it: the guest stops here, and
    /// once Finish was called it runs at the destination while its memory follows. `Ok` says that QEMU was told;
    /// `perform` returns when it has switched.
    async fn start_post_copy(&self) -> Result<()>;

    /// The statistics of the job as it runs.
    async fn job(&self) -> Result<Option<JobStats>>;

    /// The totals of what was sent, once `perform` has returned. Their downtime is QEMU's own on this side; the
    /// whole one is known on the destination ([`Hypervisor::completed_job`]).
    async fn completed_job(&self) -> Result<Option<JobStats>>;

    /// The longest blackout QEMU may choose by itself.
    async fn set_max_downtime(&self, max: Duration) -> Result<()>;

    /// Bandwidth in bytes/s. libvirt counts MiB/s: it is rounded up to the next whole one.
    async fn set_bandwidth(&self, bytes_per_second: u64) -> Result<()>;

    /// Confirm3(0): the destination has it, this copy goes away. The one way to remove a source copy.
    async fn confirm_moved(&self, cookie: &Cookie) -> Result<()>;

    /// Confirm3(1): the migration did not happen. libvirt resumes a guest that it paused itself;
    /// the caller reads the state afterwards and restores what it was before.
    async fn confirm_cancelled(&self) -> Result<()>;
}

/// The destination's side of one migration, from Prepare to Finish. Dropping it before Finish destroys the
/// waiting copy (libvirt's auto-destroy).
#[async_trait]
pub trait Incoming: Send + Sync {
    /// The cookie for Perform.
    fn cookie(&self) -> &Cookie;

    /// Finish3(0): waits for QEMU, persists the guest. Without [`MigrateFlags::post_copy`] the guest is
    /// still afterwards and must be resumed. **At most once per Prepare, and never after a failure.**
    async fn finish(&self, cookie: &Cookie) -> Result<Cookie>;

    /// Finish3(cancelled=1): the waiting copy goes away. Only for a copy that was never told to finish.
    async fn cancel(&self) -> Result<()>;
}

/// libvirt's opaque bytes, passed from one side to the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cookie(pub Vec<u8>);

/// What all five calls of one migration must agree on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrateFlags {
    /// The guest has a persistent definition on the source: it moves along and is removed there.
    pub persistent: bool,
    /// The migration may go post-copy; then Finish starts the guest by itself.
    pub post_copy: bool,
    /// libvirt may slow the guest's CPUs down so that it converges.
    pub auto_converge: bool,
    /// Sharing of the disks was proved by Drover: libvirt's own guess by file system type is overruled.
    pub storage_proved: bool,
    /// Connections for memory; 0 is one plain channel, 1 and more use multifd.
    pub parallel: u32,
    /// Memory is compressed by zstd, which only multifd does.
    #[serde(default)]
    pub zstd: bool,
    /// Disks that are copied while the guest runs; `None` where all are shared.
    #[serde(default)]
    pub copied: Option<CopiedDisks>,
    /// Of these disks blocks of zeros are not sent as data.
    #[serde(default)]
    pub detect_zeroes: bool,
    /// All five calls are made once more, for a post-copy whose stream broke: both copies are there and stay, and what is
    /// missing is sent. Never in a journal.
    #[serde(default)]
    pub resume: bool,
}

impl MigrateFlags {
    /// The same migration, whose stream broke in post-copy.
    pub fn resuming(&self) -> Self {
        Self {
            resume: true,
            ..self.clone()
        }
    }
}

#[derive(Clone, Debug)]
pub struct BeginRequest {
    pub guest: GuestId,
    pub flags: MigrateFlags,
}

#[derive(Clone, Debug, Default)]
pub struct Begun {
    /// The live definition, as the destination may be given it.
    pub xml: String,
    pub cookie: Cookie,
}

#[derive(Clone, Debug)]
pub struct PrepareRequest {
    pub guest: GuestId,
    pub name: String,
    /// The live definition, adapted for this host.
    pub xml: String,
    /// The persistent definition, adapted for this host; `None` for a transient guest.
    pub persistent_xml: Option<String>,
    pub cookie: Cookie,
    pub flags: MigrateFlags,
    /// Unix socket on which the waiting QEMU listens for memory.
    pub socket: std::path::PathBuf,
    /// Unix socket on which it listens for copied disks; not used where none are.
    pub disks_socket: std::path::PathBuf,
}

#[derive(Clone, Debug)]
pub struct PerformRequest {
    pub cookie: Cookie,
    /// Unix socket of this agent that QEMU connects to, once for each channel.
    pub socket: std::path::PathBuf,
    /// Another one, for copied disks: QEMU connects once for each; not used where none are.
    pub disks_socket: std::path::PathBuf,
    /// The persistent definition for the destination; `None` for a transient guest.
    pub persistent_xml: Option<String>,
    /// Bytes/s; 0 is no limit.
    pub bandwidth: u64,
    pub max_downtime: Option<Duration>,
    /// How far the guest is slowed down, where [`MigrateFlags::auto_converge`] allows it.
    pub throttle: Throttle,
}

/// By how much auto-converge slows a guest down at first, and by how much more each time; percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttle {
    pub initial: u32,
    pub increment: u32,
}

/// What a guest wrote while it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteSample {
    pub window: Duration,
    /// Bytes that were different at the end of the window.
    pub changed: u64,
    /// Bytes of the host's memory that its process takes; none where libvirt does not say.
    pub resident: Option<u64>,
}

/// Progress of a job. Zero where the hypervisor does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStats {
    pub elapsed: Duration,
    /// Bytes of memory: all of it, sent so far, still to send (dirtied again included).
    pub memory_total: u64,
    pub memory_processed: u64,
    pub memory_remaining: u64,
    /// Bytes/s at which it is being sent.
    pub bandwidth: u64,
    /// Bytes/s; libvirt's pages/s times its page size.
    pub dirty_rate: u64,
    /// Pre-copy rounds so far.
    pub iteration: u64,
    /// Percent by which auto-converge slows the guest down.
    pub throttle: u32,
    /// The blackout to expect if it switched now; after completion the one libvirt measured.
    pub downtime: Option<Duration>,
    /// Page faults that the destination asked for in post-copy.
    pub post_copy_requests: u64,
    /// Bytes of disks.
    pub disk_total: u64,
    pub disk_processed: u64,
    pub disk_remaining: u64,
    /// Each of them, as far as its copy has begun. Of the moment only: nobody writes it down.
    #[serde(skip)]
    pub disks: Vec<DiskCopy>,
}

/// How far the copy of one disk is. Bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskCopy {
    /// Its target, or the path of a file.
    pub disk: String,
    /// Grows where the guest writes to what was copied already.
    pub total: u64,
    pub remaining: u64,
}

/// What happened to a guest.
#[derive(Clone, Debug)]
pub struct GuestEvent {
    pub guest: GuestId,
    pub at: SystemTime,
    /// Of the same moment, for durations.
    pub instant: std::time::Instant,
    pub what: Happened,
}

#[derive(Clone, Debug)]
pub enum Happened {
    Started,
    Resumed,
    /// Its CPUs stopped; whether a migration did it.
    Suspended {
        by_migration: bool,
    },
    Stopped(StopReason),
    /// A pre-copy round began.
    Iteration(u64),
    JobCompleted(JobStats),
    /// Anything else worth a look.
    Changed,
}

/// Why a guest stopped, as libvirt says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// By itself, or by its user's wish.
    Shutdown,
    Destroyed,
    Crashed,
    /// It moved away.
    Migrated,
    Failed,
    Other,
}

/// Why the hypervisor did not do it, with what it said.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message} ({code})")]
pub struct HypervisorError {
    pub class: ErrorClass,
    /// libvirt's name of the error (`VIR_ERR_OPERATION_INVALID`), or one of ours.
    pub code: String,
    pub message: String,
}

impl HypervisorError {
    /// libvirt has refused it, did nothing, and would refuse it again.
    pub fn is_certain(&self) -> bool {
        match self.class {
            ErrorClass::UserMustAct | ErrorClass::Unfit => true,
            ErrorClass::Ambiguous
            | ErrorClass::NoGuest
            | ErrorClass::Busy
            | ErrorClass::Aborted
            | ErrorClass::Unavailable => false,
        }
    }
}

/// What a caller may conclude (`facts/libvirt.md` §6). Codes alone do not classify after Perform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// Nobody knows whether it happened: look at both ends first.
    Ambiguous,
    /// The host does not know this guest.
    NoGuest,
    /// A lock or resource is taken: again later.
    Busy,
    /// This host cannot; another one may.
    Unfit,
    /// A person has to change something.
    UserMustAct,
    /// Somebody cancelled the job.
    Aborted,
    /// libvirt does not answer.
    Unavailable,
}
