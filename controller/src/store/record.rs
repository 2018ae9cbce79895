//! What the store keeps, as types. Nothing here decides.

use std::collections::BTreeMap;
use std::time::SystemTime;

use drover_proto::agent::v1::Incarnation;
use drover_proto::ids::{Attempt, GuestId, HostId, MigrationId};
use drover_proto::time::{from_unix_micros, unix_micros};
use drover_proto::trace::{SpanId, TraceId};
use drover_proto::v1;
use prost::bytes::Bytes;
use uuid::Uuid;

use crate::saga::{Phase, Position};
use crate::verdict::Side;

/// Now, as precise as the store keeps times.
pub fn now() -> SystemTime {
    from_unix_micros(unix_micros(SystemTime::now()))
}

/// Which controller is in office: goes with every command to an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    pub number: u64,
    /// Random, made with the number: two databases that count alike are told apart.
    pub instance: Uuid,
}

/// One migration.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub id: MigrationId,
    /// Counts the writes; each names the one that it has read.
    pub generation: u64,
    pub request: Option<RequestKey>,
    pub guest: GuestId,
    /// Empty until the source has told it.
    pub guest_name: String,
    pub source: HostId,
    pub destination: HostId,
    pub labels: BTreeMap<String, String>,
    /// SPIFFE URI.
    pub requested_by: String,
    pub position: Position,
    /// The phase it is in, or was in last.
    pub phase: Phase,
    /// For lists: follows from the rest (`state::of`).
    pub state: v1::MigrationState,
    pub attempt: Attempt,
    /// Missing answers in a row.
    pub unknowns: u32,
    pub cancel_requested: Option<SystemTime>,
    /// The cancellation came when the guest belonged to the destination.
    pub too_late: bool,
    /// Where the guest is; none where nobody knows.
    pub guest_host: Option<HostId>,
    /// The life of the guest that was validated.
    pub incarnation: Option<Incarnation>,
    pub prepared: Option<Prepared>,
    /// An operator's word that one of the hosts is fenced.
    pub resolution: Option<Resolution>,
    pub trace: Trace,
    pub created: SystemTime,
    pub started: Option<SystemTime>,
    /// When the first attempt at Transfer began: the caller's deadline counts from it.
    pub transfer_started: Option<SystemTime>,
    pub ended: Option<SystemTime>,
    pub updated: SystemTime,
    /// What is only read as a whole; other fields of the message are unset.
    pub details: Details,
}

/// The part of a record that nothing is decided by, as it goes into the API.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    pub policy: Option<v1::MigrationPolicy>,
    pub destination_overrides: Option<v1::DestinationOverrides>,
    pub waiting_for: Option<v1::WaitingFor>,
    pub error: Option<v1::MigrationError>,
    pub progress: Option<v1::Progress>,
    pub summary: Option<v1::TransferSummary>,
    pub calls: Vec<v1::CallRecord>,
    pub iterations: Vec<v1::IterationRecord>,
    pub actions: Vec<v1::ActionRecord>,
    pub checks: Vec<v1::Check>,
    /// What is done with each disk, as Validate decided it.
    pub disks: Vec<v1::DiskPlan>,
    /// Somebody asked that the guest be stopped so that the transfer finishes.
    pub pause_and_finish_requested: Option<prost_types::Timestamp>,
    /// Set by Validate where the guest is shut off and moves so.
    pub offline_plan: Option<v1::OfflinePlan>,
    /// What was expected of the transfer before it began.
    pub estimate: Option<v1::Estimate>,
    /// Somebody asked for post-copy at once.
    pub post_copy_requested: Option<prost_types::Timestamp>,
    /// How many connections carry its memory, as Validate chose it.
    pub connections: Option<v1::ChosenConnections>,
    /// Whether its memory is compressed, as Validate chose it.
    pub compression: Option<v1::ChosenCompression>,
}

impl Details {
    /// As a message, for the store.
    pub(crate) fn message(&self) -> v1::Migration {
        let own = self.clone();
        v1::Migration {
            policy: own.policy,
            destination_overrides: own.destination_overrides,
            waiting_for: own.waiting_for,
            error: own.error,
            progress: own.progress,
            summary: own.summary,
            calls: own.calls,
            iterations: own.iterations,
            actions: own.actions,
            checks: own.checks,
            disks: own.disks,
            pause_and_finish_request_time: own.pause_and_finish_requested,
            offline_plan: own.offline_plan,
            estimate: own.estimate,
            post_copy_request_time: own.post_copy_requested,
            connections: own.connections,
            compression: own.compression,
            ..v1::Migration::default()
        }
    }

