//! The first table: verdicts and their evidence.

use super::*;

#[test]
fn a_revoked_destination_never_ran() {
    for seen in every_source() {
        if !claims_ran(seen) {
            assert_eq!(
                judge(seen, destination(Revoked, There::Absent)),
                Judgement::NeverRan,
                "{seen:?}"
            );
        }
    }
}

#[test]
fn a_destination_that_failed_to_finish_never_ran() {
    assert_eq!(
        judge(source(HandedOver, Here::AllSent), destination(Failed, There::Absent)),
        Judgement::NeverRan
    );
    assert_eq!(
        judge(UNREACHABLE_SOURCE, destination(Failed, There::Still)),
        Judgement::NeverRan
    );
}

#[test]
fn a_copy_that_vanished_in_finishing_never_ran() {
    assert_eq!(
        judge(source(HandedOver, Here::AllSent), received(Finishing, There::Absent)),
        Judgement::NeverRan
    );
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
    expect_open(
        seen,
        post_copy_destination(Resuming, There::PostCopy),
        Open::TouchNothing,
    );
}

#[test]
fn a_destination_that_journaled_ran_has_the_guest_also_when_its_copy_is_gone() {
    for copy in [There::Absent, There::Still, There::Runs, There::Another] {
        assert_eq!(
            judge(source(HandedOver, Here::AllSent), received(Ran, copy)),
            Judgement::Ran
        );
        assert_eq!(judge(UNREACHABLE_SOURCE, received(Ran, copy)), Judgement::Ran);
    }
}

#[test]
fn a_pre_copy_guest_seen_running_at_the_destination_ran() {
    for journal in [Waiting, Finishing, Resuming] {
        assert_eq!(
            judge(source(HandedOver, Here::AllSent), received(journal, There::Runs)),
            Judgement::Ran
        );
    }
}

#[test]
fn a_post_copy_guest_seen_running_has_not_ran_before_its_journal_says_so() {
    expect_open(
        source(HandedOver, Here::PostCopy),
        post_copy_destination(Resuming, There::PostCopy),
        Open::TouchNothing,
    );
    expect_open(
        source(HandedOver, Here::AllSent),
        post_copy_destination(Resuming, There::Runs),
        Open::TouchNothing,
    );
}

#[test]
fn a_verdict_that_either_journal_holds_is_the_verdict() {
    let decided = |verdict| {
        Seen::Journal(Source {
            journal: HandedOver,
            tombstoned: false,
            verdict: Some(verdict),
            copy: Here::Gone,
        })
    };
    assert_eq!(judge(decided(Decided::Ran), UNREACHABLE_DESTINATION), Judgement::Ran);
    assert_eq!(
        judge(decided(Decided::NeverRan), UNREACHABLE_DESTINATION),
        Judgement::NeverRan
    );
}

#[test]
fn opposite_proofs_are_a_persons_business() {
    expect_open(
        tombstoned(Sending, Here::AsBefore(Job::None)),
        received(Ran, There::Runs),
        Open::Resolve(Undecidable::Contradiction),
    );
}

#[test]
fn a_waiting_copy_that_vanished_proves_nothing_before_it_is_revoked() {
    for seen in [
        running(Job::Held),
        source(HandedOver, Here::AllSent),
        UNREACHABLE_SOURCE,
    ] {
        let judged = judge(seen, destination(Waiting, There::Absent));
        assert!(matches!(judged, Judgement::Open(_)), "{seen:?}: {judged:?}");
    }
}
