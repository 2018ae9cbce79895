//! What commands print, to the letter: scripts depend on it. `DROVER_WRITE_GOLDEN=1 cargo test -p drover golden` writes
//! the files anew; look at the difference before it becomes part of the product.

use std::path::PathBuf;

use drover_proto::v1::*;
use serde_json::Value;

use super::stand_in::{ID, Stage};
use super::{Bench, Run, finished, moved};

/// File → command.
const CASES: &[(&str, &str)] = &[
    ("host-list.txt", "host list"),
    ("host-list.json", "host list -o json"),
    ("host-get.txt", "host get host-a"),
    ("host-get.json", "host get host-a -o json"),
    ("host-cordon.txt", "host cordon host-b"),
    ("guest-list.txt", "guest list"),
    ("guest-list.json", "guest list -o json"),
    ("guest-owner.txt", "guest owner demo"),
    ("guest-owner.json", "guest owner demo -o json"),
    ("migration-list.txt", "migration list --limit 1"),
    ("migration-list.json", "migration list --limit 1 -o json"),
    ("migration-get.txt", "migration get ID"),
    ("migration-get.json", "migration get ID -o json"),
    ("check.txt", "check demo"),
    ("check.json", "check demo -o json"),
    ("check-one.txt", "check demo --to host-b"),
    ("check-no-estimate.txt", "check demo --to host-b --no-estimate"),
    ("dry-run.txt", "migrate demo --to host-b --dry-run"),
    ("dry-run.json", "migrate demo --to host-b --validate-only -o json"),
    ("exit-codes.txt", "exit-codes"),
    ("unknown-guest.txt", "migrate deno --to host-b"),
];

/// Everything a script sees.
fn seen(line: &str, run: &Run) -> String {
    format!(
        "$ drover {line}\n{}--- stderr\n{}--- exit code {}\n",
        run.stdout, run.stderr, run.code
    )
}

