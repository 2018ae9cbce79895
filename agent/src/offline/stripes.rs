//! A file's blocks, read from its disk by several threads, a stripe at a time: reading, hashing and packing each take as
//! long as a fast network. Blocks.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use tokio_util::sync::CancellationToken;

use super::blocks::{Blocks, Hash, count};

/// Blocks that a thread takes at once.
const STRIPE: u64 = 32;

/// So many threads work at one file, whatever cores there are: each waits for its disk now and then.
pub const THREADS: usize = 4;

/// Does something with every block and gives the hashes of all, in order. Where it fails for one, no stripe is begun any
/// more. `worker` is asked once in each thread, for what works there.
pub fn each_block<W>(file: &File, size: u64, worker: impl Fn() -> io::Result<W> + Sync) -> io::Result<Vec<Hash>>
where
    W: FnMut(&mut Blocks<'_>, u64) -> io::Result<Hash>,
{
    let next = AtomicU64::new(0);
    let until_none_is_left = || {
        let (mut blocks, mut done, mut work) = (Blocks::new(file, size), Vec::new(), worker()?);
        let mut stripe =
            |range: Range<u64>| -> io::Result<Vec<Hash>> { range.map(|block| work(&mut blocks, block)).collect() };
        loop {
            let first = next.fetch_add(1, Ordering::Relaxed).saturating_mul(STRIPE);
            if first >= count(size) {
                return Ok(done);
            }
            match stripe(first..count(size).min(first + STRIPE)) {
                Ok(hashes) => done.push((first, hashes)),
                Err(error) => {
                    next.store(count(size), Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    };
    let mut stripes = thread::scope(|scope| {
        let others: Vec<_> = (1..THREADS).map(|_| scope.spawn(until_none_is_left)).collect();
        let mut all = until_none_is_left()?;
        for other in others {
            all.extend(
                other
                    .join()
                    .map_err(|_| io::Error::other("a thread that reads has panicked"))??,
            );
        }
        io::Result::Ok(all)
    })?;
    stripes.sort_unstable_by_key(|(first, _)| *first);
    Ok(stripes.into_iter().flat_map(|(_, hashes)| hashes).collect())
}

/// The hashes of all blocks, in order. Ends early, with an error, when nobody wants them any more.
pub fn hashes(file: &File, size: u64, over: &CancellationToken) -> io::Result<Vec<Hash>> {
    let hash = |blocks: &mut Blocks<'_>, block: u64| {
        go_on(over)?;
        Ok(blocks.read(block)?.1)
    };
    each_block(file, size, || Ok(hash))
}

/// Reading a large file takes its time: whoever undoes the migration does not wait for it.
pub fn go_on(over: &CancellationToken) -> io::Result<()> {
    if over.is_cancelled() {
        return Err(io::Error::new(io::ErrorKind::Interrupted, "nobody wants it any more"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::super::BLOCK;
    use super::super::blocks::hash;
    use super::*;

    #[test]
    fn hashes_are_those_of_the_blocks_in_order() {
        let file = tempfile::tempfile().unwrap();
        let blocks = 3 * STRIPE + 1;
        let size = blocks * BLOCK as u64 - 7;
        file.set_len(size).unwrap();
        for block in (0..blocks).filter(|block| block % 5 == 0) {
            file.write_all_at(&block.to_le_bytes(), block * BLOCK as u64 + 11)
                .unwrap();
        }
        let found = hashes(&file, size, &CancellationToken::new()).unwrap();
        let mut one_by_one = Blocks::new(&file, size);
        let wanted: Vec<_> = (0..blocks).map(|block| one_by_one.read(block).unwrap().1).collect();
        assert_eq!(found.len() as u64, blocks);
        assert!(found == wanted);
        assert_ne!(found[0], found[5]);
        assert_eq!(found[1], hash(&vec![0; BLOCK]));
    }

    #[test]
    fn nobody_reads_on_for_a_migration_that_is_undone_or_a_file_that_is_too_short() {
        let file = tempfile::tempfile().unwrap();
        let over = CancellationToken::new();
        over.cancel();
        let undone = hashes(&file, BLOCK as u64, &over).unwrap_err();
        assert_eq!(undone.kind(), io::ErrorKind::Interrupted);
    }
}
