//! From what the caller wants to what the agents are told; and what is not made yet is refused, never ignored.

use drover_proto::agent::v1::TransferPolicy;
use drover_proto::failure::{Failure, Reason};
use drover_proto::v1::{Compression, DeadlineAction, MigrationPolicy, Transport};

use crate::store::Record;
use crate::zeroes;

/// What both agents are told, as the record says it now. `storage_proved` must be so: Validate has seen to it.
pub fn transfer_policy(record: &Record) -> TransferPolicy {
    let policy = record.details.policy.clone().unwrap_or_default();
    let compression = record.details.compression.as_ref();
    TransferPolicy {
        pause_and_finish: record.details.pause_and_finish_requested.is_some(),
        post_copy_now: record.details.post_copy_requested.is_some(),
        // Of two versions of a record the later one has the higher generation.
        revision: record.generation,
        detect_zeroes: zeroes::are_looked_for(&record.details.disks),
        ..of_policy(&MigrationPolicy {
            parallel_connections: record
                .details
                .connections
                .as_ref()
                .map_or(policy.parallel_connections, |chosen| chosen.count),
            compression: compression.map_or(policy.compression, |chosen| chosen.compression),
            ..policy
        })
    }
}

/// What the policy alone says.
pub(super) fn of_policy(policy: &MigrationPolicy) -> TransferPolicy {
    let compressed = policy.compression() == Compression::Zstd;
    TransferPolicy {
        bandwidth_limit_bytes_per_second: u64::try_from(policy.bandwidth_limit_bytes_per_second).unwrap_or(0),
        max_downtime: policy.max_downtime,
        deadline: policy.deadline,
        // Only QEMU's multifd compresses.
        parallel_connections: beside_each_other(policy.parallel_connections).max(u32::from(compressed)),
        compression: if compressed { Compression::Zstd.into() } else { 0 },
        auto_converge: policy.allow_auto_converge.unwrap_or(false),
        post_copy: policy.allow_post_copy.unwrap_or(false),
        storage_proved: true,
        on_deadline: policy.on_deadline,
        ..TransferPolicy::default()
    }
}

/// QEMU's multifd channels: one connection is a plain one.
fn beside_each_other(connections: i32) -> u32 {
    u32::try_from(connections).ok().filter(|count| *count > 1).unwrap_or(0)
}

/// Whether the guest may run at the destination before all its memory is there.
pub(super) fn may_go_post_copy(policy: &TransferPolicy) -> bool {
    policy.post_copy || policy.on_deadline() == DeadlineAction::PostCopy
}

/// Whether the source keeps to this already, as far as it can be changed on the way.
pub(super) fn is_in_force(wanted: &TransferPolicy, known: &TransferPolicy) -> bool {
    let at_deadline = |policy: &TransferPolicy| match policy.on_deadline() {
        DeadlineAction::Unspecified => DeadlineAction::Abort,
        action @ (DeadlineAction::Abort | DeadlineAction::PauseAndFinish | DeadlineAction::PostCopy) => action,
    };
    wanted.bandwidth_limit_bytes_per_second == known.bandwidth_limit_bytes_per_second
        && wanted.max_downtime == known.max_downtime
        && wanted.deadline == known.deadline
        && at_deadline(wanted) == at_deadline(known)
        && wanted.pause_and_finish <= known.pause_and_finish
        && wanted.post_copy_now <= known.post_copy_now
}

/// Refuses what a caller may ask for by the API but this version cannot do.
pub fn refuse_unmade(policy: Option<&MigrationPolicy>) -> Result<(), Failure> {
    let policy = policy.cloned().unwrap_or_default();
    let unmade = [(
        "policy.transport",
        "direct transport",
        matches!(policy.transport(), Transport::DirectPlain | Transport::DirectTls),
    )];
    match unmade.into_iter().find(|(_, _, asked)| *asked) {
        Some((field, what, _)) => Err(Failure::new(
            Reason::Unimplemented,
            format!("{what} is not made in this version"),
        )
        .with_field(format!("migration.{field}"), "leave it unset".to_owned())),
        None => Ok(()),
    }
}
