//! What the answers of agents are taken for.

use super::*;

fn guest(state: LibvirtState) -> Option<GuestFacts> {
    Some(GuestFacts {
        state: state.into(),
        ..GuestFacts::default()
    })
}

fn status(journal: JournalState, libvirt: LibvirtState) -> MigrationStatus {
    MigrationStatus {
        journal: Some(JournalRecord {
            state: journal.into(),
            ..JournalRecord::default()
        }),
        guest: guest(libvirt),
        same_incarnation: true,
        ..MigrationStatus::default()
    }
}

fn source_copy_of(status: &MigrationStatus) -> SourceCopy {
    match source(status, true) {
        Seen::Journal(seen) => seen.copy,
        other @ (Seen::Unreachable | Seen::NoJournal | Seen::JournalLost) => panic!("{other:?}"),
    }
}

fn destination_copy_of(status: &MigrationStatus) -> DestinationCopy {
    match destination(status, true) {
        Seen::Journal(seen) => seen.copy,
        other @ (Seen::Unreachable | Seen::NoJournal | Seen::JournalLost) => panic!("{other:?}"),
    }
}

#[test]
fn no_journal_is_innocent_only_before_prepare_was_done() {
    let nothing = MigrationStatus::default();
    assert_eq!(source(&nothing, false), Seen::NoJournal);
    assert_eq!(source(&nothing, true), Seen::JournalLost);
    assert_eq!(destination(&nothing, false), Seen::NoJournal);
    assert_eq!(destination(&nothing, true), Seen::JournalLost);
}

#[test]
fn a_bare_tombstone_is_proof_only_before_prepare_was_done() {
    let mut bare = status(JournalState::Unspecified, LibvirtState::Running);
    bare.same_incarnation = false;
    bare.journal.as_mut().unwrap().tombstoned = true;
    let Seen::Journal(seen) = source(&bare, false) else {
        panic!("no journal")
    };
    assert!(seen.tombstoned && seen.journal == SourceJournal::NotBegun);
    assert_eq!(seen.copy, SourceCopy::AsBefore(Job::None));
    assert_eq!(source(&bare, true), Seen::JournalLost);
}

#[test]
fn a_begun_source_holds_its_job_until_its_agent_restarts() {
    let mut begun = status(JournalState::Sending, LibvirtState::Running);
    assert_eq!(source_copy_of(&begun), SourceCopy::AsBefore(Job::Held));
    begun.agent_restarted = true;
    assert_eq!(source_copy_of(&begun), SourceCopy::AsBefore(Job::None));
}

#[test]
fn a_performing_source_performs_also_while_it_stands_still() {
    for state in [
        LibvirtState::Running,
        LibvirtState::PausedMigrating,
        LibvirtState::Paused,
    ] {
        let mut performing = status(JournalState::Sending, state);
        performing.performing = true;
        assert_eq!(source_copy_of(&performing), SourceCopy::AsBefore(Job::Performing));
    }
}

#[test]
fn a_guest_paused_by_its_user_has_sent_all_when_perform_says_so() {
    let mut paused = status(JournalState::Sending, LibvirtState::Paused);
    assert_eq!(source_copy_of(&paused), SourceCopy::AsBefore(Job::Held));
    paused.perform_outcome = PerformOutcome::Sent.into();
    assert_eq!(source_copy_of(&paused), SourceCopy::AllSent);
    assert_eq!(
        source_copy_of(&status(JournalState::HandedOver, LibvirtState::Paused)),
        SourceCopy::AllSent
    );
}

#[test]
fn a_source_that_runs_after_the_hand_over_is_not_taken_for_still() {
    let resumed = status(JournalState::HandedOver, LibvirtState::Running);
    assert_eq!(source_copy_of(&resumed), SourceCopy::AsBefore(Job::None));
}

#[test]
fn a_source_that_ran_on_after_the_hand_over_is_known_as_such() {
    let mut stopped = status(JournalState::HandedOver, LibvirtState::Paused);
    let journal = |status: &MigrationStatus| source(status, true).map(|seen| seen.journal);
    assert_eq!(journal(&stopped), Seen::Journal(SourceJournal::HandedOver));
    stopped.journal.as_mut().unwrap().ran_on = true;
    assert_eq!(journal(&stopped), Seen::Journal(SourceJournal::RanOn));
    assert_eq!(source_copy_of(&stopped), SourceCopy::AllSent);
}

#[test]
fn a_guest_that_is_only_defined_is_gone() {
    let mut off = status(JournalState::Sending, LibvirtState::ShutOff);
    assert_eq!(source_copy_of(&off), SourceCopy::Gone);
    off.guest_ended = true;
    assert_eq!(source_copy_of(&off), SourceCopy::EndedByUser);
    assert_eq!(
        destination_copy_of(&status(JournalState::Waiting, LibvirtState::ShutOff)),
        DestinationCopy::Absent
    );
}

#[test]
fn another_life_of_the_guest_is_not_the_copy() {
    let mut source_status = status(JournalState::Sending, LibvirtState::Running);
    source_status.same_incarnation = false;
    assert_eq!(source_copy_of(&source_status), SourceCopy::Another);
    let mut there = status(JournalState::Resuming, LibvirtState::Running);
    there.same_incarnation = false;
    assert_eq!(destination_copy_of(&there), DestinationCopy::Another);
}

#[test]
fn post_copy_is_told_from_running() {
    assert_eq!(
        destination_copy_of(&status(JournalState::Resuming, LibvirtState::RunningPostCopy)),
        DestinationCopy::PostCopy
    );
    assert_eq!(
        destination_copy_of(&status(JournalState::Resuming, LibvirtState::Running)),
        DestinationCopy::Runs
    );
    assert_eq!(
        source_copy_of(&status(JournalState::HandedOver, LibvirtState::PausedPostCopy)),
        SourceCopy::PostCopy
    );
}

#[test]
fn a_guest_that_came_shut_off_and_was_started_before_that_was_written_down_is_ours() {
    let mut started = status(JournalState::Finishing, LibvirtState::Running);
    started.same_incarnation = false;
    started.journal.as_mut().unwrap().offline = true;
    assert_eq!(destination_copy_of(&started), DestinationCopy::Still);
    let mut other = status(JournalState::Waiting, LibvirtState::Running);
    other.same_incarnation = false;
    other.journal.as_mut().unwrap().offline = true;
    assert_eq!(destination_copy_of(&other), DestinationCopy::Another);
}
