//! What must be true once everything is back: the promises of the design, looked at from outside of the product.
//!
//! That never two copies ran, and never an old one over newer disks, is watched all the time by the simulated hosts
//! themselves; here it is only read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use drover_agent::hypervisor::GuestState;
use drover_agent::journal::{DestinationState, Part, Record as Page};
use drover_agent::offline::calls::FileCall;
use drover_controller::saga::Phase;
use drover_controller::store::Record;
use drover_proto::v1::MigrationState;

use super::fault::Fault;
use super::folder::{Named, local_files};
use super::plan::{Plan, Scenario, When};
use super::point::Site;
use super::world::World;

/// What is known to be wrong, and why it is so still. Each is printed and counted at every run; nothing else may be.
pub const KNOWN: [(&str, &str); 0] = [];

/// The reason of what is known to be wrong.
pub fn known(broken: &str) -> Option<&'static str> {
    let known = KNOWN.iter().find(|(text, _)| broken.contains(text));
    known.map(|(_, reason)| *reason)
}

/// What an agent does after the controller has been told may take so long, on a busy machine.
const AFTERMATH: Duration = Duration::from_secs(40);

/// How a migration came to rest.
#[derive(Debug)]
pub enum Rest {
    /// The wish was never heard.
    NotCreated,
    Ended {
        record: Record,
        /// How often an operator let a stuck phase try again.
        retries: u32,
    },
    /// It waits, visibly, for a person's word.
    NeedsPerson { record: Record },
    /// It did not come to rest although everything is back.
    Restless { record: Record },
}

