//! Every state against every request, and everything that can be reached from the beginning.

use super::*;

const STATES: [DestinationState; 6] = [
    DestinationState::Waiting,
    DestinationState::Finishing,
    DestinationState::Resuming,
    DestinationState::Ran,
    DestinationState::Revoked,
    DestinationState::Failed,
];

/// What a request makes of a state; `None` where it is refused or changes nothing.
type Request = fn(DestinationState) -> Option<DestinationState>;

fn written(step: Result<Step<DestinationState>, Forbidden>) -> Option<DestinationState> {
    match step {
        Ok(Step::Write(state)) => Some(state),
        Ok(Step::Already) | Err(_) => None,
    }
}

fn finish(state: DestinationState, post_copy: bool) -> Option<DestinationState> {
    match state.finish(post_copy) {
        Ok(FinishStep::Finish(next)) => Some(next),
        Ok(FinishStep::Join | FinishStep::Ran) | Err(_) => None,
    }
}

const REQUESTS: [(&str, Request); 7] = [
    ("finish", |s| finish(s, false)),
    ("finish, post-copy", |s| finish(s, true)),
    ("resume", |s| written(s.resume())),
    ("ran", |s| written(s.ran(false))),
    ("ran, paused", |s| written(s.ran(true))),
    ("fail", |s| written(s.fail())),
    ("revoke", |s| written(s.revoke())),
];

#[test]
fn only_the_drawn_arrows_exist() {
    use DestinationState::{Failed, Finishing, Ran, Resuming, Revoked, Waiting};
    let drawn = [
        (Waiting, "finish", Finishing),
        (Waiting, "finish, post-copy", Resuming),
        (Finishing, "resume", Resuming),
        (Resuming, "ran", Ran),
        (Resuming, "ran, paused", Ran),
        (Finishing, "ran, paused", Ran),
        (Finishing, "fail", Failed),
        (Waiting, "revoke", Revoked),
    ];
    for state in STATES {
        for (name, request) in REQUESTS {
            let expected = drawn.iter().find(|(from, by, _)| (*from, *by) == (state, name));
            assert_eq!(request(state), expected.map(|(_, _, to)| *to), "{state:?} {name}");
        }
    }
}

/// All states that can follow, the state itself included.
fn reachable(from: DestinationState) -> Vec<DestinationState> {
    let mut seen = vec![from];
    let mut next = 0;
    while next < seen.len() {
        for (_, request) in REQUESTS {
            seen.extend(request(seen[next]).filter(|state| !seen.contains(state)));
        }
        next += 1;
    }
    seen
}

#[test]
fn what_never_ran_can_never_run_and_what_may_have_run_is_never_said_not_to() {
    for last in [
        DestinationState::Revoked,
        DestinationState::Failed,
        DestinationState::Ran,
    ] {
        assert_eq!(reachable(last), [last], "{last:?} is final");
    }
    let after_resuming = reachable(DestinationState::Resuming);
    assert_eq!(after_resuming, [DestinationState::Resuming, DestinationState::Ran]);
    assert!(!reachable(DestinationState::Finishing).contains(&DestinationState::Revoked));
}

#[test]
fn finish_is_asked_for_in_waiting_alone() {
    for state in STATES {
        for post_copy in [false, true] {
            let finishes = matches!(state.finish(post_copy), Ok(FinishStep::Finish(_)));
            assert_eq!(finishes, state == DestinationState::Waiting, "{state:?}");
        }
    }
}

#[test]
fn never_ran_is_answered_by_revoked_and_failed_alone() {
    for state in STATES {
        let says = state.finish(false) == Err(Forbidden::NeverRan);
        assert_eq!(
            says,
            matches!(state, DestinationState::Revoked | DestinationState::Failed),
            "{state:?}"
        );
        assert_eq!(state.agrees(Verdict::NeverRan).is_ok(), says, "{state:?}");
        assert_eq!(
            state.agrees(Verdict::Ran).is_ok(),
            state == DestinationState::Ran,
            "{state:?}"
        );
    }
}

#[test]
fn a_source_hands_over_only_while_open_and_not_undone() {
    let decisions = [
        Decision::Open,
        Decision::Decided(Verdict::NeverRan),
        Decision::Decided(Verdict::Ran),
        Decision::Settled(Verdict::NeverRan),
        Decision::Settled(Verdict::Ran),
    ];
    for state in [SourceState::Sending, SourceState::HandedOver] {
        for tombstoned in [false, true] {
            for decision in decisions {
                let allowed = !tombstoned && decision == Decision::Open;
                assert_eq!(
                    state.hand_over(tombstoned, decision).is_ok(),
                    allowed,
                    "{state:?} {decision:?}"
                );
            }
        }
    }
}

#[test]
fn a_verdict_is_never_changed() {
    for first in [Verdict::NeverRan, Verdict::Ran] {
        assert_eq!(Decision::Open.decide(first), Ok(Step::Write(Decision::Decided(first))));
        for earlier in [Decision::Decided(first), Decision::Settled(first)] {
            for second in [Verdict::NeverRan, Verdict::Ran] {
                let expected = if first == second {
                    Ok(Step::Already)
                } else {
                    Err(Forbidden::Decided)
                };
                assert_eq!(earlier.decide(second), expected);
            }
        }
    }
}

#[test]
fn a_repeat_joins_or_gets_the_journaled_result() {
    for post_copy in [false, true] {
        assert_eq!(DestinationState::Finishing.finish(post_copy), Ok(FinishStep::Join));
        assert_eq!(DestinationState::Resuming.finish(post_copy), Ok(FinishStep::Join));
        assert_eq!(DestinationState::Ran.finish(post_copy), Ok(FinishStep::Ran));
    }
}
