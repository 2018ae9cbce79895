//! A timeline from fixed data, letter by letter.

use drover_proto::v1::{CallRecord, Estimate, MigrationPhase, MigrationState, PhaseRecord, TransferSummary};

use super::*;

/// Milliseconds after the beginning.
fn at(millis: i64) -> Option<Timestamp> {
    Some(Timestamp {
        seconds: 1_700_000_000 + millis.div_euclid(1000),
        nanos: i32::try_from(millis.rem_euclid(1000)).unwrap() * 1_000_000,
    })
}

fn took(millis: i64) -> Option<Duration> {
    Some(Duration {
        seconds: millis / 1000,
        nanos: i32::try_from(millis % 1000).unwrap() * 1_000_000,
    })
}

fn phase(phase: MigrationPhase, start: i64, end: i64) -> PhaseRecord {
    PhaseRecord {
        phase: phase.into(),
        attempt: 1,
        start_time: at(start),
        end_time: at(end),
        ..PhaseRecord::default()
    }
}

fn call(name: &str, host: &str, start: i64, millis: i64) -> CallRecord {
    CallRecord {
        call: format!("libvirt.{name}"),
        host: format!("hosts/{host}"),
        start_time: at(start),
        duration: took(millis),
        error: String::new(),
    }
}

fn round(iteration: i64, start: i64, millis: i64) -> IterationRecord {
    IterationRecord {
        iteration,
        start_time: at(start),
        duration: took(millis),
        remaining_bytes: 64 << 20,
        ..IterationRecord::default()
    }
}

fn migration() -> Migration {
    Migration {
        name: "migrations/m-1".to_owned(),
        guest_name: "demo".to_owned(),
        source_host: "hosts/host-a".to_owned(),
        destination_host: "hosts/host-b".to_owned(),
        state: MigrationState::Succeeded.into(),
        start_time: at(0),
        end_time: at(3200),
        trace_id: "0af7651916cd43dd8448eb211c80319c".to_owned(),
        phases: vec![
            phase(MigrationPhase::Validate, 0, 100),
            phase(MigrationPhase::Prepare, 100, 600),
            phase(MigrationPhase::Transfer, 600, 1600),
            phase(MigrationPhase::Verify, 1600, 3100),
            phase(MigrationPhase::Finalize, 3100, 3200),
        ],
        calls: vec![
            call("begin", "host-a", 110, 3),
            call("prepare", "host-b", 120, 460),
            call("perform", "host-a", 610, 880),
            call("finish", "host-b", 1500, 9),
            call("confirm", "host-a", 1610, 1490),
        ],
        iterations: vec![round(1, 620, 500), round(2, 1120, 300)],
        summary: Some(TransferSummary {
            switch_time: at(1510),
            blackout: took(87),
            ..TransferSummary::default()
        }),
        ..Migration::default()
    }
}

#[test]
fn a_migration_reads_from_top_to_bottom() {
    let expected = "\
demo  host-a → host-b  succeeded  blackout 87 ms
trace 0af7651916cd43dd8448eb211c80319c

PHASE / CALL             0                       3.20 s           AT        TOOK
validate                 ━                                     +0 ms      100 ms
prepare                  ━━━━━━                              +100 ms      500 ms
  begin @host-a           ─                                  +110 ms      3.0 ms
  prepare @host-b         ─────                              +120 ms      460 ms
transfer                      ━━━━━━━━━━                     +600 ms      1.00 s
  perform @host-a             ─────────                      +610 ms      880 ms
    round 1 64 MiB            ······                         +620 ms      500 ms
    round 2 64 MiB                 ····                      +1.12 s      300 ms
  BLACKOUT                            ██                     +1.42 s       87 ms
  finish @host-b                       ─                     +1.50 s      9.0 ms
verify                                  ━━━━━━━━━━━━━━━      +1.60 s      1.50 s
  confirm @host-a                       ───────────────      +1.61 s      1.49 s
finalize                                              ━      +3.10 s      100 ms

━ phase   ─ call to libvirt   · round of pre-copy   █ blackout
Calls and rounds are placed by the clocks of their hosts.";
    assert_eq!(timeline(&migration()), expected);
}

#[test]
fn what_was_expected_is_below_it() {
    let mut foreseen = migration();
    foreseen.estimate = Some(Estimate {
        duration: took(1200),
        blackout: took(50),
        transfer_bytes: 512 << 20,
        ..Estimate::default()
    });
    foreseen.summary = foreseen.summary.map(|summary| TransferSummary {
        duration: took(1000),
        tunnel_bytes: 640 << 20,
        ..summary
    });
    foreseen.estimate_error = Some(0.2);
    foreseen.estimate_blackout_error = Some(-0.43);
    let expected = "\
finalize                                              ━      +3.10 s      100 ms

          EXPECTED  WAS      ERROR
transfer  1.20 s    1.00 s   20 % too long
blackout  50 ms     87 ms    43 % too short
sent      512 MiB   640 MiB  20 % too little

━ phase   ─ call to libvirt   · round of pre-copy   █ blackout
Calls and rounds are placed by the clocks of their hosts.";
    let page = timeline(&foreseen);
    assert!(page.ends_with(expected), "{page}");
}

#[test]
fn no_line_is_wider_than_a_terminal() {
    let mut wide = migration();
    wide.guest_name = "a-very-long-name-".repeat(9);
    wide.estimate = Some(Estimate {
        unknown: "nobody\nknows ".repeat(20),
        ..Estimate::default()
    });
    wide.calls.push(CallRecord {
        error: "no\nreason ".repeat(40),
        ..call("abort", &"h".repeat(63), 900_000, 99)
    });
    wide.calls.push(call("early", "host-b", -3_600_000, 5));
    wide.iterations = (1..=200).map(|number| round(number, 600 + number, 1)).collect();
    let page = timeline(&wide);
    assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
    assert!(page.contains("    ! no reason no reason"), "{page}");
    assert!(page.contains("… 189 more"), "{page}");
    assert_eq!(page.matches("    round ").count(), FIRST_ROUNDS + LAST_ROUNDS);
}

#[test]
fn what_goes_on_and_what_has_not_begun_is_said() {
    let mut running = migration();
    running.phases.truncate(3);
    running.phases[2].end_time = None;
    running.end_time = None;
    running.summary = None;
    assert!(timeline(&running).contains("goes on"));
    let queued = Migration {
        guest_uuid: "u-1".to_owned(),
        ..Migration::default()
    };
    assert!(timeline(&queued).ends_with("Nothing has happened yet."));
}
