//! A file as blocks: read with its holes, hashed, and packed for the way. All functions block.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

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
pub enum Content<'a> {
    /// Nothing but zeros; perhaps a hole.
    Zeros,
    Bytes(&'a [u8]),
}

/// Reads a file block by block, forwards: what the disk has, whatever the page cache shows.
#[derive(Debug)]
pub struct Blocks<'a> {
    file: &'a File,
    uncached: Uncached<'a>,
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
            uncached: Uncached::to_read(file, BLOCK),
            size,
            data_from: 0,
            zeros: hash(&zeros),
            last_zeros: hash(&zeros[..length(size, last)]),
        }
    }

    /// A block and its hash. Each block is asked for once, forwards.
    pub fn read(&mut self, block: u64) -> io::Result<(Content<'_>, Hash)> {
        let (from, length) = (block * BLOCK as u64, length(self.size, block));
        let end = from + length as u64;
        if self.data_from < end && self.data_from <= from {
            self.data_from = self.next_data(from)?;
        }
        let zeros = if length == BLOCK { self.zeros } else { self.last_zeros };
        if self.data_from >= end {
            return Ok((Content::Zeros, zeros));
        }
        let bytes = self.uncached.read(length, from)?;
        if is_zero(bytes) {
            return Ok((Content::Zeros, zeros));
        }
        Ok((Content::Bytes(bytes), hash(bytes)))
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

/// Packs block after block.
pub struct Packer(zstd::bulk::Compressor<'static>);

impl Packer {
    /// Fails for want of memory.
    pub fn new() -> io::Result<Self> {
        zstd::bulk::Compressor::new(LEVEL).map(Self)
    }

    /// True: `packed` holds the bytes, packed, and that saves an eighth or more. It grows no larger than it is.
    pub fn pack(&mut self, bytes: &[u8], packed: &mut Vec<u8>) -> bool {
        let mut pays = |bytes: &[u8]| match self.0.compress_to_buffer(bytes, packed) {
            Ok(length) => length <= bytes.len() - bytes.len() / 8,
            // It has no room for so much.
            Err(_) => false,
        };
        let sample = &bytes[..bytes.len().min(SAMPLE)];
        pays(sample) && (sample.len() == bytes.len() || pays(bytes))
    }
}

/// The bytes again; an error where they are not as many as there is room for.
pub fn unpack(packed: &[u8], bytes: &mut [u8]) -> io::Result<()> {
    if zstd::bulk::decompress_to_buffer(packed, bytes)? == bytes.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn holes_are_read_as_zeros_and_the_last_block_may_be_short() {
        let file = tempfile::tempfile().unwrap();
        let size = 3 * BLOCK as u64 + 100;
        file.set_len(size).unwrap();
        file.write_all_at(b"x", BLOCK as u64 + 5).unwrap();
        file.write_all_at(b"end", size - 3).unwrap();
        let mut blocks = Blocks::new(&file, size);
        assert_eq!(count(size), 4);
        assert_eq!(blocks.read(0).unwrap(), (Content::Zeros, hash(&vec![0; BLOCK])));
        let (Content::Bytes(second), hashed) = blocks.read(1).unwrap() else {
            panic!("data")
        };
        assert_eq!((second[5], hashed), (b'x', hash(second)));
        assert_eq!(blocks.read(2).unwrap().0, Content::Zeros);
        let (Content::Bytes(last), _) = blocks.read(3).unwrap() else {
            panic!("data")
        };
        assert_eq!(last.len(), 100);
        assert!(last.ends_with(b"end"));
    }

    #[test]
    fn only_what_gets_smaller_is_packed() {
        let (mut packer, mut packed) = (Packer::new().unwrap(), Vec::with_capacity(BLOCK));
        let noise: Vec<u8> = (0..BLOCK / 32).flat_map(|n| hash(&n.to_le_bytes())).collect();
        assert!(!packer.pack(&noise, &mut packed));
        let text = b"the same again and again ".repeat(BLOCK / 25);
        for text in [&text[..], &text[..100], &text[..SAMPLE]] {
            assert!(packer.pack(text, &mut packed));
            assert!(packed.len() < text.len() / 2);
            let mut again = vec![0; text.len()];
            unpack(&packed, &mut again).unwrap();
            assert_eq!(again, text);
            assert!(unpack(&packed, &mut again[1..]).is_err(), "too many");
            assert!(unpack(&packed, &mut vec![0; text.len() + 1]).is_err(), "too few");
        }
        let mixed = [&text[..SAMPLE], &noise[..BLOCK - SAMPLE]].concat();
        assert!(
            !packer.pack(&mixed, &mut packed),
            "its beginning was better than the rest"
        );
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
