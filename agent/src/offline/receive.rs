//! Destination: receives files over one connection, each into its partial file, and reads each again from the disk.

use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use drover_proto::ids::MigrationId;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;

use super::blocks::{hash, unpack};
use super::calls::{FileCall, Stopped};
use super::chain::Layer;
use super::partial::{Partial, Writer};
use super::send::{BUSY, SILENCE};
use super::spare::Spare;
use super::stripes::THREADS;
use super::wire::{self, Frame, MOST_HASHES};
use super::{FileError, FileSpec};
use crate::gate::Gate;
use crate::images::Identity;
use crate::images::device::Unfit;
use crate::storage_directories::StorageDirectories;

/// Blocks that wait for the disk.
const AHEAD: usize = 8;

/// What is to come, and where it goes.
#[derive(Clone, Debug)]
pub struct Expected {
    pub migration: MigrationId,
    pub allowed: StorageDirectories,
    pub files: Vec<FileSpec>,
    /// Those of them that the definition says to open as qcow2: such an image may name another file of this host.
    pub qcow2: Vec<PathBuf>,
    /// QEMU's group; `None` leaves the agent's own.
    pub group: Option<u32>,
    /// Held while a file is written: a connection that was cut may not have come to its end.
    pub writing: Arc<tokio::sync::Mutex<()>>,
    /// The migration is undone, or at its end: nothing of it is written or read any more.
    pub over: CancellationToken,
    /// Open but in a simulation.
    pub gate: Gate,
}

/// Why a connection came to its end too early.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    #[error("the connection was cut: {0}")]
    Cut(#[from] io::Error),
    /// What came is not what was announced.
    #[error("block {block} of {path} was damaged on its way", path = path.display())]
    Damaged { path: std::path::PathBuf, block: u64 },
    #[error("{path} is not what was sent, now that it was read back from the disk", path = .0.display())]
    Unlike(std::path::PathBuf),
    #[error("the source does not keep to the protocol: {0}")]
    Protocol(&'static str),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("it could not be written down: {0}")]
    Journal(String),
}

impl ReceiveError {
    /// What the source is told; nothing where it cannot hear it.
    pub fn frame(&self) -> Option<Frame> {
        let (again, space) = match self {
            Self::Cut(_) => return None,
            Self::Damaged { .. } | Self::Unlike(_) | Self::Journal(_) => (true, false),
            Self::Protocol(_) => (false, false),
            // Where it was let go of just now, the system looks at what is on it.
            Self::File(FileError::Device(Unfit::InUse(_))) => (true, false),
            Self::File(FileError::Space { .. }) => (false, true),
            Self::File(FileError::Io { source, .. }) => (false, source.kind() == io::ErrorKind::StorageFull),
            Self::File(_) => (false, false),
        };
        let why = self.to_string();
        Some(Frame::Refused { again, space, why })
    }
}

async fn next(stream: &mut (impl AsyncRead + Unpin), spare: &Spare) -> Result<Frame, ReceiveError> {
    loop {
        let heard = timeout(SILENCE, wire::read_into(stream, spare)).await;
        match heard.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? {
            Some(Frame::Busy) => {}
            Some(frame) => return Ok(frame),
            None => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
    }
}

/// Works off the async threads, and tells the source now and then that it does.
async fn busy<T: Send + 'static>(
    stream: &mut (impl AsyncWrite + Unpin),
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ReceiveError> {
    let done = meanwhile(stream, tokio::task::spawn_blocking(work)).await?;
    done.map_err(|error| io::Error::other(error).into())
}

/// Tells the source now and then that something is being waited for.
async fn meanwhile<T>(
    stream: &mut (impl AsyncWrite + Unpin),
    work: impl Future<Output = T>,
) -> Result<T, ReceiveError> {
    let mut work = pin!(work);
    let mut tick = interval(BUSY);
    tick.tick().await;
    loop {
        tokio::select! {
            done = &mut work => return Ok(done),
            _ = tick.tick() => {
                wire::write(stream, &Frame::Busy).await?;
            }
        }
    }
}

/// Receives all files. When this returns, each has reached the disk and was read back; they have no name yet.
pub async fn receive<S>(stream: &mut S, expected: &Expected) -> Result<Vec<Identity>, ReceiveError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut received, mut qcow2) = (Vec::new(), expected.qcow2.clone());
    let spare = Arc::new(Spare::default());
    loop {
        let frame = next(stream, &spare).await?;
        if frame == Frame::Done && received.len() == expected.files.len() {
            return Ok(received);
        }
        let Frame::File { index, size } = frame else {
            return Err(ReceiveError::Protocol("a frame out of order"));
        };
        let spec = expected.files.get(received.len());
        let right = usize::try_from(index) == Ok(received.len());
        let Some(spec) = spec.filter(|spec| right && spec.size == size) else {
            return Err(ReceiveError::Protocol("another file than was announced"));
        };
        let stopped = |stopped: Stopped| match stopped {
            Stopped::Refused => FileError::io(&spec.path, stopped.into()).into(),
            Stopped::Lost => ReceiveError::Cut(stopped.into()),
        };
        let receive = receive_file(stream, expected, received.len(), &mut qcow2, &spare);
        received.push(FileCall::Receive.through(&expected.gate, stopped, receive).await?);
    }
}

