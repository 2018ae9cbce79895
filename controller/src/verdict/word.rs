//! What an operator's word that a host is fenced adds: it decides where the hosts cannot, and nowhere else.
//!
//! The destination fenced: its copy is off, so the source keeps the guest. The source fenced: what waits at the
//! destination is the only copy, and runs on if all of it has come; else the guest has gone with its source.

use super::{
    Destination, DestinationCopy, DestinationJournal, Judgement, Open, Seen, Side, Source, SourceCopy, Undecidable,
    judge,
};

/// Who may run the guest, with an operator's word where there is one. Proof counts before the word.
pub fn judge_with_word(source: Seen<Source>, destination: Seen<Destination>, fenced: Option<Side>) -> Judgement {
    let open = match judge(source, destination) {
        Judgement::Open(open) => open,
        decided @ (Judgement::NeverRan | Judgement::Ran) => return decided,
    };
    match fenced {
        None => Judgement::Open(open),
        Some(Side::Destination) => destination_fenced(open, source, destination),
        Some(Side::Source) => source_fenced(open, source, destination),
    }
}

fn destination_fenced(open: Open, source: Seen<Source>, destination: Seen<Destination>) -> Judgement {
    let knows_of_post_copy = matches!(
        source,
        Seen::Journal(Source {
            copy: SourceCopy::PostCopy | SourceCopy::PostCopyFailed,
            ..
        })
    );
    if source == Seen::Unreachable || knows_of_post_copy {
        return Judgement::Open(open);
    }
    match open {
        Open::WaitFor(Side::Destination) | Open::Resolve(_) => Judgement::NeverRan,
        // It may still give up by itself, and nobody is there to hand over to.
        Open::ContinueTransfer | Open::HandOver if destination == Seen::Unreachable => Judgement::Open(Open::Abort),
        Open::ContinueTransfer
        | Open::HandOver
        | Open::Abort
        | Open::FinishInPlace
        | Open::Settling
        | Open::TouchNothing
        | Open::RecoverPostCopy
        | Open::GuestLost
        | Open::SuspendSource
        | Open::WaitFor(Side::Source) => Judgement::Open(open),
    }
}

fn source_fenced(open: Open, source: Seen<Source>, destination: Seen<Destination>) -> Judgement {
    match open {
        Open::Resolve(Undecidable::Contradiction | Undecidable::DiedWhileResuming | Undecidable::AnotherGuest) => {
            Judgement::Ran
        }
        Open::Resolve(Undecidable::IncompleteCopy | Undecidable::JournalLost) | Open::WaitFor(Side::Source) => {
            match destination {
                Seen::Journal(seen) if seen.journal == DestinationJournal::Waiting => Judgement::Open(only_copy(seen)),
                // Nothing was prepared: whatever there was is at the source.
                Seen::NoJournal if source == Seen::Unreachable => Judgement::NeverRan,
                Seen::Journal(_) | Seen::NoJournal | Seen::JournalLost | Seen::Unreachable => Judgement::Open(open),
            }
        }
        // What is left is older than the disks, whoever is off.
        Open::Resolve(Undecidable::OlderCopy)
        | Open::ContinueTransfer
        | Open::HandOver
        | Open::Abort
        | Open::FinishInPlace
        | Open::Settling
        | Open::TouchNothing
        | Open::RecoverPostCopy
        | Open::GuestLost
        | Open::SuspendSource
        | Open::WaitFor(Side::Destination) => Judgement::Open(open),
    }
}

