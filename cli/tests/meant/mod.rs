//! Which guest is meant: while it moves, where its host is away, and where a request is repeated.

use drover_proto::failure::{Failure, Reason};
use drover_proto::v1::{CreateMigrationRequest, Guest, MigrationPhase, MigrationState};
use serde_json::Value;

use super::stand_in::{GUEST, ID, Stage, guest};
use super::{Bench, migration, moved};

const REQUEST: &str = "0190a1b2-0000-7000-8000-0000000000e1";

fn on_its_way() -> Vec<Guest> {
    let on = |host: &str| Guest {
        migration: format!("migrations/{ID}"),
        ..guest(host)
    };
    vec![on("host-a"), on("host-b")]
}

#[tokio::test]
async fn a_guest_on_its_way_is_one_guest() {
    let other = Failure::new(
        Reason::MigrationExists,
        format!("the guest has the unfinished migrations/{ID}"),
    );
    let bench = Bench::new(Stage {
        guests: Some(on_its_way()),
        refusal: Some(other),
        ..Stage::default()
    })
    .await;
    for line in [
        "migrate demo --to host-b",
        "migrate demo --to host-b --dry-run",
        "check demo",
    ] {
        let run = bench.run(line).await;
        assert_eq!(run.code, 3, "{line}: {}", run.stderr);
        assert!(run.stderr.contains(ID), "{line}: {}", run.stderr);
    }
    let owner = bench.run("guest owner demo").await;
    assert_eq!(owner.code, 0, "{}", owner.stderr);
    let stage = bench.controller.0.lock().unwrap();
    assert_eq!(stage.created[0].migration.as_ref().unwrap().source_host, "");
}

#[tokio::test]
async fn a_repeated_command_is_the_same_request_wherever_the_guest_is() {
    let bench = Bench::new(Stage {
        record: moved(),
        all_answer: true,
        ..Stage::default()
    })
    .await;
    for from in ["", " --from host-a"] {
        let line = format!("migrate demo --to host-b --no-wait --request-id {REQUEST}{from}");
        // Before, on the way, afterwards, and after the guest was removed.
        for guests in [vec![guest("host-a")], on_its_way(), vec![guest("host-b")], vec![]] {
            bench.controller.0.lock().unwrap().guests = Some(guests);
            let run = bench.run(&line).await;
            assert_eq!(run.code, 0, "{line}: {}", run.stderr);
        }
        let created = std::mem::take(&mut bench.controller.0.lock().unwrap().created);
        assert_eq!(created.len(), 4);
        assert!(
            created
                .iter()
                .all(|request: &CreateMigrationRequest| *request == created[0])
        );
        assert_eq!(created[0].request_id, REQUEST);
    }
    // Without an id it is a new request, and a host that has no such guest is a mistake.
    bench.controller.0.lock().unwrap().guests = Some(vec![guest("host-b")]);
    let run = bench.run("migrate demo --to host-b --from host-a").await;
    assert_eq!(run.code, 4, "{}", run.stderr);
    assert!(run.stderr.contains("next: it is on host-b"), "{}", run.stderr);
}

#[tokio::test]
async fn what_a_silent_host_may_have_is_undecided() {
    let bench = Bench::new(Stage {
        guests: Some(vec![]),
        record: moved(),
        ..Stage::default()
    })
    .await;
    let owner = bench.run("guest owner web -o json").await;
    assert_eq!(owner.code, 7, "{}", owner.stderr);
    let told: Value = serde_json::from_str(&owner.stdout).unwrap();
    assert_eq!(told["owner_host"], "");
    assert!(
        told["undecided_reason"]
            .as_str()
            .unwrap()
            .contains("host-c does not answer")
    );
    for line in ["migrate web --to host-b", "check web"] {
        let run = bench.run(line).await;
        assert_eq!((run.code, run.stdout.as_str()), (7, ""), "{line}: {}", run.stderr);
        assert!(run.stderr.contains("host-c does not answer"), "{line}: {}", run.stderr);
        assert!(run.stderr.contains("drover host get host-c"), "{line}: {}", run.stderr);
    }
    bench.controller.0.lock().unwrap().all_answer = true;
    assert_eq!(
        bench.run("guest owner web").await.code,
        4,
        "all have said that they have it not"
    );
}

#[tokio::test]
async fn a_name_is_known_from_the_record_of_its_migration() {
    let bench = Bench::new(Stage {
        guests: Some(vec![]),
        record: migration(MigrationState::AttentionRequired, MigrationPhase::Transfer),
        undecided: true,
        ..Stage::default()
    })
    .await;
    let owner = bench.run("guest owner demo -o json").await;
    assert_eq!(owner.code, 7, "{}", owner.stderr);
    let told: Value = serde_json::from_str(&owner.stdout).unwrap();
    assert_eq!(told["migration"], ID);
    let run = bench.run("check demo").await;
    assert_eq!(run.code, 3, "{}", run.stderr);
    assert!(run.stderr.contains(ID), "{}", run.stderr);
    let run = bench.run("migrate demo --to host-b --no-wait").await;
    assert_eq!(run.code, 0, "{}", run.stderr);
    let stage = bench.controller.0.lock().unwrap();
    assert_eq!(stage.created[0].migration.as_ref().unwrap().guest_uuid, GUEST);
}

#[tokio::test]
async fn a_host_that_is_not_there_is_a_mistake() {
    let bench = Bench::new(Stage::default()).await;
    for line in [
        "check demo --from host-z",
        "check demo --to host-z",
        "migrate demo --to host-b --from host-z",
    ] {
        let run = bench.run(line).await;
        assert_eq!(run.code, 4, "{line}: {}", run.stderr);
        assert!(run.stderr.contains("no host host-z"), "{line}: {}", run.stderr);
        assert!(
            run.stderr.contains("did you mean host-a or host-b?"),
            "{line}: {}",
            run.stderr
        );
    }
}
