//! The real hypervisor: the only unsafe and blocking code of the agent.
//!
//! ```text
//! Libvirt ── monitor    a connection that only listens: events
//!         ── looks      connections for questions
//!         ── acts       connections for resume, suspend, abort, define: never behind a question
//!         ── Outgoing   a connection for each migration that leaves
//!         ── Incoming   a connection for each migration that arrives
//! ```
//! One call at a time on a connection. libvirtd has 20 workers for long calls; a migration that performs holds
//! one of them. Nothing here decides; see the seam in [`crate::hypervisor`].

mod access;
mod capabilities;
mod cpu;
mod dirty_rate;
mod disk_copies;
mod flags;
mod guest;
mod host;
mod incoming;
mod kernel;
mod monitor;
#[cfg(test)]
mod on_test_driver;
mod outgoing;
mod process;
mod raw;
mod states;
mod stats;
mod threads;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use drover_proto::ids::GuestId;
use tokio::sync::broadcast;

use self::incoming::LibvirtIncoming;
use self::monitor::Monitor;
use self::outgoing::LibvirtOutgoing;
use self::process::Processes;
use self::raw::{Connection, Domain, FiveCalls, five_calls, own_error};
use self::threads::{Pool, blocking, on_own_thread};
use crate::hypervisor::{
    BeginRequest, CpuAnswer, CpuQuestion, ErrorClass, GuestEvent, GuestFacts, HostFacts, Hypervisor, Incoming,
    JobStats, Outgoing, PrepareRequest, Result, WriteSample,
};

/// The system's libvirtd on this host.
pub const DEFAULT_URI: &str = "qemu:///system";

/// This host's libvirt. Connections that are lost are opened again, those of a migration excepted: with them
/// goes what libvirt held for it.
#[derive(Debug)]
pub struct Libvirt {
    uri: String,
    monitor: Monitor,
    looks: Arc<Pool>,
    acts: Arc<Pool>,
}

impl Libvirt {
    /// Connects. An error is [`ErrorClass::Unavailable`] where libvirtd does not answer; the caller tries again.
    pub async fn connect(uri: &str) -> Result<Arc<Self>> {
        let uri = uri.to_owned();
        blocking(move || {
            let monitor = Monitor::start(&uri)?;
            let (looks, acts) = (Pool::new(&uri), Pool::new(&uri));
            Ok(Arc::new(Self {
                uri,
                monitor,
                looks,
                acts,
            }))
        })
        .await
    }

    /// Whether this libvirt exports the calls that a migration needs; if not, what is missing, for people.
    pub fn can_migrate(&self) -> std::result::Result<(), String> {
        five_calls().map(drop)
    }

    /// Whether libvirtd is there, as far as the connection that listens to it knows.
    pub fn is_there(&self) -> bool {
        self.monitor.listens()
    }

    /// A question about one guest.
    async fn look_at(
        &self,
        find: impl FnOnce(&Arc<Connection>) -> Result<Option<Domain>> + Send + 'static,
    ) -> Result<Option<GuestFacts>> {
        let read = move |connection: &Arc<Connection>| match find(connection)? {
            Some(domain) => guest::read(&domain, &Processes::look()?),
            None => Ok(None),
        };
        self.looks.call(read).await
    }

    /// A call on a guest that has to be there.
    async fn act_on(&self, guest: GuestId, act: impl FnOnce(&Domain) -> Result<()> + Send + 'static) -> Result<()> {
        self.acts
            .call(move |connection| act(&Domain::get(connection, guest)?))
            .await
    }
}

#[async_trait]
impl Hypervisor for Libvirt {
    async fn host(&self) -> Result<HostFacts> {
        self.looks.call(|connection| host::read(connection)).await
    }

    async fn guests(&self) -> Result<Vec<GuestFacts>> {
        self.looks.call(guest::read_every).await
    }

    async fn guest(&self, guest: GuestId) -> Result<Option<GuestFacts>> {
        self.look_at(move |connection| Domain::find(connection, guest)).await
    }

    async fn guest_by_name(&self, name: &str) -> Result<Option<GuestFacts>> {
        let name = name.to_owned();
        self.look_at(move |connection| Domain::find_by_name(connection, &name))
            .await
    }

    async fn cpu_fits(&self, question: &CpuQuestion) -> Result<CpuAnswer> {
        let question = question.clone();
        self.looks
            .call(move |connection| cpu::fits(connection, &question))
            .await
    }

