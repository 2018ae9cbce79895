//! Source: sends the blocks of held images that the destination does not have, over one connection.
//!
//! Every block is read and hashed here in any case, also where an earlier connection has sent it: what the destination
//! has is compared with what is here now. If the connection is cut, the next one begins with what arrived.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::blocks::{Blocks, Content, Hash, Packer, Whole, count};
use super::image::Image;
use super::spare::Spare;
use super::stripes::each_block;
use super::wire::{self, Frame};
use crate::hypervisor::DiskCopy;
use crate::tunnel::Pace;

/// Whoever says nothing for so long is gone: a side that reads its disk says so.
pub(super) const SILENCE: Duration = Duration::from_secs(60);
/// How often it says so.
pub(super) const BUSY: Duration = Duration::from_secs(5);
/// Blocks that are read ahead of the connection.
const AHEAD: usize = 8;

/// How far the copy is. Bytes.
#[derive(Debug, Default)]
pub struct Progress {
    /// All data in the images, holes left out.
    pub total: AtomicU64,
    /// What is still to be sent or compared.
    pub left: AtomicU64,
    /// What crossed the network, of all connections together.
    pub wire: AtomicU64,
    /// Each file.
    files: Mutex<Vec<DiskCopy>>,
    /// Files that the destination has verified, in this connection.
    pub verified: AtomicU64,
    /// When the other side said something, the last time.
    heard: Arc<Mutex<Option<Instant>>>,
}

impl Progress {
    fn sent(&self, bytes: usize) {
        self.wire.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// So much of a file was sent, or is there already.
    fn done(&self, file: usize, bytes: u64) {
        if let Some(file) = self.lock_files().get_mut(file) {
            file.remaining = file.remaining.saturating_sub(bytes);
        }
        let less = |left: u64| Some(left.saturating_sub(bytes));
        // The closure always gives a value.
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// The destination has all of it.
    fn verified(&self, file: usize) {
        if let Some(file) = self.lock_files().get_mut(file) {
            // What the file takes is not what is in it: holes within its blocks were counted.
            file.remaining = 0;
        }
        self.verified.fetch_add(1, Ordering::Relaxed);
    }

    pub fn begin(&self, images: &[Arc<Image>]) {
        let data = |image: &Arc<Image>| image.spec.allocated.min(image.spec.size);
        let total = images.iter().map(data).sum();
        let file = |image: &Arc<Image>| DiskCopy {
            disk: image.spec.path.to_string_lossy().into_owned(),
            total: data(image),
            remaining: data(image),
        };
        *self.lock_files() = images.iter().map(file).collect();
        self.total.store(total, Ordering::Relaxed);
        self.left.store(total, Ordering::Relaxed);
        self.verified.store(0, Ordering::Relaxed);
    }

    fn lock_files(&self) -> MutexGuard<'_, Vec<DiskCopy>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far each file is.
    pub fn files(&self) -> Vec<DiskCopy> {
        self.lock_files().clone()
    }

    /// When the other side said something, the last time.
    pub fn heard(&self) -> Option<Instant> {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a connection came to its end too early.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Another one may go on.
    #[error("the connection to the destination was cut: {0}")]
    Cut(io::Error),
    #[error("the destination says: {why}")]
    Refused { again: bool, space: bool, why: String },
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        path: std::path::PathBuf,
        source: io::Error,
    },
}

/// The other side's answers, read by a task of their own: a refusal comes while blocks are being sent.
struct Answers {
    frames: mpsc::Receiver<io::Result<Frame>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Answers {
    fn listen(input: impl AsyncRead + Send + Unpin + 'static, progress: &Progress) -> Self {
        let last = Arc::clone(&progress.heard);
        let (heard, frames) = mpsc::channel(AHEAD);
        let mut input = BufReader::new(input);
        let task = async move {
            loop {
                let frame = match wire::read(&mut input).await {
                    Ok(Some(frame)) => {
                        *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                        Ok(frame)
                    }
                    Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
                    Err(error) => Err(error),
                };
                let ended = frame.is_err();
                if heard.send(frame).await.is_err() || ended {
                    return;
                }
            }
        };
        Self {
            frames,
            task: tokio::spawn(task),
        }
    }

    /// The next one that is not about patience.
    async fn next(&mut self) -> Result<Frame, SendError> {
        loop {
            let heard = timeout(SILENCE, self.frames.recv()).await;
            let frame = heard.map_err(|_| SendError::Cut(io::ErrorKind::TimedOut.into()))?;
            match frame.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into())) {
                Ok(Frame::Busy) => {}
                Ok(Frame::Refused { again, space, why }) => return Err(SendError::Refused { again, space, why }),
                Ok(frame) => return Ok(frame),
                Err(error) => return Err(SendError::Cut(error)),
            }
        }
    }
}

fn unexpected(frame: &Frame) -> SendError {
    let kind = match frame {
        Frame::Known(_) => "known",
        Frame::Verified => "verified",
        Frame::AllVerified => "all verified",
        Frame::File { .. }
        | Frame::Bytes { .. }
        | Frame::Packed { .. }
        | Frame::Zeros { .. }
        | Frame::End { .. }
        | Frame::Done
        | Frame::Busy
        | Frame::Refused { .. } => "something of a source",
    };
    SendError::Cut(io::Error::new(
        io::ErrorKind::InvalidData,
        format!("it said {kind} out of order"),
    ))
}

/// Sends all images; `Ok` means that the destination has read all of them again and has written that down.
pub async fn send<S>(stream: S, images: &[Arc<Image>], pace: &Pace, progress: &Progress) -> Result<(), SendError>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    progress.begin(images);
    let (input, mut output) = tokio::io::split(stream);
    let mut answers = Answers::listen(input, progress);
    for (at, image) in images.iter().enumerate() {
        let size = image.spec.size;
        let index = u32::try_from(at).unwrap_or(u32::MAX);
        write(&mut output, &Frame::File { index, size }, progress).await?;
        let mut known = Vec::new();
        loop {
            let answer = answers.next().await?;
            let room = count(size) - known.len() as u64;
            let Frame::Known(hashes) = &answer else {
                return Err(unexpected(&answer));
            };
            if hashes.is_empty() {
                break;
            }
            if hashes.len() as u64 > room {
                return Err(unexpected(&answer));
            }
            known.extend_from_slice(hashes);
        }
        let whole = send_blocks(&mut output, &mut answers, (at, image), known, pace, progress).await?;
        write(&mut output, &Frame::End { whole }, progress).await?;
        expect(&mut answers, &Frame::Verified).await?;
        progress.verified(at);
    }
    write(&mut output, &Frame::Done, progress).await?;
    expect(&mut answers, &Frame::AllVerified).await
}

