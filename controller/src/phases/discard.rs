//! Discard: the destination holds nothing of the guest, and both journals are closed.

use drover_proto::agent::v1::{GetMigrationStatusRequest, MigrationStatus, SettleIncomingRequest, Verdict};
use drover_proto::failure::{Failure, Reason};

use super::{Report, Work, abort, finalize, look, offline};
use crate::saga::Guest;
use crate::seen;
use crate::verdict::{Destination, DestinationJournal, Seen, Side};

pub(super) async fn run(work: &Work) -> Report {
    let look = look::both(work).await;
    let learned = look.learned().with_guest_at(&work.record.source);
    match discard(work).await {
        Ok(Some(source)) if offline::lives(&work.record, &source) => {
            Report::done(Guest::Lives, "nothing is left at the destination", learned)
        }
        Ok(_) => Report::done(
            Guest::Ended,
            "nothing is left at the destination; the guest ended",
            learned,
        ),
        Err(failure) => Report::of(&failure, learned),
    }
}

/// What the source has at the end; nothing where it is fenced and away.
async fn discard(work: &Work) -> Result<Option<MigrationStatus>, Failure> {
    match discard_destination(work).await {
        Err(failure) if !work.goes_without(Side::Destination, &failure) => return Err(failure),
        // A fenced destination discards what it has when its agent is back, before it serves.
        Ok(()) | Err(_) => {}
    }
    match close_source(work).await {
        Ok(status) => Ok(Some(status)),
        Err(failure) if work.goes_without(Side::Source, &failure) => Ok(None),
        Err(failure) => Err(failure),
    }
}

async fn discard_destination(work: &Work) -> Result<(), Failure> {
    // A destination that was away in Abort is revoked now; one that was revoked stays so.
    let revoked = abort::revoke(work).await?;
    let ran = Seen::Journal(DestinationJournal::Ran);
    let fenced = work.is_fenced(Side::Destination);
    if !fenced && seen::destination(&revoked, false).map(|seen: Destination| seen.journal) == ran {
        let contradiction = "the guest ran at the destination, but the source has it back";
        return Err(Failure::new(Reason::VerdictConflict, contradiction).at_host(work.record.destination.clone()));
    }
    let destination = work.destination().await?;
    let request = SettleIncomingRequest {
        fence: destination.fence()?,
        migration: Some(work.reference()),
        verdict: Verdict::NeverRan.into(),
        fenced,
        definition: None,
    };
    let status = destination.settle_incoming(request).await?;
    if seen::is_active(status.guest.as_ref()) && status.same_incarnation {
        let left = "the waiting copy is still there";
        return Err(Failure::new(Reason::ResourceExhausted, left).at_host(destination.host));
    }
    finalize::close(work, &destination).await
}

async fn close_source(work: &Work) -> Result<MigrationStatus, Failure> {
    let source = work.source().await?;
    let guest = source
        .get_migration_status(GetMigrationStatusRequest {
            migration: Some(work.reference()),
        })
        .await?;
    finalize::close(work, &source).await?;
    Ok(guest)
}
