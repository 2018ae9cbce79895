//! One migration is one trace, as a real collector receives it.

use anyhow::{Context, Result, ensure};
use drover_tests::cluster::{Cluster, ClusterOptions, Expected};
use drover_tests::trace::{Collector, Span, Trace};
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
    check_phases(&trace)?;
    check_calls(&trace)?;
    check_figures(&trace, &migration)
}

fn one<'trace>(trace: &'trace Trace, name: &str) -> Result<&'trace Span> {
    trace
        .named(name)
        .first()
        .copied()
        .with_context(|| format!("no span {name}"))
}

fn check_phases(trace: &Trace) -> Result<()> {
    let root = one(trace, "migration")?;
    for phase in ["validate", "prepare", "transfer", "verify", "finalize"] {
        let span = one(trace, &format!("phase.{phase}"))?;
        ensure!(span.parent == root.id, "phase {phase} is no child of the root");
    }
    Ok(())
}

/// The five calls, each on its own side, the RPCs, and the rounds.
fn check_calls(trace: &Trace) -> Result<()> {
    let calls = [
        ("libvirt.begin", "host-a"),
        ("libvirt.prepare", "host-b"),
        ("libvirt.perform", "host-a"),
        ("libvirt.finish", "host-b"),
        ("libvirt.confirm", "host-a"),
    ];
    for (call, host) in calls {
        let span = one(trace, call)?;
        ensure!(
            span.service.contains(host),
            "{call} came from {}, not {host}",
            span.service
        );
    }
    one(trace, "iteration")?;
    for rpc in ["BeginOutgoing", "PrepareIncoming", "StartMigrate", "HandOverGuest"] {
        ensure!(
            trace.spans.iter().any(|span| span.name.ends_with(rpc)),
            "no span of {rpc}"
        );
    }
    Ok(())
}

fn check_figures(trace: &Trace, migration: &serde_json::Value) -> Result<()> {
    let blackout: f64 = one(trace, "switchover")?
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
    let sent = one(trace, "migration")?
        .attributes
        .get("drover.memory.sent")
        .context("no bytes on the root")?;
    ensure!(sent.parse::<u64>()? > 1 << 20, "{sent} bytes");
    Ok(())
}
