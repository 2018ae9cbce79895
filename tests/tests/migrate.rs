//! Running guests move between real hosts, watched from outside all the time.

use std::time::Duration;

use anyhow::{Result, ensure};
use drover_tests::cluster::{Cluster, Expected};
use drover_tests::{Disk, GuestSpec, Lab, wait_until};

const THERE_AND_BACK: usize = 10;

/// Moves a guest there and back, ten times, under one watch.
fn there_and_back(spec: &GuestSpec) -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", spec)?;
    let cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[&guest])?;
    let mut path = vec!["host-a"];
    for _ in 0..THERE_AND_BACK {
        for to in ["host-b", "host-a"] {
            let (migration, _) = cluster.migrate(&guest, to)?;
            ensure!(migration.state() == "SUCCEEDED", "{}", migration.0);
            path.push(to);
        }
    }
    cluster.check(&[Expected::Runs(&guest, "host-a")])?;
    let report = watch.finish()?;
    report.check_path(guest.name(), &path)?;
    println!(
        "{}: largest blackout {:?}",
        guest.name(),
        report.guest(guest.name()).blackout()
    );
    Ok(())
}

#[test]
fn an_idle_guest_goes_there_and_back_ten_times() -> Result<()> {
    there_and_back(&GuestSpec::new("idle"))
}

#[test]
fn a_busy_guest_with_a_disk_goes_there_and_back_ten_times() -> Result<()> {
    let disk = Disk::Shared {
        format: "qcow2",
        size_mib: 16,
    };
    there_and_back(&GuestSpec::new("busy").fill_mib(128).dirty_mib_per_second(10).disk(disk))
}

/// Two hosts, a storage server, the same path on both. The kernel mounts it where it can, else QEMU opens it.
#[test]
fn a_guest_that_runs_from_an_nfs_server_moves_while_a_client_talks_to_it() -> Result<()> {
    let mut lab = Lab::builder().nfs().start()?;
    let guest = lab.start_guest("host-a", &GuestSpec::new("on-nfs").disk(Disk::Nfs { size_mib: 16 }))?;
    let cluster = Cluster::start(&lab)?;
    let check = cluster.drover(&["check", "on-nfs", "--to", "host-b"])?;
    ensure!(check.code == 0 && check.stdout.contains("storage-shared"), "{check:?}");
    let watch = lab.watch(&[&guest])?;
    for to in ["host-b", "host-a"] {
        cluster.migrate(&guest, to)?;
        let before = guest.status()?.disk_writes;
        wait_until("the guest to write on", Duration::from_secs(60), || {
            Ok((guest.status()?.disk_writes > before).then_some(()))
        })?;
        cluster.check(&[Expected::Runs(&guest, to)])?;
    }
    let report = watch.finish()?;
    println!("{} lines echoed", report.guest("on-nfs").session.lines);
    report.check_path(guest.name(), &["host-a", "host-b", "host-a"])
}

#[test]
fn a_paused_guest_arrives_paused() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &GuestSpec::new("still"))?;
    let cluster = Cluster::start(&lab)?;
    cluster.host("host-a").virsh(&["suspend", guest.name()])?;
    let (migration, _) = cluster.migrate(&guest, "host-b")?;
    ensure!(migration.state() == "SUCCEEDED", "{}", migration.0);
    cluster.check(&[Expected::Paused(&guest, "host-b")])?;
    cluster.host("host-b").virsh(&["resume", guest.name()])?;
    cluster.check(&[Expected::Runs(&guest, "host-b")])
}

#[test]
fn definitions_and_autostart_go_along() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let kept = lab.start_guest("host-a", &GuestSpec::new("kept").autostart())?;
    let fleeting = lab.start_guest("host-a", &GuestSpec::new("fleeting").transient())?;
    let cluster = Cluster::start(&lab)?;
    let definition = |host: &str| {
        cluster
            .host(host)
            .virsh(&["dumpxml", "--inactive", "--security-info", "kept"])
    };
    let before = definition("host-a")?;
    for guest in [&kept, &fleeting] {
        cluster.migrate(guest, "host-b")?;
    }
    cluster.check(&[Expected::Runs(&kept, "host-b"), Expected::Runs(&fleeting, "host-b")])?;
    let find = |name: &str| -> Result<drover_tests::Domain> {
        let found = lab.domains()?.into_iter().find(|domain| domain.name == name);
        found.ok_or_else(|| anyhow::anyhow!("{name} is nowhere"))
    };
    let (kept_now, fleeting_now) = (find("kept")?, find("fleeting")?);
    ensure!(kept_now.persistent && kept_now.autostart, "{kept_now:?}");
    ensure!(!fleeting_now.persistent && !fleeting_now.autostart, "{fleeting_now:?}");
    ensure!(definition("host-b")? == before, "the definition changed on its way");
    Ok(())
}
