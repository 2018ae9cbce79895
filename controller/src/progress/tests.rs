//! What attempts, cancellations and retries make of a record.

use drover_proto::failure::{Failure, Reason};
use drover_proto::trace::new_span_id;
use drover_proto::v1::MigrationState;

use super::*;
use crate::phases::Learned;
use crate::saga::{End, Guest, PATIENCE, Stuck};
use crate::store::conformance::record;

fn at(phase: Phase) -> Record {
    let mut record = record(1);
    record.position = Position::At(phase);
    record.phase = phase;
    record.started = Some(now());
    record
}

fn wanted(phase: Phase) -> Record {
    let mut record = at(phase);
    record.cancel_requested = Some(now());
    record
}

fn after(mut record: Record, report: Report) -> Record {
    let Position::At(phase) = record.position else {
        panic!("at {}", record.position)
    };
    let finished = Finished {
        number: 1,
        phase,
        went: Went::Through(Box::new(report)),
    };
    finish(&mut record, &finished);
    record
}

fn done() -> Report {
    Report::done(Guest::Lives, "", Learned::default())
}

fn refused(reason: Reason) -> Report {
    Report::refused(&Failure::new(reason, "no"), Learned::default())
}

fn unknown() -> Report {
    let failure = Failure::new(Reason::HostUnreachable, "silent").at_host("host-1".parse().unwrap());
    Report::unknown(&failure, Learned::default())
}

#[test]
fn missing_answers_ask_for_attention_and_an_answer_ends_that() {
    let mut record = at(Phase::Prepare);
    for count in 1..=PATIENCE {
        record = after(record, unknown());
        assert_eq!(record.unknowns, count);
        assert_eq!(record.position, Position::At(Phase::Prepare));
        let attention = state::of(&record) == MigrationState::AttentionRequired;
        assert_eq!(attention, count == PATIENCE);
    }
    record = after(record, done());
    assert_eq!((record.unknowns, record.details.waiting_for.as_ref()), (0, None));
    assert_eq!(state::of(&record), MigrationState::Running);
}

#[test]
fn how_long_it_waits_for_a_host_is_counted_from_the_first_missing_answer() {
    let first = after(at(Phase::Prepare), unknown());
    let since = first.details.waiting_for.clone().unwrap().since_time;
    let second = after(first, unknown());
    let waiting = second.details.waiting_for.unwrap();
    assert_eq!((waiting.since_time, waiting.host.as_str()), (since, "hosts/host-1"));
}

#[test]
fn a_validate_that_somebody_wants_undone_ends_however_it_came_out() {
    for report in [done(), unknown()] {
        let record = after(wanted(Phase::Validate), report);
        assert_eq!(record.position, Position::Ended(End::RolledBack));
        assert_eq!(state::of(&record), MigrationState::Cancelled);
    }
    let record = after(wanted(Phase::Validate), refused(Reason::Unfit));
    assert_eq!(
        state::of(&record),
        MigrationState::Failed,
        "it failed before it was called back"
    );
}

#[test]
fn a_cancellation_that_meets_the_switch_is_too_late() {
    let record = after(wanted(Phase::Transfer), done());
    assert!(record.too_late && record.position == Position::At(Phase::Verify));
    assert_eq!(cancel_leads_to(&record), None);
    assert_eq!(state::of(&record), MigrationState::Running);
}

#[test]
fn an_abort_that_is_too_late_goes_back_to_the_transfer_and_is_not_tried_again() {
    let mut record = at(Phase::Transfer);
    request_cancel(&mut record);
    follow_cancel(&mut record);
    assert_eq!(record.position, Position::At(Phase::Abort));
    let record = after(record, refused(Reason::TooLate));
    assert!(record.too_late && record.position == Position::At(Phase::Transfer));
    assert_eq!((cancel_leads_to(&record), record.details.error.as_ref()), (None, None));
}

#[test]
fn what_failed_first_is_why_it_failed() {
    let record = after(at(Phase::Transfer), refused(Reason::TransferFailed));
    let record = after(record, done());
    let record = after(record, refused(Reason::LibvirtFailed));
    assert_eq!(record.position, Position::Stuck(Stuck::Discard));
    assert_eq!(state::of(&record), MigrationState::AttentionRequired);
    let mut stuck = record;
    retry(&mut stuck);
    let ended = after(stuck, done());
    assert_eq!(state::of(&ended), MigrationState::Failed);
    assert_eq!(ended.details.error.unwrap().reason, "TRANSFER_FAILED");
}

