//! What every store promises, run on each of them.

use std::collections::BTreeMap;
use std::time::Duration;

use drover_proto::agent::v1::Incarnation;
use drover_proto::ids::{Attempt, MigrationId};
use drover_proto::trace::{new_span_id, new_trace_id};
use drover_proto::v1::{self, MigrationState};
use uuid::Uuid;

use super::memory::MemoryStore;
use super::record::Details;
use super::sqlite::SqliteStore;
use super::*;
use crate::saga::{End, Phase, Position, Stuck};

mod history;
mod lists;

use history::*;
use lists::*;

macro_rules! conformance {
    ($($name:ident)*) => {
        mod memory_keeps_its_promises {
            use super::*;
            $(#[tokio::test] async fn $name() { super::$name(&MemoryStore::default()).await; })*
        }

        mod sqlite_keeps_its_promises {
            use super::*;
            $(#[tokio::test] async fn $name() {
                let folder = tempfile::tempdir().unwrap();
                let url = format!("sqlite://{}/drover.db", folder.path().display());
                super::$name(&SqliteStore::open(&url).await.unwrap()).await;
            })*
        }
    };
}

conformance! {
    what_is_written_is_read_back
    a_write_on_an_old_generation_is_refused_and_changes_nothing
    of_two_writers_exactly_one_wins
    a_guest_has_one_unfinished_migration
    a_stuck_migration_keeps_the_guests_place
    the_same_request_makes_one_migration
    a_request_id_with_another_content_is_refused
    steps_are_written_once_and_ended_once
    events_come_in_order_and_from_where_one_stopped
    lists_are_paged_newest_first
    lists_are_filtered_by_everything_that_is_set
    terms_only_rise
    hosts_are_written_with_generations_and_paged
}

/// A migration of that guest, as it is when it is made.
pub(crate) fn record(guest: u128) -> Record {
    let time = now();
    Record {
        id: MigrationId::generate(),
        generation: 0,
        request: None,
        guest: GuestId::from_uuid(Uuid::from_u128(guest)),
        guest_name: "web".to_owned(),
        source: "host-1".parse().unwrap(),
        destination: "host-2".parse().unwrap(),
        labels: BTreeMap::from([("team".to_owned(), "it's \"quoted\"".to_owned())]),
        requested_by: "spiffe://drover.local/user/alice".to_owned(),
        position: Position::At(Phase::Validate),
        phase: Phase::Validate,
        state: MigrationState::Queued,
        attempt: Attempt(1),
        unknowns: 0,
        cancel_requested: None,
        too_late: false,
        guest_host: None,
        incarnation: None,
        prepared: None,
        resolution: None,
        trace: Trace {
            id: new_trace_id(),
            root: new_span_id(),
            parent: None,
        },
        created: time,
        started: None,
        transfer_started: None,
        ended: None,
        updated: time,
        details: Details::default(),
    }
}

fn write(record: &Record) -> Write {
    Write {
        record: record.clone(),
        step: StepWrite::Nothing,
        events: Vec::new(),
    }
}

fn step(number: u32) -> Step {
    Step {
        number,
        phase: Phase::Prepare,
        attempt: number,
        span: new_span_id(),
        started: now(),
        end: None,
        detail: String::new(),
    }
}

async fn created(store: &dyn Store, record: Record) -> Record {
    match store.create(record).await.unwrap() {
        Created::New(record) => record,
        Created::Same(record) => panic!("{} was there already", record.id),
    }
}

async fn what_is_written_is_read_back(store: &dyn Store) {
    let mut record = created(store, record(1)).await;
    assert_eq!(record.generation, 1);
    assert_eq!(store.migration(record.id).await.unwrap().as_ref(), Some(&record));

    record.position = Position::Stuck(Stuck::Verify);
    record.phase = Phase::Verify;
    record.state = MigrationState::AttentionRequired;
    record.unknowns = 3;
    record.cancel_requested = Some(now());
    record.too_late = true;
    record.guest_host = Some("host-2".parse().unwrap());
    record.incarnation = Some(Incarnation {
        boot_id: "b".to_owned(),
        qemu_pid: 7,
        qemu_start_time: 8,
    });
    record.prepared = Some(Prepared {
        ticket: vec![1; 32].into(),
        cookie: vec![0, 255].into(),
    });
    record.resolution = Some(Resolution {
        fenced: crate::verdict::Side::Destination,
        operator: "spiffe://drover.local/user/alice".to_owned(),
        time: now(),
        adopted: Some(now()),
        copy_ran: true,
    });
    record.started = Some(now());
    record.transfer_started = Some(now());
    record.ended = Some(now() + Duration::from_micros(1));
    record.details.error = Some(v1::MigrationError {
        reason: "UNFIT".to_owned(),
        ..Default::default()
    });
    record.details.checks = vec![v1::Check {
        id: "cpu".to_owned(),
        ..Default::default()
    }];
    let written = store.write(write(&record)).await.unwrap();
    record.generation = 2;
    assert_eq!(written, record);
    assert_eq!(store.migration(record.id).await.unwrap(), Some(record));
    assert_eq!(store.migration(MigrationId::generate()).await.unwrap(), None);
}

async fn a_write_on_an_old_generation_is_refused_and_changes_nothing(store: &dyn Store) {
    let old = created(store, record(1)).await;
    let newer = store.write(write(&old)).await.unwrap();
    let mut lost = write(&old);
    lost.record.unknowns = 9;
    lost.step = StepWrite::Start(step(1));
    assert!(matches!(store.write(lost).await, Err(StoreError::Conflict)));
    assert_eq!(store.migration(old.id).await.unwrap(), Some(newer));
    assert!(store.steps(old.id).await.unwrap().is_empty());
    assert!(matches!(
        store.write(write(&record(2))).await,
        Err(StoreError::NotFound)
    ));
}

