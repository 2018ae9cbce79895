//! The destination's end: takes data connections of other agents, and brings each to the QEMU it is meant for.
//!
//! [`Destination`] is the agent's registry of tickets; [`Waiting`] is one migration in it, held by the migration's
//! job. Dropping a `Waiting` revokes it.

mod waiting;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use drover_proto::identity::Identity;
use drover_proto::ids::{Attempt, HostId, MigrationId, Ticket};
use drover_proto::serve::Accepted;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::entry::{Entry, Takes};
use super::error::{Refusal, TunnelError};
use super::hello::{Channel, HELLO_SIZE, Hello, Reply};
use super::refusals::Refusals;
use super::relay::{Broken, relay};
use super::{Counters, Pace, session, socket};
use crate::offline::sink::FileSink;

pub use waiting::Waiting;

/// A hello comes at once, or it is not ours.
const HELLO_LIMIT: Duration = Duration::from_secs(5);
/// libvirt's Prepare has returned before a ticket leaves this host, so QEMU listens or is about to.
const QEMU_PATIENCE: Duration = Duration::from_secs(5);
/// Connections at once that have not shown a ticket yet.
const STRANGERS: usize = 64;

/// What a ticket lets in, and where to.
#[derive(Clone, Debug)]
pub struct Registration {
    pub migration: MigrationId,
    pub attempt: Attempt,
    pub ticket: Ticket,
    /// Only this host's agent may use the ticket.
    pub source: HostId,
    /// The unix socket on which QEMU waits for memory.
    pub memory_socket: PathBuf,
    /// The unix socket of QEMU's NBD server; `None` where no disk is copied.
    pub disks_socket: Option<PathBuf>,
    /// Where the files of a guest that is shut off go; then no channel leads to QEMU.
    pub files: Option<FileSink>,
    /// How long the ticket is good for if no channel comes.
    pub valid_for: Duration,
}

/// The registry of all migrations that this agent waits for. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Destination {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    migrations: Mutex<HashMap<MigrationId, Arc<Migration>>>,
    strangers: Semaphore,
    refusals: Refusals,
}

/// One migration that is waited for.
#[derive(Debug)]
struct Migration {
    registration: Registration,
    entry: Mutex<Entry>,
    counters: Counters,
    main_attached: watch::Sender<bool>,
    main_complete: watch::Sender<bool>,
    main_flows: AtomicBool,
    error: watch::Sender<Option<TunnelError>>,
    cut: CancellationToken,
    channels: TaskTracker,
}

impl Default for Destination {
    fn default() -> Self {
        Self::new()
    }
}

impl Destination {
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                migrations: Mutex::default(),
                strangers: Semaphore::new(STRANGERS),
                refusals: Refusals::default(),
            }),
        }
    }

    /// Lets a ticket in from now on. A registration of the same migration that is still there is revoked: its
    /// channels are cut.
    pub fn register(&self, registration: Registration) -> Result<Waiting, TunnelError> {
        socket::check_path(&registration.memory_socket)?;
        if let Some(path) = &registration.disks_socket {
            socket::check_path(path)?;
        }
        let entry = Entry::new(
            registration.attempt,
            registration.ticket.clone(),
            registration.source.clone(),
            Instant::now() + registration.valid_for,
            takes(&registration),
        );
        let id = registration.migration;
        let migration = Arc::new(Migration {
            registration,
            entry: Mutex::new(entry),
            counters: Counters::default(),
            main_attached: watch::Sender::new(false),
            main_complete: watch::Sender::new(false),
            main_flows: AtomicBool::new(false),
            error: watch::Sender::new(None),
            cut: CancellationToken::new(),
            channels: TaskTracker::new(),
        });
        if let Some(former) = lock(&self.shared.migrations).insert(id, Arc::clone(&migration)) {
            former.revoke();
        }
        Ok(Waiting {
            destination: self.clone(),
            migration,
        })
    }

    /// How many connections were refused since the start.
    pub fn refused(&self) -> u64 {
        self.shared.refusals.count()
    }

    /// Serves one data connection to its end.
    pub async fn serve(&self, accepted: Accepted) {
        let Accepted { stream, peer, .. } = accepted;
        if let Err(error) = socket::tune(stream.get_ref().0) {
            tracing::debug!(%error, "a data connection cannot be tuned");
        }
        if let Some((stream, admitted)) = self.admit(stream, &peer).await {
            admitted.run(stream).await;
        }
    }

    /// From the first byte to the ticket. Bounded in time and in number: nobody is trusted here yet.
    async fn admit(
        &self,
        mut stream: TlsStream<TcpStream>,
        peer: &Identity,
    ) -> Option<(TlsStream<TcpStream>, Admitted)> {
        let outcome = match self.shared.strangers.try_acquire() {
            Ok(_place) => match timeout(HELLO_LIMIT, read_hello(&mut stream)).await {
                Ok(Ok(hello)) => self.claim(&hello, peer),
                Ok(Err(detail)) => Err((Refusal::Hello, detail)),
                Err(_) => Err((Refusal::Hello, "it did not come in time".to_owned())),
            },
            Err(_) => Err((Refusal::Busy, "too many connections at once".to_owned())),
        };
        match outcome {
            Ok(admitted) => Some((stream, admitted)),
            Err((refusal, detail)) => {
                self.shared.refusals.record(refusal, &detail, peer);
                refuse(stream, refusal, detail).await;
                None
            }
        }
    }

    fn claim(&self, hello: &Hello, peer: &Identity) -> Result<Admitted, (Refusal, String)> {
        let known = lock(&self.shared.migrations).get(&hello.migration).cloned();
        let migration = known.ok_or((Refusal::Ticket, String::new()))?;
        let claimed = lock(&migration.entry).claim(hello, peer, Instant::now());
        claimed.map_err(|refusal| (refusal, String::new()))?;
        Ok(Admitted {
            migration,
            channel: hello.channel,
        })
    }

    fn forget(&self, migration: &Arc<Migration>) {
        let mut migrations = lock(&self.shared.migrations);
        let id = migration.registration.migration;
        // A later registration of the same migration stays.
        if migrations
            .get(&id)
            .is_some_and(|current| Arc::ptr_eq(current, migration))
        {
            migrations.remove(&id);
        }
    }
}

