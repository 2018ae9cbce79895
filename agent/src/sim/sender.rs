//! A simulated source QEMU: pre-copy in rounds over unix sockets, at the speed of the sockets or of the limit.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use drover_proto::ids::GuestId;
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::disks::{self, Image};
use super::domain::{Limits, Spec};
use super::error;
use super::fault::Call;
use super::host::SimHost;
use super::stream::{self, Frame, Head, LARGEST, Tail};
use crate::hypervisor::{Happened, HypervisorError, JobStats, Result, Throttle};

/// What it sends, and where to.
pub(super) struct Sender {
    pub(super) host: SimHost,
    pub(super) spec: Spec,
    /// Of libvirt: whose job it is.
    pub(super) connection: u64,
    pub(super) socket: PathBuf,
    /// Copied before memory is sent, over another socket.
    pub(super) images: Vec<Image>,
    pub(super) disks_socket: PathBuf,
    /// Channels beside the main one.
    pub(super) beside: u32,
    /// Bytes that a stream that broke in post-copy still owes; none at first.
    pub(super) owed: Option<u64>,
    /// How the guest is slowed down, where it may be.
    pub(super) throttle: Option<Throttle>,
}

/// As QEMU: a step whenever two rounds have left more than half of what they sent.
const ROUNDS_OF_A_STEP: u32 = 2;

/// One connection and what went over it.
struct Channel {
    stream: UnixStream,
    pages: u64,
}

impl Sender {
    /// Sends all of it; when this returns `Ok` the host has noted that all is sent. `switched` is told where the guest
    /// goes over before.
    pub(super) async fn run(&self, switched: oneshot::Sender<()>) -> Result<()> {
        if let Some(owed) = self.owed {
            return self.repair(owed, switched).await;
        }
        self.copy_disks().await?;
        let mut channels = self.connect().await.map_err(|error| broken(&error))?;
        let mut remaining = self.spec.memory;
        let (mut iteration, mut stalled) = (0, 0);
        let last = loop {
            iteration += 1;
            self.begin_round(iteration, remaining)?;
            let began = Instant::now();
            let left = self.send_pages(&mut channels, remaining, true).await?;
            self.host.call(Call::Sending, async { Ok(()) }).await?;
            if self.wants_to_switch()? {
                let owed = (left + self.dirtied(began.elapsed())).min(self.spec.memory);
                return self.go_post_copy(channels, owed, switched).await;
            }
            let took = began.elapsed().max(Duration::from_micros(1));
            let dirtied = self.dirtied(took);
            let bandwidth = (remaining as f64 / took.as_secs_f64()) as u64;
            let dirty_rate = (dirtied as f64 / took.as_secs_f64()) as u64;
            self.update(|stats| (stats.bandwidth, stats.dirty_rate) = (bandwidth, dirty_rate))?;
            stalled += u32::from(dirtied > remaining / 2);
            if stalled == ROUNDS_OF_A_STEP {
                stalled = 0;
                self.slow_down()?;
            }
            remaining = dirtied;
            let blackout = Duration::from_secs_f64(dirtied as f64 / bandwidth.max(1) as f64);
            if blackout <= self.limits()?.max_downtime {
                break iteration;
            }
        };
        // As QEMU counts: what was dirtied is looked for once more, the CPUs stop, and the last round begins.
        self.begin_round(last + 1, remaining)?;
        let stopped = self
            .host
            .lock()
            .stop_for_last_round(self.guest(), self.connection)?
            .then(SystemTime::now);
        self.begin_round(last + 2, remaining)?;
        self.host.call(Call::LastRound, async { Ok(()) }).await?;
        self.send_pages(&mut channels, remaining, false).await?;
        self.send_tails(&mut channels, stopped).await?;
        self.host.lock().sent(self.guest(), self.connection)
    }

    fn begin_round(&self, number: u64, remaining: u64) -> Result<()> {
        self.host.lock().tell(self.guest(), Happened::Iteration(number));
        self.update(|stats| (stats.iteration, stats.memory_remaining) = (number, remaining))
    }

    fn slow_down(&self) -> Result<()> {
        let Some(Throttle { initial, increment }) = self.throttle else {
            return Ok(());
        };
        self.update(|stats| {
            let next = if stats.throttle == 0 {
                initial
            } else {
                stats.throttle + increment
            };
            stats.throttle = next.min(99);
        })
    }

    async fn copy_disks(&self) -> Result<()> {
        for image in &self.images {
            let copied = disks::send(&self.disks_socket, image, |sent, total| {
                // A job that is gone is noticed below.
                let _ = self.update(|stats| {
                    stats.disk_total += sent;
                    stats.disk_processed += sent;
                    disks::count(&mut stats.disks, &image.0, sent, total);
                });
            });
            copied.await.map_err(|error| broken(&error))?;
            self.host.call(Call::Copying, async { Ok(()) }).await?;
        }
        Ok(())
    }

    /// The guest stops here, may run there, and the rest follows.
    async fn go_post_copy(&self, channels: Vec<Channel>, owed: u64, switched: oneshot::Sender<()>) -> Result<()> {
        self.host.lock().switch_to_post_copy(self.guest(), self.connection)?;
        self.follow(channels, owed, switched).await
    }

