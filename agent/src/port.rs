//! The agent's one TLS port: by ALPN a connection is gRPC (`h2`) or a data channel (`drover-data/1`).
//!
//! Handshakes, their time limit and their number are `drover_proto::serve`'s; a connection without one of the two
//! protocols is closed here. Stopping the port ends the accepting, not what is connected: tonic ends its
//! connections itself, and a data channel ends with its migration.

use std::io;

use drover_proto::identity::Identity;
use drover_proto::serve::{Accepted, GrpcStream, accept};
use drover_proto::tls::{ALPN_DATA, ALPN_H2, Tls};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::tunnel::Destination;

const PROTOCOLS: &[&[u8]] = &[ALPN_H2, ALPN_DATA];

/// Accepted gRPC connections that tonic has not taken yet. It takes them at once; more of them are a flood.
const GRPC_BACKLOG: usize = 64;

/// An open port.
#[derive(Debug)]
pub struct Port {
    tasks: TaskTracker,
}

impl Port {
    /// Serves `listener` until `shutdown`. The stream is for tonic's `serve_with_incoming_shutdown`.
    pub fn open(
        listener: TcpListener,
        tls: Tls,
        destination: Destination,
        shutdown: CancellationToken,
    ) -> (Self, impl Stream<Item = io::Result<GrpcStream>> + use<>) {
        let (grpc, incoming) = mpsc::channel(GRPC_BACKLOG);
        let tasks = TaskTracker::new();
        let connections = accept(listener, tls, PROTOCOLS, shutdown);
        tasks.spawn(dispatch(connections, grpc, destination, tasks.clone()));
        (Self { tasks }, ReceiverStream::new(incoming).map(Ok))
    }

    /// Waits until nothing is accepted any more and the last data channel has ended. Call it after `shutdown`.
    pub async fn closed(self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn dispatch(
    connections: impl Stream<Item = Accepted>,
    grpc: mpsc::Sender<GrpcStream>,
    destination: Destination,
    tasks: TaskTracker,
) {
    tokio::pin!(connections);
    while let Some(accepted) = connections.next().await {
        match accepted.alpn.as_slice() {
            ALPN_H2 => {
                let address = accepted.address;
                // Another agent hands a guest over, by ticket: its certificate may expire meanwhile.
                let stream = match &accepted.peer {
                    Identity::Agent(_) => GrpcStream::beyond_expiry(accepted),
                    Identity::Controller | Identity::User(_) => GrpcStream::new(accepted),
                };
                if grpc.try_send(stream).is_err() {
                    tracing::warn!(%address, "too many gRPC connections wait: closed one");
                }
            }
            ALPN_DATA => {
                let destination = destination.clone();
                tasks.spawn(async move { destination.serve(accepted).await });
            }
            _ => tracing::debug!(address = %accepted.address, "closed a connection without one of our protocols"),
        }
    }
}

#[cfg(test)]
mod tests {
    use drover_proto::channel::{channel, channel_beyond_expiry};
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::pki_types::ServerName;
    use tonic::transport::Channel;
    use tonic_health::pb::health_client::HealthClient;

    use super::*;
    use crate::tunnel::tests::{agent, pki::Pki};

    async fn open(pki: &Pki, folder: &std::path::Path, shutdown: &CancellationToken) -> (String, Port) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let tls = pki.tls(folder, &agent("b"));
        let (port, incoming) = Port::open(listener, tls, Destination::new(), shutdown.clone());
        let (_, health) = tonic_health::server::health_reporter();
        let server = tonic::transport::Server::builder().add_service(health);
        tokio::spawn(server.serve_with_incoming_shutdown(incoming, shutdown.clone().cancelled_owned()));
        (address, port)
    }

    #[tokio::test]
    async fn grpc_is_served_until_shutdown_and_then_nobody_listens() {
        let (pki, folder, shutdown) = (Pki::new(), tempfile::tempdir().unwrap(), CancellationToken::new());
        let (address, port) = open(&pki, folder.path(), &shutdown).await;
        let tls = pki.tls(folder.path(), &agent("a"));
        let mut client = HealthClient::new(channel(&tls, &address, agent("b")).unwrap());
        client
            .check(tonic_health::pb::HealthCheckRequest::default())
            .await
            .unwrap();
        shutdown.cancel();
        port.closed().await;
        TcpStream::connect(&address).await.unwrap_err();
    }

    /// What the other side of a connection does once its certificate has expired.
    async fn asked_after_expiry(caller: &Identity, connect: impl Fn(&Tls, &str) -> Channel) -> (Tls, bool) {
        let (pki, folder, shutdown) = (Pki::new(), tempfile::tempdir().unwrap(), CancellationToken::new());
        let (address, _port) = open(&pki, folder.path(), &shutdown).await;
        // Long enough to connect on a busy machine.
        let tls = pki.tls_for(folder.path(), caller, time::Duration::seconds(8));
        let mut client = HealthClient::new(connect(&tls, &address));
        let ask = tonic_health::pb::HealthCheckRequest::default;
        client.check(ask()).await.unwrap();
        while !tls.has_expired() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        // Only the connection that is there can answer: no new one is made with this certificate.
        let answered = client.check(ask()).await.is_ok();
        (tls, answered)
    }

    #[tokio::test]
    async fn a_hand_over_under_way_outlives_the_certificates() {
        let connect = |tls: &Tls, address: &str| channel_beyond_expiry(tls, address, agent("b")).unwrap();
        let (_tls, answered) = asked_after_expiry(&agent("a"), connect).await;
        assert!(answered, "the connection between two agents was cut");
    }

    #[tokio::test]
    async fn an_expired_controller_commands_no_more() {
        let connect = |tls: &Tls, address: &str| channel(tls, address, agent("b")).unwrap();
        let (_tls, answered) = asked_after_expiry(&Identity::Controller, connect).await;
        assert!(!answered, "the connection went on");
    }

    #[tokio::test]
    async fn a_connection_without_one_of_the_protocols_is_closed() {
        let (pki, folder, shutdown) = (Pki::new(), tempfile::tempdir().unwrap(), CancellationToken::new());
        let (address, _port) = open(&pki, folder.path(), &shutdown).await;
        let config = pki.tls(folder.path(), &agent("a")).client_config(&[]);
        let name = ServerName::try_from("localhost").unwrap();
        let tcp = TcpStream::connect(&address).await.unwrap();
        let mut stream = TlsConnector::from(config).connect(name, tcp).await.unwrap();
        assert!(!matches!(stream.read(&mut [0; 1]).await, Ok(1..)));
        // One with a foreign protocol does not get through the handshake.
        let config = pki.tls(folder.path(), &agent("a")).client_config(&[b"http/1.1"]);
        let name = ServerName::try_from("localhost").unwrap();
        let tcp = TcpStream::connect(&address).await.unwrap();
        TlsConnector::from(config).connect(name, tcp).await.unwrap_err();
    }
}
