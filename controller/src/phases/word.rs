//! Whether an operator's word that a host is fenced is needed: only where the hosts themselves cannot decide.

use drover_proto::failure::{Failure, Reason};

use super::answer::fenced_flag;
use super::{Work, look};
use crate::saga::{Phase, Position};
use crate::store::Record;
use crate::verdict::{self, Destination, DestinationCopy, Judgement, Open, Seen, Side, Source, SourceCopy};

/// Looks at both hosts now. Refused, with the reason, where the word is not needed or could do harm.
pub async fn needs_word(work: &Work, fenced: Side) -> Result<(), Failure> {
    if work.record.position == Position::At(Phase::Validate) {
        return Err(refused("nothing was begun yet", "cancel the migration"));
    }
    let look = look::both(work).await;
    let answers = match fenced {
        Side::Source => look.source.is_ok(),
        Side::Destination => look.destination.is_ok(),
    };
    let (source, destination) = (look.seen_source(), look.seen_destination());
    let judgement = verdict::judge(source, destination);
    weigh(&work.record, judgement, fenced, answers)?;
    if answers && has_only_copy(source, destination, fenced) {
        let (host, other) = (work.record.host_of(fenced), work.record.host_of(fenced.other()));
        let flag = fenced_flag(fenced.other());
        return Err(refused(
            format!("{host} answers and has the only copy of the guest: to call it fenced would leave none"),
            format!("where no copy runs on {other} any more, say so: `drover migration resolve {flag}`"),
        ));
    }
    // A word that decides nothing would only be waited for.
    let decides = verdict::judge_with_word(source, destination, Some(fenced)) != judgement;
    match judgement {
        Judgement::Open(_) if !decides => Err(refused(
            format!(
                "that {} is fenced decides nothing: no host has a copy that could run",
                work.record.host_of(fenced)
            ),
            "bring the hosts back; what they have is told by `drover migration get`",
        )),
        Judgement::Open(_) | Judgement::Ran | Judgement::NeverRan => Ok(()),
    }
}

/// Whether a copy that could run is on this side and none on the other one.
fn has_only_copy(source: Seen<Source>, destination: Seen<Destination>, side: Side) -> bool {
    let at_source = match source {
        Seen::Journal(seen) => match seen.copy {
            SourceCopy::AsBefore(_) | SourceCopy::AllSent | SourceCopy::PostCopy | SourceCopy::PostCopyFailed => true,
            SourceCopy::Gone | SourceCopy::EndedByUser | SourceCopy::Another => false,
        },
        Seen::Unreachable | Seen::NoJournal | Seen::JournalLost => false,
    };
    let at_destination = match destination {
        Seen::Journal(seen) => match seen.copy {
            DestinationCopy::Still
            | DestinationCopy::Runs
            | DestinationCopy::PostCopy
            | DestinationCopy::PostCopyFailed => true,
            DestinationCopy::Absent | DestinationCopy::Another => false,
        },
        Seen::Unreachable | Seen::NoJournal | Seen::JournalLost => false,
    };
    // One that does not answer may have one.
    match side {
        Side::Source => at_source && !at_destination && destination != Seen::Unreachable,
        Side::Destination => at_destination && !at_source && source != Seen::Unreachable,
    }
}

fn weigh(record: &Record, judgement: Judgement, fenced: Side, answers: bool) -> Result<(), Failure> {
    let host = record.host_of(fenced);
    match (judgement, fenced) {
        (Judgement::Open(Open::WaitFor(side)), _) if side == fenced => Ok(()),
        (Judgement::Open(Open::WaitFor(side)), _) => {
            let other = record.host_of(side);
            let why = format!("{other} has to answer first: what it has decides what a word about {host} means");
            Err(refused(why, format!("bring {other} or its agent back")))
        }
        (Judgement::Open(Open::Resolve(_)), _) => Ok(()),
        (Judgement::Open(Open::TouchNothing | Open::RecoverPostCopy | Open::GuestLost), _) => Err(refused(
            "the guest's memory lies on both hosts: neither can go on without the other",
            format!(
                "bring both hosts back; where {host} is off for good the guest is lost: end what {} has of it with `virsh \
                 destroy`, then say this again",
                record.host_of(fenced.other())
            ),
        )),
        (Judgement::Ran | Judgement::NeverRan | Judgement::Open(_), _) if answers => Err(refused(
            format!("{host} answers: the hosts decide by themselves"),
            "nothing has to be said; `drover migration get` shows what it waits for",
        )),
        // It only waits for the host to forget what it has.
        (Judgement::NeverRan, Side::Source | Side::Destination) | (Judgement::Ran, Side::Source) => Ok(()),
        (Judgement::Ran, Side::Destination) => {
            let why = format!("the guest has run on {host}, and its source copy is not the newest any more");
            Err(Failure::new(Reason::VerdictConflict, why)
                .with_remedy(format!("bring {host} back, or start the guest anew from its disks")))
        }
        (
            Judgement::Open(
                Open::ContinueTransfer
                | Open::Abort
                | Open::HandOver
                | Open::FinishInPlace
                | Open::Settling
                | Open::SuspendSource,
            ),
            _,
        ) => Err(refused(
            "the migration does not wait for that host: it can go on or be undone without it",
            "cancel it, or wait until `drover migration get` says that it waits",
        )),
    }
}

fn refused(why: impl Into<String>, remedy: impl Into<String>) -> Failure {
    Failure::new(Reason::MigrationState, why.into()).with_remedy(remedy)
}
