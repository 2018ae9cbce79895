//! Lists, hosts and terms.

use drover_proto::v1::{self, MigrationState};

use super::*;

/// Five migrations, newest first; the third one made is another in destination and labels.
async fn five(store: &dyn Store) -> Vec<MigrationId> {
    let mut ids = Vec::new();
    for guest in 1..=5 {
        let mut made = record(guest);
        if guest == 3 {
            made.destination = "host-3".parse().unwrap();
            made.labels.insert("room".to_owned(), "7".to_owned());
        }
        ids.insert(0, created(store, made).await.id);
    }
    ids
}

async fn listed(store: &dyn Store, filter: Filter, before: Option<MigrationId>, limit: u32) -> Vec<MigrationId> {
    let rows = store.migrations(&filter, before, limit).await.unwrap();
    rows.iter().map(|row| row.id).collect()
}

pub(super) async fn lists_are_paged_newest_first(store: &dyn Store) {
    let ids = five(store).await;
    let all = Filter::default;
    assert_eq!(listed(store, all(), None, 100).await, ids);
    assert_eq!(listed(store, all(), None, 2).await, ids[..2]);
    assert_eq!(listed(store, all(), Some(ids[1]), 2).await, ids[2..4]);
}

pub(super) async fn lists_are_filtered_by_everything_that_is_set(store: &dyn Store) {
    let ids = five(store).await;
    let filtered = async |change: fn(&mut Filter)| {
        let mut filter = Filter::default();
        change(&mut filter);
        listed(store, filter, None, 100).await
    };
    let text = |word: &str| word.to_owned();
    assert_eq!(
        filtered(|f| f.destination = Some("host-3".parse().unwrap())).await,
        ids[2..3]
    );
    assert_eq!(
        filtered(|f| f.guest = Some(GuestId::from_uuid(Uuid::from_u128(5)))).await,
        ids[..1]
    );
    assert!(filtered(|f| f.state = Some(MigrationState::Running)).await.is_empty());
    assert!(
        filtered(|f| f.source = Some("host-2".parse().unwrap()))
            .await
            .is_empty()
    );
    let both = [(text("team"), text("it's \"quoted\"")), (text("room"), text("7"))];
    let labels = |labels: &[(String, String)]| Filter {
        labels: labels.iter().cloned().collect(),
        ..Filter::default()
    };
    assert_eq!(listed(store, labels(&both), None, 100).await, ids[2..3]);
    assert!(
        listed(store, labels(&[(text("team"), text("7"))]), None, 100)
            .await
            .is_empty()
    );
}

pub(super) async fn terms_only_rise(store: &dyn Store) {
    assert_eq!(store.term().await.unwrap(), None);
    let (one, two) = (Uuid::now_v7(), Uuid::now_v7());
    assert_eq!(
        store.raise_term(0, one).await.unwrap(),
        Term {
            number: 1,
            instance: one
        }
    );
    assert_eq!(
        store.raise_term(41, two).await.unwrap(),
        Term {
            number: 42,
            instance: two
        }
    );
    assert_eq!(
        store.raise_term(7, one).await.unwrap(),
        Term {
            number: 43,
            instance: one
        }
    );
    assert_eq!(
        store.term().await.unwrap(),
        Some(Term {
            number: 43,
            instance: one
        })
    );
}

pub(super) async fn hosts_are_written_with_generations_and_paged(store: &dyn Store) {
    let host = |id: &str| HostRecord {
        id: id.parse().unwrap(),
        registration: v1::Host {
            boot_id: "b".to_owned(),
            ..Default::default()
        },
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
    let unknown = HostRecord {
        generation: 5,
        ..host("z")
    };
    assert!(matches!(store.put_host(unknown).await, Err(StoreError::Conflict)));
}
