//! Migrations of real guests, as `make bench-convergence` recorded them (`agent/tests/data/transfers`): 512 MiB, 384 of
//! them written to, over 800 Mbit/s, the blackout limited to 500 ms, 65 s of time. What the loop was told as each round
//! began is told to it again.

use super::super::deadline::{Due, Why, due};
use super::*;
use crate::journal::{AtDeadline, Limits};

const IDLE: &str = include_str!("../../tests/data/transfers/idle.rounds");
const QUARTER: &str = include_str!("../../tests/data/transfers/quarter.rounds");
const THREE_QUARTERS: &str = include_str!("../../tests/data/transfers/three-quarters.rounds");
const ONE_AND_A_HALF: &str = include_str!("../../tests/data/transfers/one-and-a-half.rounds");
/// Nothing was allowed beside the blackout: at its deadline it stayed.
const ALONE: &str = include_str!("../../tests/data/transfers/one-and-a-half-alone.rounds");
const POST_COPY: &str = include_str!("../../tests/data/transfers/one-and-a-half-post-copy.rounds");
const HOT_SET: &str = include_str!("../../tests/data/transfers/hot-set.rounds");

const ALL: [&str; 7] = [IDLE, QUARTER, THREE_QUARTERS, ONE_AND_A_HALF, ALONE, POST_COPY, HOT_SET];

/// One line of a recording.
struct Told {
    round: Round,
    /// What QEMU might use then.
    given: Duration,
}

fn recorded(text: &str) -> Vec<Told> {
    let told = |line: &str| {
        let fields: Vec<u64> = line.split(' ').map(|field| field.parse().unwrap()).collect();
        let [number, at, remaining, sent, bandwidth, dirty_rate, throttle, given] = fields.try_into().unwrap();
        let round = Round {
            number,
            remaining,
            sent,
            bandwidth,
            dirty_rate,
            throttle: u32::try_from(throttle).unwrap(),
            at: Duration::from_millis(at),
        };
        let given = Duration::from_millis(given);
        Told { round, given }
    };
    let rounds: Vec<Told> = text.lines().filter(|line| !line.starts_with('#')).map(told).collect();
    assert!(rounds.len() > 1, "nothing was recorded");
    rounds
}

/// As it was recorded, with nothing allowed.
fn as_recorded() -> Policy {
    Policy {
        limit: Duration::from_millis(500),
        whole: false,
        deadline: Some(Duration::from_secs(65)),
        post_copy: false,
        auto_converge: false,
    }
}

/// What happens in which round, up to post-copy or what comes at the deadline.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Happens {
    MaxDowntime(u64, u128),
    PostCopy(u64),
    Abort,
    Pause,
}

fn replay(text: &str, policy: &Policy, at_deadline: AtDeadline) -> Vec<Happens> {
    let limits = Limits {
        deadline: policy.deadline,
        at_deadline,
        ..Limits::default()
    };
    let (mut control, mut given, mut happened) = (Control::default(), at_first(policy), Vec::new());
    for Told { round, .. } in recorded(text) {
        match due(&limits, round.at, None, false) {
            Due::Nothing | Due::In(_) => {}
            Due::Abort(_) => return [happened, vec![Happens::Abort]].concat(),
            Due::Pause(_) => return [happened, vec![Happens::Pause]].concat(),
            Due::PostCopy(_) => return [happened, vec![Happens::PostCopy(round.number)]].concat(),
        }
        match control.observe(round, policy, given) {
            None => {}
            Some(Decision {
                act: Act::MaxDowntime(longest),
                ..
            }) => {
                assert!(longest > given && longest <= policy.limit, "{round:?}");
                given = longest;
                happened.push(Happens::MaxDowntime(round.number, longest.as_millis()));
            }
            Some(Decision {
                act: Act::PostCopy,
                reason,
            }) => {
                let why = Why::DoesNotConverge(reason.clone());
                assert_eq!(due(&limits, round.at, Some(reason), false), Due::PostCopy(why));
                return [happened, vec![Happens::PostCopy(round.number)]].concat();
            }
        }
    }
    happened
}

fn all_allowed() -> Policy {
    Policy {
        post_copy: true,
        auto_converge: true,
        ..as_recorded()
    }
}

#[test]
fn the_loop_does_again_what_it_did() {
    let slowed = Policy {
        auto_converge: true,
        ..as_recorded()
    };
    let over = Policy {
        post_copy: true,
        ..as_recorded()
    };
    for (text, policy) in [
        (IDLE, slowed),
        (QUARTER, slowed),
        (THREE_QUARTERS, slowed),
        (ONE_AND_A_HALF, slowed),
        (HOT_SET, slowed),
        (ALONE, as_recorded()),
        (POST_COPY, over),
    ] {
        let (mut control, mut given) = (Control::default(), at_first(&policy));
        for Told { round, given: then } in recorded(text) {
            assert_eq!(given, then, "{round:?}");
            if let Some(Decision {
                act: Act::MaxDowntime(longest),
                ..
            }) = control.observe(round, &policy, given)
            {
                given = longest;
            }
        }
    }
}

