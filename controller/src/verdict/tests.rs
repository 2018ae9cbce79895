//! Every row of the design's two tables, and what must hold over all combinations.

use super::DestinationCopy as There;
use super::DestinationJournal::{Failed, Finishing, Ran, Resuming, Revoked, Waiting};
use super::SourceCopy as Here;
use super::SourceJournal::{HandedOver, NotBegun, Sending};
use super::*;

const UNREACHABLE_SOURCE: Seen<Source> = Seen::Unreachable;
const UNREACHABLE_DESTINATION: Seen<Destination> = Seen::Unreachable;

fn source(journal: SourceJournal, copy: SourceCopy) -> Seen<Source> {
    Seen::Journal(Source { journal, tombstoned: false, verdict: None, copy })
}

fn tombstoned(journal: SourceJournal, copy: SourceCopy) -> Seen<Source> {
    Seen::Journal(Source { journal, tombstoned: true, verdict: None, copy })
}

fn destination(journal: DestinationJournal, copy: DestinationCopy) -> Seen<Destination> {
    Seen::Journal(Destination { journal, post_copy: false, stream_complete: false, verdict: None, copy })
}

fn received(journal: DestinationJournal, copy: DestinationCopy) -> Seen<Destination> {
    Seen::Journal(Destination { journal, post_copy: false, stream_complete: true, verdict: None, copy })
}

fn post_copy_destination(journal: DestinationJournal, copy: DestinationCopy) -> Seen<Destination> {
    Seen::Journal(Destination { journal, post_copy: true, stream_complete: false, verdict: None, copy })
}

fn running(job: Job) -> Seen<Source> {
    source(Sending, Here::AsBefore(job))
}

fn expect_open(source: Seen<Source>, destination: Seen<Destination>, expected: Open) {
    assert_eq!(judge(source, destination), Judgement::Open(expected), "{source:?} {destination:?}");
}

// The first table: verdicts.

#[test]
fn a_revoked_destination_never_ran() {
    for seen in every_source() {
        if !claims_ran(seen) {
            assert_eq!(judge(seen, destination(Revoked, There::Absent)), Judgement::NeverRan, "{seen:?}");
        }
    }
}

#[test]
fn a_destination_that_failed_to_finish_never_ran() {
    assert_eq!(judge(source(HandedOver, Here::AllSent), destination(Failed, There::Absent)), Judgement::NeverRan);
    assert_eq!(judge(UNREACHABLE_SOURCE, destination(Failed, There::Still)), Judgement::NeverRan);
}

#[test]
fn a_copy_that_vanished_in_finishing_never_ran() {
    assert_eq!(judge(source(HandedOver, Here::AllSent), received(Finishing, There::Absent)), Judgement::NeverRan);
}

#[test]
fn another_guest_in_place_of_the_finishing_copy_proves_nothing() {
    expect_open(
        source(HandedOver, Here::AllSent),
        received(Finishing, There::Another),
        Open::Resolve(Undecidable::AnotherGuest),
    );
}

#[test]
fn a_tombstoned_source_that_never_handed_over_keeps_its_guest_even_if_the_destination_is_silent() {
    for journal in [NotBegun, Sending] {
        let seen = tombstoned(journal, Here::AsBefore(Job::None));
        assert_eq!(judge(seen, UNREACHABLE_DESTINATION), Judgement::NeverRan);
        assert_eq!(judge(seen, received(Waiting, There::Still)), Judgement::NeverRan);
    }
}

#[test]
fn a_tombstone_after_the_hand_over_proves_nothing() {
    let seen = tombstoned(HandedOver, Here::AllSent);
    expect_open(seen, UNREACHABLE_DESTINATION, Open::WaitFor(Side::Destination));
    expect_open(seen, received(Waiting, There::Still), Open::Abort);
}

#[test]
fn a_tombstone_on_a_source_in_post_copy_proves_nothing() {
    let seen = tombstoned(Sending, Here::PostCopy);
    expect_open(seen, post_copy_destination(Resuming, There::PostCopy), Open::TouchNothing);
}

