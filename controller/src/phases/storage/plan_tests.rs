use drover_proto::agent::v1::StorageProbeResult;
use drover_proto::v1::CheckResult;

use super::*;

fn disk(target: &str) -> DiskFacts {
    DiskFacts {
        target: target.to_owned(),
        source_type: "file".to_owned(),
        source: format!("/d/{target}"),
        format: "raw".to_owned(),
        virtual_size_bytes: 1000,
        allocated_bytes: 100,
        ..DiskFacts::default()
    }
}

fn probe(target: &str, shared: bool) -> StorageProbeResult {
    StorageProbeResult {
        image_path: format!("/d/{target}"),
        shared,
        ..StorageProbeResult::default()
    }
}

fn room(target: &str, free: u64) -> ImageRoom {
    ImageRoom {
        target: target.to_owned(),
        free_bytes: Some(free),
        file_system: 7,
        ..ImageRoom::default()
    }
}

fn named(targets: &[&str]) -> StoragePolicy {
    StoragePolicy {
        copy_disks: targets.iter().map(|&target| target.to_owned()).collect(),
        ..StoragePolicy::default()
    }
}

/// vda is shared, vdb is not, sda is a read-only image of the same content.
fn mixed(policy: &StoragePolicy, rooms: &[ImageRoom]) -> (Vec<DiskPlan>, Option<Check>) {
    let iso = DiskFacts {
        read_only: true,
        ..disk("sda")
    };
    let disks = [disk("vda"), disk("vdb"), iso];
    let same_content = StorageProbeResult {
        same_content: true,
        ..probe("sda", false)
    };
    let results = [probe("vda", true), probe("vdb", false), same_content];
    let said = Said {
        results: &results,
        failures: &[],
    };
    let plans = plan(&disks, &disks, policy, said, rooms);
    let check = check(&plans, &disks, policy);
    (plans, check)
}

fn actions(plans: &[DiskPlan]) -> Vec<DiskAction> {
    plans.iter().map(DiskPlan::action).collect()
}

#[test]
fn each_disk_of_a_mixed_guest_is_decided_by_itself() {
    use DiskAction::{CopyLive, None, Refuse};
    let rooms = [room("vdb", 1000)];
    let (plans, check) = mixed(&named(&["vdb"]), &rooms);
    assert_eq!(actions(&plans), [None, CopyLive, None]);
    assert_eq!(check.unwrap().result(), CheckResult::Passed);
    assert_eq!(copied(&plans), ["vdb"]);

    let unshared = StoragePolicy {
        copy_unshared: true,
        ..StoragePolicy::default()
    };
    assert_eq!(actions(&mixed(&unshared, &rooms).0), [None, CopyLive, None]);

    let (plans, check) = mixed(&StoragePolicy::default(), &[]);
    assert_eq!(actions(&plans), [None, Refuse, None]);
    assert!(plans[1].remedy.contains("--copy-disks vdb"), "{}", plans[1].remedy);
    assert!(check.is_none() && copied(&plans).is_empty());
}

#[test]
fn what_is_the_same_storage_is_never_copied() {
    let rooms = [room("vda", 1000), room("vdb", 1000)];
    let (plans, check) = mixed(&named(&["vda", "vdb"]), &rooms);
    assert_eq!(plans[0].action(), DiskAction::Refuse);
    let check = check.unwrap();
    assert_eq!(check.result(), CheckResult::Failed);
    assert!(
        check.found.contains("vda") && check.found.contains("onto itself"),
        "{}",
        check.found
    );
    // Nor a network disk, whose definition alone says that it is the same.
    let network = DiskFacts {
        source_type: "network".to_owned(),
        source: "rbd://a/b".to_owned(),
        ..disk("vdc")
    };
    let said = Said {
        results: &[],
        failures: &[],
    };
    let disks = std::slice::from_ref(&network);
    let plans = plan(disks, disks, &named(&["vdc"]), said, &[room("vdc", 1000)]);
    assert_eq!(plans[0].action(), DiskAction::Refuse);
}

#[test]
fn copies_on_one_file_system_share_its_room() {
    let qcow2 = |target| DiskFacts {
        format: "qcow2".to_owned(),
        ..disk(target)
    };
    let disks = [qcow2("vda"), qcow2("vdb")];
    let results = [probe("vda", false), probe("vdb", false)];
    let said = Said {
        results: &results,
        failures: &[],
    };
    let with = |free| {
        let rooms = [room("vda", free), room("vdb", free)];
        actions(&plan(&disks, &disks, &named(&["vda", "vdb"]), said, &rooms))
    };
    assert_eq!(with(200), [DiskAction::CopyLive, DiskAction::CopyLive]);
    assert_eq!(with(199), [DiskAction::CopyLive, DiskAction::Refuse]);
    assert_eq!(with(50), [DiskAction::Refuse, DiskAction::Refuse]);
}

#[test]
fn a_raw_image_needs_all_its_size_for_its_holes_are_lost_on_the_way() {
    let disks = [disk("vda")];
    let results = [probe("vda", false)];
    let said = Said {
        results: &results,
        failures: &[],
    };
    let with = |free| actions(&plan(&disks, &disks, &named(&["vda"]), said, &[room("vda", free)]));
    assert_eq!(
        (with(1000), with(999)),
        (vec![DiskAction::CopyLive], vec![DiskAction::Refuse])
    );
}

