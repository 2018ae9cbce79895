//! Policies on real hosts: the bandwidth limit as the link sees it, deadlines, and what is adjusted on the way.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use drover_tests::cluster::{Cluster, Expected, Migration};
use drover_tests::{Guest, GuestSpec, Lab, Network, wait_until};

const MIB: f64 = 1024.0 * 1024.0;
const PATIENCE: Duration = Duration::from_secs(120);

/// It writes twice as fast as these limits let it be sent: it never converges.
const HOPELESS: [&str; 4] = ["--bandwidth", "30MiB/s", "--max-downtime", "100ms"];

fn busy() -> GuestSpec {
    GuestSpec::new("busy").fill_mib(128).dirty_mib_per_second(60)
}

/// Waits until memory is on its way.
fn sending(cluster: &Cluster<'_>, id: &str) -> Result<Migration> {
    cluster.wait_for(id, "to send memory", |now| {
        now.0["progress"]["memory_sent_bytes"].as_u64() > Some(1 << 20)
    })
}

/// What the source's link has sent, read between two moments.
struct Sample {
    before: Instant,
    bytes: u64,
    after: Instant,
}

/// The highest rate in any two seconds or more, in bytes per second.
fn highest_rate(samples: &[Sample]) -> f64 {
    let mut highest: f64 = 0.0;
    for (at, first) in samples.iter().enumerate() {
        for last in &samples[at + 1..] {
            let surely = last.before.saturating_duration_since(first.after);
            if surely >= Duration::from_secs(2) {
                let at_most = last.after - first.before;
                highest = highest.max((last.bytes - first.bytes) as f64 / at_most.as_secs_f64());
            }
        }
    }
    highest
}

/// Moves the guest under a limit and looks at the link all the time.
fn rate_seen(cluster: &Cluster<'_>, guest: &Guest, from: &str, to: &str, flags: &[&str]) -> Result<f64> {
    let link = cluster.host(from).link(Network::Management);
    let id = cluster.begin_with(guest, to, flags)?.id().to_string();
    let mut samples = Vec::new();
    let end = wait_until(&format!("migration {id} to come to rest"), PATIENCE, || {
        let before = Instant::now();
        let bytes = link.sent_bytes()?;
        samples.push(Sample {
            before,
            bytes,
            after: Instant::now(),
        });
        Ok(Some(cluster.migration(&id)?).filter(Migration::at_rest))
    })?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    let sent = end.0["summary"]["tunnel_bytes"].as_u64().context("no tunnel_bytes")?;
    ensure!(sent as f64 > 160.0 * MIB, "only {sent} bytes were sent");
    Ok(highest_rate(&samples))
}

#[test]
fn the_bandwidth_limit_holds_over_one_and_over_four_connections() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &GuestSpec::new("idle").fill_mib(160))?;
    let cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[&guest])?;
    let limit = 40.0 * MIB;
    for (from, to, flags) in [
        ("host-a", "host-b", &["--bandwidth", "40MiB/s"][..]),
        ("host-b", "host-a", &["--bandwidth", "40MiB/s", "--parallel", "4"]),
    ] {
        let seen = rate_seen(&cluster, &guest, from, to, flags)?;
        println!("{flags:?}: at most {:.1} MiB/s on the link", seen / MIB);
        // What a receiver that stood still was owed comes at once: up to four full socket buffers. Four connections
        // with a limit each would be four times as fast.
        ensure!(seen <= limit * 1.3, "{flags:?}: {:.1} MiB/s on the link", seen / MIB);
    }
    cluster.check(&[Expected::Runs(&guest, "host-a")])?;
    watch
        .finish()?
        .check_path(guest.name(), &["host-a", "host-b", "host-a"])
}

#[test]
fn at_its_deadline_a_busy_guest_stays_unharmed_also_without_a_controller() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &busy())?;
    let mut cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[&guest])?;
    let flags = [&HOPELESS[..], &["--deadline", "20s", "--on-deadline", "abort"]].concat();
    let id = cluster.begin_with(&guest, "host-b", &flags)?.id().to_string();
    sending(&cluster, &id)?;
    cluster.kill_controller()?;
    wait_until("the source to give up by itself", PATIENCE, || {
        let job = lab.host("host-a").virsh(&["domjobinfo", guest.name()])?;
        Ok(job.contains("None").then_some(()))
    })?;
    ensure!(lab.running_copies(&guest)?.iter().all(|copy| copy.host == "host-a"));
    cluster.start_controller()?;
    let end = cluster.wait_for_rest(&id)?;
    ensure!(
        end.state() == "FAILED" && end.reason() == "TRANSFER_DEADLINE",
        "{}",
        end.0
    );
    ensure!(end.actions().contains(&("abort", "", "control-loop")), "{}", end.0);
    cluster.check(&[Expected::Runs(&guest, "host-a")])?;
    watch.finish()?.check_path(guest.name(), &["host-a"])
}

