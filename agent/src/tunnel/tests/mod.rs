//! Tests of the tunnel over real TLS and real sockets on loopback: two agents, `a` sends to `b`.

mod channels;
mod hello;
pub(crate) mod pki;
mod refused;

use std::path::PathBuf;
use std::time::Duration;

use drover_proto::identity::Identity;
use drover_proto::ids::{Attempt, HostId, MigrationId, Ticket};
use drover_proto::tls::Tls;
use tempfile::TempDir;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{ChannelPlan, Destination, HelloTemplate, Pace, Registration, Source, SourceOptions, TunnelError, Waiting};
use crate::port::Port;

/// Two agents, and what a migration between them needs.
pub(crate) struct Pair {
    folder: TempDir,
    pki: pki::Pki,
    pub(crate) destination: Destination,
    address: String,
    shutdown: CancellationToken,
    _port: Port,
    hello: HelloTemplate,
}

fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

pub(crate) fn agent(name: &str) -> Identity {
    Identity::Agent(host(name))
}

impl Pair {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pki = pki::Pki::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (destination, shutdown) = (Destination::new(), CancellationToken::new());
        let tls = pki.tls(folder.path(), &agent("b"));
        let (port, _) = Port::open(listener, tls, destination.clone(), shutdown.clone());
        let (migration, ticket) = (MigrationId::generate(), Ticket::generate().unwrap());
        let hello = HelloTemplate {
            migration,
            attempt: Attempt(1),
            ticket,
        };
        Self {
            folder,
            pki,
            destination,
            address,
            shutdown,
            _port: port,
            hello,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn tls(&self, identity: &Identity) -> Tls {
        self.pki.tls(self.folder.path(), identity)
    }

    /// What the destination's QEMU does in Prepare.
    fn qemu(&self) -> UnixListener {
        UnixListener::bind(self.path("qemu")).unwrap()
    }

    pub(crate) fn registration(&self) -> Registration {
        Registration {
            migration: self.hello.migration,
            attempt: self.hello.attempt,
            ticket: self.hello.ticket.clone(),
            source: host("a"),
            memory_socket: self.path("qemu"),
            disks_socket: None,
            files: None,
            valid_for: Duration::from_secs(60),
        }
    }

    pub(crate) fn register(&self) -> Waiting {
        self.destination.register(self.registration()).unwrap()
    }

    pub(crate) fn options(&self) -> SourceOptions {
        SourceOptions {
            socket: self.path("source"),
            socket_group: None,
            channels: ChannelPlan::Memory {
                multifd: 3,
                postcopy_preempt: false,
            },
            addresses: vec![self.address.clone()],
            expected: agent("b"),
            tls: self.tls(&agent("a")),
            hello: self.hello.clone(),
            pace: Pace::new(0),
        }
    }

    pub(crate) fn open(&self) -> Source {
        Source::open(self.options()).unwrap()
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.path("source")).await.unwrap()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Waits for the first error of a source or of a waiting migration.
async fn error(mut errors: watch::Receiver<Option<TunnelError>>) -> TunnelError {
    let found = soon(errors.wait_for(Option::is_some)).await.unwrap().clone();
    found.unwrap()
}

/// What does not come is a failure, not a test that hangs.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), work)
        .await
        .expect("it does not happen")
}