#[tokio::test]
async fn output_is_stable_for_scripts() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let write = std::env::var_os("DROVER_WRITE_GOLDEN").is_some();
    let bench = Bench::new(Stage {
        record: recorded(),
        checks: checked(),
        ..Stage::default()
    })
    .await;
    let mut wrong = Vec::new();
    for (file, line) in CASES {
        let run = bench.run(&line.replace("ID", ID)).await;
        let seen = seen(line, &run);
        let path = folder.join(file);
        if write {
            std::fs::write(&path, &seen).unwrap();
        } else if !is_as_recorded(&std::fs::read_to_string(&path).unwrap_or_default(), &seen) {
            wrong.push(format!("{}:\n{seen}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "not as recorded:\n{}", wrong.join("\n"));
}

/// Text to the letter. JSON may have got fields: none that was there may be missing or different.
fn is_as_recorded(recorded: &str, seen: &str) -> bool {
    let json = |text: &str| {
        let (from, to) = (text.find("\n{")?, text.find("\n--- stderr")?);
        serde_json::from_str::<Value>(text.get(from..to)?).ok()
    };
    match (json(recorded), json(seen)) {
        (Some(recorded), Some(seen)) => has_all(&recorded, &seen),
        (_, _) => recorded == seen,
    }
}

fn has_all(recorded: &Value, seen: &Value) -> bool {
    match (recorded, seen) {
        (Value::Object(recorded), Value::Object(seen)) => recorded
            .iter()
            .all(|(key, value)| seen.get(key).is_some_and(|seen| has_all(value, seen))),
        (Value::Array(recorded), Value::Array(seen)) => {
            recorded.len() == seen.len() && recorded.iter().zip(seen).all(|(one, other)| has_all(one, other))
        }
        (recorded, seen) => recorded == seen,
    }
}

#[test]
fn a_new_field_is_no_change_but_a_missing_one_is() {
    let output = |json: &str| format!("$ drover x\n{json}\n--- stderr\n--- exit code 0\n");
    let recorded = output(r#"{"a": 1, "b": [{"c": "d"}]}"#);
    assert!(is_as_recorded(
        &recorded,
        &output(r#"{"a": 1, "b": [{"c": "d", "e": 2}], "f": 3}"#)
    ));
    for changed in [r#"{"a": 1}"#, r#"{"a": 2, "b": [{"c": "d"}]}"#, r#"{"a": 1, "b": []}"#] {
        assert!(!is_as_recorded(&recorded, &output(changed)), "{changed}");
    }
}

/// A host that would do, with an estimate, and one that would not.
fn checked() -> Vec<DestinationChecks> {
    let check = |id: &str, result: CheckResult, found: &str, remedy: &str| Check {
        id: id.to_owned(),
        result: result.into(),
        found: found.to_owned(),
        remedy: remedy.to_owned(),
    };
    let fits = check("cpu", CheckResult::Passed, "the guest's CPU can be had here", "");
    let time = |seconds, nanos| Some(prost_types::Duration { seconds, nanos });
    let estimate = Estimate {
        duration: time(8, 400_000_000),
        blackout: time(0, 120_000_000),
        transfer_bytes: 800 << 20,
        convergence_probability: 1.0,
        dirty_bytes_per_second: 12 << 20,
        writable_set_bytes: 300 << 20,
        bandwidth_bytes_per_second: 95 << 20,
        link_knowledge: LinkKnowledge::Learnt.into(),
        sample_time: Some(prost_types::Timestamp {
            seconds: 1_700_000_000,
            nanos: 0,
        }),
        ..Estimate::default()
    };
    vec![
        DestinationChecks {
            destination_host: "hosts/host-b".to_owned(),
            acceptable: true,
            checks: vec![fits.clone()],
            estimate: Some(estimate),
            ..DestinationChecks::default()
        },
        DestinationChecks {
            destination_host: "hosts/host-c".to_owned(),
            checks: vec![
                fits,
                check(
                    "bridges",
                    CheckResult::Failed,
                    "not here: br7",
                    "make it here, or choose another host",
                ),
            ],
            ..DestinationChecks::default()
        },
    ]
}

/// A migration with a bit of everything, at fixed times.
fn recorded() -> Migration {
    let at = |second: i64| {
        Some(prost_types::Timestamp {
            seconds: 1_700_000_000 + second,
            nanos: 0,
        })
    };
    let check = Check {
        id: "cpu".to_owned(),
        result: CheckResult::Passed.into(),
        found: "the destination has every feature".to_owned(),
        remedy: String::new(),
    };
    let phase = PhaseRecord {
        phase: MigrationPhase::Validate.into(),
        attempt: 1,
        start_time: at(0),
        end_time: at(1),
        outcome: PhaseOutcome::Done.into(),
        detail: "16 checks".to_owned(),
    };
    Migration {
        labels: [("team".to_owned(), "red".to_owned())].into(),
        guest_host: "hosts/host-b".to_owned(),
        checks: vec![check],
        phases: vec![phase],
        create_time: at(0),
        start_time: at(0),
        end_time: at(9),
        update_time: at(9),
        requested_by: "spiffe://drover.local/user/alice".to_owned(),
        ..moved()
    }
}

#[tokio::test]
async fn manual_pages_are_written_without_a_network() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man1");
    let line = format!("man --dir {}", pages.display());
    let run = finished(super::drover().args(line.split(' ')).output().await.unwrap());
    assert_eq!(run.code, 0, "{}", run.stderr);
    for page in [
        "drover.1",
        "drover-migrate.1",
        "drover-host-cordon.1",
        "drover-pki-issue.1",
    ] {
        let text = std::fs::read_to_string(pages.join(page)).unwrap();
        assert!(text.contains(".TH drover"), "{page}: {text}");
    }
    let all = std::fs::read_to_string(pages.join("drover.1")).unwrap();
    assert!(all.contains("Exit codes:"), "{all}");
}
