//! How long QEMU may let the guest stand still, round by round. Only a decision.
//!
//! QEMU stops the guest as soon as it expects to send the rest within the limit. Given the whole limit at once it stops
//! a guest early that one more round would have stopped for much less; given a small one for ever it never stops a busy
//! guest. So the first rounds get little, and each later one twice as much, up to what the caller accepts.

use std::time::Duration;

/// For the first rounds: more than the fixed part of a switch.
const FIRST: Duration = Duration::from_millis(50);

/// So many rounds get no more than that.
const PATIENT_ROUNDS: u64 = 2;

/// Where the caller did not say.
const LIMIT: Duration = Duration::from_millis(500);

/// What a round may use; rounds count from 1, and 0 is before the first.
pub(super) fn allowed(round: u64, limit: Option<Duration>) -> Duration {
    let doublings = u32::try_from(round.saturating_sub(PATIENT_ROUNDS))
        .unwrap_or(u32::MAX)
        .min(16);
    (FIRST * (1 << doublings)).min(limit.unwrap_or(LIMIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_guest_stands_still_briefly_and_a_busy_one_gets_the_whole_limit_soon() {
        let limit = Some(Duration::from_millis(500));
        let millis: Vec<u128> = (0..8).map(|round| allowed(round, limit).as_millis()).collect();
        assert_eq!(millis, [50, 50, 50, 100, 200, 400, 500, 500]);
        assert_eq!(allowed(u64::MAX, limit), Duration::from_millis(500));
    }

    #[test]
    fn the_callers_limit_is_never_exceeded() {
        for round in 0..100 {
            assert!(allowed(round, Some(Duration::from_millis(30))) <= Duration::from_millis(30));
        }
    }
}
