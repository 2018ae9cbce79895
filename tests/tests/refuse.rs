//! What cannot or must not be done is refused, with a reason, and the guest does not notice.

use anyhow::{Result, ensure};
use drover_tests::cluster::{Cluster, Expected, expect};
use drover_tests::{Disk, Guest, GuestSpec, Lab, Network, wait_until};
use std::time::Duration;

/// Refused by a check before anything was touched.
const REFUSED: i32 = 3;
const NOT_FOUND: i32 = 4;

fn lab_with(spec: &GuestSpec) -> Result<(Lab, Guest)> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", spec)?;
    Ok((lab, guest))
}

#[test]
fn unknown_names_are_refused_with_a_next_step() -> Result<()> {
    let (lab, guest) = lab_with(&GuestSpec::new("database"))?;
    let cluster = Cluster::start(&lab)?;
    expect(
        &cluster.drover(&["migrate", "databse", "--to", "host-b"])?,
        NOT_FOUND,
        &["databse", "database"],
    )?;
    let nowhere = "11111111-2222-4333-8444-555555555555";
    expect(
        &cluster.drover(&["migrate", nowhere, "--to", "host-b"])?,
        NOT_FOUND,
        &[nowhere],
    )?;
    expect(
        &cluster.drover(&["migrate", "database", "--to", "host-z"])?,
        NOT_FOUND,
        &["host-z"],
    )?;
    expect(&cluster.drover(&["migration", "get", nowhere])?, NOT_FOUND, &[nowhere])?;
    let same = cluster.drover(&["migrate", "database", "--to", "host-a"])?;
    expect(&same, REFUSED, &["on host-a already"])?;
    cluster.check(&[Expected::Runs(&guest, "host-a")])
}

/// Either refused at once, or it waits for the host and says so; then cancelling it is the way out.
fn is_no_destination(cluster: &Cluster<'_>, guest: &Guest) -> Result<()> {
    let Ok(migration) = cluster.begin(guest, "host-b") else {
        return Ok(());
    };
    let id = migration.id().to_string();
    cluster.wait_for(&id, "to name the host that is away", |now| {
        now.at_rest() || now.0["waiting_for"]["host"] == "hosts/host-b"
    })?;
    if !cluster.migration(&id)?.at_rest() {
        let cancel = cluster.drover(&["migration", "cancel", &id])?;
        ensure!(cancel.code == 0, "{cancel:?}");
    }
    let end = cluster.wait_for_rest(&id)?;
    ensure!(["CANCELLED", "FAILED"].contains(&end.state()), "{}", end.0);
    Ok(())
}

#[test]
fn a_host_whose_agent_is_away_is_no_destination() -> Result<()> {
    let (lab, guest) = lab_with(&GuestSpec::new("web"))?;
    let mut cluster = Cluster::start(&lab)?;
    cluster.kill_agent("host-b")?;
    is_no_destination(&cluster, &guest)?;
    cluster.start_agent("host-b")?;
    cluster.check(&[Expected::Runs(&guest, "host-a")])
}

#[test]
fn a_host_that_is_off_is_no_destination_and_is_one_when_it_is_back() -> Result<()> {
    let (lab, guest) = lab_with(&GuestSpec::new("web"))?;
    let mut cluster = Cluster::start(&lab)?;
    cluster.host("host-b").power_off()?;
    let mut watch = lab.watch(&[&guest])?;
    is_no_destination(&cluster, &guest)?;
    ensure!(lab.running_copies(&guest)?.len() == 1, "the guest noticed");
    cluster.host("host-b").power_on()?;
    watch.include(cluster.host("host-b"))?;
    cluster.start_agent("host-b")?;
    cluster.check(&[Expected::Runs(&guest, "host-a")])?;
    watch.finish()?.check_path("web", &["host-a"])?;
    cluster.migrate(&guest, "host-b")?;
    cluster.check(&[Expected::Runs(&guest, "host-b")])
}

#[test]
fn a_guest_whose_uuid_is_there_already_is_refused() -> Result<()> {
    let (lab, guest) = lab_with(&GuestSpec::new("web"))?;
    let cluster = Cluster::start(&lab)?;
    let xml = cluster.host("host-a").virsh(&["dumpxml", "--inactive", "web"])?;
    let path = lab.layout().folder().join("twin.xml");
    std::fs::write(&path, xml.replace("<name>web</name>", "<name>twin</name>"))?;
    cluster.host("host-b").virsh(&["define", &path.display().to_string()])?;
    let run = cluster.drover(&["migrate", "web", "--to", "host-b", "--from", "host-a"])?;
    expect(&run, REFUSED, &["uuid-free"])?;
    cluster.host("host-b").virsh(&["undefine", "twin"])?;
    cluster.check(&[Expected::Runs(&guest, "host-a")])
}