#[test]
fn at_its_deadline_a_busy_guest_is_stopped_and_moves() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &busy())?;
    let cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[&guest])?;
    let flags = [
        &HOPELESS[..],
        &["--deadline", "6s", "--on-deadline", "pause-and-finish"],
    ]
    .concat();
    let id = cluster.begin_with(&guest, "host-b", &flags)?.id().to_string();
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    ensure!(
        end.actions().contains(&("pause-and-finish", "", "control-loop")),
        "{}",
        end.0
    );
    let blackout = end.0["summary"]["blackout"].as_f64().context("no blackout")?;
    cluster.check(&[Expected::Runs(&guest, "host-b")])?;
    let report = watch.finish()?;
    println!(
        "blackout {blackout} s in the record, {:?} by ICMP",
        report.guest(guest.name()).blackout()
    );
    // From the stop by the agent, not from QEMU's own at the end.
    ensure!(blackout > 0.5, "{blackout} s: 128 MiB were to be sent at 30 MiB/s");
    report.check_path(guest.name(), &["host-a", "host-b"])
}

#[test]
fn a_guest_is_stopped_to_finish_when_an_operator_says_so() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &busy())?;
    let cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[&guest])?;
    let id = cluster.begin_with(&guest, "host-b", &HOPELESS)?.id().to_string();
    sending(&cluster, &id)?;
    let adjusted = cluster.adjust(&id, &["--pause-and-finish"])?;
    let alice = "spiffe://drover.local/user/alice";
    ensure!(
        adjusted.actions().contains(&("pause-and-finish", "", alice)),
        "{}",
        adjusted.0
    );
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    cluster.check(&[Expected::Runs(&guest, "host-b")])?;
    watch.finish()?.check_path(guest.name(), &["host-a", "host-b"])?;
    // At rest there is nothing to adjust.
    let refused = cluster.drover(&["migration", "adjust", &id, "--bandwidth", "none"])?;
    ensure!(
        refused.code == 3 && refused.stderr.contains("is at rest"),
        "{refused:?}"
    );
    Ok(())
}

#[test]
fn a_limit_that_is_lifted_in_flight_lets_the_guest_arrive() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    // At 1 MiB/s it would take longer than a test waits.
    let guest = lab.start_guest("host-a", &GuestSpec::new("idle").memory_mib(512).fill_mib(300))?;
    let cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[&guest])?;
    let flags = ["--bandwidth", "1MiB/s", "--parallel", "2"];
    let id = cluster.begin_with(&guest, "host-b", &flags)?.id().to_string();
    sending(&cluster, &id)?;
    let adjusted = cluster.adjust(&id, &["--bandwidth", "none"])?;
    ensure!(
        adjusted.0["policy"]["bandwidth_limit_bytes_per_second"] == 0,
        "{}",
        adjusted.0
    );
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    let alice = "spiffe://drover.local/user/alice";
    ensure!(end.actions().contains(&("bandwidth", "none", alice)), "{}", end.0);
    cluster.check(&[Expected::Runs(&guest, "host-b")])?;
    watch.finish()?.check_path(guest.name(), &["host-a", "host-b"])
}

#[test]
fn qemu_is_given_a_longer_blackout_once_rounds_stop_shrinking_and_what_is_adjusted_at_once() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &busy())?;
    let cluster = Cluster::start(&lab)?;
    let in_qemu = || -> Result<u64> {
        let said = lab.host("host-a").virsh(&["migrate-getmaxdowntime", guest.name()])?;
        said.trim().parse().with_context(|| said.clone())
    };
    // Even where it hardly gets to run it writes faster than this.
    let flags = ["--bandwidth", "10MiB/s", "--max-downtime", "400ms"];
    let id = cluster.begin_with(&guest, "host-b", &flags)?.id().to_string();
    sending(&cluster, &id)?;
    let grown = cluster.wait_for(&id, "to be given the whole blackout", |now| {
        now.actions().contains(&("max-downtime", "400 ms", "control-loop"))
    })?;
    let steps: Vec<_> = grown.actions().iter().map(|(_, value, _)| value.to_string()).collect();
    ensure!(steps.last().is_some_and(|last| last == "400 ms"), "{steps:?}");
    ensure!(in_qemu()? == 400, "{}", in_qemu()?);
    let began = Instant::now();
    let adjusted = cluster.adjust(&id, &["--max-downtime", "123ms"])?;
    // With the command's start, in a node of its own.
    println!("adjusted, and in force, after {} ms", began.elapsed().as_millis());
    ensure!(in_qemu()? == 123, "{}", in_qemu()?);
    ensure!(adjusted.0["policy"]["max_downtime"] == 0.123, "{}", adjusted.0);
    cluster.drover(&["migration", "cancel", &id])?;
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "CANCELLED", "{}", end.0);
    cluster.check(&[Expected::Runs(&guest, "host-a")])
}
