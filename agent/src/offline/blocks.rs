//! A file as blocks: read with its holes, hashed, and packed for the way. All functions block.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek64};

use super::BLOCK;
use super::uncached::Uncached;

/// BLAKE3 of a block.
pub type Hash = [u8; 32];

/// So much of a block is packed first, to see whether that pays.
const SAMPLE: usize = 64 * 1024;
const LEVEL: i32 = 1;

/// What a block holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing but zeros; perhaps a hole.
    Zeros,
    Bytes(Vec<u8>),
}

/// Reads a file block by block, forwards.
#[derive(Debug)]
pub struct Blocks<'a> {
    file: &'a File,
    /// Past the page cache, where that is wanted.
    uncached: Option<Uncached<'a>>,
    size: u64,
    /// Where the next data begin, as far as it was asked.
    data_from: u64,
    zeros: Hash,
    last_zeros: Hash,
}

/// How many blocks a file of this size has.
pub fn count(size: u64) -> u64 {
    size.div_ceil(BLOCK as u64)
}

/// Bytes of one block: the last one may be shorter.
pub fn length(size: u64, block: u64) -> usize {
    let left = size.saturating_sub(block.saturating_mul(BLOCK as u64));
    usize::try_from(left).unwrap_or(BLOCK).min(BLOCK)
}

pub fn hash(bytes: &[u8]) -> Hash {
    *blake3::hash(bytes).as_bytes()
}

/// Of a whole file: over its size and the hashes of its blocks in order.
#[derive(Debug)]
pub struct Whole(blake3::Hasher);

impl Whole {
    pub fn new(size: u64) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&size.to_le_bytes());
        Self(hasher)
    }

    pub fn add(&mut self, block: &Hash) {
        self.0.update(block);
    }

    pub fn hash(&self) -> Hash {
        *self.0.finalize().as_bytes()
    }
}

impl<'a> Blocks<'a> {
    pub fn new(file: &'a File, size: u64) -> Self {
        let zeros = vec![0; BLOCK];
        let last = count(size).saturating_sub(1);
        Self {
            file,
            uncached: None,
            size,
            data_from: 0,
            zeros: hash(&zeros),
            last_zeros: hash(&zeros[..length(size, last)]),
        }
    }

    /// What the disk has, whatever the page cache shows.
    pub fn from_disk(file: &'a File, size: u64) -> Self {
        Self {
            uncached: Some(Uncached::to_read(file, BLOCK)),
            ..Self::new(file, size)
        }
    }

    /// A block and its hash. Each block is asked for once, forwards.
    pub fn read(&mut self, block: u64) -> io::Result<(Content, Hash)> {
        let (from, length) = (block * BLOCK as u64, length(self.size, block));
        let end = from + length as u64;
        if self.data_from < end && self.data_from <= from {
            self.data_from = self.next_data(from)?;
        }
        let zeros = if length == BLOCK { self.zeros } else { self.last_zeros };
        if self.data_from >= end {
            return Ok((Content::Zeros, zeros));
        }
        let mut bytes = vec![0; length];
        match &mut self.uncached {
            Some(uncached) => uncached.read_exact_at(&mut bytes, from)?,
            None => self.file.read_exact_at(&mut bytes, from)?,
        }
        if is_zero(&bytes) {
            return Ok((Content::Zeros, zeros));
        }
        let hash = hash(&bytes);
        Ok((Content::Bytes(bytes), hash))
    }

    /// Where data begin at or after this; the end of the file where there are none.
    fn next_data(&self, from: u64) -> io::Result<u64> {
        let at = i64::try_from(from).map_err(io::Error::other)?;
        match lseek64(self.file.as_fd(), at, Whence::SeekData) {
            Ok(found) => Ok(u64::try_from(found).unwrap_or(from)),
            Err(Errno::ENXIO) => Ok(self.size),
            // A file system that does not know of holes.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(from),
            Err(errno) => Err(errno.into()),
        }
    }
}

pub fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// Packed, where that saves an eighth or more.
pub fn pack(bytes: &[u8]) -> Option<Vec<u8>> {
    let pays = |packed: &[u8], whole: usize| packed.len() <= whole - whole / 8;
    let sample = &bytes[..bytes.len().min(SAMPLE)];
    let first = zstd::bulk::compress(sample, LEVEL).ok()?;
    if !pays(&first, sample.len()) {
        return None;
    }
    if sample.len() == bytes.len() {
        return Some(first);
    }
    let packed = zstd::bulk::compress(bytes, LEVEL).ok()?;
    pays(&packed, bytes.len()).then_some(packed)
}

/// The bytes again; an error where they are not so many.
pub fn unpack(packed: &[u8], length: usize) -> io::Result<Vec<u8>> {
    zstd::bulk::decompress(packed, length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_read_as_zeros_and_the_last_block_may_be_short() {
        let file = tempfile::tempfile().unwrap();
        let size = 3 * BLOCK as u64 + 100;
        file.set_len(size).unwrap();
        file.write_all_at(b"x", BLOCK as u64 + 5).unwrap();
        file.write_all_at(b"end", size - 3).unwrap();
        let mut blocks = Blocks::new(&file, size);
        let mut read = |block| blocks.read(block).unwrap();
        assert_eq!(count(size), 4);
        let (first, zeros) = read(0);
        assert_eq!((first, zeros), (Content::Zeros, hash(&vec![0; BLOCK])));
        let (Content::Bytes(second), hashed) = read(1) else {
            panic!("data")
        };
        assert_eq!((second[5], hashed), (b'x', hash(&second)));
        assert_eq!(read(2).0, Content::Zeros);
        let (Content::Bytes(last), _) = read(3) else {
            panic!("data")
        };
        assert_eq!(last.len(), 100);
        assert!(last.ends_with(b"end"));
    }

    #[test]
    fn only_what_gets_smaller_is_packed() {
        let text = b"the same again and again ".repeat(BLOCK / 25);
        let packed = pack(&text).unwrap();
        assert!(packed.len() < text.len() / 8);
        assert_eq!(unpack(&packed, text.len()).unwrap(), text);
        assert!(unpack(&packed, text.len() - 1).is_err());
        let noise: Vec<u8> = (0..BLOCK / 32).flat_map(|n| hash(&n.to_le_bytes())).collect();
        assert_eq!(pack(&noise), None);
    }

    #[test]
    fn a_single_byte_is_not_zero() {
        let mut bytes = vec![0; 1000];
        assert!(is_zero(&bytes));
        for at in [0, 15, 16, 999] {
            bytes[at] = 1;
            assert!(!is_zero(&bytes));
            bytes[at] = 0;
        }
    }
}
