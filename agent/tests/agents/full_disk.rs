//! A disk that is full: what was begun goes on, what is new is refused and leaves nothing.

use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use drover_agent::journal::{Decision, Journal, Part, Record, Verdict};
use drover_proto::ids::{Attempt, GuestId, MigrationId};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use uuid::Uuid;

fn record() -> Record {
    Record {
        migration: MigrationId::generate(),
        attempt: Attempt(1),
        guest: GuestId::from_uuid(Uuid::now_v7()),
        serial: 0,
        created: SystemTime::now(),
        boot_id: Uuid::nil(),
        agent_instance: Uuid::nil(),
        lease: 0,
        tombstone: None,
        decision: Decision::Open,
        guest_ended: false,
        adopted: None,
        closed: None,
        part: Part::Nothing,
        calls: Vec::new(),
    }
}

/// Mounts a small file system that only this thread, and those that it starts, can see.
fn mount_small(at: &Path) {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some("size=768k")).unwrap();
}

fn fill(folder: &Path) {
    let mut file = std::fs::File::create(folder.join("filler")).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
}

async fn on_a_full_disk(folder: &Path) {
    let journal = Journal::open(folder).await.unwrap();
    let begun = record();
    journal
        .lock(begun.migration)
        .await
        .unwrap()
        .create(begun.clone())
        .await
        .unwrap();
    fill(folder);

    let new = record();
    assert!(
        journal
            .lock(new.migration)
            .await
            .unwrap()
            .create(new.clone())
            .await
            .is_err()
    );
    assert!(journal.read(new.migration).is_none());
    for decision in [Decision::Decided(Verdict::Ran), Decision::Settled(Verdict::Ran)] {
        let mut page = journal.lock(begun.migration).await.unwrap();
        page.change(|record| record.decision = decision).await.unwrap();
    }
    // Nothing can be made smaller now, but it is closed all the same.
    journal
        .lock(begun.migration)
        .await
        .unwrap()
        .close(SystemTime::now())
        .await
        .unwrap();

    let journal = Journal::open(folder).await.unwrap();
    let [kept] = journal.records().try_into().unwrap();
    assert_eq!(kept.decision, Decision::Settled(Verdict::Ran));
    assert!(kept.closed.is_some());
}

#[test]
fn a_full_disk_stops_what_is_new_and_not_what_was_begun() {
    // Mounting needs it; the lab's tests run as root as well.
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not root: not looked at");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let looked = std::thread::spawn(move || {
        mount_small(&path);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(on_a_full_disk(&path));
    });
    looked.join().unwrap();
}
