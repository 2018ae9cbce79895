//! Each comparison, passed and failed.

use drover_proto::agent::v1::{Incarnation, InterfaceFacts};
use drover_proto::v1::Host;

use super::*;

fn facts() -> Facts {
    let agent = AgentStatus {
        host: Some(Host {
            protocol_min: 1,
            protocol_max: 1,
            features: vec!["live".to_owned(), "tunnel".to_owned()],
            ..Host::default()
        }),
        ..AgentStatus::default()
    };
    let interface = |kind: &str, source: &str| InterfaceFacts {
        source_type: kind.to_owned(),
        source: source.to_owned(),
        ..InterfaceFacts::default()
    };
    Facts {
        guest: GuestFacts {
            guest_uuid: "g".to_owned(),
            name: "web".to_owned(),
            state: LibvirtState::Running.into(),
            memory_bytes: 1 << 30,
            incarnation: Some(Incarnation::default()),
            domain_type: "kvm".to_owned(),
            arch: "x86_64".to_owned(),
            interfaces: vec![interface("bridge", "br0"), interface("network", "default")],
            ..GuestFacts::default()
        },
        source: HostFacts {
            host_uuid: "a".to_owned(),
            ..HostFacts::default()
        },
        destination: HostFacts {
            host_uuid: "b".to_owned(),
            arch: "x86_64".to_owned(),
            memory_available_bytes: 2 << 30,
            bridges: vec!["br0".to_owned()],
            networks: vec!["default".to_owned()],
            ..HostFacts::default()
        },
        destination_guests: Vec::new(),
        source_agent: agent.clone(),
        destination_agent: agent,
        incoming: vec![passed("machine-type", ""), passed("cpu", "")],
    }
}

fn host() -> HostId {
    "host-2".parse().unwrap()
}

/// Exactly this check fails after the change, and a refusal has this reason.
fn fails(id: &str, reason: Reason, change: impl FnOnce(&mut Facts)) {
    let mut changed = facts();
    change(&mut changed);
    let checks = compare(&changed);
    let bad: Vec<_> = checks
        .iter()
        .filter(|c| c.result() != CheckResult::Passed)
        .map(|c| c.id.as_str())
        .collect();
    assert_eq!(bad, [id], "{checks:?}");
    assert!(!acceptable(&checks));
    assert_eq!(refusal(&checks, &host()).unwrap().reason, reason);
}

#[test]
fn what_fits_is_accepted() {
    let checks = compare(&facts());
    assert!(acceptable(&checks), "{checks:?}");
    assert_eq!(refusal(&checks, &host()), None);
}

#[test]
fn a_guest_that_is_off_or_broken_or_busy_is_refused() {
    for state in [
        LibvirtState::ShutOff,
        LibvirtState::Crashed,
        LibvirtState::PausedFault,
        LibvirtState::ShuttingDown,
        LibvirtState::PausedMigrating,
        LibvirtState::Unspecified,
    ] {
        fails("guest-state", Reason::GuestBusy, |facts| {
            facts.guest.state = state.into();
        });
    }
    fails("guest-idle", Reason::GuestBusy, |facts| facts.guest.job_active = true);
    fails("guest-idle", Reason::GuestBusy, |facts| facts.guest.incarnation = None);
}

#[test]
fn a_paused_guest_is_accepted() {
    let mut paused = facts();
    paused.guest.state = LibvirtState::Paused.into();
    assert!(acceptable(&compare(&paused)));
}

#[test]
fn snapshots_and_devices_are_refused() {
    fails("snapshots", Reason::ChecksFailed, |facts| facts.guest.snapshots = 1);
    fails("devices", Reason::ChecksFailed, |facts| {
        facts.guest.blockers = vec!["vTPM".to_owned()];
    });
}

#[test]
fn agents_that_do_not_fit_are_refused() {
    let host = |facts: &mut Facts| facts.destination_agent.host.clone().unwrap();
    fails("agents", Reason::FeatureMissing, |facts| {
        facts.destination_agent.host = Some(Host {
            protocol_min: 2,
            protocol_max: 3,
            ..host(facts)
        });
    });
    fails("agents", Reason::FeatureMissing, |facts| {
        facts.destination_agent.host = Some(Host {
            features: vec!["tunnel".to_owned()],
            ..host(facts)
        });
    });
    fails("agents", Reason::FeatureMissing, |facts| facts.source_agent.host = None);
}

#[test]
fn hosts_that_libvirt_takes_for_one_are_refused() {
    fails("host-uuid", Reason::ChecksFailed, |facts| {
        facts.source.host_uuid = "b".to_owned();
    });
    fails("host-uuid", Reason::ChecksFailed, |facts| {
        facts.source.host_uuid = String::new();
    });
}

#[test]
fn a_uuid_or_name_that_is_taken_there_is_refused() {
    let guest = |uuid: &str, name: &str| GuestFacts {
        guest_uuid: uuid.to_owned(),
        name: name.to_owned(),
        ..GuestFacts::default()
    };
    fails("uuid-free", Reason::GuestExists, |facts| {
        facts.destination_guests = vec![guest("g", "web")];
    });
    fails("name-free", Reason::GuestExists, |facts| {
        facts.destination_guests = vec![guest("other", "web")];
    });
}

#[test]
fn a_destination_without_room_or_networks_is_refused() {
    fails("memory", Reason::Unfit, |facts| {
        facts.destination.memory_available_bytes = (1 << 30) - 1;
    });
    fails("bridges", Reason::Unfit, |facts| facts.destination.bridges.clear());
    fails("networks", Reason::Unfit, |facts| facts.destination.networks.clear());
    fails("arch", Reason::Unfit, |facts| {
        facts.destination.arch = "aarch64".to_owned();
    });
}

#[test]
fn what_the_destination_refuses_or_does_not_say_is_refused() {
    fails("cpu", Reason::Unfit, |facts| {
        facts.incoming[1] = failed("cpu", "lacks avx512f", "");
    });
    fails("machine-type", Reason::Unfit, |facts| {
        facts.incoming.remove(0);
    });
    fails("memory", Reason::Unfit, |facts| {
        facts.incoming.push(failed("memory", "huge pages", ""));
    });
}
