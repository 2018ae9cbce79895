//! What only a person can decide, on real hosts: a host goes away for good, an operator says so, and its agent comes
//! back all the same.

use std::time::Duration;

use anyhow::{Result, ensure};
use drover_tests::cluster::{Cluster, ClusterOptions, Expected, Migration, Process};
use drover_tests::{Guest, GuestSpec, Lab, Network, wait_until};

/// The guest runs at its destination, and the source is about to remove its copy.
const CONFIRMING: &str = "source.confirming";

/// A guest that takes some seconds to send, on its way.
fn on_its_way(cluster: &Cluster<'_>, guest: &Guest) -> Result<String> {
    cluster.host("host-a").link(Network::Management).limit_mbit(Some(200))?;
    let id = cluster.begin(guest, "host-b")?.id().to_string();
    cluster.wait_for(&id, "to send memory", |now| {
        now.0["progress"]["memory_sent_bytes"].as_u64() > Some(1 << 20)
    })?;
    Ok(id)
}

fn busy() -> GuestSpec {
    GuestSpec::new("busy").fill_mib(160).dirty_mib_per_second(5)
}

/// The record shows which host it waits for.
fn waits_for(cluster: &Cluster<'_>, id: &str, host: &str) -> Result<Migration> {
    cluster.wait_for(id, &format!("to wait for {host}"), |now| {
        let waiting = &now.0["waiting_for"];
        waiting["reason"] == "HOST_UNREACHABLE" && waiting["host"] == format!("hosts/{host}")
    })
}

fn word(migration: &Migration) -> String {
    migration.0["resolution"].to_string()
}

#[test]
fn a_destination_that_is_gone_is_done_without_and_forgets_its_part_when_it_is_back() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &busy())?;
    let mut cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[&guest])?;
    let id = on_its_way(&cluster, &guest)?;
    cluster.kill_agent("host-b")?;
    waits_for(&cluster, &id, "host-b")?;
    let refused = cluster.drover(&["migration", "resolve", &id, "--source-is-fenced", "--yes"])?;
    ensure!(
        refused.code != 0,
        "the source answers, and was taken for fenced: {}",
        refused.stdout
    );
    let said = cluster.drover(&["migration", "resolve", &id, "--destination-is-fenced", "--yes"])?;
    ensure!(said.code == 0, "{}", said.stderr);
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "FAILED", "{}", end.0);
    ensure!(
        end.0["resolution"]["operator"]
            .as_str()
            .is_some_and(|by| by.ends_with("/user/alice")),
        "{}",
        word(&end)
    );
    cluster.start_agent("host-b")?;
    wait_until("the agent to have adopted it", Duration::from_secs(30), || {
        let now = cluster.migration(&id)?;
        Ok(now.0["resolution"]["adopt_time"].is_string().then_some(()))
    })?;
    ensure!(
        cluster.migration(&id)?.0["resolution"]["copy_ran"] != true,
        "a copy ran"
    );
    cluster.check(&[Expected::Runs(&guest, "host-a")])?;
    watch.finish()?.check_path(guest.name(), &["host-a"])?;
    // Nothing stands in the way of the next try.
    cluster.host("host-a").link(Network::Management).limit_mbit(None)?;
    cluster.migrate(&guest, "host-b")?;
    cluster.check(&[Expected::Runs(&guest, "host-b")])
}

#[test]
fn a_source_that_is_gone_after_the_switch_removes_its_copy_when_it_is_back() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &busy())?;
    let options = ClusterOptions {
        fault_points: true,
        ..ClusterOptions::default()
    };
    let mut cluster = Cluster::start_with(&lab, options)?;
    let watch = lab.watch(&[&guest])?;
    let source = Process::Agent("host-a".to_owned());
    cluster.arm(&source, CONFIRMING)?;
    let id = on_its_way(&cluster, &guest)?;
    // The guest runs at the destination, and the source's copy is still there.
    cluster.wait_for_point(&source, CONFIRMING)?;
    cluster.kill_agent("host-a")?;
    cluster.release()?;
    waits_for(&cluster, &id, "host-a")?;
    let said = cluster.drover(&["migration", "resolve", &id, "--source-is-fenced", "--yes"])?;
    ensure!(said.code == 0, "{}", said.stderr);
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    cluster.start_agent("host-a")?;
    wait_until("the agent to have adopted it", Duration::from_secs(30), || {
        let now = cluster.migration(&id)?;
        Ok(now.0["resolution"]["adopt_time"].is_string().then_some(()))
    })?;
    cluster.check(&[Expected::Runs(&guest, "host-b")])?;
    watch.finish()?.check_path(guest.name(), &["host-a", "host-b"])
}
