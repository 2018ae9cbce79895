//! Two hosts with a Drover that can be hurt, and one guest that is moved between them, case after case.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::act::{self, Sides};
use super::chaos::{Plan, When, heal_order};
use super::decided::{Answered, Evidence};
use super::moment::Hold;
use super::{Act, Case, End, Moment, Outcome, Patience, Role, expected};
use crate::cluster::{Cluster, ClusterOptions, Expected, Migration, Process};
use crate::{Disk, Guest, GuestSpec, Lab, Network, Watch, wait_until};

/// Slow enough that memory is sent for seconds.
const SLOW_MBIT: u32 = 200;
/// Faster than the slow link, so that the guest never gets over it.
const BUSY_KIB: u64 = 60 * 1024;
const BUSY_SET_MIB: u64 = 64;
/// What it dirties else.
const CALM_KIB: u64 = 2 * 1024;
/// A case that is not at rest so long after it was healed never will be.
const REST: Duration = Duration::from_secs(150);

/// Runs cases until none is left; each comes back with what was seen, or why it failed. A case that failed leaves a
/// lab that nobody trusts: the next one gets a fresh one.
pub fn run_all(cases: &[Case], patience: Patience, mut tell: impl FnMut(Case, Result<Outcome>)) -> Result<()> {
    let mut left: VecDeque<Case> = cases.iter().copied().collect();
    while !left.is_empty() {
        let mut lab = Lab::builder().start()?;
        let guest = lab.start_guest("host-a", &Stage::guest())?;
        let mut stage = Stage::start(&lab, guest)?;
        while let Some(case) = left.pop_front() {
            let outcome = stage.run(case, patience);
            let trusted = outcome.is_ok();
            tell(case, outcome);
            if !trusted {
                break;
            }
        }
    }
    Ok(())
}

/// The hosts, the guest, and where it is.
#[derive(Debug)]
pub struct Stage<'lab> {
    pub cluster: Cluster<'lab>,
    pub guest: Guest,
    place: String,
}

impl<'lab> Stage<'lab> {
    /// A guest that checks its memory and its disk, and is started with its host.
    pub fn guest() -> GuestSpec {
        let disk = Disk::Shared {
            format: "qcow2",
            size_mib: 16,
        };
        GuestSpec::new("moved")
            .fill_mib(96)
            .dirty_mib_per_second(2)
            .disk(disk)
            .autostart()
    }

