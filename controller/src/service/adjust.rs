//! AdjustMigration: written down first, then the source's agent is told.
//!
//! A controller that dies in between finds it in the record: the transfer brings it into force when it looks again.

use std::time::Duration;

use drover_proto::agent::v1::{AdjustOutgoingRequest, MigrationRef};
use drover_proto::failure::{Failure, Reason};
use drover_proto::v1::{self, AdjustAction};
use tracing::Instrument;

use super::Api;
use super::validation::Fields;
use crate::adjust::{Wish, adjust, allowed, note_refusal, possible};
use crate::ledger::Change;
use crate::phases::transfer_policy;
use crate::saga::{Phase, Position};
use crate::store::{Record, StepWrite, now};
use crate::trace;

/// A lost call is made again so often, in all.
const TRIES: u32 = 3;

const PAUSE: Duration = Duration::from_millis(200);

impl Api {
    /// `actor` is the caller's SPIFFE URI.
    pub(super) async fn adjust(
        &self,
        request: v1::AdjustMigrationRequest,
        actor: String,
    ) -> Result<v1::Migration, Failure> {
        let wish = read(&request)?;
        let asked = now();
        let record = self
            .change(&request.name, &request.etag, |record| {
                possible(record)?;
                allowed(record, &wish)?;
                adjust(record, &wish, &actor, asked);
                Ok(Change::Write(StepWrite::Nothing))
            })
            .await?;
        // Before, the start of the transfer tells the agent.
        if record.position == Position::At(Phase::Transfer) {
            let span = trace::adjust(&record);
            let told = self.tell_source(&record).instrument(span).await;
            if let Err(failure) = told {
                return Err(self.not_in_force(&record, failure, &actor, asked).await);
            }
        }
        let (id, by) = (record.id, &actor);
        trace::tell(&record, || tracing::info!(migration_id = %id, by, ?wish, "adjusted"));
        self.shown(&self.record(id).await?).await
    }

    async fn tell_source(&self, record: &Record) -> Result<(), Failure> {
        let source = self.agents.of(&record.source).await?.about(record.id);
        let mut tries = 1;
        loop {
            let request = AdjustOutgoingRequest {
                fence: source.fence()?,
                migration: Some(MigrationRef {
                    migration_id: record.id.to_string(),
                    attempt: record.attempt.0,
                    guest_uuid: record.guest.to_string(),
                }),
                policy: Some(transfer_policy(record)),
            };
            match source.adjust_outgoing(request).await {
                Ok(_) => return Ok(()),
                Err(failure) if failure.is_evidence() || tries == TRIES => return Err(failure),
                Err(_) => {}
            }
            tries += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// It is in the record, and the source does not keep to it: said there, and to the caller.
    async fn not_in_force(
        &self,
        record: &Record,
        failure: Failure,
        actor: &str,
        asked: std::time::SystemTime,
    ) -> Failure {
        if !failure.is_evidence() {
            // Whoever waits looks, and tells the agent.
            self.executor.take_up(record.id);
            let remedy = "it is written down, and the agent is told when it answers; ask again to know that it was";
            return failure.with_remedy(remedy);
        }
        let noted = self.ledger.change(record.id, |record| {
            note_refusal(record, actor, asked, &failure.message);
            Change::Write(StepWrite::Nothing)
        });
        if let Err(error) = noted.await {
            tracing::warn!(migration_id = %record.id, "what came too late could not be noted: {error}");
        }
        // What the agent calls it is of no use to a caller: the transfer has ended, whichever way.
        let ended = [
            Reason::Tombstoned,
            Reason::VerdictConflict,
            Reason::MigrationNotFound,
            Reason::NeverRan,
        ];
        if ended.contains(&failure.reason) {
            return Failure::new(Reason::TooLate, format!("the transfer has ended: {}", failure.message));
        }
        failure
    }
}

fn read(request: &v1::AdjustMigrationRequest) -> Result<Wish, Failure> {
    let mut fields = Fields::default();
    let bandwidth = request.bandwidth_limit_bytes_per_second;
    let wish = Wish {
        max_downtime: fields.max_downtime("max_downtime", request.max_downtime.as_ref()),
        bandwidth: bandwidth.and_then(|limit| fields.bandwidth("bandwidth_limit_bytes_per_second", limit)),
        deadline: fields.deadline("deadline", request.deadline.as_ref()),
        pause_and_finish: request.action == AdjustAction::PauseAndFinish as i32,
        post_copy: request.action == AdjustAction::PostCopy as i32,
    };
    match AdjustAction::try_from(request.action) {
        Ok(AdjustAction::Unspecified | AdjustAction::PauseAndFinish | AdjustAction::PostCopy) => {}
        Err(_) => fields.bad("action", "is a value that this version does not know"),
    }
    fields.check()?;
    if wish.is_empty() {
        let why = "nothing to change: set max_downtime, bandwidth_limit_bytes_per_second, deadline or action";
        return Err(Failure::new(Reason::InvalidArgument, why));
    }
    Ok(wish)
}
