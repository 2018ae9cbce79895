//! The lab that proves Drover: real libvirtd and QEMU on several "hosts" of one machine, guests that notice every
//! wrong byte, and eyes outside the guests that notice when a guest stands still or runs twice.
//!
//! ```text
//!   control ── mgmt0 ┬─────────┬───────── nfs        10.77.0.0/24, management (bridge in `control`)
//!                 host-a    host-b                   libvirtd, QEMU, agents
//!   client  ── br0 ──┴─────────┴─ br0 ─ guests       10.78.0.0/24, guests (bridge in `client`)
//! ```
//!
//! Start with [`Lab::builder`]; [`Guest`] for what runs in it; [`Watch`] for what is seen from outside. The lab is
//! synchronous: waits are bounded, and say which log to read when they end badly.

mod accelerator;
mod bad_cable;
pub mod bench;
pub mod cluster;
mod domain;
pub mod faults;
pub mod figures;
pub mod foreign;
mod guardian;
mod guest;
mod host;
mod image;
pub mod inside;
mod inspect;
pub mod interference;
mod lab;
mod layout;
mod libvirtd;
mod loop_device;
mod namespaces;
mod network;
mod node;
mod peer;
mod process;
mod qemu_tls;
mod storage;
pub mod storage_bench;
pub mod trace;
pub mod watch;

pub use bad_cable::BadCable;
pub use domain::{Disk, GuestSpec};
pub use guest::{Guest, GuestStatus, Load, Pattern};
pub use host::{Daemon, Host};
pub use inspect::Domain;
pub use lab::{Lab, LabBuilder};
pub use layout::{GuestRecord, LabRecord, Layout};
pub use loop_device::LoopDevice;
pub use network::{Link, Network};
pub use node::Node;
pub use peer::VirshOutcome;
pub use process::{Output, run, wait_until};
pub use watch::{Watch, WatchReport};
