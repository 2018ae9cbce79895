//! The program inside every guest of the lab: it keeps memory and a disk that can be checked, answers on the network,
//! and sends a beat whose counter is remembered by its memory and whose random number is not.
//!
//! Built by the lab with plain `rustc` (std only, static) and started by `init` as the guest's first process.
//! What it does is set on the kernel's command line (`drover.KEY=VALUE`) and by commands over the network (`server.rs`).

mod beat;
mod button;
mod disk;
mod memory;
mod server;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Everything that is counted, shared by the threads and shown by `status`.
#[derive(Default)]
pub struct Counters {
    pub ticks: AtomicU64,
    /// Longest time between two ticks, by the guest's own clock (which stands still in a blackout).
    pub largest_gap_us: AtomicU64,
    pub memory_errors: AtomicU64,
    /// Complete checks of the whole filled memory.
    pub memory_passes: AtomicU64,
    pub bytes_dirtied: AtomicU64,
    /// Wanted dirty rate in KiB/s and the number of MiB it is spread over.
    pub dirty_kib_per_second: AtomicU64,
    pub dirty_set_mib: AtomicU64,
    /// In which order it is written: `memory::Pattern` as a number.
    pub dirty_pattern: AtomicU64,
    /// While above zero the memory is checked at full speed.
    pub hurry: AtomicU64,
    pub disk_writes: AtomicU64,
    pub disk_errors: AtomicU64,
}

/// What the kernel's command line says.
pub struct Settings {
    values: HashMap<String, String>,
}

impl Settings {
    fn read() -> Settings {
        let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let values = line
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("drover."))
            .filter_map(|word| word.split_once('='))
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .collect();
        Settings { values }
    }

    pub fn text(&self, key: &str, otherwise: &str) -> String {
        self.values.get(key).cloned().unwrap_or_else(|| otherwise.to_string())
    }

    pub fn number(&self, key: &str, otherwise: u64) -> u64 {
        self.values
            .get(key)
            .and_then(|value| value.parse().ok())
            .unwrap_or(otherwise)
    }
}

fn main() {
    let settings = Settings::read();
    let counters = Arc::new(Counters::default());
    let fill_mib = settings.number("fill", 32).max(1);
    counters
        .dirty_kib_per_second
        .store(settings.number("dirty", 0) * 1024, Relaxed);
    counters.dirty_set_mib.store(settings.number("set", fill_mib), Relaxed);
    let pattern = memory::Pattern::named(&settings.text("pattern", "uniform"));
    counters.dirty_pattern.store(pattern as u64, Relaxed);

    let started = Instant::now();
    let memory = memory::Memory::fill(fill_mib);
    println!(
        "drover-guest: {fill_mib} MiB filled in {} ms",
        started.elapsed().as_millis()
    );
    memory.keep(Arc::clone(&counters));
    beat::start(&settings, Arc::clone(&counters));
    let disk = settings.text("disk", "none");
    if disk != "none" {
        disk::start(&disk, Arc::clone(&counters));
    }
    button::start();
    server::start(settings.text("name", "guest"), Arc::clone(&counters));
    println!("drover-guest: ready");
    loop {
        std::thread::sleep(Duration::from_secs(5));
        println!("drover-guest: {}", server::status("console", &counters));
    }
}

/// A fault that no test may overlook: on the console and, through the kernel's panic, visible from outside.
pub fn give_up(what: &str) -> ! {
    println!("drover-guest: FATAL {what}");
    std::process::exit(1)
}
