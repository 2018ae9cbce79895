//! What every store promises, run on each of them.

use std::collections::BTreeMap;
use std::time::Duration;

use drover_proto::agent::v1::Incarnation;
use drover_proto::ids::{Attempt, MigrationId};
use drover_proto::trace::{new_span_id, new_trace_id};
use drover_proto::v1::watch_migration_response::Event as Happened;
use drover_proto::v1::{self, MigrationState};
use uuid::Uuid;

use super::memory::MemoryStore;
use super::record::Details;
use super::sqlite::SqliteStore;
use super::*;
use crate::saga::{End, Phase, Position, Stuck};

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
    lists_are_filtered_and_paged_newest_first
    terms_only_rise
    hosts_are_written_with_generations_and_paged
}

fn record(guest: u128) -> Record {
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
        trace: Trace { id: new_trace_id(), root: new_span_id(), parent: None },
        created: time,
        started: None,
        transfer_started: None,
        ended: None,
        updated: time,
        details: Details::default(),
    }
}

fn write(record: &Record) -> Write {
    Write { record: record.clone(), step: StepWrite::Nothing, events: Vec::new() }
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
    record.incarnation = Some(Incarnation { boot_id: "b".to_owned(), qemu_pid: 7, qemu_start_time: 8 });
    record.prepared = Some(Prepared { ticket: vec![1; 32].into(), cookie: vec![0, 255].into() });
    record.started = Some(now());
    record.transfer_started = Some(now());
    record.ended = Some(now() + Duration::from_micros(1));
    record.details.error = Some(v1::MigrationError { reason: "UNFIT".to_owned(), ..Default::default() });
    record.details.checks = vec![v1::Check { id: "cpu".to_owned(), ..Default::default() }];
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
    assert!(matches!(store.write(write(&record(2))).await, Err(StoreError::NotFound)));
}

async fn of_two_writers_exactly_one_wins(store: &dyn Store) {
    let start = created(store, record(1)).await;
    let race = (0..8).map(|_| store.write(write(&start)));
    let won = futures::future::join_all(race).await.into_iter().filter(Result::is_ok).count();
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
    let won = futures::future::join_all(race).await.into_iter().filter(Result::is_ok).count();
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
    let request = RequestKey { id: Uuid::now_v7(), content: b"all of it".to_vec() };
    let asking = || Record { request: Some(request.clone()), ..record(1) };
    let first = created(store, asking()).await;
    assert!(matches!(store.create(asking()).await.unwrap(), Created::Same(same) if same == first));
    assert_eq!(store.by_request(request.id).await.unwrap().as_ref(), Some(&first));
    assert_eq!(store.by_request(Uuid::now_v7()).await.unwrap(), None);

    let mut done = first.clone();
    done.position = Position::Ended(End::Migrated);
    store.write(write(&done)).await.unwrap();
    let again = store.create(asking()).await.unwrap();
    assert!(matches!(again, Created::Same(same) if same.id == first.id), "a finished one is the same one still");
}

async fn a_request_id_with_another_content_is_refused(store: &dyn Store) {
    let id = Uuid::now_v7();
    let asking = |content: &[u8], guest| {
        let request = RequestKey { id, content: content.to_vec() };
        Record { request: Some(request), ..record(guest) }
    };
    let first = created(store, asking(b"one", 1)).await;
    let other = store.create(asking(b"two", 2)).await;
    assert!(matches!(other, Err(StoreError::RequestReused(id)) if id == first.id));
}

async fn steps_are_written_once_and_ended_once(store: &dyn Store) {
    let mut record = created(store, record(1)).await;
    let first = step(1);
    record = store.write(Write { step: StepWrite::Start(first.clone()), ..write(&record) }).await.unwrap();
    assert_eq!(store.steps(record.id).await.unwrap(), vec![first.clone()]);
    let twice = store.write(Write { step: StepWrite::Start(first.clone()), ..write(&record) }).await;
    assert!(matches!(twice, Err(StoreError::Conflict)));

    let end = StepEnd {
        number: 1,
        ended: now(),
        outcome: StepOutcome::Unknown,
        detail: "the host did not answer".to_owned(),
    };
    record = store.write(Write { step: StepWrite::End(end.clone()), ..write(&record) }).await.unwrap();
    let ended = Step { end: Some((end.ended, end.outcome)), detail: end.detail.clone(), ..first };
    assert_eq!(store.steps(record.id).await.unwrap(), vec![ended]);
    let twice = store.write(Write { step: StepWrite::End(end), ..write(&record) }).await;
    assert!(matches!(twice, Err(StoreError::Conflict)));
    assert_eq!(store.migration(record.id).await.unwrap(), Some(record), "a refused step writes nothing else");
}

