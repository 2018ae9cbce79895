//! What a user asks for in each scenario.

use std::time::Duration;

use drover_proto::ids::MigrationId;
use drover_proto::time::proto_duration;
use drover_proto::v1::{
    AdjustMigrationRequest, DeadlineAction, DestinationOverrides, DiskOverride, MigrationMode, MigrationPolicy,
    StoragePolicy,
};

use super::case::PATIENCE;
use super::plan::{Scenario, Way};
use super::world::World;

/// A blackout in which a busy guest's memory can be sent, milliseconds.
const MUCH: u64 = 20_000;

/// Bytes/s. The memory of a busy guest takes a quarter of a second: several times what QEMU may use at first, less what
/// the tunnel takes in at once.
const SLOW: i64 = 4 << 20;

/// How the guest is to be moved.
pub(super) fn policy(scenario: Scenario) -> Option<MigrationPolicy> {
    match scenario.way() {
        Way::Live => None,
        Way::Copying => Some(copying()),
        // In a repair its pages are still on their way when the stream breaks.
        Way::GoingOver if scenario == Scenario::Repair => Some(going_over(1 << 20)),
        Way::GoingOver => Some(going_over(8 << 20)),
        Way::Busy => Some(busy(scenario)),
        Way::Offline | Way::ShutDown => Some(offline(scenario.shuts_down())),
    }
}

/// So slow that it does not converge, and that its pages take a moment to follow.
fn going_over(bandwidth: i64) -> MigrationPolicy {
    MigrationPolicy {
        allow_post_copy: Some(true),
        bandwidth_limit_bytes_per_second: bandwidth,
        max_downtime: Some(proto_duration(Duration::from_millis(1))),
        ..MigrationPolicy::default()
    }
}

/// So slow that it does not converge within what is allowed at first.
fn busy(scenario: Scenario) -> MigrationPolicy {
    let time = |millis| Some(proto_duration(Duration::from_millis(millis)));
    let slow = MigrationPolicy {
        bandwidth_limit_bytes_per_second: SLOW,
        max_downtime: time(1),
        ..MigrationPolicy::default()
    };
    let ends = |action: DeadlineAction| MigrationPolicy {
        deadline: time(300),
        on_deadline: action.into(),
        ..slow.clone()
    };
    match scenario {
        Scenario::PauseAtDeadline => ends(DeadlineAction::PauseAndFinish),
        Scenario::AbortAtDeadline => ends(DeadlineAction::Abort),
        Scenario::Raise => MigrationPolicy {
            max_downtime: time(MUCH),
            allow_auto_converge: Some(true),
            ..slow
        },
        Scenario::Adjust
        | Scenario::Move
        | Scenario::MovePaused
        | Scenario::MoveTransient
        | Scenario::Undo
        | Scenario::HandOver
        | Scenario::Finish
        | Scenario::MoveOffline
        | Scenario::UndoOffline
        | Scenario::PostCopy
        | Scenario::Repair
        | Scenario::MoveShutDown
        | Scenario::UndoShutDown => slow,
    }
}

fn copying() -> MigrationPolicy {
    MigrationPolicy {
        storage: Some(StoragePolicy {
            copy_disks: vec!["vdb".to_owned()],
            delete_source: true,
            ..StoragePolicy::default()
        }),
        ..MigrationPolicy::default()
    }
}

fn offline(shuts_down: bool) -> MigrationPolicy {
    let mut policy = MigrationPolicy {
        shutdown_timeout: shuts_down.then(|| proto_duration(PATIENCE)),
        ..MigrationPolicy::default()
    };
    policy.set_mode(MigrationMode::Offline);
    policy
}

/// A copied disk lies elsewhere at the destination.
pub(super) fn elsewhere(world: &World) -> DestinationOverrides {
    DestinationOverrides {
        disks: vec![DiskOverride {
            target: "vdb".to_owned(),
            source: world.folder.local_there(),
        }],
        ..DestinationOverrides::default()
    }
}

/// What an operator allows on the way: a longer blackout and a faster link.
pub(super) fn more(id: MigrationId) -> AdjustMigrationRequest {
    AdjustMigrationRequest {
        name: id.resource_name(),
        max_downtime: Some(proto_duration(Duration::from_millis(MUCH))),
        bandwidth_limit_bytes_per_second: Some(2 * SLOW),
        ..AdjustMigrationRequest::default()
    }
}
