//! A file that is read and written past the page cache: what is read comes from the disk, and the host's memory is left to
//! its guests. Blocks.
//!
//! Where its file system cannot do that (no O_DIRECT, pages larger than ours), and for what does not fill a page, it goes
//! through the cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

/// What O_DIRECT wants offsets, lengths and memory to be multiples of: no disk's logical block is larger (open(2)).
const PAGE: usize = 4096;

/// Reads and writes begin at multiples of a page.
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
    /// At most so many bytes are read or written at once.
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
        let mut memory = Vec::new();
        let mut from = 0;
        let mut direct = options.open(same).ok();
        if direct.is_some() {
            memory = vec![0; most.next_multiple_of(PAGE) + PAGE];
            from = memory.as_ptr().align_offset(PAGE);
            direct = direct.filter(|_| from < PAGE);
        }
        Self {
            file,
            direct,
            memory,
            from,
        }
    }

    pub fn read_exact_at(&mut self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let mut got = 0;
        let whole = bytes.len().next_multiple_of(PAGE);
        let room = self.memory.len().saturating_sub(self.from);
        if let Some(direct) = self.direct.as_ref().filter(|_| is_page(at) && whole <= room) {
            let pages = &mut self.memory[self.from..self.from + whole];
            let mut unfit = false;
            // The end of a file need not fill a page.
            while got < bytes.len() && got.is_multiple_of(PAGE) && !unfit {
                match direct.read_at(&mut pages[got..], at + got as u64) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(read) => got += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if is_unfit(&error) => unfit = true,
                    Err(error) => return Err(error),
                }
            }
            got = got.min(bytes.len());
            bytes[..got].copy_from_slice(&pages[..got]);
            if unfit {
                self.direct = None;
            }
        }
        self.file.read_exact_at(&mut bytes[got..], at + got as u64)
    }

    pub fn write_all_at(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut done = 0;
        let whole = bytes.len() - bytes.len() % PAGE;
        let room = self.memory.len().saturating_sub(self.from);
        if let Some(direct) = self.direct.as_ref().filter(|_| is_page(at) && whole <= room) {
            let pages = &mut self.memory[self.from..self.from + whole];
            pages.copy_from_slice(&bytes[..whole]);
            match direct.write_all_at(pages, at) {
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
        Uncached::to_write(&file, most)
            .write_all_at(&bytes, PAGE as u64)
            .unwrap();
        assert_eq!(file.metadata().unwrap().len(), (PAGE + most) as u64);
        for length in [1, PAGE - 1, PAGE, 2 * PAGE + 7, most] {
            let mut read = vec![0; length];
            Uncached::to_read(&file, most)
                .read_exact_at(&mut read, PAGE as u64)
                .unwrap();
            assert!(read == bytes[..length], "{length}");
        }
        let beyond = Uncached::to_read(&file, most).read_exact_at(&mut vec![0; most], 2 * PAGE as u64);
        assert_eq!(beyond.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn it_goes_through_the_cache_where_it_has_to() {
        let file = tempfile::tempfile().unwrap();
        let mut through_cache = Uncached::to_write(&file, PAGE);
        through_cache.direct = None;
        through_cache.write_all_at(&[7; PAGE + 5], 3).unwrap();
        let mut read = vec![0; PAGE + 5];
        Uncached::to_read(&file, PAGE).read_exact_at(&mut read, 3).unwrap();
        assert_eq!(
            read,
            [7; PAGE + 5],
            "no page begins there, and it is longer than was said"
        );
    }
}
