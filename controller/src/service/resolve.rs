//! ResolveMigration: an operator's word that a host is fenced, written down as evidence.
//!
//! It is taken only where the hosts themselves cannot decide; what they prove later counts before it.

use drover_proto::failure::{Failure, Reason};
use drover_proto::v1::{self, FencedSide};

use super::validation::migration_name;
use super::{Api, errors};
use crate::phases::needs_word;
use crate::progress;
use crate::store::{Record, Resolution, now};
use crate::trace;
use crate::verdict::Side;
use crate::view;

impl Api {
    pub(super) async fn resolve(
        &self,
        request: v1::ResolveMigrationRequest,
        operator: String,
    ) -> Result<v1::Migration, Failure> {
        let fenced = match request.fenced_side() {
            FencedSide::Source => Side::Source,
            FencedSide::Destination => Side::Destination,
            FencedSide::Unspecified => {
                return Err(Failure::invalid("fenced_side", "say which host is fenced"));
            }
        };
        self.office.fence()?;
        let before = self.record(migration_name(&request.name)?).await?;
        if !request.etag.is_empty() && request.etag != view::etag(&before) {
            return Err(errors::etag_mismatch());
        }
        if said_before(&before, fenced)? {
            return self.shown(&before).await;
        }
        let work = self.work(before);
        needs_word(&work, fenced).await?;
        let record = self.write_word(work.record, fenced, operator).await?;
        self.executor.take_up(record.id);
        self.shown(&record).await
    }

    /// The record may have changed while the hosts were looked at: not in what the word is about.
    async fn write_word(&self, before: Record, fenced: Side, operator: String) -> Result<Record, Failure> {
        let resolution = Resolution {
            fenced,
            operator,
            time: now(),
            adopted: None,
            copy_ran: false,
        };
        let change = |record: &mut Record| progress::resolve(record, before.position, &resolution);
        let changed = self.ledger.change(before.id, change).await;
        let record = changed.map_err(|error| self.store_failed(error))?;
        if record.resolution.as_ref() != Some(&resolution) {
            if said_before(&record, fenced)? {
                return Ok(record);
            }
            let why = "the migration went on while its hosts were looked at";
            return Err(Failure::new(Reason::MigrationState, why).with_remedy("look at it again"));
        }
        let (id, host, by) = (record.id, record.host_of(fenced), &resolution.operator);
        trace::tell(&record, || {
            tracing::warn!(migration_id = %id, fenced = %host, by, "an operator says that a host is fenced");
        });
        Ok(record)
    }
}

/// Whether the same word was given before; refused where it was another one, or where nothing is open any more.
fn said_before(record: &Record, fenced: Side) -> Result<bool, Failure> {
    let name = record.id.resource_name();
    match record.fenced() {
        Some(side) if side == fenced => Ok(true),
        Some(side) => {
            let message = format!("an operator has said of {name} that {} is fenced", record.host_of(side));
            Err(Failure::new(Reason::VerdictConflict, message))
        }
        None if record.position.is_final() => Err(Failure::new(Reason::MigrationState, format!("{name} is at rest"))),
        None => Ok(false),
    }
}
