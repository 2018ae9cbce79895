//! The tunnel: carries QEMU's streams between two agents, each channel in a TLS connection of its own.
//!
//! ```text
//!  source host                                                destination host
//!  QEMU ──unix──▶ Source ══ TLS 1.3, drover-data/1 ══▶ Destination ──unix──▶ QEMU
//!                   │  hello: migration, attempt, ticket, kind, index ▶ │
//!                   │ ◀ accepted, or a refusal with its reason          │
//!                   │ ◀──────────── raw bytes, both ways ─────────────▶ │
//! ```
//!
//! The files of a guest that is shut off go from agent to agent, over a channel of the same kind (`offline`).
//!
//! Promises: the main channel is connected to the destination's QEMU before any other memory channel; the end of
//! one direction leaves the other open; an end is passed on as an end only if the sender announced it, anything
//! else cuts the channel on both sides; nobody gets to QEMU without the ticket and the identity it was made for.

mod carrier;
pub mod destination;
mod entry;
pub mod error;
pub mod hello;
pub mod pace;
mod refusals;
mod relay;
mod session;
pub mod socket;
pub mod source;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use carrier::Carrier;
pub use destination::{Destination, Registration, Waiting};
pub use error::{Refusal, TunnelError};
pub use pace::Pace;
pub use source::{ChannelPlan, HelloTemplate, Source, SourceOptions};

/// Bytes that went through, all channels together; grows only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// From the unix socket to the other agent.
    pub sent: u64,
    /// From the other agent to the unix socket.
    pub received: u64,
}

/// The counters behind [`Bytes`], shared by the channels.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters(Arc<(AtomicU64, AtomicU64)>);

impl Counters {
    fn add_sent(&self, bytes: usize) {
        self.0.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn add_received(&self, bytes: usize) {
        self.0.1.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn read(&self) -> Bytes {
        Bytes {
            sent: self.0.0.load(Ordering::Relaxed),
            received: self.0.1.load(Ordering::Relaxed),
        }
    }
}
