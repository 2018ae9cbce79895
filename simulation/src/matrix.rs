//! The fault matrix: every point that an undisturbed scenario passes × every moment × every fault, generated.
//!
//! The points are recorded, not listed: a new RPC or a new call to the hypervisor is in the matrix as soon as a
//! scenario passes it, and [`unmet`] names those that none does.

use std::collections::BTreeSet;

use drover_controller::saga::Phase;

use super::case;
use super::fault::Fault;
use super::plan::{Event, Plan, Scenario, When};
use super::point::{Moment, NO_PHASE, Point, every_call};
use super::random::Dice;

/// The points of one scenario that no earlier one has passed.
#[derive(Debug)]
pub struct Row {
    pub scenario: Scenario,
    pub points: Vec<Point>,
}

/// Calls that no scenario is sure to reach, and who looks at them instead.
pub const UNMET: [(&str, &str); 8] = [
    (
        "/drover.agent.v1.AgentService/SampleGuest",
        "reads only, for estimates: in a check, or where a policy has a deadline: agents::checks, controller::estimates",
    ),
    (
        "/drover.agent.v1.PeerService/MeasureLink",
        "reads only, as SampleGuest, where no migration has used the link: agents::checks",
    ),
    ("libvirt.sample", "as SampleGuest"),
    (
        "/drover.agent.v1.AgentService/AdjustOutgoing",
        "only when somebody changes a policy on the way: agents::policy, agents::every_call, controller::adjust",
    ),
    (
        "/drover.agent.v1.AgentService/ListGuests",
        "reads only, where a request does not say which host has the guest: controller::api",
    ),
    (
        "/drover.agent.v1.AgentService/FinishIncoming",
        "only where the agents stay cut for longer than the controller waits, which a loaded machine may miss: \
         controller::faults",
    ),
    (
        "libvirt.suspend",
        "only where somebody else resumes a guest that was handed over: agents::crashes",
    ),
    (
        "libvirt.set-limits",
        "only in a transfer whose rounds do not shrink, or when it is adjusted: sim::tests, control_tests, agents::policy",
    ),
];

/// How many repeats of the same call in the same phase are points of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Its first time.
    First,
    Every,
}

/// Runs every scenario undisturbed and notes what it passes. Fails where one does not come to its rest.
pub async fn record(depth: Depth) -> Result<Vec<Row>, String> {
    let (mut known, mut rows) = (BTreeSet::new(), Vec::new());
    for scenario in Scenario::ALL {
        let undisturbed = Plan {
            scenario,
            events: Vec::new(),
            seed: None,
        };
        let outcome = case::run(undisturbed).await;
        if !outcome.broken.is_empty() || outcome.fired.len() != scenario.events().len() {
            return Err(format!("{scenario:?} without a fault: {:?}", outcome.broken));
        }
        let fresh: BTreeSet<_> = outcome
            .points
            .into_iter()
            .filter(|point| point.phase != NO_PHASE && (depth == Depth::Every || point.nth == 0))
            // The same call does something else for a guest that is shut off.
            .filter(|point| known.insert((scenario.is_offline(), point.clone())))
            .collect();
        rows.push(Row {
            scenario,
            points: fresh.into_iter().collect(),
        });
    }
    Ok(rows)
}

/// Calls that are neither passed by a scenario nor listed with a reason.
pub fn unmet(rows: &[Row]) -> Vec<String> {
    let met: BTreeSet<_> = rows
        .iter()
        .flat_map(|row| &row.points)
        .map(|point| point.call.as_str())
        .collect();
    every_call()
        .filter(|call| {
            let listed = UNMET.iter().any(|(unmet, _)| unmet == call);
            !met.contains(call.as_str()) && !listed
        })
        .collect()
}

/// All events that can happen at a point.
fn events(point: &Point) -> impl Iterator<Item = Event> + '_ {
    [Moment::Before, Moment::After].into_iter().flat_map(move |moment| {
        Fault::ALL
            .into_iter()
            .filter(move |fault| fault.fits(moment))
            .map(move |fault| Event::at(point.clone(), moment, fault))
    })
}

/// Every single fault.
pub fn singles(rows: &[Row]) -> Vec<Plan> {
    let of_row = |row: &Row| {
        let scenario = row.scenario;
        let plan = |event| Plan {
            scenario,
            events: vec![event],
            seed: None,
        };
        row.points.iter().flat_map(events).map(plan).collect::<Vec<_>>()
    };
    rows.iter().flat_map(of_row).collect()
}

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
        let mut singles = singles(rows);
        singles.retain(|plan| plan.events.iter().all(tells));
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
