//! The source's end: a unix socket for QEMU, and one TLS connection to the other agent for each of its channels.
//!
//! QEMU and libvirt name no channel: the first connection is the main one, and it is delivered, up to the
//! destination's QEMU, before any other is begun (QEMU before 8.0 takes the first that it accepts as the main one).
//! The others are delivered side by side.
//!
//! A [`Source`] must live until the hand-over has ended: QEMU is done with a byte when this socket has it, which is
//! before the destination has it.

use std::path::PathBuf;
use std::sync::Arc;

use drover_proto::identity::Identity;
use drover_proto::ids::{Attempt, MigrationId, Ticket};
use drover_proto::tls::Tls;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::carrier::Carrier;
use super::error::TunnelError;
use super::hello::Channel;
use super::relay::{Broken, relay};
use super::{Bytes, Counters, Pace, session, socket};

/// Disks that one migration copies through one socket.
const MOST_DISKS: u16 = 256;

/// Which channels come through one socket, and in which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelPlan {
    /// Memory: the main channel, then `multifd` ones, then the one for post-copy.
    Memory { multifd: u16, postcopy_preempt: bool },
    /// Disks: NBD channels only.
    Disks,
}

impl ChannelPlan {
    /// What the connection is that is accepted as the `n`th, counted from 0; `None` is one too many.
    pub fn channel(self, n: usize) -> Option<Channel> {
        let n = u16::try_from(n).ok()?;
        match self {
            Self::Memory { .. } if n == 0 => Some(Channel::Main),
            Self::Memory { multifd, .. } if n <= multifd => Some(Channel::Multifd(n - 1)),
            Self::Memory {
                multifd,
                postcopy_preempt: true,
            } if n - 1 == multifd => Some(Channel::PostcopyPreempt),
            Self::Memory { .. } => None,
            Self::Disks => (n < MOST_DISKS).then_some(Channel::Nbd(n)),
        }
    }

    fn count(self) -> usize {
        match self {
            Self::Memory {
                multifd,
                postcopy_preempt,
            } => 1 + usize::from(multifd) + usize::from(postcopy_preempt),
            Self::Disks => usize::from(MOST_DISKS),
        }
    }
}

/// What every hello of a migration says.
#[derive(Clone, Debug)]
pub struct HelloTemplate {
    pub migration: MigrationId,
    pub attempt: Attempt,
    pub ticket: Ticket,
}

/// All that a source needs to know.
#[derive(Clone, Debug)]
pub struct SourceOptions {
    /// Where QEMU will connect; at most 107 bytes.
    pub socket: PathBuf,
    /// Group id that owns the socket (mode 0660): QEMU's. `None` leaves the agent's own.
    pub socket_group: Option<u32>,
    pub channels: ChannelPlan,
    /// `host:port` of the destination's agent, best first.
    pub addresses: Vec<String>,
    /// Who has to answer there.
    pub expected: Identity,
    pub tls: Tls,
    pub hello: HelloTemplate,
    /// The limit of what is sent, over all channels together.
    pub pace: Pace,
}

/// An open socket for one migration. Dropping it removes the socket and cuts what is connected.
#[derive(Debug)]
pub struct Source {
    shared: Arc<Shared>,
    channels: TaskTracker,
    _file: socket::SocketFile,
}

#[derive(Debug)]
struct Shared {
    options: SourceOptions,
    carrier: Carrier,
    counters: Counters,
    error: watch::Sender<Option<TunnelError>>,
    cut: CancellationToken,
}

impl Source {
    /// Listens from now on.
    pub fn open(options: SourceOptions) -> Result<Self, TunnelError> {
        let (listener, file) = socket::listen(&options.socket, options.socket_group)?;
        let shared = Arc::new(Shared {
            carrier: Carrier::new(&options),
            options,
            counters: Counters::default(),
            error: watch::Sender::new(None),
            cut: CancellationToken::new(),
        });
        let channels = TaskTracker::new();
        channels.spawn(Arc::clone(&shared).accept(listener, channels.clone()));
        Ok(Self {
            shared,
            channels,
            _file: file,
        })
    }

