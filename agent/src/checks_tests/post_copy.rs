//! What stands in the way of post-copy, and of its repair.

use super::*;

#[test]
fn post_copy_is_looked_at_only_where_it_may_come_to_that() {
    assert!(!post_copy_lacks(|_, _, _| {}));
    assert!(post_copy_lacks(|host, _, _| host.user_faults = UserFaults::Nobody));
    assert!(post_copy_lacks(|host, _, _| host.user_faults = UserFaults::Unknown));
    assert!(!post_copy_lacks(|host, _, _| host.user_faults = UserFaults::ByDevice));
    assert!(post_copy_lacks(|host, _, _| {
        (host.user_faults, host.qemu_version) = (UserFaults::ByDevice, 8_000_000);
    }));
    let huge = agent::HugePages {
        page_bytes: 2 << 20,
        total_bytes: 1 << 30,
    };
    assert!(post_copy_lacks(|_, guest, _| guest.huge_pages = vec![huge]));
    assert!(
        post_copy_lacks(|_, _, policy| policy.parallel_connections = 2),
        "QEMU 10.0"
    );
    let device = agent::Blocker {
        check_id: "host-devices".to_owned(),
        what: "a network card".to_owned(),
        holds_data: false,
    };
    assert!(post_copy_lacks(|_, guest, _| guest.ties = vec![device]));
    // At the deadline alone it may come to that as well; else nobody asks.
    let at_deadline = |policy: &mut agent::TransferPolicy| {
        policy.post_copy = false;
        policy.set_on_deadline(drover_proto::v1::DeadlineAction::PostCopy);
    };
    assert!(post_copy_lacks(|host, _, policy| {
        host.user_faults = UserFaults::Nobody;
        at_deadline(policy);
    }));
    assert!(!post_copy_lacks(|host, _, policy| {
        host.user_faults = UserFaults::Nobody;
        policy.post_copy = false;
    }));
}

#[test]
fn a_libvirt_that_may_crash_in_a_repair_is_told_of_and_stands_in_nobodys_way() {
    let told = |there: u64, here: u64, post_copy: bool| {
        not_passed(|candidate| {
            candidate.policy = Some(leak(agent::TransferPolicy {
                post_copy,
                ..agent::TransferPolicy::default()
            }));
            candidate.host = leak(HostFacts {
                user_faults: UserFaults::Anybody,
                libvirt_version: here,
                ..host()
            });
            candidate.source = leak(agent::HostFacts {
                libvirt_version: there,
                ..source()
            });
        })
    };
    let (old, first, last, mended) = (9_000_000, 11_002_000, 11_003_000, 11_004_000);
    for (there, here) in [(first, old), (old, first), (last, last), (mended, 11_003_002)] {
        assert_eq!(told(there, here, true), ["post-copy-repair"], "{there} {here}");
        assert!(told(there, here, false).is_empty(), "nobody asked for it");
    }
    for (there, here) in [(old, old), (11_001_000, mended), (mended, 12_008_000), (0, 0)] {
        assert!(told(there, here, true).is_empty(), "{there} {here}");
    }
}
