//! The real `drover` command against a controller that plays a script.

mod golden;
mod meant;
mod mistakes;
mod reach;
mod requests;
mod stand_in;

use std::path::PathBuf;
use std::process::{Output, Stdio};

use drover_proto::failure::{Failure, Reason};
use drover_proto::v1::watch_migration_response::Event;
use drover_proto::v1::*;
use prost_types::Duration;
use serde_json::Value;
use stand_in::{GUEST, ID, Stage, StandIn};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

/// A PKI made by the command itself, and a controller.
struct Bench {
    folder: TempDir,
    address: String,
    controller: StandIn,
}

struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

fn drover() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_drover"));
    command.env_clear().kill_on_drop(true);
    command
}

fn finished(output: Output) -> Run {
    Run {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Bench {
    async fn new(stage: Stage) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().display().to_string();
        for line in [
            "init DIR",
            "issue DIR controller",
            "issue DIR user alice",
            "issue DIR user nobody",
        ] {
            let line = line.replace("DIR", &path);
            assert!(
                drover()
                    .arg("pki")
                    .args(line.split(' '))
                    .output()
                    .await
                    .unwrap()
                    .status
                    .success()
            );
        }
        let controller = StandIn::new(stage);
        let address = controller.serve(&folder.path().join("controller")).await;
        Self {
            folder,
            address,
            controller,
        }
    }

    fn command(&self, user: &str, line: &str) -> Command {
        let file = |name: &str| -> PathBuf { self.folder.path().join(format!("user-{user}")).join(name) };
        let mut command = drover();
        command
            .env("DROVER_CONTROLLER", &self.address)
            .env("DROVER_CERT", file("tls.crt"))
            .env("DROVER_KEY", file("tls.key"))
            .env("DROVER_CA", file("ca.crt"))
            .args(line.split(' '));
        command
    }

    async fn run(&self, line: &str) -> Run {
        finished(self.command("alice", line).output().await.unwrap())
    }
}

fn migration(state: MigrationState, phase: MigrationPhase) -> Migration {
    Migration {
        name: format!("migrations/{ID}"),
        guest_uuid: GUEST.to_owned(),
        guest_name: "demo".to_owned(),
        source_host: "hosts/host-a".to_owned(),
        destination_host: "hosts/host-b".to_owned(),
        state: state.into(),
        phase: phase.into(),
        trace_id: "0af7651916cd43dd8448eb211c80319c".to_owned(),
        ..Migration::default()
    }
}

fn moved() -> Migration {
    let blackout = Some(Duration {
        seconds: 0,
        nanos: 87_000_000,
    });
    let summary = Some(TransferSummary {
        blackout,
        iterations: 3,
        ..TransferSummary::default()
    });
    Migration {
        summary,
        ..migration(MigrationState::Succeeded, MigrationPhase::Finalize)
    }
}

fn transferring() -> Event {
    Event::Snapshot(migration(MigrationState::Running, MigrationPhase::Transfer))
}

/// A migration during which the controller restarts.
fn restart() -> Stage {
    let progress = Progress {
        memory_total_bytes: 100 << 20,
        memory_remaining_bytes: 25 << 20,
        ..Progress::default()
    };
    let switched = GuestSwitched {
        host: "hosts/host-b".to_owned(),
        blackout: Some(Duration {
            seconds: 0,
            nanos: 87_000_000,
        }),
        ..GuestSwitched::default()
    };
    let first = vec![transferring(), Event::Progress(progress)];
    let second = vec![transferring(), Event::GuestSwitched(switched), Event::Changed(moved())];
    Stage {
        watches: vec![first, second],
        record: moved(),
        ..Stage::default()
    }
}

#[tokio::test]
async fn a_guest_is_found_moved_and_watched_over_a_restart() {
    let bench = Bench::new(restart()).await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut command = bench.command("alice", "migrate demo --to host-b --label team=red");
    let run = finished(command.env("TRACEPARENT", parent).output().await.unwrap());
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(
        run.stdout
            .starts_with("demo moved from host-a to host-b\n  blackout    87 ms\n"),
        "{}",
        run.stdout
    );
    assert!(run.stdout.contains("0af7651916cd43dd8448eb211c80319c"));
    assert!(
        run.stderr.contains("lost, trying again (shutting down)"),
        "{}",
        run.stderr
    );
    assert!(
        run.stderr.contains("the guest runs on host-b, blackout 87 ms"),
        "{}",
        run.stderr
    );
    assert!(!run.stderr.contains('\x1b'), "{}", run.stderr);
    assert!(
        run.stderr.lines().all(|line| line.chars().count() <= 80),
        "{}",
        run.stderr
    );

    let stage = bench.controller.0.lock().unwrap();
    let wanted = stage.created[0].migration.as_ref().unwrap();
    assert_eq!(
        (wanted.guest_uuid.as_str(), wanted.source_host.as_str()),
        (GUEST, ""),
        "the controller finds the source"
    );
    assert_eq!(wanted.labels["team"], "red");
    assert!(!stage.created[0].request_id.is_empty());
    assert_eq!(stage.traceparents, [parent]);
    // It went on from its last message.
    assert_eq!(stage.resume_tokens, ["", "1.1"]);
}

#[tokio::test]
async fn a_request_is_repeated_with_its_id_while_nobody_answers() {
    let bench = Bench::new(Stage {
        absences: 2,
        ..restart()
    })
    .await;
    let run = bench.run("migrate demo --to host-b --no-wait -o json").await;
    assert_eq!(run.code, 0, "{}", run.stderr);
    let record: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(record["state"], "QUEUED");
    let stage = bench.controller.0.lock().unwrap();
    assert_eq!(stage.created.len(), 3);
    assert!(
        stage
            .created
            .iter()
            .all(|request| request.request_id == stage.created[0].request_id)
    );
}

#[tokio::test]
async fn results_are_json_on_request() {
    let bench = Bench::new(restart()).await;
    let run = bench.run("migration watch ID -o json".replace("ID", ID).as_str()).await;
    assert_eq!(run.code, 0, "{}", run.stderr);
    let lines: Vec<Value> = run
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 5);
    assert_eq!(lines[3]["guest_switched"]["blackout"], 0.087);
    assert_eq!(lines[4]["changed"]["state"], "SUCCEEDED");

    let run = bench.run("migration list -o json").await;
    let list: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(list["migrations"].as_array().unwrap().len(), 2);
    let run = bench.run("guest list").await;
    assert!(run.stdout.contains("demo   host-a  running  512 MiB"), "{}", run.stdout);
    assert!(run.stderr.contains("host-c does not answer"), "{}", run.stderr);
    let run = bench.run("host list").await;
    assert!(run.stdout.contains("host-b  up"), "{}", run.stdout);
}

