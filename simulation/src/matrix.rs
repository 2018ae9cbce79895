//! The fault matrix: every point that an undisturbed scenario passes × every moment × every fault, generated.
//!
//! The points are recorded, not listed: a new RPC or a new call to the hypervisor is in the matrix as soon as a
//! scenario passes it, and [`unmet`] names those that none does.

use std::collections::BTreeSet;

use drover_agent::sim::Call;
use drover_controller::saga::Phase;
use drover_proto::v1::MigrationState;

use super::case::{self, Outcome};
use super::deeds;
use super::fault::Fault;
use super::invariants::Rest;
use super::plan::{Event, Plan, Scenario};
use super::point::{Moment, NO_PHASE, Point, every_call};
use super::runner;

/// The points of one scenario that are its own.
#[derive(Debug)]
pub struct Row {
    pub scenario: Scenario,
    pub points: Vec<Point>,
}

/// Calls that no scenario is sure to reach, and who looks at them instead.
pub const UNMET: [(&str, &str); 2] = [
    (
        "/drover.agent.v1.AgentService/ListGuests",
        "reads only, where a request does not say which host has the guest: controller::api",
    ),
    (
        "/drover.agent.v1.AgentService/FinishIncoming",
        "only where the agents stay cut for longer than the controller waits, which a loaded machine may miss: \
         controller::faults",
    ),
];

/// How many repeats of the same call in the same phase are points of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Its first time.
    First,
    Every,
}

/// So often a scenario is run: on a busy machine a ticket may expire before it is used, and then it does not go its way.
const TRIES: u32 = 3;

/// Runs a scenario until it goes its way. What is broken is so at once.
async fn undisturbed(scenario: Scenario) -> Result<Outcome, String> {
    let mut ways = Vec::new();
    for _ in 0..TRIES {
        let plan = Plan {
            scenario,
            events: Vec::new(),
            seed: None,
        };
        let permit = runner::at_once().acquire_owned().await;
        let outcome = case::run(plan).await;
        drop(permit);
        if !outcome.broken.is_empty() {
            return Err(format!("{scenario:?} without a fault: {:?}", outcome.broken));
        }
        if went_its_way(scenario, &outcome) {
            return Ok(outcome);
        }
        ways.push((outcome.fired, outcome.rest));
    }
    Err(format!("{scenario:?} without a fault does not go its way: {ways:?}"))
}

/// Whether what belongs to the scenario happened, and it ended as it is meant to.
fn went_its_way(scenario: Scenario, outcome: &Outcome) -> bool {
    let meant = match scenario {
        Scenario::Undo | Scenario::UndoOffline | Scenario::UndoShutDown => MigrationState::Cancelled,
        Scenario::Move
        | Scenario::MovePaused
        | Scenario::MoveTransient
        | Scenario::HandOver
        | Scenario::Finish
        | Scenario::MoveOffline
        | Scenario::PostCopy
        | Scenario::Repair
        | Scenario::Raise
        | Scenario::Adjust
        | Scenario::PauseAtDeadline
        | Scenario::MoveShutDown => MigrationState::Succeeded,
        Scenario::AbortAtDeadline => MigrationState::Failed,
    };
    let Some(Rest::Ended { record, .. }) = &outcome.rest else {
        return false;
    };
    // What stays where it is has not felt anything of it.
    let unharmed = scenario != Scenario::AbortAtDeadline || outcome.standstill.is_zero();
    record.state == meant
        && outcome.fired.len() == scenario.events().len()
        && unharmed
        && deeds::missing(scenario, &record.details.actions).is_empty()
}

/// The call by which a scenario becomes another one than those before it: what it passes afterwards is its own, also
/// where others have passed it before.
fn turn(scenario: Scenario) -> Option<Call> {
    match scenario {
        Scenario::PostCopy => Some(Call::StartPostCopy),
        Scenario::PauseAtDeadline => Some(Call::Suspend),
        Scenario::AbortAtDeadline => Some(Call::Abort),
        Scenario::Move
        | Scenario::MovePaused
        | Scenario::MoveTransient
        | Scenario::Undo
        | Scenario::HandOver
        | Scenario::Finish
        | Scenario::MoveOffline
        | Scenario::UndoOffline
        | Scenario::Repair
        | Scenario::MoveShutDown
        | Scenario::UndoShutDown
        | Scenario::Raise
        | Scenario::Adjust => None,
    }
}

/// Where it is decided where the guest will be. What comes after is the same for all.
fn is_open(point: &Point) -> bool {
    let open = [Phase::Transfer, Phase::Abort, Phase::Discard];
    open.iter().any(|phase| phase.name() == point.phase)
}

/// What a scenario passes and no earlier one has passed, or not so. `known` is what was passed by guests that run, and by
/// those that are shut off, for whom the same call does something else.
fn fresh(scenario: Scenario, points: Vec<Point>, depth: Depth, known: &mut BTreeSet<(bool, Point)>) -> Vec<Point> {
    let turn = turn(scenario);
    let (mut turned, mut fresh) = (false, BTreeSet::new());
    for point in points {
        turned |= turn.is_some_and(|call| call.name() == point.call);
        if point.phase == NO_PHASE || (depth == Depth::First && point.nth > 0) {
            continue;
        }
        let news = known.insert((scenario.is_offline(), point.clone()));
        if news || (turned && is_open(&point)) {
            fresh.insert(point);
        }
    }
    fresh.into_iter().collect()
}

/// Runs every scenario undisturbed and notes what it passes. Fails where one does not go its way, or does not come to
/// its rest.
pub async fn record(depth: Depth) -> Result<Vec<Row>, String> {
    let (mut known, mut rows) = (BTreeSet::new(), Vec::new());
    for scenario in Scenario::ALL {
        let outcome = undisturbed(scenario).await?;
        let points = fresh(scenario, outcome.points, depth, &mut known);
        rows.push(Row { scenario, points });
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
