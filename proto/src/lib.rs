//! All that two Drover processes must agree on: the messages, ids, identities, TLS, the table of errors, and how
//! a trace goes from one process to the next.

pub mod ids;

/// The public API, as in `proto/drover/v1`.
#[allow(clippy::all, clippy::pedantic, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("drover.v1");
}

/// What the controller and the agents tell each other, as in `proto/drover/agent/v1`.
#[allow(clippy::all, clippy::pedantic, unreachable_pub)]
pub mod agent {
    pub mod v1 {
        tonic::include_proto!("drover.agent.v1");
    }
}

/// Descriptors of all messages and services, for reflection and for the test of the authorization table.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/drover.bin"));
