//! Plays cases one after the other on two real hosts, and brings the guest back to what it was after each.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::explained::explained;
use super::{Case, Deed, End};
use crate::cluster::{Expected, Migration};
use crate::faults::{Moment, Stage};
use crate::{Domain, Host, Lab, wait_until};

/// What waits for a job lock that is held gives up after 30 s.
const VIRSH: Duration = Duration::from_secs(60);
/// A guest that was asked to shut down has done so by then.
const SHUTDOWN: Duration = Duration::from_secs(30);
/// By then libvirt has done what it will do at once.
const AT_ONCE: Duration = Duration::from_secs(3);

/// A case as it was seen.
#[derive(Debug)]
pub struct Seen {
    case: Case,
    end: End,
    /// The record's state and reason.
    record: String,
    /// What virsh said: nothing where it succeeded.
    virsh: String,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seen {
            case,
            end,
            record,
            virsh,
        } = self;
        write!(
            f,
            "{:<58} {:<14} {record}; virsh: {virsh}",
            case.to_string(),
            format!("{end:?}")
        )
    }
}

/// Runs them all; one that failed leaves a lab that nobody trusts, and the next one gets a fresh one.
pub fn run_all(cases: &[Case], mut tell: impl FnMut(Case, Result<Seen>)) -> Result<()> {
    let mut left: VecDeque<Case> = cases.iter().copied().collect();
    while !left.is_empty() {
        let mut lab = Lab::builder().listen_tcp().start()?;
        let guest = lab.start_guest("host-a", &Stage::guest())?;
        let mut stage = Stage::start(&lab, guest)?;
        while let Some(case) = left.pop_front() {
            let seen = play(&mut stage, case).with_context(|| case.to_string());
            let trusted = seen.is_ok();
            tell(case, seen);
            if !trusted {
                break;
            }
        }
    }
    Ok(())
}

fn play(stage: &mut Stage<'_>, case: Case) -> Result<Seen> {
    let (source, _) = stage.sides();
    let definition = stage
        .cluster
        .host(&source)
        .virsh(&["dumpxml", "--inactive", stage.guest.name()])?;
    let edited = definition.replace("</name>", "</name>\n  <title>edited on the way</title>");
    let held = stage.hold_at(case.moment)?;
    let (here, there) = (held.host(case.side).to_owned(), held.other(case.side).to_owned());
    let (here, there) = (stage.cluster.host(&here), stage.cluster.host(&there));
    let name = stage.guest.name().to_owned();
    let (virsh, record) = std::thread::scope(|scope| {
        let deed = scope.spawn(|| do_it(case.deed, here, there, &name, &edited, stage));
        let started = std::time::Instant::now();
        // What hangs at the job lock goes on to hang while the migration does. At its end there is no job any more.
        let limit = if case.moment == Moment::Finalizing {
            VIRSH
        } else {
            AT_ONCE
        };
        while !deed.is_finished() && started.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(20));
        }
        let record = goes_on(stage, case).and_then(|()| stage.release_and_rest(&held));
        (deed.join().expect("virsh does not panic"), record)
    });
    let record = record?;
    let virsh = virsh
        .err()
        .map_or_else(String::new, |error| last_line(&format!("{error:#}")));
    let seen = settle(stage, case, &record, &definition)
        .with_context(|| format!("virsh said {virsh:?}; record: {}", record.0));
    let end = seen?;
    held.never_twice()?;
    let right = case.expected();
    ensure!(
        right.contains(&end),
        "{end:?} is not among {right:?}; virsh: {virsh:?}; {}",
        record.0
    );
    explained(case, end, &record)?;
    let record = format!("{} {}", record.state(), record.reason());
    Ok(Seen {
        case,
        end,
        record,
        virsh,
    })
}

/// A guest that is not stopped by the deed writes faster than a loaded machine sends: it has to converge.
fn goes_on(stage: &Stage<'_>, case: Case) -> Result<()> {
    let runs = match case.deed {
        Deed::Destroy | Deed::Shutdown | Deed::Suspend => false,
        Deed::Resume | Deed::Undefine | Deed::Rename | Deed::Migrate | Deed::Edit => true,
    };
    if runs && case.moment.is_transfer() {
        calm(stage)?;
    }
    Ok(())
}

fn last_line(text: &str) -> String {
    text.lines().last().unwrap_or_default().trim().to_owned()
}

