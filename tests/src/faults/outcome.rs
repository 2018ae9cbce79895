//! What came of a case: one line for people, one line of JSON for the table in the documentation.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{Case, End};
use crate::cluster::Migration;

/// A case as it was seen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    pub act: String,
    pub moment: String,
    /// State of the record at rest.
    pub state: String,
    /// Reason of its error; empty where it has none.
    pub reason: String,
    /// Who decided, by the agents' journals.
    pub decided: String,
    /// How long the guest stood still, by ping, in milliseconds; none where it ended.
    pub still_ms: Option<u64>,
    /// From the fault to its end, in milliseconds.
    pub healed_ms: u64,
    /// From the fault to the record's rest, in milliseconds.
    pub rested_ms: u64,
    /// Attempts at phases that had to be repeated.
    pub repeats: usize,
}

impl Outcome {
    pub(super) fn new(
        case: Case,
        end: End,
        record: &Migration,
        healed: Duration,
        rested: Duration,
        still: Option<Duration>,
        decided: String,
    ) -> Outcome {
        let phases = record.0["phases"].as_array().cloned().unwrap_or_default();
        let attempts = |phase: &serde_json::Value| phase["attempt"].as_u64().unwrap_or(1) > 1;
        Outcome {
            act: case.act.to_string(),
            moment: case.moment.to_string(),
            state: end.state().to_string(),
            reason: record.reason().to_string(),
            decided,
            still_ms: still.map(|still| u64::try_from(still.as_millis()).unwrap_or(u64::MAX)),
            healed_ms: u64::try_from(healed.as_millis()).unwrap_or(u64::MAX),
            rested_ms: u64::try_from(rested.as_millis()).unwrap_or(u64::MAX),
            repeats: phases.iter().filter(|phase| attempts(phase)).count(),
        }
    }

    /// Adds it to a file of one JSON object per line.
    pub fn append_to(&self, path: &Path) -> Result<()> {
        let mut file = std::fs::File::options()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| path.display().to_string())?;
        Ok(writeln!(file, "{}", serde_json::to_string(self)?)?)
    }

    /// Reads such a file; none is an empty one.
    pub fn read_all(path: &Path) -> Result<Vec<Outcome>> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            other => other.with_context(|| path.display().to_string())?,
        };
        text.lines()
            .map(|line| serde_json::from_str(line).with_context(|| format!("{}: {line}", path.display())))
            .collect()
    }

    /// Where results of this build are kept.
    pub fn file() -> PathBuf {
        let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        let target = target.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"));
        target.join("faults.jsonl")
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let still = self
            .still_ms
            .map_or("the guest ended".to_string(), |ms| format!("still for {ms} ms"));
        write!(
            f,
            "{:<32} {:<30} {} {}; {still}; mended after {} ms, at rest after {} ms; {} repeats; decided by {}",
            self.act, self.moment, self.state, self.reason, self.healed_ms, self.rested_ms, self.repeats, self.decided
        )
    }
}
