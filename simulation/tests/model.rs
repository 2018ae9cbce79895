//! The model of one migration holds in every state that can be reached; and where a rule is left out, the search finds
//! what the rule prevents. `DROVER_ALL=1` looks further; `DROVER_FAULTS=…` sets how many faults may happen.

use drover_simulation::model::explore::{Explored, explore, tell};
use drover_simulation::model::rules::{Rule, Rules};

/// Faults in one migration, in `make test` and in `make test-all`.
const FAULTS: u8 = 2;
const MORE_FAULTS: u8 = 3;
/// More states than there are: the search comes to its end.
const LIMIT: usize = 60_000_000;

fn faults() -> u8 {
    let asked = std::env::var("DROVER_FAULTS").ok().and_then(|text| text.parse().ok());
    let all = std::env::var_os("DROVER_ALL").is_some();
    asked.unwrap_or(if all { MORE_FAULTS } else { FAULTS })
}

#[test]
fn no_state_is_wrong_and_none_is_hopeless() {
    let faults = faults();
    let Explored {
        states,
        transitions,
        cut_off,
        wrong,
        hopeless,
        undecidable,
    } = explore(faults, LIMIT, Rules::default());
    println!("{faults} faults: {states} states, {transitions} transitions, {undecidable} that nobody can decide");
    if let Some((what, way)) = wrong {
        panic!("{what}:\n{}", tell(&way));
    }
    if let Some(way) = hopeless {
        panic!("from here nobody can ever come to a rest:\n{}", tell(&way));
    }
    assert!(!cut_off, "more states than {LIMIT}");
    assert!(undecidable > 0, "the documented case must be among them");
}

#[test]
fn every_rule_that_is_left_out_is_missed() {
    for rule in Rule::ALL {
        // Most are found with one fault, some need more.
        let found = (0..=3).find_map(|faults| {
            let explored = explore(faults, LIMIT, Rules::without(rule));
            explored
                .wrong
                .map(|(what, way)| (faults, what, way.len(), explored.states))
        });
        let (faults, what, steps, states) = found.unwrap_or_else(|| panic!("without {rule:?} nothing was found"));
        println!("without {rule:?}: {what} after {steps} steps, {faults} faults, {states} states searched");
    }
}
