//! How far a guest is slowed down that writes faster than it is sent, where that is allowed. Only a decision.
//!
//! ```text
//!  initial ─▶ +increment ─▶ … ─▶ the most that the guest may feel ─▶ 99 %, only where that did not do
//! ```
//! QEMU lets a vCPU run for 10 ms and then sleep for θ/(1 − θ) times as long (`system/cpu-throttle.c`): 10 ms at 50 %, 90 ms
//! at 90 %, 190 ms at 95 %, 990 ms at 99 %. It takes a step whenever two rounds have left more than half of what they sent,
//! and stops at `max-cpu-throttle`, 99 (`migration/ram.c`). libvirt hands on only where it begins and by how much it grows
//! (`VIR_MIGRATE_PARAM_AUTO_CONVERGE_INITIAL`, `…_INCREMENT`; read in `qemu_migration_params.c` of 8.6 to 9.4, which know
//! neither `max-cpu-throttle` nor `cpu-throttle-tailslow`). So the end of the way cannot be forbidden, only put off: the steps
//! are chosen so that one of them is the most that may be felt.

use std::time::Duration;

use crate::hypervisor::Throttle;

/// What QEMU does by itself, percent.
const BY_DEFAULT: Throttle = Throttle {
    initial: 20,
    increment: 10,
};

/// No first step takes more, percent: a look for a few seconds tells only roughly what a guest writes.
const FIRST_AT_MOST: u32 = 90;

/// Of a step, percent. Each is paid for by the guest as long as it is sent.
const LARGEST: u32 = 20;
const SMALLEST: u32 = 5;

/// In a hurry the most that may be felt is reached by so many steps after the first.
const HURRIED: u32 = 2;

/// How long QEMU lets a vCPU run between two sleeps.
const SLICE: Duration = Duration::from_millis(10);

/// Nobody is kept from being slowed down by a limit for which even this is too long.
const SHORTEST_SLEEP: Duration = Duration::from_millis(50);

/// QEMU takes a step after so many rounds.
const ROUNDS: u32 = 2;

/// What is known before a transfer; 0 where nobody knows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Situation {
    /// Bytes/s.
    pub(super) dirty_rate: u64,
    pub(super) bandwidth: u64,
    /// Bytes.
    pub(super) memory: u64,
    /// The longest blackout that is allowed.
    pub(super) blackout: Duration,
    /// For the transfer.
    pub(super) deadline: Option<Duration>,
}

/// How far a guest is slowed down at first, by θ ≥ 1 − B/D with a little to spare, and with each further step.
pub(super) fn choose(situation: &Situation) -> Throttle {
    let most = bearable(situation.blackout);
    let Situation {
        dirty_rate, bandwidth, ..
    } = *situation;
    if dirty_rate == 0 || bandwidth == 0 {
        return BY_DEFAULT;
    }
    let initial = enough(dirty_rate, bandwidth).clamp(BY_DEFAULT.initial, FIRST_AT_MOST.min(most));
    let steps = steps(situation, most - initial);
    Throttle {
        initial,
        increment: (most - initial).checked_div(steps).unwrap_or(0).max(SMALLEST),
    }
}

/// The largest throttle of which two sleeps in a row, which is what an answer may wait for, fit into such a blackout;
/// percent.
pub(super) fn bearable(blackout: Duration) -> u32 {
    let sleep = (blackout / 2).max(SHORTEST_SLEEP).as_millis();
    let percent = 100 * sleep / (sleep + SLICE.as_millis());
    u32::try_from(percent).unwrap_or(99).min(99)
}

/// For so long a vCPU that is slowed down by so many percent sleeps at a time.
pub(super) fn asleep(percent: u32) -> Duration {
    let percent = percent.min(99);
    SLICE * percent / (100 - percent)
}

/// By how many steps so many percent are gone.
fn steps(situation: &Situation, percent: u32) -> u32 {
    let steps = percent.div_ceil(LARGEST);
    let near = situation.deadline.is_some_and(|deadline| {
        // Each step's rounds, those before the first, and the last one, at their longest.
        let rounds = u64::from(ROUNDS * (steps + 1) + 1);
        let millis = u128::from(situation.memory) * u128::from(rounds) * 1000 / u128::from(situation.bandwidth.max(1));
        deadline.as_millis() < millis
    });
    if near { steps.min(HURRIED) } else { steps }
}

