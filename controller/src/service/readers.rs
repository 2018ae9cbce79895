//! What reads requests from outside, apart from the service: for tests that try to break it.

use drover_proto::failure::Failure;
use drover_proto::ids::HostId;
use drover_proto::v1::{CreateMigrationRequest, MigrationPolicy, RegisterHostRequest};

use super::{hosts, journals};
use crate::adoption;
use crate::store::{Filter, Record};

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

/// All fields of RegisterHost: the host, and the rows that its journals would become in an empty store.
pub fn register_host(request: RegisterHostRequest) -> Result<(HostId, Vec<Record>), Failure> {
    let said = hosts::read(request)?;
    let rows = said.journals.iter();
    let rows = rows.filter_map(|journal| adoption::record(&said.id, journal)).collect();
    for word in &said.adopted {
        let _ = journals::adopted(word);
    }
    Ok((said.id, rows))
}
