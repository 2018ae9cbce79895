//! Faults on real hosts, from the command line: chaos for as long as one likes, and the table of what was seen.

use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use drover_tests::faults::{Outcome, chaos, render};

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
        Command::Table => print!("{}", render(&Outcome::read_all(&Outcome::file())?)),
    }
    Ok(())
}
