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
use crate::hypervisor::{Happened, HypervisorError, JobStats, Result};

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
}

/// One connection and what went over it.
struct Channel {
    stream: UnixStream,
    pages: u64,
}

impl Sender {
    /// Sends all of it; when this returns `Ok` the host has noted that all is sent. `switched` is told where the guest
    /// goes over before.
    pub(super) async fn run(&self, switched: oneshot::Sender<()>) -> Result<()> {
        self.copy_disks().await?;
        let mut channels = self.connect().await.map_err(|error| broken(&error))?;
        let mut remaining = self.spec.memory;
        let mut iteration = 0;
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
        self.send_tails(channels, stopped).await
    }

    fn begin_round(&self, number: u64, remaining: u64) -> Result<()> {
        self.host.lock().tell(self.guest(), Happened::Iteration(number));
        self.update(|stats| (stats.iteration, stats.memory_remaining) = (number, remaining))
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
    async fn go_post_copy(&self, mut channels: Vec<Channel>, owed: u64, switched: oneshot::Sender<()>) -> Result<()> {
        self.host.lock().switch_to_post_copy(self.guest(), self.connection)?;
        let stopped = Some(SystemTime::now());
        stream::write(&mut channels[0].stream, &Frame::Switch)
            .await
            .map_err(|error| broken(&error))?;
        // Nobody may be waiting any more.
        let _ = switched.send(());
        self.send_pages(&mut channels, owed, false).await?;
        self.send_tails(channels, stopped).await
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

    /// The main channel's tail makes the stream whole; nothing is awaited between it and the note that all is sent.
    async fn send_tails(&self, channels: Vec<Channel>, stopped: Option<SystemTime>) -> Result<()> {
        for mut channel in channels.into_iter().rev() {
            let tail = Frame::Tail(Tail {
                pages: channel.pages,
                stopped,
            });
            stream::write(&mut channel.stream, &tail)
                .await
                .map_err(|error| broken(&error))?;
            // What was written is in the socket; closing it does not take it back.
            drop(channel);
        }
        self.host.lock().sent(self.guest(), self.connection)
    }

    /// What the guest wrote in this time.
    fn dirtied(&self, took: Duration) -> u64 {
        let runs = self
            .host
            .lock()
            .domains
            .get(&self.guest())
            .is_some_and(|copy| copy.state.runs());
        let dirtied = if runs {
            self.spec.dirty_rate as f64 * took.as_secs_f64()
        } else {
            0.0
        };
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
