//! What must hold over all combinations of what both hosts can show.

use super::*;

#[test]
fn silence_alone_is_never_a_verdict() {
    for seen in every_destination() {
        if judge(Seen::Unreachable, seen) != judge(Seen::NoJournal, seen) {
            assert!(matches!(judge(Seen::Unreachable, seen), Judgement::Open(_)), "{seen:?}");
        }
    }
    assert!(matches!(
        judge(Seen::Unreachable, Seen::Unreachable),
        Judgement::Open(Open::WaitFor(_))
    ));
}

#[test]
fn a_destination_that_may_run_the_guest_is_never_answered_by_an_abort() {
    for here in every_source() {
        for there in every_destination() {
            let Seen::Journal(seen) = there else { continue };
            if matches!(seen.journal, Finishing | Resuming | Ran) {
                let judgement = judge(here, there);
                assert_ne!(judgement, Judgement::Open(Open::Abort), "{here:?} {there:?}");
            }
        }
    }
}

#[test]
fn only_a_waiting_destination_and_a_still_source_are_told_to_finish() {
    for here in every_source() {
        for there in every_destination() {
            match judge(here, there) {
                Judgement::Open(Open::HandOver) => {
                    let Seen::Journal(seen) = here else {
                        panic!("handed over without a source: {there:?}")
                    };
                    assert!(!matches!(
                        seen.copy,
                        Here::AsBefore(_) | Here::EndedByUser | Here::Another
                    ));
                }
                Judgement::Open(Open::FinishInPlace) => {
                    let Seen::Journal(seen) = there else {
                        panic!("finished nothing: {here:?}")
                    };
                    let irrevocable = matches!(seen.journal, Finishing | Resuming);
                    assert!(
                        seen.copy == There::Still && (irrevocable || seen.journal == Waiting && seen.stream_complete)
                    );
                }
                Judgement::Open(_) | Judgement::Ran | Judgement::NeverRan => {}
            }
        }
    }
}

#[test]
fn a_handed_over_guest_returns_to_the_source_only_by_the_destinations_word_or_a_journaled_verdict() {
    for here in every_source() {
        let Seen::Journal(seen) = here else { continue };
        if !matches!(seen.journal, HandedOver | RanOn) || seen.verdict.is_some() {
            continue;
        }
        for silent in [Seen::Unreachable, Seen::NoJournal, Seen::JournalLost] {
            assert_ne!(judge(here, silent), Judgement::NeverRan, "{here:?}");
        }
    }
}
