//! Moves bytes between a unix socket (QEMU) and a TLS connection (the other agent) until both directions ended.
//!
//! Each direction ends on its own and hands its end on. An error in one ends both at once: dropping the sockets
//! cuts the channel on both sides, so that QEMU and the other agent see it.

use std::io;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{ReadHalf, WriteHalf};

use super::session::{Receiver, Sender};
use super::{Counters, Pace};

/// The largest piece that is moved at once: what a unix socket holds by default, rounded up.
const PIECE: usize = 256 * 1024;
/// Buffers begin small: of most channels one direction stays silent.
const FIRST_PIECE: usize = 16 * 1024;

/// Which side of the relay broke.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("QEMU: {0}")]
    Unix(io::Error),
    #[error("network: {0}")]
    Network(io::Error),
}

/// Relays until both directions have ended, what is sent at `pace`. `received_all` is called when the other agent has
/// announced its end and every byte before it was given to QEMU. The socket is the caller's: it closes after he has
/// said what went wrong.
pub(crate) async fn relay(
    unix: &mut UnixStream,
    (sender, receiver): (Sender, Receiver),
    counters: &Counters,
    pace: &Pace,
    received_all: impl FnOnce(),
) -> Result<(), Broken> {
    let (from_unix, to_unix) = unix.split();
    tokio::try_join!(
        send(from_unix, sender, counters, pace),
        receive(receiver, to_unix, counters, received_all)
    )?;
    Ok(())
}

async fn send(unix: ReadHalf<'_>, mut network: Sender, counters: &Counters, pace: &Pace) -> Result<(), Broken> {
    let mut piece = vec![0; FIRST_PIECE];
    loop {
        unix.readable().await.map_err(Broken::Unix)?;
        let at_once = pace.piece(piece.len());
        match unix.try_read(&mut piece[..at_once]) {
            Ok(0) => return network.finish().await.map_err(Broken::Network),
            Ok(read) => {
                pace.take(read).await;
                network.send(&piece[..read]).await.map_err(Broken::Network)?;
                counters.add_sent(read);
                if read == piece.len() && read < PIECE {
                    piece.resize(read * 4, 0);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(Broken::Unix(error)),
        }
    }
}

async fn receive(
    mut network: Receiver,
    mut unix: WriteHalf<'_>,
    counters: &Counters,
    received_all: impl FnOnce(),
) -> Result<(), Broken> {
    let mut piece = Vec::new();
    while network.receive(&mut piece, PIECE).await.map_err(Broken::Network)? {
        unix.write_all(&piece).await.map_err(Broken::Unix)?;
        counters.add_received(piece.len());
        piece.clear();
    }
    unix.shutdown().await.map_err(Broken::Unix)?;
    received_all();
    Ok(())
}