    pub(crate) fn from_message(message: v1::Migration) -> Self {
        Self {
            policy: message.policy,
            destination_overrides: message.destination_overrides,
            waiting_for: message.waiting_for,
            error: message.error,
            progress: message.progress,
            summary: message.summary,
            calls: message.calls,
            iterations: message.iterations,
            actions: message.actions,
            checks: message.checks,
            disks: message.disks,
            pause_and_finish_requested: message.pause_and_finish_request_time,
            offline_plan: message.offline_plan,
            estimate: message.estimate,
            post_copy_requested: message.post_copy_request_time,
            connections: message.connections,
            compression: message.compression,
        }
    }
}

/// What makes a repeated request the same one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestKey {
    pub id: Uuid,
    /// All that was asked for, in one canonical spelling.
    pub content: Vec<u8>,
}

/// What the destination gave for the transfer. The ticket is good only in the hands of the source's agent.
#[derive(Clone, PartialEq, Eq)]
pub struct Prepared {
    pub ticket: Bytes,
    pub cookie: Bytes,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Prepared(…)")
    }
}

/// An operator's word that a host is fenced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    pub fenced: Side,
    /// SPIFFE URI.
    pub operator: String,
    pub time: SystemTime,
    /// When the agent of that host had adopted it.
    pub adopted: Option<SystemTime>,
    /// A copy ran there all the same.
    pub copy_ran: bool,
}

/// The trace of a migration; its root span is written at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    pub id: TraceId,
    pub root: SpanId,
    /// The caller's span.
    pub parent: Option<SpanId>,
}

/// One attempt at one phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Counts from 1 within the migration.
    pub number: u32,
    pub phase: Phase,
    /// Counts from 1 within the phase.
    pub attempt: u32,
    pub span: SpanId,
    pub started: SystemTime,
    /// None while it goes on.
    pub end: Option<(SystemTime, StepOutcome)>,
    /// For people.
    pub detail: String,
}

/// The end of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepEnd {
    pub number: u32,
    pub ended: SystemTime,
    pub outcome: StepOutcome,
    pub detail: String,
}

/// How a step came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepOutcome {
    Done,
    Refused,
    Unknown,
    /// Lost with its controller, or left for a cancellation.
    Interrupted,
}

impl StepOutcome {
    pub const ALL: [Self; 4] = [Self::Done, Self::Refused, Self::Unknown, Self::Interrupted];

    /// The word in the store and in traces.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Something that watchers must not miss.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Given by the store; rises within a migration.
    pub sequence: u64,
    pub time: SystemTime,
    pub what: v1::watch_migration_response::Event,
}

/// Which migrations to list; everything that is set must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub state: Option<v1::MigrationState>,
    pub guest: Option<GuestId>,
    pub source: Option<HostId>,
    pub destination: Option<HostId>,
    pub labels: BTreeMap<String, String>,
}

impl Record {
    /// The side of which an operator has said that it is fenced.
    pub fn fenced(&self) -> Option<Side> {
        self.resolution.as_ref().map(|resolution| resolution.fenced)
    }

    /// The host of a side.
    pub fn host_of(&self, side: Side) -> &HostId {
        match side {
            Side::Source => &self.source,
            Side::Destination => &self.destination,
        }
    }
}

impl Filter {
    pub(crate) fn matches(&self, record: &Record) -> bool {
        self.state.is_none_or(|state| state == record.state)
            && self.guest.is_none_or(|guest| guest == record.guest)
            && self.source.as_ref().is_none_or(|source| *source == record.source)
            && self
                .destination
                .as_ref()
                .is_none_or(|destination| *destination == record.destination)
            && self
                .labels
                .iter()
                .all(|(key, value)| record.labels.get(key) == Some(value))
    }
}

/// A registered host.
#[derive(Clone, Debug, PartialEq)]
pub struct HostRecord {
    pub id: HostId,
    /// What its agent said last.
    pub registration: v1::Host,
    pub cordoned: bool,
    pub generation: u64,
    /// When its agent said something new for the last time.
    pub registered: SystemTime,
}