#[test]
fn a_destination_that_journaled_ran_has_the_guest_also_when_its_copy_is_gone() {
    for copy in [There::Absent, There::Still, There::Runs, There::Another] {
        assert_eq!(judge(source(HandedOver, Here::AllSent), received(Ran, copy)), Judgement::Ran);
        assert_eq!(judge(UNREACHABLE_SOURCE, received(Ran, copy)), Judgement::Ran);
    }
}

#[test]
fn a_pre_copy_guest_seen_running_at_the_destination_ran() {
    for journal in [Waiting, Finishing, Resuming] {
        assert_eq!(judge(source(HandedOver, Here::AllSent), received(journal, There::Runs)), Judgement::Ran);
    }
}

#[test]
fn a_post_copy_guest_seen_running_has_not_ran_before_its_journal_says_so() {
    expect_open(
        source(HandedOver, Here::PostCopy),
        post_copy_destination(Resuming, There::PostCopy),
        Open::TouchNothing,
    );
    expect_open(source(HandedOver, Here::AllSent), post_copy_destination(Resuming, There::Runs), Open::TouchNothing);
}

#[test]
fn a_verdict_that_either_journal_holds_is_the_verdict() {
    let decided = |verdict| {
        Seen::Journal(Source { journal: HandedOver, tombstoned: false, verdict: Some(verdict), copy: Here::Gone })
    };
    assert_eq!(judge(decided(Decided::Ran), UNREACHABLE_DESTINATION), Judgement::Ran);
    assert_eq!(judge(decided(Decided::NeverRan), UNREACHABLE_DESTINATION), Judgement::NeverRan);
}

#[test]
fn opposite_proofs_are_a_persons_business() {
    expect_open(
        tombstoned(Sending, Here::AsBefore(Job::None)),
        received(Ran, There::Runs),
        Open::Resolve(Undecidable::Contradiction),
    );
}

// The second table: while it is open.

#[test]
fn a_running_source_with_its_job_continues() {
    expect_open(running(Job::Performing), destination(Waiting, There::Still), Open::ContinueTransfer);
    expect_open(running(Job::Held), destination(Waiting, There::Still), Open::ContinueTransfer);
    expect_open(running(Job::Performing), UNREACHABLE_DESTINATION, Open::ContinueTransfer);
}

#[test]
fn a_running_source_without_a_job_is_aborted() {
    expect_open(running(Job::None), destination(Waiting, There::Still), Open::Abort);
    expect_open(running(Job::None), UNREACHABLE_DESTINATION, Open::Abort);
}

#[test]
fn a_source_that_has_sent_all_hands_over_again() {
    for journal in [Sending, HandedOver] {
        expect_open(source(journal, Here::AllSent), received(Waiting, There::Still), Open::HandOver);
    }
}

#[test]
fn a_source_gone_after_the_hand_over_leaves_the_only_copy_which_must_finish() {
    expect_open(source(HandedOver, Here::Gone), received(Waiting, There::Still), Open::FinishInPlace);
    expect_open(tombstoned(HandedOver, Here::Gone), received(Waiting, There::Still), Open::FinishInPlace);
}

#[test]
fn an_incomplete_copy_of_a_source_that_is_gone_is_not_finished() {
    expect_open(
        source(HandedOver, Here::Gone),
        destination(Waiting, There::Still),
        Open::Resolve(Undecidable::IncompleteCopy),
    );
}

#[test]
fn a_source_gone_while_sending_may_have_run_on_and_is_aborted() {
    expect_open(source(Sending, Here::Gone), received(Waiting, There::Still), Open::Abort);
}

#[test]
fn a_guest_ended_by_its_user_is_not_brought_back_by_its_waiting_copy() {
    for journal in [Sending, HandedOver] {
        expect_open(source(journal, Here::EndedByUser), received(Waiting, There::Still), Open::Abort);
    }
}

#[test]
fn flowing_post_copy_is_left_alone() {
    expect_open(source(HandedOver, Here::PostCopy), UNREACHABLE_DESTINATION, Open::TouchNothing);
    expect_open(UNREACHABLE_SOURCE, post_copy_destination(Resuming, There::PostCopy), Open::TouchNothing);
}

