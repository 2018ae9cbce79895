//! A guest that is shut off, as it leaves: its images, held from Begin until the destination has it.
//!
//! It takes the place of libvirt's job: `perform` copies and returns when the destination has verified everything; a
//! connection that is cut is made again. Dropping it lets go of the images.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use drover_proto::failure::Failure;
use tokio_util::sync::CancellationToken;

use super::calls::{FileCall, Stopped};
use super::image::{Image, Mark};
use super::patience::{Patience, Reached};
use super::send::{Progress, SendError, send};
use super::{FileError, FileSpec};
use crate::gate::Gate;
use crate::hypervisor::{Begun, Cookie, ErrorClass, HypervisorError, JobStats, Outgoing, PerformRequest, Result};
use crate::tunnel::{Carrier, Pace, TunnelError};

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A block that is damaged again and again is no accident of the network.
const MOST_REPEATS: u32 = 5;
/// An image that changes again and again while it is sent is used by somebody.
const MOST_CHANGES: u32 = 2;

/// What the destination or the disk says, and no other try changes.
pub const NO_SPACE: &str = "NO_SPACE";
pub const FILES: &str = "FILES";

/// One leaving guest.
#[derive(Debug)]
pub struct OfflineOutgoing {
    begun: Begun,
    /// None once it was let go.
    held: Mutex<Option<Held>>,
    /// What the images were when they began to be sent, the last time.
    sent: Mutex<Vec<Mark>>,
    target: OnceLock<(Carrier, Pace)>,
    progress: Progress,
    started: OnceLock<Instant>,
    cut: CancellationToken,
    gate: Gate,
}

/// What became of the images since they began to be sent.
#[derive(Debug)]
pub enum Since {
    Same(Vec<Mark>),
    /// The first one that was written to.
    Changed(PathBuf),
}

/// Everything that keeps others from starting the guest.
#[derive(Debug, Default)]
struct Held {
    images: Vec<Arc<Image>>,
    /// Those that stay where they are: their locks are what counts.
    others: Vec<File>,
}

impl OfflineOutgoing {
    pub fn new(images: Vec<Image>, others: Vec<File>, gate: Gate) -> Self {
        Self {
            begun: Begun::default(),
            held: Mutex::new(Some(Held {
                images: images.into_iter().map(Arc::new).collect(),
                others,
            })),
            sent: Mutex::default(),
            target: OnceLock::new(),
            progress: Progress::default(),
            started: OnceLock::new(),
            cut: CancellationToken::new(),
            gate,
        }
    }

    fn images(&self) -> Vec<Arc<Image>> {
        let held = lock(&self.held);
        held.as_ref().map(|held| held.images.clone()).unwrap_or_default()
    }

    /// What is sent, in order.
    pub fn files(&self) -> Vec<FileSpec> {
        self.images().iter().map(|image| image.spec.clone()).collect()
    }

    /// What the images are now. Blocks for a moment.
    pub fn marks(&self) -> std::result::Result<Vec<Mark>, FileError> {
        self.images().iter().map(|image| image.mark()).collect()
    }

    /// Whether they are still what was sent. Blocks for a moment.
    pub fn as_sent(&self) -> std::result::Result<Since, FileError> {
        let (now, sent) = (self.marks()?, lock(&self.sent).clone());
        let changed = now.iter().enumerate().position(|(at, mark)| sent.get(at) != Some(mark));
        let changed = changed.or((now.len() != sent.len()).then_some(now.len()));
        let path = |at: usize| self.files().get(at).map(|file| file.path.clone()).unwrap_or_default();
        Ok(changed.map_or(Since::Same(now), |at| Since::Changed(path(at))))
    }

    /// Whether somebody whom no lock keeps away wrote to an image while it was sent, and what differs may be sent as well.
    fn may_send_again(&self, changes: u32) -> std::result::Result<Option<PathBuf>, FileError> {
        match self.as_sent()? {
            Since::Same(_) => Ok(None),
            // At the destination a device that is known by its ends is not written to any more.
            Since::Changed(_) if changes >= MOST_CHANGES || self.files().iter().any(|file| file.block_device) => {
                Ok(None)
            }
            Since::Changed(path) => Ok(Some(path)),
        }
    }

    /// Where to; the first word counts.
    pub fn aim(&self, carrier: Carrier, pace: Pace) {
        let _ = self.target.set((carrier, pace));
    }

    /// Lets go of the images.
    pub fn release(&self) {
        *lock(&self.held) = None;
    }

    /// Lets go of what stays where it is, and keeps what was copied: the destination may use the former.
    pub fn release_shared(&self) {
        if let Some(held) = lock(&self.held).as_mut() {
            held.others.clear();
        }
    }

    /// Whether nobody else can use what was copied.
    pub fn is_held(&self) -> bool {
        lock(&self.held).is_some()
    }