    /// Starts Drover with fault points and small disks, around a guest on `host-a`.
    pub fn start(lab: &'lab Lab, guest: Guest) -> Result<Stage<'lab>> {
        let options = ClusterOptions {
            fault_points: true,
            small_disks: true,
            ..ClusterOptions::default()
        };
        Ok(Stage {
            cluster: Cluster::start_with(lab, options)?,
            guest,
            place: "host-a".to_string(),
        })
    }

    /// The host that the guest is on, and the other one.
    pub fn sides(&self) -> (String, String) {
        let other = if self.place == "host-a" { "host-b" } else { "host-a" };
        (self.place.clone(), other.to_string())
    }

    /// For a caller that looked itself where the guest is now.
    pub fn set_place(&mut self, host: &str) {
        self.place = host.to_owned();
    }

    /// One case from a guest at rest to a guest at rest. Every invariant is checked.
    pub fn run(&mut self, case: Case, patience: Patience) -> Result<Outcome> {
        self.run_anywhere(case, patience).with_context(|| case.to_string())
    }

    fn run_anywhere(&mut self, case: Case, patience: Patience) -> Result<Outcome> {
        let (source, destination) = self.sides();
        let sides = Sides {
            source: &source,
            destination: &destination,
        };
        let watch = self.cluster.lab().watch(&[&self.guest])?;
        let id = self.hold(case.moment, sides)?;
        let full = self.times_full(case.act)?;
        let began = Instant::now();
        act::apply(case.act, &mut self.cluster, sides, &self.guest)?;
        self.let_go(case)?;
        self.last(case.act, patience, &id)?;
        // Else the disk that was filled was of no consequence, and nothing was tried.
        ensure!(
            case.act != Act::StoreFull || self.times_full(case.act)? > full,
            "the store was not full"
        );
        act::heal(case.act, &mut self.cluster, sides)?;
        let healed = began.elapsed();
        let record = self.rest(&id)?;
        let rested = began.elapsed();
        let end = self.settle(&record, sides)?;
        let still = self.seen(watch, end)?;
        let evidence = self.evidence(&record, sides)?;
        evidence.bears_out(end)?;
        let outcome = Outcome::new(case, end, &record, healed, rested, still, evidence.who(case, end));
        let right = expected(case.moment, case.act);
        ensure!(right.contains(&end), "{end:?} is not among {right:?}: {}", record.0);
        Ok(outcome)
    }

    /// How often the controller has met a full store; an act that does not concern it may have killed it.
    fn times_full(&mut self, act: Act) -> Result<usize> {
        if act == Act::StoreFull {
            self.cluster.store_was_full()
        } else {
            Ok(0)
        }
    }

    /// What the agents have left of a migration at rest.
    fn evidence(&self, record: &Migration, sides: Sides<'_>) -> Result<Evidence> {
        let log = std::fs::read_to_string(self.cluster.agent_log(sides.source)?)?;
        Ok(Evidence {
            source: self.cluster.page(sides.source, record.id())?,
            destination: self.cluster.page(sides.destination, record.id())?,
            answered: Answered::read(&log, record.id()),
            because: record.message().to_string(),
        })
    }

    /// Begins a migration and brings it to the moment.
    fn hold(&self, moment: Moment, sides: Sides<'_>) -> Result<String> {
        let process = |hold: Hold| match hold {
            Hold::Agent(role, _) => Process::Agent(sides.host(role).to_string()),
            Hold::Controller(_) | Hold::Rounds(_) => Process::Controller,
        };
        let hold = moment.hold();
        match hold {
            Hold::Agent(_, point) | Hold::Controller(point) => self.cluster.arm(&process(hold), point)?,
            Hold::Rounds(_) => {
                self.guest.dirty(BUSY_KIB, Some(BUSY_SET_MIB))?;
                self.link(sides.source).limit_mbit(Some(SLOW_MBIT))?;
            }
        }
        let id = self.cluster.begin(&self.guest, sides.destination)?.id().to_string();
        match hold {
            Hold::Agent(_, point) | Hold::Controller(point) => {
                let come = self.cluster.wait_for_point(&process(hold), point);
                come.with_context(|| format!("record: {:?}", self.cluster.migration(&id)))?;
            }
            Hold::Rounds(rounds) => {
                let far = |now: &Migration| {
                    let progress = |field: &str| now.0["progress"][field].as_u64().unwrap_or(0);
                    progress("memory_sent_bytes") > 1 << 20 && progress("iteration") >= rounds
                };
                self.cluster.wait_for(&id, &format!("to be in {moment}"), far)?;
            }
        }
        Ok(id)
    }

    /// What was held goes on, into what is broken now.
    fn let_go(&self, case: Case) -> Result<()> {
        self.cluster.release()?;
        if case.moment.is_transfer() {
            let (source, _) = self.sides();
            self.link(&source).limit_mbit(None)?;
            if case.act != Act::KillQemu(Role::Source) {
                self.guest.dirty(CALM_KIB, None)?;
            }
        }
        Ok(())
    }

    /// Leaves it broken for as long as it lasts.
    fn last(&self, act: Act, patience: Patience, id: &str) -> Result<()> {
        let end = Instant::now() + act.lasts(patience);
        while Instant::now() < end {
            if act.ends_at_rest() && act.leaves_controller() && self.cluster.migration(id)?.at_rest() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50).min(end.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }

    fn rest(&self, id: &str) -> Result<Migration> {
        let mut last = None;
        wait_until(&format!("migration {id} to come to rest"), REST, || {
            let record = self.cluster.migration(id)?;
            last = Some(record.0.clone());
            Ok(record.at_rest().then_some(record))
        })
        .with_context(|| format!("{last:?}"))
    }

    /// Checks the world against the record; a guest that ended is started again where its definition is.
    fn settle(&mut self, record: &Migration, sides: Sides<'_>) -> Result<End> {
        let state = record.state();
        let end = End::of_state(state).with_context(|| format!("no end of a case: {}", record.0))?;
        match end {
            End::Moved => self.place = sides.destination.to_string(),
            End::Stayed => self.place = sides.source.to_string(),
            End::Ended => {}
        }
        if end == End::Ended {
            self.cluster.check(&[Expected::Ended(&self.guest)])?;
            self.start_again()?;
        } else {
            self.cluster.check(&[Expected::Runs(&self.guest, &self.place)])?;
        }
        Ok(end)
    }

    /// Its user's way out: the guest is defined on exactly one host, and starts there.
    fn start_again(&mut self) -> Result<()> {
        let domains = self.cluster.lab().domains()?;
        let known: Vec<_> = domains
            .iter()
            .filter(|domain| domain.uuid == self.guest.uuid())
            .collect();
        let [only] = known.as_slice() else {
            bail!("the guest that ended must be defined on one host: {known:#?}");
        };
        ensure!(only.persistent, "its definition is gone: {only:?}");
        self.place = only.host.clone();
        self.cluster.host(&self.place).virsh(&["start", self.guest.name()])?;
        self.guest.wait_until_it_answers()?;
        Ok(())
    }

    /// The detector's word, and how long the guest stood still.
    fn seen(&self, watch: Watch, end: End) -> Result<Option<Duration>> {
        let report = watch.finish()?;
        let violations = &report.verdict.violations;
        ensure!(violations.is_empty(), "A GUEST RAN TWICE: {violations:#?}");
        let path = report.path(self.guest.name());
        ensure!(!path.is_empty(), "the guest was never seen");
        Ok((end != End::Ended).then(|| report.guest(self.guest.name()).blackout()))
    }

    pub(crate) fn link(&self, host: &str) -> crate::Link<'lab> {
        self.cluster.host(host).link(Network::Management)
    }

    /// Begins a migration under a watch and brings it to a moment, for a test that does something then.
    pub fn hold_at(&self, moment: Moment) -> Result<Held> {
        let (source, destination) = self.sides();
        let watch = self.cluster.lab().watch(&[&self.guest])?;
        let id = self.hold(
            moment,
            Sides {
                source: &source,
                destination: &destination,
            },
        )?;
        Ok(Held {
            id,
            watch,
            source,
            destination,
        })
    }

    /// Lets it go and waits for its rest; the guest is looked at by the caller.
    pub fn release_and_rest(&self, held: &Held) -> Result<Migration> {
        self.cluster.release()?;
        self.link(&held.source).limit_mbit(None)?;
        self.rest(&held.id)
    }

    /// Lets it go, waits for its rest and checks every invariant. Returns also how long the guest stood still.
    pub fn go_on(&mut self, held: Held) -> Result<(End, Migration, Option<Duration>)> {
        let record = self.release_and_rest(&held)?;
        let sides = Sides {
            source: &held.source,
            destination: &held.destination,
        };
        let end = self.settle(&record, sides)?;
        self.guest.dirty(CALM_KIB, None)?;
        Ok((end, record, self.seen(held.watch, end)?))
    }

    /// A round of chaos: any end is right that the record and the hosts agree on.
    pub(super) fn chaos(&mut self, plan: &Plan) -> Result<(End, Duration)> {
        let (source, destination) = self.sides();
        let sides = Sides {
            source: &source,
            destination: &destination,
        };
        let watch = self.cluster.lab().watch(&[&self.guest])?;
        let id = match plan.when {
            When::At(moment) => self.hold(moment, sides)?,
            When::After { delay, slow } => {
                self.link(sides.source).limit_mbit(slow.then_some(SLOW_MBIT))?;
                let id = self.cluster.begin(&self.guest, sides.destination)?.id().to_string();
                std::thread::sleep(delay);
                id
            }
        };
        let mut done = Vec::new();
        for act in &plan.acts {
            // At a moment of chance there may be no QEMU on that side.
            let missed = act::apply(*act, &mut self.cluster, sides, &self.guest).err();
            match missed {
                Some(error) if !matches!(act, Act::KillQemu(_)) => return Err(error),
                Some(_) => {}
                None => done.push(*act),
            }
        }
        self.cluster.release()?;
        self.link(sides.source).limit_mbit(None)?;
        std::thread::sleep(plan.lasts);
        done.sort_by_key(|act| heal_order(*act));
        for act in done {
            act::heal(act, &mut self.cluster, sides)?;
        }
        let record = self.rest(&id)?;
        let end = self.settle(&record, sides)?;
        self.guest.dirty(CALM_KIB, None)?;
        Ok((end, self.seen(watch, end)?.unwrap_or_default()))
    }
}

/// A migration at a moment.
#[derive(Debug)]
pub struct Held {
    id: String,
    watch: Watch,
    source: String,
    destination: String,
}

impl Held {
    /// Of the migration.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The host that is on this side of it.
    pub fn host(&self, role: Role) -> &str {
        match role {
            Role::Source => &self.source,
            Role::Destination => &self.destination,
        }
    }

    /// Ends the watch: no copy ran beside another one. (Its path is empty where the guest stood still all the time.)
    pub fn never_twice(self) -> Result<()> {
        let violations = self.watch.finish()?.verdict.violations;
        ensure!(violations.is_empty(), "A GUEST RAN TWICE: {violations:#?}");
        Ok(())
    }

    /// The host on the other side.
    pub fn other(&self, role: Role) -> &str {
        match role {
            Role::Source => &self.destination,
            Role::Destination => &self.source,
        }
    }
}
