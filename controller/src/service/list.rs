//! ListMigrations: pages that end where they are full, by number or by size, read in parts: neither the controller nor
//! its caller ever holds more than one message may have.

use drover_proto::failure::Failure;
use drover_proto::ids::MigrationId;
use drover_proto::v1::{self, ListMigrationsResponse};
use prost::Message;

use super::{Api, errors, filter, page};
use crate::view;

/// Migrations in a page where the caller does not say.
const PAGE: u32 = 50;

/// Records read from the store at once.
const BATCH: u32 = 64;

/// A page of more bytes ends; one record alone is always given.
const MOST_BYTES: usize = drover_proto::MAX_ENCODING_MESSAGE_BYTES / 4;

impl Api {
    pub(super) async fn list(&self, request: &v1::ListMigrationsRequest) -> Result<ListMigrationsResponse, Failure> {
        let filter = filter::parse(&request.filter)?;
        let size = page::size(request.page_size, PAGE)? as usize;
        let of = format!("migrations {}", request.filter);
        let mut before = page::key(&of, &request.page_token, MigrationId::from_resource_name)?;
        let (mut page, mut bytes) = (ListMigrationsResponse::default(), 0);
        loop {
            let rows = self.ledger.store.migrations(&filter, before, BATCH).await;
            let rows = rows.map_err(errors::store)?;
            let last = rows.len() < BATCH as usize;
            for row in rows {
                let steps = self.ledger.store.steps(row.id).await.map_err(errors::store)?;
                let listed = view::listed(&row, &steps);
                bytes += listed.encoded_len();
                let full = page.migrations.len() == size || bytes > MOST_BYTES;
                if let Some(newest) = before.filter(|_| full && !page.migrations.is_empty()) {
                    page.next_page_token = page::token(&of, &newest.to_string());
                    return Ok(page);
                }
                before = Some(row.id);
                page.migrations.push(listed);
            }
            if last {
                return Ok(page);
            }
        }
    }
}
