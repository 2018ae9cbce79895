//! The beat: each tick one broadcast datagram `drover-beat NAME BOOT COUNTER RANDOM`.
//!
//! Two running copies of one memory image send the same counters. Only randomness that is *not* part of the image
//! can tell them apart, so it comes from the processor (RDRAND) or from virtio-rng, never from the kernel's pool.

use crate::{Counters, Settings, give_up};
use std::fs::File;
use std::io::Read;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// The port of the collector; nobody needs to listen there, the beats are read off the wire.
const BEAT_PORT: u16 = 7401;

enum Randomness {
    Processor,
    Device(File),
}

impl Randomness {
    fn find() -> Randomness {
        if std::arch::is_x86_feature_detected!("rdrand") {
            return Randomness::Processor;
        }
        match File::open("/dev/hwrng") {
            Ok(file) => Randomness::Device(file),
            Err(_) => give_up("neither RDRAND nor /dev/hwrng: double runs could not be seen"),
        }
    }

    fn next(&mut self) -> u64 {
        match self {
            // SAFETY: only built when the processor has RDRAND.
            Randomness::Processor => unsafe { rdrand() },
            Randomness::Device(file) => {
                let mut bytes = [0; 8];
                if file.read_exact(&mut bytes).is_err() {
                    give_up("/dev/hwrng stopped answering");
                }
                u64::from_ne_bytes(bytes)
            }
        }
    }
}

#[target_feature(enable = "rdrand")]
fn rdrand() -> u64 {
    let mut value = 0;
    // The instruction may fail when the source is exhausted; it recovers at once.
    while std::arch::x86_64::_rdrand64_step(&mut value) == 0 {}
    value
}

pub fn start(settings: &Settings, counters: Arc<Counters>) {
    let name = settings.text("name", "guest");
    let period = Duration::from_millis(settings.number("tick", 20));
    let target = (settings.text("broadcast", "255.255.255.255"), BEAT_PORT);
    let mut randomness = Randomness::find();
    let socket = match UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.set_broadcast(true).map(|()| socket)) {
        Ok(socket) => socket,
        Err(error) => give_up(&format!("no socket for the beat: {error}")),
    };
    std::thread::spawn(move || {
        let boot = randomness.next();
        let mut last = Instant::now();
        loop {
            std::thread::sleep(period);
            let now = Instant::now();
            counters
                .largest_gap_us
                .fetch_max((now - last).as_micros() as u64, Relaxed);
            last = now;
            let counter = counters.ticks.fetch_add(1, Relaxed);
            let line = format!("drover-beat {name} {boot:016x} {counter} {:016x}", randomness.next());
            // A lost beat is harmless: the detector compares the ones it sees.
            let _ = socket.send_to(line.as_bytes(), (target.0.as_str(), target.1));
        }
    });
}
