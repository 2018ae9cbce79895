//! How far a guest is slowed down that writes faster than it is sent, where that is allowed. Only a decision.

use super::control::POST_COPY_AFTER_THROTTLE;
use crate::hypervisor::Throttle;

/// What QEMU does by itself, percent.
const BY_DEFAULT: Throttle = Throttle {
    initial: 20,
    increment: 10,
};

/// A look at a guest for a few seconds misses by as much: once it is sent it writes twice as fast as it was seen to.
const UNDERESTIMATED: u64 = 2;

/// QEMU slows a guest down by at most so much, percent.
const MOST: u32 = 99;

/// Steps after the first one until nothing more is hoped of them: QEMU takes one after two rounds that were too long, and
/// `POST_COPY_AFTER_THROTTLE` rounds are waited for. By then nothing may be left to slow down.
const STEPS: u32 = POST_COPY_AFTER_THROTTLE / 2 - 1;

/// How far a guest is slowed down at first, and with each further step, that writes so fast (bytes/s) over a link so
/// fast: by θ ≥ 1 − B/D, with a little to spare. Unknown is 0: then as QEMU does by itself.
///
/// The first step is for the rate that was seen. Where it does for twice that too, another one is not expected and may be
/// small: a guest pays for each. Else the second step has to do for twice the rate, which is also where QEMU is content (it
/// goes on until less than half of what it sends is written meanwhile), and two more for any.
pub(super) fn choose(dirty_rate: u64, bandwidth: u64) -> Throttle {
    if dirty_rate == 0 || bandwidth == 0 {
        return BY_DEFAULT;
    }
    let initial = enough(dirty_rate, bandwidth).clamp(BY_DEFAULT.initial, 90);
    let twice = enough(dirty_rate.saturating_mul(UNDERESTIMATED), bandwidth);
    let increment = if twice <= initial {
        0
    } else {
        (twice - initial).max((MOST - initial).div_ceil(STEPS))
    };
    Throttle {
        initial,
        increment: increment.max(BY_DEFAULT.increment),
    }
}

/// θ ≥ 1 − B/D and a little to spare, percent.
fn enough(dirty_rate: u64, bandwidth: u64) -> u32 {
    let needed = 100_u64.saturating_sub(bandwidth.saturating_mul(100) / dirty_rate) + 5;
    u32::try_from(needed).unwrap_or(MOST).min(MOST)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_guest_is_slowed_down_as_far_as_the_link_wants_it() {
        let initial = |dirty, bandwidth| choose(dirty, bandwidth).initial;
        assert_eq!(initial(200, 100), 55);
        assert_eq!(initial(1000, 100), 90, "some of it must be left");
        assert_eq!(initial(110, 100), 20, "QEMU's own beginning");
        assert_eq!(initial(50, 100), 20);
        assert_eq!((initial(0, 100), initial(100, 0)), (20, 20), "unknown");
    }

    #[test]
    fn a_guest_that_writes_twice_as_fast_as_was_seen_is_slowed_down_enough_by_the_second_step() {
        let both = |dirty, bandwidth| {
            let throttle = choose(dirty, bandwidth);
            (throttle.initial, throttle.increment)
        };
        assert_eq!(both(200, 100), (55, 25));
        assert_eq!(both(110, 100), (20, 40), "near the link's speed the rate decides most");
        assert_eq!(both(1000, 100), (90, 10));
        assert_eq!(both(62, 100), (20, 27), "three more steps take all there is");
        assert_eq!(both(50, 100), (20, 10), "the first step does for twice that, too");
        assert_eq!((both(0, 100), both(100, 0)), ((20, 10), (20, 10)), "unknown");
    }

    proptest! {
        #[test]
        fn a_guest_is_slowed_down_enough_before_nothing_more_is_hoped_of_it(
            dirty in 1_u64..1 << 40,
            bandwidth in 1_u64..1 << 40,
            more in 0_u64..1 << 40,
        ) {
            let Throttle { initial, increment } = choose(dirty, bandwidth);
            prop_assert!((20..=90).contains(&initial) && (10..=79).contains(&increment));
            let twice = enough(dirty * 2, bandwidth);
            prop_assert!(initial + increment >= twice);
            prop_assert!(twice <= initial || initial + STEPS * increment >= MOST);
            // Who writes faster is not slowed down less.
            prop_assert!(choose(dirty + more, bandwidth).initial >= initial);
        }
    }
}
