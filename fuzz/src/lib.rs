//! Feeds readers with what an attacker or an accident could send: every file of a corpus as it is, then changed.
//!
//! A target is a function that takes bytes and panics where a promise is broken. What breaks one is kept below
//! `target/fuzz`: put it into the target's corpus with the mend. `DROVER_FUZZ_SECONDS` says how long each target runs
//! (unset: a fixed number of inputs); `DROVER_FUZZ_SEED` repeats a run.

mod mutate;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mutate::{Random, mutate};

/// Inputs of a short run.
const SHORT: u64 = 20_000;

/// Largest input: what one gRPC message may have, and more.
const MAX_INPUT: usize = 5 << 20;

/// A reader under attack.
pub struct Target<'a> {
    /// Name of its folder in the corpus.
    pub name: &'a str,
    /// Further beginnings, beside the corpus.
    pub seeds: Vec<Vec<u8>>,
    /// What a reader looks for: put in anywhere.
    pub words: &'a [&'a str],
}

impl Target<'_> {
    /// Runs the target; panics like it, having said how to repeat it.
    pub fn attack(&self, check: impl Fn(&[u8])) {
        let mut corpus = self.corpus();
        corpus.extend(self.seeds.iter().cloned());
        assert!(!corpus.is_empty(), "{}: there is nothing to begin with", self.name);
        for input in &corpus {
            self.try_one(input, "a file of the corpus", &check);
        }
        let seed = number("DROVER_FUZZ_SEED").unwrap_or_else(fresh_seed);
        let seconds = number("DROVER_FUZZ_SECONDS");
        let mut random = Random::new(seed);
        let (started, mut inputs) = (Instant::now(), 0);
        let goes_on = |inputs| match seconds {
            Some(seconds) => started.elapsed() < Duration::from_secs(seconds),
            None => inputs < SHORT,
        };
        while goes_on(inputs) {
            let mut input = mutate(&corpus, self.words, &mut random);
            input.truncate(MAX_INPUT);
            self.try_one(&input, &format!("DROVER_FUZZ_SEED={seed}"), &check);
            inputs += 1;
        }
        println!(
            "{}: {inputs} inputs from {} beginnings, seed {seed}",
            self.name,
            corpus.len()
        );
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(self.name);
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths.iter().filter_map(|path| std::fs::read(path).ok()).collect()
    }

    fn try_one(&self, input: &[u8], from: &str, check: &impl Fn(&[u8])) {
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| check(input))) else {
            return;
        };
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fuzz");
        let path = folder.join(format!("{}-{}", self.name, mutate::hash(input)));
        let kept = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, input));
        eprintln!("{}: broken by {from}; kept as {} ({kept:?})", self.name, path.display());
        resume_unwind(panic);
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn fresh_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_secs() ^ u64::from(now.subsec_nanos()).rotate_left(32)
}