/// What waits is all there is: it runs on if nothing is missing, else there is nothing to run.
fn only_copy(destination: Destination) -> Open {
    let still = destination.copy == DestinationCopy::Still;
    if still && destination.stream_complete {
        Open::FinishInPlace
    } else if still && destination.stream_flows {
        Open::Settling
    } else {
        Open::Abort
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::{Job, SourceJournal};

    const HANDED_OVER: Source = Source {
        journal: SourceJournal::HandedOver,
        tombstoned: false,
        verdict: None,
        copy: SourceCopy::AllSent,
    };

    const WAITING: Destination = Destination {
        journal: DestinationJournal::Waiting,
        post_copy: false,
        stream_complete: true,
        stream_flows: false,
        verdict: None,
        copy: DestinationCopy::Still,
    };

    #[test]
    fn a_fenced_destination_leaves_the_guest_to_its_source() {
        let word = Some(Side::Destination);
        let source = Seen::Journal(HANDED_OVER);
        assert_eq!(judge_with_word(source, Seen::Unreachable, word), Judgement::NeverRan);
        let died = Seen::Journal(Destination {
            journal: DestinationJournal::Resuming,
            copy: DestinationCopy::Absent,
            ..WAITING
        });
        assert_eq!(judge_with_word(source, died, word), Judgement::NeverRan);
        let sending = Seen::Journal(Source {
            journal: SourceJournal::Sending,
            copy: SourceCopy::AsBefore(Job::Performing),
            ..HANDED_OVER
        });
        let aborts = Judgement::Open(Open::Abort);
        assert_eq!(judge_with_word(sending, Seen::Unreachable, word), aborts);
        let silent = judge_with_word(Seen::Unreachable, Seen::Unreachable, word);
        assert_eq!(silent, Judgement::Open(Open::WaitFor(Side::Source)));
    }

    #[test]
    fn a_fenced_source_leaves_the_guest_to_its_destination_if_all_of_it_has_come() {
        let word = Some(Side::Source);
        let complete = judge_with_word(Seen::Unreachable, Seen::Journal(WAITING), word);
        assert_eq!(complete, Judgement::Open(Open::FinishInPlace));
        let incomplete = Destination {
            stream_complete: false,
            stream_flows: false,
            ..WAITING
        };
        let nothing_to_run = judge_with_word(Seen::Unreachable, Seen::Journal(incomplete), word);
        assert_eq!(nothing_to_run, Judgement::Open(Open::Abort));
        let silent = judge_with_word(Seen::Unreachable, Seen::Unreachable, word);
        assert_eq!(silent, Judgement::Open(Open::WaitFor(Side::Source)));
    }

    #[test]
    fn proof_counts_before_the_word() {
        let ran = Seen::Journal(Destination {
            journal: DestinationJournal::Ran,
            copy: DestinationCopy::Runs,
            ..WAITING
        });
        let revoked = Seen::Journal(Destination {
            journal: DestinationJournal::Revoked,
            copy: DestinationCopy::Absent,
            ..WAITING
        });
        for word in [None, Some(Side::Source), Some(Side::Destination)] {
            assert_eq!(judge_with_word(Seen::Unreachable, ran, word), Judgement::Ran);
            assert_eq!(judge_with_word(Seen::Unreachable, revoked, word), Judgement::NeverRan);
        }
    }

    #[test]
    fn memory_on_two_hosts_is_nobodys_word() {
        let post_copy = Seen::Journal(Source {
            copy: SourceCopy::PostCopyFailed,
            ..HANDED_OVER
        });
        let said = judge_with_word(post_copy, Seen::Unreachable, Some(Side::Destination));
        assert!(matches!(said, Judgement::Open(_)), "{said:?}");
    }

    #[test]
    fn what_is_left_of_a_guest_in_post_copy_has_to_be_ended_before_a_word_counts() {
        let left = |copy| {
            Seen::Journal(Destination {
                journal: DestinationJournal::Resuming,
                post_copy: true,
                copy,
                ..WAITING
            })
        };
        let off = |copy| judge_with_word(Seen::Unreachable, left(copy), Some(Side::Source));
        assert_eq!(
            off(DestinationCopy::PostCopyFailed),
            Judgement::Open(Open::TouchNothing)
        );
        assert_eq!(off(DestinationCopy::Absent), Judgement::Ran);
        let ended = Seen::Journal(Source {
            copy: SourceCopy::Gone,
            ..HANDED_OVER
        });
        let off = judge_with_word(ended, Seen::Unreachable, Some(Side::Destination));
        assert_eq!(off, Judgement::NeverRan);
    }
}
