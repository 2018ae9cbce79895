//! A small model of one migration, explored exhaustively: both journals, both libvirts, the controller's looks and
//! every message that was ever sent, which may arrive late, twice, or never.
//!
//! What decides is not modelled but called: the journals' transitions ([`drover_agent::journal::state`]), the reading
//! of an agent's answer ([`drover_controller::seen`]), the verdict ([`drover_controller::verdict`]) and the saga
//! ([`drover_controller::saga`]). What is modelled is what lies around it: in which order an agent writes and acts,
//! what libvirt does with a connection that goes, what a controller knows when it asks.
//!
//! ```text
//!  source.rs   its libvirt, agent and journal        ┐
//!  destination.rs  the same, other side              ├─ state.rs ──▶ explore.rs: breadth first, every successor
//!  controller.rs   saga, looks, commands             ┘
//!  rules.rs    safety rules that can be left out: then the search must find what they prevent
//! ```
//!
//! Left out: disks, leases and terms, a second attempt, post-copy, paused guests.

mod controller;
mod destination;
pub mod explore;
pub mod rules;
mod source;
pub mod state;
