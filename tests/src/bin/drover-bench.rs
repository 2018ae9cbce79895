//! `make bench`: Drover against `virsh migrate --live --p2p` (plain TCP, and QEMU's own TLS), the same guest, interleaved
//! in one run.
//! Wall time as its user waits, blackout by ICMP every 5 ms. Prints medians, quartiles and ratios.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use drover_tests::bench::{adjust, check};
use drover_tests::cluster::{Cluster, ClusterOptions};
use drover_tests::figures::quartiles;
use drover_tests::trace::{Collector, Trace};
use drover_tests::{Guest, GuestSpec, Lab};

/// Compares Drover with virsh on two hosts of this machine.
#[derive(Parser)]
struct Arguments {
    /// Pairs of migrations, one by each
    #[arg(long, default_value_t = 15)]
    pairs: usize,
    /// Memory of the guest, MiB
    #[arg(long, default_value_t = 512)]
    memory: u64,
    /// How much of it holds random data, MiB
    #[arg(long, default_value_t = 32)]
    fill: u64,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// How long `drover check` of one guest takes against several hosts at once, with the estimate and without it
    Check {
        /// Destinations
        #[arg(long, default_value_t = 3)]
        hosts: u8,
        /// Checks
        #[arg(long, default_value_t = 15)]
        rounds: usize,
    },
    /// How soon a change of a running migration's policy is in force in QEMU
    Adjust {
        /// Changes by a connected client, and as many by the command
        #[arg(long, default_value_t = 12)]
        calls: u64,
    },
}

/// Milliseconds of one migration.
#[derive(Clone, Copy)]
struct Sample {
    wall: f64,
    blackout: f64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Some(Command::Check { hosts, rounds }) => check::run(hosts, rounds),
        Some(Command::Adjust { calls }) => adjust::run(calls),
        None => run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("drover-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Who moves the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Contender {
    Drover,
    /// QEMU to QEMU over plain TCP.
    Virsh,
    /// QEMU to QEMU, encrypted by QEMU.
    VirshTls,
}

impl Contender {
    const ALL: [Self; 3] = [Self::Drover, Self::Virsh, Self::VirshTls];

