//! Each judgement, passed and failed.

use std::time::{Duration, SystemTime};

use drover_proto::agent::v1::{AgentStatus, Blocker, Incarnation, PeerProbe};
use drover_proto::v1::Host;

use super::*;

fn guest() -> GuestFacts {
    GuestFacts {
        guest_uuid: "g".to_owned(),
        name: "web".to_owned(),
        state: LibvirtState::Running.into(),
        incarnation: Some(Incarnation::default()),
        ..GuestFacts::default()
    }
}

fn agent() -> AgentStatus {
    AgentStatus {
        host: Some(Host {
            protocol_min: 1,
            protocol_max: 1,
            features: vec!["live".to_owned(), "tunnel".to_owned()],
            ..Host::default()
        }),
        ..AgentStatus::default()
    }
}

fn host() -> HostId {
    "host-2".parse().unwrap()
}

fn obstacles(checks: &[Check]) -> Vec<&str> {
    let bad = checks.iter().filter(|check| is_obstacle(check));
    bad.map(|check| check.id.as_str()).collect()
}

/// Exactly this check fails after the change, and a refusal has this reason.
fn fails(id: &str, reason: Reason, change: impl FnOnce(&mut GuestFacts)) {
    let mut changed = guest();
    change(&mut changed);
    let checks = of_guest(&changed, Way::Live);
    assert_eq!(obstacles(&checks), [id], "{checks:?}");
    assert!(!acceptable(&checks));
    assert_eq!(refusal(&checks, &host()).unwrap().reason, reason);
}

#[test]
fn what_fits_is_accepted() {
    let checks = of_guest(&guest(), Way::Live);
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
        fails("guest-state", Reason::GuestBusy, |guest| guest.state = state.into());
    }
    fails("guest-idle", Reason::GuestBusy, |guest| guest.job_active = true);
    fails("guest-idle", Reason::GuestBusy, |guest| guest.incarnation = None);
}

#[test]
fn a_paused_guest_is_accepted() {
    let mut paused = guest();
    paused.state = LibvirtState::Paused.into();
    assert!(acceptable(&of_guest(&paused, Way::Live)));
}

#[test]
fn snapshots_block_jobs_and_devices_are_refused_one_by_one() {
    fails("snapshots", Reason::ChecksFailed, |guest| guest.snapshots = 1);
    fails("block-jobs", Reason::ChecksFailed, |guest| {
        guest.block_jobs = vec!["vda".to_owned()];
    });
    for id in ["host-devices", "tpm", "shared-folders", "devices"] {
        fails(id, Reason::ChecksFailed, |guest| {
            guest.ties = vec![Blocker {
                check_id: id.to_owned(),
                what: "PCI device 0000:03:00.0".to_owned(),
                ..Blocker::default()
            }];
        });
    }
    fails("devices", Reason::ChecksFailed, |guest| {
        guest.ties = vec![Blocker {
            check_id: "a-check-of-tomorrow".to_owned(),
            what: "something".to_owned(),
            ..Blocker::default()
        }];
    });
}

#[test]
fn a_tpm_whose_state_goes_along_is_no_obstacle() {
    let with = |state: &str, holds_data| GuestFacts {
        tpm_state: state.to_owned(),
        ties: vec![Blocker {
            check_id: "tpm".to_owned(),
            what: "it has a TPM".to_owned(),
            holds_data,
        }],
        ..guest()
    };
    assert!(acceptable(&of_guest(&with("/swtpm/state", false), Way::Live)));
    for refused in [with("", false), with("/swtpm/state", true)] {
        assert!(!acceptable(&of_guest(&refused, Way::Live)), "{refused:?}");
    }
}

#[test]
fn each_device_is_named() {
    let tie = |what: &str| Blocker {
        check_id: "host-devices".to_owned(),
        what: what.to_owned(),
        ..Blocker::default()
    };
    let guest = GuestFacts {
        ties: vec![tie("PCI device 0000:03:00.0"), tie("USB device 046d:c52b")],
        ..guest()
    };
    let checks = of_guest(&guest, Way::Live);
    let devices = checks.iter().find(|check| check.id == "host-devices").unwrap();
    assert_eq!(devices.found, "PCI device 0000:03:00.0; USB device 046d:c52b");
}

