//! The store's errors, and what is not there, as callers see them.

use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::{HostId, MigrationId};

use crate::store::StoreError;

// By value, so that it can be named in `map_err`.
#[allow(clippy::needless_pass_by_value)]
pub(super) fn store(error: StoreError) -> Failure {
    match error {
        StoreError::Conflict => Failure::new(Reason::StoreFailed, error.to_string()),
        StoreError::NotFound => Failure::new(Reason::MigrationNotFound, error.to_string()),
        StoreError::GuestBusy(other) => Failure::new(
            Reason::MigrationExists,
            format!("the guest has the unfinished {}", other.resource_name()),
        )
        .with_remedy("wait for it, or cancel it"),
        StoreError::RequestReused(other) => {
            let message = format!("this request id made {} with another content", other.resource_name());
            Failure::new(Reason::RequestIdReused, message).with_field("request_id", "make a new one for a new request")
        }
        StoreError::NotInOffice => {
            Failure::new(Reason::StaleTerm, error.to_string()).with_remedy("use the controller that is in office")
        }
        StoreError::Unreadable(_) | StoreError::Database(_) | StoreError::Schema(_) => {
            tracing::error!("the store failed: {error}");
            Failure::new(Reason::StoreFailed, "the store could not be read or written")
        }
    }
}

pub(super) fn no_migration(id: MigrationId) -> Failure {
    Failure::new(Reason::MigrationNotFound, format!("there is no {}", id.resource_name()))
}

pub(super) fn no_host(id: &HostId) -> Failure {
    Failure::new(Reason::HostNotFound, format!("no host {id} is registered"))
        .with_remedy("`drover host list` shows the hosts whose agents have registered")
}

pub(super) fn etag_mismatch() -> Failure {
    Failure::new(Reason::EtagMismatch, "the record changed since it was read").with_remedy("read it again")
}
