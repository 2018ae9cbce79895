//! What is said of mistakes: each names what is wrong in the words of whoever typed it, and the next step.

use drover_proto::failure::{Failure, Reason};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::stand_in::Stage;
use super::{Bench, drover, finished};

#[tokio::test]
async fn a_bad_address_is_a_mistake_of_whoever_typed_it() {
    let bench = Bench::new(Stage::default()).await;
    for bad in ["http://localhost:7440", "localhost:99999", "[http://", "localhost:"] {
        let run = bench.run(&format!("host list --controller {bad}")).await;
        assert_eq!(run.code, 2, "{bad}: {}", run.stderr);
        assert!(
            run.stderr.contains("is not the address of a controller"),
            "{bad}: {}",
            run.stderr
        );
    }
    let mut empty = bench.command("alice", "host list");
    let run = finished(empty.env("DROVER_CONTROLLER", "").output().await.unwrap());
    assert_eq!(run.code, 2, "{}", run.stderr);
    let run = bench
        .run(&format!("host list --config {}", bench.folder.path().display()))
        .await;
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(run.stderr.contains("is a directory"), "{}", run.stderr);
    let run = bench.run("migration list --limit 0").await;
    assert_eq!(run.code, 2, "{}", run.stderr);
}

#[tokio::test]
async fn what_is_no_controller_is_called_so() {
    let bench = Bench::new(Stage::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut hello = [0; 1024];
            let _ = stream.read(&mut hello).await;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let run = bench.run(&format!("host list --controller {address}")).await;
    assert_eq!(run.code, 5, "{}", run.stderr);
    assert!(run.stderr.contains("it is no Drover controller"), "{}", run.stderr);
    assert!(!run.stderr.contains("certificates"), "{}", run.stderr);
}

#[tokio::test]
async fn a_wrong_file_of_authorities_is_named() {
    let (bench, other) = (Bench::new(Stage::default()).await, Bench::new(Stage::default()).await);
    let ca = other.folder.path().join("ca.crt");
    let run = bench.run(&format!("host list --ca {}", ca.display())).await;
    assert_eq!(run.code, 5, "{}", run.stderr);
    assert!(
        run.stderr.contains(&format!("no authority in {}", ca.display())),
        "{}",
        run.stderr
    );
}

#[tokio::test]
async fn a_refusal_names_roles_and_options() {
    let refusal = Failure::invalid("migration.policy.bandwidth_limit_bytes_per_second", "is too small");
    let bench = Bench::new(Stage {
        refusal: Some(refusal),
        ..Stage::default()
    })
    .await;
    let run = bench.run("migrate demo --to host-b --bandwidth 1B/s").await;
    assert_eq!(run.code, 2, "{}", run.stderr);
    assert!(
        run.stderr.contains("error: --bandwidth: is too small"),
        "{}",
        run.stderr
    );
    let run = finished(bench.command("nobody", "host cordon host-a").output().await.unwrap());
    assert_eq!(run.code, 9, "{}", run.stderr);
    assert!(
        run.stderr.contains("it takes the role operator or admin"),
        "{}",
        run.stderr
    );

    bench.controller.0.lock().unwrap().refusal = Some(Failure::new(Reason::StoreFailed, "it cannot be written"));
    let run = bench.run("migrate demo --to host-b").await;
    assert_eq!(run.code, 5, "{}", run.stderr);
    assert!(run.stderr.contains("disk is full"), "{}", run.stderr);
}

#[tokio::test]
async fn exit_codes_are_a_document_too() {
    let run = finished(drover().args(["exit-codes", "-o", "json"]).output().await.unwrap());
    let told: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(told["exit_codes"][3]["code"], 3);
    assert!(
        told["exit_codes"][3]["meaning"]
            .as_str()
            .unwrap()
            .starts_with("refused")
    );
}
