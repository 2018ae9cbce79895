//! Why a channel did not come about or broke: what the source tells people, and what the destination tells it.

use std::path::PathBuf;

use super::hello::Channel;

/// Why the destination did not take a channel. The numbers are the wire's: never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// Unknown migration, another ticket, or another host's agent: it does not say which.
    #[error("the ticket is not valid")]
    Ticket,
    #[error("the ticket is of another attempt")]
    Attempt,
    #[error("the ticket has expired")]
    Expired,
    #[error("the migration was revoked at the destination")]
    Revoked,
    /// Another channel came before the main one, or the same one twice.
    #[error("the channel came out of order")]
    Order,
    /// QEMU's socket at the destination could not be connected.
    #[error("QEMU does not listen at the destination")]
    Qemu,
    #[error("the hello was not understood")]
    Hello,
    /// Too many connections that have not said who they are.
    #[error("the destination is busy")]
    Busy,
    /// A code that this version does not know.
    #[error("refused for a reason that is not known here")]
    Unknown,
}

impl Refusal {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Ticket => 1,
            Self::Attempt => 2,
            Self::Expired => 3,
            Self::Revoked => 4,
            Self::Order => 5,
            Self::Qemu => 6,
            Self::Hello => 7,
            Self::Busy => 8,
            Self::Unknown => 255,
        }
    }

    pub(crate) fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Ticket,
            2 => Self::Attempt,
            3 => Self::Expired,
            4 => Self::Revoked,
            5 => Self::Order,
            6 => Self::Qemu,
            7 => Self::Hello,
            8 => Self::Busy,
            _ => Self::Unknown,
        }
    }

    /// Whether it says that the ticket lets nobody in, now or ever.
    pub fn is_ticket(self) -> bool {
        match self {
            Self::Ticket | Self::Attempt | Self::Expired | Self::Revoked => true,
            Self::Order | Self::Qemu | Self::Hello | Self::Busy | Self::Unknown => false,
        }
    }
}

/// What went wrong in the tunnel, for people and for the record of the migration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TunnelError {
    /// The kernel's limit for unix sockets is 108 bytes with the ending NUL.
    #[error("the socket path {} is {length} bytes long and the limit is 107: choose a shorter run_dir", path.display())]
    PathTooLong { path: PathBuf, length: usize },
    #[error("cannot make the socket {}: {message}", path.display())]
    Listen { path: PathBuf, message: String },
    /// None of the addresses led to the destination's agent.
    #[error("{channel} channel: no connection to the destination's agent: {message}")]
    Connect { channel: Channel, message: String },
    #[error("{channel} channel: {refusal}: {detail}")]
    Refused {
        channel: Channel,
        refusal: Refusal,
        detail: String,
    },
    /// The other agent did not send what comes first in time, or something else.
    #[error("{channel} channel: the other agent did not answer the hello: {message}")]
    Handshake { channel: Channel, message: String },
    /// The unix socket towards QEMU failed.
    #[error("{channel} channel: the connection with QEMU broke: {message}")]
    Qemu { channel: Channel, message: String },
    /// The TLS connection failed, or ended without saying so: the other agent or host died, or it was revoked.
    #[error("{channel} channel: the connection between the agents broke: {message}")]
    Cut { channel: Channel, message: String },
    /// QEMU opened more connections than the migration has channels.
    #[error("QEMU opened more than {expected} channels")]
    TooManyChannels { expected: usize },
}
