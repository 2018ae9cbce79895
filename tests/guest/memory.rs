//! Memory that can be checked while it changes.
//!
//! Every page is full of words that follow from (page, version); a table apart says which version each page has.
//! A page that stayed behind in a migration disagrees with the table, as does a table page that stayed behind.

use crate::Counters;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

const PAGE: usize = 4096;
const WORDS: usize = PAGE / 8;
/// Words that carry the version: one in 64, so that dirtying a page is cheap even under emulation.
const STRIDE: usize = 64;
const STEP: Duration = Duration::from_millis(5);
/// Pages checked per step at rest: 3 MiB/s, hardly any load.
const CHECKED_AT_REST: usize = 4;

/// Bursts: all that is to be written in this time is written in its first quarter.
const BURST: Duration = Duration::from_secs(2);

/// In which order pages of the set are written.
#[derive(Clone, Copy, PartialEq)]
pub enum Pattern {
    /// Any page is as likely as any other.
    Uniform,
    /// One after the other, and again from the start.
    Sweep,
    /// As uniform, four times as fast for half a second and then not at all.
    Bursts,
}

impl Pattern {
    /// An unknown name is uniform.
    pub fn named(name: &str) -> Pattern {
        match name {
            "sweep" => Pattern::Sweep,
            "bursts" => Pattern::Bursts,
            _ => Pattern::Uniform,
        }
    }

    fn numbered(number: u64) -> Pattern {
        [Pattern::Uniform, Pattern::Sweep, Pattern::Bursts]
            .into_iter()
            .find(|pattern| *pattern as u64 == number)
            .unwrap_or(Pattern::Uniform)
    }

    /// By how much more than on average is written now.
    fn factor(self, since_start: Duration) -> u64 {
        let within = since_start.as_millis() % BURST.as_millis();
        match self {
            Pattern::Uniform | Pattern::Sweep => 1,
            Pattern::Bursts => 4 * u64::from(within < BURST.as_millis() / 4),
        }
    }
}

pub struct Memory {
    words: Vec<u64>,
    versions: Vec<u32>,
    next_check: usize,
    next_dirty: u64,
    random: u64,
}

/// A cheap mixing function (splitmix64's finaliser): neighbours differ everywhere, so the content does not compress.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn word(page: usize, index: usize, version: u32) -> u64 {
    let version = if index % STRIDE == 0 { u64::from(version) } else { 0 };
    mix(((page * WORDS + index) as u64) ^ (version << 40))
}

impl Memory {
    pub fn fill(mib: u64) -> Memory {
        let pages = mib as usize * (1 << 20) / PAGE;
        let words = (0..pages * WORDS).map(|at| word(at / WORDS, at % WORDS, 0)).collect();
        Memory {
            words,
            versions: vec![0; pages],
            next_check: 0,
            next_dirty: 0,
            random: 88_172_645_463_325_252,
        }
    }

    /// Dirties and checks for ever, in a thread of its own.
    pub fn keep(mut self, counters: Arc<Counters>) {
        if self.versions.is_empty() {
            return;
        }
        std::thread::spawn(move || {
            let started = Instant::now();
            let mut last = started;
            let mut owed = 0;
            loop {
                std::thread::sleep(STEP);
                // Bounded, so that a pause of the guest is not followed by a burst.
                let passed = last.elapsed().min(STEP * 10);
                last = Instant::now();
                let pattern = Pattern::numbered(counters.dirty_pattern.load(Relaxed));
                let factor = pattern.factor(started.elapsed());
                owed += factor * counters.dirty_kib_per_second.load(Relaxed) * 1024 * passed.as_micros() as u64 / 1_000_000;
                let pages = owed / PAGE as u64;
                owed %= PAGE as u64;
                self.dirty(pages, counters.dirty_set_mib.load(Relaxed), pattern);
                counters.bytes_dirtied.fetch_add(pages * PAGE as u64, Relaxed);
                let amount = if counters.hurry.load(Relaxed) > 0 {
                    2048
                } else {
                    CHECKED_AT_REST
                };
                self.check(amount, &counters);
            }
        });
    }

    fn dirty(&mut self, pages: u64, set_mib: u64, pattern: Pattern) {
        let set = (set_mib * (1 << 20) / PAGE as u64).clamp(1, self.versions.len() as u64);
        for _ in 0..pages {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            self.next_dirty = (self.next_dirty + 1) % set;
            let page = match pattern {
                Pattern::Sweep => self.next_dirty as usize,
                Pattern::Uniform | Pattern::Bursts => (self.random % set) as usize,
            };
            self.versions[page] = self.versions[page].wrapping_add(1) & 0xff_ffff;
            for index in (0..WORDS).step_by(STRIDE) {
                self.words[page * WORDS + index] = word(page, index, self.versions[page]);
            }
        }
    }

    fn check(&mut self, amount: usize, counters: &Counters) {
        for _ in 0..amount {
            let page = self.next_check;
            let content = &self.words[page * WORDS..(page + 1) * WORDS];
            if content
                .iter()
                .enumerate()
                .any(|(index, &found)| found != word(page, index, self.versions[page]))
            {
                let errors = counters.memory_errors.fetch_add(1, Relaxed);
                if errors < 5 {
                    println!(
                        "drover-guest: MEMORY page {page} is not version {}",
                        self.versions[page]
                    );
                }
            }
            self.next_check += 1;
            if self.next_check == self.versions.len() {
                self.next_check = 0;
                counters.memory_passes.fetch_add(1, Relaxed);
            }
        }
    }
}
