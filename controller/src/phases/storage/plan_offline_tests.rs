use drover_proto::agent::v1::StorageProbeResult;
use drover_proto::v1::CheckResult;

use super::*;

fn disk(target: &str) -> DiskFacts {
    DiskFacts {
        target: target.to_owned(),
        source_type: "file".to_owned(),
        source: format!("/d/{target}"),
        allocated_bytes: 600,
        ..DiskFacts::default()
    }
}

fn looked_for(target: &str) -> StorageProbeResult {
    StorageProbeResult {
        image_path: format!("/d/{target}"),
        problem: "absent".to_owned(),
        ..StorageProbeResult::default()
    }
}

fn room(target: &str) -> ImageRoom {
    ImageRoom {
        target: target.to_owned(),
        free_bytes: Some(1000),
        file_system: 7,
        ..ImageRoom::default()
    }
}

fn planned(guest: &GuestFacts, policy: &StoragePolicy, results: &[StorageProbeResult], rooms: &[ImageRoom]) -> Planned {
    let said = Said { results, failures: &[] };
    plan(guest, &guest.disks, policy, said, rooms)
}

fn one(disk: DiskFacts, result: StorageProbeResult, rooms: &[ImageRoom]) -> Planned {
    let guest = GuestFacts {
        disks: vec![disk],
        ..GuestFacts::default()
    };
    planned(&guest, &StoragePolicy::default(), &[result], rooms)
}

fn check<'a>(planned: &'a Planned, id: &str) -> &'a Check {
    planned.checks.iter().find(|check| check.id == id).unwrap()
}

#[test]
fn what_the_destination_does_not_have_is_copied_and_the_rest_is_named_as_shared() {
    let guest = GuestFacts {
        disks: vec![
            disk("vda"),
            disk("vdb"),
            DiskFacts {
                source: String::new(),
                ..disk("sda")
            },
        ],
        ..GuestFacts::default()
    };
    let shared = StorageProbeResult {
        shared: true,
        ..looked_for("vdb")
    };
    let found = planned(
        &guest,
        &StoragePolicy::default(),
        &[looked_for("vda"), shared],
        &[room("vda")],
    );
    assert!(
        found.checks.iter().all(|check| check.result() == CheckResult::Passed),
        "{:?}",
        found.checks
    );
    let actions: Vec<_> = found.plans.iter().map(DiskPlan::action).collect();
    assert_eq!(actions, [DiskAction::CopyOffline, DiskAction::None, DiskAction::None]);
    assert_eq!(found.order.copied_images, ["/d/vda"]);
    assert_eq!(found.order.shared_images, ["/d/vdb"]);
    assert!(found.plans[1].shared && !found.plans[0].shared);
}

#[test]
fn what_may_be_the_guests_own_disk_is_not_said_to_be_anothers() {
    let there = StorageProbeResult {
        present: true,
        problem: "inode 5 instead of 7".to_owned(),
        ..looked_for("vda")
    };
    let found = one(disk("vda"), there, &[]);
    let path = check(&found, PATH);
    assert_eq!(path.result(), CheckResult::Failed);
    assert!(path.found.contains("inode 5 instead of 7"), "{}", path.found);
    assert!(path.remedy.contains("leave it"), "{}", path.remedy);
    assert_eq!(check(&found, COPY).result(), CheckResult::Passed, "said once");
    assert!(found.order.copied_images.is_empty());
}

#[test]
fn what_an_agent_would_refuse_is_said_before() {
    let busy = DiskFacts {
        offline_problem: "/d/vda is what the loop device loop3 lies on".to_owned(),
        offline_remedy: "detach it".to_owned(),
        ..disk("vda")
    };
    let found = one(busy, looked_for("vda"), &[room("vda")]);
    assert!(check(&found, COPY).found.contains("loop3"));
    assert_eq!(check(&found, COPY).remedy, "detach it");
    let outside = ImageRoom {
        problem: "outside".to_owned(),
        ..room("vda")
    };
    assert!(
        check(&one(disk("vda"), looked_for("vda"), &[outside]), COPY)
            .found
            .contains("outside")
    );
    let block = DiskFacts {
        source_type: "block".to_owned(),
        ..disk("vda")
    };
    let found = one(block, looked_for("vda"), &[]);
    assert!(check(&found, COPY).found.contains("only where its disk is named"));
    let volume = DiskFacts {
        source_type: "volume".to_owned(),
        ..disk("vda")
    };
    let found = one(volume, looked_for("vda"), &[]);
    assert!(check(&found, COPY).found.contains("no image file"));
}

#[test]
fn files_that_fit_alone_and_not_together_are_refused() {
    let guest = GuestFacts {
        disks: vec![disk("vda"), disk("vdb")],
        ..GuestFacts::default()
    };
    let results = [looked_for("vda"), looked_for("vdb")];
    let found = planned(&guest, &StoragePolicy::default(), &results, &[room("vda"), room("vdb")]);
    let copy = check(&found, COPY);
    assert_eq!(copy.result(), CheckResult::Failed);
    assert!(
        copy.found.contains("vdb") && !copy.found.contains("vda"),
        "{}",
        copy.found
    );
    assert!(copy.found.contains("1200 bytes are needed"), "{}", copy.found);
}

