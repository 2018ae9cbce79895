//! The first bytes of a data connection: a hello of fixed size one way, a short reply the other.
//!
//! ```text
//!  0        8   9   10    12      16                32                              64
//!  │ magic  │ver│kind│index│attempt│ migration id    │ ticket                        │   numbers big-endian
//! ```
//!
//! The reply is one byte of code (0: accepted), one byte of length and that many bytes of UTF-8 for people.

use std::fmt;

use drover_proto::ids::{Attempt, MigrationId, Ticket};
use tokio::io::{AsyncRead, AsyncReadExt};
use uuid::Uuid;

use super::error::Refusal;

/// Size of a hello on the wire.
pub const HELLO_SIZE: usize = 64;

const MAGIC: &[u8; 8] = b"DROVER-D";
const VERSION: u8 = 1;

/// What a channel carries. QEMU tells them apart by order only, so that order is kept (see `source`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    /// The migration stream itself.
    Main,
    /// Memory pages beside the main channel, counted from 0.
    Multifd(u16),
    /// Pages that the destination asks for in post-copy.
    PostcopyPreempt,
    /// A disk's blocks, counted from 0 in the order of connecting.
    Nbd(u16),
    /// The files of a guest that is shut off: frames of `offline::wire`, between the two agents themselves.
    Files,
}

impl Channel {
    fn to_wire(self) -> (u8, u16) {
        match self {
            Self::Main => (1, 0),
            Self::Multifd(index) => (2, index),
            Self::PostcopyPreempt => (3, 0),
            Self::Nbd(index) => (4, index),
            Self::Files => (5, 0),
        }
    }

    fn from_wire(kind: u8, index: u16) -> Result<Self, HelloError> {
        match (kind, index) {
            (1, 0) => Ok(Self::Main),
            (2, index) => Ok(Self::Multifd(index)),
            (3, 0) => Ok(Self::PostcopyPreempt),
            (4, index) => Ok(Self::Nbd(index)),
            (5, 0) => Ok(Self::Files),
            (kind, index) => Err(HelloError::Channel { kind, index }),
        }
    }

    /// Whether it goes to the socket on which QEMU waits for memory.
    pub fn is_memory(self) -> bool {
        match self {
            Self::Main | Self::Multifd(_) | Self::PostcopyPreempt => true,
            Self::Nbd(_) | Self::Files => false,
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Main => f.write_str("main"),
            Self::Multifd(index) => write!(f, "multifd {index}"),
            Self::PostcopyPreempt => f.write_str("postcopy-preempt"),
            Self::Nbd(index) => write!(f, "nbd {index}"),
            Self::Files => f.write_str("files"),
        }
    }
}

/// What the source says about a connection before its first byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub migration: MigrationId,
    pub attempt: Attempt,
    pub ticket: Ticket,
    pub channel: Channel,
}

/// Bytes that are not a hello of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    #[error("it does not begin with Drover's magic bytes")]
    Magic,
    #[error("version {0} of the data protocol is not known here, only {VERSION}")]
    Version(u8),
    #[error("there is no channel of kind {kind} with index {index}")]
    Channel { kind: u8, index: u16 },
    #[error("the migration id is nil")]
    Migration,
}

impl Hello {
    /// As it goes over the wire.
    pub fn encode(&self) -> [u8; HELLO_SIZE] {
        let (kind, index) = self.channel.to_wire();
        let mut wire = [0; HELLO_SIZE];
        wire[..8].copy_from_slice(MAGIC);
        wire[8] = VERSION;
        wire[9] = kind;
        wire[10..12].copy_from_slice(&index.to_be_bytes());
        wire[12..16].copy_from_slice(&self.attempt.0.to_be_bytes());
        wire[16..32].copy_from_slice(self.migration.as_uuid().as_bytes());
        wire[32..].copy_from_slice(self.ticket.as_bytes());
        wire
    }

    /// Reads what came over the wire.
    pub fn decode(wire: &[u8; HELLO_SIZE]) -> Result<Self, HelloError> {
        // The parts have the sizes of the array's own layout: the conversions below cannot fail.
        let (magic, rest) = split::<8, 56>(wire);
        let ([version, kind], rest) = split::<2, 54>(&rest);
        let (index, rest) = split::<2, 52>(&rest);
        let (attempt, rest) = split::<4, 48>(&rest);
        let (migration, ticket) = split::<16, 32>(&rest);
        if magic != *MAGIC {
            return Err(HelloError::Magic);
        }
        if version != VERSION {
            return Err(HelloError::Version(version));
        }
        let migration = Uuid::from_bytes(migration);
        if migration.is_nil() {
            return Err(HelloError::Migration);
        }
        Ok(Self {
            migration: MigrationId::from_uuid(migration),
            attempt: Attempt(u32::from_be_bytes(attempt)),
            ticket: Ticket::from_slice(&ticket).map_err(|_| HelloError::Magic)?,
            channel: Channel::from_wire(kind, u16::from_be_bytes(index))?,
        })
    }
}

fn split<const A: usize, const B: usize>(bytes: &[u8]) -> ([u8; A], [u8; B]) {
    let mut parts = ([0; A], [0; B]);
    parts.0.copy_from_slice(&bytes[..A]);
    parts.1.copy_from_slice(&bytes[A..]);
    parts
}

/// What the destination answers to a hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// QEMU's socket is connected: what follows are its bytes.
    Accepted,
    /// Nothing follows.
    Refused { refusal: Refusal, detail: String },
}

impl Reply {
    /// As it goes over the wire.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Accepted => vec![0, 0],
            Self::Refused { refusal, detail } => {
                let end = detail.floor_char_boundary(usize::from(u8::MAX));
                let mut wire = vec![refusal.code(), end as u8];
                wire.extend_from_slice(&detail.as_bytes()[..end]);
                wire
            }
        }
    }

    /// Reads one from the connection, and not a byte more.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Self> {
        let mut head = [0; 2];
        stream.read_exact(&mut head).await?;
        let [code, length] = head;
        let mut detail = vec![0; usize::from(length)];
        stream.read_exact(&mut detail).await?;
        Ok(if code == 0 {
            Self::Accepted
        } else {
            Self::Refused {
                refusal: Refusal::from_code(code),
                detail: String::from_utf8_lossy(&detail).into_owned(),
            }
        })
    }
}
