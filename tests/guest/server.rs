//! What a guest answers: commands and an echo, line by line over TCP or one datagram over UDP.
//!
//! `status` → one JSON line · `verify` → the same after a complete check of the memory · `dirty KIB_PER_SECOND [MIB
//! [PATTERN]]` · `reset-gap` · `poweroff` · anything else comes back as it is.

use crate::memory::Pattern;
use crate::{Counters, button, give_up};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

const PORT: u16 = 7402;

pub fn start(name: String, counters: Arc<Counters>) {
    let (listener, datagrams) = match (TcpListener::bind(("0.0.0.0", PORT)), UdpSocket::bind(("0.0.0.0", PORT))) {
        (Ok(listener), Ok(datagrams)) => (listener, datagrams),
        (tcp, udp) => give_up(&format!("cannot listen: {tcp:?} {udp:?}")),
    };
    let (udp_name, udp_counters) = (name.clone(), Arc::clone(&counters));
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = datagrams.recv_from(&mut buffer) {
            let question = String::from_utf8_lossy(&buffer[..length]).trim().to_string();
            let (name, counters) = (udp_name.clone(), Arc::clone(&udp_counters));
            let Ok(socket) = datagrams.try_clone() else { continue };
            // `verify` takes its time and must not keep others waiting.
            std::thread::spawn(move || socket.send_to(answer(&name, &question, &counters).as_bytes(), from));
        }
    });
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (name, counters) = (name.clone(), Arc::clone(&counters));
            std::thread::spawn(move || serve(stream, &name, &counters));
        }
    });
}

fn serve(stream: TcpStream, name: &str, counters: &Counters) {
    let _ = stream.set_nodelay(true);
    let Ok(reader) = stream.try_clone() else { return };
    let mut writer = stream;
    for line in BufReader::new(reader).lines() {
        let Ok(line) = line else { return };
        if writer
            .write_all(format!("{}\n", answer(name, &line, counters)).as_bytes())
            .is_err()
        {
            return;
        }
    }
}

fn answer(name: &str, line: &str, counters: &Counters) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["status"] => status(name, counters),
        ["verify"] => {
            verify(counters);
            status(name, counters)
        }
        ["dirty", rate, rest @ ..] => {
            counters.dirty_kib_per_second.store(rate.parse().unwrap_or(0), Relaxed);
            if let Some(set) = rest.first().and_then(|set| set.parse().ok()) {
                counters.dirty_set_mib.store(set, Relaxed);
            }
            if let Some(pattern) = rest.get(1) {
                counters.dirty_pattern.store(Pattern::named(pattern) as u64, Relaxed);
            }
            status(name, counters)
        }
        ["reset-gap"] => {
            counters.largest_gap_us.store(0, Relaxed);
            status(name, counters)
        }
        ["poweroff"] => {
            std::thread::spawn(|| {
                // The answer leaves first.
                std::thread::sleep(Duration::from_millis(50));
                button::power_off();
            });
            status(name, counters)
        }
        _ => line.to_string(),
    }
}

/// Returns after a check of every page that started after the call.
fn verify(counters: &Counters) {
    let until = counters.memory_passes.load(Relaxed) + 2;
    counters.hurry.fetch_add(1, Relaxed);
    while counters.memory_passes.load(Relaxed) < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    counters.hurry.fetch_sub(1, Relaxed);
}

pub fn status(name: &str, counters: &Counters) -> String {
    format!(
        concat!(
            r#"{{"name":"{}","ticks":{},"largest_gap_ms":{},"memory_errors":{},"memory_passes":{},"#,
            r#""bytes_dirtied":{},"dirty_kib_per_second":{},"disk_writes":{},"disk_errors":{}}}"#
        ),
        name,
        counters.ticks.load(Relaxed),
        counters.largest_gap_us.load(Relaxed) / 1000,
        counters.memory_errors.load(Relaxed),
        counters.memory_passes.load(Relaxed),
        counters.bytes_dirtied.load(Relaxed),
        counters.dirty_kib_per_second.load(Relaxed),
        counters.disk_writes.load(Relaxed),
        counters.disk_errors.load(Relaxed),
    )
}
