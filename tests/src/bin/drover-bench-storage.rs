//! `make bench-storage`: disks that hosts do not share, moved by Drover and by what people use today, interleaved in
//! one run. Prints medians, quartiles and ratios; `--rounds 1 --virtual 640 --allocated 128` is a quick try.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use drover_tests::Lab;
use drover_tests::figures::quartiles;
use drover_tests::storage_bench::{Copier, Cut, Mover, Sample, Scene, Shape, Ssh, copy_with_cut, place_guest};

const MIB: f64 = (1 << 20) as f64;

/// Compares Drover with rsync, qemu-img and virsh on two hosts of this machine.
#[derive(Parser)]
struct Arguments {
    /// Moves by each
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Size of the image, MiB
    #[arg(long = "virtual", default_value_t = 10240)]
    virtual_mib: u64,
    /// How much of it is allocated, MiB: one half random, the other compressible
    #[arg(long = "allocated", default_value_t = 2048)]
    allocated_mib: u64,
    /// Speed of the link, Mbit/s
    #[arg(long, default_value_t = 2500)]
    link: u32,
    /// Only these parts [default: all]
    #[arg(long, value_enum)]
    part: Vec<Part>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The guest is shut off
    Offline,
    /// The guest runs
    Live,
    /// A copy that is cut at 90 %
    Cut,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("drover-bench-storage: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let Arguments {
        rounds,
        virtual_mib,
        allocated_mib,
        link,
        ref part,
    } = *arguments;
    let shape = Shape {
        virtual_mib,
        allocated_mib,
    };
    let wanted = |of: Part| part.is_empty() || part.contains(&of);
    let mut lab = Lab::builder().listen_tcp().start()?;
    let guest = place_guest(&mut lab, shape)?;
    let mut scene = Scene::start(&lab, guest, shape, link)?;
    let ssh = Ssh::start(lab.host("host-b"))?;
    println!("{rounds} rounds, image of {virtual_mib} MiB with {allocated_mib} allocated, link of {link} Mbit/s");
    if wanted(Part::Offline) {
        offline(&mut scene, &ssh, rounds)?;
    }
    if wanted(Part::Live) {
        live(&scene, rounds)?;
    }
    if wanted(Part::Cut) {
        cut(&mut scene, &ssh, rounds)?;
    }
    Ok(())
}

fn offline(scene: &mut Scene<'_>, ssh: &Ssh, rounds: usize) -> Result<()> {
    println!("\nOffline copy, until the file is flushed at the destination:");
    let mut samples = [const { Vec::new() }; Copier::ALL.len()];
    let (mut flush, mut read_back) = (Vec::new(), Vec::new());
    for (round, at) in turns(rounds, Copier::ALL.len()) {
        let copier = Copier::ALL[at];
        scene.reset()?;
        let sample = scene.copy(copier, ssh)?;
        print_sample(round, copier.name(), sample);
        samples[at].push(sample);
        if copier == Copier::Drover {
            let verification = scene.verification()?;
            flush.push(verification.flush.as_secs_f64());
            read_back.push(verification.read_back.as_secs_f64());
        }
    }
    println!();
    report(&Copier::ALL.map(Copier::name), &samples);
    let part = |values| quartiles(values).1;
    println!(
        "in drover's wall time (medians): flush {:.2} s, reading back and hashing {:.2} s",
        part(flush),
        part(read_back)
    );
    Ok(())
}

fn live(scene: &Scene<'_>, rounds: usize) -> Result<()> {
    println!("\nLive migration with the disk, until the file is flushed at the destination:");
    let mut samples = [const { Vec::new() }; Mover::ALL.len()];
    for (round, at) in turns(rounds, Mover::ALL.len()) {
        let mover = Mover::ALL[at];
        scene.reset()?;
        let sample = scene.move_live(mover)?;
        print_sample(round, mover.name(), sample);
        samples[at].push(sample);
    }
    println!();
    report(&Mover::ALL.map(Mover::name), &samples);
    Ok(())
}

fn cut(scene: &mut Scene<'_>, ssh: &Ssh, rounds: usize) -> Result<()> {
    println!("\nOffline copy by drover, cut when 90 % are sent:");
    let (mut whole, mut cuts) = (Vec::new(), [const { Vec::new() }; Cut::ALL.len()]);
    for _ in 0..rounds {
        scene.reset()?;
        let uncut = scene.copy(Copier::Drover, ssh)?.wire;
        whole.push(uncut as f64);
        for (at, cut) in Cut::ALL.into_iter().enumerate() {
            scene.reset()?;
            let sent = copy_with_cut(scene, cut, uncut / 10 * 9)?;
            cuts[at].push(sent as f64);
        }
    }
    let whole = quartiles(whole).1;
    println!("  {:<28} {:>8.0} MiB", "not cut", whole / MIB);
    for (cut, sent) in Cut::ALL.into_iter().zip(cuts) {
        let (low, middle, high) = quartiles(sent);
        let again = |sent: f64| (sent / whole - 1.0) * 100.0;
        println!(
            "  {:<28} {:>8.0} MiB, sent again {:.1} % ({:.1} to {:.1})",
            cut.name(),
            middle / MIB,
            again(middle),
            again(low),
            again(high)
        );
    }
    Ok(())
}

/// (round, contender): who goes first changes.
fn turns(rounds: usize, contenders: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rounds).flat_map(move |round| (0..contenders).map(move |turn| (round, (round + turn) % contenders)))
}

fn print_sample(round: usize, name: &str, sample: Sample) {
    let (wall, wire, taken) = (
        sample.wall.as_secs_f64(),
        sample.wire as f64 / MIB,
        sample.taken as f64 / MIB,
    );
    println!(
        "  {:>2} {name:<18} {wall:>7.2} s  {wire:>7.0} MiB sent, the copy takes {taken:.0} MiB",
        round + 1
    );
}

/// Drover is the first of them.
fn report(names: &[&str], samples: &[Vec<Sample>]) {
    let wall = |samples: &Vec<Sample>| quartiles(samples.iter().map(|one| one.wall.as_secs_f64()).collect());
    let wire = |samples: &Vec<Sample>| quartiles(samples.iter().map(|one| one.wire as f64 / MIB).collect()).1;
    let drover = samples.first().map_or(0.0, |first| wall(first).1);
    for (name, samples) in names.iter().zip(samples) {
        let (low, middle, high) = wall(samples);
        println!(
            "{name:<18} median {middle:>6.2} s ({low:.2} to {high:.2}), {:>6.0} MiB sent; drover takes {:.2} of it",
            wire(samples),
            drover / middle
        );
    }
}
