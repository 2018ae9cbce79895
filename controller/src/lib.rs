//! The controller: sequences migrations and keeps their record. Read `saga` first.

pub mod adjust;
pub mod adoption;
pub mod agents;
pub mod config;
pub mod executor;
pub mod hub;
pub mod inventory;
pub mod ledger;
pub mod local;
pub mod metrics;
pub mod office;
pub mod phases;
pub mod policy;
pub mod progress;
pub mod recovery;
pub mod registry;
pub mod restored;
pub mod saga;
pub mod seen;
pub mod server;
pub mod service;
pub mod state;
pub mod store;
pub mod trace;
pub mod verdict;
pub mod view;
