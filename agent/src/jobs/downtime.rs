//! How long QEMU may let the guest stand still, round by round. Only a decision.
//!
//! QEMU stops the guest as soon as it expects to send the rest within the limit. Given the whole limit at once it stops
//! a guest early that one more round would have stopped for much less; given a small one for ever it never stops a busy
//! guest. So the first rounds get little, and each later one twice as much, up to what the caller accepts.

use std::time::Duration;

use crate::journal::Limits;

/// For the first rounds: more than the fixed part of a switch.
const FIRST: Duration = Duration::from_millis(50);

/// So many rounds get no more than that.
const PATIENT_ROUNDS: u64 = 2;

/// Where the caller did not say.
const LIMIT: Duration = Duration::from_millis(500);

/// What a round may use; rounds count from 1, and 0 is before the first. What somebody changed on the way is given at
/// once: they have seen how it goes.
pub(super) fn allowed(round: u64, limits: &Limits) -> Duration {
    let limit = limits.max_downtime.unwrap_or(LIMIT);
    if limits.whole_downtime {
        return limit;
    }
    let doublings = u32::try_from(round.saturating_sub(PATIENT_ROUNDS))
        .unwrap_or(u32::MAX)
        .min(16);
    (FIRST * (1 << doublings)).min(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn up_to(millis: u64) -> Limits {
        Limits {
            max_downtime: Some(Duration::from_millis(millis)),
            ..Limits::default()
        }
    }

    #[test]
    fn an_idle_guest_stands_still_briefly_and_a_busy_one_gets_the_whole_limit_soon() {
        let limits = up_to(500);
        let millis: Vec<u128> = (0..8).map(|round| allowed(round, &limits).as_millis()).collect();
        assert_eq!(millis, [50, 50, 50, 100, 200, 400, 500, 500]);
        assert_eq!(allowed(u64::MAX, &limits), Duration::from_millis(500));
    }

    #[test]
    fn the_callers_limit_is_never_exceeded() {
        for round in 0..100 {
            assert!(allowed(round, &up_to(30)) <= Duration::from_millis(30));
        }
    }

    #[test]
    fn what_is_changed_on_the_way_is_given_at_once() {
        let changed = Limits {
            revision: 1,
            ..up_to(2000)
        };
        assert_eq!(allowed(1, &changed.after(&up_to(500)).unwrap()), Duration::from_secs(2));
        assert_eq!(
            allowed(1, &changed.after(&up_to(2000)).unwrap()),
            FIRST,
            "only the rest was changed"
        );
        assert_eq!(up_to(500).after(&changed), None, "it came late");
    }
}