#[test]
fn a_source_in_post_copy_is_never_answered_by_a_revoke() {
    for copy in [Here::PostCopy, Here::PostCopyFailed] {
        expect_open(source(Sending, copy), post_copy_destination(Waiting, There::Still), Open::HandOver);
    }
}

#[test]
fn post_copy_broken_on_both_sides_is_recovered() {
    expect_open(
        source(HandedOver, Here::PostCopyFailed),
        post_copy_destination(Resuming, There::PostCopyFailed),
        Open::RecoverPostCopy,
    );
}

#[test]
fn a_guest_whose_source_died_in_post_copy_is_lost_and_kept_as_it_is() {
    for copy in [There::PostCopy, There::PostCopyFailed] {
        expect_open(source(HandedOver, Here::Gone), post_copy_destination(Resuming, copy), Open::GuestLost);
    }
}

#[test]
fn after_the_hand_over_a_silent_destination_is_waited_for() {
    for copy in [Here::AllSent, Here::Gone, Here::EndedByUser] {
        expect_open(source(HandedOver, copy), UNREACHABLE_DESTINATION, Open::WaitFor(Side::Destination));
    }
}

#[test]
fn a_copy_that_vanished_in_resuming_can_be_decided_by_nobody() {
    for seen in [source(HandedOver, Here::AllSent), source(HandedOver, Here::Gone), UNREACHABLE_SOURCE] {
        expect_open(seen, received(Resuming, There::Absent), Open::Resolve(Undecidable::DiedWhileResuming));
    }
}

#[test]
fn after_the_hand_over_a_destination_without_journal_can_be_decided_by_nobody() {
    for nothing in [Seen::NoJournal, Seen::JournalLost] {
        expect_open(source(HandedOver, Here::AllSent), nothing, Open::Resolve(Undecidable::JournalLost));
    }
}

#[test]
fn a_silent_source_is_waited_for() {
    for seen in [destination(Waiting, There::Still), received(Waiting, There::Still), Seen::NoJournal] {
        expect_open(UNREACHABLE_SOURCE, seen, Open::WaitFor(Side::Source));
    }
    expect_open(UNREACHABLE_SOURCE, UNREACHABLE_DESTINATION, Open::WaitFor(Side::Source));
}

#[test]
fn two_running_copies_without_a_verdict_stop_the_source() {
    let both = (source(HandedOver, Here::AsBefore(Job::None)), post_copy_destination(Resuming, There::Runs));
    expect_open(both.0, both.1, Open::SuspendSource);
    assert!(both_run(both.0, both.1));
}

#[test]
fn two_running_copies_after_never_ran_leave_the_source_alone_and_raise_the_alarm() {
    let both = (running(Job::None), destination(Revoked, There::Runs));
    assert_eq!(judge(both.0, both.1), Judgement::NeverRan);
    assert!(both_run(both.0, both.1));
}

// What the tables do not name.

#[test]
fn a_source_resumed_behind_our_back_after_the_hand_over_is_never_finished() {
    let resumed = source(HandedOver, Here::AsBefore(Job::None));
    expect_open(resumed, received(Waiting, There::Still), Open::Abort);
    for journal in [Finishing, Resuming] {
        expect_open(resumed, received(journal, There::Still), Open::SuspendSource);
    }
}

#[test]
fn a_destination_under_way_is_asked_again_through_the_source_or_waited_for() {
    for journal in [Finishing, Resuming] {
        expect_open(source(HandedOver, Here::AllSent), received(journal, There::Still), Open::HandOver);
        expect_open(tombstoned(HandedOver, Here::AllSent), received(journal, There::Still), Open::Settling);
        expect_open(UNREACHABLE_SOURCE, received(journal, There::Still), Open::Settling);
    }
}

