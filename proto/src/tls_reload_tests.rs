//! New certificates under way: nothing that is connected notices, and in no order of steps is anybody locked out.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_stream::StreamExt;

use super::*;
use crate::identity::Identity;
use crate::serve::accept;
use crate::test_pki::TestCa;
use crate::tls::ALPN_DATA;

const CONTROLLER: &str = "spiffe://drover.local/controller";
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);

const AGENT: &str = "spiffe://drover.local/agent/host-1";

fn agent() -> Identity {
    Identity::Agent("host-1".parse().unwrap())
}

/// A controller and an agent that listens and echoes, and the folders of their certificates.
struct Bench {
    folder: TempDir,
    controller: Tls,
    agent: Tls,
    address: SocketAddr,
}

impl Bench {
    async fn new(ca: &TestCa) -> Self {
        let folder = TempDir::new().unwrap();
        let load = |name: &str, uri: &str| {
            let files = ca.write(&folder.path().join(name), &ca.issue(&[uri]));
            Tls::load(files, "drover.local".parse().unwrap()).unwrap()
        };
        let (controller, agent) = (load("controller", CONTROLLER), load("agent", AGENT));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = accept(listener, agent.clone(), &[ALPN_DATA], CancellationToken::new());
        tokio::spawn(async move {
            while let Some(mut accepted) = incoming.next().await {
                tokio::spawn(async move {
                    while let Ok(byte) = accepted.stream.read_u8().await {
                        accepted.stream.write_u8(byte).await.unwrap();
                        accepted.stream.flush().await.unwrap();
                    }
                });
            }
        });
        Self {
            folder,
            controller,
            agent,
            address,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        let address = self.address.to_string();
        let mut stream = self.controller.connect(&address, ALPN_DATA, &agent()).await.unwrap();
        echo(&mut stream).await;
        stream
    }

    fn write_leaf(&self, name: &str, ca: &TestCa, uri: &str, chain: &str) {
        let leaf = ca.issue(&[uri]);
        std::fs::write(self.path(name).join("tls.crt"), leaf.pem() + chain).unwrap();
        std::fs::write(self.path(name).join("tls.key"), leaf.key()).unwrap();
    }

    fn write_bundle(&self, name: &str, authorities: &[&TestCa]) {
        let bundle: String = authorities.iter().map(|ca| ca.pem()).collect();
        std::fs::write(self.path(name).join("ca.crt"), bundle).unwrap();
    }
}

async fn echo(stream: &mut TlsStream<TcpStream>) {
    stream.write_u8(42).await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), 42);
}

