//! Pings a guest every 5 ms: the longest time without an answer is the blackout, as users have it.

use super::capture::{self, FromInternet};
use super::worker::{Stop, Worker};
use crate::namespaces::enter_network;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use socket2::{SockAddr, Socket};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

const PERIOD: Duration = Duration::from_millis(5);

/// What the pings said. Times are since the epoch, by the kernel.
#[derive(Debug, Clone, Default)]
pub struct Pings {
    pub sent: u64,
    /// When answers came.
    pub answers: Vec<Duration>,
    /// Longest time in which this machine was too busy to send: noise in the blackout.
    pub largest_delay: Duration,
}

impl Pings {
    /// The longest time between two answers.
    pub fn largest_gap(&self) -> Duration {
        self.largest_gap_between(Duration::ZERO, Duration::MAX)
    }

    /// The same, of gaps that touch the time between `from` and `to`.
    pub fn largest_gap_between(&self, from: Duration, to: Duration) -> Duration {
        let pairs = self.answers.iter().zip(self.answers.iter().skip(1));
        pairs
            .filter(|(before, after)| **after >= from && **before <= to)
            .map(|(before, after)| after.saturating_sub(*before))
            .max()
            .unwrap_or_default()
    }
}

/// Starts pinging `target` from a node's network.
pub(crate) fn start(node: i32, target: Ipv4Addr) -> Result<Worker<Pings>> {
    Worker::start(&format!("pings of {target}"), move |stop, ready| {
        enter_network(node)?;
        let socket = capture::icmp()?;
        be_punctual();
        ready.now();
        ping(&socket, target, stop)
    })
}

/// Real-time priority, so that busy emulators do not look like blackouts. Without it the measure is only noisier.
fn be_punctual() {
    let thread = nix::unistd::gettid().to_string();
    let _ = Command::new("chrt").args(["--fifo", "--pid", "20", &thread]).status();
}

fn ping(socket: &Socket, target: Ipv4Addr, stop: &Stop) -> Result<Pings> {
    let target_address = SockAddr::from(SocketAddr::from((target, 0)));
    // Other pingers of the same network are told apart by their thread.
    let id = nix::unistd::gettid().as_raw() as u16;
    let mut pings = Pings::default();
    let mut next = Instant::now();
    let mut buffer = [0; 256];
    while !stop.wanted() {
        // Not while the guest's link is gone: what cannot be sent cannot be answered either.
        let _ = socket.send_to(&echo_request(id, pings.sent as u16), &target_address);
        pings.sent += 1;
        pings.largest_delay = pings.largest_delay.max(next.elapsed());
        next += PERIOD;
        if next < Instant::now() {
            next = Instant::now() + PERIOD;
        }
        while wait_for_answer(socket, next)? {
            while let Some(packet) = capture::receive::<FromInternet>(socket, &mut buffer, false)? {
                if packet.from.is_some_and(|from| from.ip() == target) && is_reply(packet.bytes, id) {
                    pings.answers.push(packet.at);
                }
            }
        }
    }
    Ok(pings)
}

/// Whether something came before `until`. By ppoll: a socket's own time limit is rounded up to the kernel's tick.
fn wait_for_answer(socket: &Socket, until: Instant) -> Result<bool> {
    let rest = until.saturating_duration_since(Instant::now());
    let mut sockets = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    match ppoll(&mut sockets, Some(rest.into()), None) {
        Ok(ready) => Ok(ready > 0 && !rest.is_zero()),
        Err(Errno::EINTR) => Ok(true),
        Err(error) => Err(error).context("waiting for answers"),
    }
}

fn echo_request(id: u16, sequence: u16) -> [u8; 16] {
    let mut packet = [0; 16];
    packet[0] = 8;
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    packet[6..8].copy_from_slice(&sequence.to_be_bytes());
    packet[8..].copy_from_slice(b"drover!\n");
    let words = packet
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// Raw sockets deliver the IP header too.
fn is_reply(bytes: &[u8], id: u16) -> bool {
    let header = usize::from(bytes.first().copied().unwrap_or(0) & 0x0f) * 4;
    bytes.get(header) == Some(&0) && bytes.get(header + 4..header + 6) == Some(&id.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_gap_is_found_also_within_a_window() {
        let answers = [0, 5, 10, 200, 205, 500].map(Duration::from_millis).to_vec();
        let pings = Pings {
            answers,
            ..Pings::default()
        };
        let ms = Duration::from_millis;
        assert_eq!(pings.largest_gap(), ms(295));
        assert_eq!(pings.largest_gap_between(ms(8), ms(204)), ms(190));
        assert_eq!(Pings::default().largest_gap(), Duration::ZERO);
    }

    #[test]
    fn checksums_of_requests_are_right() {
        let packet = echo_request(0xbeef, 7);
        let words = packet
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        let sum: u32 = words.sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}
