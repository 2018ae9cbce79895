//! The ends of a block device that is being overwritten: what it is known by comes last.
//!
//! Promise: nothing is written to a device that anybody could know by its first or its last MiB. As long as a copy is on
//! its way both are blank; they are written when all between them has reached the disk. So whoever goes on with a copy
//! finds them blank, or finds all of it there: a path that leads to another device by now does no harm. All functions
//! block.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::BLOCK;
use super::blocks::{is_zero, length};
use crate::images::device::END;

/// Why it is not written to.
#[derive(Debug, thiserror::Error)]
pub enum EndsError {
    #[error("there is something at one of its ends")]
    NotBlank,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Of one device, while it is open.
#[derive(Debug)]
pub struct Ends {
    size: u64,
    blank: bool,
    /// What belongs there, by block; none where zeros do.
    held: BTreeMap<u64, Option<Vec<u8>>>,
}

impl Ends {
    /// `blank`: how it was found.
    pub fn new(size: u64, blank: bool) -> Self {
        let held = BTreeMap::new();
        Self { size, blank, held }
    }

    /// A block that differs from what is there; none: it becomes zeros. False: it is to be written now.
    pub fn keep(&mut self, block: u64, bytes: Option<&[u8]>) -> Result<bool, EndsError> {
        if self.parts(block).iter().any(|part| !part.is_empty()) {
            self.held.insert(block, bytes.map(<[u8]>::to_vec));
            return Ok(true);
        }
        if self.blank {
            Ok(false)
        } else {
            Err(EndsError::NotBlank)
        }
    }

    /// All has come: what lies between the ends reaches the disk, then they are written.
    pub fn write(&mut self, file: &File) -> Result<(), EndsError> {
        if self.held.is_empty() {
            return Ok(());
        }
        file.sync_all()?;
        for (block, bytes) in std::mem::take(&mut self.held) {
            for part in self.parts(block).iter().filter(|part| !part.is_empty()) {
                let mut there = vec![0; usize::try_from(part.end - part.start).unwrap_or_default()];
                file.read_exact_at(&mut there, part.start)?;
                if !is_zero(&there) {
                    return Err(EndsError::NotBlank);
                }
            }
            let zeros = || vec![0; length(self.size, block)];
            file.write_all_at(&bytes.unwrap_or_else(zeros), block * BLOCK as u64)?;
        }
        Ok(())
    }

    /// What of a block lies in the first and in the last MiB, as bytes of the device.
    fn parts(&self, block: u64) -> [Range<u64>; 2] {
        let start = block * BLOCK as u64;
        let end = start + length(self.size, block) as u64;
        [start..end.min(END), start.max(self.size.saturating_sub(END))..end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = BLOCK;

    /// A file in place of a device, of four MiB and a half.
    fn device(size: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        file
    }

    fn read(file: &File, at: usize) -> u8 {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at as u64).unwrap();
        byte[0]
    }

    #[test]
    fn what_a_device_is_known_by_comes_last() {
        let size = 4 * MIB + MIB / 2;
        let (file, mut ends) = (device(size as u64), Ends::new(size as u64, true));
        // Left there by somebody, beside the last MiB but in one of its blocks.
        file.write_all_at(b"x", 3 * MIB as u64 + 5).unwrap();
        let block = |number: u64| vec![b'0' + u8::try_from(number).unwrap(); length(size as u64, number)];
        let kept: Vec<u64> = (0..5)
            .filter(|number| ends.keep(*number, Some(&block(*number))).unwrap())
            .collect();
        assert_eq!(kept, [0, 3, 4], "the last MiB begins within a block");
        assert_eq!((read(&file, 0), read(&file, size - 1)), (0, 0));
        ends.write(&file).unwrap();
        for (number, at) in [(0, 0), (3, 3 * MIB), (3, 4 * MIB - 1), (4, 4 * MIB), (4, size - 1)] {
            assert_eq!(read(&file, at), b'0' + number, "{at}");
        }
        assert_eq!(read(&file, MIB), 0, "what is not at an end is the caller's");
    }

    #[test]
    fn what_somebody_has_at_either_end_stays() {
        let size = 4 * MIB as u64;
        for at in [0, MIB as u64 - 1, size - MIB as u64, size - 1] {
            let (file, mut ends) = (device(size), Ends::new(size, true));
            file.write_all_at(b"p", at).unwrap();
            assert!(ends.keep(0, Some(&vec![1; MIB])).unwrap() && ends.keep(3, None).unwrap());
            // It came while the copy was on its way.
            let written = ends.write(&file);
            assert!(matches!(written, Err(EndsError::NotBlank)), "{at}: {written:?}");
            assert_eq!(read(&file, usize::try_from(at).unwrap()), b'p');
        }
    }

    #[test]
    fn one_that_is_known_is_compared_and_never_written_to() {
        let size = 4 * MIB as u64;
        let mut ends = Ends::new(size, false);
        assert!(matches!(ends.keep(1, Some(&vec![1; MIB])), Err(EndsError::NotBlank)));
        assert!(matches!(ends.keep(2, None), Err(EndsError::NotBlank)));
        // A copy that was cut between its ends: the first one is as it was sent, the last one still blank.
        let file = device(size);
        file.write_all_at(&vec![7; MIB], 0).unwrap();
        assert!(ends.keep(3, Some(&vec![9; MIB])).unwrap());
        ends.write(&file).unwrap();
        assert_eq!((read(&file, 0), read(&file, 4 * MIB - 1)), (7, 9));
    }

    #[test]
    fn a_small_one_is_nothing_but_ends() {
        let size = MIB as u64 + 512;
        let (file, mut ends) = (device(size), Ends::new(size, true));
        assert!(ends.keep(0, Some(&vec![1; MIB])).unwrap() && ends.keep(1, Some(&[2; 512])).unwrap());
        ends.write(&file).unwrap();
        assert_eq!((read(&file, 0), read(&file, MIB + 511)), (1, 2));
    }
}
