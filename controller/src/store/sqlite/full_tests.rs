//! The disk below the store: full and not any more, and what is on it when a transaction has ended.

use super::*;
use crate::store::conformance::record;

/// As if the disk had room for no page more than the file has now, on every connection; or for any number.
async fn set_full(store: &SqliteStore, full: bool) {
    let mut all = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        all.push(store.pool.acquire().await.unwrap());
    }
    // More than there are is what there are.
    let pages = if full { 1 } else { 1_000_000 };
    for connection in &mut all {
        let sql = if full {
            "PRAGMA max_page_count = 1"
        } else {
            "PRAGMA max_page_count = 1000000"
        };
        let now: i64 = sqlx::query_scalar(sql).fetch_one(&mut **connection).await.unwrap();
        assert!(now >= pages);
    }
}

#[tokio::test]
async fn a_store_that_was_full_writes_again_once_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/drover.db", folder.path().display());
    let store = SqliteStore::open(&url).await.unwrap();
    set_full(&store, true).await;
    let mut guest = 0;
    // Every connection meets it.
    let mut refused = 0;
    while refused < MAX_CONNECTIONS {
        guest += 1;
        assert!(guest < 10_000, "it is never full");
        match store.create(record(guest)).await {
            Ok(_) => {}
            Err(StoreError::Database(_)) => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    set_full(&store, false).await;
    for more in 1..=2 * u128::from(MAX_CONNECTIONS) {
        store.create(record(guest + more)).await.unwrap();
    }
}

/// What is written down is there after a power failure: the log is synced with each transaction.
#[tokio::test]
async fn what_is_committed_is_on_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/drover.db", folder.path().display());
    let store = SqliteStore::open(&url).await.unwrap();
    let journal: String = sqlx::query_scalar("PRAGMA journal_mode")
        .fetch_one(&store.pool)
        .await
        .unwrap();
    // 2 is FULL.
    let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous")
        .fetch_one(&store.pool)
        .await
        .unwrap();
    assert_eq!((journal.as_str(), synchronous), ("wal", 2));
}
