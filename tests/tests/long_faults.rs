//! Every fault at every moment, on real hosts. What passed for this build is not run again: `target/faults.passed`
//! remembers it, so that an interrupted run goes on where it was.
//!
//! `DROVER_PATIENCE=short` lets stops and cuts last 8 to 10 s instead of 40 s.
//! `DROVER_FAULTS=WORDS` runs only cases whose line contains all these words, whether they passed before or not.

use std::fs;
use std::io::Write;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, ensure};
use drover_tests::Lab;
use drover_tests::cluster::{Expected, Process};
use drover_tests::faults::{Case, Outcome, Patience, Stage, run_all};

/// Changes with the programs that are tested.
fn build() -> Result<String> {
    let folder = std::env::current_exe()?;
    let folder = folder.ancestors().nth(2).context("no folder of programs")?.to_owned();
    let stamps = ["drover-agent", "drover-controller"].map(|name| -> Result<String> {
        let data = fs::metadata(folder.join(name))?;
        let changed = data.modified()?.duration_since(UNIX_EPOCH)?;
        Ok(format!("{}-{}", data.len(), changed.as_secs()))
    });
    Ok(stamps.into_iter().collect::<Result<Vec<_>>>()?.join("-"))
}

#[test]
fn every_fault_at_every_moment() -> Result<()> {
    let (build, passed_file) = (build()?, Outcome::file().with_extension("passed"));
    let passed = fs::read_to_string(&passed_file).unwrap_or_default();
    let line = |case: &Case| format!("{build} {case}");
    let wanted = std::env::var("DROVER_FAULTS").ok();
    let left: Vec<Case> = Case::all()
        .into_iter()
        .filter(|case| match &wanted {
            Some(words) => words.split_whitespace().all(|word| line(case).contains(word)),
            None => !passed.lines().any(|known| known == line(case)),
        })
        .collect();
    println!("{} of {} cases are to be run", left.len(), Case::all().len());
    let mut file = fs::File::options().create(true).append(true).open(&passed_file)?;
    let mut failed = Vec::new();
    let short = std::env::var("DROVER_PATIENCE").is_ok_and(|word| word == "short");
    let patience = if short { Patience::SHORT } else { Patience::LONG };
    run_all(&left, patience, |case, outcome| {
        let noted = outcome.and_then(|outcome| {
            println!("{outcome}");
            outcome.append_to(&Outcome::file())?;
            Ok(writeln!(file, "{}", line(&case))?)
        });
        if let Err(error) = noted {
            println!("FAILED {error:#}");
            failed.push(format!("{error:#}"));
        }
    })?;
    ensure!(
        failed.is_empty(),
        "{} of {} cases failed:\n{}",
        failed.len(),
        left.len(),
        failed.join("\n")
    );
    Ok(())
}

/// Before any moment of the matrix: both hosts were found fit, nothing was begun.
const CHECKED: &str = "controller.prepare-started";

/// The matrix fills the disks of journals that are there. Here there is no room for one.
#[test]
fn a_journal_for_which_there_is_no_room_is_not_begun_without() -> Result<()> {
    let mut lab = Lab::builder().start()?;
    let guest = lab.start_guest("host-a", &Stage::guest())?;
    let mut stage = Stage::start(&lab, guest)?;
    for role in ["source", "destination"] {
        let (source, destination) = stage.sides();
        let full = Process::Agent(if role == "source" {
            source.clone()
        } else {
            destination.clone()
        });
        let watch = lab.watch(&[&stage.guest])?;
        stage.cluster.arm(&Process::Controller, CHECKED)?;
        let id = stage.cluster.begin(&stage.guest, &destination)?.id().to_string();
        stage.cluster.wait_for_point(&Process::Controller, CHECKED)?;
        stage.cluster.fill_disk(&full)?;
        stage.cluster.release()?;
        stage.cluster.wait_for(&id, "to meet the full disk", |now| {
            let phases = now.0["phases"].as_array();
            phases.is_some_and(|phases| {
                let says = |phase: &serde_json::Value| phase["detail"].as_str().unwrap_or_default().to_owned();
                phases.iter().any(|phase| says(phase).contains("No space left"))
            })
        })?;
        stage.cluster.empty_disk(&full)?;
        let end = stage.cluster.wait_for_rest(&id)?;
        // What was tried again found room; what was undone left the guest where it was.
        let home = match end.state() {
            "SUCCEEDED" => destination,
            "FAILED" => source,
            _ => anyhow::bail!("{}", end.0),
        };
        println!("no room for a journal at the {role}: {} {}", end.state(), end.reason());
        stage.cluster.check(&[Expected::Runs(&stage.guest, &home)])?;
        watch.finish()?.check()?;
        stage.set_place(&home);
    }
    Ok(())
}