#[tokio::test]
async fn exit_codes_tell_what_happened() {
    let ending = |record: Migration| Stage {
        watches: vec![vec![transferring(), Event::Changed(record.clone())]],
        record,
        ..Stage::default()
    };
    let at = |state| migration(state, MigrationPhase::Transfer);
    let error = MigrationError {
        phase: MigrationPhase::Validate.into(),
        ..MigrationError::default()
    };
    let refused = Migration {
        error: Some(error),
        ..at(MigrationState::Failed)
    };
    for (record, code) in [
        (at(MigrationState::Failed), 1),
        (refused, 3),
        (at(MigrationState::Cancelled), 6),
        (at(MigrationState::AttentionRequired), 7),
        (at(MigrationState::GuestEnded), 8),
    ] {
        let bench = Bench::new(ending(record.clone())).await;
        let run = bench.run("migrate demo --to host-b").await;
        assert_eq!(run.code, code, "{record:?}\n{}", run.stderr);
    }
    // Who cancels wants it cancelled.
    let bench = Bench::new(ending(at(MigrationState::Cancelled))).await;
    assert_eq!(bench.run(&format!("migration cancel {ID}")).await.code, 0);
    let bench = Bench::new(ending(moved())).await;
    assert_eq!(bench.run(&format!("migration cancel {ID}")).await.code, 3);
}

#[tokio::test]
async fn errors_tell_the_next_step() {
    let refusal = Some(Failure::new(Reason::HostNotFound, "there is no host host-d"));
    let bench = Bench::new(Stage {
        refusal,
        all_answer: true,
        ..Stage::default()
    })
    .await;
    let run = bench.run("migrate demo --to host-d").await;
    assert_eq!((run.code, run.stdout.as_str()), (4, ""));
    assert!(
        run.stderr.contains("next: did you mean host-a or host-b?"),
        "{}",
        run.stderr
    );
    let run = bench.run("migrate deno --to host-b").await;
    assert_eq!(run.code, 4);
    assert!(run.stderr.contains("did you mean demo?"), "{}", run.stderr);
    let run = bench.run("host cordon hots-a").await;
    assert_eq!(run.code, 4);
    assert!(run.stderr.contains("next: did you mean host-a?"), "{}", run.stderr);
    let run = bench.run("guest owner deno").await;
    assert_eq!(run.code, 4);
    assert!(run.stderr.contains("did you mean demo?"), "{}", run.stderr);
    let undecided = Bench::new(Stage {
        undecided: true,
        ..Stage::default()
    })
    .await;
    assert_eq!(undecided.run("guest owner demo").await.code, 7);
    assert_eq!(bench.run("migration get not-an-id").await.code, 2);
    assert_eq!(bench.run("migration").await.code, 2);

    let run = finished(bench.command("nobody", "host list").output().await.unwrap());
    assert_eq!(run.code, 9, "{}", run.stderr);
    assert!(run.stderr.contains("user/nobody may not call"), "{}", run.stderr);

    let run = bench.run("host list --controller 127.0.0.1:1").await;
    assert_eq!(run.code, 5, "{}", run.stderr);
    assert!(run.stderr.contains("--controller"), "{}", run.stderr);
    let other = Bench::new(Stage::default()).await;
    let run = bench.run(&format!("host list --controller {}", other.address)).await;
    assert_eq!(run.code, 5, "{}", run.stderr);
    assert!(run.stderr.contains("drover pki show"), "{}", run.stderr);
}

#[tokio::test]
async fn an_interrupt_leaves_the_migration_alone_and_says_so() {
    let bench = Bench::new(Stage {
        watches: vec![vec![transferring()]],
        ..Stage::default()
    })
    .await;
    let mut command = bench.command("alice", "migrate demo --to host-b");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It watches, by now: it has told what it saw.
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    while !lines.next_line().await.unwrap().unwrap().starts_with("transfer") {}
    let process = child.id().unwrap().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &process])
            .status()
            .await
            .unwrap()
            .success()
    );
    assert_eq!(child.wait().await.unwrap().code(), Some(130));
    let mut said = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        said.push_str(&line);
    }
    assert!(said.contains("The migration goes on without you."), "{said}");
    assert!(said.contains(&format!("drover migration cancel {ID}")), "{said}");
}
