//! Fencing, on real hosts. What only a person can decide: a host goes away for good, an operator says so, and its agent
//! comes back all the same; or a destination's QEMU dies while the guest is let go. And a controller that slept while
//! another one took over.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drover_tests::cluster::{Cluster, Expected, Migration, Process, Store};
use drover_tests::{Disk, Guest, GuestSpec, Lab, Network, wait_until};
use nix::sys::signal::Signal;

/// The guest runs at its destination, and the source is about to remove its copy.
const CONFIRMING: &str = "source.confirming";

/// The guest runs at its destination, and that is written there.
const RAN: &str = "destination.ran";

/// The guest's memory is at its destination, which is about to let it run; that is written there.
const RESUMING: &str = "destination.resuming";

/// A guest on its way, which takes half a minute unless the limit is lifted.
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

/// The record shows which host it waits for.
fn waits_for(cluster: &Cluster<'_>, id: &str, host: &str) -> Result<Migration> {
    cluster.wait_for(id, &format!("to wait for {host}"), |now| {
        let waiting = &now.0["waiting_for"];
        waiting["reason"] == "HOST_UNREACHABLE" && waiting["host"] == format!("hosts/{host}")
    })
}

/// The controller's log has one warning that this migration waits, with its id and the host.
fn told_once(cluster: &mut Cluster<'_>, id: &str, host: &str) -> Result<()> {
    let log = std::fs::read_to_string(cluster.controller()?.log())?;
    // Another host may have been late with an answer, on a loaded machine: that is another warning.
    let told: Vec<_> = log
        .lines()
        .filter(|line| line.contains("the migration waits: ") && line.contains(id) && line.contains(host))
        .collect();
    let right = matches!(told[..], [line] if line.contains(" WARN "));
    ensure!(right, "one warning that it waits for {host}: {told:#?}");
    Ok(())
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
    told_once(&mut cluster, &id, "host-b")?;
    cluster.start_agent("host-b")?;
    wait_until("the agent to have adopted it", Duration::from_secs(60), || {
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
    let mut cluster = Cluster::start_with_fault_points(&lab)?;
    let watch = lab.watch(&[&guest])?;
    let source = Process::Agent("host-a".to_owned());
    cluster.arm(&source, CONFIRMING)?;
    let id = on_its_way(&cluster, &guest)?;
    cluster.host("host-a").link(Network::Management).limit_mbit(None)?;
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
    wait_until("the agent to have adopted it", Duration::from_secs(60), || {
        let now = cluster.migration(&id)?;
        Ok(now.0["resolution"]["adopt_time"].is_string().then_some(()))
    })?;
    cluster.check(&[Expected::Runs(&guest, "host-b")])?;
    watch.finish()?.check_path(guest.name(), &["host-a", "host-b"])
}

#[test]
fn a_word_that_was_wrong_is_taken_back_where_the_source_could_not_run_the_guest() -> Result<()> {
    let disk = Disk::Shared {
        format: "qcow2",
        size_mib: 32,
    };
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &busy().disk(disk))?;
    let mut cluster = Cluster::start_with_fault_points(&lab)?;
    let watch = lab.watch(&[&guest])?;
    let destination = Process::Agent("host-b".to_owned());
    cluster.arm(&destination, RAN)?;
    let id = on_its_way(&cluster, &guest)?;
    cluster.host("host-a").link(Network::Management).limit_mbit(None)?;
    // The guest runs there, and nobody hears of it.
    cluster.wait_for_point(&destination, RAN)?;
    cluster.kill_agent("host-b")?;
    cluster.release()?;
    waits_for(&cluster, &id, "host-b")?;
    let said = cluster.drover(&["migration", "resolve", &id, "--destination-is-fenced", "--yes"])?;
    ensure!(said.code == 0, "{}", said.stderr);
    // Its QEMU holds the image: the source is told to run the guest, and cannot.
    cluster.wait_for(&id, "to have tried to give the guest back", |now| {
        let phases = now.0["phases"].as_array();
        phases.is_some_and(|phases| {
            phases
                .iter()
                .any(|phase| phase["detail"].as_str().is_some_and(|detail| detail.contains("lock")))
        })
    })?;
    let owner = cluster.drover(&["guest", "owner", guest.name()])?;
    ensure!(owner.code == 7, "nobody can say: {} {}", owner.stdout, owner.stderr);
    cluster.start_agent("host-b")?;
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    cluster.check(&[Expected::Runs(&guest, "host-b")])?;
    watch.finish()?.check_path(guest.name(), &["host-a", "host-b"])
}

/// Whether the guest had run there for a moment is known to nobody: no journal and no libvirt can tell.
#[test]
fn a_destination_whose_qemu_dies_while_the_guest_is_let_go_waits_for_a_word_of_a_person() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &busy())?;
    let cluster = Cluster::start_with_fault_points(&lab)?;
    let watch = lab.watch(&[&guest])?;
    let destination = Process::Agent("host-b".to_owned());
    cluster.arm(&destination, RESUMING)?;
    let id = on_its_way(&cluster, &guest)?;
    cluster.host("host-a").link(Network::Management).limit_mbit(None)?;
    cluster.wait_for_point(&destination, RESUMING)?;
    lab.kill_qemu("host-b", &guest)?;
    cluster.release()?;
    let waits = cluster.wait_for(&id, "to ask for a person", |now| {
        now.0["waiting_for"]["reason"] == "RESOLVE_NEEDED"
    })?;
    let remedy = waits.0["waiting_for"]["remedy"].as_str().unwrap_or_default();
    ensure!(remedy.contains("--destination-is-fenced"), "{}", waits.0);
    let owner = cluster.drover(&["guest", "owner", guest.name()])?;
    ensure!(owner.code == 7, "nobody can say: {} {}", owner.stdout, owner.stderr);
    ensure!(lab.running_copies(&guest)?.is_empty(), "nobody lets a copy run before");
    let said = cluster.drover(&["migration", "resolve", &id, "--destination-is-fenced", "--yes"])?;
    ensure!(said.code == 0, "{}", said.stderr);
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "FAILED", "{}", end.0);
    cluster.check(&[Expected::Runs(&guest, "host-a")])?;
    let owner = cluster.drover(&["guest", "owner", guest.name()])?;
    ensure!(owner.code == 0, "it is known again: {} {}", owner.stdout, owner.stderr);
    watch.finish()?.check_path(guest.name(), &["host-a"])
}

