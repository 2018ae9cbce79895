//! Pages that would be larger than a message: they end earlier, and nothing is left out.

use std::collections::BTreeSet;

use drover_proto::MAX_ENCODING_MESSAGE_BYTES;
use drover_proto::v1::{CreateMigrationRequest, ListMigrationsRequest};
use prost::Message;

use super::lab::{Lab, wish};

/// More than fits into a quarter of a message, by what labels may have.
const MIGRATIONS: usize = 60;

#[tokio::test(flavor = "multi_thread")]
async fn a_page_ends_before_it_is_too_large_to_be_sent() {
    let lab = Lab::new().await;
    lab.world.lock().host("host-2").shares = false;
    let labels = (0..64).map(|number| (format!("label-{number:057}"), "x".repeat(255)));
    let mut wanted: CreateMigrationRequest = wish();
    if let Some(migration) = &mut wanted.migration {
        migration.labels = labels.collect();
    }
    let mut made = BTreeSet::new();
    for _ in 0..MIGRATIONS {
        wanted.request_id = String::new();
        let created = lab
            .migrations()
            .create_migration(wanted.clone())
            .await
            .unwrap()
            .into_inner();
        lab.at_rest(&created.name).await;
        made.insert(created.name);
    }
    let (mut token, mut pages, mut listed) = (String::new(), 0, BTreeSet::new());
    loop {
        let request = ListMigrationsRequest {
            page_size: i32::MAX,
            page_token: token,
            ..ListMigrationsRequest::default()
        };
        let page = lab.migrations().list_migrations(request).await.unwrap().into_inner();
        assert!(page.encoded_len() < MAX_ENCODING_MESSAGE_BYTES / 2);
        pages += 1;
        for migration in page.migrations {
            assert!(listed.insert(migration.name), "told twice");
        }
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert!(pages > 1);
    assert_eq!(listed, made);
}
