//! The whole of Drover in one process: a real controller and two real agents, with gRPC, mTLS, tunnel and journals
//! between them, over hosts that exist in memory ([`drover_agent::sim`]).
//!
//! ```text
//!  user ──▶ controller ──[link]──▶ agent of host-a ══[link]══▶ agent of host-b
//!               │  ▲                   │ gate                     │ gate
//!             store └─────[link]───────┴──────────────────────────┘
//!                                   SimHost a                  SimHost b   ── one watch: never two, never stale
//! ```
//!
//! Each process has a runtime of its own that can be ended in the middle of whatever it does; each link can be cut;
//! at every RPC and every call to the hypervisor ([`point::Point`]) somebody is asked what is to go wrong there.
//! [`plan`] says what goes wrong, [`case`] runs one such world to its rest, [`invariants`] says what must be true then.

pub mod case;
pub mod deeds;
pub mod director;
pub mod fault;
pub mod folder;
pub mod invariants;
pub mod link;
pub mod matrix;
pub mod model;
pub mod pairs;
pub mod pki;
pub mod plan;
pub mod point;
pub mod process;
pub mod random;
pub mod runner;
mod wish;
pub mod world;