#[test]
fn a_guest_that_converges_gets_nothing_but_the_switch() {
    for policy in [as_recorded(), all_allowed()] {
        for text in [IDLE, QUARTER] {
            assert_eq!(replay(text, &policy, AtDeadline::Abort), []);
        }
    }
    assert_eq!(replay(THREE_QUARTERS, &all_allowed(), AtDeadline::Abort), []);
}

#[test]
fn a_hot_set_gets_the_blackout_that_it_needs() {
    for policy in [as_recorded(), all_allowed()] {
        assert_eq!(
            replay(HOT_SET, &policy, AtDeadline::Abort),
            [Happens::MaxDowntime(6, 140)]
        );
    }
}

#[test]
fn a_guest_that_writes_more_than_the_link_carries_goes_the_way_that_is_allowed() {
    let all_of_it = Happens::MaxDowntime(4, 500);
    // Slowed down it arrives, with all of the limit.
    let slowed = Policy {
        auto_converge: true,
        ..as_recorded()
    };
    assert_eq!(
        replay(ONE_AND_A_HALF, &slowed, AtDeadline::Abort),
        [Happens::MaxDowntime(5, 500)]
    );
    // Else the deadline decides.
    let minute = Policy {
        deadline: Some(Duration::from_secs(60)),
        ..as_recorded()
    };
    let at_its_end = |at_deadline| replay(ALONE, &minute, at_deadline);
    assert_eq!(at_its_end(AtDeadline::Abort), [all_of_it.clone(), Happens::Abort]);
    assert_eq!(
        at_its_end(AtDeadline::PauseAndFinish),
        [all_of_it.clone(), Happens::Pause]
    );
    assert_eq!(at_its_end(AtDeadline::PostCopy), [all_of_it, Happens::PostCopy(27)]);
}

#[test]
fn one_that_does_not_converge_goes_over_in_its_third_round() {
    const RAM: f64 = 512.0 * 1024.0 * 1024.0;
    for deadline in [None, Some(65), Some(20)] {
        let over = Policy {
            post_copy: true,
            deadline: deadline.map(Duration::from_secs),
            ..as_recorded()
        };
        for text in [POST_COPY, ALONE, ONE_AND_A_HALF] {
            assert_eq!(replay(text, &over, AtDeadline::Abort), [Happens::PostCopy(3)]);
            let there = &recorded(text)[2].round;
            // What remains is sent once more after the switch, and nothing else.
            let sent = (there.sent + there.remaining) as f64 / RAM;
            assert!((2.0..2.2).contains(&sent), "{sent} times its memory");
        }
    }
}

#[test]
fn one_that_may_be_slowed_down_is_while_there_is_time() {
    let within = |seconds| Policy {
        deadline: Some(Duration::from_secs(seconds)),
        ..all_allowed()
    };
    let replay = |seconds| replay(ONE_AND_A_HALF, &within(seconds), AtDeadline::Abort);
    let all_of_it = Happens::MaxDowntime(3, 500);
    // So it arrived, after 21.6 s.
    for enough in [65, 30] {
        assert_eq!(replay(enough), std::slice::from_ref(&all_of_it));
    }
    // In round 5, at 14.9 s, 2.8 s more are needed for each of the two rounds that a step takes.
    assert_eq!(replay(20), [all_of_it, Happens::PostCopy(5)]);
}

#[test]
fn one_that_converges_does_not_go_over_though_it_may() {
    for deadline in [None, Some(65), Some(20), Some(15)] {
        for auto_converge in [false, true] {
            let policy = Policy {
                post_copy: true,
                auto_converge,
                deadline: deadline.map(Duration::from_secs),
                ..as_recorded()
            };
            for text in [IDLE, QUARTER, THREE_QUARTERS] {
                assert_eq!(replay(text, &policy, AtDeadline::Abort), []);
            }
            let hot_set = replay(HOT_SET, &policy, AtDeadline::Abort);
            assert_eq!(hot_set, [Happens::MaxDowntime(6, 140)]);
        }
    }
    // Nor where only a shorter blackout would do.
    for limit in [50, 100, 200, 1000, 3000] {
        let policy = Policy {
            limit: Duration::from_millis(limit),
            deadline: None,
            post_copy: true,
            ..as_recorded()
        };
        for text in [IDLE, QUARTER, THREE_QUARTERS] {
            assert_eq!(replay(text, &policy, AtDeadline::Abort), [], "{limit} ms");
        }
    }
}

#[test]
fn the_limit_is_kept_and_nothing_is_taken_back_whatever_the_limit_is() {
    for text in ALL {
        for limit in [1, 40, 50, 51, 100, 139, 141, 300, 500, 1000, 3000, 60_000] {
            for policy in [as_recorded(), all_allowed()] {
                let limit = Duration::from_millis(limit);
                let policy = Policy { limit, ..policy };
                // What it gives is asserted in there.
                replay(text, &policy, AtDeadline::Abort);
            }
        }
    }
}