/// θ ≥ 1 − B/D and a little to spare, percent.
fn enough(dirty_rate: u64, bandwidth: u64) -> u32 {
    let needed = 100_u64.saturating_sub(bandwidth.saturating_mul(100) / dirty_rate) + 5;
    u32::try_from(needed).unwrap_or(99).min(99)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn writing(dirty_rate: u64, bandwidth: u64) -> Situation {
        Situation {
            dirty_rate,
            bandwidth,
            memory: 1000,
            blackout: Duration::from_millis(500),
            deadline: None,
        }
    }

    fn both(situation: &Situation) -> (u32, u32) {
        let throttle = choose(situation);
        (throttle.initial, throttle.increment)
    }

    #[test]
    fn a_guest_is_slowed_down_as_far_as_the_link_wants_it() {
        let initial = |dirty, bandwidth| choose(&writing(dirty, bandwidth)).initial;
        assert_eq!(initial(200, 100), 55);
        assert_eq!(initial(1000, 100), 90, "some of it must be left");
        assert_eq!(initial(110, 100), 20, "QEMU's own beginning");
        assert_eq!(initial(50, 100), 20);
        assert_eq!((initial(0, 100), initial(100, 0)), (20, 20), "unknown");
    }

    #[test]
    fn it_goes_on_by_small_steps_to_what_may_be_felt() {
        assert_eq!(both(&writing(110, 100)), (20, 19), "39, 58, 77, 96");
        assert_eq!(both(&writing(150, 100)), (39, 19), "58, 77, 96");
        assert_eq!(both(&writing(200, 100)), (55, 13), "68, 81, 94");
        assert_eq!(both(&writing(1000, 100)), (90, 6), "96");
        assert_eq!(both(&writing(0, 100)), (20, 10), "unknown");
    }

    #[test]
    fn the_limit_of_the_blackout_is_felt_as_one() {
        let percent = |millis| bearable(Duration::from_millis(millis));
        assert_eq!(percent(500), 96, "240 ms asleep");
        assert_eq!(percent(200), 90, "90 ms");
        assert_eq!(percent(100), 83, "49 ms");
        assert_eq!(percent(1), 83, "some of it must be possible");
        assert_eq!(percent(60_000), 99);
        let short = Situation {
            blackout: Duration::from_millis(100),
            ..writing(1000, 100)
        };
        assert_eq!(both(&short), (83, 5), "beyond it by the smallest steps");
    }

    #[test]
    fn what_is_felt_lasts_as_long_as_it_sleeps() {
        let millis = |percent| asleep(percent).as_millis();
        assert_eq!([0, 50, 90, 96, 99, 100].map(millis), [0, 10, 90, 240, 990, 990]);
        for blackout in [100, 200, 500, 3000].map(Duration::from_millis) {
            assert!(2 * asleep(bearable(blackout)) <= blackout);
        }
    }

    #[test]
    fn a_near_deadline_makes_the_steps_larger() {
        let within = |seconds| Situation {
            deadline: Some(Duration::from_secs(seconds)),
            ..writing(110, 100)
        };
        // A round is 10 s at most: eleven of them.
        assert_eq!(both(&within(110)), (20, 19));
        assert_eq!(both(&within(109)), (20, 38), "58, 96");
    }

    proptest! {
        #[test]
        fn it_comes_near_to_what_may_be_felt_before_it_goes_beyond(
            dirty_rate in 1_u64..1 << 40,
            bandwidth in 1_u64..1 << 40,
            more in 0_u64..1 << 40,
            memory in 0_u64..1 << 45,
            millis in 1_u64..60_000,
            deadline in proptest::option::of(1_u64..10_000),
        ) {
            let situation = Situation {
                dirty_rate,
                bandwidth,
                memory,
                blackout: Duration::from_millis(millis),
                deadline: deadline.map(Duration::from_secs),
            };
            let Throttle { initial, increment } = choose(&situation);
            let most = bearable(situation.blackout);
            prop_assert!((20..=FIRST_AT_MOST).contains(&initial) && initial <= most);
            prop_assert!(increment >= SMALLEST && (deadline.is_some() || increment <= LARGEST));
            let last = (initial..=most).step_by(increment as usize).last().unwrap();
            prop_assert!(most - last < SMALLEST, "{initial}, +{increment}, at most {most}");
            // Who writes faster is not slowed down less, and who has less time not more slowly.
            let faster = Situation { dirty_rate: dirty_rate + more, ..situation };
            prop_assert!(choose(&faster).initial >= initial);
            let patient = Situation { deadline: None, ..situation };
            prop_assert!(choose(&patient).increment <= increment);
        }
    }
}
