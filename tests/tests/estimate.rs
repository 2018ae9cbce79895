//! What a check expects of a guest that writes, on a real QEMU, and how far that was off in the end.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use drover_tests::cluster::{Cluster, Expected};
use drover_tests::{GuestSpec, Lab, Load, Network, Pattern, wait_until};

const MIB: f64 = 1024.0 * 1024.0;

#[test]
fn a_guest_that_writes_is_looked_at_and_its_move_is_as_expected() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &GuestSpec::new("busy").memory_mib(512).fill_mib(320))?;
    let cluster = Cluster::start(&lab)?;
    for host in ["host-a", "host-b"] {
        lab.host(host).link(Network::Management).limit_mbit(Some(800))?;
    }
    // So little that it converges over whatever a loaded machine makes of that link.
    guest.load(Load {
        kib_per_second: 8 * 1024,
        set_mib: 16,
        pattern: Pattern::Sweep,
    })?;
    let watch = lab.watch(&[&guest])?;
    // QEMU looks at one page in 512: one look of a second may miss what a guest writes that hardly gets to run.
    let told = wait_until("samples of the guest and of the link", Duration::from_secs(60), || {
        let told = cluster.drover_json(&["check", guest.name(), "--to", "host-b"])?;
        let estimate = &told["destinations"][0]["estimate"];
        ensure!(estimate["dirty_bytes_per_second"].as_f64() > Some(0.0), "{estimate}");
        ensure!(
            estimate["link_knowledge"] == "MEASURED" && estimate["duration"].is_number(),
            "{estimate}"
        );
        Ok(Some(told))
    })?;
    let expected = &told["destinations"][0]["estimate"];
    println!("{expected:#}");
    println!("{}", cluster.drover(&["check", guest.name(), "--to", "host-b"])?.stdout);
    let number = |field: &str| {
        expected[field]
            .as_f64()
            .with_context(|| format!("no {field}: {expected}"))
    };
    // A shaper lets a little more through at first; a loaded machine carries less.
    let link = number("bandwidth_bytes_per_second")? / MIB;
    ensure!((2.0..=130.0).contains(&link), "800 Mbit/s are 95 MiB/s, not {link}");
    let rate = number("dirty_bytes_per_second")? / MIB;
    ensure!((0.5..=100.0).contains(&rate), "it writes 8 MiB/s, not {rate}");
    let (migration, _) = cluster.migrate(&guest, "host-b")?;
    let error = migration.0["estimate_error"].as_f64();
    println!("{}", cluster.drover(&["migration", "get", migration.id()])?.stdout);
    println!(
        "expected {}, took {}, error {error:?}",
        expected["duration"], migration.0["summary"]["duration"]
    );
    ensure!(error.is_some(), "{}", migration.0);
    watch.finish()?.check_path(guest.name(), &["host-a", "host-b"])?;
    // What was sent is known of the link from now on.
    let told = cluster.drover_json(&["check", guest.name(), "--to", "host-a"])?;
    let again = &told["destinations"][0]["estimate"];
    ensure!(again["link_knowledge"] == "LEARNT", "{again}");
    println!("learnt: {again:#}");
    cluster.check(&[Expected::Runs(&guest, "host-b")])
}