    /// The stream broke: what is owed goes over another one.
    async fn repair(&self, owed: u64, switched: oneshot::Sender<()>) -> Result<()> {
        let channels = self.connect().await.map_err(|error| broken(&error))?;
        self.host.lock().sends_again(self.guest(), self.connection)?;
        self.follow(channels, owed, switched).await
    }

    /// In post-copy: all that is owed, until the destination says that it is whole.
    async fn follow(&self, mut channels: Vec<Channel>, owed: u64, switched: oneshot::Sender<()>) -> Result<()> {
        let stopped = Some(SystemTime::now());
        stream::write(&mut channels[0].stream, &Frame::Switch)
            .await
            .map_err(|error| broken(&error))?;
        // Nobody may be waiting any more.
        let _ = switched.send(());
        self.send_pages(&mut channels, owed, false).await?;
        self.send_tails(&mut channels, stopped).await?;
        let mut scratch = Vec::new();
        match stream::read(&mut channels[0].stream, &mut scratch).await {
            Ok(Frame::Whole) => self.host.lock().sent(self.guest(), self.connection),
            Ok(Frame::Head(_) | Frame::Pages(_) | Frame::Switch | Frame::Tail(_)) => {
                Err(error::failed("the destination did not say that it is whole"))
            }
            Err(error) => Err(broken(&error)),
        }
    }

    fn wants_to_switch(&self) -> Result<bool> {
        let mut wanted = false;
        self.host
            .lock()
            .update_job(self.guest(), self.connection, |job| wanted = job.switch)?;
        Ok(wanted)
    }

    fn guest(&self) -> GuestId {
        self.spec.id
    }

    /// The main channel first: it is connected before any other is begun.
    async fn connect(&self) -> std::io::Result<Vec<Channel>> {
        let mut channels = Vec::new();
        for _ in 0..=self.beside {
            channels.push(Channel {
                stream: UnixStream::connect(&self.socket).await?,
                pages: 0,
            });
        }
        let head = Frame::Head(Head {
            guest: self.guest(),
            beside: self.beside,
        });
        stream::write(&mut channels[0].stream, &head).await?;
        Ok(channels)
    }

    /// Gives how much was not sent, where it ends because post-copy is wanted.
    async fn send_pages(&self, channels: &mut [Channel], bytes: u64, may_switch: bool) -> Result<u64> {
        // Where there are channels beside it, the main one carries no pages.
        let first = usize::from(channels.len() > 1);
        let (began, mut sent) = (Instant::now(), 0);
        for turn in 0.. {
            if sent == bytes || (may_switch && self.wants_to_switch()?) {
                break;
            }
            let piece = (bytes - sent).min(LARGEST as u64);
            let at = first + turn % (channels.len() - first);
            let channel = &mut channels[at];
            stream::write(&mut channel.stream, &Frame::Pages(piece as usize))
                .await
                .map_err(|error| broken(&error))?;
            channel.pages += piece;
            sent += piece;
            self.update(|stats| {
                stats.memory_processed += piece;
                stats.memory_remaining = bytes - sent;
            })?;
            self.keep_to_limit(began, sent).await?;
        }
        Ok(bytes - sent)
    }

    async fn keep_to_limit(&self, began: Instant, sent: u64) -> Result<()> {
        let Limits { bandwidth, .. } = self.limits()?;
        if bandwidth > 0 {
            let due = Duration::from_secs_f64(sent as f64 / bandwidth as f64);
            sleep(due.saturating_sub(began.elapsed())).await;
        }
        Ok(())
    }

    /// The main channel's tail makes the stream whole: nothing may be awaited after it before that is noted.
    async fn send_tails(&self, channels: &mut [Channel], stopped: Option<SystemTime>) -> Result<()> {
        for channel in channels.iter_mut().rev() {
            let tail = Frame::Tail(Tail {
                pages: channel.pages,
                stopped,
            });
            stream::write(&mut channel.stream, &tail)
                .await
                .map_err(|error| broken(&error))?;
        }
        Ok(())
    }

    /// What the guest wrote in this time.
    fn dirtied(&self, took: Duration) -> u64 {
        let state = self.host.lock();
        let Some(copy) = state.domains.get(&self.guest()).filter(|copy| copy.state.runs()) else {
            return 0;
        };
        let throttle = copy.job.as_ref().map_or(0, |job| job.stats.throttle);
        let awake = f64::from(100 - throttle.min(100)) / 100.0;
        let dirtied = self.spec.dirty_rate as f64 * took.as_secs_f64() * awake;
        (dirtied as u64).min(self.spec.memory)
    }

    fn limits(&self) -> Result<Limits> {
        let mut limits = Limits::default();
        self.host
            .lock()
            .update_job(self.guest(), self.connection, |job| limits = job.limits)?;
        Ok(limits)
    }

    fn update(&self, update: impl FnOnce(&mut JobStats)) -> Result<()> {
        self.host
            .lock()
            .update_job(self.guest(), self.connection, |job| update(&mut job.stats))
    }
}

fn broken(error: &std::io::Error) -> HypervisorError {
    error::failed(format!(
        "operation failed: migration out job: unable to write to socket: {error}"
    ))
}
