//! The parts that die in a transfer, and what the guest notices: nothing.

use anyhow::{Result, ensure};
use drover_tests::cluster::{Cluster, Expected};
use drover_tests::{Guest, GuestSpec, Lab, Network};

/// A guest on its way, which would take half a minute.
fn on_its_way(cluster: &Cluster<'_>, guest: &Guest) -> Result<String> {
    cluster.host("host-a").link(Network::Management).limit_mbit(Some(40))?;
    let id = cluster.begin(guest, "host-b")?.id().to_string();
    cluster.wait_for(&id, "to send memory", |now| {
        now.0["progress"]["memory_sent_bytes"].as_u64() > Some(1 << 20)
    })?;
    Ok(id)
}

fn busy() -> GuestSpec {
    GuestSpec::new("busy").fill_mib(160).dirty_mib_per_second(5)
}

#[test]
fn the_source_agent_dies_in_transfer_and_the_guest_runs_on() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &busy())?;
    let mut cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[&guest])?;
    let id = on_its_way(&cluster, &guest)?;
    cluster.kill_agent("host-a")?;
    cluster.start_agent("host-a")?;
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "FAILED", "{}", end.0);
    cluster.check(&[Expected::Runs(&guest, "host-a")])?;
    watch.finish()?.check_path(guest.name(), &["host-a"])?;
    // Nothing stands in the way of the next try.
    cluster.host("host-a").link(Network::Management).limit_mbit(None)?;
    cluster.migrate(&guest, "host-b")?;
    cluster.check(&[Expected::Runs(&guest, "host-b")])
}

#[test]
fn the_destination_agent_dies_in_transfer_and_the_guest_runs_on() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &busy())?;
    let mut cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[&guest])?;
    let id = on_its_way(&cluster, &guest)?;
    cluster.kill_agent("host-b")?;
    cluster.start_agent("host-b")?;
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "FAILED", "{}", end.0);
    cluster.check(&[Expected::Runs(&guest, "host-a")])?;
    watch.finish()?.check_path(guest.name(), &["host-a"])
}

#[test]
fn the_controller_dies_in_transfer_and_the_guest_arrives_all_the_same() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &busy())?;
    let mut cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[&guest])?;
    let id = on_its_way(&cluster, &guest)?;
    cluster.kill_controller()?;
    cluster.host("host-a").link(Network::Management).limit_mbit(None)?;
    // The agents finish among themselves.
    drover_tests::wait_until(
        "the guest to run on host-b",
        std::time::Duration::from_secs(120),
        || {
            let copies = lab.running_copies(&guest)?;
            Ok(copies.iter().any(|copy| copy.host == "host-b").then_some(()))
        },
    )?;
    cluster.start_controller()?;
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    cluster.check(&[Expected::Runs(&guest, "host-b")])?;
    watch.finish()?.check_path(guest.name(), &["host-a", "host-b"])
}