impl Migration {
    fn revoke(&self) {
        lock(&self.entry).revoke();
        self.cut.cancel();
        self.channels.close();
    }

    fn report(&self, error: TunnelError) {
        tracing::warn!(migration_id = %self.registration.migration, %error, "a data channel ended early");
        self.error.send_replace(Some(error));
    }
}

fn takes(registration: &Registration) -> Takes {
    match (&registration.files, &registration.disks_socket) {
        (Some(_), _) => Takes::Files,
        (None, Some(_)) => Takes::MemoryAndDisks,
        (None, None) => Takes::Memory,
    }
}

/// A connection that has shown its ticket and holds its channel's place.
struct Admitted {
    migration: Arc<Migration>,
    channel: Channel,
}

impl Admitted {
    async fn run(self, stream: TlsStream<TcpStream>) {
        let Self { migration, channel } = self;
        let tracked = Arc::clone(&migration);
        let work = async {
            tokio::select! {
                biased; // what is revoked does not get to QEMU even once
                () = migration.cut.cancelled() => {}
                result = carry(&migration, channel, stream) => if let Err(error) = result {
                    migration.report(error);
                },
            }
        };
        tracked.channels.track_future(work).await;
    }
}

/// Says that it may come, and takes what comes.
async fn take_files(
    migration: &Migration,
    files: &FileSink,
    mut stream: TlsStream<TcpStream>,
) -> Result<(), TunnelError> {
    let channel = Channel::Files;
    if !lock(&migration.entry).attach(channel) {
        return Ok(());
    }
    let cut = |message: String| TunnelError::Cut { channel, message };
    let accepted = async {
        stream.write_all(&Reply::Accepted.encode()).await?;
        stream.flush().await
    };
    accepted.await.map_err(|error: std::io::Error| cut(error.to_string()))?;
    migration.main_attached.send_replace(true);
    files.serve(stream).await.map_err(|error| cut(error.to_string()))?;
    migration.main_complete.send_replace(true);
    Ok(())
}

/// Connects QEMU, says so, relays.
async fn carry(migration: &Migration, channel: Channel, mut stream: TlsStream<TcpStream>) -> Result<(), TunnelError> {
    if let Some(files) = &migration.registration.files {
        return take_files(migration, files, stream).await;
    }
    let mut unix = match connect_qemu(&migration.registration, channel).await {
        Ok(unix) => unix,
        Err(error) => {
            lock(&migration.entry).release(channel);
            refuse(stream, Refusal::Qemu, error.clone()).await;
            return Err(TunnelError::Qemu {
                channel,
                message: error,
            });
        }
    };
    if !lock(&migration.entry).attach(channel) {
        return Ok(());
    }
    let cut = |error: std::io::Error| TunnelError::Cut {
        channel,
        message: error.to_string(),
    };
    stream.write_all(&Reply::Accepted.encode()).await.map_err(cut)?;
    stream.flush().await.map_err(cut)?;
    let flows = (channel == Channel::Main).then(|| Flows::new(&migration.main_flows));
    if flows.is_some() {
        migration.main_attached.send_replace(true);
    }
    let (tcp, connection) = stream.into_inner();
    let received_all = || {
        if channel == Channel::Main {
            migration.main_complete.send_replace(true);
        }
    };
    // Only the source limits: what comes back is a few bytes.
    let pace = Pace::new(0);
    let halves = session::split(tcp, connection);
    relay(&mut unix, halves, &migration.counters, &pace, received_all)
        .await
        .map_err(|broken| match broken {
            Broken::Unix(error) => TunnelError::Qemu {
                channel,
                message: error.to_string(),
            },
            Broken::Network(error) => cut(error),
        })
}

/// The main channel is there. However it ends, it is not there afterwards.
struct Flows<'a>(&'a AtomicBool);

impl<'a> Flows<'a> {
    fn new(flows: &'a AtomicBool) -> Self {
        flows.store(true, Ordering::Release);
        Self(flows)
    }
}

impl Drop for Flows<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

async fn connect_qemu(registration: &Registration, channel: Channel) -> Result<UnixStream, String> {
    let path = match (channel.is_memory(), &registration.disks_socket) {
        (true, _) => &registration.memory_socket,
        (false, Some(path)) => path,
        (false, None) => return Err("no disk is copied in this migration".to_owned()),
    };
    socket::connect(path, QEMU_PATIENCE)
        .await
        .map_err(|error| format!("{}: {error}", path.display()))
}

async fn read_hello(stream: &mut TlsStream<TcpStream>) -> Result<Hello, String> {
    let mut wire = [0; HELLO_SIZE];
    stream.read_exact(&mut wire).await.map_err(|error| error.to_string())?;
    Hello::decode(&wire).map_err(|error| error.to_string())
}

/// Says why and closes; somebody who does not listen does not hold us up.
async fn refuse(mut stream: TlsStream<TcpStream>, refusal: Refusal, detail: String) {
    let reply = Reply::Refused { refusal, detail }.encode();
    let farewell = async {
        stream.write_all(&reply).await?;
        stream.shutdown().await
    };
    // Whether it arrived changes nothing here.
    let _ = timeout(HELLO_LIMIT, farewell).await;
}

/// Nothing that holds these locks panics half-way through a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