fn do_it(deed: Deed, here: &Host, there: &Host, name: &str, edited: &str, stage: &Stage<'_>) -> Result<()> {
    let virsh = |arguments: &[&str]| here.virsh_within(VIRSH, arguments).map(|_| ());
    match deed {
        Deed::Destroy => virsh(&["destroy", name]),
        Deed::Shutdown => {
            virsh(&["shutdown", name])?;
            wait_until("the guest to shut down", SHUTDOWN, || {
                Ok((here.virsh(&["domstate", name])? == "shut off").then_some(()))
            })
        }
        Deed::Suspend => virsh(&["suspend", name]),
        Deed::Resume => virsh(&["resume", name]),
        Deed::Undefine => virsh(&["undefine", name]),
        Deed::Rename => virsh(&["domrename", name, "renamed"]),
        Deed::Migrate => {
            let (to, by) = (
                format!("qemu+tcp://{}/system", there.name()),
                format!("tcp://{}", there.name()),
            );
            let way = [
                "migrate",
                "--live",
                "--p2p",
                "--unsafe",
                "--persistent",
                "--undefinesource",
            ];
            virsh(&[&way[..], &[name, &to, &by]].concat())
        }
        Deed::Edit => {
            virsh(&["dumpxml", "--inactive", name])?;
            let path = stage.cluster.folder().join("edited.xml");
            std::fs::write(&path, edited)?;
            virsh(&["define", &path.display().to_string()])
        }
    }
}

/// How it ended, by what the hosts show; then the guest is again as it was before, wherever it is now.
fn settle(stage: &mut Stage<'_>, case: Case, record: &Migration, before: &str) -> Result<End> {
    let uuid = stage.guest.uuid();
    let copies: Vec<Domain> = stage
        .cluster
        .lab()
        .domains()?
        .into_iter()
        .filter(|one| one.uuid == uuid)
        .collect();
    let [copy] = copies.as_slice() else {
        bail!("the guest must be known on one host: {copies:#?}");
    };
    let (source, destination) = stage.sides();
    let moved = copy.host == destination;
    stage.set_place(&copy.host);
    let host = stage.cluster.host(&copy.host);
    let name = stage.guest.name().to_owned();
    if !copy.is_active() {
        ensure!(record.state() == "GUEST_ENDED", "it runs nowhere");
        ensure!(copy.persistent, "its definition is gone");
        stage.cluster.check(&[Expected::Ended(&stage.guest)])?;
        host.virsh(&["start", &name])?;
        stage.guest.wait_until_it_answers()?;
        calm(stage)?;
        return Ok(End::Ended);
    }
    let paused = copy.state == "paused";
    let inactive = host.virsh(&["dumpxml", "--inactive", &name])?;
    let edited = inactive.contains("edited on the way");
    let end = match (moved, record.state()) {
        (false, "SUCCEEDED") if case.deed == Deed::Migrate => End::BroughtBack,
        (false, "FAILED") if !paused => End::Stayed,
        (true, "SUCCEEDED") if !copy.persistent => End::MovedTransient,
        (true, "SUCCEEDED") if edited => End::MovedEdited,
        (true, "SUCCEEDED") if paused => End::MovedPaused,
        (true, "SUCCEEDED") => End::Moved,
        _ => bail!("no right end: from {source} to {destination}, now {copies:#?}"),
    };
    // libvirt never takes it along.
    if end == End::BroughtBack {
        host.virsh(&["autostart", &name])?;
    }
    match end {
        End::MovedPaused => stage.cluster.check(&[Expected::Paused(&stage.guest, &copy.host)])?,
        End::Moved | End::MovedTransient | End::MovedEdited | End::Stayed | End::Ended | End::BroughtBack => {
            stage.cluster.check(&[Expected::Runs(&stage.guest, &copy.host)])?;
        }
    }
    if paused {
        resume(host, &name)?;
    }
    if edited || !copy.persistent {
        let path = stage.cluster.folder().join("before.xml");
        std::fs::write(&path, before)?;
        host.virsh(&["define", &path.display().to_string()])?;
    }
    calm(stage)?;
    Ok(end)
}

/// As docs/failures.md tells an operator: libvirt at the source may have given the image back to its owner.
fn resume(host: &Host, name: &str) -> Result<()> {
    for disk in host.virsh(&["domblklist", name, "--details"])?.lines() {
        if let Some(image) = disk.split_whitespace().nth(3).filter(|path| path.starts_with('/')) {
            host.run("chown", &["libvirt-qemu", image])?;
        }
    }
    host.virsh(&["resume", name]).map(|_| ())
}

fn calm(stage: &Stage<'_>) -> Result<()> {
    stage.guest.wait_until_it_answers()?;
    stage.guest.dirty(2 * 1024, None)
}