/// The one at this place in the list. `qcow2` are those that QEMU will open as such, as far as it is known by now.
async fn receive_file<S>(
    stream: &mut S,
    expected: &Expected,
    at: usize,
    qcow2: &mut Vec<PathBuf>,
    spare: &Arc<Spare>,
) -> Result<Identity, ReceiveError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let spec = &expected.files[at];
    let Expected {
        migration,
        allowed,
        group,
        writing,
        over,
        ..
    } = expected.clone();
    // A former connection may still read all of its file again.
    let turn = meanwhile(stream, writing.lock_owned()).await?;
    let announced = spec.clone();
    let opened = busy(stream, move || {
        Partial::open(&allowed, &announced, migration, group, &over, turn)
    });
    let partial = opened.await??;
    for hashes in partial.known.iter().flat_map(|known| known.chunks(MOST_HASHES)) {
        wire::write(stream, &Frame::Known(hashes.to_vec())).await?;
    }
    wire::write(stream, &Frame::Known(Vec::new())).await?;

    let (came, blocks) = mpsc::channel(AHEAD);
    let used = Arc::clone(spare);
    let writing = tokio::task::spawn_blocking(move || write_blocks(partial, blocks, &used));
    let whole = loop {
        let frame = next(stream, spare).await?;
        if let Frame::End { whole } = frame {
            break Some(whole);
        }
        // A writer that has come to an end before its time says why.
        if came.send(frame).await.is_err() {
            break None;
        }
    };
    drop(came);
    let partial = writing.await.map_err(io::Error::other)??;
    let Some(whole) = whole else {
        return Err(ReceiveError::Protocol("the writer ended before its time"));
    };
    let completed = busy(stream, move || partial.complete().map(|()| partial));
    let partial = Arc::new(completed.await??);
    let verifying = Arc::clone(&partial);
    let (found, identity) = busy(stream, move || verifying.verify()).await??;
    if found != whole {
        return Err(ReceiveError::Unlike(spec.path.clone()));
    }
    if qcow2.contains(&spec.path) {
        let received = Arc::clone(&partial);
        if let Some(layer) = busy(stream, move || received.beneath()).await?? {
            may_lie_on(&layer, &expected.files, at, qcow2)?;
        }
    }
    wire::write(stream, &Frame::Verified).await?;
    Ok(identity)
}

/// An image lies on what comes with it, and on no other file of this host.
fn may_lie_on(layer: &Layer, files: &[FileSpec], at: usize, qcow2: &mut Vec<PathBuf>) -> Result<(), FileError> {
    let place = files.iter().position(|file| file.path == layer.path);
    let is_head = layer.format == "qcow2" && !qcow2.contains(&layer.path);
    match place {
        // Its own head is looked at when it has come; one that came before was not.
        Some(place) if is_head && place > at => qcow2.push(layer.path.clone()),
        Some(_) if !is_head && (layer.format == "qcow2" || layer.format == "raw") => {}
        Some(_) | None => {
            return Err(FileError::Chain {
                path: files[at].path.clone(),
                what: layer.path.display().to_string(),
            });
        }
    }
    Ok(())
}