    async fn job(&self, guest: GuestId) -> Result<Option<JobStats>> {
        self.looks
            .call(move |connection| guest::job(&Domain::get(connection, guest)?))
            .await
    }

    async fn block_jobs(&self, guest: GuestId) -> Result<Vec<String>> {
        self.looks
            .call(move |connection| guest::block_jobs(&Domain::get(connection, guest)?))
            .await
    }

    async fn sample_writes(&self, guest: GuestId, window: Duration) -> Result<WriteSample> {
        dirty_rate::sample(&self.looks, guest, window).await
    }

    async fn completed_job(&self, guest: GuestId) -> Result<Option<JobStats>> {
        self.looks
            .call(move |connection| guest::completed_job(&Domain::get(connection, guest)?))
            .await
    }

    async fn resume(&self, guest: GuestId) -> Result<()> {
        self.act_on(guest, access::resume).await
    }

    async fn start(&self, guest: GuestId) -> Result<()> {
        self.act_on(guest, guest::start).await
    }

    async fn shut_down(&self, guest: GuestId) -> Result<()> {
        self.act_on(guest, guest::shut_down).await
    }

    async fn suspend(&self, guest: GuestId) -> Result<()> {
        self.act_on(guest, guest::suspend).await
    }

    async fn set_autostart(&self, guest: GuestId, autostart: bool) -> Result<()> {
        self.act_on(guest, move |domain| domain.set_autostart(autostart)).await
    }

    async fn define(&self, inactive_xml: &str) -> Result<()> {
        let xml = inactive_xml.to_owned();
        self.acts.call(move |connection| Domain::define(connection, &xml)).await
    }

    async fn undefine(&self, guest: GuestId) -> Result<()> {
        let undefine = move |connection: &Arc<Connection>| match Domain::find(connection, guest)? {
            Some(domain) => guest::undefine(&domain),
            None => Ok(()),
        };
        self.acts.call(undefine).await
    }

    async fn begin(&self, request: BeginRequest) -> Result<Box<dyn Outgoing>> {
        let (uri, calls) = (self.uri.clone(), migration_calls()?);
        let (looks, acts) = (Arc::clone(&self.looks), Arc::clone(&self.acts));
        let begin = move || LibvirtOutgoing::begin(&uri, calls, looks, acts, &request);
        Ok(Box::new(on_own_thread("libvirt-begin", begin).await?))
    }

    async fn take_up(&self, request: BeginRequest) -> Result<Box<dyn Outgoing>> {
        let (uri, calls) = (self.uri.clone(), migration_calls()?);
        let (looks, acts) = (Arc::clone(&self.looks), Arc::clone(&self.acts));
        let take_up = move || LibvirtOutgoing::take_up(&uri, calls, looks, acts, &request);
        Ok(Box::new(on_own_thread("libvirt-take-up", take_up).await?))
    }

    async fn prepare(&self, request: PrepareRequest) -> Result<Box<dyn Incoming>> {
        let (uri, calls) = (self.uri.clone(), migration_calls()?);
        let prepare = move || LibvirtIncoming::prepare(&uri, calls, request);
        Ok(Box::new(on_own_thread("libvirt-prepare", prepare).await?))
    }

    fn events(&self) -> broadcast::Receiver<GuestEvent> {
        self.monitor.events()
    }
}

fn migration_calls() -> Result<&'static FiveCalls> {
    five_calls().map_err(|message| own_error(ErrorClass::Unfit, "NO_FIVE_CALLS", message))
}

/// The kernel's limit for a socket's path.
const LONGEST_SOCKET: usize = 107;

/// A socket's path as libvirt wants it.
fn unix_uri(socket: &Path) -> Result<String> {
    let unfit = || {
        let message = format!("{} is no path for a migration socket", socket.display());
        own_error(ErrorClass::UserMustAct, "SOCKET_PATH", message)
    };
    // libvirt reads it as a URI: what a URI would have to escape is refused instead.
    let plain = |c: char| c.is_ascii_alphanumeric() || "/-._~".contains(c);
    let fits = |path: &&str| path.starts_with('/') && path.len() <= LONGEST_SOCKET && path.chars().all(plain);
    let path = socket.to_str().filter(fits).ok_or_else(unfit)?;
    Ok(format!("unix://{path}"))
}
