//! Schedules drawn from a seed: a few faults at any calls, with outages of any length.

use std::time::Duration;

use super::fault::Fault;
use super::plan::{Event, Plan, Scenario, When};

/// SplitMix64: the same numbers for the same seed, on every machine and in every version.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.roll() % limit as u64).unwrap_or(0)
    }

    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// A whole migration passes about so many gates; a schedule may go on a little longer.
const CROSSINGS: usize = 160;

/// The schedule of a seed.
pub fn schedule(seed: u64) -> Plan {
    let mut dice = Dice::new(seed);
    let scenarios = [
        Scenario::Move,
        Scenario::Move,
        Scenario::Undo,
        Scenario::MovePaused,
        Scenario::MoveTransient,
        Scenario::HandOver,
        Scenario::PostCopy,
        Scenario::MoveOffline,
        Scenario::UndoOffline,
        Scenario::MoveShutDown,
        Scenario::UndoShutDown,
    ];
    let scenario = dice.one_of(&scenarios);
    let events = (0..1 + dice.below(4)).map(|_| event(&mut dice)).collect();
    let seed = Some(seed);
    Plan { scenario, events, seed }
}

fn event(dice: &mut Dice) -> Event {
    // Most of it is over soon; some of it outlasts what is waited for.
    let outages = [0, 20, 80, 80, 300, 300, 1200, 4000];
    let holds = [0, 0, 0, 30, 300];
    let mut event = Event {
        when: When::Crossing(u32::try_from(1 + dice.below(CROSSINGS)).unwrap_or(1)),
        fault: dice.one_of(&Fault::ALL),
        outage: Duration::from_millis(dice.one_of(&outages)),
        hold: Duration::from_millis(dice.one_of(&holds)),
        silent: false,
    };
    event.silent = event.fault.is_a_cut() && dice.below(2) == 0;
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_cut_and_fall_silent() {
        let events: Vec<_> = (0..500).flat_map(|seed| schedule(seed).events).collect();
        for silent in [true, false] {
            assert!(
                events
                    .iter()
                    .any(|event| event.fault.is_a_cut() && event.silent == silent)
            );
        }
        assert!(events.iter().all(|event| event.fault.is_a_cut() || !event.silent));
    }

    #[test]
    fn a_seed_is_a_schedule() {
        assert_eq!(schedule(7), schedule(7));
        assert_ne!(schedule(7), schedule(8));
    }
}