    pub fn wire_bytes(&self) -> u64 {
        self.progress.wire.load(Ordering::Relaxed)
    }

    fn reached(&self) -> Reached {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Reached {
            verified: read(&self.progress.verified),
            left: read(&self.progress.left),
        }
    }

    async fn copy(&self, images: &[Arc<Image>]) -> Result<()> {
        let Some((carrier, pace)) = self.target.get() else {
            return Err(error(
                ErrorClass::UserMustAct,
                FILES,
                "nobody has said where the guest goes",
            ));
        };
        let (mut pause, mut repeats, mut changes, mut patience) = (FIRST_PAUSE, 0, 0, Patience::default());
        self.progress.begin(images);
        loop {
            let began = Instant::now();
            *lock(&self.sent) = self.marks()?;
            let why = match carrier.deliver_files().await {
                Ok(stream) => match send(stream, images, pace, &self.progress).await {
                    Ok(()) => match self.may_send_again(changes)? {
                        None => return Ok(()),
                        Some(path) => {
                            changes += 1;
                            format!("{} was changed while it was sent", path.display())
                        }
                    },
                    Err(SendError::Refused { again: true, why, .. }) if repeats < MOST_REPEATS => {
                        repeats += 1;
                        why
                    }
                    Err(SendError::Refused { space, why, .. }) => {
                        return Err(error(
                            ErrorClass::UserMustAct,
                            if space { NO_SPACE } else { FILES },
                            &why,
                        ));
                    }
                    Err(read @ SendError::Read { .. }) => return Err(error(ErrorClass::UserMustAct, FILES, &read)),
                    Err(SendError::Cut(cut)) => cut.to_string(),
                },
                Err(TunnelError::Refused { refusal, .. }) if refusal.is_ticket() => {
                    return Err(error(ErrorClass::UserMustAct, FILES, &refusal));
                }
                Err(other) => other.to_string(),
            };
            let heard = self.progress.heard().map_or(began, |heard| heard.max(began));
            if patience.cut(self.reached(), heard.elapsed()) {
                pause = FIRST_PAUSE;
            }
            if patience.is_over() {
                return Err(error(ErrorClass::Unavailable, FILES, &why));
            }
            tracing::warn!("the copy of the guest's files was interrupted and goes on: {why}");
            tokio::time::sleep(pause).await;
            patience.waited(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn error(class: ErrorClass, code: &str, message: &(impl ToString + ?Sized)) -> HypervisorError {
    HypervisorError {
        class,
        code: code.to_owned(),
        message: message.to_string(),
    }
}

impl From<FileError> for HypervisorError {
    fn from(file: FileError) -> Self {
        error(ErrorClass::UserMustAct, FILES, &Failure::from(file))
    }
}

#[async_trait]
impl Outgoing for OfflineOutgoing {
    fn begun(&self) -> &Begun {
        &self.begun
    }

    async fn perform(&self, _: PerformRequest) -> Result<Cookie> {
        self.started.get_or_init(Instant::now);
        let images = self.images();
        let stopped = |stopped: Stopped| error(ErrorClass::Ambiguous, FILES, &std::io::Error::from(stopped));
        let copy = FileCall::Send.through(&self.gate, stopped, self.copy(&images));
        let copied = self.cut.run_until_cancelled(copy).await;
        copied.unwrap_or_else(|| Err(error(ErrorClass::Aborted, "ABORTED", "the copy was stopped")))?;
        Ok(Cookie::default())
    }

    async fn abort(&self) -> Result<()> {
        self.cut.cancel();
        Ok(())
    }

    async fn start_post_copy(&self) -> Result<()> {
        let why = "a guest that is shut off has no memory to follow it";
        Err(error(ErrorClass::UserMustAct, "OFFLINE", why))
    }

    async fn job(&self) -> Result<Option<JobStats>> {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let elapsed = self.started.get().map(Instant::elapsed).unwrap_or_default();
        let sent = self.wire_bytes();
        Ok(Some(JobStats {
            elapsed,
            bandwidth: (sent as f64 / elapsed.as_secs_f64().max(0.001)) as u64,
            disk_total: read(&self.progress.total),
            disk_processed: sent,
            disk_remaining: read(&self.progress.left),
            disks: self.progress.files(),
            ..JobStats::default()
        }))
    }

    async fn completed_job(&self) -> Result<Option<JobStats>> {
        self.job().await
    }

    async fn set_max_downtime(&self, _: Duration) -> Result<()> {
        Ok(())
    }

    async fn set_bandwidth(&self, _: u64) -> Result<()> {
        Ok(())
    }

    async fn confirm_moved(&self, _: &Cookie) -> Result<()> {
        self.release();
        Ok(())
    }

    async fn confirm_cancelled(&self) -> Result<()> {
        self.release();
        Ok(())
    }
}
