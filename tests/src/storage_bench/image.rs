//! The image that is moved: mostly holes, one half of the rest random, the other like a log file.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

const MIB: u64 = 1 << 20;
/// Runs of data, with holes between them.
const RUNS: u64 = 16;

/// How large it is.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// What the guest sees, MiB.
    pub virtual_mib: u64,
    /// What is allocated, MiB.
    pub allocated_mib: u64,
}

impl Shape {
    /// First MiB and number of MiB of each run.
    fn runs(self) -> impl Iterator<Item = (u64, u64)> {
        let (apart, length) = (self.virtual_mib / RUNS, (self.allocated_mib / RUNS).max(1));
        (0..RUNS).map(move |run| (run * apart, length))
    }
}

/// Makes it and waits until it is on the disk. The same shape gives the same bytes.
pub(super) fn make(path: &Path, shape: Shape) -> Result<()> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    file.set_len(shape.virtual_mib * MIB)?;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for (run, (first, length)) in shape.runs().enumerate() {
        for at in first..first + length {
            let block = if run % 2 == 0 {
                random.block()
            } else {
                log_lines(&mut random)
            };
            file.write_all_at(&block, at * MIB)?;
        }
    }
    file.sync_all()?;
    Ok(())
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn block(&mut self) -> Vec<u8> {
        (0..MIB / 8).flat_map(|_| self.next().to_le_bytes()).collect()
    }
}

/// A MiB that an ordinary compressor makes several times smaller.
fn log_lines(random: &mut Random) -> Vec<u8> {
    let mut lines = Vec::with_capacity(MIB as usize + 128);
    while lines.len() < MIB as usize {
        let number = random.next();
        let (item, took, second) = (number % 100_000, (number >> 20) % 900, (number >> 40) % 60);
        // Writing to a vector does not fail.
        let _ = writeln!(
            lines,
            "2026-11-29T12:00:{second:02}Z web-1 GET /catalogue/items/{item} answered 200 after {took} ms"
        );
    }
    lines.truncate(MIB as usize);
    lines
}

/// Reads it into the page cache.
pub(super) fn warm(path: &Path) -> Result<()> {
    each_block(path, |_, _| Ok(()))
}

/// Calls `then` with the offset and the content of each MiB that is no hole.
fn each_block(path: &Path, mut then: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let size = file.metadata()?.len();
    let mut block = vec![0; MIB as usize];
    let mut at = 0;
    while let Some(data) = next_data(&file, at)? {
        at = data / MIB * MIB;
        let length = MIB.min(size - at) as usize;
        file.read_exact_at(&mut block[..length], at)?;
        then(at, &block[..length])?;
        at += MIB;
    }
    Ok(())
}

/// Where data begins, at `from` or after it.
fn next_data(file: &File, from: u64) -> Result<Option<u64>> {
    use nix::errno::Errno;
    use nix::unistd::{Whence, lseek64};
    match lseek64(file, from as i64, Whence::SeekData) {
        Ok(at) => Ok(Some(at as u64)),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno).context("looking for data"),
    }
}

/// Both have the same content.
pub(super) fn compare(image: &Path, copy: &Path, shape: Shape) -> Result<()> {
    let other = File::open(copy).with_context(|| copy.display().to_string())?;
    let found = other.metadata()?;
    ensure!(
        found.len() == shape.virtual_mib * MIB,
        "the copy has {} bytes",
        found.len()
    );
    let mut there = vec![0; MIB as usize];
    each_block(image, |at, block| {
        other.read_exact_at(&mut there[..block.len()], at)?;
        ensure!(there[..block.len()] == *block, "the copy differs in the MiB at {at}");
        Ok(())
    })?;
    // What is in the copy besides: nothing but zeros.
    let image = File::open(image)?;
    each_block(copy, |at, block| {
        image.read_exact_at(&mut there[..block.len()], at)?;
        ensure!(
            there[..block.len()] == *block,
            "the copy has more than the image at {at}"
        );
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn an_image_is_sparse_and_a_copy_that_differs_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let (image, copy) = (folder.path().join("image"), folder.path().join("copy"));
        let shape = Shape {
            virtual_mib: 64,
            allocated_mib: 16,
        };
        for path in [&image, &copy] {
            make(path, shape).unwrap();
        }
        let taken = std::fs::metadata(&image).unwrap().blocks() * 512 / MIB;
        assert!((16..=17).contains(&taken), "{taken}");
        compare(&image, &copy, shape).unwrap();
        let file = File::options().write(true).open(&copy).unwrap();
        file.write_all_at(b"x", 2 * MIB).unwrap();
        assert!(
            compare(&image, &copy, shape)
                .unwrap_err()
                .to_string()
                .contains("more than")
        );
        file.write_all_at(b"\0", 2 * MIB).unwrap();
        compare(&image, &copy, shape).unwrap();
        file.write_all_at(b"\0\0\0\0", 4 * MIB).unwrap();
        assert!(
            compare(&image, &copy, shape)
                .unwrap_err()
                .to_string()
                .contains("differs")
        );
    }
}