    pub fn bytes(&self) -> Bytes {
        self.shared.counters.read()
    }

    /// What went wrong last; the hypervisor's own error says only that the stream broke.
    pub fn errors(&self) -> watch::Receiver<Option<TunnelError>> {
        self.shared.error.subscribe()
    }

    /// Removes the socket, cuts what is still connected, and waits until it is gone.
    pub async fn close(self) {
        self.shared.cut.cancel();
        self.channels.close();
        self.channels.wait().await;
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.shared.cut.cancel();
    }
}

impl Shared {
    async fn accept(self: Arc<Self>, listener: UnixListener, channels: TaskTracker) {
        let accept_all = async {
            for n in 0.. {
                let unix = match listener.accept().await {
                    Ok((unix, _)) => unix,
                    Err(error) => return self.report(self.listen_error(&error)),
                };
                let Some(channel) = self.options.channels.channel(n) else {
                    let expected = self.options.channels.count();
                    self.report(TunnelError::TooManyChannels { expected });
                    continue;
                };
                if channel == Channel::Main {
                    // Nothing else is accepted until the main channel is there; without it nothing else is of use.
                    match self.until_cut(self.carrier.deliver(channel)).await {
                        Some(Ok(tls)) => drop(channels.spawn(Arc::clone(&self).carry(channel, unix, tls))),
                        Some(Err(error)) => return self.report(error),
                        None => return,
                    }
                } else {
                    channels.spawn(Arc::clone(&self).deliver_and_carry(channel, unix));
                }
            }
        };
        self.until_cut(accept_all).await;
    }

    async fn deliver_and_carry(self: Arc<Self>, channel: Channel, unix: UnixStream) {
        match self.until_cut(self.carrier.deliver(channel)).await {
            Some(Ok(tls)) => self.carry(channel, unix, tls).await,
            Some(Err(error)) => self.report(error),
            None => {}
        }
    }

    async fn carry(self: Arc<Self>, channel: Channel, mut unix: UnixStream, tls: TlsStream<TcpStream>) {
        let (tcp, connection) = tls.into_inner();
        let relayed = relay(
            &mut unix,
            session::split(tcp, connection),
            &self.counters,
            &self.options.pace,
            || {},
        );
        match self.until_cut(relayed).await {
            None | Some(Ok(())) => {}
            Some(Err(Broken::Unix(error))) => self.report(TunnelError::Qemu {
                channel,
                message: error.to_string(),
            }),
            Some(Err(Broken::Network(error))) => self.report(TunnelError::Cut {
                channel,
                message: error.to_string(),
            }),
        }
    }

    async fn until_cut<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.cut.run_until_cancelled(work).await
    }

    fn listen_error(&self, error: &std::io::Error) -> TunnelError {
        TunnelError::Listen {
            path: self.options.socket.clone(),
            message: error.to_string(),
        }
    }

    /// The last error stays readable; the first is the cause of those that follow it, so it is not replaced by a cut.
    fn report(&self, error: TunnelError) {
        tracing::warn!(migration_id = %self.options.hello.migration, %error, "a data channel ended early");
        self.error.send_if_modified(|current| {
            let is_news = current.is_none() || !matches!(error, TunnelError::Cut { .. } | TunnelError::Qemu { .. });
            if is_news {
                *current = Some(error);
            }
            is_news
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_named_by_their_order() {
        let plan = ChannelPlan::Memory {
            multifd: 2,
            postcopy_preempt: true,
        };
        let named: Vec<_> = (0..5).map(|n| plan.channel(n)).collect();
        let expected = [
            Some(Channel::Main),
            Some(Channel::Multifd(0)),
            Some(Channel::Multifd(1)),
            Some(Channel::PostcopyPreempt),
        ];
        assert_eq!(named[..4], expected);
        assert_eq!(named[4], None);
        assert_eq!(
            ChannelPlan::Memory {
                multifd: 0,
                postcopy_preempt: false
            }
            .channel(1),
            None
        );
        assert_eq!(ChannelPlan::Disks.channel(7), Some(Channel::Nbd(7)));
        assert_eq!(ChannelPlan::Disks.channel(256), None);
    }
}
