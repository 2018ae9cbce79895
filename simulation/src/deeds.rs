//! What an agent does by itself while a guest is sent, and what an operator changes on the way: which scenario has it.

use drover_agent::jobs::progress::Deed;
use drover_proto::v1::ActionRecord;

use super::plan::Scenario;

/// As records call an agent that acts by itself.
const CONTROL_LOOP: &str = "control-loop";

/// What an operator changes in [`Scenario::Adjust`].
const ORDERS: [&str; 2] = ["max-downtime", "bandwidth"];

/// The scenario that has it with nothing going wrong, or why none has. A new deed does not compile before it has one.
pub fn shown_in(deed: Deed) -> Result<Scenario, &'static str> {
    match deed {
        Deed::MaxDowntime | Deed::AutoConverge => Ok(Scenario::Raise),
        Deed::PauseAndFinish => Ok(Scenario::PauseAtDeadline),
        Deed::PostCopy => Ok(Scenario::PostCopy),
        Deed::Abort => Ok(Scenario::AbortAtDeadline),
        Deed::FileStays => Err("tells of a file that could not be put away: a fault of `MoveOffline`"),
    }
}

/// What a scenario is to show and its record does not have: without it the scenario is not what it is called.
pub fn missing(scenario: Scenario, actions: &[ActionRecord]) -> Vec<&'static str> {
    let has = |name: &str, by_itself: bool| {
        let is_it = |action: &ActionRecord| action.action == name && (action.actor == CONTROL_LOOP) == by_itself;
        actions.iter().any(is_it)
    };
    let deeds = Deed::ALL.into_iter().filter(|deed| shown_in(*deed) == Ok(scenario));
    let orders = ORDERS.into_iter().filter(|_| scenario == Scenario::Adjust);
    let not_done = deeds.map(Deed::name).filter(|name| !has(name, true));
    not_done.chain(orders.filter(|name| !has(name, false))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(name: &str, actor: &str) -> ActionRecord {
        ActionRecord {
            action: name.to_owned(),
            actor: actor.to_owned(),
            ..ActionRecord::default()
        }
    }

    #[test]
    fn a_scenario_without_its_deed_is_found_out() {
        for deed in Deed::ALL {
            let Ok(scenario) = shown_in(deed) else { continue };
            assert!(Scenario::ALL.contains(&scenario));
            assert!(missing(scenario, &[]).contains(&deed.name()), "{deed:?}");
            let by_somebody = [action(deed.name(), "spiffe://drover.local/user/operator")];
            assert!(missing(scenario, &by_somebody).contains(&deed.name()), "{deed:?}");
            let by_itself = [action(deed.name(), CONTROL_LOOP)];
            assert!(!missing(scenario, &by_itself).contains(&deed.name()), "{deed:?}");
        }
        assert_eq!(missing(Scenario::Adjust, &[]), ORDERS);
        let raised = [action("max-downtime", CONTROL_LOOP), action("bandwidth", "somebody")];
        assert_eq!(missing(Scenario::Adjust, &raised), ["max-downtime"]);
        assert!(missing(Scenario::Move, &[]).is_empty());
    }
}
