//! Finalize: definition and autostart are right at the destination, and nothing is left over on either host.

use drover_proto::agent::v1::{CloseMigrationRequest, MigrationStatus, SettleIncomingRequest, Verdict};
use drover_proto::failure::Failure;

use super::{Report, Work, look};
use crate::agents::Agent;
use crate::saga::Guest;
use crate::seen;
use crate::verdict::Side;

pub(super) async fn run(work: &Work) -> Report {
    let look = look::both(work).await;
    let learned = look.learned().with_guest_at(&work.record.destination);
    match finalize(work).await {
        Ok(status) => {
            let mut learned = learned;
            learned.add(&status, &work.record.destination);
            // What was seen as Ran and is not there any more has ended there by itself.
            if seen::is_active(status.guest.as_ref()) {
                Report::done(Guest::Lives, "the source has forgotten the guest", learned)
            } else {
                Report::done(Guest::Ended, "the guest ended at the destination", learned)
            }
        }
        Err(failure) => Report::of(&failure, learned),
    }
}

async fn finalize(work: &Work) -> Result<MigrationStatus, Failure> {
    let (source, destination) = (work.source().await?, work.destination().await?);
    let request = SettleIncomingRequest {
        fence: destination.fence()?,
        migration: Some(work.reference()),
        verdict: Verdict::Ran.into(),
        fenced: work.is_fenced(Side::Source),
    };
    let status = destination.settle_incoming(request).await?;
    // The source first: while its journal is open, its agent still guards against a second copy.
    match close(work, &source).await {
        Err(failure) if !work.goes_without(Side::Source, &failure) => return Err(failure),
        // A fenced source closes it when its agent is back.
        Ok(()) | Err(_) => {}
    }
    close(work, &destination).await?;
    Ok(status)
}

/// Closes a journal that has its verdict; a closed one stays closed.
pub(super) async fn close(work: &Work, agent: &Agent) -> Result<(), Failure> {
    let request = CloseMigrationRequest {
        fence: agent.fence()?,
        migration: Some(work.reference()),
    };
    agent.close_migration(request).await?;
    Ok(())
}
