//! What reads requests from outside, apart from the service: for tests that try to break it.

use drover_proto::failure::Failure;
use drover_proto::v1::{CreateMigrationRequest, MigrationPolicy};

use crate::store::Filter;

/// The filter of a list.
pub fn filter(text: &str) -> Result<Filter, Failure> {
    super::filter::parse(text)
}

/// The token of the page after a key.
pub fn page_token(of: &str, after: &str) -> String {
    super::page::token(of, after)
}

/// The key that a token was made for.
pub fn page_after(of: &str, token: &str) -> Result<Option<String>, Failure> {
    super::page::after(of, token)
}

/// All fields of CreateMigration.
pub fn create_request(request: CreateMigrationRequest) -> Result<(), Failure> {
    super::create::read(request, &MigrationPolicy::default()).map(drop)
}
