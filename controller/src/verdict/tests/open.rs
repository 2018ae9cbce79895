//! The second table: what may be done while it is open, and what neither table names.

use super::*;

#[test]
fn a_running_source_with_its_job_continues() {
    expect_open(
        running(Job::Performing),
        destination(Waiting, There::Still),
        Open::ContinueTransfer,
    );
    expect_open(
        running(Job::Held),
        destination(Waiting, There::Still),
        Open::ContinueTransfer,
    );
    expect_open(
        running(Job::Performing),
        UNREACHABLE_DESTINATION,
        Open::ContinueTransfer,
    );
}

#[test]
fn a_running_source_without_a_job_is_aborted() {
    expect_open(running(Job::None), destination(Waiting, There::Still), Open::Abort);
    expect_open(running(Job::None), UNREACHABLE_DESTINATION, Open::Abort);
}

#[test]
fn a_source_that_has_sent_all_hands_over_again() {
    for journal in [Sending, HandedOver] {
        expect_open(
            source(journal, Here::AllSent),
            received(Waiting, There::Still),
            Open::HandOver,
        );
    }
}

#[test]
fn a_source_gone_after_the_hand_over_leaves_the_only_copy_which_must_finish() {
    expect_open(
        source(HandedOver, Here::Gone),
        received(Waiting, There::Still),
        Open::FinishInPlace,
    );
    expect_open(
        tombstoned(HandedOver, Here::Gone),
        received(Waiting, There::Still),
        Open::FinishInPlace,
    );
}

#[test]
fn a_source_that_ran_on_after_the_hand_over_keeps_its_guest_while_the_destination_waits() {
    for copy in [Here::AllSent, Here::Gone, Here::EndedByUser, Here::AsBefore(Job::None)] {
        expect_open(source(RanOn, copy), received(Waiting, There::Still), Open::Abort);
    }
    expect_open(
        source(RanOn, Here::AllSent),
        UNREACHABLE_DESTINATION,
        Open::WaitFor(Side::Destination),
    );
    let revoked = destination(Revoked, There::Absent);
    assert_eq!(judge(source(RanOn, Here::AllSent), revoked), Judgement::NeverRan);
}

