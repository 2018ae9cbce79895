//! A database that was restored from a backup, on real hosts: nothing is commanded by it before it was adopted, and what
//! it does not know is taken up from the agents' journals.

use anyhow::{Result, ensure};
use drover_tests::cluster::{Cluster, Expected};
use drover_tests::{GuestSpec, Lab, Network};

#[test]
fn a_restored_database_commands_nothing_and_takes_up_what_it_does_not_know() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    // It writes more than the limited link carries: it stays on its way until somebody ends that.
    let guest = lab.start_guest("host-a", &GuestSpec::new("busy").fill_mib(160).dirty_mib_per_second(30))?;
    let mut cluster = Cluster::start(&lab)?;
    let watch = lab.watch(&[&guest])?;
    cluster.migrate(&guest, "host-b")?;
    cluster.kill_controller()?;
    cluster.back_up_store()?;
    cluster.start_controller()?;
    cluster.wait_for_hosts()?;
    let link = cluster.host("host-b").link(Network::Management);
    link.limit_mbit(Some(40))?;
    let id = cluster.begin(&guest, "host-a")?.id().to_string();
    cluster.wait_for(&id, "to send memory", |now| {
        now.0["progress"]["memory_sent_bytes"].as_u64() > Some(1 << 20)
    })?;
    cluster.kill_controller()?;
    cluster.restore_store()?;
    cluster.start_controller()?;
    cluster.wait_for_hosts()?;
    let refused = cluster.drover(&["migrate", guest.name(), "--to", "host-a", "--no-wait"])?;
    let said = format!("{}{}", refused.stdout, refused.stderr);
    ensure!(refused.code != 0 && said.contains("old copy"), "{said}");
    let unknown = cluster.drover(&["migration", "get", &id])?;
    ensure!(
        unknown.code != 0,
        "it knows what came after the backup: {}",
        unknown.stdout
    );
    cluster.kill_controller()?;
    let adopted = cluster.adopt_restored()?;
    let said = format!("{}{}", adopted.stdout, adopted.stderr);
    ensure!(
        adopted.code == 0 && said.contains(&format!("taken up: migrations/{id}")),
        "{said}"
    );
    cluster.start_controller()?;
    cluster.wait_for_hosts()?;
    let end = cluster.wait_for_rest(&id)?;
    ensure!((end.state(), end.reason()) == ("FAILED", "STORE_LOST"), "{}", end.0);
    cluster.check(&[Expected::Runs(&guest, "host-b")])?;
    watch.finish()?.check_path(guest.name(), &["host-a", "host-b"])?;
    // It is the one in use again.
    link.limit_mbit(None)?;
    cluster.migrate(&guest, "host-a")?;
    cluster.check(&[Expected::Runs(&guest, "host-a")])
}
