//! `make bench-convergence`: guests that write more and more, moved by `virsh migrate` in three ways and by Drover with
//! nothing but an intent, over one limited link.
//!
//! Prints a table, and writes what remained to be sent over time, with the actions of Drover's control loop, as JSON files
//! that `scripts/plot-convergence` draws; beside them what the control loop was told as its rounds began (`rounds`).

mod cases;
mod rounds;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use cases::{Case, Contender, name};
use clap::{Parser, ValueEnum};
use drover_tests::cluster::{Cluster, ClusterOptions, Migration};
use drover_tests::{Guest, GuestSpec, Lab, Load, Network, wait_until};
use serde_json::{Value, json};

/// A migration is given up when it takes so much longer than sending all memory once.
const MORE_THAN_IDEAL: Duration = Duration::from_secs(60);

/// Between two looks at what remains.
const LOOK: Duration = Duration::from_millis(200);

/// A load has settled by then.
const SETTLED: Duration = Duration::from_secs(3);

/// Compares how busy guests move.
#[derive(Parser)]
struct Arguments {
    /// Speed of the link, Mbit/s; 0: not limited
    #[arg(long, default_value_t = 800)]
    link: u32,
    /// Memory of the guest, MiB
    #[arg(long, default_value_t = 512)]
    memory: u64,
    /// How much of it holds random data and is written to, MiB
    #[arg(long, default_value_t = 384)]
    fill: u64,
    /// Runs of each case by each contender
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Only these loads
    #[arg(long, value_enum, value_delimiter = ',')]
    loads: Vec<Case>,
    /// Only these contenders
    #[arg(long, value_enum, value_delimiter = ',')]
    contenders: Vec<Contender>,
    /// Where the JSON files go
    #[arg(long, default_value = "target/convergence")]
    out: PathBuf,
}

/// How one run went.
struct Outcome {
    finished: bool,
    seconds: f64,
    sent: f64,
    blackout_ms: f64,
    guest_gap_ms: u64,
    /// Part of the load that the guest managed meanwhile.
    throughput: f64,
    error: Option<f64>,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("drover-convergence: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    fs::create_dir_all(&arguments.out)?;
    let mut lab = Lab::builder().listen_tcp().start()?;
    let spec = GuestSpec::new("hot")
        .memory_mib(arguments.memory)
        .fill_mib(arguments.fill);
    let guest = lab.start_guest("host-a", &spec)?;
    let options = ClusterOptions {
        environment: vec![rounds::log_filter()],
        ..ClusterOptions::default()
    };
    let cluster = Cluster::start_with(&lab, options)?;
    for host in ["host-a", "host-b"] {
        let limit = (arguments.link > 0).then_some(arguments.link);
        lab.host(host).link(Network::Management).limit_mbit(limit)?;
    }
    let loads = match arguments.loads.as_slice() {
        [] => Case::value_variants(),
        some => some,
    };
    let contenders = match arguments.contenders.as_slice() {
        [] => Contender::value_variants(),
        some => some,
    };
    println!(
        "guest of {} MiB, {} of them random, link {} Mbit/s; given up {} s after the ideal",
        arguments.memory,
        arguments.fill,
        arguments.link,
        MORE_THAN_IDEAL.as_secs()
    );
    println!(
        "{:<16} {:<20} {:>8} {:>8} {:>8} {:>9} {:>8} {:>8} {:>9}",
        "load", "by", "finished", "seconds", "sent/RAM", "blackout", "gap", "writes", "estimate"
    );
    for &case in loads {
        for contender in contenders {
            let mut outcomes = Vec::new();
            for number in 1..=arguments.runs {
                let stage = Stage {
                    lab: &lab,
                    cluster: &cluster,
                    guest: &guest,
                    arguments,
                };
                outcomes.push(stage.run(case, *contender, number)?);
            }
            print(case, *contender, &outcomes);
        }
    }
    Ok(())
}

struct Stage<'a> {
    lab: &'a Lab,
    cluster: &'a Cluster<'a>,
    guest: &'a Guest,
    arguments: &'a Arguments,
}

