//! The whole controller, asked over its API, with agents that the test controls.

mod adjust;
mod afterwards;
mod agent;
mod api;
mod checks;
mod compression;
mod connections;
mod estimates;
mod faults;
mod identities;
mod lab;
mod lists;
mod log;
mod moves;
mod overrides;
mod pages;
mod pki;
mod redial;
mod resolve;
mod restored;
mod rules;
mod starting;
mod waiting;
mod watches;
mod world;
mod zeroes;