async fn of_two_writers_exactly_one_wins(store: &dyn Store) {
    let start = created(store, record(1)).await;
    let race = (0..8).map(|_| store.write(write(&start)));
    let won = futures::future::join_all(race)
        .await
        .into_iter()
        .filter(Result::is_ok)
        .count();
    assert_eq!(won, 1);
}

async fn a_guest_has_one_unfinished_migration(store: &dyn Store) {
    let mut first = created(store, record(1)).await;
    let second = record(1);
    assert!(matches!(store.create(second.clone()).await, Err(StoreError::GuestBusy(id)) if id == first.id));
    assert_eq!(store.unfinished_of(first.guest).await.unwrap(), Some(first.id));
    created(store, record(2)).await;
    assert_eq!(store.unfinished().await.unwrap().len(), 2);

    first.position = Position::Ended(End::RolledBack);
    store.write(write(&first)).await.unwrap();
    assert_eq!(store.unfinished_of(first.guest).await.unwrap(), None);
    created(store, second).await;

    let race = (0..8).map(|_| store.create(record(3)));
    let won = futures::future::join_all(race)
        .await
        .into_iter()
        .filter(Result::is_ok)
        .count();
    assert_eq!(won, 1);
}

async fn a_stuck_migration_keeps_the_guests_place(store: &dyn Store) {
    let mut stuck = created(store, record(1)).await;
    stuck.position = Position::Stuck(Stuck::Discard);
    store.write(write(&stuck)).await.unwrap();
    assert!(matches!(store.create(record(1)).await, Err(StoreError::GuestBusy(_))));
    assert_eq!(store.unfinished().await.unwrap().len(), 1);
}

async fn the_same_request_makes_one_migration(store: &dyn Store) {
    let request = RequestKey {
        id: Uuid::now_v7(),
        content: b"all of it".to_vec(),
    };
    let asking = || Record {
        request: Some(request.clone()),
        ..record(1)
    };
    let first = created(store, asking()).await;
    assert!(matches!(store.create(asking()).await.unwrap(), Created::Same(same) if same == first));
    assert_eq!(store.by_request(request.id).await.unwrap().as_ref(), Some(&first));
    assert_eq!(store.by_request(Uuid::now_v7()).await.unwrap(), None);

    let mut done = first.clone();
    done.position = Position::Ended(End::Migrated);
    store.write(write(&done)).await.unwrap();
    let again = store.create(asking()).await.unwrap();
    assert!(
        matches!(again, Created::Same(same) if same.id == first.id),
        "a finished one is the same one still"
    );
}

async fn a_request_id_with_another_content_is_refused(store: &dyn Store) {
    let id = Uuid::now_v7();
    let asking = |content: &[u8], guest| {
        let request = RequestKey {
            id,
            content: content.to_vec(),
        };
        Record {
            request: Some(request),
            ..record(guest)
        }
    };
    let first = created(store, asking(b"one", 1)).await;
    let other = store.create(asking(b"two", 2)).await;
    assert!(matches!(other, Err(StoreError::RequestReused(id)) if id == first.id));
}

/// Whoever has raised the term on a file binds its own handle to it.
#[tokio::test]
async fn a_handle_whose_term_is_over_writes_no_migration() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/drover.db", folder.path().display());
    let old = SqliteStore::open(&url).await.unwrap();
    old.raise_term(0, Uuid::from_u128(1)).await.unwrap();
    let made = created(&old, record(1)).await;
    let new = SqliteStore::open(&url).await.unwrap();
    new.raise_term(0, Uuid::from_u128(2)).await.unwrap();
    let refused = old.create(record(2)).await;
    assert!(matches!(refused, Err(StoreError::NotInOffice)), "{refused:?}");
    let refused = old.write(write(&made)).await;
    assert!(matches!(refused, Err(StoreError::NotInOffice)), "{refused:?}");
    assert_eq!(
        old.migration(made.id).await.unwrap(),
        Some(made.clone()),
        "it still reads"
    );
    new.write(write(&made)).await.unwrap();
}

#[tokio::test]
async fn a_database_that_is_opened_again_has_everything() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/drover.db", folder.path().display());
    let store = SqliteStore::open(&url).await.unwrap();
    let record = created(&store, record(1)).await;
    drop(store);
    let store = SqliteStore::open(&url).await.unwrap();
    assert_eq!(store.migration(record.id).await.unwrap(), Some(record));
}

#[tokio::test]
async fn the_database_itself_refuses_to_take_a_step_back() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/drover.db", folder.path().display());
    let store = SqliteStore::open(&url).await.unwrap();
    let record = created(&store, record(1)).await;
    store
        .write(Write {
            step: StepWrite::Start(step(1)),
            ..write(&record)
        })
        .await
        .unwrap();
    let pool = sqlx::sqlite::SqlitePool::connect(&url).await.unwrap();
    assert!(sqlx::query("DELETE FROM step").execute(&pool).await.is_err());
    assert!(
        sqlx::query("UPDATE step SET phase = 'abort'")
            .execute(&pool)
            .await
            .is_err()
    );
}

#[tokio::test]
async fn the_database_itself_refuses_a_second_unfinished_migration_of_a_guest() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/drover.db", folder.path().display());
    let store = SqliteStore::open(&url).await.unwrap();
    let (first, second) = (created(&store, record(1)).await, created(&store, record(2)).await);
    let pool = sqlx::sqlite::SqlitePool::connect(&url).await.unwrap();
    let moved = sqlx::query("UPDATE migration SET guest = ? WHERE id = ?")
        .bind(first.guest.to_string())
        .bind(second.id.to_string())
        .execute(&pool)
        .await;
    assert!(moved.is_err());
}
