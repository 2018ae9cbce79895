//! Whether blocks of zeros are looked for in disks that are copied while the guest runs, so that they do not cross the
//! network as data. Pure.
//!
//! libvirt refuses what it does not know, so both have to know it. What a zero becomes at the destination, a hole or
//! not, is QEMU's own business there: the room that is asked for stays the same.

use drover_proto::agent::v1::HostFacts;
use drover_proto::v1::{DiskAction, DiskPlan};

/// For people, behind what else is said of the disk.
const TOLD: &str = "blocks of zeros are not sent";

/// Writes down, and tells, of which disks zeros are looked for between these hosts.
pub fn tell(plans: &mut [DiskPlan], source: &HostFacts, destination: &HostFacts) {
    if !(source.detects_zeroes && destination.detects_zeroes) {
        return;
    }
    for plan in plans.iter_mut().filter(|plan| plan.action() == DiskAction::CopyLive) {
        plan.detects_zeroes = true;
        plan.reason = format!("{}; {TOLD}", plan.reason);
    }
}

/// Whether that was written down: it holds for all disks that are copied.
pub fn are_looked_for(plans: &[DiskPlan]) -> bool {
    plans
        .iter()
        .any(|plan| plan.action() == DiskAction::CopyLive && plan.detects_zeroes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(detects_zeroes: bool) -> HostFacts {
        HostFacts {
            detects_zeroes,
            ..HostFacts::default()
        }
    }

    fn plan(action: DiskAction) -> DiskPlan {
        DiskPlan {
            action: action.into(),
            reason: "not shared".to_owned(),
            ..DiskPlan::default()
        }
    }

    #[test]
    fn only_two_hosts_that_both_can_look_for_them() {
        for (source, destination, told) in [
            (true, true, true),
            (true, false, false),
            (false, true, false),
            (false, false, false),
        ] {
            let mut plans = [plan(DiskAction::CopyLive)];
            tell(&mut plans, &facts(source), &facts(destination));
            assert_eq!((plans[0].detects_zeroes, are_looked_for(&plans)), (told, told));
            assert_eq!(plans[0].reason.ends_with("; blocks of zeros are not sent"), told);
        }
    }

    #[test]
    fn what_is_not_copied_live_is_left_as_it_is() {
        let mut plans = [
            DiskAction::None,
            DiskAction::Refuse,
            DiskAction::CopyOffline,
            DiskAction::Unspecified,
        ]
        .map(plan);
        let before = plans.clone();
        tell(&mut plans, &facts(true), &facts(true));
        assert_eq!(plans, before);
        assert!(!are_looked_for(&plans) && !are_looked_for(&[]));
    }
}
