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
        ..ClusterOptions::default()
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
    let trace = collector.wait_for_trace_that(caller.0, |trace| {
        check_phases(trace)?;
        check_calls(trace)?;
        check_figures(trace, &migration)
    })?;
    println!("{}", trace.tree());
    ensure!(
        one(&trace, "migration")?.parent == caller.1,
        "the root is no child of the caller's span"
    );
    Ok(())
}

#[test]
fn one_trace_survives_the_death_of_the_controller() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &GuestSpec::new("web").fill_mib(128).dirty_mib_per_second(5))?;
    let collector = Collector::start(&lab)?;
    let options = ClusterOptions {
        environment: collector.environment(),
        ..ClusterOptions::default()
    };
    let mut cluster = Cluster::start_with(&lab, options)?;
    cluster.host("host-a").link(Network::Management).limit_mbit(Some(40))?;
    let id = cluster.begin(&guest, "host-b")?.id().to_string();
    cluster.wait_for(&id, "to send memory", |now| {
        now.0["progress"]["memory_sent_bytes"].as_u64() > Some(1 << 20)
    })?;
    cluster.kill_controller()?;
    cluster.start_controller()?;
    cluster.host("host-a").link(Network::Management).limit_mbit(None)?;
    let end = cluster.wait_for_rest(&id)?;
    ensure!(end.state() == "SUCCEEDED", "{}", end.0);
    cluster.check(&[Expected::Runs(&guest, "host-b")])?;
    let trace_id = end.0["trace_id"].as_str().context("no trace id")?;
    let trace = collector.wait_for_trace_that(trace_id, |trace| check_attempts(trace, &end.0))?;
    println!("{}", trace.tree());
    Ok(())
}

/// One root; every attempt in the record is one span under it, and the lost one is marked.
fn check_attempts(trace: &Trace, record: &serde_json::Value) -> Result<()> {
    let ids = |name: &str| -> std::collections::BTreeSet<&str> {
        trace.named(name).iter().map(|span| span.id.as_str()).collect()
    };
    ensure!(ids("migration").len() == 1, "roots: {:?}", ids("migration"));
    let root = one(trace, "migration")?;
    let roots: Vec<&Span> = trace.spans.iter().filter(|span| span.parent.is_empty()).collect();
    ensure!(roots == [root], "roots: {roots:#?}");
    let mut attempts = std::collections::BTreeMap::<String, usize>::new();
    for phase in record["phases"].as_array().context("no phases")? {
        let name = phase["phase"].as_str().unwrap_or_default().to_lowercase();
        *attempts.entry(name).or_default() += 1;
    }
    for (phase, count) in &attempts {
        let spans = ids(&format!("phase.{phase}"));
        ensure!(spans.len() == *count, "{count} attempts at {phase}, spans {spans:?}");
        for span in trace.named(&format!("phase.{phase}")) {
            ensure!(span.parent == root.id, "{phase} is no child of the root");
        }
    }
    let lost = trace.named("phase.transfer");
    let marked = |span: &&&Span| {
        span.attributes
            .get("drover.phase.outcome")
            .is_some_and(|word| word == "interrupted")
    };
    ensure!(
        lost.iter().filter(marked).count() == 1,
        "the lost attempt is not marked: {lost:#?}"
    );
    Ok(())
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

/// The five calls and the RPCs, each on its own side, and the rounds.
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
    let calls = [
        ("BeginOutgoing", "host-a"),
        ("PrepareIncoming", "host-b"),
        ("StartMigrate", "host-a"),
        ("HandOverGuest", "host-b"),
        ("SettleOutgoing", "host-a"),
        ("SettleIncoming", "host-b"),
    ];
    for (rpc, host) in calls {
        let spans = trace.spans.iter().filter(|span| span.name.ends_with(rpc));
        let services: Vec<&str> = spans.map(|span| span.service.as_str()).collect();
        ensure!(
            services.iter().any(|service| service.contains(host)),
            "{rpc} was not answered by {host}: {services:?}"
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
