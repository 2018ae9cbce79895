//! One migration is one trace, as a real collector receives it.

use anyhow::{Context, Result, ensure};
use drover_tests::cluster::{Cluster, ClusterOptions, Expected};
use drover_tests::trace::Collector;
use drover_tests::{GuestSpec, Lab, Network};

#[test]
fn one_migration_is_one_trace_across_controller_and_both_agents() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &GuestSpec::new("web").fill_mib(96).dirty_mib_per_second(8))?;
    let collector = Collector::start(&lab)?;
    let options = ClusterOptions {
        environment: collector.environment(),
    };
    let cluster = Cluster::start_with(&lab, options)?;
    // Slow enough for more than one round.
    cluster.host("host-a").link(Network::Management).limit_mbit(Some(400))?;
    let caller = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let mut command = cluster.command("sam")?;
    command.env("TRACEPARENT", format!("00-{}-{}-01", caller.0, caller.1));
    let output = drover_tests::run(
        command.args(["migrate", "web", "--to", "host-b", "-o", "json"]),
        std::time::Duration::from_secs(120),
    )?;
    let migration: serde_json::Value = serde_json::from_str(&output.stdout)?;
    cluster.check(&[Expected::Runs(&guest, "host-b")])?;

    ensure!(
        migration["trace_id"] == caller.0,
        "the caller's traceparent was not honoured: {migration}"
    );
    let trace = collector.wait_for_trace(caller.0)?;
    println!("{}", trace.tree());
    let one = |name: &str| -> Result<&drover_tests::trace::Span> {
        let found = trace.named(name);
        ensure!(!found.is_empty(), "no span {name}");
        Ok(found[0])
    };
    for phase in ["validate", "prepare", "transfer", "verify", "finalize"] {
        let root = one("migration")?;
        let children = trace.named(&format!("phase.{phase}"));
        ensure!(
            children.iter().any(|span| span.parent == root.id),
            "phase {phase} is no child of the root"
        );
    }
    // The five calls, each on its own side.
    let calls = [
        ("libvirt.begin", "host-a"),
        ("libvirt.prepare", "host-b"),
        ("libvirt.perform", "host-a"),
        ("libvirt.finish", "host-b"),
        ("libvirt.confirm", "host-a"),
    ];
    for (call, host) in calls {
        let span = one(call)?;
        ensure!(
            span.service.contains(host),
            "{call} came from {}, not {host}",
            span.service
        );
    }
    ensure!(!trace.named("iteration").is_empty(), "no pre-copy round");
    for rpc in ["BeginOutgoing", "PrepareIncoming", "StartMigrate", "HandOverGuest"] {
        ensure!(
            trace.spans.iter().any(|span| span.name.ends_with(rpc)),
            "no span of {rpc}"
        );
    }
    let blackout: f64 = one("switchover")?
        .attributes
        .get("drover.blackout")
        .context("no blackout")?
        .parse()?;
    let recorded = migration["summary"]["blackout"]
        .as_f64()
        .context("no blackout in the record")?;
    ensure!(
        (blackout - recorded).abs() < 0.001,
        "trace {blackout} s, record {recorded} s"
    );
    let sent = one("migration")?
        .attributes
        .get("drover.memory.sent")
        .context("no bytes on the root")?;
    ensure!(sent.parse::<u64>()? > 1 << 20, "{sent} bytes");
    Ok(())
}
