//! Which events end a guest, and which call for a look at a copy that must stand still: every event in every state.

use std::time::SystemTime;

use drover_proto::ids::{Attempt, GuestId};
use uuid::Uuid;

use super::*;
use crate::hypervisor::{GuestState, Incarnation, JobStats, MigrateFlags};
use crate::journal::{Decision, Limits, SourcePart, Verdict};

fn source(state: SourceState, decision: Decision, closed: bool) -> Record {
    let part = SourcePart {
        state,
        peer: "b".parse().unwrap(),
        guest_name: "web".to_owned(),
        state_before: GuestState::Running,
        runs: None,
        autostart_before: false,
        inactive_xml: None,
        definition: crate::journal::DefinitionNews::AsSent,
        overrides: drover_proto::overrides::Overrides::default(),
        incarnation: Incarnation {
            boot_id: Uuid::nil(),
            qemu_pid: 1,
            qemu_start_time: 1,
        },
        flags: MigrateFlags {
            persistent: true,
            post_copy: false,
            auto_converge: false,
            storage_proved: true,
            parallel: 0,
            zstd: false,
            copied: None,
            detect_zeroes: false,
            resume: false,
        },
        copied: Vec::new(),
        delete_source: false,
        limits: Limits::default(),
        suspended_by_agent: false,
        ran_on: false,
        post_copy_ordered: false,
        delivery: None,
        offline: None,
    };
    Record {
        migration: MigrationId::generate(),
        attempt: Attempt(1),
        guest: GuestId::from_uuid(Uuid::now_v7()),
        serial: 1,
        created: SystemTime::now(),
        boot_id: Uuid::nil(),
        agent_instance: Uuid::nil(),
        lease: 0,
        tombstone: None,
        decision,
        guest_ended: false,
        adopted: None,
        closed: closed.then(SystemTime::now),
        part: Part::Source(Box::new(part)),
        calls: Vec::new(),
    }
}

const DECISIONS: [Decision; 5] = [
    Decision::Open,
    Decision::Decided(Verdict::NeverRan),
    Decision::Decided(Verdict::Ran),
    Decision::Settled(Verdict::NeverRan),
    Decision::Settled(Verdict::Ran),
];

#[test]
fn a_copy_stands_still_from_its_hand_over_until_somebody_decides() {
    for state in [SourceState::Sending, SourceState::HandedOver] {
        for decision in DECISIONS {
            for closed in [false, true] {
                let expected = state == SourceState::HandedOver && decision == Decision::Open && !closed;
                let record = source(state, decision, closed);
                assert_eq!(must_stand_still(&record), expected, "{state:?} {decision:?} {closed}");
            }
        }
    }
}

#[test]
fn whatever_may_set_a_copy_going_is_looked_into() {
    for what in [Happened::Started, Happened::Resumed, Happened::Changed] {
        assert!(may_run(&what), "{what:?}");
    }
    for what in [
        Happened::Suspended { by_migration: true },
        Happened::Suspended { by_migration: false },
        Happened::Stopped(StopReason::Destroyed),
        Happened::Iteration(1),
        Happened::JobCompleted(JobStats::default()),
    ] {
        assert!(!may_run(&what), "{what:?}");
    }
}

#[test]
fn a_guest_that_was_handed_over_can_only_be_destroyed() {
    let ends_by = |state, reason| ends(&source(state, Decision::Open, false), &Happened::Stopped(reason));
    for reason in [StopReason::Shutdown, StopReason::Crashed] {
        assert!(ends_by(SourceState::Sending, reason), "{reason:?}");
        assert!(
            !ends_by(SourceState::HandedOver, reason),
            "its host goes down: {reason:?}"
        );
    }
    for state in [SourceState::Sending, SourceState::HandedOver] {
        assert!(ends_by(state, StopReason::Destroyed));
        for reason in [StopReason::Migrated, StopReason::Failed, StopReason::Other] {
            assert!(!ends_by(state, reason), "{reason:?}");
        }
    }
    for decision in DECISIONS.into_iter().filter(|decision| *decision != Decision::Open) {
        let record = source(SourceState::Sending, decision, false);
        assert!(
            !ends(&record, &Happened::Stopped(StopReason::Destroyed)),
            "{decision:?}"
        );
    }
}