#[test]
fn a_name_that_is_taken_there_is_refused() -> Result<()> {
    let (lab, guest) = lab_with(&GuestSpec::new("web"))?;
    let cluster = Cluster::start(&lab)?;
    let xml = cluster.host("host-a").virsh(&["dumpxml", "--inactive", "web"])?;
    let path = lab.layout().folder().join("namesake.xml");
    std::fs::write(
        &path,
        xml.replace(&guest.uuid().to_string(), "11111111-2222-4333-8444-555555555555"),
    )?;
    cluster.host("host-b").virsh(&["define", &path.display().to_string()])?;
    let run = cluster.drover(&["migrate", &guest.uuid().to_string(), "--to", "host-b"])?;
    expect(&run, REFUSED, &["name-free"])?;
    // The name alone is ambiguous now, and the refusal says which there are.
    let ambiguous = cluster.drover(&["migrate", "web", "--to", "host-b"])?;
    ensure!(
        ambiguous.code != 0 && ambiguous.stderr.contains("host-b"),
        "{ambiguous:?}"
    );
    cluster.host("host-b").virsh(&["undefine", "web"])?;
    cluster.check(&[Expected::Runs(&guest, "host-a")])
}

#[test]
fn a_disk_that_only_one_host_has_is_refused() -> Result<()> {
    let (lab, guest) = lab_with(&GuestSpec::new("web").disk(Disk::Local {
        format: "raw",
        size_mib: 8,
    }))?;
    let cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[&guest])?;
    expect(
        &cluster.drover(&["migrate", "web", "--to", "host-b"])?,
        REFUSED,
        &["storage", "/srv/local"],
    )?;
    cluster.check(&[Expected::Runs(&guest, "host-a")])?;
    watch.finish()?.check_path("web", &["host-a"])
}

#[test]
fn the_same_request_twice_makes_one_migration() -> Result<()> {
    let (lab, guest) = lab_with(&GuestSpec::new("web"))?;
    let cluster = Cluster::start(&lab)?;
    let request = uuid::Uuid::new_v4().to_string();
    let ask = |to: &str| {
        cluster.drover(&[
            "migrate",
            "web",
            "--to",
            to,
            "--from",
            "host-a",
            "--request-id",
            &request,
            "--no-wait",
            "-o",
            "json",
        ])
    };
    let first: serde_json::Value = serde_json::from_str(&ask("host-b")?.stdout)?;
    let second: serde_json::Value = serde_json::from_str(&ask("host-b")?.stdout)?;
    ensure!(first["name"] == second["name"], "{first} and {second}");
    let id = first["name"]
        .as_str()
        .unwrap_or_default()
        .trim_start_matches("migrations/")
        .to_string();
    cluster.wait_for_rest(&id)?;
    let other = ask("host-a")?;
    ensure!(
        other.code != 0,
        "another request with the same id was accepted: {}",
        other.stdout
    );
    let all = cluster.drover_json(&["migration", "list"])?;
    ensure!(all["migrations"].as_array().is_some_and(|all| all.len() == 1), "{all}");
    cluster.check(&[Expected::Runs(&guest, "host-b")])
}

#[test]
fn a_guest_has_one_migration_at_a_time_and_a_cancelled_one_leaves_it_running() -> Result<()> {
    let (lab, guest) = lab_with(&GuestSpec::new("web").fill_mib(160).dirty_mib_per_second(5))?;
    let cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[&guest])?;
    cluster.host("host-a").link(Network::Management).limit_mbit(Some(100))?;
    let id = cluster.begin(&guest, "host-b")?.id().to_string();
    cluster.wait_for(&id, "to send memory", |now| {
        now.0["progress"]["memory_sent_bytes"].as_u64() > Some(1 << 20)
    })?;
    let second = cluster.drover(&["migrate", "web", "--to", "host-b", "--from", "host-a", "--no-wait"])?;
    ensure!(second.code != 0 && second.stderr.contains(&id), "{second:?}");
    let cancel = cluster.drover(&["migration", "cancel", &id])?;
    ensure!(cancel.code == 0, "{cancel:?}");
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "CANCELLED", "{}", end.0);
    cluster.check(&[Expected::Runs(&guest, "host-a")])?;
    watch.finish()?.check_path("web", &["host-a"])?;
    // And it can be moved after all.
    cluster.host("host-a").link(Network::Management).limit_mbit(None)?;
    cluster.migrate(&guest, "host-b")?;
    cluster.check(&[Expected::Runs(&guest, "host-b")])
}

#[test]
fn a_guest_that_shuts_itself_down_on_its_way_has_ended() -> Result<()> {
    let (lab, guest) = lab_with(&GuestSpec::new("web").fill_mib(160).dirty_mib_per_second(5))?;
    let cluster = Cluster::start(&lab)?;
    cluster.host("host-a").link(Network::Management).limit_mbit(Some(100))?;
    let id = cluster.begin(&guest, "host-b")?.id().to_string();
    cluster.wait_for(&id, "to send memory", |now| {
        now.0["progress"]["memory_sent_bytes"].as_u64() > Some(1 << 20)
    })?;
    guest.power_off()?;
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "GUEST_ENDED", "{}", end.0);
    cluster.check(&[Expected::Ended(&guest)])?;
    // Its definition is where it was, and it can be started there.
    wait_until("the guest to be only defined", Duration::from_secs(60), || {
        let domains = lab.domains()?;
        Ok(matches!(&domains[..], [only] if only.host == "host-a" && only.persistent).then_some(()))
    })
}