impl Stage<'_> {
    fn link_kib(&self) -> u64 {
        let mbit = if self.arguments.link == 0 {
            800
        } else {
            self.arguments.link
        };
        u64::from(mbit) * 1_000_000 / 8 / 1024
    }

    /// Time in which a migration has to end.
    fn budget(&self) -> Duration {
        let ideal = self.arguments.memory * 1024 / self.link_kib();
        Duration::from_secs(ideal) + MORE_THAN_IDEAL
    }

    fn place(&self) -> Result<(&'static str, &'static str)> {
        let copies = self.lab.running_copies(self.guest)?;
        let there = copies.iter().any(|copy| copy.host == "host-a");
        Ok(if there {
            ("host-a", "host-b")
        } else {
            ("host-b", "host-a")
        })
    }

    fn run(&self, case: Case, contender: Contender, number: usize) -> Result<Outcome> {
        let (from, to) = self.place()?;
        let load = case.load(self.link_kib(), self.arguments.fill);
        self.guest.load(load)?;
        std::thread::sleep(SETTLED);
        self.guest.reset_gap()?;
        let link = self.lab.host(from).link(Network::Management);
        let (before, sent_before) = (self.guest.status()?, link.sent_bytes()?);
        let told = rounds::Told::so_far(self.cluster, from)?;
        let watch = self.lab.watch(&[self.guest])?;
        let started = Instant::now();
        let over = AtomicBool::new(false);
        let (moved, samples) = std::thread::scope(|scope| {
            let samples = scope.spawn(|| self.sample(from, started, &over));
            let moved = self.go(contender, from, to);
            over.store(true, Relaxed);
            (moved, samples.join())
        });
        let took = started.elapsed();
        let sent = link.sent_bytes()? - sent_before;
        let after = self.guest.status()?;
        let report = watch.finish()?;
        report.check()?;
        let (finished, record) = moved?;
        let wanted = load.kib_per_second as f64 * 1024.0 * took.as_secs_f64();
        let outcome = Outcome {
            finished,
            seconds: took.as_secs_f64(),
            sent: sent as f64 / (self.arguments.memory << 20) as f64,
            blackout_ms: report.guest(self.guest.name()).blackout().as_secs_f64() * 1000.0,
            guest_gap_ms: after.largest_gap_ms,
            throughput: (after.bytes_dirtied - before.bytes_dirtied) as f64 / wanted,
            error: record.as_ref().and_then(|record| record["estimate_error"].as_f64()),
        };
        // The load would hide what is wrong with the next one.
        self.guest.load(Load {
            kib_per_second: 0,
            ..load
        })?;
        let samples = samples.unwrap_or_default();
        let rounds = file_of(&self.arguments.out, case, contender, number).with_extension("rounds");
        told.write_since(&rounds)?;
        self.write(case, contender, number, &outcome, &samples, record.as_ref())?;
        Ok(outcome)
    }

    /// Whether it moved in time; Drover's record.
    fn go(&self, contender: Contender, from: &str, to: &str) -> Result<(bool, Option<Value>)> {
        if let Some(more) = contender.virsh() {
            return Ok((self.by_virsh(from, to, more)?, None));
        }
        let budget = format!("{}s", self.budget().as_secs());
        let intent = ["--max-downtime", "500ms", "--deadline", &budget];
        let flags = [&intent[..], contender.allowed()].concat();
        let id = self.cluster.begin_with(self.guest, to, &flags)?.id().to_string();
        let limit = self.budget() + Duration::from_secs(60);
        let end = wait_until("the migration to come to rest", limit, || {
            Ok(Some(self.cluster.migration(&id)?).filter(Migration::at_rest))
        })?;
        Ok((end.state() == "SUCCEEDED", Some(end.0)))
    }

    /// In a thread of its own, because virsh does not end by itself where the guest writes too fast.
    fn by_virsh(&self, from: &str, to: &str, more: &[&str]) -> Result<bool> {
        let (source, destination) = (self.lab.host(from), self.lab.host(to));
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let moving = scope.spawn(|| {
                let moved = self.lab.migrate_with_virsh(self.guest, source, destination, more);
                done.store(true, Relaxed);
                moved.is_ok()
            });
            let started = Instant::now();
            while !done.load(Relaxed) && started.elapsed() < self.budget() {
                std::thread::sleep(LOOK);
            }
            if !done.load(Relaxed) {
                // It may end at this very moment: then there is no job to abort.
                let _ = source.virsh(&["domjobabort", self.guest.name()]);
            }
            Ok(moving.join().unwrap_or(false))
        })
    }

    /// Seconds and bytes that remain, as libvirt tells them at the source.
    fn sample(&self, from: &str, started: Instant, over: &AtomicBool) -> Vec<(f64, u64)> {
        let mut samples = Vec::new();
        while !over.load(Relaxed) {
            if let Ok(said) = self
                .lab
                .host(from)
                .virsh(&["domjobinfo", self.guest.name(), "--rawstats"])
                && let Some(remaining) = raw(&said, "memory_remaining")
            {
                samples.push((started.elapsed().as_secs_f64(), remaining));
            }
            std::thread::sleep(LOOK);
        }
        samples
    }

    fn write(
        &self,
        case: Case,
        contender: Contender,
        number: usize,
        outcome: &Outcome,
        samples: &[(f64, u64)],
        record: Option<&Value>,
    ) -> Result<()> {
        let of_record = |field: &str| record.map_or(Value::Null, |record| record[field].clone());
        let file = json!({
            "load": name(&case),
            "by": name(&contender),
            "link_mbit": self.arguments.link,
            "memory_mib": self.arguments.memory,
            "finished": outcome.finished,
            "seconds": outcome.seconds,
            "blackout_ms": outcome.blackout_ms,
            "remaining": samples,
            "actions": of_record("actions"),
            "iterations": of_record("iterations"),
            "estimate": of_record("estimate"),
            "summary": of_record("summary"),
            "start_time": of_record("start_time"),
        });
        let path = file_of(&self.arguments.out, case, contender, number);
        fs::write(&path, serde_json::to_vec_pretty(&file)?).with_context(|| path.display().to_string())
    }
}

