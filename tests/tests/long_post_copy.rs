//! Post-copy whose stream breaks, by the network and by the death of whoever carries it: repaired each time, and every
//! page of the guest is what it wrote.

use anyhow::{Result, ensure};
use drover_tests::cluster::{Cluster, Expected, Migration, Process};
use drover_tests::{Guest, GuestSpec, Lab, Network, Watch};

const MIB: u64 = 1 << 20;

fn stage(now: &Migration) -> &str {
    now.0["progress"]["stage"].as_str().unwrap_or_default()
}

/// It writes all over its memory, faster than that is sent.
fn busy() -> GuestSpec {
    GuestSpec::new("busy").fill_mib(160).dirty_mib_per_second(60)
}

/// The guest runs at host-b, and most of its memory is at host-a: enough to break the stream some times.
fn gone_over(cluster: &Cluster<'_>, guest: &Guest, bandwidth: &str) -> Result<String> {
    let flags = ["--bandwidth", bandwidth, "--allow-post-copy"];
    let id = cluster.begin_with(guest, "host-b", &flags)?.id().to_string();
    cluster.wait_for(&id, "to send memory", |now| {
        now.0["progress"]["memory_sent_bytes"].as_u64() > Some(MIB)
    })?;
    cluster.adjust(&id, &["--post-copy-now"])?;
    flows(cluster, &id)?;
    Ok(id)
}

fn flows(cluster: &Cluster<'_>, id: &str) -> Result<()> {
    cluster.wait_for(id, "to flow", |now| stage(now).ends_with("POST_COPY"))?;
    Ok(())
}

fn arrives(cluster: &Cluster<'_>, guest: &Guest, id: &str) -> Result<()> {
    let end = cluster.wait_for_rest(id)?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    let status = guest.verify()?;
    ensure!(status.memory_errors == 0, "{status:?}");
    cluster.check(&[Expected::Runs(guest, "host-b")])
}

/// How often libvirt was told to send, and did.
fn repairs(end: &Migration) -> usize {
    let calls = end.0["calls"].as_array().map(Vec::as_slice).unwrap_or_default();
    let sent = calls.iter().filter(|call| call["call"] == "libvirt.perform");
    sent.filter(|call| call["error"].as_str().unwrap_or_default().is_empty())
        .count()
        - 1
}

/// The pages flowed again after a break: the source's agent has said so, whichever of its lives it was.
fn was_repaired(cluster: &Cluster<'_>, id: &str) -> Result<()> {
    let log = std::fs::read_to_string(cluster.agent_log("host-a")?)?;
    let repaired = log
        .lines()
        .any(|line| line.contains("pages flow again") && line.contains(id));
    ensure!(repaired, "nothing was broken that had to be repaired");
    Ok(())
}

/// Never two copies, all the time, and from the one host to the other. No packet is sent to the guest for it: QEMU
/// itself would wait for pages that are missing (docs/failures.md).
fn never_twice(watch: Watch, guest: &Guest) -> Result<()> {
    watch.finish()?.check_path(guest.name(), &["host-a", "host-b"])
}

/// Until so much more has come: what the guest's kernel needs to go on is there by then.
fn goes_on(cluster: &Cluster<'_>, id: &str, mib: u64) -> Result<()> {
    let owed = |now: &Migration| now.0["progress"]["memory_remaining_bytes"].as_u64().unwrap_or(u64::MAX);
    let before = owed(&cluster.migration(id)?);
    cluster.wait_for(id, "to go on", |now| owed(now).saturating_add(mib * MIB) < before)?;
    Ok(())
}

