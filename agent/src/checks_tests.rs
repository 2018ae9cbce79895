//! Each check fails for its own reason and for no other.

#[path = "checks_tests/post_copy.rs"]
mod post_copy_tests;

use drover_proto::agent::v1::InterfaceFacts;
use uuid::Uuid;

use super::*;
use crate::guest_xml::HugePages;
use crate::hypervisor::{GuestState, MachineTypes, UserFaults};

fn guest() -> agent::GuestFacts {
    agent::GuestFacts {
        name: "web".to_owned(),
        memory_bytes: 1 << 30,
        domain_type: "kvm".to_owned(),
        arch: "x86_64".to_owned(),
        machine: "pc-q35-10.0".to_owned(),
        interfaces: vec![interface("bridge", "br0"), interface("network", "default")],
        ..agent::GuestFacts::default()
    }
}

fn interface(source_type: &str, source: &str) -> InterfaceFacts {
    let (source_type, source) = (source_type.to_owned(), source.to_owned());
    InterfaceFacts {
        mac_address: String::new(),
        source_type,
        source,
    }
}

fn host() -> HostFacts {
    HostFacts {
        uuid: Uuid::from_u128(1),
        qemu_version: 10_000_002,
        memory_available: 4 << 30,
        machines: vec![MachineTypes {
            domain_type: "kvm".to_owned(),
            arch: "x86_64".to_owned(),
            names: vec!["pc-q35-10.0".to_owned()],
        }],
        bridges: vec!["br0".to_owned()],
        networks: vec!["default".to_owned()],
        huge_pages: vec![huge(2 << 20, 1 << 30)],
        numa_nodes: vec![0],
        online_cpus: vec![0, 1],
        lock_manager: Some("none".to_owned()),
        ..HostFacts::default()
    }
}

fn huge(page: u64, total: u64) -> HugePages {
    HugePages { page, total }
}

fn source() -> agent::HostFacts {
    agent::HostFacts {
        host_uuid: Uuid::from_u128(2).to_string(),
        qemu_version: 10_000_000,
        lock_manager: "none".to_owned(),
        state_free_bytes: Some(1 << 30),
        run_free_bytes: Some(1 << 30),
        ..agent::HostFacts::default()
    }
}

fn known() -> GuestFacts {
    GuestFacts {
        id: drover_proto::ids::GuestId::from_uuid(Uuid::from_u128(7)),
        name: "web".to_owned(),
        state: GuestState::ShutOff,
        persistent: true,
        autostart: false,
        xml: String::new(),
        inactive_xml: None,
        memory: 0,
        vcpus: 1,
        snapshots: 0,
        checkpoints: 0,
        managed_save: false,
        incarnation: None,
    }
}