async fn expect(answers: &mut Answers, wanted: &Frame) -> Result<(), SendError> {
    match answers.next().await? {
        frame if frame == *wanted => Ok(()),
        other => Err(unexpected(&other)),
    }
}

/// A block that is to be sent, or nothing where the destination has it.
struct Ready {
    frame: Option<Frame>,
    data: u64,
}

async fn send_blocks(
    output: &mut (impl AsyncWrite + Unpin),
    answers: &mut Answers,
    (at, image): (usize, &Arc<Image>),
    known: Vec<Hash>,
    pace: &Pace,
    progress: &Progress,
) -> Result<Hash, SendError> {
    let (read, mut ready) = mpsc::channel(AHEAD);
    let (source, spare) = (Arc::clone(image), Arc::new(Spare::default()));
    let used = Arc::clone(&spare);
    let reading = tokio::task::spawn_blocking(move || read_blocks(&source, &known, &read, &used));
    loop {
        tokio::select! {
            biased;
            heard = answers.frames.recv() => match heard {
                Some(Ok(Frame::Busy)) => {}
                Some(Ok(Frame::Refused { again, space, why })) => return Err(SendError::Refused { again, space, why }),
                Some(Ok(other)) => return Err(unexpected(&other)),
                Some(Err(error)) => return Err(SendError::Cut(error)),
                None => return Err(SendError::Cut(io::ErrorKind::UnexpectedEof.into())),
            },
            block = timeout(BUSY, ready.recv()) => match block {
                Ok(Some(Ready { frame, data })) => {
                    if let Some(frame) = frame {
                        pace.take(frame.length()).await;
                        write(output, &frame, progress).await?;
                        spare.give(frame.into_bytes());
                    }
                    progress.done(at, data);
                }
                Ok(None) => break,
                Err(_) => write(output, &Frame::Busy, progress).await?,
            },
        }
    }
    let failed = |source| SendError::Read {
        path: image.spec.path.clone(),
        source,
    };
    reading
        .await
        .map_err(|error| failed(io::Error::other(error)))?
        .map_err(failed)
}

/// Until the file's end, or until nobody wants more; in stripes, so not in order. Blocks.
fn read_blocks(image: &Image, known: &[Hash], ready: &mpsc::Sender<Ready>, spare: &Spare) -> io::Result<Hash> {
    let size = image.spec.size;
    let hashes = each_block(&image.file, size, || {
        let mut packer = Packer::new()?;
        Ok(move |blocks: &mut Blocks<'_>, block: u64| {
            let named = |error: io::Error| io::Error::new(error.kind(), format!("block {block}: {error}"));
            let (content, hash) = blocks.read(block).map_err(named)?;
            let there = usize::try_from(block).ok().and_then(|at| known.get(at));
            let data = match content {
                Content::Zeros => 0,
                Content::Bytes(bytes) => bytes.len() as u64,
            };
            let frame = match content {
                _ if there == Some(&hash) => None,
                // A new file is a hole as yet.
                Content::Zeros if there.is_none() => None,
                Content::Zeros => Some(Frame::Zeros { block }),
                Content::Bytes(bytes) => Some(frame_of(block, hash, bytes, &mut packer, spare)),
            };
            if ready.blocking_send(Ready { frame, data }).is_err() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            Ok(hash)
        })
    })?;
    let mut whole = Whole::new(size);
    hashes.iter().for_each(|hash| whole.add(hash));
    Ok(whole.hash())
}

fn frame_of(block: u64, hash: Hash, content: &[u8], packer: &mut Packer, spare: &Spare) -> Frame {
    let mut bytes = spare.take();
    if packer.pack(content, &mut bytes) {
        return Frame::Packed { block, hash, bytes };
    }
    bytes.clear();
    bytes.extend_from_slice(content);
    Frame::Bytes { block, hash, bytes }
}

async fn write(output: &mut (impl AsyncWrite + Unpin), frame: &Frame, progress: &Progress) -> Result<(), SendError> {
    match timeout(SILENCE, wire::write(output, frame)).await {
        Ok(Ok(bytes)) => progress.sent(bytes),
        Ok(Err(error)) => return Err(SendError::Cut(error)),
        Err(_) => return Err(SendError::Cut(io::ErrorKind::TimedOut.into())),
    }
    Ok(())
}
