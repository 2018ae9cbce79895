//! What is true of the simulated hypervisor: the behaviour of `facts/libvirt.md` §2, one test for each.

mod arriving;
mod faults;
mod leaving;
mod moves;

use std::path::PathBuf;
use std::time::Duration;

use drover_proto::ids::GuestId;
use tempfile::TempDir;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::{SimGuest, SimHost, SimWorld};
use crate::hypervisor::{
    BeginRequest, Cookie, ErrorClass, GuestEvent, GuestState, Happened, Hypervisor, HypervisorError, Incoming,
    MigrateFlags, Outgoing, PerformRequest, PrepareRequest, Throttle,
};

const FLAGS: MigrateFlags = MigrateFlags {
    persistent: true,
    post_copy: false,
    auto_converge: false,
    storage_proved: true,
    parallel: 0,
    zstd: false,
    copied: None,
    detect_zeroes: false,
    resume: false,
};

/// Two hosts and a guest on `a`, with a plain unix socket for a tunnel.
struct Lab {
    world: SimWorld,
    a: SimHost,
    b: SimHost,
    guest: GuestId,
    folder: TempDir,
    max_downtime: Option<Duration>,
}

impl Lab {
    fn new() -> Self {
        Self::with(&SimGuest {
            memory_mib: 4,
            ..SimGuest::named("web")
        })
    }

    fn with(guest: &SimGuest) -> Self {
        let world = SimWorld::new();
        let (a, b) = (world.host("a"), world.host("b"));
        a.add(guest).unwrap();
        Self {
            world,
            a,
            b,
            guest: guest.id(),
            folder: tempfile::tempdir().unwrap(),
            max_downtime: None,
        }
    }

    /// A guest whose transfer never ends by itself: it writes faster than it is sent, and may not be stopped.
    fn restless() -> Self {
        let lab = Self::with(&SimGuest {
            memory_mib: 4,
            dirty_mib_per_second: 1 << 30,
            ..SimGuest::named("web")
        });
        Self {
            max_downtime: Some(Duration::ZERO),
            ..lab
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("memory.sock")
    }

    async fn begin(&self) -> Result<Box<dyn Outgoing>, HypervisorError> {
        self.a
            .begin(BeginRequest {
                guest: self.guest,
                flags: FLAGS,
            })
            .await
    }

    fn request(&self, outgoing: &dyn Outgoing, flags: MigrateFlags) -> PrepareRequest {
        let facts = self.a.look(self.guest).unwrap();
        PrepareRequest {
            guest: self.guest,
            name: facts.name,
            xml: outgoing.begun().xml.clone(),
            persistent_xml: facts.inactive_xml,
            cookie: outgoing.begun().cookie.clone(),
            flags,
            socket: self.socket(),
            disks_socket: self.disks_socket(),
        }
    }

    fn disks_socket(&self) -> std::path::PathBuf {
        self.socket().with_file_name("disks")
    }

    async fn prepare(&self, outgoing: &dyn Outgoing) -> Box<dyn Incoming> {
        self.b.prepare(self.request(outgoing, FLAGS)).await.unwrap()
    }

    fn perform_request(&self) -> PerformRequest {
        PerformRequest {
            cookie: Cookie::default(),
            socket: self.socket(),
            disks_socket: self.disks_socket(),
            persistent_xml: None,
            bandwidth: 0,
            max_downtime: self.max_downtime,
            throttle: Throttle {
                initial: 20,
                increment: 10,
            },
        }
    }

    async fn both(&self) -> (Box<dyn Outgoing>, Box<dyn Incoming>) {
        let outgoing = self.begin().await.unwrap();
        let incoming = self.prepare(&*outgoing).await;
        (outgoing, incoming)
    }

    /// Up to the point where all is sent.
    async fn sent(&self) -> (Box<dyn Outgoing>, Box<dyn Incoming>) {
        let (outgoing, incoming) = self.both().await;
        outgoing.perform(self.perform_request()).await.unwrap();
        (outgoing, incoming)
    }

    fn state(&self, host: &SimHost) -> Option<GuestState> {
        host.look(self.guest).map(|facts| facts.state)
    }

    fn running(&self) -> Vec<String> {
        self.world.running(self.guest)
    }

    #[track_caller]
    fn assert_clean(&self) {
        assert!(self.world.violations().is_empty(), "{:?}", self.world.violations());
    }
}

/// Waits until such a thing happens.
async fn happens(events: &mut Receiver<GuestEvent>, expected: impl Fn(&Happened) -> bool) -> Happened {
    let found = async {
        loop {
            match events.recv().await {
                Ok(event) if expected(&event.what) => return event.what,
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => panic!("the host is gone"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(120), found)
        .await
        .expect("it does not happen")
}

#[track_caller]
fn refused<T>(result: Result<T, HypervisorError>, class: ErrorClass, code: &str) {
    let error = result.err().expect("it was not refused");
    assert_eq!((error.class, error.code.as_str()), (class, code), "{error}");
}