fn file_of(folder: &Path, case: Case, contender: Contender, number: usize) -> PathBuf {
    folder.join(format!("{}-{}-{number}.json", name(&case), name(&contender)))
}

/// A field of `virsh domjobinfo`: `memory_remaining: 123`, or `Memory remaining: 1.2 MiB`.
fn raw(said: &str, field: &str) -> Option<u64> {
    let words = field.replace('_', " ");
    let line = said
        .lines()
        .find(|line| line.to_lowercase().replace('_', " ").starts_with(&words))?;
    let (_, value) = line.split_once(':')?;
    let mut parts = value.split_whitespace();
    let number: f64 = parts.next()?.parse().ok()?;
    let unit = match parts.next() {
        Some("KiB") => 1024.0,
        Some("MiB") => 1024.0 * 1024.0,
        Some("GiB") => 1024.0 * 1024.0 * 1024.0,
        Some(_) | None => 1.0,
    };
    Some((number * unit) as u64)
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.retain(|value| value.is_finite());
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// One line of the table: medians.
fn print(case: Case, contender: Contender, outcomes: &[Outcome]) {
    let middle = |value: &dyn Fn(&Outcome) -> f64| median(outcomes.iter().map(value).collect());
    let text = |value: Option<f64>, unit: &str, digits: usize| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}{unit}"))
    };
    let finished = outcomes.iter().filter(|outcome| outcome.finished).count();
    println!(
        "{:<16} {:<20} {:>8} {:>8} {:>8} {:>9} {:>8} {:>8} {:>9}",
        name(&case),
        name(&contender),
        format!("{finished}/{}", outcomes.len()),
        text(middle(&|outcome| outcome.seconds), "", 1),
        text(middle(&|outcome| outcome.sent), "", 2),
        text(middle(&|outcome| outcome.blackout_ms), " ms", 0),
        text(middle(&|outcome| outcome.guest_gap_ms as f64), " ms", 0),
        text(middle(&|outcome| outcome.throughput * 100.0), " %", 0),
        text(
            middle(&|outcome| outcome.error.map_or(f64::NAN, |error| error * 100.0)),
            " %",
            0
        ),
    );
}
