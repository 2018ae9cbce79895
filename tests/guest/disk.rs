//! A disk that can be checked: numbered blocks are written past every cache, read back later and compared.
//!
//! The memory knows which number each block has; a disk that lost a write, went back in time or was written by
//! another copy disagrees with it.

use crate::{Counters, give_up};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

const BLOCK: usize = 4096;
const BLOCKS: usize = 256;
const O_DIRECT: i32 = 0o40000;
const PERIOD: Duration = Duration::from_millis(50);

/// O_DIRECT wants aligned memory.
#[repr(align(4096))]
struct Block([u8; BLOCK]);

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

impl Block {
    fn fill(&mut self, index: usize, number: u64) {
        let seed = (index as u64) << 32 ^ number;
        for (at, byte) in self.0.iter_mut().enumerate() {
            *byte = (seed.wrapping_mul(31).wrapping_add(at as u64 * 7) >> (at % 5)) as u8;
        }
        self.0[..8].copy_from_slice(&number.to_le_bytes());
        self.0[8..16].copy_from_slice(&(index as u64).to_le_bytes());
        let sum = checksum(&self.0[..BLOCK - 8]);
        self.0[BLOCK - 8..].copy_from_slice(&sum.to_le_bytes());
    }

    fn is(&self, index: usize, number: u64) -> bool {
        self.0[..8] == number.to_le_bytes()
            && self.0[8..16] == (index as u64).to_le_bytes()
            && self.0[BLOCK - 8..] == checksum(&self.0[..BLOCK - 8]).to_le_bytes()
    }
}

pub fn start(path: &str, counters: Arc<Counters>) {
    let file = match OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(O_DIRECT)
        .open(path)
    {
        Ok(file) => file,
        Err(error) => give_up(&format!("cannot open {path}: {error}")),
    };
    std::thread::spawn(move || keep(&file, &counters));
}

fn keep(file: &File, counters: &Counters) {
    let mut numbers: Vec<Option<u64>> = vec![None; BLOCKS];
    let mut block = Box::new(Block([0; BLOCK]));
    for number in 1u64.. {
        let index = number as usize % BLOCKS;
        block.fill(index, number);
        match file
            .write_all_at(&block.0, (index * BLOCK) as u64)
            .and_then(|()| file.sync_data())
        {
            Ok(()) => numbers[index] = Some(number),
            Err(error) => report(counters, &format!("write of block {index}: {error}")),
        }
        counters.disk_writes.fetch_add(1, Relaxed);
        // Far enough back that no cache on the way holds it by accident.
        let old = (index * 7 + 101) % BLOCKS;
        if let Some(expected) = numbers[old] {
            match file.read_exact_at(&mut block.0, (old * BLOCK) as u64) {
                Ok(()) if block.is(old, expected) => {}
                Ok(()) => report(counters, &format!("block {old} is not number {expected}")),
                Err(error) => report(counters, &format!("read of block {old}: {error}")),
            }
        }
        std::thread::sleep(PERIOD);
    }
}

fn report(counters: &Counters, what: &str) {
    if counters.disk_errors.fetch_add(1, Relaxed) < 5 {
        println!("drover-guest: DISK {what}");
    }
}
