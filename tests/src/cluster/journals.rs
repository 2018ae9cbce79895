//! What the agents' journals say, read from their files: whose word decided, and whether a page was left open.
//!
//! The format is the product's (`agent/src/journal/slots.rs`): two slots in one file, each with a number that grows;
//! the higher one counts. The lab must build while the product does not, so it is read here once more.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Cluster;

const MAGIC: &[u8; 8] = b"DROVERJ1";
/// Magic, sequence, length, checksum.
const HEADER: usize = 8 + 8 + 4 + 4;

/// One agent's page of one migration.
#[derive(Debug, Clone, PartialEq)]
pub struct Page(Value);

impl Page {
    /// `Sending`, `HandedOver`; `Waiting`, `Finishing`, `Resuming`, `Ran`, `Revoked`, `Failed`; empty for a tombstone.
    pub fn state(&self) -> &str {
        let part = &self.0["part"];
        let side = if part["Source"].is_null() {
            "Destination"
        } else {
            "Source"
        };
        part[side]["state"].as_str().unwrap_or_default()
    }

    /// `Ran` or `NeverRan`; empty where no verdict is written.
    pub fn verdict(&self) -> &str {
        let decision = &self.0["decision"];
        let written = decision["Settled"].as_str().or(decision["Decided"].as_str());
        written.unwrap_or_default()
    }

    /// An undo was ordered.
    pub fn is_tombstoned(&self) -> bool {
        self.0["tombstone"].is_object()
    }

    /// Nothing is to be done about it any more.
    pub fn is_closed(&self) -> bool {
        !self.0["closed"].is_null()
    }
}

impl Cluster<'_> {
    /// A host's page of a migration; none where it has none.
    pub fn page(&self, host: &str, migration: &str) -> Result<Option<Page>> {
        let path = self.host(host).outside("/var/lib/drover/journal");
        let path = path.join(format!("{migration}.journal"));
        if !path.exists() {
            return Ok(None);
        }
        read(&path).map(Some)
    }

    /// Pages of all hosts that are up on which something is still to be done.
    pub fn open_pages(&self) -> Result<Vec<String>> {
        let mut open = Vec::new();
        for host in self.lab().hosts().iter().filter(|host| host.is_up()) {
            // An agent that never began anything has none.
            let Ok(entries) = fs::read_dir(host.outside("/var/lib/drover/journal")) else {
                continue;
            };
            for path in entries.flatten().map(|entry| entry.path()) {
                if path.extension().is_some_and(|ending| ending == "journal") {
                    let page = read(&path)?;
                    if !page.is_closed() {
                        open.push(format!("{}: {} {}", host.name(), path.display(), page.state()));
                    }
                }
            }
        }
        Ok(open)
    }
}

fn read(path: &Path) -> Result<Page> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    newest(&bytes).with_context(|| path.display().to_string())
}

/// Of the two slots, which share the file.
fn newest(bytes: &[u8]) -> Result<Page> {
    let halves = [bytes, &bytes[bytes.len() / 2..]];
    let newest = halves
        .into_iter()
        .filter_map(slot)
        .max_by_key(|(sequence, _)| *sequence);
    let (_, record) = newest.context("no record in it can be read")?;
    ensure!(!record["part"].is_null(), "no record of a migration: {record}");
    Ok(Page(record))
}

fn slot(bytes: &[u8]) -> Option<(u64, Value)> {
    let number = |at: usize, length: usize| {
        let bytes = bytes.get(at..at + length)?;
        Some(bytes.iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    if bytes.get(..8)? != MAGIC {
        return None;
    }
    let (sequence, length) = (number(8, 8)?, usize::try_from(number(16, 4)?).ok()?);
    // One that is being written is not whole: then the other one counts.
    let mut written: Value = serde_json::from_slice(bytes.get(HEADER..HEADER + length)?).ok()?;
    Some((sequence, written["record"].take()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot_of(sequence: u64, record: &str) -> Vec<u8> {
        let payload = format!("{{\"version\":1,\"record\":{record}}}");
        let mut bytes = MAGIC.to_vec();
        bytes.extend(sequence.to_le_bytes());
        bytes.extend((payload.len() as u32).to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload.as_bytes());
        bytes.resize(1024, 0);
        bytes
    }

    const OPEN: &str =
        r#"{"part":{"Destination":{"state":"Waiting"}},"decision":"Open","tombstone":null,"closed":null}"#;
    const RAN: &str = r#"{"part":{"Destination":{"state":"Ran"}},"decision":{"Settled":"Ran"},"tombstone":{"up_to":1},
        "closed":{"secs_since_epoch":1}}"#;

    #[test]
    fn the_newer_of_the_two_records_counts() {
        let page = newest(&[slot_of(4, RAN), slot_of(3, OPEN)].concat()).unwrap();
        assert_eq!((page.state(), page.verdict()), ("Ran", "Ran"));
        assert!(page.is_closed() && page.is_tombstoned());
        let page = newest(&[slot_of(4, RAN), slot_of(5, OPEN)].concat()).unwrap();
        assert_eq!((page.state(), page.verdict()), ("Waiting", ""));
        assert!(!page.is_closed() && !page.is_tombstoned());
    }

    #[test]
    fn one_that_was_torn_does_not_count() {
        let mut torn = slot_of(5, OPEN);
        torn[60] = 0;
        let page = newest(&[slot_of(4, RAN), torn].concat()).unwrap();
        assert_eq!(page.state(), "Ran");
        assert!(newest(&[0; 2048]).is_err());
    }
}