/// A disk that lies on another file.
fn layered() -> DiskFacts {
    DiskFacts {
        format: "qcow2".to_owned(),
        backing: vec!["/d/base".to_owned()],
        backing_types: vec!["file".to_owned()],
        ..disk("vda")
    }
}

#[test]
fn a_backing_chain_goes_into_the_copy() {
    let layered = layered();
    let results = [probe("vda", false)];
    let said = Said {
        results: &results,
        failures: &[],
    };
    let disks = [layered];
    let plan = |policy: &StoragePolicy| plan(&disks, &disks, policy, said, &[room("vda", 1000)]).remove(0);
    let copied = plan(&named(&["vda"]));
    assert_eq!(copied.action(), DiskAction::CopyLive);
    assert!(copied.reason.contains("flattened"), "{}", copied.reason);
    let refused = plan(&StoragePolicy::default());
    assert!(refused.remedy.contains("--copy-disks vda"), "{}", refused.remedy);
}

#[test]
fn what_stands_in_the_way_of_a_copy_is_said() {
    let refused = |disk: DiskFacts, room: &[ImageRoom]| {
        let results = [probe("vda", false)];
        let said = Said {
            results: &results,
            failures: &[],
        };
        let disks = [disk];
        let plans = plan(&disks, &disks, &named(&["vda"]), said, room);
        assert_eq!(plans[0].action(), DiskAction::Refuse);
        plans[0].reason.clone()
    };
    let encrypted = DiskFacts {
        copy_problem: "it is encrypted".to_owned(),
        ..disk("vda")
    };
    assert!(refused(encrypted, &[room("vda", 1000)]).contains("encrypted"));
    let there = ImageRoom {
        problem: "there is something at /d/vda already".to_owned(),
        ..room("vda", 1000)
    };
    assert!(refused(disk("vda"), &[there]).contains("already"));
    // An agent of an older version answers with no room at all.
    assert!(refused(disk("vda"), &[]).contains("cannot make images"));
    let unknown = check(&[], &[disk("vda")], &named(&["vdz"])).unwrap();
    assert!(unknown.found.contains("no disk vdz"), "{}", unknown.found);
}

#[test]
fn a_block_device_is_overwritten_only_where_its_disk_is_named() {
    let device = DiskFacts {
        source_type: "block".to_owned(),
        ..disk("vda")
    };
    let results = [probe("vda", false)];
    let said = Said {
        results: &results,
        failures: &[],
    };
    let disks = [device];
    let plan = |policy: &StoragePolicy, room: ImageRoom| plan(&disks, &disks, policy, said, &[room]).remove(0);
    let unshared = StoragePolicy {
        copy_unshared: true,
        ..StoragePolicy::default()
    };
    let refused = plan(&unshared, room("vda", 1000));
    assert_eq!(refused.action(), DiskAction::Refuse);
    assert_eq!(refused.remedy, "--copy-disks vda");
    let copied = plan(&named(&["vda"]), room("vda", 1000));
    assert_eq!(copied.action(), DiskAction::CopyLive);
    assert!(copied.reason.contains("overwritten"), "{}", copied.reason);
    let blank = ImageRoom {
        problem: "there is something on it".to_owned(),
        ..room("vda", 1000)
    };
    assert_eq!(plan(&named(&["vda"]), blank).action(), DiskAction::Refuse);
    let asked = candidates(&disks, &disks, &named(&["vda"]));
    assert!(asked[0].block_device);
    assert!(!candidates(&[disk("vda")], &[disk("vda")], &named(&["vda"]))[0].block_device);
}

#[test]
fn two_disks_are_not_copied_onto_one_device() {
    let device = |target: &str| DiskFacts {
        source_type: "block".to_owned(),
        source: format!("/d/{target}"),
        ..disk(target)
    };
    let disks = [device("vda"), device("vdb")];
    let results = [probe("vda", false), probe("vdb", false)];
    let said = Said {
        results: &results,
        failures: &[],
    };
    // By two names the same one, and just large enough.
    let rooms = [room("vda", 1500), room("vdb", 1500)];
    let plans = plan(&disks, &disks, &named(&["vda", "vdb"]), said, &rooms);
    assert_eq!(actions(&plans), [DiskAction::CopyLive, DiskAction::Refuse]);
}

#[test]
fn a_chain_that_is_to_stay_whole_is_not_copied_live() {
    let layered = layered();
    let results = [probe("vda", false)];
    let said = Said {
        results: &results,
        failures: &[],
    };
    let action = |disk: DiskFacts, chain: BackingChain| {
        let policy = StoragePolicy {
            backing_chain: chain.into(),
            ..named(&["vda"])
        };
        let disks = [disk];
        plan(&disks, &disks, &policy, said, &[room("vda", 1000)])[0].action()
    };
    let (copied, refused) = (DiskAction::CopyLive, DiskAction::Refuse);
    assert_eq!(action(layered.clone(), BackingChain::Whole), refused);
    assert_eq!(action(layered, BackingChain::Flatten), copied);
    assert_eq!(action(disk("vda"), BackingChain::Whole), copied, "it lies on nothing");
}
