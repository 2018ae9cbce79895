//! What the source's control loop was told, from its agent's log: test data for `agent/src/jobs/control.rs`.
//!
//! A line for each round that began: its number, milliseconds since the start of the transfer, bytes that remain, bytes
//! sent, bandwidth and dirty rate in bytes/s, throttle in percent, and the blackout in milliseconds that QEMU might use.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use drover_tests::cluster::Cluster;

const FIELDS: [&str; 8] = [
    "number",
    "at_ms",
    "remaining",
    "sent",
    "bandwidth",
    "dirty_rate",
    "throttle",
    "given_ms",
];

/// Lets agents tell it.
pub(crate) fn log_filter() -> (String, String) {
    (
        "RUST_LOG".to_owned(),
        "info,drover_agent::jobs::steering=debug".to_owned(),
    )
}

/// A place in an agent's log.
pub(crate) struct Told {
    log: PathBuf,
    length: usize,
}

impl Told {
    pub(crate) fn so_far(cluster: &Cluster<'_>, host: &str) -> Result<Self> {
        let log = cluster.agent_log(host)?;
        let length = fs::read(&log).with_context(|| log.display().to_string())?.len();
        Ok(Self { log, length })
    }

    /// Nothing where no round was told of.
    pub(crate) fn write_since(&self, path: &Path) -> Result<()> {
        let log = fs::read(&self.log)?;
        let text = String::from_utf8_lossy(log.get(self.length..).unwrap_or_default()).into_owned();
        let rounds: Vec<String> = text.lines().filter_map(round).collect();
        if rounds.is_empty() {
            return Ok(());
        }
        let table = format!("# {}\n{}\n", FIELDS.join(" "), rounds.join("\n"));
        fs::write(path, table).with_context(|| path.display().to_string())
    }
}

/// `… DEBUG a round begins at_ms=12 bandwidth=0 …`.
fn round(line: &str) -> Option<String> {
    let (_, said) = line.split_once(" a round begins ")?;
    let value = |field: &&str| {
        let mut words = said.split_whitespace();
        words.find_map(|word| word.strip_prefix(*field)?.strip_prefix('='))
    };
    let values: Option<Vec<&str>> = FIELDS.iter().map(value).collect();
    Some(values?.join(" "))
}
