//! A file that is read and written past the page cache: what is read comes from the disk, and the host's memory is left to
//! its guests. Blocks.
//!
//! Where its file system cannot do that (no O_DIRECT, pages larger than ours), and for what does not fill a page, it goes
//! through the cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

/// What O_DIRECT wants offsets, lengths and memory to be multiples of: no disk's logical block is larger (open(2)).
const PAGE: usize = 4096;

/// A file, and memory that it is read into and written from.
#[derive(Debug)]
pub struct Uncached<'a> {
    file: &'a File,
    /// The same file; none where it has to go through the cache.
    direct: Option<File>,
    memory: Vec<u8>,
    /// Where a page begins in it.
    from: usize,
}

impl<'a> Uncached<'a> {
    /// At most so many bytes are read at once.
    pub fn to_read(file: &'a File, most: usize) -> Self {
        Self::new(file, most, false)
    }

    /// At most so many bytes are read or written at once.
    pub fn to_write(file: &'a File, most: usize) -> Self {
        Self::new(file, most, true)
    }

    fn new(file: &'a File, most: usize, writes: bool) -> Self {
        let same = format!("/proc/self/fd/{}", file.as_raw_fd());
        let mut options = OpenOptions::new();
        options.read(true).write(writes).custom_flags(libc::O_DIRECT);
        let memory = vec![0; most.next_multiple_of(PAGE) + PAGE];
        let from = memory.as_ptr().align_offset(PAGE);
        let is_aligned = from < PAGE;
        Self {
            file,
            direct: options.open(same).ok().filter(|_| is_aligned),
            memory,
            from: if is_aligned { from } else { 0 },
        }
    }

    /// So many bytes of the file, at most as many as was said.
    pub fn read(&mut self, length: usize, at: u64) -> io::Result<&[u8]> {
        let pages = &mut self.memory[self.from..][..length.next_multiple_of(PAGE)];
        let mut got = 0;
        if let Some(direct) = self.direct.as_ref().filter(|_| is_page(at)) {
            let mut unfit = false;
            // The end of a file need not fill a page.
            while got < length && got.is_multiple_of(PAGE) && !unfit {
                match direct.read_at(&mut pages[got..], at + got as u64) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(read) => got += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if is_unfit(&error) => unfit = true,
                    Err(error) => return Err(error),
                }
            }
            got = got.min(length);
            if unfit {
                self.direct = None;
            }
        }
        self.file.read_exact_at(&mut pages[got..length], at + got as u64)?;
        Ok(&pages[..length])
    }

    /// Where so many bytes are put that are to be written, at most as many as was said.
    pub fn memory(&mut self, length: usize) -> &mut [u8] {
        &mut self.memory[self.from..][..length]
    }

    /// Writes a part of the memory to this place of the file.
    pub fn write(&mut self, part: Range<usize>, at: u64) -> io::Result<()> {
        let begins_a_page = is_page(at) && is_page(part.start as u64);
        let bytes = &self.memory[self.from..][part];
        let whole = bytes.len() - bytes.len() % PAGE;
        let mut done = 0;
        if let Some(direct) = self.direct.as_ref().filter(|_| begins_a_page) {
            match direct.write_all_at(&bytes[..whole], at) {
                Ok(()) => done = whole,
                Err(error) if is_unfit(&error) => self.direct = None,
                Err(error) => return Err(error),
            }
        }
        self.file.write_all_at(&bytes[done..], at + done as u64)
    }
}

fn is_page(at: u64) -> bool {
    at.is_multiple_of(PAGE as u64)
}

/// It wants more than pages of this size.
fn is_unfit(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back_also_where_it_does_not_fill_a_page() {
        let file = tempfile::tempfile().unwrap();
        let most = 3 * PAGE + 100;
        let bytes: Vec<u8> = (0..most).map(|at| (at % 251) as u8).collect();
        let mut writer = Uncached::to_write(&file, most);
        writer.memory(most).copy_from_slice(&bytes);
        writer.write(0..most, PAGE as u64).unwrap();
        assert_eq!(file.metadata().unwrap().len(), (PAGE + most) as u64);
        for length in [1, PAGE - 1, PAGE, 2 * PAGE + 7, most] {
            let mut reader = Uncached::to_read(&file, most);
            assert!(
                reader.read(length, PAGE as u64).unwrap() == &bytes[..length],
                "{length}"
            );
        }
        let mut reader = Uncached::to_read(&file, most);
        let beyond = reader.read(most, 2 * PAGE as u64);
        assert_eq!(beyond.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_part_is_written_wherever_it_begins() {
        let file = tempfile::tempfile().unwrap();
        let mut writer = Uncached::to_write(&file, 3 * PAGE);
        writer.memory(3 * PAGE).fill(7);
        for (part, at) in [(PAGE..2 * PAGE, 0), (5..PAGE, 2 * PAGE), (0..9, 4 * PAGE + 1)] {
            let length = part.len();
            writer.write(part, at as u64).unwrap();
            let mut read = vec![0; length];
            file.read_exact_at(&mut read, at as u64).unwrap();
            assert!(read.iter().all(|byte| *byte == 7), "{at}");
        }
    }

    #[test]
    fn it_goes_through_the_cache_where_it_has_to() {
        let file = tempfile::tempfile().unwrap();
        let mut through_cache = Uncached::to_write(&file, 2 * PAGE);
        through_cache.direct = None;
        through_cache.memory(PAGE + 5).fill(7);
        through_cache.write(0..PAGE + 5, 3).unwrap();
        through_cache.memory(PAGE + 5).fill(0);
        assert_eq!(through_cache.read(PAGE + 5, 3).unwrap(), [7; PAGE + 5]);
    }
}
