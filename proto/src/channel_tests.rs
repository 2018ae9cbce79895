//! A real server with all layers, and clients that may and may not.

use std::io;

use tempfile::TempDir;
use tokio::net::{TcpListener, TcpSocket};
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::*;
use crate::authorization::Authorize;
use crate::deadline::DeadlineLayer;
use crate::failure::{Failure, Reason, sources};
use crate::roles::{Role, Roles};
use crate::serve::{GrpcStream, accept};
use crate::test_pki::TestCa;
use crate::trace::TraceLayer;
use crate::v1::ListHostsRequest;
use crate::v1::host_service_client::HostServiceClient;

fn process(folder: &TempDir, ca: &TestCa, identity: &str) -> Tls {
    let certificate = ca.issue(&[&format!("spiffe://drover.local/{identity}")]);
    let files = ca.write(&folder.path().join(identity), &certificate);
    Tls::load(files, "drover.local".parse().unwrap()).unwrap()
}

/// Serves health only, as the controller, until `shutdown`; gives its address.
async fn serve(tls: Tls, shutdown: CancellationToken) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let incoming = accept(listener, tls, &[ALPN_H2], shutdown.clone());
    let incoming = incoming.map(|accepted| Ok::<_, io::Error>(GrpcStream::new(accepted)));
    let (_, health) = tonic_health::server::health_reporter();
    let server = Server::builder()
        .layer(TraceLayer)
        .layer(Authorize::new(Roles::default().with("vera", Role::Viewer)))
        .layer(DeadlineLayer)
        .add_service(health)
        .serve_with_incoming_shutdown(incoming, shutdown.cancelled_owned());
    tokio::spawn(server);
    address
}

#[tokio::test]
async fn calls_reach_a_server_that_knows_who_calls() {
    let (folder, ca, shutdown) = (TempDir::new().unwrap(), TestCa::new(), CancellationToken::new());
    let address = serve(process(&folder, &ca, "controller"), shutdown.clone()).await;

    let agent = channel(&process(&folder, &ca, "agent/host-1"), &address, Identity::Controller).unwrap();
    let answer = HealthClient::new(agent.clone())
        .check(HealthCheckRequest::default())
        .await;
    assert_eq!(answer.unwrap().into_inner().status, 1);

    // An agent may not read the inventory, a viewer may; that nobody serves it here is another matter.
    let list = |channel| async move {
        let status = HostServiceClient::new(channel)
            .list_hosts(ListHostsRequest::default())
            .await
            .unwrap_err();
        Failure::from_status(&status)
    };
    let refusal = list(agent).await;
    assert_eq!(
        (refusal.reason, refusal.is_evidence()),
        (Reason::PermissionDenied, true)
    );
    let viewer = channel(&process(&folder, &ca, "user/vera"), &address, Identity::Controller).unwrap();
    let missing = list(viewer).await;
    assert_eq!((missing.reason, missing.is_evidence()), (Reason::Unimplemented, false));
    shutdown.cancel();
}

#[tokio::test]
async fn the_wrong_server_is_no_evidence_and_says_why() {
    let (folder, ca, shutdown) = (TempDir::new().unwrap(), TestCa::new(), CancellationToken::new());
    let address = serve(process(&folder, &ca, "agent/host-1"), shutdown.clone()).await;
    let wrong = channel(&process(&folder, &ca, "user/vera"), &address, Identity::Controller).unwrap();
    let status = HealthClient::new(wrong)
        .check(HealthCheckRequest::default())
        .await
        .unwrap_err();
    let failure = Failure::from_status(&status);
    assert_eq!(
        (failure.reason, failure.is_evidence()),
        (Reason::HostUnreachable, false)
    );
    assert!(
        failure.message.contains("is agent/host-1, expected controller"),
        "{failure}"
    );
    let cause = sources(&status).find_map(|error| error.downcast_ref::<TlsError>());
    assert!(matches!(cause, Some(TlsError::WrongPeer { .. })));
    shutdown.cancel();
}

