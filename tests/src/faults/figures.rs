//! Figures about recovery, on real hosts: how soon a restarted controller is where the world is, and how long a guest
//! stands still for a source agent that died in the worst moment.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Act, Case, Daemon, Moment, Patience, Role, Stage};
use crate::{Lab, wait_until};

/// Of several measurements.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    pub least: Duration,
    pub median: Duration,
    pub most: Duration,
}

impl Figure {
    fn of(mut all: Vec<Duration>) -> Result<Figure> {
        all.sort();
        let middle = all.len() / 2;
        Ok(Figure {
            least: *all.first().context("nothing was measured")?,
            median: all[middle],
            most: all[all.len() - 1],
        })
    }
}

/// The controller is killed while the guest switches over, the agents finish among themselves; then it is started
/// again: until its record is at rest.
pub fn controller_recovery(times: usize) -> Result<Figure> {
    on_a_stage(times, |stage| {
        let held = stage.hold_at(Moment::Finished)?;
        stage.cluster.kill_controller()?;
        stage.cluster.release()?;
        let (source, uuid) = (held.host(Role::Source).to_string(), stage.guest.uuid());
        wait_until("the source's copy to be gone", Duration::from_secs(60), || {
            let domains = stage.cluster.lab().domains_on(stage.cluster.host(&source))?;
            Ok((!domains.iter().any(|domain| domain.uuid == uuid)).then_some(()))
        })?;
        let started = SystemTime::now();
        stage.cluster.start_controller()?;
        let (_, record, _) = stage.go_on(held)?;
        ensure!(record.state() == "SUCCEEDED", "{}", record.0);
        since(started, record.0["end_time"].as_str())
    })
}

/// The controller is killed while memory is sent, and started again: until it follows the transfer.
pub fn controller_follows(times: usize) -> Result<Figure> {
    on_a_stage(times, |stage| {
        let held = stage.hold_at(Moment::EarlyTransfer)?;
        stage.cluster.kill_controller()?;
        let started = SystemTime::now();
        stage.cluster.start_controller()?;
        let record = stage.cluster.wait_for(held.id(), "to be followed", |now| {
            now.0["phases"].as_array().is_some_and(|phases| {
                phases
                    .last()
                    .is_some_and(|last| last["phase"] == "TRANSFER" && last["attempt"].as_u64() > Some(1))
            })
        })?;
        let follows = record.0["phases"].as_array().and_then(|phases| phases.last().cloned());
        let follows = follows.context("no phase")?;
        let taken = since(started, follows["start_time"].as_str())?;
        stage.go_on(held)?;
        Ok(taken)
    })
}

/// The source's agent dies between "all sent" and Finish, and its supervisor starts it after a second: how long the
/// guest stands still.
pub fn source_agent(times: usize) -> Result<Figure> {
    let case = Case {
        moment: Moment::AllSent,
        act: Act::Kill(Daemon::Agent(Role::Source)),
    };
    on_a_stage(times, |stage| {
        let outcome = stage.run(case, Patience::SHORT)?;
        outcome.still_ms.map(Duration::from_millis).context("the guest ended")
    })
}

fn on_a_stage(times: usize, mut once: impl FnMut(&mut Stage<'_>) -> Result<Duration>) -> Result<Figure> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &Stage::guest())?;
    let mut stage = Stage::start(&lab, guest)?;
    Figure::of((0..times).map(|_| once(&mut stage)).collect::<Result<_>>()?)
}

/// From then until a time of the record.
fn since(then: SystemTime, stamp: Option<&str>) -> Result<Duration> {
    let stamp = stamp.context("the record has no such time")?;
    let at = OffsetDateTime::parse(stamp, &Rfc3339).with_context(|| stamp.to_string())?;
    Ok(SystemTime::from(at).duration_since(then).unwrap_or_default())
}
