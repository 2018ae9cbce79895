//! The phases: each looks at both hosts and acts on the difference, so that a repeat is the normal path.
//!
//! A phase gives a [`Report`]: how it came out and what it learned. It writes nothing down itself but the switch of
//! the guest, which must be told at once. `saga` says where its outcome leads.

mod abort;
mod answer;
mod checks;
mod discard;
mod estimate;
mod examine;
mod finalize;
mod learned;
mod look;
mod offline;
mod overrides;
mod owner;
mod policy;
mod prepare;
mod remedies;
mod steer;
mod storage;
mod told;
mod transfer;
mod validate;
mod verify;
mod word;

use std::sync::Arc;

use drover_proto::agent::v1::MigrationRef;
use drover_proto::failure::{Failure, Reason};
use drover_proto::ids::HostId;

use crate::agents::{Agent, Agents};
use crate::estimates::Estimates;
use crate::ledger::Ledger;
use crate::saga::Phase;
use crate::store::Record;
use crate::verdict::Side;

pub use answer::{Answer, Report, Wait};
pub use estimate::Thorough;
pub use examine::{Examined, Source, Wanted, absent, find};
pub use learned::Learned;
pub(crate) use learned::merge_actions;
pub use offline::Way;
pub use owner::owner;
pub use policy::{refuse_unmade, transfer_policy};
pub use word::needs_word;

/// What a phase works on.
pub struct Work {
    /// As it was when the attempt began.
    pub record: Record,
    pub agents: Arc<Agents>,
    pub ledger: Ledger,
    pub estimates: Arc<Estimates>,
}

impl Work {
    async fn agent(&self, host: &HostId) -> Result<Agent, Failure> {
        Ok(self.agents.of(host).await?.about(self.record.id))
    }

    async fn source(&self) -> Result<Agent, Failure> {
        self.agent(&self.record.source).await
    }

    async fn destination(&self) -> Result<Agent, Failure> {
        self.agent(&self.record.destination).await
    }

    /// Whether an operator has said that a side is fenced.
    fn is_fenced(&self, side: Side) -> bool {
        self.record.fenced() == Some(side)
    }

    /// Whether a side was not there to answer, and does not have to be.
    fn goes_without(&self, side: Side, failure: &Failure) -> bool {
        let silent = !failure.is_answered() || failure.reason == Reason::HostUnreachable;
        silent && self.is_fenced(side)
    }

    fn reference(&self) -> MigrationRef {
        MigrationRef {
            migration_id: self.record.id.to_string(),
            attempt: self.record.attempt.0,
            guest_uuid: self.record.guest.to_string(),
        }
    }
}

/// One attempt at a phase.
pub async fn run(phase: Phase, work: &Work) -> Report {
    match phase {
        Phase::Validate => validate::run(work).await,
        Phase::Prepare => prepare::run(work).await,
        Phase::Transfer => transfer::run(work).await,
        Phase::Verify => verify::run(work).await,
        Phase::Finalize => finalize::run(work).await,
        Phase::Abort => abort::run(work).await,
        Phase::Discard => discard::run(work).await,
    }
}
