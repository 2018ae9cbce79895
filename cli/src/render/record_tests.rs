//! What a record says, line by line.

use drover_proto::v1::{MigrationError, MigrationPhase, PhaseOutcome, PhaseRecord, TransferSummary};
use prost_types::{Duration, Timestamp};

use super::*;

fn at(seconds: i64, nanos: i32) -> Option<Timestamp> {
    Some(Timestamp {
        seconds: 1_700_000_000 + seconds,
        nanos,
    })
}

fn moved() -> Migration {
    Migration {
        name: "migrations/m-1".to_owned(),
        guest_uuid: "u-1".to_owned(),
        guest_name: "demo".to_owned(),
        source_host: "hosts/host-a".to_owned(),
        destination_host: "hosts/host-b".to_owned(),
        guest_host: "hosts/host-b".to_owned(),
        state: MigrationState::Succeeded.into(),
        summary: Some(TransferSummary {
            blackout: Some(Duration {
                seconds: 0,
                nanos: 87_000_000,
            }),
            memory_sent_bytes: 540 << 20,
            iterations: 3,
            ..TransferSummary::default()
        }),
        trace_id: "0af7651916cd43dd8448eb211c80319c".to_owned(),
        start_time: at(0, 0),
        end_time: at(1, 920_000_000),
        phases: vec![PhaseRecord {
            phase: MigrationPhase::Validate.into(),
            attempt: 1,
            start_time: at(0, 0),
            end_time: at(0, 120_000_000),
            outcome: PhaseOutcome::Done.into(),
            detail: "9 checks".to_owned(),
        }],
        ..Migration::default()
    }
}

#[test]
fn a_success_tells_its_cost() {
    assert_eq!(
        summary(&moved()),
        "demo moved from host-a to host-b\n\
         \x20 blackout    87 ms\n\
         \x20 total time  1.92 s\n\
         \x20 sent        540 MiB of memory in 3 rounds\n\
         \x20 trace       0af7651916cd43dd8448eb211c80319c\n\
         \x20 details     drover timeline m-1"
    );
    assert!(
        record(&moved()).contains("  phase       validate #1  done in 120 ms: 9 checks"),
        "{}",
        record(&moved())
    );
}

#[test]
fn a_guest_that_was_moved_back_by_hand_is_said_to_be_there() {
    let back = Migration {
        guest_host: "hosts/host-a".to_owned(),
        ..moved()
    };
    let text = summary(&back);
    assert!(
        text.starts_with("demo moved from host-a to host-b, and was moved back by hand\n"),
        "{text}"
    );
}

#[test]
fn a_wait_names_its_host_and_a_wrong_word_is_an_alarm() {
    use drover_proto::v1::{Resolution, WaitingFor};
    let waits = Migration {
        state: MigrationState::AttentionRequired.into(),
        waiting_for: Some(WaitingFor {
            reason: "HOST_UNREACHABLE".to_owned(),
            host: "hosts/host-b".to_owned(),
            since_time: at(0, 0),
            remedy: "bring host-b back".to_owned(),
        }),
        ..moved()
    };
    let text = summary(&waits);
    assert!(text.contains("  waits for   host unreachable host-b since "), "{text}");
    assert!(text.contains("  remedy      bring host-b back"), "{text}");
    let word = |adopt_time, copy_ran| Migration {
        resolution: Some(Resolution {
            fenced_side: FencedSide::Destination.into(),
            operator: "spiffe://drover.local/user/alice".to_owned(),
            time: at(0, 0),
            adopt_time,
            copy_ran,
        }),
        ..moved()
    };
    let text = summary(&word(None, false));
    assert!(
        text.contains("host-b, said spiffe://drover.local/user/alice at "),
        "{text}"
    );
    assert!(text.contains("its agent has not been back since"), "{text}");
    let text = summary(&word(at(1, 0), true));
    assert!(text.contains("  ALARM       host-b was NOT fenced"), "{text}");
}

#[test]
fn a_failure_tells_why_and_what_to_do() {
    let failed = Migration {
        state: MigrationState::Failed.into(),
        error: Some(MigrationError {
            reason: "STORAGE_NOT_SHARED".to_owned(),
            message: "vda is a local file".to_owned(),
            remedy: "put it on shared storage".to_owned(),
            host: "hosts/host-b".to_owned(),
            phase: MigrationPhase::Validate.into(),
        }),
        checks: vec![
            Check {
                id: "cpu".to_owned(),
                result: CheckResult::Passed.into(),
                ..Check::default()
            },
            Check {
                id: "storage-shared".to_owned(),
                result: CheckResult::Failed.into(),
                found: "probe not found".to_owned(),
                ..Check::default()
            },
        ],
        summary: None,
        ..moved()
    };
    assert_eq!(
        summary(&failed),
        "demo did not move: it is at host-a as before\n\
         \x20 why         STORAGE_NOT_SHARED at host-b: vda is a local file\n\
         \x20 remedy      put it on shared storage\n\
         \x20 check       storage-shared failed: probe not found\n\
         \x20 trace       0af7651916cd43dd8448eb211c80319c\n\
         \x20 details     drover timeline m-1"
    );
}
