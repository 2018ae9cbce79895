//! From what the caller wants to what the agents are told; and what is not made yet is refused, never ignored.

use std::time::Duration;

use drover_proto::agent::v1::TransferPolicy;
use drover_proto::failure::{Failure, Reason};
use drover_proto::time::proto_duration;
use drover_proto::v1::{Compression, DeadlineAction, MigrationMode, MigrationPolicy, Transport};

/// The longest blackout where the caller names none.
const DEFAULT_MAX_DOWNTIME: Duration = Duration::from_millis(500);

/// What both agents are told. `storage_proved` must be so: Validate has seen to it.
pub fn transfer_policy(policy: Option<&MigrationPolicy>) -> TransferPolicy {
    let policy = policy.cloned().unwrap_or_default();
    TransferPolicy {
        bandwidth_limit_bytes_per_second: u64::try_from(policy.bandwidth_limit_bytes_per_second).unwrap_or(0),
        max_downtime: Some(
            policy
                .max_downtime
                .unwrap_or_else(|| proto_duration(DEFAULT_MAX_DOWNTIME)),
        ),
        deadline: policy.deadline,
        parallel_connections: u32::try_from(policy.parallel_connections).unwrap_or(0),
        auto_converge: policy.allow_auto_converge.unwrap_or(false),
        post_copy: policy.allow_post_copy.unwrap_or(false),
        storage_proved: true,
    }
}

/// Refuses what a caller may ask for by the API but this version cannot do.
pub fn refuse_unmade(policy: Option<&MigrationPolicy>) -> Result<(), Failure> {
    let policy = policy.cloned().unwrap_or_default();
    let storage = policy.storage.clone().unwrap_or_default();
    let unmade = [
        (
            "policy.mode",
            "offline migration",
            policy.mode() == MigrationMode::Offline,
        ),
        ("policy.allow_post_copy", "post-copy", policy.allow_post_copy()),
        (
            "policy.on_deadline",
            "anything but abort at the deadline",
            matches!(
                policy.on_deadline(),
                DeadlineAction::PauseAndFinish | DeadlineAction::PostCopy
            ),
        ),
        (
            "policy.compression",
            "compression",
            policy.compression() == Compression::Zstd,
        ),
        (
            "policy.transport",
            "direct transport",
            matches!(policy.transport(), Transport::DirectPlain | Transport::DirectTls),
        ),
        (
            "policy.storage",
            "copying or deleting disks",
            storage.copy_unshared || storage.delete_source || !storage.copy_disks.is_empty(),
        ),
    ];
    match unmade.into_iter().find(|(_, _, asked)| *asked) {
        Some((field, what, _)) => Err(Failure::new(
            Reason::Unimplemented,
            format!("{what} is not made in this version"),
        )
        .with_field(format!("migration.{field}"), "leave it unset".to_owned())),
        None => Ok(()),
    }
}
