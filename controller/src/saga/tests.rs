//! The saga against the table of the design, and its promises over all paths.

use proptest::prelude::*;

use super::End::{GuestEnded, Migrated, RolledBack};
use super::Guest::{Ended, Lives};
use super::Outcome::{Done, Refused, Unknown};
use super::Phase::{Abort, Discard, Finalize, Prepare, Transfer, Validate, Verify};
use super::Position::At;
use super::*;

const OUTCOMES: [Outcome; 4] = [Done(Lives), Done(Ended), Refused, Unknown];

/// Phase, then where Done(Lives), Done(Ended) and Refused lead.
const TABLE: [(Phase, Position, Position, Position); 7] = [
    (Validate, At(Prepare), At(Prepare), Position::Ended(RolledBack)),
    (Prepare, At(Transfer), At(Transfer), At(Abort)),
    (Transfer, At(Verify), At(Verify), At(Abort)),
    (Verify, At(Finalize), At(Finalize), Position::Stuck(Stuck::Verify)),
    (
        Finalize,
        Position::Ended(Migrated),
        Position::Ended(GuestEnded),
        Position::Stuck(Stuck::Finalize),
    ),
    (Abort, At(Discard), At(Discard), At(Transfer)),
    (
        Discard,
        Position::Ended(RolledBack),
        Position::Ended(GuestEnded),
        Position::Stuck(Stuck::Discard),
    ),
];

#[test]
fn every_phase_goes_where_the_table_says() {
    assert_eq!(TABLE.map(|row| row.0), Phase::ALL);
    for (phase, lives, ended, refused) in TABLE {
        assert_eq!(next(phase, Done(Lives)), lives, "{phase}");
        assert_eq!(next(phase, Done(Ended)), ended, "{phase}");
        assert_eq!(next(phase, Refused), refused, "{phase}");
    }
}

#[test]
fn a_lost_answer_moves_nothing() {
    for phase in Phase::ALL {
        assert_eq!(next(phase, Unknown), At(phase));
    }
}

#[test]
fn cancel_undoes_before_the_point_of_no_return_and_comes_too_late_after_it() {
    let expected = |position: Position| match position {
        At(Validate) => Cancel::GoTo(Position::Ended(RolledBack)),
        At(Prepare | Transfer) => Cancel::GoTo(At(Abort)),
        At(Abort | Discard) | Position::Stuck(Stuck::Discard) => Cancel::Undoing,
        At(Verify | Finalize) | Position::Stuck(Stuck::Verify | Stuck::Finalize) | Position::Ended(_) => {
            Cancel::TooLate
        }
    };
    for position in Position::all() {
        assert_eq!(cancel(position), expected(position), "{position}");
    }
}

#[test]
fn a_retry_goes_back_to_the_phase_that_was_refused() {
    for stuck in [Stuck::Verify, Stuck::Finalize, Stuck::Discard] {
        assert_eq!(next(retry(stuck), Refused), Position::Stuck(stuck));
    }
}

#[test]
fn missing_answers_slow_down_and_then_ask_for_attention() {
    let delays: Vec<_> = (1..PATIENCE).map(|n| pace(n).delay).collect();
    assert!(delays.windows(2).all(|pair| pair[0] <= pair[1]), "{delays:?}");
    assert!((0..PATIENCE).all(|n| !pace(n).attention));
    assert!((PATIENCE..PATIENCE + 100).all(|n| pace(n).attention && pace(n).delay >= delays[0]));
    assert!(pace(u32::MAX).attention);
}

#[test]
fn positions_are_read_back_from_their_words() {
    for position in Position::all() {
        assert_eq!(position.name().parse(), Ok(position));
    }
    for phase in Phase::ALL {
        assert_eq!(phase.name().parse(), Ok(phase));
    }
    assert!("nowhere".parse::<Position>().is_err());
}

#[test]
fn every_position_can_be_reached_and_left() {
    let mut reached = vec![At(Validate)];
    let mut index = 0;
    while let Some(&position) = reached.get(index) {
        index += 1;
        let from = match position {
            At(phase) => phase,
            Position::Stuck(stuck) => retry(stuck),
            Position::Ended(_) => continue,
        };
        for outcome in OUTCOMES {
            let to = next(from, outcome);
            if !reached.contains(&to) {
                reached.push(to);
            }
        }
    }
    assert_eq!(reached.len(), Position::all().count(), "reached only {reached:?}");
}

