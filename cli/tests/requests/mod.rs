//! What commands ask the controller for: each flag in its field, with its units, and nothing else.

use drover_proto::v1::*;
use prost_types::Duration;
use serde_json::Value;

use super::stand_in::{GUEST, ID, Stage};
use super::{Bench, restart};

fn checked(host: &str, obstacle: Option<&str>) -> DestinationChecks {
    let check = |id: &str, result: CheckResult| Check {
        id: id.to_owned(),
        result: result.into(),
        found: "as it was found".to_owned(),
        remedy: String::new(),
    };
    let failed = obstacle.map(|id| check(id, CheckResult::Failed));
    DestinationChecks {
        destination_host: format!("hosts/{host}"),
        acceptable: obstacle.is_none(),
        checks: failed.into_iter().chain([check("cpu", CheckResult::Passed)]).collect(),
        ..DestinationChecks::default()
    }
}

#[tokio::test]
async fn a_check_tells_by_its_exit_code_whether_any_host_would_do() {
    let stage = Stage {
        checks: vec![checked("host-b", Some("bridges")), checked("host-c", None)],
        ..Stage::default()
    };
    let bench = Bench::new(stage).await;
    let run = bench.run("check demo").await;
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(
        run.stdout.contains("host-b  no          bridges: as it was found"),
        "{}",
        run.stdout
    );
    assert!(!run.stdout.contains("RESULT"), "{}", run.stdout);
    let verbose = bench.run("check demo --verbose").await;
    assert!(verbose.stdout.contains("host-b: not acceptable") && verbose.stdout.contains("host-c: acceptable"));

    bench.controller.0.lock().unwrap().checks.truncate(1);
    let run = bench
        .run("check demo --to host-b --disk vda=/srv/b.qcow2 -o json")
        .await;
    assert_eq!(run.code, 3, "{}", run.stderr);
    let told: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(told["destinations"][0]["checks"][0]["result"], "FAILED");
    let asked = bench.controller.0.lock().unwrap().checked.pop().unwrap();
    assert_eq!(
        asked.estimate_view(),
        EstimateView::Unspecified,
        "the controller's default"
    );
    assert_eq!(asked.guest_uuid, GUEST);
    assert_eq!(asked.source_host, "hosts/host-a");
    assert_eq!(asked.destination_hosts, ["hosts/host-b"]);
    assert_eq!(asked.destination_overrides.unwrap().disks[0].source, "/srv/b.qcow2");

    assert_eq!(bench.run("check nobody").await.code, 7, "host-c may have it");
    bench.controller.0.lock().unwrap().all_answer = true;
    assert_eq!(bench.run("check nobody").await.code, 4);
    assert_eq!(bench.run("check demo --to Not/A/Host").await.code, 2);
}

#[tokio::test]
async fn an_estimate_that_was_left_out_is_said_to_be_left_out() {
    let stage = Stage {
        checks: vec![checked("host-b", None), checked("host-c", None)],
        ..Stage::default()
    };
    let bench = Bench::new(stage).await;
    let run = bench.run("check demo --no-estimate").await;
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stdout.contains("host-b  yes         left out\n"), "{}", run.stdout);
    let run = bench.run("check demo --no-estimate --verbose").await;
    assert!(
        run.stdout.contains("estimate left out") && !run.stdout.contains("not known"),
        "{}",
        run.stdout
    );
    let run = bench.run("check demo --no-estimate -o json").await;
    let told: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(told["estimate_view"], "NONE");
    assert!(told["destinations"][0].get("estimate").is_none(), "{told}");
    let stage = bench.controller.0.lock().unwrap();
    let asked = stage.checked.iter().map(CheckMigrationRequest::estimate_view);
    assert!(asked.eq([EstimateView::None; 3]));
}

#[tokio::test]
async fn a_policy_is_typed_with_its_units() {
    let bench = Bench::new(restart()).await;
    let line = "migrate demo --to host-b --no-wait --max-downtime 200ms --deadline 5m --on-deadline pause-and-finish \
                --bandwidth 800Mbit/s --parallel 4 --allow-auto-converge";
    let run = bench.run(line).await;
    assert_eq!(run.code, 0, "{}", run.stderr);
    let plain = bench.run("migrate demo --to host-b --no-wait").await;
    assert_eq!(plain.code, 0, "{}", plain.stderr);
    let stage = bench.controller.0.lock().unwrap();
    let wanted = MigrationPolicy {
        max_downtime: Some(Duration {
            seconds: 0,
            nanos: 200_000_000,
        }),
        deadline: Some(Duration { seconds: 300, nanos: 0 }),
        on_deadline: DeadlineAction::PauseAndFinish.into(),
        bandwidth_limit_bytes_per_second: 100_000_000,
        parallel_connections: 4,
        allow_auto_converge: Some(true),
        ..MigrationPolicy::default()
    };
    let asked = |at: usize| stage.created[at].migration.as_ref().unwrap().policy.clone();
    assert_eq!(asked(0), Some(wanted));
    assert_eq!(asked(1), None, "all of it is the controller's default");
}

#[tokio::test]
async fn adjusting_names_what_changes_and_nothing_else() {
    let bench = Bench::new(restart()).await;
    let run = bench
        .run(&format!("migration adjust {ID} --bandwidth none --etag 7"))
        .await;
    assert_eq!(run.code, 0, "{}", run.stderr);
    let run = bench
        .run(&format!("migration adjust {ID} --deadline 2m --pause-and-finish"))
        .await;
    assert_eq!(run.code, 0, "{}", run.stderr);
    for bad in ["", "--bandwidth 500", "--max-downtime 5", "--deadline soon"] {
        let run = bench.run(format!("migration adjust {ID} {bad}").trim()).await;
        assert_eq!(run.code, 2, "{bad}: {}", run.stderr);
    }
    let stage = bench.controller.0.lock().unwrap();
    let name = format!("migrations/{ID}");
    let lifted = AdjustMigrationRequest {
        name: name.clone(),
        bandwidth_limit_bytes_per_second: Some(0),
        etag: "7".to_owned(),
        ..AdjustMigrationRequest::default()
    };
    let finish = AdjustMigrationRequest {
        name,
        deadline: Some(Duration { seconds: 120, nanos: 0 }),
        action: AdjustAction::PauseAndFinish.into(),
        ..AdjustMigrationRequest::default()
    };
    assert_eq!(stage.adjusted, [lifted, finish]);
}

#[tokio::test]
async fn a_word_about_a_host_has_to_be_confirmed() {
    let bench = Bench::new(restart()).await;
    let line = format!("migration resolve {ID} --destination-is-fenced");
    let run = bench.run(&line).await;
    assert_eq!(run.code, 2, "nobody can be asked: {}", run.stderr);
    assert!(run.stderr.contains("--yes"), "{}", run.stderr);
    // The stand-in takes no word; that it was asked is what counts.
    let run = bench.run(&format!("{line} --yes")).await;
    assert!(run.stderr.contains("not part of the script"), "{}", run.stderr);
    let both = bench.run(&format!("{line} --source-is-fenced --yes")).await;
    assert_eq!(both.code, 2, "one side only: {}", both.stderr);
}
