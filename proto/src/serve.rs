//! The accept loop of every Drover server: handshakes off the loop, bounded in number and time; each connection comes
//! out with the identity of its peer.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::expiry::Expiring;
use crate::failure::{Failure, Reason};
use crate::identity::Identity;
use crate::tls::{HANDSHAKE_TIMEOUT, Tls, TlsError, peer_identity};

/// What strangers may hold of a server.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// So many handshakes at once; further connections wait in the kernel's queue.
    handshakes: usize,
    /// How long one may take.
    handshake_time: Duration,
}

const LIMITS: Limits = Limits {
    handshakes: 128,
    handshake_time: HANDSHAKE_TIMEOUT,
};

/// Pause after a failed `accept` (no file descriptors left), so that the loop does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A connection whose peer has shown who it is.
pub struct Accepted {
    pub stream: TlsStream<TcpStream>,
    pub peer: Identity,
    /// What the peer wants to speak; empty where it did not say.
    pub alpn: Vec<u8>,
    pub address: SocketAddr,
    /// End of the life of the peer's certificate.
    pub expires: SystemTime,
}

/// The connections that come in on `listener`, until `shutdown`. Handshakes that fail are logged and left out.
pub fn accept(
    listener: TcpListener,
    tls: Tls,
    alpn: &'static [&'static [u8]],
    shutdown: CancellationToken,
) -> impl Stream<Item = Accepted> + Send + Unpin + 'static {
    accept_within(LIMITS, listener, tls, alpn, shutdown)
}

fn accept_within(
    limits: Limits,
    listener: TcpListener,
    tls: Tls,
    alpn: &'static [&'static [u8]],
    shutdown: CancellationToken,
) -> impl Stream<Item = Accepted> + Send + Unpin + 'static {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        let work = accept_all(limits, &listener, &tls, alpn, &sender);
        // The listener and the sender go with this task: the stream ends.
        let _ = shutdown.run_until_cancelled(work).await;
    });
    ReceiverStream::new(receiver)
}

async fn accept_all(
    limits: Limits,
    listener: &TcpListener,
    tls: &Tls,
    alpn: &'static [&'static [u8]],
    sender: &mpsc::Sender<Accepted>,
) {
    let slots = Arc::new(Semaphore::new(limits.handshakes));
    while !sender.is_closed() {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((tcp, address)) => {
                let (tls, sender) = (tls.clone(), sender.clone());
                tokio::spawn(async move {
                    let shaken = timeout(limits.handshake_time, identify(tcp, address, &tls, alpn)).await;
                    drop(slot);
                    hand_on(shaken, address, &sender).await;
                });
            }
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn hand_on(
    shaken: Result<Result<Accepted, TlsError>, Elapsed>,
    address: SocketAddr,
    sender: &mpsc::Sender<Accepted>,
) {
    match shaken {
        // A closed stream means that the server goes down: the connection is dropped.
        Ok(Ok(accepted)) => drop(sender.send(accepted).await),
        Ok(Err(error)) => tracing::warn!(%address, "refused a connection: {error}"),
        Err(Elapsed { .. }) => tracing::warn!(%address, "refused a connection: its handshake took too long"),
    }
}

async fn identify(
    tcp: TcpStream,
    address: SocketAddr,
    tls: &Tls,
    alpn: &'static [&'static [u8]],
) -> Result<Accepted, TlsError> {
    let failed = |source| TlsError::Handshake {
        address: address.to_string(),
        source,
    };
    tcp.set_nodelay(true).map_err(failed)?;
    let stream = TlsAcceptor::from(tls.server_config(alpn))
        .accept(tcp)
        .await
        .map_err(failed)?;
    let session = stream.get_ref().1;
    let (peer, expires) = peer_identity(session, tls.identities(), &address.to_string())?;
    let alpn = session.alpn_protocol().map(<[u8]>::to_vec).unwrap_or_default();
    Ok(Accepted {
        stream,
        peer,
        alpn,
        address,
        expires,
    })
}

/// An accepted connection for tonic's `serve_with_incoming`.
pub struct GrpcStream {
    stream: Expiring<TlsStream<TcpStream>>,
    peer: Peer,
}

impl GrpcStream {
    /// It ends with its peer's certificate, also in the middle of a call.
    pub fn new(accepted: Accepted) -> Self {
        let stream = Expiring::at(accepted.stream, accepted.expires);
        Self::of(stream, accepted.peer, accepted.address)
    }

    /// It outlives its peer's certificate: for agents that hand a guest over, which nothing may cut.
    pub fn beyond_expiry(accepted: Accepted) -> Self {
        Self::of(Expiring::never(accepted.stream), accepted.peer, accepted.address)
    }

    fn of(stream: Expiring<TlsStream<TcpStream>>, identity: Identity, address: SocketAddr) -> Self {
        let peer = Peer { identity, address };
        Self { stream, peer }
    }
}

/// Who is at the other end; in the extensions of every request.
#[derive(Clone, Debug)]
pub struct Peer {
    pub identity: Identity,
    pub address: SocketAddr,
}

/// Who sent this request.
pub fn peer<T>(request: &tonic::Request<T>) -> Result<Peer, tonic::Status> {
    let missing = || Failure::new(Reason::Unauthenticated, "the connection shows no identity").into();
    request.extensions().get::<Peer>().cloned().ok_or_else(missing)
}

impl Connected for GrpcStream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for GrpcStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for GrpcStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "serve_tests.rs"]
mod tests;
