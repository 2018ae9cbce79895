//! Pages over restarts: what was written is there, what was torn is not believed, what is old goes.

use std::os::unix::fs::FileExt;

use drover_proto::ids::{Attempt, GuestId};
use uuid::Uuid;

use super::super::record::{Part, Tombstone};
use super::super::state::{Decision, Verdict};
use super::*;

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

async fn created(journal: &Journal) -> Record {
    let record = record();
    let mut page = journal.lock(record.migration).await.unwrap();
    Record::clone(&*page.create(record).await.unwrap())
}

#[tokio::test]
async fn records_are_numbered_in_the_order_in_which_they_were_made() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(directory.path()).await.unwrap();
    let (first, second) = (created(&journal).await, created(&journal).await);
    assert!(first.serial < second.serial);
    let journal = Journal::open(directory.path()).await.unwrap();
    assert_eq!(journal.read(first.migration).unwrap().serial, first.serial);
    let third = created(&journal).await;
    assert!(second.serial < third.serial, "also after a restart");
    // A new try takes the place of an older one, and comes after what was made meanwhile.
    let mut page = journal.lock(first.migration).await.unwrap();
    let again = page.create(first).await.unwrap();
    assert!(third.serial < again.serial);
}

#[tokio::test]
async fn a_record_survives_a_restart_with_its_last_change() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(directory.path()).await.unwrap();
    let mut expected = created(&journal).await;
    for verdict in [Decision::Decided(Verdict::Ran), Decision::Settled(Verdict::Ran)] {
        let mut page = journal.lock(expected.migration).await.unwrap();
        page.change(|record| record.decision = verdict).await.unwrap();
        expected.decision = verdict;
        let again = Journal::open(directory.path()).await.unwrap();
        assert_eq!(*again.read(expected.migration).unwrap(), expected);
    }
    assert!(journal.read(MigrationId::generate()).is_none());
}

#[tokio::test]
async fn a_page_can_be_changed_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let record = created(&Journal::open(directory.path()).await.unwrap()).await;
    let journal = Journal::open(directory.path()).await.unwrap();
    let tombstone = Tombstone {
        up_to: Attempt(1),
        reason: "cancelled".to_owned(),
    };
    let mut page = journal.lock(record.migration).await.unwrap();
    page.change(|record| record.tombstone = Some(tombstone.clone()))
        .await
        .unwrap();
    let journal = Journal::open(directory.path()).await.unwrap();
    assert_eq!(journal.read(record.migration).unwrap().tombstone, Some(tombstone));
}

#[tokio::test]
async fn a_torn_change_leaves_the_record_before() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(directory.path()).await.unwrap();
    let record = created(&journal).await;
    journal
        .lock(record.migration)
        .await
        .unwrap()
        .change(|record| record.guest_ended = true)
        .await
        .unwrap();
    let path = directory
        .path()
        .join("journal")
        .join(format!("{}.journal", record.migration));
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[0; 64], SLOT_SIZE as u64 + 8).unwrap();
    let journal = Journal::open(directory.path()).await.unwrap();
    assert_eq!(*journal.read(record.migration).unwrap(), record);
}

#[tokio::test]
async fn a_damaged_page_is_refused_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let record = created(&Journal::open(directory.path()).await.unwrap()).await;
    let path = directory
        .path()
        .join("journal")
        .join(format!("{}.journal", record.migration));
    std::fs::write(&path, vec![0; 100]).unwrap();
    let journal = Journal::open(directory.path()).await.unwrap();
    assert!(journal.lock(record.migration).await.is_err());
    assert!(path.exists());
}

#[tokio::test]
async fn a_cut_off_creation_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let record = created(&Journal::open(directory.path()).await.unwrap()).await;
    let partial = directory
        .path()
        .join("journal")
        .join(format!("{}.partial", MigrationId::generate()));
    std::fs::write(&partial, b"half").unwrap();
    let journal = Journal::open(directory.path()).await.unwrap();
    assert!(!partial.exists());
    assert_eq!(journal.records().len(), 1);
    assert_eq!(journal.records()[0].migration, record.migration);
}

#[tokio::test]
async fn closed_records_are_small_and_swept_after_thirty_days() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(directory.path()).await.unwrap();
    let (fresh, old) = (created(&journal).await, created(&journal).await);
    let long_ago = SystemTime::now() - KEPT - Duration::from_secs(60);
    journal
        .lock(fresh.migration)
        .await
        .unwrap()
        .close(SystemTime::now())
        .await
        .unwrap();
    journal
        .lock(old.migration)
        .await
        .unwrap()
        .close(long_ago)
        .await
        .unwrap();
    let path = directory
        .path()
        .join("journal")
        .join(format!("{}.journal", fresh.migration));
    assert_eq!(std::fs::metadata(path).unwrap().len(), 2 * CLOSED_SLOT_SIZE as u64);
    let journal = Journal::open(directory.path()).await.unwrap();
    assert!(journal.read(fresh.migration).unwrap().closed.is_some());
    assert!(journal.read(old.migration).is_none());
    assert_eq!(std::fs::read_dir(directory.path().join("journal")).unwrap().count(), 1);
}

#[tokio::test]
async fn a_record_without_room_for_the_future_is_refused_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(directory.path()).await.unwrap();
    let mut large = record();
    large.tombstone = Some(Tombstone {
        up_to: Attempt(1),
        reason: "x".repeat(SLOT_SIZE - 40 * 1024),
    });
    let refused = journal.lock(large.migration).await.unwrap().create(large.clone()).await;
    assert!(matches!(refused, Err(JournalError::TooLarge { .. })));
    assert!(journal.read(large.migration).is_none());
}

#[tokio::test]
async fn the_lock_is_one_per_migration() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::open(directory.path()).await.unwrap();
    let (a, b) = (created(&journal).await.migration, created(&journal).await.migration);
    let held = journal.lock(a).await.unwrap();
    assert!(journal.is_locked(a));
    assert!(!journal.is_locked(b));
    drop(journal.lock(b).await.unwrap());
    drop(held);
    assert!(!journal.is_locked(a));
}