#[tokio::test]
async fn nobody_there_is_no_evidence() {
    let (folder, ca) = (TempDir::new().unwrap(), TestCa::new());
    // Bound, so that nobody else gets the port, and not listened at.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let nobody = channel(&process(&folder, &ca, "user/vera"), &address, Identity::Controller).unwrap();
    let status = HealthClient::new(nobody)
        .check(HealthCheckRequest::default())
        .await
        .unwrap_err();
    let failure = Failure::from_status(&status);
    assert_eq!(
        (failure.reason, failure.is_evidence()),
        (Reason::HostUnreachable, false)
    );
    assert!(failure.message.contains("cannot connect to"), "{failure}");
}

/// A call is left between the dialling and the handshake: the handshake goes on, for whoever calls next.
#[tokio::test]
async fn a_call_that_is_left_leaves_no_handshake_half_way() {
    use tokio::io::AsyncReadExt;
    let (folder, ca) = (TempDir::new().unwrap(), TestCa::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let channel = channel(&process(&folder, &ca, "user/vera"), &address, Identity::Controller).unwrap();
    let mut client = HealthClient::new(channel);
    let call = client.check(HealthCheckRequest::default());
    let mut dialled = tokio::select! {
        _ = call => panic!("nobody answers"),
        accepted = listener.accept() => accepted.unwrap().0,
    };
    let mut hello = [0; 5];
    let said = tokio::time::timeout(std::time::Duration::from_secs(30), dialled.read_exact(&mut hello));
    assert!(said.await.is_ok_and(|read| read.is_ok()), "no ClientHello came");
}

#[tokio::test]
async fn addresses_are_looked_at() {
    let (folder, ca) = (TempDir::new().unwrap(), TestCa::new());
    let tls = process(&folder, &ca, "user/vera");
    for bad in ["", "host", ":1", "a b:1", "http://host"] {
        assert!(channel(&tls, bad, Identity::Controller).is_err(), "{bad:?}");
    }
    assert!(channel(&tls, "[::1]:7440", Identity::Controller).is_ok());
}

/// Seconds: long enough to connect on a busy machine.
const BRIEF: i64 = 8;

/// A process whose certificate lives for so many seconds from now.
fn brief(folder: &TempDir, ca: &TestCa, identity: &str, seconds: i64) -> Tls {
    let now = ::time::OffsetDateTime::now_utc();
    let until = now + ::time::Duration::seconds(seconds);
    let uri = format!("spiffe://drover.local/{identity}");
    let certificate = ca.issue_for(&[&uri], now - ::time::Duration::hours(1), until);
    let files = ca.write(&folder.path().join(identity), &certificate);
    Tls::load(files, "drover.local".parse().unwrap()).unwrap()
}

/// Watches the health of a server until the stream breaks; a watch says nothing after its first message.
async fn watch_until_cut(client: Channel) -> tonic::Status {
    let mut client = HealthClient::new(client);
    let watch = client.watch(HealthCheckRequest::default()).await.unwrap();
    let mut watch = watch.into_inner();
    assert!(watch.message().await.unwrap().is_some());
    watch.message().await.unwrap_err()
}

#[tokio::test]
async fn a_long_stream_ends_with_the_certificate_of_its_caller() {
    let (folder, ca, shutdown) = (TempDir::new().unwrap(), TestCa::new(), CancellationToken::new());
    let address = serve(process(&folder, &ca, "controller"), shutdown.clone()).await;
    let caller = brief(&folder, &ca, "user/vera", BRIEF);
    let cut = watch_until_cut(channel(&caller, &address, Identity::Controller).unwrap()).await;
    assert!(caller.has_expired(), "cut before its time: {cut}");
    assert!(!Failure::from_status(&cut).is_evidence());
    shutdown.cancel();
}

#[tokio::test]
async fn a_long_stream_ends_with_the_certificate_of_its_server() {
    let (folder, ca, shutdown) = (TempDir::new().unwrap(), TestCa::new(), CancellationToken::new());
    let server = brief(&folder, &ca, "controller", BRIEF);
    let address = serve(server.clone(), shutdown.clone()).await;
    let caller = process(&folder, &ca, "user/vera");
    let cut = watch_until_cut(channel(&caller, &address, Identity::Controller).unwrap()).await;
    assert!(server.has_expired(), "cut before its time: {cut}");
    shutdown.cancel();
}
