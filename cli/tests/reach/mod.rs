//! Every RPC of the public API can be asked from the command line, or is listed here with the reason why not.

use std::collections::BTreeSet;

use drover_proto::FILE_DESCRIPTOR_SET;
use prost::Message;
use prost_types::FileDescriptorSet;

use super::stand_in::{ID, Stage};
use super::{Bench, moved, transferring};
use drover_proto::v1::watch_migration_response::Event;

/// RPC → a command that calls it.
const REACHED: &[(&str, &str)] = &[
    ("MigrationService/CreateMigration", "migrate demo --to host-b --no-wait"),
    ("MigrationService/GetMigration", "migration get ID"),
    ("MigrationService/ListMigrations", "migration list"),
    ("MigrationService/WatchMigration", "migration watch ID"),
    ("MigrationService/CancelMigration", "migration cancel ID --no-wait"),
    ("MigrationService/RetryMigration", "migration retry ID"),
    ("MigrationService/CheckMigration", "check demo"),
    (
        "MigrationService/AdjustMigration",
        "migration adjust ID --bandwidth none",
    ),
    (
        "MigrationService/ResolveMigration",
        "migration resolve ID --source-is-fenced --yes",
    ),
    ("HostService/ListHosts", "host list"),
    ("HostService/GetHost", "host get host-a"),
    ("HostService/CordonHost", "host cordon host-a"),
    ("HostService/UncordonHost", "host uncordon host-a"),
    ("HostService/ListGuests", "guest list"),
    ("HostService/GetGuestOwner", "guest owner demo"),
];

/// RPC → why no command calls it.
const NOT_REACHED: &[(&str, &str)] = &[
    (
        "HostService/RegisterHost",
        "agents only: the table of authorization refuses users",
    ),
    ("HostService/DrainHost", "not served by this version"),
];

/// All RPCs of `drover.v1`.
fn served() -> BTreeSet<String> {
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
    let services = set
        .file
        .iter()
        .filter(|file| file.package() == "drover.v1")
        .flat_map(|file| &file.service);
    let name = |service: &str, method: &str| format!("{service}/{method}");
    services
        .flat_map(|service| service.method.iter().map(|method| name(service.name(), method.name())))
        .collect()
}

#[test]
fn no_rpc_is_forgotten() {
    let listed: Vec<&str> = REACHED.iter().chain(NOT_REACHED).map(|(rpc, _)| *rpc).collect();
    let unique: BTreeSet<String> = listed.iter().map(|&rpc| rpc.to_owned()).collect();
    assert_eq!(unique.len(), listed.len(), "an RPC is listed twice");
    assert_eq!(unique, served());
    assert!(NOT_REACHED.iter().all(|(_, why)| !why.is_empty()));
}

#[tokio::test]
async fn every_rpc_is_called_by_its_command() {
    for (rpc, line) in REACHED {
        let bench = Bench::new(Stage {
            watches: vec![vec![transferring(), Event::Changed(moved())]],
            record: moved(),
            ..Stage::default()
        })
        .await;
        let run = bench.run(&line.replace("ID", ID)).await;
        let stage = bench.controller.0.lock().unwrap();
        let calls = &stage.calls;
        let path = format!("/drover.v1.{rpc}");
        assert!(
            calls.contains(&path),
            "`drover {line}` called {calls:?}\n{}",
            run.stderr
        );
    }
}
