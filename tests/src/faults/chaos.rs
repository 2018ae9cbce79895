//! Random faults against random migrations, until the time is over. The same seed makes the same plans.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::random::Random;
use super::{Act, Daemon, End, Moment, Role, Stage};
use crate::Lab;

/// What happens to one migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub when: When,
    /// One or two that do not concern the same part.
    pub acts: Vec<Act>,
    /// How long what does not end by itself lasts.
    pub lasts: Duration,
}

/// When it breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    At(Moment),
    /// So long after the migration was asked for; over a slow link or a fast one.
    After {
        delay: Duration,
        slow: bool,
    },
}

/// What became of all rounds.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    pub rounds: usize,
    pub ends: BTreeMap<String, usize>,
    pub longest_still: Duration,
}

/// What two acts at once must not have in common.
#[derive(PartialEq, Eq)]
enum Part {
    Controller,
    Agent(Role),
    Libvirtd(Role),
    Qemu,
    Network,
    Store,
    Journal(Role),
}

fn parts(act: Act) -> Vec<Part> {
    match act {
        Act::Kill(daemon) | Act::Stop(daemon) => match daemon {
            Daemon::Controller => vec![Part::Controller],
            Daemon::Agent(role) => vec![Part::Agent(role)],
            Daemon::Libvirtd(role) => vec![Part::Libvirtd(role)],
        },
        Act::KillBothAgents => vec![Part::Agent(Role::Source), Part::Agent(Role::Destination)],
        Act::KillQemu(_) => vec![Part::Qemu],
        Act::Cut | Act::CutOneWay(_) | Act::CutController(_) | Act::Reset => vec![Part::Network],
        Act::StoreFull => vec![Part::Store],
        Act::JournalFull(role) => vec![Part::Journal(role)],
    }
}

/// Networks and disks come back before the daemons that need them, the controller before the agents.
pub(super) fn heal_order(act: Act) -> u8 {
    match act {
        Act::Cut | Act::CutOneWay(_) | Act::CutController(_) | Act::Reset => 0,
        Act::StoreFull | Act::JournalFull(_) | Act::KillQemu(_) => 1,
        Act::Stop(_) => 2,
        Act::Kill(Daemon::Libvirtd(_)) => 3,
        Act::Kill(Daemon::Controller) => 4,
        Act::Kill(Daemon::Agent(_)) | Act::KillBothAgents => 5,
    }
}

impl Plan {
    /// Round `round` of a seed.
    pub fn of(seed: u64, round: usize) -> Plan {
        let mut random = Random::new(seed.wrapping_mul(1_000_003).wrapping_add(round as u64));
        let when = if random.below(2) == 0 {
            When::At(*random.one_of(&Moment::ALL))
        } else {
            When::After {
                delay: Duration::from_millis(random.below(4000)),
                slow: random.below(2) == 0,
            }
        };
        let all = Act::all();
        let mut acts = vec![*random.one_of(&all)];
        let second = *random.one_of(&all);
        if random.below(3) == 0 && parts(second).iter().all(|part| !parts(acts[0]).contains(part)) {
            acts.push(second);
        }
        Plan {
            when,
            acts,
            lasts: Duration::from_millis(500 + random.below(9500)),
        }
    }

    /// A guest may end only where a QEMU was killed.
    fn may_end(&self) -> bool {
        self.acts.iter().any(|act| matches!(act, Act::KillQemu(_)))
    }
}

/// Rounds until the time is over, or one of them breaks a promise.
pub fn run(seed: u64, limit: Duration, mut tell: impl FnMut(&str)) -> Result<Summary> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &Stage::guest())?;
    let mut stage = Stage::start(&lab, guest)?;
    let (began, mut summary) = (Instant::now(), Summary::default());
    while began.elapsed() < limit {
        let plan = Plan::of(seed, summary.rounds);
        let seen = stage.chaos(&plan);
        let (end, still) = seen.with_context(|| format!("seed {seed}, round {}: {plan}", summary.rounds))?;
        ensure!(
            end != End::Ended || plan.may_end(),
            "seed {seed}, round {}: the guest ended by {plan}",
            summary.rounds
        );
        tell(&format!(
            "round {:<3} {plan}: {}, still for {still:?}",
            summary.rounds,
            end.state()
        ));
        *summary.ends.entry(end.state().to_string()).or_default() += 1;
        if end != End::Ended {
            summary.longest_still = summary.longest_still.max(still);
        }
        summary.rounds += 1;
    }
    Ok(summary)
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let acts: Vec<String> = self.acts.iter().map(ToString::to_string).collect();
        write!(f, "{}", acts.join(" and "))?;
        match self.when {
            When::At(moment) => write!(f, ", {moment}")?,
            When::After { delay, slow } => {
                write!(
                    f,
                    ", {delay:?} after the start, {} link",
                    if slow { "slow" } else { "fast" }
                )?;
            }
        }
        write!(f, ", for {:?}", self.lasts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_same_plans_again_and_all_acts_come() {
        let plans: Vec<Plan> = (0..2000).map(|round| Plan::of(7, round)).collect();
        assert_eq!(plans, (0..2000).map(|round| Plan::of(7, round)).collect::<Vec<_>>());
        for act in Act::all() {
            assert!(plans.iter().any(|plan| plan.acts.contains(&act)), "{act}");
        }
        assert!(plans.iter().any(|plan| plan.acts.len() == 2));
    }
}
