//! What goes over a channel of files: frames of a kind, a length and a body, numbers big-endian.
//!
//! ```text
//!  source ▶  File(index, size)   Bytes | Packed | Zeros (block, hash, …)   End(hash of all)   …   Done
//!  ◀ destination   Known(hashes of the blocks that are there)        Verified          …     AllVerified
//! ```
//!
//! Either side says `Busy` now and then while it reads a disk. `Refused` ends the connection: with a word whether
//! another try may help.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::bytes::{Buf, BufMut};

use super::BLOCK;
use super::blocks::Hash;
use super::spare::Spare;

const BYTES: u8 = 2;
const PACKED: u8 = 3;

/// Kind and length.
const HEAD: usize = 5;
/// What goes before a block's bytes: its number and its hash.
const BEFORE: usize = 40;
/// A block and what goes with it.
const LONGEST: usize = BLOCK + 64;
/// Hashes in one frame.
pub const MOST_HASHES: usize = BLOCK / 32;

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The next file: which of those that were announced, and its bytes.
    File {
        index: u32,
        size: u64,
    },
    /// Blocks that the destination has, the next ones in order. Empty: the file is new, or that was the last of them.
    Known(Vec<Hash>),
    Bytes {
        block: u64,
        hash: Hash,
        bytes: Vec<u8>,
    },
    /// The same, packed.
    Packed {
        block: u64,
        hash: Hash,
        bytes: Vec<u8>,
    },
    Zeros {
        block: u64,
    },
    /// All blocks were sent that the destination did not have.
    End {
        whole: Hash,
    },
    /// The destination has read the file again.
    Verified,
    Done,
    /// And has written that down.
    AllVerified,
    Busy,
    Refused {
        again: bool,
        space: bool,
        why: String,
    },
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl Frame {
    /// As it goes over the wire: what comes first, and after it the bytes of a block, from where they are.
    pub fn encode(&self) -> (Vec<u8>, &[u8]) {
        let mut head = vec![0; HEAD];
        let mut bytes: &[u8] = &[];
        let kind = match self {
            Self::File { index, size } => {
                head.extend_from_slice(&index.to_be_bytes());
                head.extend_from_slice(&size.to_be_bytes());
                1
            }
            Self::Bytes {
                block,
                hash,
                bytes: all,
            }
            | Self::Packed {
                block,
                hash,
                bytes: all,
            } => {
                head.extend_from_slice(&block.to_be_bytes());
                head.extend_from_slice(hash);
                bytes = all;
                if matches!(self, Self::Bytes { .. }) {
                    BYTES
                } else {
                    PACKED
                }
            }
            Self::Zeros { block } => {
                head.extend_from_slice(&block.to_be_bytes());
                4
            }
            Self::End { whole } => {
                head.extend_from_slice(whole);
                5
            }
            Self::Done => 6,
            Self::Busy => 7,
            Self::Known(hashes) => {
                head.extend_from_slice(hashes.as_flattened());
                16
            }
            Self::Verified => 17,
            Self::AllVerified => 18,
            Self::Refused { again, space, why } => {
                head.push(u8::from(*again) | u8::from(*space) << 1);
                head.extend_from_slice(why.as_bytes());
                19
            }
        };
        let length = u32::try_from(head.len() - HEAD + bytes.len()).unwrap_or(u32::MAX);
        head[0] = kind;
        head[1..HEAD].copy_from_slice(&length.to_be_bytes());
        (head, bytes)
    }

    /// Bytes on the wire.
    pub fn length(&self) -> usize {
        let (head, bytes) = self.encode();
        head.len() + bytes.len()
    }

    /// The memory of a block's bytes; of any other frame nothing.
    pub fn into_bytes(self) -> Vec<u8> {
        match self {
            Self::Bytes { bytes, .. } | Self::Packed { bytes, .. } => bytes,
            Self::File { .. }
            | Self::Known(_)
            | Self::Zeros { .. }
            | Self::End { .. }
            | Self::Verified
            | Self::Done
            | Self::AllVerified
            | Self::Busy
            | Self::Refused { .. } => Vec::new(),
        }
    }

    /// Reads a frame's body, of which the bytes of a block are apart.
    pub fn decode(kind: u8, body: &[u8], bytes: Vec<u8>) -> io::Result<Self> {
        let mut rest = body;
        let frame = match kind {
            1 => Self::File {
                index: u32::from_be_bytes(take(&mut rest)?),
                size: u64::from_be_bytes(take(&mut rest)?),
            },
            BYTES | PACKED => {
                let (block, hash) = (u64::from_be_bytes(take(&mut rest)?), take(&mut rest)?);
                if kind == BYTES {
                    Self::Bytes { block, hash, bytes }
                } else {
                    Self::Packed { block, hash, bytes }
                }
            }
            4 => Self::Zeros {
                block: u64::from_be_bytes(take(&mut rest)?),
            },
            5 => Self::End {
                whole: take(&mut rest)?,
            },
            6 => Self::Done,
            7 => Self::Busy,
            16 => {
                let (hashes, left) = std::mem::take(&mut rest).as_chunks::<32>();
                rest = left;
                Self::Known(hashes.to_vec())
            }
            17 => Self::Verified,
            18 => Self::AllVerified,
            19 => {
                let [flags] = take(&mut rest)?;
                Self::Refused {
                    again: flags & 1 != 0,
                    space: flags & 2 != 0,
                    why: String::from_utf8_lossy(std::mem::take(&mut rest))
                        .chars()
                        .take(1000)
                        .collect(),
                }
            }
            _ => return Err(bad("a frame of an unknown kind")),
        };
        if rest.is_empty() {
            Ok(frame)
        } else {
            Err(bad("a frame that is too long"))
        }
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> io::Result<[u8; N]> {
    let (first, left) = rest
        .split_first_chunk()
        .ok_or_else(|| bad("a frame that is too short"))?;
    *rest = left;
    Ok(*first)
}

/// The next frame; none at the announced end.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Frame>> {
    read_into(stream, &Spare::default()).await
}

/// The same; a block's bytes are read into spare memory.
pub async fn read_into(stream: &mut (impl AsyncRead + Unpin), spare: &Spare) -> io::Result<Option<Frame>> {
    let mut head = [0; HEAD];
    if stream.read(&mut head[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut head[1..]).await?;
    let [kind, length @ ..] = head;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length > LONGEST {
        return Err(bad("a frame that is too long"));
    }
    let has_bytes = kind == BYTES || kind == PACKED;
    let mut body = vec![0; if has_bytes { length.min(BEFORE) } else { length }];
    stream.read_exact(&mut body).await?;
    let mut bytes = Vec::new();
    if length > body.len() {
        bytes = spare.take();
        let mut room = (&mut bytes).limit(length - body.len());
        while room.has_remaining_mut() {
            if stream.read_buf(&mut room).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
    Frame::decode(kind, &body, bytes).map(Some)
}

/// Sends one frame; gives how many bytes that were.
pub async fn write(stream: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<usize> {
    let (head, bytes) = frame.encode();
    stream.write_all_buf(&mut Buf::chain(head.as_slice(), bytes)).await?;
    stream.flush().await?;
    Ok(head.len() + bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_written_is_read_back() {
        let frames = [
            Frame::File {
                index: 3,
                size: 1 << 40,
            },
            Frame::Known(vec![[1; 32], [2; 32]]),
            Frame::Known(Vec::new()),
            Frame::Bytes {
                block: 7,
                hash: [3; 32],
                bytes: vec![1, 2, 3],
            },
            Frame::Packed {
                block: 8,
                hash: [4; 32],
                bytes: vec![9; BLOCK],
            },
            Frame::Zeros { block: 1 },
            Frame::End { whole: [5; 32] },
            Frame::Verified,
            Frame::Done,
            Frame::AllVerified,
            Frame::Busy,
            Frame::Refused {
                again: true,
                space: false,
                why: "no".to_owned(),
            },
        ];
        let wire = |frame: &Frame| {
            let (head, bytes) = frame.encode();
            [&head, bytes].concat()
        };
        let wire: Vec<u8> = frames.iter().flat_map(wire).collect();
        let mut stream = wire.as_slice();
        for frame in frames {
            assert_eq!(read(&mut stream).await.unwrap(), Some(frame));
        }
        assert_eq!(read(&mut stream).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_is_no_frame_is_refused() {
        let long = [&[2][..], &u32::MAX.to_be_bytes()].concat();
        let cases: [&[u8]; 7] = [
            &[99, 0, 0, 0, 0],
            &[4, 0, 0, 0, 1, 0],
            &[6, 0, 0, 0, 1, 0],
            &[2, 0, 0],
            &[2, 0, 0, 0, 3, 1, 2, 3],
            &[&[3, 0, 0, 0, 50][..], &[1; 49]].concat(),
            &long,
        ];
        for wire in cases {
            assert!(read(&mut &wire[..]).await.is_err(), "{wire:?}");
        }
    }
}