/// The ids of the checks that did not pass.
fn not_passed(change: impl FnOnce(&mut Candidate<'_>)) -> Vec<String> {
    let (guest, source, host) = (guest(), source(), host());
    let mut candidate = Candidate {
        guest: &guest,
        source: &source,
        policy: None,
        host: &host,
        same_uuid: None,
        same_name: None,
        cpu: Ok(CpuAnswer::Fits),
        unfit: None,
        boot_files: Vec::new(),
        space: Space {
            state: Some(1 << 30),
            run: Some(1 << 30),
        },
    };
    // The changes are on leaked values: a test may leak.
    change(&mut candidate);
    let checks = all(&candidate);
    for check in &checks {
        let is_passed = check.result() == CheckResult::Passed;
        assert_eq!(
            check.remedy.is_empty(),
            is_passed,
            "{}: what fails has a remedy",
            check.id
        );
        assert!(!check.found.is_empty());
    }
    checks
        .into_iter()
        .filter(|check| check.result() != CheckResult::Passed)
        .map(|check| check.id)
        .collect()
}

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

#[test]
fn a_fitting_guest_passes_everything() {
    assert!(not_passed(|_| {}).is_empty());
}

/// Where the guest may go post-copy.
fn post_copy_lacks(change: impl FnOnce(&mut HostFacts, &mut agent::GuestFacts, &mut agent::TransferPolicy)) -> bool {
    let mut policy = agent::TransferPolicy {
        post_copy: true,
        ..agent::TransferPolicy::default()
    };
    let mut host = HostFacts {
        user_faults: UserFaults::Anybody,
        ..host()
    };
    let mut guest = guest();
    change(&mut host, &mut guest, &mut policy);
    let (policy, host, guest) = (leak(policy), leak(host), leak(guest));
    let bad = not_passed(|candidate| {
        (candidate.policy, candidate.host, candidate.guest) = (Some(policy), host, guest);
    });
    assert!(bad.is_empty() || bad == ["post-copy"], "{bad:?}");
    !bad.is_empty()
}

#[test]
fn each_obstacle_is_found_by_its_own_check() {
    assert_eq!(
        not_passed(|c| c.unfit = Some("no virDomainMigrateBegin3Params")),
        ["migration-calls"]
    );
    assert_eq!(not_passed(|c| c.same_uuid = Some(leak(known()))), ["uuid-free"]);
    assert_eq!(not_passed(|c| c.same_name = Some(leak(known()))), ["name-free"]);
    assert_eq!(
        not_passed(|c| c.cpu = Ok(CpuAnswer::Lacks("avx512".to_owned()))),
        ["cpu"]
    );
    assert_eq!(
        not_passed(|c| c.cpu = Ok(CpuAnswer::Unknown("passed through".to_owned()))),
        ["cpu"]
    );
    assert_eq!(not_passed(|c| c.cpu = Err("no answer".to_owned())), ["cpu"]);
}

#[test]
fn huge_pages_have_to_be_free_in_their_size() {
    let with = |page_bytes: u64, total_bytes: u64| {
        let guest = agent::GuestFacts {
            huge_pages: vec![agent::HugePages {
                page_bytes,
                total_bytes,
            }],
            ..guest()
        };
        not_passed(|c| c.guest = leak(guest))
    };
    assert!(with(0, 1 << 30).is_empty(), "the default size");
    assert!(with(2 << 20, 1 << 30).is_empty());
    assert_eq!(with(2 << 20, (1 << 30) + 1), ["huge-pages"]);
    assert_eq!(with(1 << 30, 1 << 30), ["huge-pages"]);
}

#[test]
fn memory_in_huge_pages_is_not_asked_for_twice() {
    let guest = agent::GuestFacts {
        huge_pages: vec![agent::HugePages {
            page_bytes: 0,
            total_bytes: 1 << 30,
        }],
        ..guest()
    };
    let host = HostFacts {
        memory_available: 200 << 20,
        ..host()
    };
    let (guest, host) = (leak(guest), leak(host));
    assert!(not_passed(|c| (c.guest, c.host) = (guest, host)).is_empty());
}

#[test]
fn nodes_and_cpus_are_looked_for_by_number() {
    let bound = |numa_nodes: Vec<u32>, host_cpus: Vec<u32>| {
        leak(agent::GuestFacts {
            numa_nodes,
            host_cpus,
            ..guest()
        })
    };
    assert!(not_passed(|c| c.guest = bound(vec![0], vec![0, 1])).is_empty());
    assert_eq!(not_passed(|c| c.guest = bound(vec![1], vec![])), ["numa"]);
    assert_eq!(not_passed(|c| c.guest = bound(vec![], vec![1, 2])), ["numa"]);
    let silent = leak(HostFacts {
        online_cpus: Vec::new(),
        ..host()
    });
    assert_eq!(
        not_passed(|c| (c.guest, c.host) = (bound(vec![], vec![1]), silent)),
        ["numa"]
    );
}

#[test]
fn a_boot_file_has_to_be_there() {
    let guest = leak(agent::GuestFacts {
        boot_files: vec!["/boot/vmlinuz".to_owned()],
        ..guest()
    });
    let with = |presence| {
        not_passed(|c| {
            c.guest = guest;
            c.boot_files = vec![("/boot/vmlinuz".to_owned(), presence)];
        })
    };
    assert!(with(Presence::Present).is_empty());
    assert_eq!(with(Presence::Absent), ["boot-files"]);
    assert_eq!(with(Presence::Unknown), ["boot-files"]);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("there"), b"").unwrap();
    let seen: Vec<_> = look(&[path("there"), path("not")])
        .into_iter()
        .map(|(_, seen)| seen)
        .collect();
    assert_eq!(seen, [Presence::Present, Presence::Absent]);
}

