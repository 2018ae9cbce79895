//! Somebody dies right after the source's agent has acted by itself on a guest that does not converge: the guest runs in
//! one place at the end, and is what it was.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drover_tests::cluster::{Cluster, Expected, Migration};
use drover_tests::{Guest, GuestSpec, Lab, Watch, wait_until};

/// It writes twice as fast as these limits let it be sent: it never converges.
const HOPELESS: [&str; 2] = ["--bandwidth", "30MiB/s"];
const PATIENCE: Duration = Duration::from_secs(120);

/// A busy guest on its way, by these limits.
struct Play<'lab> {
    cluster: Cluster<'lab>,
    guest: Guest,
    watch: Watch,
    id: String,
}

impl<'lab> Play<'lab> {
    fn start(lab: &'lab Lab, guest: Guest, flags: &[&str]) -> Result<Self> {
        let cluster = Cluster::start(lab)?;
        let watch = lab.watch(&[&guest])?;
        let flags = [&HOPELESS[..], flags].concat();
        let id = cluster.begin_with(&guest, "host-b", &flags)?.id().to_string();
        Ok(Self {
            cluster,
            guest,
            watch,
            id,
        })
    }

    /// Its agent has stopped it, and the rest, seconds of it, is being sent.
    fn is_stopped(&self) -> Result<()> {
        let host = self.cluster.host("host-a");
        wait_until("the guest to be stopped at its deadline", PATIENCE, || {
            let state = host.virsh(&["domstate", self.guest.name()])?;
            Ok((state.trim() == "paused").then_some(()))
        })
    }

    /// What its agent did is told.
    fn has_done(&self, deed: &str) -> Result<()> {
        let does = |now: &Migration| {
            let mut actions = now.actions().into_iter();
            actions.any(|(name, _, actor)| name == deed && actor == "control-loop")
        };
        self.cluster.wait_for(&self.id, deed, does)?;
        Ok(())
    }

    /// Runs in one place, with its memory as it wrote it; nothing is left.
    fn ends(self, path: &[&str], state: &str) -> Result<()> {
        let end = self.cluster.wait_for_rest(&self.id)?;
        ensure!(end.state() == state, "{}", end.0);
        let home = *path.last().context("no path")?;
        let status = self.guest.verify()?;
        ensure!(status.memory_errors == 0, "{status:?}");
        self.cluster.check(&[Expected::Runs(&self.guest, home)])?;
        self.watch.finish()?.check_path(self.guest.name(), path)
    }
}

fn busy() -> GuestSpec {
    GuestSpec::new("busy").fill_mib(128).dirty_mib_per_second(60)
}

const PAUSE: [&str; 6] = [
    "--max-downtime",
    "100ms",
    "--deadline",
    "6s",
    "--on-deadline",
    "pause-and-finish",
];

#[test]
fn an_agent_that_dies_right_after_it_stopped_its_guest_gives_it_back() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &busy())?;
    let mut play = Play::start(&lab, guest, &PAUSE)?;
    play.is_stopped()?;
    play.cluster.kill_agent("host-a")?;
    play.cluster.start_agent("host-a")?;
    play.ends(&["host-a"], "FAILED")
}

#[test]
fn a_guest_that_was_stopped_to_finish_arrives_while_no_controller_runs() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &busy())?;
    let mut play = Play::start(&lab, guest, &PAUSE)?;
    play.is_stopped()?;
    play.cluster.kill_controller()?;
    wait_until("the guest to run at its destination", PATIENCE, || {
        let state = play.cluster.host("host-b").virsh(&["domstate", play.guest.name()])?;
        Ok((state.trim() == "running").then_some(()))
    })?;
    play.cluster.start_controller()?;
    play.ends(&["host-a", "host-b"], "SUCCEEDED")
}

#[test]
fn an_agent_that_dies_while_its_guest_is_slowed_down_leaves_it_where_it_is() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &busy())?;
    let mut play = Play::start(&lab, guest, &["--max-downtime", "50ms", "--allow-auto-converge"])?;
    play.has_done("auto-converge")?;
    play.cluster.kill_agent("host-a")?;
    play.cluster.start_agent("host-a")?;
    play.ends(&["host-a"], "FAILED")
}