    fn name(self) -> &'static str {
        match self {
            Self::Drover => "drover",
            Self::Virsh => "virsh",
            Self::VirshTls => "virsh --tls",
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let mut lab = Lab::builder().listen_tcp().start()?;
    let spec = GuestSpec::new("idle")
        .memory_mib(arguments.memory)
        .fill_mib(arguments.fill);
    let guest = lab.start_guest("host-a", &spec)?;
    let collector = Collector::start(&lab)?;
    let options = ClusterOptions {
        environment: collector.environment(),
        ..ClusterOptions::default()
    };
    let mut cluster = Cluster::start_with(&lab, options)?;
    let Arguments {
        pairs, memory, fill, ..
    } = arguments;
    println!("{pairs} rounds, idle guest of {memory} MiB, {fill} of them random");
    print_memory(&mut cluster, "idle")?;

    let (mut samples, mut journal, mut parts) = ([const { Vec::new() }; 3], Vec::new(), Vec::new());
    for round in 0..arguments.pairs {
        // Who goes first changes.
        for turn in 0..Contender::ALL.len() {
            let at = (round + turn) % Contender::ALL.len();
            let contender = Contender::ALL[at];
            let (from, to) = if lab.running_copies(&guest)?.iter().any(|copy| copy.host == "host-a") {
                ("host-a", "host-b")
            } else {
                ("host-b", "host-a")
            };
            let sample = match contender {
                Contender::Drover => {
                    let (sample, trace_id) = move_by_drover(&lab, &cluster, &guest, to)?;
                    let trace = collector.wait_for_trace(&trace_id)?;
                    journal.push(journal_in_blackout(&trace));
                    parts.push(parts_of(&trace, sample.wall));
                    sample
                }
                Contender::Virsh => move_by_virsh(&lab, &guest, from, to, &[])?,
                Contender::VirshTls => move_by_virsh(&lab, &guest, from, to, &["--tls"])?,
            };
            samples[at].push(sample);
            println!(
                "  {:>2} {:<12} {from} -> {to}  wall {:>6.0} ms  blackout {:>4.0} ms",
                round + 1,
                contender.name(),
                sample.wall,
                sample.blackout
            );
        }
    }
    println!();
    report("wall time", &samples, |sample| sample.wall);
    report("blackout (ICMP)", &samples, |sample| sample.blackout);
    let (low, middle, high) = quartiles(journal);
    println!("journal writes within the blackout (three fsyncs): median {middle:.1} ms ({low:.1} to {high:.1})");
    print_parts(&parts);
    print_memory(&mut cluster, "after")?;
    let at = lab.running_copies(&guest)?.pop().context("the guest is nowhere")?.host;
    // Not against the store: virsh moves guests behind its back.
    lab.check_at_rest(&[(&guest, &at)])?;
    Ok(())
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn move_by_drover(lab: &Lab, cluster: &Cluster<'_>, guest: &Guest, to: &str) -> Result<(Sample, String)> {
    let watch = lab.watch(&[guest])?;
    let (migration, run) = cluster.migrate(guest, to)?;
    let report = watch.finish()?;
    report.check()?;
    let trace_id = migration.0["trace_id"].as_str().context("no trace id")?.to_string();
    Ok((
        Sample {
            wall: ms(run.wall),
            blackout: ms(report.guest(guest.name()).blackout()),
        },
        trace_id,
    ))
}

fn move_by_virsh(lab: &Lab, guest: &Guest, from: &str, to: &str, more: &[&str]) -> Result<Sample> {
    let watch = lab.watch(&[guest])?;
    let outcome = lab.migrate_with_virsh(guest, lab.host(from), lab.host(to), more)?;
    let report = watch.finish()?;
    report.check()?;
    Ok(Sample {
        wall: ms(outcome.wall),
        blackout: ms(report.guest(guest.name()).blackout()),
    })
}

/// Milliseconds of journal writes from the stop of the guest until it was told to run.
fn journal_in_blackout(trace: &Trace) -> f64 {
    let resumed = trace
        .named("libvirt.resume")
        .first()
        .map_or(u64::MAX, |span| span.start);
    let within = |id: &str| {
        trace
            .spans
            .iter()
            .any(|span| span.id == id && (span.name == "switchover" || span.name.ends_with("HandOverGuest")))
    };
    let writes = trace.named("journal.write");
    let counted = writes.iter().filter(|span| within(&span.parent) && span.end <= resumed);
    counted.map(|span| (span.end - span.start) as f64 / 1e6).sum()
}

/// The steps of a migration in their order, with the calls to libvirt in them.
const PARTS: [&str; 12] = [
    "phase.validate",
    "phase.prepare",
    "libvirt.begin",
    "libvirt.prepare",
    "phase.transfer",
    "libvirt.perform",
    "switchover",
    "libvirt.finish",
    "libvirt.resume",
    "libvirt.confirm",
    "phase.verify",
    "phase.finalize",
];

/// Milliseconds of each part, and at the end what the command took around the migration.
fn parts_of(trace: &Trace, wall: f64) -> Vec<f64> {
    let took = |name: &str| {
        let spans = trace.named(name);
        spans
            .iter()
            .map(|span| (span.end - span.start) as f64 / 1e6)
            .sum::<f64>()
    };
    let mut parts: Vec<f64> = PARTS.iter().map(|name| took(name)).collect();
    parts.push(wall - took("migration"));
    parts
}

/// Where Drover's own wall time goes.
fn print_parts(samples: &[Vec<f64>]) {
    println!("where drover's time goes (medians, ms):");
    for (at, name) in PARTS.iter().chain(&["command line"]).enumerate() {
        let (low, middle, high) = quartiles(samples.iter().map(|parts| parts[at]).collect());
        let inside = if name.starts_with("libvirt") || *name == "switchover" {
            "  "
        } else {
            ""
        };
        println!(
            "  {:<18} {middle:>6.1} ({low:.1} to {high:.1})",
            format!("{inside}{name}")
        );
    }
}

fn report(what: &str, samples: &[Vec<Sample>; 3], value: impl Fn(&Sample) -> f64) {
    let all = samples
        .each_ref()
        .map(|samples| quartiles(samples.iter().map(&value).collect()));
    for (contender, (low, middle, high)) in Contender::ALL.into_iter().zip(all) {
        println!(
            "{what:<16}  {:<12} median {middle:>5.0} ms ({low:.0} to {high:.0})  drover's is {:.2} of it",
            contender.name(),
            all[0].1 / middle
        );
    }
}

fn print_memory(cluster: &mut Cluster<'_>, when: &str) -> Result<()> {
    let controller = resident(cluster.controller()?.pid()?)?;
    let agent = resident(cluster.agent("host-a")?.pid()?)?;
    println!("resident memory {when}: controller {controller:.1} MiB, agent {agent:.1} MiB");
    Ok(())
}

fn resident(pid: i32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<f64>()? / 1024.0)
}