#[test]
fn nothing_begun_anywhere_is_aborted() {
    expect_open(Seen::NoJournal, Seen::NoJournal, Open::Abort);
    expect_open(Seen::NoJournal, UNREACHABLE_DESTINATION, Open::Abort);
    expect_open(running(Job::Held), Seen::NoJournal, Open::Abort);
}

#[test]
fn a_lost_source_journal_never_costs_a_copy_that_may_be_the_only_one() {
    for lost in [Seen::NoJournal, Seen::JournalLost] {
        expect_open(lost, received(Waiting, There::Still), Open::Resolve(Undecidable::JournalLost));
        expect_open(lost, destination(Waiting, There::Still), Open::Abort);
    }
    expect_open(Seen::JournalLost, UNREACHABLE_DESTINATION, Open::WaitFor(Side::Destination));
}

// Over all combinations.

#[test]
fn silence_alone_is_never_a_verdict() {
    for seen in every_destination() {
        if judge(Seen::Unreachable, seen) != judge(Seen::NoJournal, seen) {
            assert!(matches!(judge(Seen::Unreachable, seen), Judgement::Open(_)), "{seen:?}");
        }
    }
    assert!(matches!(judge(Seen::Unreachable, Seen::Unreachable), Judgement::Open(Open::WaitFor(_))));
}

#[test]
fn a_destination_that_may_run_the_guest_is_never_answered_by_an_abort() {
    for here in every_source() {
        for there in every_destination() {
            let Seen::Journal(seen) = there else { continue };
            let may_run = matches!(seen.journal, Finishing | Resuming | Ran)
                || matches!(seen.copy, There::Runs | There::PostCopy | There::PostCopyFailed);
            if may_run && matches!(seen.journal, Finishing | Resuming | Ran) {
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
                    let Seen::Journal(seen) = here else { panic!("handed over without a source: {there:?}") };
                    assert!(!matches!(seen.copy, Here::AsBefore(_) | Here::EndedByUser | Here::Another));
                }
                Judgement::Open(Open::FinishInPlace) => {
                    let Seen::Journal(seen) = there else { panic!("finished nothing: {here:?}") };
                    assert!(seen.journal == Waiting && seen.stream_complete && seen.copy == There::Still);
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
        if seen.journal != HandedOver || seen.verdict.is_some() {
            continue;
        }
        for silent in [Seen::Unreachable, Seen::NoJournal, Seen::JournalLost] {
            assert_ne!(judge(here, silent), Judgement::NeverRan, "{here:?}");
        }
    }
}

fn claims_ran(seen: Seen<Source>) -> bool {
    matches!(seen, Seen::Journal(Source { verdict: Some(Decided::Ran), .. }))
}

fn every_source() -> Vec<Seen<Source>> {
    let copies = [Job::Held, Job::Performing, Job::None].map(Here::AsBefore).into_iter().chain([
        Here::AllSent,
        Here::PostCopy,
        Here::PostCopyFailed,
        Here::Gone,
        Here::EndedByUser,
        Here::Another,
    ]);
    let mut all = vec![Seen::Unreachable, Seen::NoJournal, Seen::JournalLost];
    for copy in copies {
        for journal in [NotBegun, Sending, HandedOver] {
            for tombstoned in [false, true] {
                for verdict in [None, Some(Decided::NeverRan), Some(Decided::Ran)] {
                    all.push(Seen::Journal(Source { journal, tombstoned, verdict, copy }));
                }
            }
        }
    }
    all
}

fn every_destination() -> Vec<Seen<Destination>> {
    let copies =
        [There::Absent, There::Still, There::Runs, There::PostCopy, There::PostCopyFailed, There::Another];
    let mut all = vec![Seen::Unreachable, Seen::NoJournal, Seen::JournalLost];
    for copy in copies {
        for journal in [Waiting, Finishing, Resuming, Ran, Revoked, Failed] {
            for (post_copy, stream_complete) in [(false, false), (false, true), (true, false), (true, true)] {
                for verdict in [None, Some(Decided::NeverRan), Some(Decided::Ran)] {
                    all.push(Seen::Journal(Destination { journal, post_copy, stream_complete, verdict, copy }));
                }
            }
        }
    }
    all
}
