//! Promises of the verdict, each checked over every combination of what the two hosts can show.

use super::*;

/// Every combination, with what is judged of it.
fn every_case() -> impl Iterator<Item = (Seen<Source>, Seen<Destination>, Judgement)> {
    let destinations = every_destination();
    every_source().into_iter().flat_map(move |here| {
        let judged = move |there| (here, there, judge(here, there));
        destinations.clone().into_iter().map(judged)
    })
}

fn opposite(judgement: Judgement) -> Option<Judgement> {
    match judgement {
        Judgement::NeverRan => Some(Judgement::Ran),
        Judgement::Ran => Some(Judgement::NeverRan),
        Judgement::Open(_) => None,
    }
}

#[test]
fn there_are_as_many_combinations_as_there_must_be() {
    // 3 without a journal; 9 copies, 4 journals, tombstone or not, 3 verdicts. And 6 copies, 6 journals, 8 ways of the
    // stream, 3 verdicts.
    assert_eq!(every_case().count(), (3 + 9 * 4 * 2 * 3) * (3 + 6 * 6 * 8 * 3));
}

#[test]
fn the_destinations_final_word_is_never_overruled() {
    for (here, there, judgement) in every_case() {
        let Seen::Journal(seen) = there else { continue };
        let word = match seen.journal {
            Ran => Judgement::Ran,
            Revoked | Failed => Judgement::NeverRan,
            Waiting | Finishing | Resuming => continue,
        };
        let contradiction = Judgement::Open(Open::Resolve(Undecidable::Contradiction));
        assert!(
            judgement == word || judgement == contradiction,
            "{here:?} {there:?}: {judgement:?}"
        );
    }
}

#[test]
fn silence_turns_no_verdict_into_its_opposite() {
    for (here, there, judgement) in every_case() {
        let Some(opposite) = opposite(judgement) else { continue };
        assert_ne!(judge(Seen::Unreachable, there), opposite, "{here:?} {there:?}");
        assert_ne!(judge(here, Seen::Unreachable), opposite, "{here:?} {there:?}");
    }
}

#[test]
fn a_verdict_that_was_written_down_stays_when_it_is_asked_again() {
    for (here, there, judgement) in every_case() {
        let decided = match judgement {
            Judgement::NeverRan => Decided::NeverRan,
            Judgement::Ran => Decided::Ran,
            Judgement::Open(_) => continue,
        };
        let written = here.map(|seen| Source {
            verdict: Some(decided),
            tombstoned: true,
            ..seen
        });
        // A source that never begun proves by its tombstone alone that nothing ran.
        let is_source = matches!(here, Seen::Journal(seen) if matches!(seen.journal, HandedOver | RanOn));
        if is_source {
            assert_eq!(judge(written, there), judgement, "{here:?} {there:?}");
        }
    }
}

#[test]
fn a_copy_that_is_older_than_the_disks_is_never_told_to_run() {
    for (here, there, judgement) in every_case() {
        let Seen::Journal(seen) = here else { continue };
        if seen.journal != RanOn {
            continue;
        }
        let in_post_copy = matches!(seen.copy, Here::PostCopy | Here::PostCopyFailed);
        let runs = matches!(judgement, Judgement::Open(Open::HandOver | Open::FinishInPlace));
        assert!(!runs || in_post_copy, "{here:?} {there:?}: {judgement:?}");
    }
}

#[test]
fn the_only_copy_is_neither_revoked_nor_left_alone() {
    for (here, there, judgement) in every_case() {
        let (Seen::Journal(source), Seen::Journal(destination)) = (here, there) else {
            continue;
        };
        let only_copy = source.journal == HandedOver
            && source.copy == Here::Gone
            && destination.copy == There::Still
            && destination.stream_complete
            && matches!(destination.journal, Waiting | Finishing | Resuming);
        let undecided = source.verdict.is_none() && destination.verdict.is_none();
        if only_copy && undecided {
            let lets_it_run = matches!(judgement, Judgement::Open(Open::FinishInPlace | Open::HandOver));
            assert!(lets_it_run, "{here:?} {there:?}: {judgement:?}");
        }
    }
}
