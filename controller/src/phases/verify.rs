//! Verify: the source copy is removed, the destination has the guest. From here on there is no way back.

use drover_proto::agent::v1::{MigrationStatus, SettleOutgoingRequest, Verdict};
use drover_proto::failure::{Failure, Reason};

use super::{Report, Work, look};
use crate::saga::Guest;
use crate::seen;
use crate::verdict::{Judgement, Open, Side, Undecidable};

pub(super) async fn run(work: &Work) -> Report {
    let look = look::both(work).await;
    match look.judgement() {
        Judgement::Ran => {}
        Judgement::NeverRan => {
            // Transfer has seen the proof of the opposite.
            let contradiction = Failure::new(Reason::VerdictConflict, "the hosts say that the guest never ran there");
            return Report::refused(&contradiction, look.learned());
        }
        // A host that does not answer proves nothing against what Transfer has seen; the source is asked to act on it.
        Judgement::Open(Open::WaitFor(_) | Open::Settling | Open::TouchNothing | Open::HandOver) => {}
        Judgement::Open(Open::Resolve(why @ Undecidable::Contradiction)) => {
            return Report::resolve(why, &work.record, &look);
        }
        Judgement::Open(
            Open::Resolve(
                Undecidable::DiedWhileResuming
                | Undecidable::JournalLost
                | Undecidable::AnotherGuest
                | Undecidable::IncompleteCopy
                | Undecidable::OlderCopy,
            )
            | Open::ContinueTransfer
            | Open::Abort
            | Open::FinishInPlace
            | Open::RecoverPostCopy
            | Open::GuestLost
            | Open::SuspendSource,
        ) => {}
    }
    match settle(work).await {
        Ok(status) => removed(work, &look.with_source(status)),
        Err(failure) if work.goes_without(Side::Source, &failure) => left_to_its_agent(work, &look),
        Err(failure) => Report::of(&failure, look.learned()),
    }
}

async fn settle(work: &Work) -> Result<MigrationStatus, Failure> {
    let source = work.source().await?;
    let request = SettleOutgoingRequest {
        fence: source.fence()?,
        migration: Some(work.reference()),
        verdict: Verdict::Ran.into(),
        fenced: work.is_fenced(Side::Source),
    };
    source.settle_outgoing(request).await
}

/// The source is fenced: its agent removes the copy when it is back, before it serves.
fn left_to_its_agent(work: &Work, look: &look::Look) -> Report {
    let learned = look.learned().with_guest_at(&work.record.destination);
    if let Err(failure) = &look.destination {
        return Report::unknown(failure, learned);
    }
    Report::done(Guest::Lives, "the source is fenced", learned)
}

/// Looks at what the source has now. Another guest of the same UUID there is a later life: not ours to remove.
fn removed(work: &Work, look: &look::Look) -> Report {
    let learned = look.learned().with_guest_at(&work.record.destination);
    let Ok(status) = &look.source else {
        return Report::again("the source has to be asked again", learned);
    };
    if seen::is_active(status.guest.as_ref()) && status.same_incarnation {
        return Report::again("the source copy is still there", learned);
    }
    if let Err(failure) = &look.destination {
        return Report::unknown(failure, learned);
    }
    Report::done(Guest::Lives, "the source copy is gone", learned)
}
