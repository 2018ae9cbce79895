//! Abort: the source gets its guest back, if the destination never had it.
//!
//! The order is the safety: first the source is tombstoned, so that nothing can be handed over any more; then the
//! destination is revoked, which decides; only then is the source told that the guest is its own.

use drover_proto::agent::v1::{
    AbortOutgoingRequest, MigrationStatus, RevokeIncomingRequest, SettleOutgoingRequest, Verdict,
};
use drover_proto::failure::{Failure, Reason};

use super::look::{self, Look};
use super::{Report, Work, offline};
use crate::saga::Guest;
use crate::verdict::{Judgement, Open, Side};

pub(super) async fn run(work: &Work) -> Report {
    let look = look::both(work).await;
    if let Some(report) = too_late(&look) {
        return report;
    }
    let look = match tombstone(work).await {
        Ok(status) => look.with_source(status),
        Err(failure) if is_too_late(&failure) => return Report::refused(&failure, look.learned()),
        // One that is off hands nothing over any more.
        Err(failure) if work.goes_without(Side::Source, &failure) => look,
        // The destination is revoked only after the source is tombstoned; and Abort's one refusal is "too late".
        Err(failure) => return Report::unknown(&failure, look.learned()),
    };
    if let Some(report) = too_late(&look) {
        return report;
    }
    let (look, silent) = match revoke(work).await {
        Ok(status) => (look.with_destination(status), None),
        Err(failure) => (look, Some(failure)),
    };
    match look.judgement() {
        Judgement::NeverRan => give_back(work, look).await,
        Judgement::Ran => ran(&look),
        Judgement::Open(open) => undecided(work, &look, open, silent),
    }
}

/// The guest ran at the destination, or the copy there is the only one and must run.
fn too_late(look: &Look) -> Option<Report> {
    match look.judgement() {
        Judgement::Ran => Some(ran(look)),
        Judgement::Open(Open::FinishInPlace | Open::RecoverPostCopy | Open::TouchNothing | Open::GuestLost) => {
            let late = Failure::new(Reason::TooLate, "the copy at the destination is needed");
            Some(Report::refused(&late, look.learned()))
        }
        Judgement::NeverRan
        | Judgement::Open(
            Open::ContinueTransfer
            | Open::Abort
            | Open::HandOver
            | Open::Settling
            | Open::WaitFor(_)
            | Open::SuspendSource
            | Open::Resolve(_),
        ) => None,
    }
}

fn ran(look: &Look) -> Report {
    let late = Failure::new(Reason::TooLate, "the guest ran at the destination");
    Report::refused(&late, look.learned())
}

fn is_too_late(failure: &Failure) -> bool {
    failure.is_evidence() && matches!(failure.reason, Reason::PostCopy | Reason::TooLate)
}

async fn tombstone(work: &Work) -> Result<MigrationStatus, Failure> {
    let source = work.source().await?;
    let error = work.record.details.error.as_ref();
    let request = AbortOutgoingRequest {
        fence: source.fence()?,
        migration: Some(work.reference()),
        reason: error.map_or_else(|| Reason::Cancelled.name().to_owned(), |error| error.reason.clone()),
    };
    source.abort_outgoing(request).await
}

pub(super) async fn revoke(work: &Work) -> Result<MigrationStatus, Failure> {
    let destination = work.destination().await?;
    let request = RevokeIncomingRequest {
        fence: destination.fence()?,
        migration: Some(work.reference()),
    };
    destination.revoke_incoming(request).await
}

/// Verdict NeverRan: the source restores what was before, and that is looked at.
async fn give_back(work: &Work, look: Look) -> Report {
    let settled = async {
        let source = work.source().await?;
        let request = SettleOutgoingRequest {
            fence: source.fence()?,
            migration: Some(work.reference()),
            verdict: Verdict::NeverRan.into(),
            fenced: false,
        };
        source.settle_outgoing(request).await
    };
    match settled.await {
        Ok(status) => {
            let lives = offline::lives(&work.record, &status);
            let learned = look.with_source(status).learned().with_guest_at(&work.record.source);
            if lives {
                Report::done(Guest::Lives, "the source has its guest back", learned)
            } else {
                Report::done(Guest::Ended, "the guest ended at the source", learned)
            }
        }
        Err(failure) if work.goes_without(Side::Source, &failure) => {
            let learned = look.learned().with_guest_at(&work.record.source);
            Report::done(Guest::Ended, "the source is fenced, and the guest with it", learned)
        }
        Err(failure) => Report::unknown(&failure, look.learned()),
    }
}

fn undecided(work: &Work, look: &Look, open: Open, silent: Option<Failure>) -> Report {
    match (open, silent) {
        (Open::WaitFor(side), _) => Report::wait_for(side, &work.record, look),
        (Open::Resolve(why), None) => {
            let mut report = Report::resolve(why, &work.record, look);
            report.learned = report.learned.with_guest_nowhere_known();
            report
        }
        (_, Some(failure)) => Report::unknown(&failure, look.learned()),
        (_, None) => Report::again("the destination has not decided yet", look.learned()),
    }
}