/// Until the sender is gone, by several threads: blocks come in any order. Blocks.
fn write_blocks(partial: Partial, blocks: mpsc::Receiver<Frame>, spare: &Spare) -> Result<Partial, ReceiveError> {
    let (blocks, failed) = (Mutex::new(blocks), AtomicBool::new(false));
    let write = || {
        let mut writer = partial.writer();
        let written = loop {
            // One that waits for a block when another one fails still gets it.
            if failed.load(Ordering::Relaxed) {
                break Ok(());
            }
            let next = lock(&blocks).blocking_recv();
            let Some(frame) = next else { break Ok(()) };
            if let Err(error) = write_block(&partial, &mut writer, &frame) {
                break Err(error);
            }
            spare.give(frame.into_bytes());
        };
        if written.is_err() {
            failed.store(true, Ordering::Relaxed);
            // The sender learns of it.
            lock(&blocks).close();
        }
        written
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..THREADS).map(|_| scope.spawn(write)).collect();
        let panicked = |_| io::Error::other("a thread that writes has panicked");
        let first = write();
        let others = others.into_iter().map(|other| other.join().map_err(panicked)?);
        others.fold(first, Result::and)
    })?;
    Ok(partial)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write_block(partial: &Partial, writer: &mut Writer<'_>, frame: &Frame) -> Result<(), ReceiveError> {
    let beyond = Err(ReceiveError::Protocol("a block that the file does not have"));
    let (block, announced, bytes, is_packed) = match frame {
        Frame::Zeros { block } if *block < partial.blocks() => return Ok(writer.clear(*block)?),
        Frame::Bytes { block, hash, bytes } => (*block, hash, bytes, false),
        Frame::Packed { block, hash, bytes } => (*block, hash, bytes, true),
        Frame::Zeros { .. } => return beyond,
        Frame::File { .. }
        | Frame::Known(_)
        | Frame::End { .. }
        | Frame::Verified
        | Frame::Done
        | Frame::AllVerified
        | Frame::Busy
        | Frame::Refused { .. } => return Err(ReceiveError::Protocol("a frame out of order")),
    };
    if block >= partial.blocks() {
        return beyond;
    }
    let memory = writer.memory(block);
    let filled = if is_packed {
        unpack(bytes, memory).is_ok()
    } else {
        let fits = bytes.len() == memory.len();
        if fits {
            memory.copy_from_slice(bytes);
        }
        fits
    };
    if !filled || hash(memory) != *announced {
        let path = partial.path().to_owned();
        return Err(ReceiveError::Damaged { path, block });
    }
    Ok(writer.write(block)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_lies_only_on_what_comes_with_it() {
        let file = |name: &str| FileSpec {
            path: PathBuf::from(name),
            size: 1,
            allocated: 1,
            mode: 0o600,
            block_device: false,
        };
        let files = ["/a/base", "/a/top", "/a/middle"].map(file);
        let mut qcow2 = vec![PathBuf::from("/a/top")];
        let mut lies_on = |name: &str, format: &str| {
            let layer = Layer {
                path: PathBuf::from(name),
                format: format.to_owned(),
            };
            may_lie_on(&layer, &files, 1, &mut qcow2).is_ok()
        };
        assert!(lies_on("/a/base", "raw"), "a raw one has no head");
        assert!(!lies_on("/a/base", "qcow2"), "nobody has looked at its head");
        assert!(!lies_on("/etc/shadow", "raw") && !lies_on("/a/middle", "vmdk"));
        assert!(lies_on("/a/middle", "qcow2"));
        assert_eq!(
            qcow2,
            ["/a/top", "/a/middle"].map(PathBuf::from),
            "its head is looked at, too"
        );
    }
}
