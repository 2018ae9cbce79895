//! One preallocated file with two slots that are written in turn: a torn write costs the newer record, never both,
//! and a full disk stops no rewrite.
//!
//! ```text
//!  | magic sequence length checksum | payload … |    slot 0
//!  | magic sequence length checksum | payload … |    slot 1
//! ```
//!
//! All functions block; `store.rs` keeps them off the async threads.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"DROVERJ1";
/// magic, sequence, length, checksum.
const HEADER: usize = 8 + 8 + 4 + 4;

/// The open file and where the next write goes.
#[derive(Debug)]
pub(crate) struct Slots {
    file: File,
    slot_size: usize,
    sequence: u64,
    next_slot: u64,
}

/// Why a file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SlotsError {
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    /// Neither slot can be read: the file was damaged, or its creation was cut off before anything was announced.
    #[error("{path}: no readable record", path = path.display())]
    Unreadable { path: PathBuf },
    #[error("a record of {length} bytes does not fit into {room}")]
    TooLarge { length: usize, room: usize },
}

impl Slots {
    /// Makes the file under its final name, with its space taken and the first record in it, or leaves nothing.
    /// When this returns, file and directory have reached the disk.
    pub(crate) fn create(path: &Path, slot_size: usize, payload: &[u8]) -> Result<Self, SlotsError> {
        let io_error = |source| SlotsError::Io {
            path: path.to_owned(),
            source,
        };
        let partial = path.with_extension("partial");
        let created = Self::write_new(&partial, slot_size, payload)?;
        std::fs::rename(&partial, path).map_err(io_error)?;
        sync_directory_of(path).map_err(io_error)?;
        Ok(created)
    }

    fn write_new(partial: &Path, slot_size: usize, payload: &[u8]) -> Result<Self, SlotsError> {
        let io_error = |source| SlotsError::Io {
            path: partial.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(partial)
            .map_err(io_error)?;
        // Zeros really written, not a hole and not an unwritten extent: a rewrite then needs no new block.
        let zeros = vec![0; slot_size * 2];
        let taken = file.write_all(&zeros).and_then(|()| file.sync_all());
        if let Err(error) = taken {
            // Best effort: the next start sweeps what is left.
            let _ = std::fs::remove_file(partial);
            return Err(io_error(error));
        }
        let mut slots = Self {
            file,
            slot_size,
            sequence: 0,
            next_slot: 0,
        };
        slots.write(payload)?;
        Ok(slots)
    }

    /// Opens a file and reads its newest whole record. `sizes` are the slot sizes it may have, smaller ones first.
    pub(crate) fn open(path: &Path, sizes: &[usize]) -> Result<(Self, Vec<u8>), SlotsError> {
        let io_error = |source| SlotsError::Io {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(io_error)?;
        let length = file.metadata().map_err(io_error)?.len();
        let fits = sizes.iter().find(|size| length <= **size as u64 * 2).or(sizes.last());
        let Some(&slot_size) = fits else {
            return Err(SlotsError::Unreadable { path: path.to_owned() });
        };
        let newest = [0, 1]
            .into_iter()
            .filter_map(|slot| read_slot(&file, slot, slot_size).map(|(sequence, payload)| (sequence, slot, payload)))
            .max_by_key(|(sequence, _, _)| *sequence);
        let Some((sequence, slot, payload)) = newest else {
            return Err(SlotsError::Unreadable { path: path.to_owned() });
        };
        Ok((
            Self {
                file,
                slot_size,
                sequence,
                next_slot: 1 - slot,
            },
            payload,
        ))
    }

    /// Bytes that a record may have.
    pub(crate) fn room(&self) -> usize {
        room(self.slot_size)
    }

    /// Writes a record over the older one and waits for the disk. After an error the disk may hold either: the next
    /// write goes to the same slot again, so that the last record known to be whole is never touched.
    pub(crate) fn write(&mut self, payload: &[u8]) -> Result<(), SlotsError> {
        if payload.len() > self.room() {
            return Err(SlotsError::TooLarge {
                length: payload.len(),
                room: self.room(),
            });
        }
        let io_error = |source| SlotsError::Io {
            path: PathBuf::from("journal slot"),
            source,
        };
        self.sequence += 1;
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&checksum(self.sequence, payload).to_le_bytes());
        bytes.extend_from_slice(payload);
        self.file
            .write_all_at(&bytes, self.next_slot * self.slot_size as u64)
            .map_err(io_error)?;
        self.file.sync_data().map_err(io_error)?;
        self.next_slot = 1 - self.next_slot;
        Ok(())
    }
}

/// Bytes that a record may have in a slot of this size.
pub(super) fn room(slot_size: usize) -> usize {
    slot_size - HEADER
}

/// Waits until the directory's entries have reached the disk.
pub(super) fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

fn read_slot(file: &File, slot: u64, slot_size: usize) -> Option<(u64, Vec<u8>)> {
    let start = slot * slot_size as u64;
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, start).ok()?;
    let number = |range: std::ops::Range<usize>| header[range].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
    let (sequence, length) = (number(8..16), usize::try_from(number(16..20)).ok()?);
    if &header[..8] != MAGIC || length > room(slot_size) {
        return None;
    }
    let mut payload = vec![0; length];
    file.read_exact_at(&mut payload, start + HEADER as u64).ok()?;
    (u64::from(checksum(sequence, &payload)) == number(20..24)).then_some((sequence, payload))
}

/// CRC-32 (reflected, polynomial 0xEDB88320) of the sequence number and the payload.
fn checksum(sequence: u64, payload: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 {
                    value >> 1 ^ 0xEDB8_8320
                } else {
                    value >> 1
                };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    let bytes = sequence.to_le_bytes();
    let sum = bytes.iter().chain(payload).fold(u32::MAX, |crc, byte| {
        TABLE[((crc ^ u32::from(*byte)) & 0xFF) as usize] ^ crc >> 8
    });
    !sum
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
