//! Mutual TLS over real sockets on loopback: who gets in, who does not, and what a reload changes.

use std::net::SocketAddr;

use ::time::{Duration as Span, OffsetDateTime};
use rcgen::ExtendedKeyUsagePurpose;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::serve::{Accepted, accept};
use crate::test_pki::TestCa;

const CONTROLLER: &str = "spiffe://drover.local/controller";
const AGENT: &str = "spiffe://drover.local/agent/host-1";

fn domain() -> TrustDomain {
    "drover.local".parse().unwrap()
}

fn agent() -> Identity {
    Identity::Agent("host-1".parse().unwrap())
}

struct Bench {
    folder: TempDir,
    ca: TestCa,
}

impl Bench {
    fn new() -> Self {
        Self {
            folder: TempDir::new().unwrap(),
            ca: TestCa::new(),
        }
    }

    /// A process with this identity, signed by this authority.
    fn process_of(&self, ca: &TestCa, name: &str, uri: &str) -> Tls {
        Tls::load(ca.write(&self.folder.path().join(name), &ca.issue(&[uri])), domain()).unwrap()
    }

    fn process(&self, name: &str, uri: &str) -> Tls {
        self.process_of(&self.ca, name, uri)
    }
}

/// Listens as `tls`, echoes one byte to whom gets in, and gives that peer.
async fn serve(tls: Tls) -> (SocketAddr, tokio::task::JoinHandle<Option<Identity>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut incoming = accept(listener, tls, &[ALPN_H2, ALPN_DATA], CancellationToken::new());
        let Accepted {
            mut stream, peer, alpn, ..
        } = incoming.next().await?;
        assert_eq!(alpn, ALPN_DATA);
        let byte = stream.read_u8().await.unwrap();
        stream.write_u8(byte).await.unwrap();
        stream.flush().await.unwrap();
        Some(peer)
    });
    (address, task)
}

/// One byte there and back: in TLS 1.3 a client learns of a refusal only when it reads.
async fn echo(tls: &Tls, address: SocketAddr, expected: &Identity) -> Result<u8, String> {
    let stream = tls.connect(&address.to_string(), ALPN_DATA, expected).await;
    let mut stream = stream.map_err(|error| error.to_string())?;
    stream.write_u8(42).await.map_err(|error| error.to_string())?;
    stream.read_u8().await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let bench = Bench::new();
    let (address, served) = serve(bench.process("agent", AGENT)).await;
    let controller = bench.process("controller", CONTROLLER);
    assert_eq!(controller.own_identity(), Identity::Controller);
    assert_eq!(echo(&controller, address, &agent()).await, Ok(42));
    assert_eq!(served.await.unwrap(), Some(Identity::Controller));
}

#[tokio::test]
async fn a_server_of_another_authority_is_refused() {
    let bench = Bench::new();
    let (address, served) = serve(bench.process_of(&TestCa::new(), "agent", AGENT)).await;
    let error = echo(&bench.process("controller", CONTROLLER), address, &agent())
        .await
        .unwrap_err();
    assert!(error.contains("no TLS with"), "{error}");
    served.abort();
}

#[tokio::test]
async fn a_client_of_another_authority_is_refused() {
    let bench = Bench::new();
    let (address, served) = serve(bench.process("agent", AGENT)).await;
    // It trusts the server's authority, but its own certificate is from elsewhere.
    let other = TestCa::new();
    let files = other.write(&bench.folder.path().join("stranger"), &other.issue(&[CONTROLLER]));
    std::fs::write(&files.ca, other.pem() + &bench.ca.pem()).unwrap();
    let trusting = Tls::load(files, domain()).unwrap();
    assert!(echo(&trusting, address, &agent()).await.is_err());
    // The loop goes on: the next one gets in.
    assert_eq!(
        echo(&bench.process("controller", CONTROLLER), address, &agent()).await,
        Ok(42)
    );
    assert_eq!(served.await.unwrap(), Some(Identity::Controller));
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let bench = Bench::new();
    let (address, served) = serve(bench.process("agent", AGENT)).await;
    let controller = bench.process("controller", CONTROLLER);
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&controller.shared.provider))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&controller.shared.material.load().servers))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_DATA.to_vec()];
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    let _ = stream.write_u8(42).await;
    assert!(stream.read_u8().await.is_err());
    served.abort();
}

#[tokio::test]
async fn somebody_else_with_a_good_certificate_is_refused() {
    let bench = Bench::new();
    let (address, served) = serve(bench.process("agent", "spiffe://drover.local/agent/host-2")).await;
    let controller = bench.process("controller", CONTROLLER);
    let error = controller
        .connect(&address.to_string(), ALPN_DATA, &agent())
        .await
        .unwrap_err();
    assert!(matches!(error, TlsError::WrongPeer { .. }), "{error}");
    served.abort();
}

