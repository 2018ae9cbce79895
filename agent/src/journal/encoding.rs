//! A record as bytes: JSON with a version, and what is left out when it does not fit.
//!
//! Promise: once a record was accepted by [`encode_new`], every later state of it fits. What may grow (calls, the
//! cookie for Confirm) is left out before anything is refused.

use drover_proto::overrides::Overrides;
use serde::{Deserialize, Serialize};

use super::record::{Part, Record};
use super::state::{Decision, Verdict};
use super::store::JournalError;
use crate::hypervisor::Cookie;

const VERSION: u32 = 1;
/// Kept free in a new record: tickets, addresses, states, cookies that come later.
const RESERVE: usize = 48 * 1024;

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    record: &'a Record,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Deserialize)]
struct Read {
    record: Record,
}

fn to_bytes(record: &Record) -> Result<Vec<u8>, JournalError> {
    serde_json::to_vec(&Written {
        version: VERSION,
        record,
    })
    .map_err(|error| JournalError::Encoding(error.to_string()))
}

/// A new record; refused where it would leave too little room for what comes later.
pub(super) fn encode_new(record: &Record, room: usize) -> Result<Vec<u8>, JournalError> {
    let payload = to_bytes(record)?;
    let limit = room.saturating_sub(RESERVE);
    if payload.len() > limit {
        return Err(JournalError::TooLarge {
            length: payload.len(),
            limit,
        });
    }
    Ok(payload)
}

/// A later state of a record.
pub(super) fn encode(record: &Record, room: usize) -> Result<Vec<u8>, JournalError> {
    let payload = to_bytes(record)?;
    if payload.len() <= room {
        return Ok(payload);
    }
    let mut smaller = record.clone();
    smaller.calls.clear();
    let payload = to_bytes(&smaller)?;
    if payload.len() <= room {
        return Ok(payload);
    }
    // Confirm works without it; libvirt's statistics are lost.
    if let Some(arrival) = smaller.destination_mut().and_then(|part| part.arrival.as_mut()) {
        arrival.cookie = Cookie::default();
    }
    if let Some(delivery) = smaller.source_mut().and_then(|part| part.delivery.as_mut()) {
        delivery.addresses.truncate(4);
    }
    to_bytes(&smaller)
}

/// A closed record without what nobody needs any more.
pub(super) fn encode_closed(record: &mut Record, room: usize) -> Result<Vec<u8>, JournalError> {
    let ran = record.decision == Decision::Settled(Verdict::Ran);
    record.calls.clear();
    if let Some(tombstone) = &mut record.tombstone {
        tombstone.reason.truncate(tombstone.reason.floor_char_boundary(256));
    }
    match &mut record.part {
        Part::Nothing => {}
        Part::Source(part) => {
            part.inactive_xml = None;
            part.overrides = Overrides::default();
            part.delivery = None;
            if let Some(leaving) = &mut part.offline {
                leaving.original_xml = None;
                leaving.shared.clear();
                // What was kept under another name may go later.
                let kept = !leaving.delete_source && ran;
                leaving.files.retain(|file| kept && !file.stays);
            }
            // Whatever was to be removed is removed before it is closed.
            part.copied.clear();
        }
        Part::Destination(part) => {
            part.inactive_xml = None;
            part.cookie = None;
            if let Some(coming) = &mut part.offline {
                coming.files.clear();
            }
            part.images.clear();
            if let Some(arrival) = &mut part.arrival {
                arrival.cookie = Cookie::default();
            }
        }
    }
    let payload = to_bytes(record)?;
    if payload.len() <= room {
        return Ok(payload);
    }
    // So many that they stay until somebody removes them.
    if let Some(leaving) = record.source_mut().and_then(|part| part.offline.as_mut()) {
        leaving.files.clear();
    }
    to_bytes(record)
}

/// Reads a record back.
pub(super) fn decode(payload: &[u8]) -> Result<Record, JournalError> {
    let unreadable = |error: serde_json::Error| JournalError::Encoding(error.to_string());
    let Version { version } = serde_json::from_slice(payload).map_err(unreadable)?;
    if version != VERSION {
        let message = format!("version {version} of the journal is not known here, only {VERSION}");
        return Err(JournalError::Encoding(message));
    }
    let Read { record } = serde_json::from_slice(payload).map_err(unreadable)?;
    Ok(record)
}