#[test]
fn agents_that_cannot_write_are_found() {
    assert_eq!(not_passed(|c| c.space.run = Some(1 << 20)), ["space"]);
    assert_eq!(not_passed(|c| c.space.state = None), ["space"]);
    let full = leak(agent::HostFacts {
        state_free_bytes: Some(0),
        ..source()
    });
    assert_eq!(not_passed(|c| c.source = full), ["space"]);
}

#[test]
fn lock_managers_have_to_be_the_same() {
    let of = |name: Option<&str>| {
        let lock_manager = name.map(str::to_owned);
        leak(HostFacts { lock_manager, ..host() })
    };
    assert_eq!(not_passed(|c| c.host = of(Some("lockd"))), ["lock-manager"]);
    assert_eq!(not_passed(|c| c.host = of(None)), ["lock-manager"]);
}

#[test]
fn each_lack_of_the_host_is_found_by_its_own_check() {
    type Lack = fn(&mut HostFacts);
    let lacks: [(&str, Lack); 5] = [
        ("host-uuid", |host| host.uuid = Uuid::from_u128(2)),
        ("machine-type", |host| host.machines.clear()),
        ("memory", |host| host.memory_available = 1 << 30),
        ("bridges", |host| host.bridges.clear()),
        ("networks", |host| host.networks.clear()),
    ];
    for (id, lack) in lacks {
        let mut host = host();
        lack(&mut host);
        assert_eq!(not_passed(|c| c.host = leak(host)), [id]);
    }
}

#[test]
fn an_older_qemu_is_said_and_no_obstacle() {
    let mut older = host();
    older.qemu_version = 7_002_000;
    assert!(not_passed(|c| c.host = leak(older)).is_empty());
}

#[test]
fn the_qemu_that_corrupts_emulated_guests_is_refused() {
    let trap = |domain_type: &str, there: u64, here: u64| {
        let guest = agent::GuestFacts {
            domain_type: domain_type.to_owned(),
            ..guest()
        };
        let mut host = host();
        host.qemu_version = here;
        host.machines[0].domain_type = domain_type.to_owned();
        let source = agent::HostFacts {
            qemu_version: there,
            ..source()
        };
        let (guest, host, source) = (leak(guest), leak(host), leak(source));
        not_passed(|c| (c.guest, c.host, c.source) = (guest, host, source))
    };
    assert_eq!(trap("qemu", 7_002_000, 10_000_002), ["versions"]);
    assert_eq!(trap("qemu", 10_000_002, 7_002_009), ["versions"]);
    assert!(trap("kvm", 7_002_000, 7_002_000).is_empty());
    assert!(trap("qemu", 10_000_002, 10_000_002).is_empty());
}

#[test]
fn one_guest_of_the_same_uuid_and_name_is_one_finding() {
    let other = leak(known());
    assert_eq!(
        not_passed(|c| (c.same_uuid, c.same_name) = (Some(other), Some(other))),
        ["uuid-free"]
    );
}

#[test]
fn another_machine_type_or_kind_of_guest_is_refused() {
    let newer = agent::GuestFacts {
        machine: "pc-q35-11.0".to_owned(),
        ..guest()
    };
    assert_eq!(not_passed(|c| c.guest = leak(newer)), ["machine-type"]);
    let emulated = agent::GuestFacts {
        domain_type: "qemu".to_owned(),
        ..guest()
    };
    assert_eq!(not_passed(|c| c.guest = leak(emulated)), ["machine-type"]);
}
