//! The whole controller, asked over its API, with agents that the test controls.

mod agent;
mod api;
mod faults;
mod lab;
mod moves;
mod overrides;
mod pki;
mod resolve;
mod restored;
mod rules;
mod watches;
mod world;