#[test]
fn a_retry_forgets_why_it_was_stuck() {
    let mut record = after(at(Phase::Verify), refused(Reason::LibvirtFailed));
    assert_eq!(record.position, Position::Stuck(Stuck::Verify));
    assert_eq!(record.details.waiting_for.as_ref().unwrap().reason, "RETRY_NEEDED");
    retry(&mut record);
    assert_eq!(record.position, Position::At(Phase::Verify));
    assert!(record.details.error.is_none() && record.details.waiting_for.is_none());
}

#[test]
fn a_record_at_rest_is_not_touched_by_a_cancellation() {
    let mut record = at(Phase::Finalize);
    record.position = Position::Ended(End::Migrated);
    assert!(matches!(request_cancel(&mut record), Change::Leave));
    assert!(record.cancel_requested.is_none() && !record.too_late);
}

#[test]
fn an_attempt_that_somebody_overtook_is_not_started() {
    let start_of = |phase| Start {
        number: 1,
        phase,
        attempt: 1,
        span: new_span_id(),
    };
    assert!(matches!(
        start(&mut at(Phase::Abort), &start_of(Phase::Transfer)),
        Change::Leave
    ));
    assert!(matches!(
        start(&mut wanted(Phase::Transfer), &start_of(Phase::Transfer)),
        Change::Leave
    ));
    assert!(matches!(
        start(&mut at(Phase::Transfer), &start_of(Phase::Transfer)),
        Change::Write(_)
    ));
}

#[test]
fn an_attempt_that_was_left_decides_nothing() {
    let mut record = wanted(Phase::Transfer);
    let left = Finished {
        number: 1,
        phase: Phase::Transfer,
        went: Went::Left("left"),
    };
    finish(&mut record, &left);
    assert_eq!((record.position, record.unknowns), (Position::At(Phase::Transfer), 0));
}

#[test]
fn who_is_not_in_office_refuses_nothing() {
    let stale = Report::of(&Failure::new(Reason::StaleTerm, "another"), Learned::default());
    assert_eq!(stale.answer.outcome(), Outcome::Unknown);
    let evidence = Report::of(&Failure::new(Reason::Unfit, "no"), Learned::default());
    assert_eq!(evidence.answer.outcome(), Outcome::Refused);
    let silence = Report::of(&Failure::new(Reason::HostUnreachable, ""), Learned::default());
    assert_eq!(silence.answer.outcome(), Outcome::Unknown);
}

#[test]
fn only_what_an_undo_copes_with_is_left_in_the_middle() {
    for phase in Phase::ALL {
        let left = matches!(phase, Phase::Prepare | Phase::Transfer);
        assert_eq!(can_be_left(phase), left, "{phase}");
    }
}

fn word(fenced: crate::verdict::Side) -> Resolution {
    Resolution {
        fenced,
        operator: "spiffe://drover.local/user/alice".to_owned(),
        time: now(),
        adopted: None,
        copy_ran: false,
    }
}

#[test]
fn a_word_lets_what_is_stuck_go_on_and_is_given_once() {
    let mut record = at(Phase::Discard);
    record.position = Position::Stuck(Stuck::Discard);
    let weighed_at = record.position;
    let source = crate::verdict::Side::Source;
    assert!(matches!(
        resolve(&mut record, Position::At(Phase::Abort), &word(source)),
        Change::Leave
    ));
    assert!(record.resolution.is_none(), "it moved since it was weighed");
    assert!(matches!(
        resolve(&mut record, weighed_at, &word(source)),
        Change::Write(_)
    ));
    assert_eq!(record.position, Position::At(Phase::Discard));
    let other = word(crate::verdict::Side::Destination);
    assert!(matches!(
        resolve(&mut record, Position::At(Phase::Discard), &other),
        Change::Leave
    ));
    assert_eq!(record.fenced(), Some(source));
    let mut ended = at(Phase::Finalize);
    ended.position = Position::Ended(End::Migrated);
    assert!(matches!(
        resolve(&mut ended, Position::Ended(End::Migrated), &word(source)),
        Change::Leave
    ));
}

#[test]
fn only_the_fenced_host_adopts_and_its_first_word_stays() {
    let mut record = at(Phase::Discard);
    let (source, destination) = (record.source.clone(), record.destination.clone());
    assert!(matches!(adopted(&mut record, &destination, now(), true), Change::Leave));
    record.resolution = Some(word(crate::verdict::Side::Destination));
    assert!(matches!(adopted(&mut record, &source, now(), true), Change::Leave));
    assert!(matches!(
        adopted(&mut record, &destination, now(), true),
        Change::Write(_)
    ));
    assert!(matches!(
        adopted(&mut record, &destination, now(), false),
        Change::Leave
    ));
    assert!(record.resolution.unwrap().copy_ran);
}
