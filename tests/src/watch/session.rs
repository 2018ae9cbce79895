//! One TCP session with a guest that must survive whatever happens to it: numbered lines, each answered in turn.

use super::worker::{Stop, Worker};
use crate::guest::GUEST_PORT;
use crate::namespaces::enter_network;
use anyhow::{Context, Result};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_millis(5);
/// A session that stands still for longer counts as broken.
const PATIENCE: Duration = Duration::from_secs(60);

/// What became of the session.
#[derive(Debug, Clone, Default)]
pub struct Session {
    /// Lines that came back as they were sent.
    pub lines: u64,
    /// Longest time a line took there and back.
    pub largest_stall: Duration,
    /// Why it ended before it was told to.
    pub broken: Option<String>,
}

/// Starts the session from a node's network; fails if it cannot be opened.
pub(crate) fn start(node: i32, target: Ipv4Addr) -> Result<Worker<Session>> {
    Worker::start(&format!("the TCP session with {target}"), move |stop, ready| {
        enter_network(node)?;
        let address = SocketAddr::from((target, GUEST_PORT));
        let mut stream =
            TcpStream::connect_timeout(&address, Duration::from_secs(30)).with_context(|| format!("to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        ready.now();
        let mut session = Session::default();
        while !stop.wanted() && session.broken.is_none() {
            exchange(&mut stream, &mut session, stop);
            std::thread::sleep(PERIOD);
        }
        Ok(session)
    })
}

fn exchange(stream: &mut TcpStream, session: &mut Session, stop: &Stop) {
    let line = format!("line {}\n", session.lines);
    let started = Instant::now();
    if let Err(error) = stream.write_all(line.as_bytes()) {
        session.broken = Some(format!("sending line {}: {error}", session.lines));
        return;
    }
    match read_answer(stream, line.len(), started, stop) {
        Ok(Some(answer)) if answer == line.as_bytes() => session.lines += 1,
        Ok(Some(answer)) => {
            session.broken = Some(format!("{line:?} came back as {:?}", String::from_utf8_lossy(&answer)));
        }
        Ok(None) => {} // Told to stop in the middle of a line: neither good nor bad, but its stall counts.
        Err(why) => session.broken = Some(format!("line {}: {why}", session.lines)),
    }
    session.largest_stall = session.largest_stall.max(started.elapsed());
}

fn read_answer(
    stream: &mut TcpStream,
    length: usize,
    started: Instant,
    stop: &Stop,
) -> Result<Option<Vec<u8>>, String> {
    let mut answer = Vec::new();
    let mut buffer = [0; 64];
    while answer.len() < length {
        match stream.read(&mut buffer) {
            Ok(0) => return Err("closed by the guest".into()),
            Ok(length) => answer.extend_from_slice(&buffer[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                if started.elapsed() > PATIENCE {
                    return Err(format!("no answer for {PATIENCE:?}"));
                }
                // A line that only just went out is waited for; one that hangs is not a reason to wait on.
                if stop.wanted() && started.elapsed() > Duration::from_secs(2) {
                    return Ok(None);
                }
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(Some(answer))
}