#[test]
fn agents_that_do_not_fit_are_refused() {
    let with = |change: fn(&mut Host)| {
        let mut status = agent();
        change(status.host.as_mut().unwrap());
        status
    };
    assert_eq!(agents(&agent(), &agent(), Way::Live).result(), CheckResult::Passed);
    for other in [
        with(|host| (host.protocol_min, host.protocol_max) = (2, 3)),
        with(|host| host.features = vec!["tunnel".to_owned()]),
        AgentStatus::default(),
    ] {
        for (source, destination) in [(agent(), other.clone()), (other, agent())] {
            let check = agents(&source, &destination, Way::Live);
            assert_ne!(check.result(), CheckResult::Passed);
            assert_eq!(refusal(&[check], &host()).unwrap().reason, Reason::FeatureMissing);
        }
    }
}

#[test]
fn clocks_are_compared_with_what_the_network_leaves_unsure() {
    let second = Duration::from_secs(1);
    let start = SystemTime::UNIX_EPOCH + second * 1000;
    let exact = |ahead: f64| Some(Clock::seen(start, start + Duration::from_secs_f64(ahead), start));
    let found = |a, b| {
        let check = clock(a, b);
        (check.result(), check.found)
    };
    assert_eq!(found(exact(0.0), exact(0.5)).0, CheckResult::Passed);
    let (result, words) = found(exact(0.0), exact(5.0));
    assert!(
        result == CheckResult::Passed && words.contains("synchronise"),
        "{words}"
    );
    assert_eq!(found(exact(20.0), exact(5.0)).0, CheckResult::Failed);
    assert_eq!(found(exact(5.0), exact(20.0)).0, CheckResult::Failed);
    // Between question and answer lay a minute: anything may be so.
    let vague = Clock::seen(start, start + second * 15, start + second * 60);
    assert_eq!(found(Some(vague), exact(0.0)).0, CheckResult::Passed);
    // A clock behind the controller's.
    let behind = Clock::seen(start, start - second * 30, start);
    assert_eq!(found(Some(behind), exact(0.0)).0, CheckResult::Failed);
    assert_eq!(found(None, exact(0.0)).0, CheckResult::NotChecked);
    assert!(acceptable(&[clock(None, None)]), "a hint");
}

#[test]
fn the_port_has_to_be_open_in_both_directions() {
    let (a, b): (HostId, HostId) = ("a".parse().unwrap(), "b".parse().unwrap());
    let probe = |address: &str, reachable| PeerProbe {
        address: address.to_owned(),
        reachable,
        problem: if reachable {
            String::new()
        } else {
            "timed out".to_owned()
        },
        elapsed: None,
        bytes_per_second: 0,
    };
    let both = |there: &[PeerProbe], back: &[PeerProbe]| {
        let direction = |from, to, probes| Direction { from, to, probes };
        ports(&[direction(&a, &b, there), direction(&b, &a, back)])
    };
    let (open, shut) = ([probe("b:1", true)], [probe("b:1", false)]);
    assert_eq!(both(&open, &open).result(), CheckResult::Passed);
    for (there, back, word) in [
        (&shut, &open, "a does not reach b"),
        (&open, &shut, "b does not reach a"),
    ] {
        let check = both(there, back);
        assert_eq!(check.result(), CheckResult::Failed);
        assert!(check.found.contains(word), "{}", check.found);
        assert!(!check.remedy.is_empty());
    }
    assert_eq!(both(&[], &open).result(), CheckResult::Failed, "no address");
    let second = both(&[probe("b:1", false), probe("b:2", true)], &open);
    assert_eq!(second.result(), CheckResult::Passed);
    assert!(second.found.contains("b:2, but not b:1"), "{}", second.found);
}

#[test]
fn what_the_destination_does_not_say_is_refused_unless_it_is_a_hint() {
    let all: Vec<Check> = BY_DESTINATION.iter().map(|id| passed(id, "")).collect();
    assert!(acceptable(&complete(all.clone(), false)));
    for id in BY_DESTINATION {
        let said = all.iter().filter(|check| check.id != id).cloned().collect();
        let checks = complete(said, false);
        assert_eq!(checks.len(), BY_DESTINATION.len());
        let expected: &[&str] = if HINTS.contains(&id) { &[] } else { &[id] };
        assert_eq!(obstacles(&checks), expected);
    }
}

#[test]
fn a_failed_check_goes_before_one_that_was_not_made() {
    let checks = [
        not_checked("cpu", "nobody knows"),
        failed("memory", "too little", "buy some"),
    ];
    let refusal = refusal(&checks, &host()).unwrap();
    assert_eq!(refusal.message, "memory: too little");
    assert_eq!(
        (refusal.reason, refusal.remedy.as_deref()),
        (Reason::Unfit, Some("buy some"))
    );
    assert!(
        !acceptable(&[failed("space", "full", "")]),
        "a hint that failed is an obstacle"
    );
}