#[test]
fn an_older_copy_that_was_told_to_finish_is_a_persons_business() {
    for copy in [Here::AllSent, Here::Gone, Here::EndedByUser] {
        for journal in [Finishing, Resuming] {
            let there = received(journal, There::Still);
            let older = Open::Resolve(Undecidable::OlderCopy);
            expect_open(source(RanOn, copy), there, older);
            let word = |side| judge_with_word(source(RanOn, copy), there, Some(side));
            assert_eq!(word(Side::Destination), Judgement::NeverRan);
            assert_eq!(
                word(Side::Source),
                Judgement::Open(older),
                "old memory over newer disks"
            );
        }
    }
    let ran = destination(Ran, There::Runs);
    assert_eq!(judge(source(RanOn, Here::AllSent), ran), Judgement::Ran);
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
fn a_copy_whose_last_bytes_are_on_their_way_is_waited_for() {
    let flows = Seen::Journal(Destination {
        journal: Waiting,
        post_copy: false,
        stream_complete: false,
        stream_flows: true,
        verdict: None,
        copy: There::Still,
    });
    expect_open(source(HandedOver, Here::Gone), flows, Open::Settling);
    // Whoever knows that the source is off knows nothing of what had left it.
    let word = judge_with_word(UNREACHABLE_SOURCE, flows, Some(Side::Source));
    assert_eq!(word, Judgement::Open(Open::Settling));
}

#[test]
fn a_source_gone_while_sending_may_have_run_on_and_is_aborted() {
    expect_open(
        source(Sending, Here::Gone),
        received(Waiting, There::Still),
        Open::Abort,
    );
}

#[test]
fn a_guest_ended_by_its_user_is_not_brought_back_by_its_waiting_copy() {
    for journal in [Sending, HandedOver] {
        expect_open(
            source(journal, Here::EndedByUser),
            received(Waiting, There::Still),
            Open::Abort,
        );
    }
}

#[test]
fn flowing_post_copy_is_left_alone() {
    expect_open(
        source(HandedOver, Here::PostCopy),
        UNREACHABLE_DESTINATION,
        Open::TouchNothing,
    );
    expect_open(
        UNREACHABLE_SOURCE,
        post_copy_destination(Resuming, There::PostCopy),
        Open::TouchNothing,
    );
}

#[test]
fn a_source_in_post_copy_is_never_answered_by_a_revoke() {
    for copy in [Here::PostCopy, Here::PostCopyFailed] {
        expect_open(
            source(Sending, copy),
            post_copy_destination(Waiting, There::Still),
            Open::HandOver,
        );
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
        expect_open(
            source(HandedOver, Here::Gone),
            post_copy_destination(Resuming, copy),
            Open::GuestLost,
        );
    }
}

#[test]
fn a_guest_whose_destination_died_in_post_copy_is_lost_and_nothing_is_resumed() {
    for copy in [Here::PostCopy, Here::PostCopyFailed] {
        for journal in [Waiting, Resuming] {
            expect_open(
                source(HandedOver, copy),
                post_copy_destination(journal, There::Absent),
                Open::GuestLost,
            );
        }
    }
}

#[test]
fn after_the_hand_over_a_silent_destination_is_waited_for() {
    for copy in [Here::AllSent, Here::Gone, Here::EndedByUser] {
        expect_open(
            source(HandedOver, copy),
            UNREACHABLE_DESTINATION,
            Open::WaitFor(Side::Destination),
        );
    }
}

#[test]
fn a_copy_that_vanished_in_resuming_can_be_decided_by_nobody() {
    for seen in [
        source(HandedOver, Here::AllSent),
        source(HandedOver, Here::Gone),
        UNREACHABLE_SOURCE,
    ] {
        expect_open(
            seen,
            received(Resuming, There::Absent),
            Open::Resolve(Undecidable::DiedWhileResuming),
        );
    }
}

#[test]
fn after_the_hand_over_a_destination_without_journal_can_be_decided_by_nobody() {
    for nothing in [Seen::NoJournal, Seen::JournalLost] {
        expect_open(
            source(HandedOver, Here::AllSent),
            nothing,
            Open::Resolve(Undecidable::JournalLost),
        );
    }
}

#[test]
fn a_silent_source_is_waited_for() {
    for seen in [
        destination(Waiting, There::Still),
        received(Waiting, There::Still),
        Seen::NoJournal,
    ] {
        expect_open(UNREACHABLE_SOURCE, seen, Open::WaitFor(Side::Source));
    }
    expect_open(UNREACHABLE_SOURCE, UNREACHABLE_DESTINATION, Open::WaitFor(Side::Source));
}

#[test]
fn two_running_copies_without_a_verdict_stop_the_source() {
    let both = (
        source(HandedOver, Here::AsBefore(Job::None)),
        post_copy_destination(Resuming, There::Runs),
    );
    expect_open(both.0, both.1, Open::SuspendSource);
    assert!(both_run(both.0, both.1));
}

#[test]
fn two_running_copies_after_never_ran_leave_the_source_alone_and_raise_the_alarm() {
    let both = (running(Job::None), destination(Revoked, There::Runs));
    assert_eq!(judge(both.0, both.1), Judgement::NeverRan);
    assert!(both_run(both.0, both.1));
}

#[test]
fn a_source_resumed_behind_our_back_after_the_hand_over_is_never_finished() {
    let resumed = source(HandedOver, Here::AsBefore(Job::None));
    expect_open(resumed, received(Waiting, There::Still), Open::Abort);
    for journal in [Finishing, Resuming] {
        expect_open(resumed, received(journal, There::Still), Open::SuspendSource);
    }
}

#[test]
fn a_destination_that_left_waiting_is_asked_again_through_the_source_or_finishes_alone() {
    for journal in [Finishing, Resuming] {
        expect_open(
            source(HandedOver, Here::AllSent),
            received(journal, There::Still),
            Open::HandOver,
        );
        expect_open(
            tombstoned(HandedOver, Here::AllSent),
            received(journal, There::Still),
            Open::FinishInPlace,
        );
        expect_open(
            source(HandedOver, Here::EndedByUser),
            received(journal, There::Still),
            Open::FinishInPlace,
        );
        expect_open(UNREACHABLE_SOURCE, received(journal, There::Still), Open::FinishInPlace);
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
        expect_open(
            lost,
            received(Waiting, There::Still),
            Open::Resolve(Undecidable::JournalLost),
        );
        expect_open(lost, destination(Waiting, There::Still), Open::Abort);
    }
    expect_open(
        Seen::JournalLost,
        UNREACHABLE_DESTINATION,
        Open::WaitFor(Side::Destination),
    );
}
