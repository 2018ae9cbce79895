//! The way of one channel to the destination's agent: a connection, the hello, and its answer.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use drover_proto::identity::Identity;
use drover_proto::tls::{ALPN_DATA, Tls};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use super::error::TunnelError;
use super::hello::{Channel, Hello, Reply};
use super::socket;
use super::source::{HelloTemplate, SourceOptions};

/// The destination connects to its QEMU before it answers, and has five seconds for that.
const REPLY_LIMIT: Duration = Duration::from_secs(10);

/// Where channels go, and by what right.
#[derive(Debug)]
pub struct Carrier {
    addresses: Vec<String>,
    expected: Identity,
    tls: Tls,
    hello: HelloTemplate,
    /// Index of the address that worked last: the channels should take one way.
    address: AtomicUsize,
}

impl Carrier {
    pub fn new(options: &SourceOptions) -> Self {
        Self {
            addresses: options.addresses.clone(),
            expected: options.expected.clone(),
            tls: options.tls.clone(),
            hello: options.hello.clone(),
            address: AtomicUsize::new(0),
        }
    }

    /// A connection for the files of a guest that is shut off.
    pub async fn deliver_files(&self) -> Result<TlsStream<TcpStream>, TunnelError> {
        self.deliver(Channel::Files).await
    }

    /// Brings a channel to the destination's QEMU.
    pub(super) async fn deliver(&self, channel: Channel) -> Result<TlsStream<TcpStream>, TunnelError> {
        let mut tls = self.connect(channel).await?;
        let HelloTemplate {
            migration,
            attempt,
            ticket,
        } = self.hello.clone();
        let hello = Hello {
            migration,
            attempt,
            ticket,
            channel,
        }
        .encode();
        let exchange = async {
            tls.write_all(&hello).await?;
            tls.flush().await?;
            Reply::read(&mut tls).await
        };
        let failed = |message| TunnelError::Handshake { channel, message };
        match timeout(REPLY_LIMIT, exchange).await {
            Ok(Ok(Reply::Accepted)) => Ok(tls),
            Ok(Ok(Reply::Refused { refusal, detail })) => Err(TunnelError::Refused {
                channel,
                refusal,
                detail,
            }),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed("it took too long".to_owned())),
        }
    }

    /// Tries the addresses in turn, the one that worked last first.
    async fn connect(&self, channel: Channel) -> Result<TlsStream<TcpStream>, TunnelError> {
        let Self {
            addresses,
            tls,
            expected,
            ..
        } = self;
        let first = self.address.load(Ordering::Relaxed);
        let mut problems = Vec::new();
        for offset in 0..addresses.len() {
            let index = (first + offset) % addresses.len();
            match tls.connect(&addresses[index], ALPN_DATA, expected).await {
                Ok(stream) => {
                    self.address.store(index, Ordering::Relaxed);
                    if let Err(error) = socket::tune(stream.get_ref().0) {
                        tracing::debug!(%error, "a data connection cannot be tuned");
                    }
                    return Ok(stream);
                }
                Err(error) => problems.push(format!("{}: {error}", addresses[index])),
            }
        }
        let message = if problems.is_empty() {
            "it has no address".to_owned()
        } else {
            problems.join("; ")
        };
        Err(TunnelError::Connect { channel, message })
    }
}
