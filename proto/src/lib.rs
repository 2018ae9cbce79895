//! All that two Drover processes must agree on: the messages, ids, identities, TLS, the table of errors, and how
//! a trace goes from one process to the next.

pub mod authorization;
pub mod channel;
pub mod deadline;
mod expiry;
pub mod explain;
pub mod failure;
pub mod fault_points;
pub mod identity;
pub mod identity_patterns;
pub mod ids;
mod log;
pub mod overrides;
pub mod reason;
pub mod roles;
pub mod serve;
pub mod telemetry;
pub mod time;
pub mod tls;
mod tls_material;
mod tls_reload;
pub mod trace;
mod trace_layer;
pub mod units;
pub mod versions;

#[cfg(test)]
mod test_pki;

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

/// Largest message that a Drover server or client decodes, in bytes. The largest in use is a guest's XML with its
/// cookie, well under 1 MiB.
pub const MAX_DECODING_MESSAGE_BYTES: usize = 4 * 1024 * 1024;

/// Largest message that a Drover server or client encodes, in bytes: what no peer would decode is not sent.
pub const MAX_ENCODING_MESSAGE_BYTES: usize = MAX_DECODING_MESSAGE_BYTES;
