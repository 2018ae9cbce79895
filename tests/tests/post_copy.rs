//! Post-copy on real hosts: a guest that writes faster than the link moves, unharmed, and nothing is sent for ever.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drover_tests::cluster::{Cluster, Expected, Migration};
use drover_tests::{Guest, GuestSpec, Lab, Network};

const MIB: u64 = 1 << 20;

/// It writes more than the link carries, all over its memory.
fn busy() -> GuestSpec {
    GuestSpec::new("busy").fill_mib(160).dirty_mib_per_second(60)
}

fn stage(now: &Migration) -> &str {
    now.0["progress"]["stage"].as_str().unwrap_or_default()
}

/// Every page of the guest's memory is what it wrote, after all of it was looked at.
fn memory_is_right(guest: &Guest) -> Result<()> {
    let status = guest.verify()?;
    ensure!(status.memory_errors == 0, "{status:?}");
    Ok(())
}

/// What it sent in all, of what it has, and how long it stood still.
fn report(what: &str, end: &Migration, seen: Duration) -> Result<()> {
    let sent = end.0["summary"]["tunnel_bytes"].as_u64().context("no tunnel_bytes")?;
    let total = end.0["progress"]["memory_total_bytes"].as_u64().unwrap_or(0);
    println!(
        "{what}: {} MiB sent of {} MiB, blackout {} in the record, {seen:?} by ICMP",
        sent / MIB,
        total / MIB,
        end.0["summary"]["blackout"]
    );
    Ok(())
}

#[test]
fn a_guest_that_writes_faster_than_the_link_goes_over_by_itself() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &busy())?;
    let cluster = Cluster::start(&lab)?;
    cluster.host("host-a").link(Network::Management).limit_mbit(Some(100))?;
    let watch = lab.watch(&[&guest])?;
    let id = cluster
        .begin_with(&guest, "host-b", &["--allow-post-copy", "--max-downtime", "200ms"])?
        .id()
        .to_string();
    let over = cluster.wait_for(&id, "to go post-copy", |now| {
        stage(now).ends_with("POST_COPY") || now.at_rest()
    })?;
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    ensure!(
        stage(&over).ends_with("POST_COPY"),
        "it was not seen in post-copy: {}",
        over.0
    );
    ensure!(over.0["guest_host"] == "hosts/host-b", "told at the switch: {}", over.0);
    ensure!(end.actions().contains(&("post-copy", "", "control-loop")), "{}", end.0);
    memory_is_right(&guest)?;
    cluster.check(&[Expected::Runs(&guest, "host-b")])?;
    let seen = watch.finish()?;
    report("by itself", &end, seen.guest(guest.name()).blackout())?;
    seen.check_path(guest.name(), &["host-a", "host-b"])
}

#[test]
fn a_guest_goes_over_when_an_operator_says_so_and_cannot_be_cancelled_then() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &busy())?;
    let cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[&guest])?;
    let flags = [
        "--bandwidth",
        "20MiB/s",
        "--deadline",
        "1h",
        "--on-deadline",
        "post-copy",
    ];
    let id = cluster.begin_with(&guest, "host-b", &flags)?.id().to_string();
    cluster.wait_for(&id, "to send memory", |now| {
        now.0["progress"]["memory_sent_bytes"].as_u64() > Some(MIB)
    })?;
    cluster.adjust(&id, &["--post-copy-now"])?;
    cluster.wait_for(&id, "to go post-copy", |now| stage(now).ends_with("POST_COPY"))?;
    cluster.drover(&["migration", "cancel", "--no-wait", &id])?;
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    ensure!(end.0["cancelled_too_late"] == true, "{}", end.0);
    memory_is_right(&guest)?;
    cluster.check(&[Expected::Runs(&guest, "host-b")])?;
    let seen = watch.finish()?;
    report("by an operator", &end, seen.guest(guest.name()).blackout())?;
    seen.check_path(guest.name(), &["host-a", "host-b"])
}

#[test]
fn a_stream_that_is_cut_is_repaired_when_the_network_is_back() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    // It writes nothing, and nobody writes to it: QEMU itself never waits for a page (docs/failures.md).
    let guest = lab.start_guest("host-a", &GuestSpec::new("busy").fill_mib(64))?;
    let cluster = Cluster::start(&lab)?;
    // By the guest's own beats alone.
    let watch = lab.watch(&[])?;
    let flags = ["--bandwidth", "4MiB/s", "--allow-post-copy"];
    let id = cluster.begin_with(&guest, "host-b", &flags)?.id().to_string();
    cluster.wait_for(&id, "to send memory", |now| {
        now.0["progress"]["memory_sent_bytes"].as_u64() > Some(MIB)
    })?;
    cluster.adjust(&id, &["--post-copy-now"])?;
    let over = cluster.wait_for(&id, "to go post-copy", |now| stage(now).ends_with("POST_COPY"))?;
    let owed = |now: &Migration| now.0["progress"]["memory_remaining_bytes"].as_u64().unwrap_or(u64::MAX);
    cluster.wait_for(&id, "to go on", |now| owed(now).saturating_add(8 * MIB) < owed(&over))?;
    let (a, b) = (cluster.host("host-a"), cluster.host("host-b"));
    // The source hears of it at once; the destination hears nothing, and does not know.
    b.link(Network::Management).separate_from(a.address())?;
    a.link(Network::Management).reset_connections(b.address())?;
    cluster.wait_for(&id, "to be broken", |now| stage(now).ends_with("POST_COPY_FAILED"))?;
    cluster.drover(&["migration", "cancel", "--no-wait", &id])?;
    b.link(Network::Management).join_again()?;
    cluster.drover(&["migration", "retry", &id])?;
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    ensure!(end.0["cancelled_too_late"] == true, "{}", end.0);
    memory_is_right(&guest)?;
    cluster.check(&[Expected::Runs(&guest, "host-b")])?;
    watch.finish()?.check_path(guest.name(), &["host-a", "host-b"])
}