#[test]
fn a_stream_that_is_cut_five_times_is_repaired_five_times() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &busy())?;
    let cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[])?;
    let id = gone_over(&cluster, &guest, "8MiB/s")?;
    let (a, b) = (cluster.host("host-a"), cluster.host("host-b"));
    for _ in 0..5 {
        goes_on(&cluster, &id, 16)?;
        // So that it is seen: it would be repaired at once.
        b.link(Network::Management).separate_from(a.address())?;
        a.link(Network::Management).reset_connections(b.address())?;
        b.link(Network::Management).reset_connections(a.address())?;
        cluster.wait_for(&id, "to be broken", |now| stage(now).ends_with("POST_COPY_FAILED"))?;
        b.link(Network::Management).join_again()?;
        flows(&cluster, &id)?;
    }
    arrives(&cluster, &guest, &id)?;
    let end = cluster.migration(&id)?;
    ensure!(repairs(&end) >= 5, "{}", end.0);
    never_twice(watch, &guest)
}

/// Something breaks the stream of a guest in post-copy, and it arrives.
fn disturbed(happens: impl FnOnce(&mut Cluster<'_>) -> Result<()>) -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &busy())?;
    let mut cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[])?;
    let id = gone_over(&cluster, &guest, "8MiB/s")?;
    goes_on(&cluster, &id, 16)?;
    happens(&mut cluster)?;
    arrives(&cluster, &guest, &id)?;
    was_repaired(&cluster, &id)?;
    never_twice(watch, &guest)
}

#[test]
fn each_agent_dies_in_post_copy_and_the_guest_arrives() -> Result<()> {
    for dies in ["host-a", "host-b"] {
        disturbed(|cluster| {
            cluster.kill_agent(dies)?;
            cluster.start_agent(dies)
        })?;
    }
    Ok(())
}

#[test]
fn both_agents_die_at_once_in_post_copy_and_the_guest_arrives() -> Result<()> {
    disturbed(|cluster| {
        for host in ["host-a", "host-b"] {
            cluster.kill_agent(host)?;
        }
        // The one that has the pages finds nobody at first.
        for host in ["host-a", "host-b"] {
            cluster.start_agent(host)?;
        }
        Ok(())
    })
}

#[test]
fn an_agent_and_the_controller_die_at_once_in_post_copy_and_the_guest_arrives() -> Result<()> {
    for dies in ["host-a", "host-b"] {
        disturbed(|cluster| {
            cluster.kill_agent(dies)?;
            cluster.kill_controller()?;
            cluster.start_controller()?;
            cluster.start_agent(dies)
        })?;
    }
    Ok(())
}

#[test]
fn a_stream_that_breaks_while_no_controller_runs_is_repaired_by_the_agents() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &busy())?;
    let mut cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[])?;
    let id = gone_over(&cluster, &guest, "8MiB/s")?;
    goes_on(&cluster, &id, 16)?;
    cluster.kill_controller()?;
    let (a, b) = (cluster.host("host-a"), cluster.host("host-b"));
    a.link(Network::Management).reset_connections(b.address())?;
    let limit = std::time::Duration::from_secs(120);
    drover_tests::wait_until("the guest to be on host-b alone", limit, || {
        let mut copies = lab.domains()?;
        copies.retain(|copy| copy.uuid == guest.uuid() && copy.is_active());
        Ok((copies.len() == 1 && copies[0].host == "host-b").then_some(()))
    })?;
    cluster.start_controller()?;
    arrives(&cluster, &guest, &id)?;
    let end = cluster.migration(&id)?;
    ensure!(repairs(&end) >= 1, "{}", end.0);
    never_twice(watch, &guest)
}

