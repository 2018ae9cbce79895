//! Memory of blocks, used again and again: fresh pages cost a system as much as hashing what is put into them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::BLOCK;

/// So many blocks are kept; what is given back beyond is let go.
const MOST: usize = 16;

/// Empty vectors with room for a block.
#[derive(Debug, Default)]
pub struct Spare(Mutex<Vec<Vec<u8>>>);

impl Spare {
    /// One that was given back, or a new one.
    pub fn take(&self) -> Vec<u8> {
        let kept = self.lock().pop();
        kept.unwrap_or_else(|| Vec::with_capacity(BLOCK))
    }

    /// Nobody looks at what is in it any more.
    pub fn give(&self, mut bytes: Vec<u8>) {
        bytes.clear();
        let mut kept = self.lock();
        if bytes.capacity() >= BLOCK && kept.len() < MOST {
            kept.push(bytes);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_memory_comes_back_empty() {
        let spare = Spare::default();
        let mut first = spare.take();
        first.extend_from_slice(&[1; 100]);
        let at = first.as_ptr();
        spare.give(first);
        let again = spare.take();
        assert!(again.is_empty() && again.as_ptr() == at);
        spare.give(vec![0; 10]);
        assert!(spare.take().capacity() >= BLOCK, "what is too small is let go");
        (0..2 * MOST).for_each(|_| spare.give(Vec::with_capacity(BLOCK)));
        assert_eq!(spare.lock().len(), MOST);
    }
}
