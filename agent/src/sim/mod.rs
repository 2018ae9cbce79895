//! A hypervisor in memory: real agents, gRPC, TLS, tunnel and spans above it, no libvirt and no QEMU below.
//!
//! ```text
//! SimWorld ── the watch: which copies run where; remembers every moment at which it was wrong
//!    └── SimHost (one per host; plays libvirtd: outlives the agents that use it)
//!           └── Domain: a guest's copy, its definition, its job
//! Outgoing ── sender ──▶ unix socket of the agent ═ tunnel ═▶ unix socket ── receiver ── Incoming
//! ```
//!
//! Promise: the five calls fail as libvirt's do (`facts/libvirt.md` §2), on tokio's time. Memory really crosses the
//! sockets, so a broken tunnel breaks a simulated migration. In post-copy the guest runs at the destination while its
//! pages follow, and Finish returns with the last of them; a stream that breaks then leaves both sides waiting.

mod calls;
mod config;
mod disks;
mod domain;
mod error;
mod fault;
mod host;
mod incoming;
mod outgoing;
mod post_copy;
mod receiver;
mod sender;
mod state;
mod stream;
mod transitions;
mod watch;
mod world;

#[cfg(test)]
mod tests;

pub use config::{SimConfig, SimGuest};
pub use fault::{Call, Fault};
pub use host::SimHost;
pub use watch::{Violation, Wrong};
pub use world::SimWorld;
