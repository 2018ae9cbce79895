//! Faults on real hosts, from the command line: chaos for as long as one likes, and the table of what was seen.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use drover_tests::faults::figures::{self, Figure};
use drover_tests::faults::{Case, Outcome, Patience, chaos, render, run_all};

#[derive(Debug, Parser)]
#[command(about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Random faults against random migrations; all invariants are checked throughout.
    Chaos {
        /// How long.
        #[arg(long, default_value_t = 30)]
        minutes: u64,
        /// The same seed makes the same plans; by default one is drawn, and printed.
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Cases of the matrix whose line contains all these words, in the matrix's order; without words all.
    Matrix {
        /// How often each.
        #[arg(long, default_value_t = 1)]
        times: usize,
        /// Stops and cuts last for 40 s.
        #[arg(long)]
        long: bool,
        words: Vec<String>,
    },
    /// How fast things recover.
    Figures {
        /// How often each is measured.
        #[arg(long, default_value_t = 10)]
        times: usize,
    },
    /// The results of the matrix as the table of docs/failures.md.
    Table,
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Chaos { minutes, seed } => {
            let seed = seed.unwrap_or_else(|| u64::from(uuid::Uuid::new_v4().as_fields().0));
            println!("seed {seed}: `make chaos MINUTES={minutes} SEED={seed}` makes the same plans");
            let summary = chaos::run(seed, Duration::from_secs(minutes * 60), |line| println!("{line}"))?;
            let ends: Vec<String> = summary
                .ends
                .iter()
                .map(|(end, count)| format!("{count} {end}"))
                .collect();
            println!(
                "{} rounds with seed {seed}: {}; never two copies, no guest lost, nothing left behind; longest standstill {:?}",
                summary.rounds,
                ends.join(", "),
                summary.longest_still
            );
        }
        Command::Matrix { times, long, words } => matrix(times, long, &words)?,
        Command::Figures { times } => {
            let tell = |what: &str, figure: Figure| {
                let Figure { least, median, most } = figure;
                println!("{what}: median {median:.1?} ({least:.1?} to {most:.1?}, n={times})");
            };
            tell(
                "controller killed at the switch: restart until its record is at rest",
                figures::controller_recovery(times)?,
            );
            tell(
                "controller killed while memory is sent: restart until it follows",
                figures::controller_follows(times)?,
            );
            tell(
                "source agent killed when all is sent, back after 1 s: guest still for",
                figures::source_agent(times)?,
            );
        }
        Command::Table => print!("{}", render(&Outcome::read_all(&Outcome::file())?)),
    }
    Ok(())
}

fn matrix(times: usize, long: bool, words: &[String]) -> Result<()> {
    let wanted = |case: &Case| words.iter().all(|word| case.to_string().contains(word));
    let cases: Vec<Case> = Case::all()
        .into_iter()
        .filter(wanted)
        .flat_map(|case| std::iter::repeat_n(case, times))
        .collect();
    let patience = if long { Patience::LONG } else { Patience::SHORT };
    let mut failed = 0;
    run_all(&cases, patience, |_, outcome| match outcome {
        Ok(outcome) => {
            println!("{outcome}");
            if let Err(error) = outcome.append_to(&Outcome::file()) {
                println!("not kept: {error:#}");
            }
        }
        Err(error) => {
            println!("FAILED {error:#}");
            failed += 1;
        }
    })?;
    ensure!(failed == 0, "{failed} of {} cases failed", cases.len());
    Ok(())
}