#[tokio::test]
async fn another_protocol_is_refused() {
    let bench = Bench::new();
    let (address, served) = serve(bench.process("agent", AGENT)).await;
    let controller = bench.process("controller", CONTROLLER);
    assert!(
        controller
            .connect(&address.to_string(), b"http/1.1", &agent())
            .await
            .is_err()
    );
    served.abort();
}

#[test]
fn material_that_peers_would_refuse_is_not_loaded() {
    let bench = Bench::new();
    let now = OffsetDateTime::now_utc();
    let load = |files| Tls::load(files, domain()).map(|_| ()).unwrap_err().to_string();

    let expired = bench.ca.issue_for(&[AGENT], now - Span::hours(2), now - Span::hours(1));
    assert!(load(bench.ca.write(&bench.folder.path().join("expired"), &expired)).contains("expired"));
    let early = bench.ca.issue_for(&[AGENT], now + Span::hours(1), now + Span::hours(2));
    load(bench.ca.write(&bench.folder.path().join("early"), &early));
    let nameless = bench.ca.issue(&[]);
    assert!(load(bench.ca.write(&bench.folder.path().join("nameless"), &nameless)).contains("exactly one"));
    let foreign = TestCa::new().issue(&[AGENT]);
    load(bench.ca.write(&bench.folder.path().join("foreign"), &foreign));

    let mut files = bench
        .ca
        .write(&bench.folder.path().join("key"), &bench.ca.issue(&[AGENT]));
    files.key = bench
        .ca
        .write(&bench.folder.path().join("other-key"), &bench.ca.issue(&[AGENT]))
        .key;
    assert!(load(files).contains("tls.key"));
    files = bench
        .ca
        .write(&bench.folder.path().join("gone"), &bench.ca.issue(&[AGENT]));
    std::fs::remove_file(&files.ca).unwrap();
    assert!(load(files).contains("cannot read"));
}

#[test]
fn the_certificate_of_a_user_is_one_for_clients() {
    let bench = Bench::new();
    let now = OffsetDateTime::now_utc();
    let for_clients = |uri: &str| {
        let usages = [ExtendedKeyUsagePurpose::ClientAuth];
        let made = bench
            .ca
            .issue_with(&[uri], now - Span::hours(1), now + Span::hours(1), &usages);
        Tls::load(bench.ca.write(&bench.folder.path().join("clients"), &made), domain())
    };
    for_clients("spiffe://drover.local/user/alice").unwrap();
    // Who also serves needs one that clients take.
    for_clients(AGENT).unwrap_err();
}

#[tokio::test]
async fn a_reload_takes_good_files_and_refuses_bad_ones() {
    let bench = Bench::new();
    let tls = bench.process("agent", AGENT);
    let folder = bench.folder.path().join("agent");
    assert!(!tls.reload().unwrap(), "nothing had changed");

    std::fs::write(folder.join("tls.crt"), "no certificate").unwrap();
    assert!(matches!(tls.reload().unwrap_err(), TlsError::Invalid { .. }));
    bench
        .ca
        .write(&folder, &bench.ca.issue(&["spiffe://drover.local/agent/host-2"]));
    assert!(matches!(tls.reload().unwrap_err(), TlsError::IdentityChanged { .. }));
    std::fs::remove_file(folder.join("tls.key")).unwrap();
    assert!(matches!(tls.reload().unwrap_err(), TlsError::Read { .. }));

    // The old material is still in use.
    let controller = bench.process("controller", CONTROLLER);
    let (address, served) = serve(tls.clone()).await;
    assert_eq!(echo(&controller, address, &agent()).await, Ok(42));
    served.await.unwrap();

    // A new authority for all: a clone made before the reload uses it, without a restart.
    let (address, served) = serve(tls.clone()).await;
    let new = TestCa::new();
    new.write(&folder, &new.issue(&[AGENT]));
    assert!(tls.reload().unwrap());
    assert!(
        echo(&controller, address, &agent()).await.is_err(),
        "the old authority still gets in"
    );
    assert_eq!(
        echo(&bench.process_of(&new, "controller", CONTROLLER), address, &agent()).await,
        Ok(42)
    );
    assert_eq!(served.await.unwrap(), Some(Identity::Controller));
}

#[test]
fn addresses_need_a_port() {
    for good in ["127.0.0.1:7450", "[::1]:7450", "host-1.example:7450"] {
        assert!(server_name(good).is_ok(), "{good}");
    }
    for bad in ["", "host", "host:", "host:x", "host:70000", ":7450"] {
        assert!(server_name(bad).is_err(), "{bad}");
    }
}