/// What is true of the hosts, which the outcomes of a phase cannot contradict: whether the guest has been told to
/// run at the destination. Abort is refused only where that is so, and Transfer only where it is not.
fn truthful(phase: Phase, outcome: Outcome, ran: &mut bool) -> Outcome {
    match (phase, outcome) {
        (Transfer, Done(_)) => {
            *ran = true;
            outcome
        }
        (Transfer, Refused) if *ran => Done(Lives),
        (Abort, Refused) => {
            *ran = true;
            outcome
        }
        (Abort, Done(_)) if *ran => Refused,
        _ => outcome,
    }
}

fn any_outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![Just(Done(Lives)), Just(Done(Ended)), Just(Refused), Just(Unknown)]
}

/// Every step of a walk: what is answered, whether somebody cancels first, whether an operator retries when stuck.
fn any_walk() -> impl Strategy<Value = Vec<(Outcome, bool, bool)>> {
    prop::collection::vec((any_outcome(), prop::bool::weighted(0.2), any::<bool>()), 0..60)
}

/// Walks as the executor does and returns every position in order.
fn walk(steps: &[(Outcome, bool, bool)]) -> Vec<Position> {
    let (mut position, mut ran, mut too_late) = (At(Validate), false, false);
    let mut path = vec![position];
    for &(outcome, wants_cancel, retries) in steps {
        if wants_cancel && !too_late {
            match cancel(position) {
                Cancel::GoTo(there) => position = there,
                Cancel::TooLate => too_late = true,
                Cancel::Undoing => {}
            }
        }
        position = match position {
            At(phase) => {
                let outcome = truthful(phase, outcome, &mut ran);
                too_late |= phase == Abort && outcome == Refused;
                next(phase, outcome)
            }
            Position::Stuck(stuck) if retries => At(retry(stuck)),
            Position::Stuck(_) | Position::Ended(_) => position,
        };
        path.push(position);
    }
    path
}

proptest! {
    #[test]
    fn after_the_point_of_no_return_nothing_is_rolled_back(steps in any_walk()) {
        let path = walk(&steps);
        if let Some(passed) = path.iter().position(|p| *p == At(Verify)) {
            for after in &path[passed..] {
                let forbidden = matches!(
                    after,
                    At(Validate | Prepare | Transfer | Abort | Discard)
                        | Position::Ended(RolledBack)
                        | Position::Stuck(Stuck::Discard)
                );
                prop_assert!(!forbidden, "{after} after Verify in {path:?}");
            }
        }
    }

    #[test]
    fn every_path_ends_once_answers_come(steps in any_walk(), answers in any_outcome()) {
        let mut path = steps.clone();
        let answer = if answers == Unknown { Done(Lives) } else { answers };
        // Transfer and Abort may contradict each other once; all else goes forward. Stuck is an end until a retry.
        path.extend(std::iter::repeat_n((answer, false, false), 8));
        let last = *walk(&path).last().unwrap();
        prop_assert!(!matches!(last, At(_)), "still at {last} in {:?}", walk(&path));
    }

    #[test]
    fn rest_is_left_by_nobody(steps in any_walk()) {
        let path = walk(&steps);
        for pair in path.windows(2) {
            prop_assert!(!pair[0].is_final() || pair[0] == pair[1]);
        }
    }

    #[test]
    fn a_migration_that_is_migrated_has_passed_verify(steps in any_walk()) {
        let path = walk(&steps);
        if path.last() == Some(&Position::Ended(Migrated)) {
            prop_assert!(path.contains(&At(Verify)) && path.contains(&At(Finalize)));
        }
    }

    #[test]
    fn what_was_prepared_is_rolled_back_only_through_abort_and_discard(steps in any_walk()) {
        let path = walk(&steps);
        if path.contains(&At(Prepare)) && path.last() == Some(&Position::Ended(RolledBack)) {
            prop_assert!(path.contains(&At(Discard)));
        }
    }
}

#[test]
fn fault_points_are_named_after_the_phases() {
    use drover_proto::fault_points::point;
    for phase in Phase::ALL {
        assert_eq!(
            point::CONTROLLER_STARTED[phase as usize],
            format!("controller.{phase}-started")
        );
        assert_eq!(
            point::CONTROLLER_OVER[phase as usize],
            format!("controller.{phase}-over")
        );
    }
}