async fn events_come_in_order_and_from_where_one_stopped(store: &dyn Store) {
    let mut record = created(store, record(1)).await;
    let event = |name: &str| {
        let migration = v1::Migration { guest_name: name.to_owned(), ..Default::default() };
        Event { sequence: 0, time: now(), what: Happened::Changed(migration) }
    };
    let name = |event: &Event| match &event.what {
        Happened::Changed(migration) => migration.guest_name.clone(),
        other => panic!("{other:?}"),
    };
    record = store.write(Write { events: vec![event("a"), event("b")], ..write(&record) }).await.unwrap();
    record = store.write(write(&record)).await.unwrap();
    store.write(Write { events: vec![event("c")], ..write(&record) }).await.unwrap();

    let all = store.events(record.id, 0, 100).await.unwrap();
    assert_eq!(all.iter().map(name).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert!(all.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
    let rest = store.events(record.id, all[0].sequence, 1).await.unwrap();
    assert_eq!(rest.iter().map(name).collect::<Vec<_>>(), ["b"]);
    assert!(store.events(record.id, all[2].sequence, 100).await.unwrap().is_empty());
}

async fn lists_are_filtered_and_paged_newest_first(store: &dyn Store) {
    let mut ids = Vec::new();
    for guest in 1..=5 {
        let mut made = record(guest);
        if guest == 3 {
            made.destination = "host-3".parse().unwrap();
            made.labels.insert("room".to_owned(), "7".to_owned());
        }
        ids.insert(0, created(store, made).await.id);
    }
    let list = async |filter: Filter, before, limit| {
        let rows = store.migrations(&filter, before, limit).await.unwrap();
        rows.iter().map(|row| row.id).collect::<Vec<_>>()
    };
    assert_eq!(list(Filter::default(), None, 100).await, ids);
    assert_eq!(list(Filter::default(), None, 2).await, ids[..2]);
    assert_eq!(list(Filter::default(), Some(ids[1]), 2).await, ids[2..4]);
    let to = Filter { destination: Some("host-3".parse().unwrap()), ..Filter::default() };
    assert_eq!(list(to, None, 100).await, ids[2..3]);
    let guest = Filter { guest: Some(GuestId::from_uuid(Uuid::from_u128(5))), ..Filter::default() };
    assert_eq!(list(guest, None, 100).await, ids[..1]);
    let state = Filter { state: Some(MigrationState::Running), ..Filter::default() };
    assert!(list(state, None, 100).await.is_empty());
    let source = Filter { source: Some("host-2".parse().unwrap()), ..Filter::default() };
    assert!(list(source, None, 100).await.is_empty());
    let both = [("team", "it's \"quoted\""), ("room", "7")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(list(Filter { labels: both.into(), ..Filter::default() }, None, 100).await, ids[2..3]);
    let wrong = [("team".to_owned(), "7".to_owned())];
    assert!(list(Filter { labels: wrong.into(), ..Filter::default() }, None, 100).await.is_empty());
}

async fn terms_only_rise(store: &dyn Store) {
    assert_eq!(store.term().await.unwrap(), None);
    let (one, two) = (Uuid::now_v7(), Uuid::now_v7());
    assert_eq!(store.raise_term(0, one).await.unwrap(), Term { number: 1, instance: one });
    assert_eq!(store.raise_term(41, two).await.unwrap(), Term { number: 42, instance: two });
    assert_eq!(store.raise_term(7, one).await.unwrap(), Term { number: 43, instance: one });
    assert_eq!(store.term().await.unwrap(), Some(Term { number: 43, instance: one }));
}

async fn hosts_are_written_with_generations_and_paged(store: &dyn Store) {
    let host = |id: &str| HostRecord {
        id: id.parse().unwrap(),
        registration: v1::Host { boot_id: "b".to_owned(), ..Default::default() },
        cordoned: false,
        generation: 0,
        registered: now(),
    };
    for id in ["c", "a", "b"] {
        store.put_host(host(id)).await.unwrap();
    }
    let ids = async |after: Option<&str>, limit| {
        let after = after.map(|id| id.parse().unwrap());
        let rows = store.hosts(after.as_ref(), limit).await.unwrap();
        rows.iter().map(|row| row.id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(ids(None, 10).await, ["a", "b", "c"]);
    assert_eq!(ids(Some("a"), 1).await, ["b"]);

    let mut first = store.host(&"a".parse().unwrap()).await.unwrap().unwrap();
    assert!(matches!(store.put_host(host("a")).await, Err(StoreError::Conflict)));
    first.cordoned = true;
    let written = store.put_host(first.clone()).await.unwrap();
    assert_eq!(store.host(&first.id).await.unwrap(), Some(written));
    assert!(matches!(store.put_host(first).await, Err(StoreError::Conflict)));
    let unknown = HostRecord { generation: 5, ..host("z") };
    assert!(matches!(store.put_host(unknown).await, Err(StoreError::Conflict)));
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
    store.write(Write { step: StepWrite::Start(step(1)), ..write(&record) }).await.unwrap();
    let pool = sqlx::sqlite::SqlitePool::connect(&url).await.unwrap();
    assert!(sqlx::query("DELETE FROM step").execute(&pool).await.is_err());
    assert!(sqlx::query("UPDATE step SET phase = 'abort'").execute(&pool).await.is_err());
}
