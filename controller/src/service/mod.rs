//! The public API: reads requests, answers from the store, and leaves the work to the executor.

mod adjust;
mod check;
mod create;
mod errors;
mod filter;
mod guests;
mod hosts;
mod journals;
mod list;
mod migrations;
mod page;
pub mod readers;
mod resolve;
mod validation;
mod watch;

use std::sync::Arc;

use drover_proto::failure::Failure;
use drover_proto::identity::TrustDomain;
use drover_proto::ids::{HostId, MigrationId};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::agents::Agents;
use crate::estimates::Estimates;
use crate::executor::Executor;
use crate::ledger::Ledger;
use crate::office::Office;
use crate::phases::Work;
use crate::registry::Registry;
use crate::store::{HostRecord, Record, StoreError};
use crate::view;

/// More hosts than any controller has.
const ALL_HOSTS: u32 = u32::MAX;

/// What all RPCs need.
#[derive(Clone)]
pub struct Api {
    pub ledger: Ledger,
    pub agents: Arc<Agents>,
    pub estimates: Arc<Estimates>,
    pub office: Arc<Office>,
    pub executor: Executor,
    pub registry: Arc<Registry>,
    pub trust_domain: TrustDomain,
    /// What counts where a request leaves it open.
    pub policy: Arc<drover_proto::v1::MigrationPolicy>,
    /// Ends all streams.
    pub stopping: CancellationToken,
}

/// Whether this could be the policy of a migration: for the defaults of the configuration.
pub fn check_policy(policy: &drover_proto::v1::MigrationPolicy) -> Result<(), Failure> {
    let mut fields = validation::Fields::default();
    fields.policy("policy", policy, &drover_proto::v1::MigrationPolicy::default());
    fields.check()
}

/// Carries a change out to its end, also where the caller's deadline expires or the caller goes away: what is written
/// down must also be begun.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::spawn(work.in_current_span()).await {
        Ok(result) => result,
        Err(error) => Err(Failure::internal(format!("the request broke off: {error}"))),
    }
}

impl Api {
    async fn record(&self, id: MigrationId) -> Result<Record, Failure> {
        let record = self.ledger.store.migration(id).await.map_err(errors::store)?;
        record.ok_or_else(|| errors::no_migration(id))
    }

    /// What looks at a migration's hosts without going on with it.
    fn work(&self, record: Record) -> Work {
        Work {
            record,
            agents: Arc::clone(&self.agents),
            ledger: self.ledger.clone(),
            estimates: Arc::clone(&self.estimates),
        }
    }

    /// A record as it is right now, with the progress that is not written down.
    async fn shown(&self, record: &Record) -> Result<drover_proto::v1::Migration, Failure> {
        let steps = self.ledger.store.steps(record.id).await.map_err(errors::store)?;
        let mut shown = view::migration(record, &steps);
        if !record.position.is_final() {
            shown.progress = self.ledger.hub.latest_progress(record.id).or(shown.progress);
        }
        Ok(shown)
    }

    /// A write failed. Where somebody else has taken office, this controller commands nothing any more.
    fn store_failed(&self, error: StoreError) -> Failure {
        if matches!(error, StoreError::NotInOffice) {
            self.office.leave("another controller has taken office on this store");
        }
        errors::store(error)
    }

    async fn host(&self, id: &HostId) -> Result<HostRecord, Failure> {
        let host = self.ledger.store.host(id).await.map_err(errors::store)?;
        host.ok_or_else(|| errors::no_host(id))
    }

    async fn all_hosts(&self) -> Result<Vec<HostRecord>, Failure> {
        self.ledger.store.hosts(None, ALL_HOSTS).await.map_err(errors::store)
    }
}
