//! The simulated fault matrix: single faults, pairs of faults, schedules drawn from a seed.
//!
//! - `DROVER_ALL=1` runs all pairs that can meet (`DROVER_CHUNK=3/20` the third twentieth of them), every repeat of a
//!   call as a point of its own, and 10,000 schedules.
//! - `DROVER_SEED=…` with `DROVER_SCHEDULES=1` replays one schedule; `DROVER_ONLY=…` runs the faults, and with
//!   `DROVER_ALL` the pairs, whose description contains the text, or each of its parts that `+` separates;
//!   `RUST_LOG=info` shows what the processes say.

use drover_agent::sim::Call;
use drover_simulation::fault::Fault;
use drover_simulation::matrix::{Depth, Row, record, singles, unmet};
use drover_simulation::pairs::{Pairs, Reach};
use drover_simulation::plan::{Event, Plan, Scenario};
use drover_simulation::point::{Moment, Point, Site};
use drover_simulation::random::schedule;
use drover_simulation::runner::{self, Tally};
use tokio::sync::OnceCell;

/// Of pairs, in `make test`.
const PAIRS: usize = 300;
/// Of pairs of any faults at any calls, in `make test`, and in `make test-all`.
const ANY_PAIRS: usize = 60;
const MORE_ANY_PAIRS: usize = 2000;
/// In `make test`, and in `make test-all`.
const SCHEDULES: usize = 300;
const ALL_SCHEDULES: usize = 10_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn all() -> bool {
    std::env::var_os("DROVER_ALL").is_some()
}

fn seed() -> u64 {
    number("DROVER_SEED").unwrap_or(20_261_124)
}

/// What the processes of all cases say, where `RUST_LOG` asks for it.
fn listen() {
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        // Another test of this process may have done it.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_test_writer()
            .try_init();
    }
}

/// Recorded once for all tests of this process.
async fn rows(depth: Depth) -> &'static [Row] {
    static FIRST: OnceCell<Vec<Row>> = OnceCell::const_new();
    static EVERY: OnceCell<Vec<Row>> = OnceCell::const_new();
    listen();
    let rows = match depth {
        Depth::First => &FIRST,
        Depth::Every => &EVERY,
    };
    rows.get_or_init(|| async { record(depth).await.unwrap() }).await
}

fn judge(what: &str, tally: &Tally) {
    println!("{}", tally.describe(what));
    for (plan, broken) in &tally.broken {
        println!("  {plan}: {broken:?}");
    }
    assert!(
        tally.broken.is_empty(),
        "{} of {} cases",
        tally.broken.len(),
        tally.cases
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_is_met_by_a_scenario_or_listed() {
    let rows = rows(Depth::First).await;
    assert_eq!(unmet(rows), Vec::<String>::new(), "not met and not listed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_single_fault() {
    let depth = if all() { Depth::Every } else { Depth::First };
    let mut plans = singles(rows(depth).await);
    plans.retain(is_asked_for);
    let tally = runner::run(plans).await;
    judge("single faults", &tally);
    // A fault that does not come is nothing that was survived. Some points are not passed at each run.
    assert!(
        tally.missed * 100 <= tally.cases,
        "{} of {} cases did not come to their fault",
        tally.missed,
        tally.cases
    );
}

/// What two faults together have shown once, and no single one did.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pairs_that_once_failed() {
    let at = |site, call: &str| Point {
        phase: "transfer",
        site,
        call: call.to_owned(),
        nth: 0,
    };
    // Whoever was told to hand over asked on and on, although only a person could answer.
    let hand_over = at(Site::Source, "/drover.agent.v1.AgentService/HandOver");
    let died_resuming = Event::at(
        at(Site::Destination, Call::Resume.name()),
        Moment::After,
        Fault::HostReboots(Site::Destination),
    );
    let others = [
        (Moment::Before, Fault::Refused),
        (Moment::After, Fault::AnswerLost),
        (Moment::After, Fault::ControllerDies),
        (Moment::After, Fault::AgentDies(Site::Source)),
    ];
    let plans = others.map(|(moment, fault)| Plan {
        scenario: Scenario::HandOver,
        events: vec![died_resuming.clone(), Event::at(hand_over.clone(), moment, fault)],
        seed: None,
    });
    judge("pairs that once failed", &runner::run(plans.into()).await);
}

/// The guest has gone from its source, and its copy dies before it was told: lost, and said so. It was undone and begun
/// again on and on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_dies_between_the_switch_and_the_hand_over() {
    let hand_over = Point {
        phase: "transfer",
        site: Site::Destination,
        call: "/drover.agent.v1.PeerService/HandOverGuest".to_owned(),
        nth: 0,
    };
    let event = |fault| Event::at(hand_over.clone(), Moment::Before, fault);
    let faults = [
        Fault::AgentDies(Site::Destination),
        Fault::HostReboots(Site::Destination),
    ];
    let plans = faults.map(|fault| Plan {
        scenario: Scenario::PostCopy,
        events: vec![event(fault)],
        seed: None,
    });
    judge("lost in post-copy", &runner::run(plans.into()).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pairs_of_faults() {
    let pairs = Pairs::new(rows(Depth::First).await);
    if !all() {
        return judge("pairs", &runner::run(pairs.sample(PAIRS, seed())).await);
    }
    let (chunk, chunks) = chunk();
    let (from, to) = (pairs.count() * (chunk - 1) / chunks, pairs.count() * chunk / chunks);
    let mut plans: Vec<_> = (from..to)
        .map(|number| pairs.get(number))
        .filter(is_asked_for)
        .collect();
    let reach = Reach::of(&plans).await;
    plans.retain(|plan| reach.has_room_for(plan));
    println!("pairs {from} to {to} of {}: {} can meet", pairs.count(), plans.len());
    judge("all pairs", &runner::run(plans).await);
}

/// Also those that no set of all pairs has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_two_faults() {
    let count = if all() { MORE_ANY_PAIRS } else { ANY_PAIRS };
    let pairs = Pairs::of_any(rows(Depth::First).await);
    println!("{count} of {} pairs of any faults", pairs.count());
    judge("any two faults", &runner::run(pairs.sample(count, seed())).await);
}

/// By `DROVER_ONLY`.
fn is_asked_for(plan: &Plan) -> bool {
    let Ok(only) = std::env::var("DROVER_ONLY") else {
        return true;
    };
    let plan = plan.to_string();
    only.split('+').all(|part| plan.contains(part.trim()))
}

/// `DROVER_CHUNK=3/20`: the third of twenty.
fn chunk() -> (usize, usize) {
    let text = std::env::var("DROVER_CHUNK").unwrap_or_else(|_| "1/1".to_owned());
    let (chunk, chunks) = text.split_once('/').expect("DROVER_CHUNK=k/n");
    let (chunk, chunks) = (chunk.parse().expect("a number"), chunks.parse().expect("a number"));
    assert!(1 <= chunk && chunk <= chunks, "DROVER_CHUNK=k/n with 1 <= k <= n");
    (chunk, chunks)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schedules_of_a_seed() {
    listen();
    let default = if all() { ALL_SCHEDULES } else { SCHEDULES };
    let count = number("DROVER_SCHEDULES").unwrap_or(default as u64);
    println!(
        "schedules of the seeds {} to {}: replay one with DROVER_SEED=<seed> DROVER_SCHEDULES=1",
        seed(),
        seed() + count - 1
    );
    judge(
        "schedules",
        &runner::run((seed()..seed() + count).map(schedule).collect()).await,
    );
}
