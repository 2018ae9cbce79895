//! What strangers may hold of a server, and for how long.

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio_stream::StreamExt;

use super::*;
use crate::test_pki::TestCa;
use crate::tls::ALPN_H2;

const AGENT: &str = "spiffe://drover.local/agent/host-1";

struct Bench {
    folder: TempDir,
    ca: TestCa,
    tls: Tls,
}

impl Bench {
    fn new() -> Self {
        let (folder, ca) = (TempDir::new().unwrap(), TestCa::new());
        let files = ca.write(&folder.path().join("agent"), &ca.issue(&[AGENT]));
        let tls = Tls::load(files, "drover.local".parse().unwrap()).unwrap();
        Self { folder, ca, tls }
    }

    fn peer(&self) -> Tls {
        let issued = self.ca.issue(&["spiffe://drover.local/controller"]);
        let files = self.ca.write(&self.folder.path().join("controller"), &issued);
        Tls::load(files, "drover.local".parse().unwrap()).unwrap()
    }
}

/// By whoever was let in.
const SAID: u8 = 7;

/// Stays where it is let in, and says so. On a busy machine a handshake may take too long: then it comes again.
async fn dials_until_let_in(peer: Tls, address: SocketAddr, expected: Identity) {
    loop {
        if let Ok(mut stream) = peer.connect(&address.to_string(), ALPN_H2, &expected).await {
            // The other side may have given the handshake up all the same: this fails, or ends.
            let _ = stream.write_u8(SAID).await;
            let _ = stream.flush().await;
            let _ = stream.read_u8().await;
        }
    }
}

#[tokio::test]
async fn who_says_nothing_is_ended_and_the_next_gets_in() {
    let bench = Bench::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let limits = Limits {
        handshakes: 1,
        handshake_time: Duration::from_secs(1),
    };
    let mut incoming = accept_within(
        limits,
        listener,
        bench.tls.clone(),
        &[ALPN_H2],
        CancellationToken::new(),
    );
    // All the places are taken by people who say nothing.
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let (peer, expected) = (bench.peer(), Identity::Agent("host-1".parse().unwrap()));
    tokio::spawn(dials_until_let_in(peer, address, expected));
    let gets_in = async {
        let mut accepted = incoming.next().await.unwrap();
        (accepted.stream.read_u8().await.unwrap(), accepted)
    };
    let (said, accepted) = timeout(Duration::from_secs(60), gets_in)
        .await
        .expect("the next does not get in");
    assert_eq!((said, &accepted.peer), (SAID, &Identity::Controller));
    for mut stream in silent {
        let mut byte = [0];
        assert_eq!(
            stream.read(&mut byte).await.unwrap(),
            0,
            "it was ended, before the other got in"
        );
    }
}

/// How the client's side of a handshake with this version ends.
async fn handshake(bench: &Bench, version: &'static SupportedProtocolVersion) -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let _incoming = accept(listener, bench.tls.clone(), &[ALPN_H2], CancellationToken::new());
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map(drop)
}

#[tokio::test]
async fn nobody_speaks_an_older_tls() {
    let bench = Bench::new();
    let refused = handshake(&bench, &TLS12).await.unwrap_err().to_string();
    assert!(refused.contains("ProtocolVersion"), "{refused}");
    // With the version of today this client gets as far as the certificate, which it does not trust.
    let refused = handshake(&bench, &TLS13).await.unwrap_err().to_string();
    assert!(refused.contains("UnknownIssuer"), "{refused}");
}