/// The certificate that the other side of a connection showed.
fn shown(stream: &TlsStream<TcpStream>) -> Vec<u8> {
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn an_authority_is_rolled_over_trust_first() {
    let (old, new) = (TestCa::named("old"), TestCa::named("new"));
    let bench = Bench::new(&old).await;
    let mut long = bench.connect().await;
    let before = shown(&long);
    for step in 0..5 {
        match step {
            0 => bench.write_bundle("controller", &[&old, &new]),
            1 => bench.write_bundle("agent", &[&old, &new]),
            2 => bench.write_leaf("agent", &new, AGENT, ""),
            3 => bench.write_leaf("controller", &new, CONTROLLER, ""),
            _ => {
                bench.write_bundle("controller", &[&new]);
                bench.write_bundle("agent", &[&new]);
            }
        }
        let taken = (bench.controller.reload().unwrap(), bench.agent.reload().unwrap());
        assert!(taken.0 || taken.1, "step {step} changed nothing");
        // The stream from before goes on, and a new one is made at every step.
        echo(&mut long).await;
        let connected = bench.connect().await;
        assert_eq!(shown(&connected) == before, step < 2, "step {step}");
    }
}

#[tokio::test]
async fn an_authority_is_rolled_over_certificate_first() {
    let (old, new) = (TestCa::named("old"), TestCa::named("new"));
    let bench = Bench::new(&old).await;
    let mut long = bench.connect().await;
    let before = shown(&long);
    bench.write_bundle("controller", &[&old, &new]);
    assert!(bench.controller.reload().unwrap());

    // The agent gets its new certificate before it knows the new authority: it goes on with the old one and says so.
    bench.write_leaf("agent", &new, AGENT, "");
    bench.agent.reload().unwrap_err();
    assert!(bench.agent.problem().unwrap().contains("tls.crt"));
    echo(&mut long).await;
    assert_eq!(shown(&bench.connect().await), before);

    // With the bundle both are taken.
    bench.write_bundle("agent", &[&new, &old]);
    assert!(bench.agent.reload().unwrap());
    assert_eq!(bench.agent.problem(), None);
    echo(&mut long).await;
    assert_ne!(shown(&bench.connect().await), before);
}

#[tokio::test]
async fn a_cross_signed_authority_is_trusted_by_who_knows_only_the_old_one() {
    let (old, new) = (TestCa::named("old"), TestCa::named("new"));
    let bench = Bench::new(&old).await;
    let before = shown(&bench.connect().await);
    bench.write_leaf("agent", &new, AGENT, &old.cross_sign(&new));
    assert!(bench.agent.reload().unwrap());
    assert_ne!(shown(&bench.connect().await), before);
}

#[tokio::test]
async fn an_authority_that_is_no_longer_trusted_gets_nobody_in() {
    let (old, new) = (TestCa::named("old"), TestCa::named("new"));
    let bench = Bench::new(&old).await;
    bench.write_bundle("controller", &[&old, &new]);
    bench.write_bundle("agent", &[&new]);
    bench.write_leaf("agent", &new, AGENT, "");
    assert!(bench.controller.reload().unwrap() && bench.agent.reload().unwrap());
    let address = bench.address.to_string();
    // The handshake of TLS 1.3 ends before the server looks: the refusal comes with the first answer.
    let mut stream = bench.controller.connect(&address, ALPN_DATA, &agent()).await.unwrap();
    let _ = stream.write_u8(42).await;
    assert!(stream.read_u8().await.is_err());
}

/// As Kubernetes mounts a secret: files → `..data` → a folder that is replaced as a whole.
fn publish(folder: &Path, version: &str, ca: &TestCa) {
    let target = folder.join(version);
    ca.write(&target, &ca.issue(&[AGENT]));
    let (fresh, data) = (folder.join("..fresh"), folder.join("..data"));
    std::os::unix::fs::symlink(version, &fresh).unwrap();
    std::fs::rename(&fresh, &data).unwrap();
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        let link = folder.join(name);
        if !link.exists() {
            std::os::unix::fs::symlink(Path::new("..data").join(name), link).unwrap();
        }
    }
}

#[tokio::test]
async fn swapped_links_are_noticed_and_a_bad_file_is_told() {
    let (folder, ca) = (TempDir::new().unwrap(), TestCa::new());
    publish(folder.path(), "..1", &ca);
    let files = crate::tls::TlsFiles {
        certificate: folder.path().join("tls.crt"),
        key: folder.path().join("tls.key"),
        ca: folder.path().join("ca.crt"),
    };
    let tls = Tls::load(files, "drover.local".parse().unwrap()).unwrap();
    let (shutdown, key) = (CancellationToken::new(), || {
        Arc::as_ptr(&tls.shared.material.load_full().key)
    });
    let keeping = tokio::spawn(tls.clone().keep_looking(LOOK, LOOK, shutdown.clone()));
    let first = key();
    publish(folder.path(), "..2", &ca);
    until(|| key() != first).await;
    assert_eq!(tls.problem(), None);

    let second = key();
    std::fs::write(folder.path().join("..2/tls.key"), "no key").unwrap();
    until(|| tls.problem().is_some()).await;
    assert!(tls.problem().unwrap().contains("the old ones stay in use"));
    assert_eq!(key(), second);
    publish(folder.path(), "..3", &ca);
    until(|| key() != second && tls.problem().is_none()).await;
    shutdown.cancel();
    keeping.await.unwrap();
}

async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(LOOK).await;
        }
    };
    timeout(Duration::from_secs(30), wait)
        .await
        .expect("it does not happen");
}

#[test]
fn an_old_certificate_is_told_before_it_ends() {
    let day = Duration::from_secs(24 * 3600);
    let from = SystemTime::UNIX_EPOCH + 1000 * day;
    let life = |days: u32| Life {
        from,
        until: from + days * day,
    };
    assert_eq!(aged(life(10), from + 7 * day), None);
    assert!(aged(life(10), from + 9 * day).unwrap().contains("was not renewed"));
    assert!(aged(life(10), from + 11 * day).unwrap().contains("expired"));
    assert_eq!(aged(life(365), from + 350 * day), None);
    assert!(aged(life(365), from + 352 * day).is_some());
    assert!(remaining(from, from + day) < 0.0 && remaining(from + day, from) > 0.0);
}