#[test]
fn only_named_disks_are_copied_and_an_unknown_name_is_told() {
    let guest = GuestFacts {
        disks: vec![disk("vda"), disk("vdb")],
        ..GuestFacts::default()
    };
    let results = [looked_for("vda"), looked_for("vdb")];
    let policy = |name: &str| StoragePolicy {
        copy_disks: vec![name.to_owned()],
        ..StoragePolicy::default()
    };
    let found = planned(&guest, &policy("vda"), &results, &[room("vda")]);
    assert!(
        check(&found, COPY).found.starts_with("vdb"),
        "{:?}",
        check(&found, COPY)
    );
    let found = planned(&guest, &policy("vdz"), &results, &[]);
    assert!(
        check(&found, COPY).found.contains("no disk vdz"),
        "{:?}",
        check(&found, COPY)
    );
}

#[test]
fn variables_need_a_free_path_too() {
    let guest = GuestFacts {
        variables: "/n/web.fd".to_owned(),
        ..GuestFacts::default()
    };
    assert_eq!(candidates(&guest, &StoragePolicy::default())[0].path, "/n/web.fd");
    let there = ImageRoom {
        problem: "there is something at /n/web.fd already".to_owned(),
        remedy: "move it away".to_owned(),
        ..room(VARIABLES)
    };
    let found = planned(&guest, &StoragePolicy::default(), &[], &[there]);
    let path = check(&found, PATH);
    assert_eq!(path.result(), CheckResult::Failed);
    assert!(path.found.contains("/n/web.fd already"), "{}", path.found);
    let foreign = GuestFacts {
        variables_problem: "its UEFI variables are no file".to_owned(),
        ..GuestFacts::default()
    };
    let found = planned(&foreign, &StoragePolicy::default(), &[], &[]);
    assert_eq!(check(&found, COPY).result(), CheckResult::Failed);
}

#[test]
fn the_state_of_a_tpm_is_told_and_needs_a_free_path_too() {
    let guest = GuestFacts {
        tpm_state: "/swtpm/u/tpm2/tpm2-00.permall".to_owned(),
        ..GuestFacts::default()
    };
    assert_eq!(candidates(&guest, &StoragePolicy::default())[0].path, guest.tpm_state);
    let found = planned(&guest, &StoragePolicy::default(), &[], &[room(TPM)]);
    assert!(
        check(&found, COPY).found.contains(&guest.tpm_state),
        "{:?}",
        check(&found, COPY)
    );
    assert!(found.order.copied_images.is_empty(), "it goes along in any case");
    let there = ImageRoom {
        problem: "there is something already".to_owned(),
        remedy: "move it away".to_owned(),
        ..room(TPM)
    };
    let found = planned(&guest, &StoragePolicy::default(), &[], &[there]);
    assert_eq!(check(&found, PATH).result(), CheckResult::Failed);
    assert!(check(&found, PATH).found.contains("TPM"), "{:?}", check(&found, PATH));
    let denied = GuestFacts {
        tpm_problem: "the agent may not use it".to_owned(),
        ..guest
    };
    let found = planned(&denied, &StoragePolicy::default(), &[], &[room(TPM)]);
    assert_eq!(check(&found, COPY).result(), CheckResult::Failed);
}

/// vda on two files, which the destination has or not.
fn layered(middle: StorageProbeResult, base: StorageProbeResult, rooms: &[ImageRoom]) -> Planned {
    let chained = DiskFacts {
        backing: ["/d/middle", "/d/base"].map(str::to_owned).to_vec(),
        backing_types: ["file", "file"].map(str::to_owned).to_vec(),
        ..disk("vda")
    };
    let guest = GuestFacts {
        disks: vec![chained],
        ..GuestFacts::default()
    };
    planned(
        &guest,
        &StoragePolicy::default(),
        &[looked_for("vda"), middle, base],
        rooms,
    )
}

