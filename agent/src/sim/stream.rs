//! What a simulated QEMU sends: frames of a type, a length and a payload, over one main channel and some beside it.
//!
//! main: `Head`, then pages, then `Tail`, and `Switch` among the pages where it goes post-copy, which is answered with
//! `Whole` at the end; beside it: pages, then `Tail`. The first connection that is accepted has to be the main one, as
//! with a QEMU before 8.0.

use std::io;
use std::time::SystemTime;

use drover_proto::ids::GuestId;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Largest payload of a frame.
pub(super) const LARGEST: usize = 256 * 1024;

const HEAD: u8 = b'H';
const PAGES: u8 = b'P';
const TAIL: u8 = b'T';
const SWITCH: u8 = b'S';
const WHOLE: u8 = b'W';

/// First on the main channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) guest: GuestId,
    /// Channels beside the main one.
    pub(super) beside: u32,
}

/// Last on every channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tail {
    /// Bytes of pages on this channel.
    pub(super) pages: u64,
    /// On the main channel: when the migration stopped the guest, by the source's clock.
    pub(super) stopped: Option<SystemTime>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Head(Head),
    /// So many bytes of pages; they hold nothing.
    Pages(usize),
    /// The guest may run on what is there.
    Switch,
    Tail(Tail),
    /// Back to the source: nothing is missing any more.
    Whole,
}

/// Writes a frame in one piece. Of the pages only the length is looked at.
pub(super) async fn write(stream: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    let (kind, payload) = match frame {
        Frame::Head(head) => (HEAD, serde_json::to_vec(head)?),
        Frame::Pages(length) => (PAGES, vec![0; *length]),
        Frame::Switch => (SWITCH, Vec::new()),
        Frame::Whole => (WHOLE, Vec::new()),
        Frame::Tail(tail) => (TAIL, serde_json::to_vec(tail)?),
    };
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    let mut wire = Vec::with_capacity(5 + payload.len());
    wire.push(kind);
    wire.extend_from_slice(&length.to_be_bytes());
    wire.extend_from_slice(&payload);
    stream.write_all(&wire).await
}

/// Reads one frame; an end before it is an error.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin), scratch: &mut Vec<u8>) -> io::Result<Frame> {
    let kind = stream.read_u8().await?;
    let length = stream.read_u32().await? as usize;
    if length > LARGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a migration stream"));
    }
    scratch.resize(length, 0);
    stream.read_exact(scratch).await?;
    match kind {
        HEAD => Ok(Frame::Head(serde_json::from_slice(scratch)?)),
        PAGES => Ok(Frame::Pages(length)),
        SWITCH => Ok(Frame::Switch),
        WHOLE => Ok(Frame::Whole),
        TAIL => Ok(Frame::Tail(serde_json::from_slice(scratch)?)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not a migration stream")),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn frames_read_back() {
        let guest = GuestId::from_uuid(Uuid::from_u128(7));
        let frames = [
            Frame::Head(Head { guest, beside: 2 }),
            Frame::Pages(1000),
            Frame::Switch,
            Frame::Whole,
            Frame::Tail(Tail {
                pages: 1000,
                stopped: None,
            }),
        ];
        let mut wire = Vec::new();
        for frame in &frames {
            write(&mut wire, frame).await.unwrap();
        }
        let (mut rest, mut scratch) = (wire.as_slice(), Vec::new());
        for frame in &frames {
            assert_eq!(read(&mut rest, &mut scratch).await.unwrap(), *frame);
        }
        assert!(rest.is_empty());
    }

    #[tokio::test]
    async fn a_cut_or_foreign_stream_is_an_error() {
        let mut scratch = Vec::new();
        for bad in [
            &b""[..],
            b"P\0\0",
            b"P\0\0\0\x05abc",
            b"X\0\0\0\0",
            b"P\xff\xff\xff\xff",
            b"T\0\0\0\0",
        ] {
            assert!(read(&mut &bad[..], &mut scratch).await.is_err(), "{bad:?}");
        }
    }
}