#[test]
fn a_guest_that_is_lost_in_post_copy_is_kept_until_somebody_has_ended_what_is_left() -> Result<()> {
    for dies in ["host-a", "host-b"] {
        let mut lab = Lab::builder().start()?;
        let guest = lab.start_guest("host-a", &busy())?;
        let cluster = Cluster::start(&lab)?;
        let watch = lab.watch(&[])?;
        let id = gone_over(&cluster, &guest, "8MiB/s")?;
        goes_on(&cluster, &id, 16)?;
        cluster.host(dies).virsh(&["destroy", guest.name()])?;
        let remedy = |now: &Migration| now.0["waiting_for"]["remedy"].as_str().unwrap_or_default().to_owned();
        cluster.wait_for(&id, "to say that it is lost", |now| remedy(now).contains("is lost"))?;
        let word = ["migration", "resolve", &id, "--destination-is-fenced", "--yes"];
        let refused = cluster.drover(&word)?;
        ensure!(
            refused.code != 0,
            "{dies}: what is left is taken from nobody: {refused:?}"
        );
        let left = if dies == "host-a" { "host-b" } else { "host-a" };
        let kept = cluster.host(left).virsh(&["domstate", guest.name()])?;
        ensure!(["running", "paused"].contains(&kept.trim()), "{dies}: {kept}");
        cluster.host(left).virsh(&["destroy", guest.name()])?;
        cluster.wait_for(&id, "to say that nobody has it", |now| {
            remedy(now).contains("no copy runs anywhere")
        })?;
        let said = cluster.drover(&word)?;
        ensure!(said.code == 0, "{dies}: {said:?}");
        let end = cluster.wait_for_rest(&id)?;
        ensure!(end.state() == "GUEST_ENDED", "{dies}: {}", end.0);
        cluster.check(&[Expected::Ended(&guest)])?;
        watch.finish()?.check()?;
    }
    Ok(())
}

#[test]
fn a_host_that_is_off_for_good_in_post_copy_takes_the_guest_with_it_and_the_record_can_be_closed() -> Result<()> {
    for (off, left, flag) in [
        ("host-a", "host-b", "--source-is-fenced"),
        ("host-b", "host-a", "--destination-is-fenced"),
    ] {
        let mut lab = Lab::builder().start()?;
        let guest = lab.start_guest("host-a", &busy())?;
        let mut cluster = Cluster::start(&lab)?;
        let id = gone_over(&cluster, &guest, "8MiB/s")?;
        goes_on(&cluster, &id, 16)?;
        cluster.host(off).power_off()?;
        cluster.wait_for(&id, "to say what it waits for, and what to do", |now| {
            let wait = &now.0["waiting_for"];
            let told = wait["remedy"].as_str().unwrap_or_default();
            wait["reason"] == "HOST_UNREACHABLE"
                && wait["host"] == format!("hosts/{off}")
                && told.contains("virsh destroy")
                && told.contains(flag)
        })?;
        let word = ["migration", "resolve", &id, flag, "--yes"];
        let refused = cluster.drover(&word)?;
        ensure!(
            refused.code != 0,
            "{off}: what is left is taken from nobody: {refused:?}"
        );
        cluster.host(left).virsh(&["destroy", guest.name()])?;
        let said = cluster.drover(&word)?;
        ensure!(said.code == 0, "{off}: {said:?}");
        let end = cluster.wait_for_rest(&id)?;
        ensure!(end.state() == "GUEST_ENDED", "{off}: {}", end.0);
        cluster.host(off).power_on()?;
        cluster.start_agent(off)?;
        cluster.check(&[Expected::Ended(&guest)])?;
    }
    Ok(())
}

#[test]
fn the_sources_agent_dies_when_every_page_has_gone_and_its_copy_goes_all_the_same() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &busy())?;
    let mut cluster = Cluster::start_with_fault_points(&lab)?;
    let watch = lab.watch(&[&guest])?;
    let source = Process::Agent("host-a".to_owned());
    cluster.arm(&source, "source.confirming")?;
    let id = gone_over(&cluster, &guest, "20MiB/s")?;
    cluster.wait_for_point(&source, "source.confirming")?;
    cluster.kill_agent("host-a")?;
    cluster.release()?;
    cluster.start_agent("host-a")?;
    arrives(&cluster, &guest, &id)?;
    watch.finish()?.check_path(guest.name(), &["host-a", "host-b"])
}
