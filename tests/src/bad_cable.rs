//! A cable that changes bytes: what one host sends to the agent of another one goes through it, whole but for the byte that
//! a test asks to be changed.
//!
//! ```text
//!  agent ─▶ destination:7450 ─(redirected by the destination's kernel)─▶ cable ─▶ agent that listens there
//! ```
//! It sits in the destination's network and sees what the wire sees: nothing but TLS. Only connections that carry data are
//! touched; the first message of each says in clear what it is.

use crate::cluster::AGENT_PORT;
use crate::host::Host;
use crate::network::Network;
use anyhow::{Context, Result};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a data connection offers to speak, in its first message (`drover_proto::tls::ALPN_DATA`).
const DATA: &[u8] = b"drover-data/1";

const CONNECT: Duration = Duration::from_secs(20);

/// No byte is to be changed.
const NONE: u64 = u64::MAX;

/// Between one host and the agent of another one. Dropping it takes it out; connections that go through it end by
/// themselves.
#[derive(Debug)]
pub struct BadCable {
    destination: Host,
    listener: Arc<TcpListener>,
    seen: Arc<Seen>,
}

#[derive(Debug)]
struct Seen {
    /// Which byte of a data connection is changed next, counted from 0; [`NONE`] where none is.
    next: AtomicU64,
    flipped: AtomicU64,
    connections: AtomicU64,
}

impl BadCable {
    /// Puts it in: new connections from `source` to the agent of `destination` go through it.
    pub fn between(source: &Host, destination: &Host) -> Result<BadCable> {
        let listener = destination.in_network(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?))?;
        let port = listener.local_addr()?.port();
        let cable = BadCable {
            destination: destination.clone(),
            listener: Arc::new(listener),
            seen: Arc::new(Seen {
                next: AtomicU64::new(NONE),
                flipped: AtomicU64::new(0),
                connections: AtomicU64::new(0),
            }),
        };
        let (listener, seen, host) = (
            Arc::clone(&cable.listener),
            Arc::clone(&cable.seen),
            destination.clone(),
        );
        std::thread::spawn(move || {
            // It fails when the cable is taken out.
            while let Ok((near, _)) = listener.accept() {
                let (seen, host) = (Arc::clone(&seen), host.clone());
                std::thread::spawn(move || {
                    // The end of a connection, however it comes, is told to both sides; there is nobody else to tell.
                    let _ = join(near, &host, &seen);
                });
            }
        });
        let link = destination.link(Network::Management);
        link.redirect(source.address(), AGENT_PORT, port)
            .context("putting the cable in")?;
        Ok(cable)
    }

    /// Changes one bit of byte `at` of the first data connection that comes to it from now on.
    pub fn flip_at(&self, at: u64) {
        self.seen.next.store(at, Ordering::SeqCst);
    }

    /// Bytes that were changed.
    pub fn flipped(&self) -> u64 {
        self.seen.flipped.load(Ordering::SeqCst)
    }

    /// Data connections that came.
    pub fn connections(&self) -> u64 {
        self.seen.connections.load(Ordering::SeqCst)
    }
}

impl Drop for BadCable {
    fn drop(&mut self) {
        // Fails where the host is gone, and the rule with it.
        let _ = self.destination.link(Network::Management).redirect_no_more();
        // Wakes whoever accepts.
        let _ = socket2::SockRef::from(&*self.listener).shutdown(Shutdown::Both);
    }
}

/// Passes on what both sides say, until both have ended or one breaks.
fn join(mut near: TcpStream, host: &Host, seen: &Arc<Seen>) -> io::Result<()> {
    let hello = first_message(&mut near)?;
    let is_data = hello.windows(DATA.len()).any(|name| name == DATA);
    let agent = SocketAddr::from((Ipv4Addr::LOCALHOST, AGENT_PORT));
    let mut far = host.connect(agent, CONNECT).map_err(io::Error::other)?;
    far.write_all(&hello)?;
    if is_data {
        seen.connections.fetch_add(1, Ordering::SeqCst);
    }
    let (answers, asker) = (far.try_clone()?, near.try_clone()?);
    let back = std::thread::spawn(move || pass_on(answers, asker, |_, _| ()));
    let seen = Arc::clone(seen);
    let passed = hello.len() as u64;
    pass_on(near, far, move |from, piece| {
        if is_data {
            seen.flip(passed + from, piece);
        }
    });
    let _ = back.join();
    Ok(())
}

/// The first record, whole.
fn first_message(near: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; 5];
    near.read_exact(&mut message)?;
    let length = usize::from(u16::from_be_bytes([message[3], message[4]]));
    message.resize(5 + length, 0);
    near.read_exact(&mut message[5..])?;
    Ok(message)
}

/// One direction. `look` is given each piece with the number of bytes before it, and may change it.
fn pass_on(mut from: TcpStream, mut to: TcpStream, look: impl Fn(u64, &mut [u8])) {
    let (mut piece, mut passed) = (vec![0; 64 << 10], 0_u64);
    loop {
        let read = match from.read(&mut piece) {
            Ok(0) => {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(read) => read,
            Err(_) => break,
        };
        look(passed, &mut piece[..read]);
        passed += read as u64;
        if to.write_all(&piece[..read]).is_err() {
            break;
        }
    }
    // Broken: neither side waits for the other one any more.
    for side in [from, to] {
        let _ = side.shutdown(Shutdown::Both);
    }
}

impl Seen {
    fn flip(&self, before: u64, piece: &mut [u8]) {
        let at = self.next.load(Ordering::SeqCst);
        let Some(at_here) = at.checked_sub(before).and_then(|at| usize::try_from(at).ok()) else {
            return;
        };
        let Some(byte) = piece.get_mut(at_here) else { return };
        // Two connections may come to theirs at once: one of them gets it.
        let mine = self.next.compare_exchange(at, NONE, Ordering::SeqCst, Ordering::SeqCst);
        if mine.is_ok() {
            *byte ^= 0x10;
            self.flipped.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_of_one_byte_is_changed_once() {
        let seen = Seen {
            next: AtomicU64::new(NONE),
            flipped: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        };
        let look = |before: u64| {
            let mut piece = [7_u8; 4];
            seen.flip(before, &mut piece);
            piece
        };
        assert_eq!(look(0), [7; 4]);
        seen.next.store(6, Ordering::SeqCst);
        assert_eq!((look(0), look(8)), ([7; 4], [7; 4]), "before and behind it");
        assert_eq!(look(4), [7, 7, 7 ^ 0x10, 7]);
        assert_eq!(look(4), [7; 4], "once");
        assert_eq!(seen.flipped.load(Ordering::SeqCst), 1);
    }
}
