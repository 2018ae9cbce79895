//! A gRPC channel to one peer: our own connector does TLS with the newest certificates at every connect.

use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::{BoxError, service_fn};

use crate::expiry::Expiring;
use crate::identity::Identity;
use crate::tls::{ALPN_H2, CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT, Tls, TlsError};

/// A silent connection is asked for a sign of life after this time.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// Without a sign of life for this long after asking, the connection is lost.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A channel to `host:port`, connected at its first use and again after a loss. Only `expected` may answer. A
/// connection ends with the peer's certificate, also in the middle of a call.
pub fn channel(tls: &Tls, address: &str, expected: Identity) -> Result<Channel, TlsError> {
    open(tls, address, expected, Expiring::at)
}

/// The same, but what is connected outlives the peer's certificate: for the hand-over of a guest, which nothing may
/// cut.
pub fn channel_beyond_expiry(tls: &Tls, address: &str, expected: Identity) -> Result<Channel, TlsError> {
    open(tls, address, expected, |stream, _| Expiring::never(stream))
}

type Stream = TlsStream<TcpStream>;

fn open(
    tls: &Tls,
    address: &str,
    expected: Identity,
    limit: fn(Stream, SystemTime) -> Expiring<Stream>,
) -> Result<Channel, TlsError> {
    let wrong = || TlsError::Address {
        address: address.to_owned(),
    };
    let (host, _) = address.rsplit_once(':').ok_or_else(wrong)?;
    // The scheme is http because TLS is the connector's part, not tonic's.
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| wrong())?;
    if host.is_empty() || endpoint.uri().port().is_none() {
        return Err(wrong());
    }
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT + HANDSHAKE_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    let (tls, address) = (tls.clone(), address.to_owned());
    let connector = service_fn(move |_: Uri| {
        let (tls, address, expected) = (tls.clone(), address.clone(), expected.clone());
        // A task of its own: whoever asked first may leave in the middle, and then nobody would drive the handshake. The
        // peer would give it up, and the next to ask, however late, would be told so instead of being connected.
        let connecting = tokio::spawn(async move { tls.connect_until(&address, ALPN_H2, &expected).await });
        async move {
            let (stream, expires) = connecting.await.map_err(std::io::Error::other)??;
            Ok::<_, BoxError>(TokioIo::new(limit(stream, expires)))
        }
    });
    Ok(endpoint.connect_with_connector_lazy(connector))
}

#[cfg(test)]
#[path = "channel_tests.rs"]
mod tests;
