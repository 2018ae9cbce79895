//! `make demo`: two hosts with real libvirtd and QEMU, a controller and two agents, a running guest, one migration
//! that its TCP session survives, the timeline and the trace of it.

use std::io::IsTerminal;
use std::process::{ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Parser;
use drover_tests::cluster::{Cluster, ClusterOptions, Expected};
use drover_tests::trace::Collector;
use drover_tests::{Disk, Guest, GuestSpec, Lab, WatchReport};

/// Moves a running guest between two real hosts in namespaces of this machine, and shows the timeline and the trace of
/// it. Takes nothing and leaves nothing; needs root.
#[derive(Parser)]
struct Arguments {}

fn main() -> ExitCode {
    let Arguments {} = Arguments::parse();
    match demo() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let logs = lab.layout().logs().display().to_string();
    let result = run(&mut lab);
    if result.is_err() {
        // The lab and its folder end with this program: what is worth reading is kept.
        let kept = format!("/tmp/drover-demo-{}", lab.id());
        let copied = std::process::Command::new("cp").args(["-r", &logs, &kept]).status();
        if copied.is_ok_and(|status| status.success()) {
            eprintln!("\nLogs of the controller, the agents and the lab: {kept}");
        }
    }
    result
}

fn step(text: &str) {
    let (bold, plain) = if std::io::stdout().is_terminal() {
        ("\x1b[1m", "\x1b[0m")
    } else {
        ("", "")
    };
    println!("\n{bold}{text}{plain}");
}

fn run(lab: &mut Lab) -> Result<()> {
    step("Two hosts with libvirtd and QEMU, each with a network, processes and a /run of its own");
    for host in lab.hosts() {
        let said = host.virsh(&["version"])?;
        let wanted = |line: &&str| line.starts_with("Using library") || line.starts_with("Running hypervisor");
        let versions: Vec<&str> = said
            .lines()
            .filter(wanted)
            .filter_map(|line| Some(line.split_once(": ")?.1))
            .collect();
        println!("  {:<8} {:<12} {}", host.name(), host.address(), versions.join(", "));
    }

    step("A guest on host-a: memory that it checks, a disk on storage that both hosts share");
    let started = Instant::now();
    let spec = GuestSpec::new("web-1")
        .memory_mib(512)
        .fill_mib(128)
        .dirty_mib_per_second(4)
        .disk(Disk::Shared {
            format: "qcow2",
            size_mib: 16,
        })
        .autostart();
    let guest = lab.start_guest("host-a", &spec)?;
    println!(
        "  web-1 at {} answers after {:.1} s",
        guest.address(),
        started.elapsed().as_secs_f64()
    );

    step("Certificates, a controller, an agent on each host (as user drover), a trace collector");
    let collector = Collector::start(lab)?;
    let options = ClusterOptions {
        environment: collector.environment(),
        ..ClusterOptions::default()
    };
    let cluster = Cluster::start_with(lab, options)?;
    show(&cluster, &["host", "list"])?;
    show(&cluster, &["guest", "list"])?;

    step("From now on watched from outside: a TCP session with the guest, a ping every 5 ms, both hosts' taps");
    let watch = lab.watch(&[&guest])?;
    show(&cluster, &["migrate", "web-1", "--to", "host-b"])?;
    cluster.check(&[Expected::Runs(&guest, "host-b")])?;
    seen_from_outside(&guest, &watch.finish()?)?;

    step("Where the time went");
    let list = cluster.drover_json(&["migration", "list"])?;
    let name = list["migrations"][0]["name"].as_str().unwrap_or_default().to_string();
    let id = name.trim_start_matches("migrations/");
    show(&cluster, &["timeline", id])?;

    step("The same as one OpenTelemetry trace, as a collector received it from the controller and both agents");
    let trace = collector.wait_for_trace(cluster.migration(id)?.0["trace_id"].as_str().unwrap_or_default())?;
    print!("{}", trace.tree());
    println!("\nDone. `make lab-up` leaves such hosts running for you to play with.");
    Ok(())
}

fn seen_from_outside(guest: &Guest, report: &WatchReport) -> Result<()> {
    report.check_path(guest.name(), &["host-a", "host-b"])?;
    let seen = report.guest(guest.name());
    let status = guest.status()?;
    step("What was seen from outside");
    println!("  TCP session   alive, {} lines echoed, none lost", seen.session.lines);
    println!(
        "  blackout      {} ms (largest gap between replies to a ping every 5 ms)",
        seen.blackout().as_millis()
    );
    println!(
        "  two copies    never ({} signed ticks seen on both hosts' taps)",
        report.verdict.beats
    );
    let (passes, errors) = (status.memory_passes, status.memory_errors);
    println!("  guest memory  {passes} complete checks, {errors} errors");
    println!(
        "  guest disk    {} writes, {} errors",
        status.disk_writes, status.disk_errors
    );
    Ok(())
}

/// Runs a command as an operator would and shows what it prints.
fn show(cluster: &Cluster<'_>, arguments: &[&str]) -> Result<()> {
    println!("\n$ drover {}", arguments.join(" "));
    let status = cluster
        .command("alice")?
        .args(arguments)
        .stdin(Stdio::null())
        .status()?;
    ensure!(status.success(), "`drover {}` ended with {status}", arguments.join(" "));
    Ok(())
}