/// A controller stops in the middle of a migration (SIGSTOP), a second one completes it, and the first one goes on.
fn one_that_slept_commands_nothing(store: Store) -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &busy())?;
    let mut cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[&guest])?;
    let id = on_its_way(&cluster, &guest)?;
    cluster.controller()?.signal(Signal::SIGSTOP)?;
    let successor = cluster.start_successor(store)?;
    cluster.host("host-a").link(Network::Management).limit_mbit(None)?;
    let end = wait_until("the second one to complete it", Duration::from_secs(60), || {
        let run = cluster.drover_at_successor(&["migration", "get", &id, "-o", "json"])?;
        ensure!(run.code == 0, "{}", run.stderr);
        let record = Migration(serde_json::from_str(&run.stdout)?);
        Ok(record.at_rest().then_some(record))
    })?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    // It does not know yet, and goes on where it was; it is told to begin something new besides.
    cluster.controller()?.signal(Signal::SIGCONT)?;
    let mut said = String::new();
    let known = wait_until("the first one to know", Duration::from_secs(60), || {
        let run = cluster.drover(&["migrate", guest.name(), "--to", "host-a", "--no-wait"])?;
        said = format!("{}{}", run.stdout, run.stderr);
        Ok((run.code != 0 && said.contains("in office")).then_some(()))
    });
    known.with_context(|| format!("it says: {said}"))?;
    let log = std::fs::read_to_string(cluster.controller()?.log())?;
    ensure!(log.contains("no longer in office"), "it did not write so");
    cluster.inherit(successor)?;
    cluster.check(&[Expected::Runs(&guest, "host-b")])?;
    watch.finish()?.check_path(guest.name(), &["host-a", "host-b"])?;
    // The one that is in office now is obeyed.
    cluster.migrate(&guest, "host-a")?;
    cluster.check(&[Expected::Runs(&guest, "host-a")])
}

#[test]
fn a_controller_that_slept_while_another_took_over_its_store_commands_nothing() -> Result<()> {
    one_that_slept_commands_nothing(Store::Same)
}

#[test]
fn a_controller_that_slept_while_another_took_over_a_copy_of_its_store_commands_nothing() -> Result<()> {
    one_that_slept_commands_nothing(Store::Copy)
}