#[test]
fn a_chain_is_copied_whole_or_not_at_all() {
    let found = layered(looked_for("middle"), looked_for("base"), &[room("vda")]);
    assert_eq!(found.order.copied_images, ["/d/vda", "/d/middle", "/d/base"]);
    assert_eq!(found.plans[0].action(), DiskAction::CopyOffline);
    assert!(
        found.plans[0].reason.contains("stays at the source"),
        "{:?}",
        found.plans
    );
    assert!(
        check(&found, COPY).found.contains("2 files beneath"),
        "{:?}",
        found.checks
    );

    let shared = StorageProbeResult {
        shared: true,
        ..looked_for("base")
    };
    let found = layered(looked_for("middle"), shared, &[room("vda")]);
    assert!(
        check(&found, COPY).found.contains("/d/base: both hosts have that"),
        "{:?}",
        found.checks
    );
    assert!(check(&found, COPY).remedy.contains("flatten"), "{:?}", found.checks);
    assert!(found.order.copied_images.is_empty());

    let there = StorageProbeResult {
        present: true,
        ..looked_for("middle")
    };
    let found = layered(there, looked_for("base"), &[room("vda")]);
    assert!(check(&found, PATH).found.contains("/d/middle"), "{:?}", found.checks);
    // Others may lie on it there: it is not to be moved away.
    for remedy in [&check(&found, PATH).remedy, &found.plans[0].remedy] {
        assert!(
            remedy.contains("leave that file") && !remedy.contains("move it away"),
            "{remedy}"
        );
    }
    let outside = ImageRoom {
        problem: "outside".to_owned(),
        ..room(&beneath("vda", 1))
    };
    let found = layered(looked_for("middle"), looked_for("base"), &[room("vda"), outside]);
    assert!(
        check(&found, COPY).found.contains("/d/base: outside"),
        "{:?}",
        found.checks
    );
}

#[test]
fn an_image_that_both_have_does_not_go_without_what_it_lies_on() {
    let chained = DiskFacts {
        backing: vec!["/d/base".to_owned()],
        backing_types: vec!["file".to_owned()],
        ..disk("vda")
    };
    let guest = GuestFacts {
        disks: vec![chained],
        ..GuestFacts::default()
    };
    let shared = StorageProbeResult {
        shared: true,
        present: true,
        problem: String::new(),
        ..looked_for("vda")
    };
    let found = planned(&guest, &StoragePolicy::default(), &[shared, looked_for("base")], &[]);
    assert!(
        check(&found, COPY).found.contains("not what it lies on"),
        "{:?}",
        found.checks
    );
    let asked: Vec<_> = candidates(&guest, &StoragePolicy::default())
        .into_iter()
        .map(|image| (image.target, image.path))
        .collect();
    let expected = [("vda", "/d/vda"), ("vda-beneath-0", "/d/base")];
    assert_eq!(
        asked,
        expected.map(|(target, path)| (target.to_owned(), path.to_owned()))
    );
}

#[test]
fn a_chain_that_is_to_be_flattened_is_not_copied_offline() {
    let action = |backing: &[&str], chain: BackingChain| {
        let guest = GuestFacts {
            disks: vec![DiskFacts {
                backing: backing.iter().map(|&path| path.to_owned()).collect(),
                backing_types: backing.iter().map(|_| "file".to_owned()).collect(),
                ..disk("vda")
            }],
            ..GuestFacts::default()
        };
        let policy = StoragePolicy {
            backing_chain: chain.into(),
            ..StoragePolicy::default()
        };
        let results = [looked_for("vda"), looked_for("base")];
        planned(&guest, &policy, &results, &[room("vda")]).plans[0].action()
    };
    let (copied, refused) = (DiskAction::CopyOffline, DiskAction::Refuse);
    assert_eq!(action(&["/d/base"], BackingChain::Flatten), refused);
    assert_eq!(action(&["/d/base"], BackingChain::Whole), copied);
    assert_eq!(action(&[], BackingChain::Flatten), copied, "it lies on nothing");
}

#[test]
fn a_device_that_is_named_is_copied_onto_another_one() {
    let guest = |problem: &str| GuestFacts {
        disks: vec![DiskFacts {
            source_type: "block".to_owned(),
            virtual_size_bytes: 600,
            offline_problem: problem.to_owned(),
            ..disk("vda")
        }],
        ..GuestFacts::default()
    };
    let named = StoragePolicy {
        copy_disks: vec!["vda".to_owned()],
        ..StoragePolicy::default()
    };
    let asked = candidates(&guest(""), &named);
    assert!(asked.len() == 1 && asked[0].block_device && asked[0].virtual_size_bytes == 600);
    assert!(candidates(&guest(""), &StoragePolicy::default()).is_empty());
    let action = |guest: &GuestFacts, policy: &StoragePolicy, rooms: &[ImageRoom]| {
        planned(guest, policy, &[], rooms).plans[0].action()
    };
    assert_eq!(action(&guest(""), &named, &[room("vda")]), DiskAction::CopyOffline);
    let order = planned(&guest(""), &named, &[], &[room("vda")]).order;
    assert_eq!(order.copied_images, ["/d/vda"]);
    let not_blank = ImageRoom {
        problem: "there is something on it".to_owned(),
        ..room("vda")
    };
    for refused in [
        action(&guest(""), &StoragePolicy::default(), &[room("vda")]),
        action(&guest(""), &named, &[]),
        action(&guest(""), &named, &[not_blank]),
        action(&guest("it is in use"), &named, &[room("vda")]),
    ] {
        assert_eq!(refused, DiskAction::Refuse);
    }
}
