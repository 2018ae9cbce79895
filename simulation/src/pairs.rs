//! Two faults in one world: which are worth it, and which can meet.

use std::collections::{HashMap, HashSet};

use drover_controller::saga::Phase;

use super::fault::Fault;
use super::matrix::{Row, UNMET, singles};
use super::plan::{Event, Plan, Scenario, When};
use super::point::{Moment, Point};
use super::random::Dice;
use super::runner;

/// Every two different faults at the points that change something, as numbers: there are too many to be held at once.
/// A guest that runs and one that is shut off pass other points: these are not mixed.
#[derive(Debug)]
pub struct Pairs {
    kinds: [Vec<Plan>; 2],
}

fn pairs_of(singles: &[Plan]) -> usize {
    singles.len() * singles.len().saturating_sub(1) / 2
}

impl Pairs {
    pub fn new(rows: &[Row]) -> Self {
        Self::made_of(rows, tells)
    }

    /// Any two: also where both agents or all processes die, at calls that only look, and at both moments of a call. So
    /// many that only a sample of them can be run.
    pub fn of_any(rows: &[Row]) -> Self {
        Self::made_of(rows, |_| true)
    }

    fn made_of(rows: &[Row], wanted: fn(&Event) -> bool) -> Self {
        let mut singles = singles(rows);
        singles.retain(|plan| plan.events.iter().all(|event| wanted(event) && is_sure(event)));
        let (offline, live) = singles.into_iter().partition(|plan| plan.scenario.is_offline());
        Self { kinds: [live, offline] }
    }

    /// Unordered: whichever is met first happens first.
    pub fn count(&self) -> usize {
        self.kinds.iter().map(|singles| pairs_of(singles)).sum()
    }

    /// The pair with this number.
    pub fn get(&self, number: usize) -> Plan {
        let [live, offline] = &self.kinds;
        match number.checked_sub(pairs_of(live)) {
            None => Self::of(live, number),
            Some(rest) => Self::of(offline, rest),
        }
    }

    fn of(singles: &[Plan], number: usize) -> Plan {
        // Row `second` of the triangle holds the pairs of it with everything before it.
        let (mut second, mut before) = (1, 0);
        while before + second <= number {
            before += second;
            second += 1;
        }
        let (first, second) = (&singles[number - before], &singles[second]);
        let mut events = first.events.clone();
        events.extend(second.events.iter().cloned());
        Plan {
            // The rarer scenario passes the commoner one's points too, where these come before its own.
            scenario: rarer(first.scenario, second.scenario),
            events,
            seed: None,
        }
    }

    /// Some of them.
    pub fn sample(&self, count: usize, seed: u64) -> Vec<Plan> {
        let mut dice = Dice::new(seed);
        (0..count).map(|_| self.get(dice.below(self.count()))).collect()
    }
}

/// Whether each run passes its point: else the numbers of the pairs would change from run to run.
fn is_sure(event: &Event) -> bool {
    place(event).is_some_and(|point| UNMET.iter().all(|(call, _)| *call != point.call))
}

fn place(event: &Event) -> Option<&Point> {
    match &event.when {
        When::At(point, _) => Some(point),
        When::Crossing(_) => None,
    }
}

/// Whether a fault is worth a pair: at a call that changes something, at the moment that matters most, and no
/// combination of others.
fn tells(event: &Event) -> bool {
    let When::At(point, moment) = &event.when else {
        return false;
    };
    let looks = ["Inspect", "List", "Get", "Check", "Probes", "Watch", "look"];
    if point.phase == Phase::Validate.name() || looks.iter().any(|look| point.call.contains(look)) {
        return false;
    }
    let wanted = match event.fault {
        Fault::Refused | Fault::Cancel => Moment::Before,
        Fault::AnswerLost
        | Fault::AgentDies(_)
        | Fault::ControllerDies
        | Fault::HostReboots(_)
        | Fault::LibvirtdRestarts(_)
        | Fault::AgentsCut
        | Fault::ControllerAlone => Moment::After,
        Fault::BothAgentsDie | Fault::AllDie | Fault::ControllerCut(_) => return false,
    };
    *moment == wanted
}

fn rarer(one: Scenario, other: Scenario) -> Scenario {
    let place = |scenario| Scenario::ALL.iter().position(|known| *known == scenario);
    if place(one) >= place(other) { one } else { other }
}

/// What a scenario still passes when one thing goes wrong in it. A pair of which one fault keeps the other's point from
/// being passed is that single fault again, and is not run.
#[derive(Debug, Default)]
pub struct Reach(HashMap<Plan, HashSet<Point>>);

impl Reach {
    /// Runs every fault of these plans alone, in its plan's scenario.
    pub async fn of(plans: &[Plan]) -> Self {
        let alone: HashSet<Plan> = plans.iter().flat_map(alone).collect();
        let mut reach = Self::default();
        runner::each(alone.into_iter().collect(), |outcome| {
            // One that went wrong passed less than it would have: it keeps no pair away.
            if outcome.broken.is_empty() {
                reach.0.insert(outcome.plan, outcome.points.into_iter().collect());
            }
        })
        .await;
        reach
    }

    /// Whether all faults of a plan can happen in one run, as far as is known. At one moment there is room for one.
    pub fn has_room_for(&self, plan: &Plan) -> bool {
        let moments: HashSet<&When> = plan.events.iter().map(|event| &event.when).collect();
        moments.len() == plan.events.len()
            && alone(plan).all(|one| {
                self.0.get(&one).is_none_or(|passed| {
                    let mut places = plan.events.iter().filter_map(place);
                    places.all(|point| passed.contains(point))
                })
            })
    }
}

/// Each fault of a plan by itself.
fn alone(plan: &Plan) -> impl Iterator<Item = Plan> + '_ {
    plan.events.iter().map(|event| Plan {
        events: vec![event.clone()],
        ..plan.clone()
    })
}
