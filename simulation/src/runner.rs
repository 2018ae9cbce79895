//! Many cases at once, and what came out of them in words.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::case::{self, Outcome};
use super::invariants::{self, Rest};
use super::plan::Plan;

/// Most cases wait most of the time.
const AT_ONCE: usize = 32;

/// What came out of a set of cases.
#[derive(Debug, Default)]
pub struct Tally {
    pub cases: usize,
    /// In which not everything of the plan happened: the point was not passed.
    pub missed: usize,
    /// How the migrations came to rest.
    pub rests: BTreeMap<String, usize>,
    pub retries: u32,
    /// In the case that needed most of them.
    pub most_retries: u32,
    pub broken: Vec<(Plan, Vec<String>)>,
    /// Of what is known to be wrong (`invariants::KNOWN`), by reason.
    pub known: BTreeMap<&'static str, usize>,
    /// Of each case in which the guest ran again.
    pub standstills: Vec<Duration>,
    /// The longest of them, and where.
    pub longest: Option<(Duration, Plan)>,
    pub took: Duration,
}

/// Runs all of them, and counts.
pub async fn run(plans: Vec<Plan>) -> Tally {
    let began = Instant::now();
    let mut tally = Tally::default();
    each(plans, |outcome| tally.add(outcome)).await;
    tally.took = began.elapsed();
    tally
}

/// Runs all of them, in any order.
pub async fn each(plans: Vec<Plan>, mut done: impl FnMut(Outcome)) {
    let (at_once, mut running) = (at_once(), JoinSet::new());
    for plan in plans {
        let permit = Arc::clone(&at_once).acquire_owned().await;
        running.spawn(async move {
            let outcome = case::run(plan).await;
            drop(permit);
            outcome
        });
        while let Some(ended) = running.try_join_next() {
            done(ended.expect("a case does not panic"));
        }
    }
    while let Some(ended) = running.join_next().await {
        done(ended.expect("a case does not panic"));
    }
}

/// Shared by all sets that run at the same time in this process, and by whoever runs a case alone.
pub(super) fn at_once() -> Arc<Semaphore> {
    static AT_ONCE_NOW: OnceLock<Arc<Semaphore>> = OnceLock::new();
    let make = || {
        let asked = std::env::var("DROVER_AT_ONCE").ok().and_then(|text| text.parse().ok());
        Arc::new(Semaphore::new(asked.unwrap_or(AT_ONCE)))
    };
    Arc::clone(AT_ONCE_NOW.get_or_init(make))
}

impl Tally {
    fn add(&mut self, outcome: Outcome) {
        self.cases += 1;
        let expected = outcome.plan.events.len() + outcome.plan.scenario.events().len();
        self.missed += usize::from(outcome.fired.len() < expected);
        if let Some(Rest::Ended { retries, .. }) = &outcome.rest {
            self.retries += retries;
            self.most_retries = self.most_retries.max(*retries);
        }
        let rest = match &outcome.rest {
            None | Some(Rest::NotCreated) => "not created".to_owned(),
            Some(Rest::Ended { record, .. }) => record.position.to_string(),
            Some(Rest::NeedsPerson { .. }) => "waits for a person".to_owned(),
            Some(Rest::Restless { .. }) => "restless".to_owned(),
        };
        *self.rests.entry(rest).or_default() += 1;
        if !outcome.standstill.is_zero() {
            self.standstills.push(outcome.standstill);
            if self
                .longest
                .as_ref()
                .is_none_or(|(longest, _)| *longest < outcome.standstill)
            {
                self.longest = Some((outcome.standstill, outcome.plan.clone()));
            }
        }
        let (known, broken): (Vec<_>, Vec<_>) = outcome
            .broken
            .into_iter()
            .partition(|broken| invariants::known(broken).is_some());
        for reason in known.iter().filter_map(|broken| invariants::known(broken)) {
            *self.known.entry(reason).or_default() += 1;
        }
        if !broken.is_empty() {
            eprintln!("BROKEN {}: {broken:?}", outcome.plan);
            self.broken.push((outcome.plan, broken));
        }
    }

    /// For people.
    pub fn describe(&self, what: &str) -> String {
        let seconds = self.took.as_secs_f64();
        let rate = self.cases as f64 / seconds.max(0.001);
        let mut text = format!("{what}: {} cases in {seconds:.0} s ({rate:.1}/s)", self.cases);
        // Writing into a String cannot fail.
        for (rest, count) in &self.rests {
            let _ = write!(text, ", {rest} {count}");
        }
        let mut standstills = self.standstills.clone();
        standstills.sort();
        if let (Some(median), Some(longest)) = (standstills.get(standstills.len() / 2), standstills.last()) {
            let _ = write!(
                text,
                "; the guest stood still for {median:.0?} (median), {longest:.1?} (longest)"
            );
        }
        let _ = write!(
            text,
            "; retried by an operator {} (at most {} in one case), not reached {}, broken {}",
            self.retries,
            self.most_retries,
            self.missed,
            self.broken.len()
        );
        if let Some((longest, plan)) = &self.longest {
            let _ = write!(text, "\n  stood still for {longest:.1?}: {plan}");
        }
        for (reason, count) in &self.known {
            let _ = write!(text, "\n  known {count}: {reason}");
        }
        text
    }
}