/// Everything that is not as it must be. What is still being done gets a moment to be done.
pub async fn check(world: &World, plan: &Plan, rest: &Rest) -> Vec<String> {
    let until = Instant::now() + AFTERMATH;
    loop {
        let mut broken = look(world, plan, rest);
        if broken.is_empty() || Instant::now() > until {
            broken.extend(violations(world));
            return broken;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn violations(world: &World) -> impl Iterator<Item = String> {
    let twice = world.director.startable_twice().into_iter();
    let twice = twice.map(|at| format!("VIOLATION startable on both hosts {at}"));
    world
        .sim
        .violations()
        .into_iter()
        .map(|violation| format!("VIOLATION {:?}", violation.what))
        .chain(twice)
}

fn look(world: &World, plan: &Plan, rest: &Rest) -> Vec<String> {
    match rest {
        // Where the guest ended with its host there is nothing to move.
        Rest::NotCreated if plan.scenario == Scenario::MoveTransient && rebooted(world) => Vec::new(),
        Rest::NotCreated => vec!["the migration was never created".to_owned()],
        Rest::Restless { record } => vec![format!("{}; {}", restless(record), both(world))],
        Rest::NeedsPerson { record } => needs_person(world, plan, record),
        Rest::Ended { record, retries } => {
            let mut broken = ended(world, plan, record);
            broken.extend(too_many_retries(plan, *retries));
            broken
        }
    }
}

/// Once all is back, a phase that is stuck is through when an operator has let it try again: once for each thing that
/// went wrong, and once more. Whoever has to ask more often is not helped by asking.
fn too_many_retries(plan: &Plan, retries: u32) -> Option<String> {
    let wrong = plan.events.len() + plan.scenario.events().len();
    let most = u32::try_from(wrong + 1).unwrap_or(u32::MAX);
    (retries > most).then(|| format!("an operator had to let it try again {retries} times, {wrong} things went wrong"))
}

fn restless(record: &Record) -> String {
    let waiting = record.details.waiting_for.as_ref();
    let waiting = waiting.map_or_else(String::new, |waiting| format!("{} {}", waiting.reason, waiting.remedy));
    format!("it does not come to rest: {} {waiting}", record.position)
}

/// The one case that nobody can decide: the destination died between `Resuming` and `Ran`, and the copy is gone. And
/// the one that nobody can repair: one of the two hosts died in post-copy. What the other one has is still there.
fn needs_person(world: &World, plan: &Plan, record: &Record) -> Vec<String> {
    let resuming = world.jobs(Site::Destination).is_some_and(|jobs| {
        jobs.journal.records().iter().any(|page| match &page.part {
            Part::Destination(part) => part.state == DestinationState::Resuming,
            Part::Source(_) | Part::Nothing => false,
        })
    });
    let there = world.host(Site::Destination).look(world.guest_id());
    let there = there.map_or(GuestState::ShutOff, |guest| guest.state);
    let absent = !there.is_active();
    let waits_for_pages = plan.scenario.goes_over() && there == GuestState::RunningPostCopyFailed;
    let here = world.host(Site::Source).look(world.guest_id()).map(|guest| guest.state);
    let dropped = waits_for_pages && !rebooted(world) && here != Some(GuestState::PausedPostCopyFailed);
    if dropped {
        return vec!["the pages that are missing were thrown away".to_owned()];
    }
    // It died after the guest was stopped to go over, and before it was told that.
    let lost = plan.scenario.goes_over() && absent && here.is_some_and(GuestState::is_post_copy);
    if resuming && (absent || waits_for_pages && rebooted(world)) || lost {
        return Vec::new();
    }
    let (why, found) = (restless(record), both(world));
    vec![format!("a person is asked for without need: {why}; {found}")]
}

/// What each host has of the guest and of its move, for people.
fn both(world: &World) -> String {
    let of = |site: Site| {
        let copy = world.host(site).look(world.guest_id()).map(|guest| guest.state);
        let pages = world.jobs(site).map(|jobs| {
            let page = |page: &Arc<Page>| format!("{} {:?}", page.state_name(), page.decision);
            jobs.journal.records().iter().map(page).collect::<Vec<_>>()
        });
        format!("{}: {copy:?} {pages:?}", site.host())
    };
    Site::BOTH.map(of).join(", ")
}

/// Where the guest is to be, by what the record says. `None`: it ended.
fn home(record: &Record) -> Result<Option<Site>, String> {
    match record.state {
        MigrationState::Succeeded => Ok(Some(Site::Destination)),
        MigrationState::Failed | MigrationState::Cancelled => Ok(Some(Site::Source)),
        MigrationState::GuestEnded => Ok(None),
        MigrationState::Unspecified
        | MigrationState::Queued
        | MigrationState::Running
        | MigrationState::Cancelling
        | MigrationState::AttentionRequired => Err(format!("at rest, and {}", record.state.as_str_name())),
    }
}

fn ended(world: &World, plan: &Plan, record: &Record) -> Vec<String> {
    let home = match home(record) {
        Ok(home) => home,
        Err(wrong) => return vec![wrong],
    };
    let mut broken = nothing_left(world);
    broken.extend(local_disk(world, plan, home));
    let powered_off = |site| {
        let fired = world.director.fired();
        fired.iter().any(|event| event.fault == Fault::HostReboots(site))
    };
    match home {
        Some(home) => {
            broken.extend(at_home(world, plan, home));
            let host = record.guest_host.as_ref().map(ToString::to_string);
            // Who was refused before anything was looked at knows nothing of it.
            let unknown = host.is_none() && record.phase == Phase::Validate;
            if host.as_deref() != Some(home.host()) && !unknown {
                broken.push(format!(
                    "the record says that the guest is at {host:?}, not {}",
                    home.host()
                ));
            }
        }
        None => {
            if !Site::BOTH.into_iter().any(powered_off) {
                broken.push("the record says that the guest ended, and nobody ended it".to_owned());
            }
            broken.extend(after_its_end(world, plan));
        }
    }
    broken
}

/// What only the source had is whole where the guest is, and nowhere else; of a guest that is shut off the source's
/// files are put away.
fn local_disk(world: &World, plan: &Plan, home: Option<Site>) -> Option<String> {
    let images = Site::BOTH.map(|site| world.folder.local_images(site));
    let [at_source, at_destination] = &images;
    let whole = local_files(plan.scenario);
    let moves = plan.scenario.copies() || plan.scenario.is_offline();
    let right = match home {
        Some(Site::Destination) if plan.scenario.is_offline() => {
            *at_destination == whole && are_put_away(world, at_source, &whole)
        }
        Some(Site::Destination) if moves => *at_destination == whole && at_source.is_empty(),
        Some(Site::Source | Site::Destination) => *at_source == whole && at_destination.is_empty(),
        None if !moves => *at_source == whole && at_destination.is_empty(),
        // It ended on one of them.
        None => images.contains(&whole) && images.iter().all(|there| there.len() < 2),
    };
    let names = |there: &Vec<Named>| {
        let name = |(name, content): &Named| format!("{name} ({})", content.len());
        there.iter().map(name).collect::<Vec<_>>()
    };
    (!right).then(|| format!("local disks: {:?}, {:?}", names(at_source), names(at_destination)))
}

/// Nobody starts from them by mistake; that one of them could not be renamed does no harm.
fn are_put_away(world: &World, there: &[Named], whole: &[Named]) -> bool {
    let fired = world.director.fired();
    let may_stay = fired.iter().any(|event| match &event.when {
        When::At(point, _) => event.fault == Fault::Refused && point.call == FileCall::PutAway.name(),
        When::Crossing(_) => event.fault == Fault::Refused,
    });
    let is_of = |(name, content): &Named, (former, whole): &Named| {
        let away = name
            .strip_prefix(former)
            .is_some_and(|rest| rest.starts_with(".moved-"));
        content == whole && (away || (may_stay && name == former))
    };
    there.len() == whole.len() && there.iter().zip(whole).all(|(now, then)| is_of(now, then))
}

/// One copy, with what belongs to it, and nothing on the other host.
fn at_home(world: &World, plan: &Plan, home: Site) -> Vec<String> {
    let mut broken = Vec::new();
    let guest = world.guest_id();
    if let Some(left) = world.host(home.other()).look(guest) {
        broken.push(format!("{} still has a copy: {:?}", home.other().host(), left.state));
    }
    let Some(found) = world.host(home).look(guest) else {
        // A transient guest ends with its host.
        if plan.scenario == Scenario::MoveTransient && rebooted(world) {
            return broken;
        }
        broken.push(format!("{} does not have the guest", home.host()));
        return broken;
    };
    let expected = match plan.scenario {
        Scenario::MovePaused => GuestState::Paused,
        Scenario::Move
        | Scenario::MoveTransient
        | Scenario::Undo
        | Scenario::HandOver
        | Scenario::Finish
        | Scenario::PostCopy
        | Scenario::Repair
        | Scenario::Raise
        | Scenario::Adjust
        | Scenario::PauseAtDeadline
        | Scenario::AbortAtDeadline
        | Scenario::MoveShutDown
        | Scenario::UndoShutDown => GuestState::Running,
        Scenario::MoveOffline | Scenario::UndoOffline => GuestState::ShutOff,
    };
    // One that stood still, and whose host went down and started it anew, runs now.
    let anew = found.state == GuestState::Running && rebooted(world);
    if found.state != expected && !anew {
        broken.push(format!("the guest is {:?} at {}", found.state, home.host()));
    }
    let kept = plan.scenario != Scenario::MoveTransient;
    if (found.persistent, found.autostart) != (kept, kept) {
        let (persistent, autostart) = (found.persistent, found.autostart);
        broken.push(format!(
            "at {}: persistent {persistent}, autostart {autostart}",
            home.host()
        ));
    }
    broken
}

fn rebooted(world: &World) -> bool {
    world
        .director
        .fired()
        .iter()
        .any(|event| event.fault.rebooted().is_some())
}

/// A guest that ended with its host: a transient one is gone, a persistent one is defined on one host, with autostart.
fn after_its_end(world: &World, plan: &Plan) -> Vec<String> {
    let looks = Site::BOTH.map(|site| (site, world.host(site).look(world.guest_id())));
    let active: Vec<_> = looks
        .iter()
        .filter(|(_, guest)| guest.as_ref().is_some_and(|guest| guest.state.is_active()))
        .map(|(site, _)| site.host())
        .collect();
    let mut broken = Vec::new();
    if !active.is_empty() {
        broken.push(format!(
            "the record says that the guest ended, and there is a copy at {active:?}"
        ));
    }
    let defined: Vec<_> = looks
        .iter()
        .filter_map(|(site, guest)| Some((site, guest.as_ref()?)))
        .collect();
    let expected = usize::from(plan.scenario != Scenario::MoveTransient);
    if defined.len() != expected {
        broken.push(format!("the guest is defined on {} hosts", defined.len()));
    }
    for (site, guest) in defined {
        if !guest.autostart {
            broken.push(format!("autostart was lost at {}", site.host()));
        }
        // It was to be started with its host, and its host was started.
        broken.push(format!("the guest was not started again at {}", site.host()));
    }
    broken
}

/// No job lock, socket, probe file, open journal, waiting copy or transfer in memory.
fn nothing_left(world: &World) -> Vec<String> {
    let mut broken = Vec::new();
    for site in Site::BOTH {
        let name = site.host();
        if world.host(site).has_job(world.guest_id()) {
            broken.push(format!("{name} still holds a job lock"));
        }
        let sockets = world.folder.sockets(site);
        if !sockets.is_empty() {
            broken.push(format!("{name} still has sockets: {sockets:?}"));
        }
        let Some(jobs) = world.jobs(site) else {
            broken.push(format!("the agent of {name} is not up"));
            continue;
        };
        for page in jobs.journal.records() {
            if page.closed.is_none() {
                broken.push(format!(
                    "a journal is open at {name}: {} {:?}",
                    page.state_name(),
                    page.decision
                ));
            }
            if jobs.outgoing_job(page.migration).is_some() || jobs.incoming_job(page.migration).is_some() {
                broken.push(format!("{name} still works on it"));
            }
        }
    }
    let images = world.folder.images();
    if images != ["web.raw"] {
        broken.push(format!("beside the disk there is {images:?}"));
    }
    broken
}
