//! Each check fails for its own reason and for no other.

use drover_proto::agent::v1::InterfaceFacts;
use uuid::Uuid;

use super::*;
use crate::hypervisor::{GuestState, MachineTypes};

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
        ..HostFacts::default()
    }
}

fn source() -> agent::HostFacts {
    agent::HostFacts {
        host_uuid: Uuid::from_u128(2).to_string(),
        qemu_version: 10_000_000,
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
        incarnation: None,
    }
}

/// The ids of the checks that did not pass.
fn not_passed(change: impl FnOnce(&mut Candidate<'_>)) -> Vec<String> {
    let (guest, source, host) = (guest(), source(), host());
    let mut candidate = Candidate {
        guest: &guest,
        source: &source,
        host: &host,
        same_uuid: None,
        same_name: None,
        cpu: Ok(CpuAnswer::Fits),
        unfit: None,
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
    let tied = agent::GuestFacts {
        blockers: vec!["a TPM".to_owned()],
        ..guest()
    };
    assert_eq!(not_passed(|c| c.guest = leak(tied)), ["devices"]);
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
