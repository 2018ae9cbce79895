//! Samples and links made up.

use drover_proto::agent::v1::WriteWindow;
use drover_proto::v1::LinkKnowledge;

use super::*;

const MIB: u64 = 1 << 20;

fn guest() -> GuestFacts {
    GuestFacts {
        memory_bytes: 1000 * MIB,
        ..GuestFacts::default()
    }
}

fn sample(windows: &[(u64, u64)]) -> Seen {
    let window = |&(seconds, mib): &(u64, u64)| WriteWindow {
        duration: Some(proto_duration(Duration::from_secs(seconds))),
        changed_bytes: mib * MIB,
    };
    Ok(GuestSample {
        time: Some(drover_proto::time::now()),
        windows: windows.iter().map(window).collect(),
        resident_bytes: None,
    })
}

fn link(mib: u64) -> Option<Link> {
    Some(Link {
        speed: mib * MIB,
        known: LinkKnowledge::Learnt,
    })
}

fn millis(duration: Option<prost_types::Duration>) -> Option<u128> {
    duration
        .as_ref()
        .and_then(std_duration)
        .map(|duration| duration.as_millis())
}

#[test]
fn an_idle_guest_is_sent_once() {
    let told = estimate(
        &guest(),
        &MigrationPolicy::default(),
        &[],
        &sample(&[(1, 0)]),
        link(100),
    );
    assert_eq!(millis(told.duration), Some(10_150));
    assert_eq!(told.transfer_bytes, 1000 << 20);
    assert_eq!((told.dirty_bytes_per_second, told.convergence_probability), (0, 1.0));
    assert!(told.unknown.is_empty() && told.sample_time.is_some());
    assert_eq!(told.link_knowledge(), LinkKnowledge::Learnt);
}

#[test]
fn memory_that_was_never_touched_is_not_sent() {
    let mut seen = sample(&[(1, 0)]).unwrap();
    seen.resident_bytes = Some(200 * MIB);
    let told = estimate(&guest(), &MigrationPolicy::default(), &[], &Ok(seen), link(100));
    assert_eq!(told.transfer_bytes, 200 << 20);
}

#[test]
fn a_copied_disk_is_sent_as_well() {
    let disk = DiskPlan {
        allocated_bytes: 500 << 20,
        action: DiskAction::CopyLive.into(),
        ..DiskPlan::default()
    };
    let left = DiskPlan {
        action: DiskAction::None.into(),
        ..disk.clone()
    };
    let policy = MigrationPolicy::default();
    let told = estimate(&guest(), &policy, &[disk, left], &sample(&[(1, 0)]), link(100));
    assert_eq!(told.transfer_bytes, 1500 << 20);
}

#[test]
fn what_is_not_known_is_said() {
    let policy = MigrationPolicy::default();
    let told = estimate(&guest(), &policy, &[], &Err("it is busy".to_owned()), link(100));
    assert!(
        told.unknown.contains("it is busy") && told.duration.is_none(),
        "{told:?}"
    );
    assert_eq!(told.bandwidth_bytes_per_second, 100 << 20);
    let told = estimate(&guest(), &policy, &[], &sample(&[(1, 10)]), None);
    assert!(
        told.unknown.contains("link_speed") && told.duration.is_none(),
        "{told:?}"
    );
    assert!(told.dirty_bytes_per_second > 10 << 20, "what was seen is told");
    let limit = MigrationPolicy {
        bandwidth_limit_bytes_per_second: 10 << 20,
        ..policy
    };
    let told = estimate(&guest(), &limit, &[], &sample(&[(1, 0)]), None);
    assert_eq!(told.link_knowledge(), LinkKnowledge::Limit);
    assert_eq!(millis(told.duration), Some(100_150));
}

#[test]
fn a_guest_that_writes_too_fast_is_told_what_it_takes() {
    let hot = sample(&[(1, 150), (2, 280)]);
    let policy = MigrationPolicy::default();
    let told = estimate(&guest(), &policy, &[], &hot, link(100));
    // If it wrote half as fast, it would.
    assert!(
        told.duration.is_none() && told.convergence_probability < 0.2,
        "{told:?}"
    );
    assert!(told.needed_means.contains(&"auto-converge".to_owned()), "{told:?}");
    assert!(told.unknown.is_empty());
    let slow = MigrationPolicy {
        allow_auto_converge: Some(true),
        ..policy
    };
    let told = estimate(&guest(), &slow, &[], &hot, link(100));
    assert!(told.duration.is_some());
    assert_eq!(told.needed_means, ["auto-converge"]);
}

#[test]
fn only_who_promised_something_waits_for_a_look() {
    assert_eq!(Thorough::of(&MigrationPolicy::default()), Thorough::Remembers);
    let deadline = MigrationPolicy {
        deadline: Some(proto_duration(Duration::from_secs(1))),
        ..MigrationPolicy::default()
    };
    assert_eq!(Thorough::of(&deadline), Thorough::LooksOnce);
}
