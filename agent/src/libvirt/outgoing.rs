//! The source's side of one migration: Begin, Perform, Confirm on a connection of its own.
//!
//! ```text
//! begin ──▶ Begun ──perform──▶ all sent, guest still ──confirm_moved──▶ copy gone
//!              │                      └──confirm_cancelled──▶ copy as libvirt left it
//!              └─ dropped: the connection closes, libvirt lets go of the job, the guest runs on
//! ```
//! A handle that is dropped while it performs aborts first: the thread in Perform holds the connection, and
//! libvirt would not let go before it returns.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use drover_proto::ids::GuestId;

use super::disk_copies::DiskCopies;
use super::flags::{Side, migrate_flags, migrate_params};
use super::raw::{Connection, Domain, FiveCalls, Params, own_error};
use super::threads::{Pool, on_own_thread};
use super::{guest, unix_uri};
use crate::hypervisor::{
    BeginRequest, Begun, Cookie, ErrorClass, GuestState, HypervisorError, JobStats, MigrateFlags, Outgoing,
    PerformRequest, Result,
};

pub(super) struct LibvirtOutgoing {
    calls: &'static FiveCalls,
    domain: Arc<Domain>,
    flags: MigrateFlags,
    begun: Begun,
    progress: Arc<Progress>,
    disks: Arc<DiskCopies>,
    guest: GuestId,
    // While Perform holds this migration's connection, everything else goes through these.
    looks: Arc<Pool>,
    acts: Arc<Pool>,
}

/// How far Perform has come; shared with its thread.
#[derive(Debug, Default)]
struct Progress {
    started: AtomicBool,
    ended: AtomicBool,
    /// Nothing may start to send any more.
    aborted: AtomicBool,
}

impl Progress {
    fn is_performing(&self) -> bool {
        self.started.load(Ordering::SeqCst) && !self.ended.load(Ordering::SeqCst)
    }
}

impl LibvirtOutgoing {
    /// Begin3 on a new connection. Blocks.
    pub(super) fn begin(
        uri: &str,
        calls: &'static FiveCalls,
        looks: Arc<Pool>,
        acts: Arc<Pool>,
        request: &BeginRequest,
    ) -> Result<Self> {
        let domain = Domain::get(&Connection::open(uri)?, request.guest)?;
        let flags = migrate_flags(&request.flags, Side::Source);
        let begun = calls
            .begin(&domain, &migrate_params(&request.flags)?, flags)
            .map_err(|error| busy_if_it_has_a_job(&domain, error))?;
        Ok(Self::new(calls, looks, acts, domain, request, begun))
    }

    /// A connection to a job that libvirt kept when its owner went: Confirm needs no Begin there. Blocks.
    pub(super) fn take_up(
        uri: &str,
        calls: &'static FiveCalls,
        looks: Arc<Pool>,
        acts: Arc<Pool>,
        request: &BeginRequest,
    ) -> Result<Self> {
        let domain = Domain::get(&Connection::open(uri)?, request.guest)?;
        if guest::state(&domain)? != GuestState::PausedPostCopyFailed {
            let message = "post-copy of this guest has not broken";
            return Err(own_error(ErrorClass::Busy, "NOT_BROKEN", message));
        }
        let nothing = Begun {
            xml: String::new(),
            cookie: Cookie::default(),
        };
        Ok(Self::new(calls, looks, acts, domain, request, nothing))
    }

    fn new(
        calls: &'static FiveCalls,
        looks: Arc<Pool>,
        acts: Arc<Pool>,
        domain: Domain,
        request: &BeginRequest,
        begun: Begun,
    ) -> Self {
        Self {
            calls,
            domain: Arc::new(domain),
            flags: request.flags.clone(),
            begun,
            progress: Arc::default(),
            disks: Arc::new(DiskCopies::new(request.flags.copied.as_ref())),
            guest: request.guest,
            looks,
            acts,
        }
    }

    fn libvirt_flags(&self) -> u32 {
        migrate_flags(&self.flags, Side::Source)
    }

    /// Changes the job besides Perform.
    async fn act(&self, act: impl FnOnce(&Domain) -> Result<()> + Send + 'static) -> Result<()> {
        let guest = self.guest;
        self.acts
            .call(move |connection| act(&Domain::get(connection, guest)?))
            .await
    }

    async fn confirm(&self, cookie: Cookie, cancelled: bool) -> Result<()> {
        let (calls, domain, flags) = (self.calls, Arc::clone(&self.domain), self.libvirt_flags());
        let confirm = move || match calls.confirm(&domain, &cookie, flags, cancelled) {
            // A Perform that failed has ended the job by itself, and there is nothing left to cancel.
            Err(_) if cancelled && guest::job(&domain)?.is_none() => Ok(()),
            answer => answer,
        };
        on_own_thread("libvirt-confirm", confirm).await
    }
}

#[async_trait]
impl Outgoing for LibvirtOutgoing {
    fn begun(&self) -> &Begun {
        &self.begun
    }

    async fn perform(&self, request: PerformRequest) -> Result<Cookie> {
        let params = perform_params(&self.flags, &request)?;
        if self.progress.started.swap(true, Ordering::SeqCst) {
            let message = "this migration was told to send before";
            return Err(own_error(ErrorClass::UserMustAct, "PERFORM_TWICE", message));
        }
        let (calls, domain, flags) = (self.calls, Arc::clone(&self.domain), self.libvirt_flags());
        let progress = Arc::clone(&self.progress);
        on_own_thread("libvirt-perform", move || {
            let ended = Ended(progress);
            if ended.0.aborted.load(Ordering::SeqCst) {
                return Err(own_error(
                    ErrorClass::Aborted,
                    "ABORTED",
                    "aborted before anything was sent",
                ));
            }
            if let Some(max) = request.max_downtime {
                domain.set_max_downtime(milliseconds(max))?;
            }
            calls.perform(&domain, &params, &request.cookie, flags)
        })
        .await
    }

    async fn abort(&self) -> Result<()> {
        self.progress.aborted.store(true, Ordering::SeqCst);
        self.act(Domain::abort_job).await
    }

    async fn start_post_copy(&self) -> Result<()> {
        self.act(Domain::start_post_copy).await
    }

    async fn job(&self) -> Result<Option<JobStats>> {
        let (guest, disks) = (self.guest, Arc::clone(&self.disks));
        let look = move |connection: &Arc<Connection>| {
            let domain = Domain::get(connection, guest)?;
            let job = guest::job(&domain)?;
            Ok(job.map(|stats| JobStats {
                disks: disks.look(&domain),
                ..stats
            }))
        };
        self.looks.call(look).await
    }

    async fn completed_job(&self) -> Result<Option<JobStats>> {
        let guest = self.guest;
        let look = move |connection: &Arc<Connection>| {
            let domain = Domain::get(connection, guest)?;
            // libvirt calls it completed only in Confirm; until then it is the job that runs, all sent.
            Ok(guest::job(&domain)?.or(guest::completed_job(&domain)?))
        };
        self.looks.call(look).await
    }

    async fn set_max_downtime(&self, max: Duration) -> Result<()> {
        self.act(move |domain| domain.set_max_downtime(milliseconds(max))).await
    }

    async fn set_bandwidth(&self, bytes_per_second: u64) -> Result<()> {
        self.act(move |domain| domain.set_max_speed(mebibytes(bytes_per_second)))
            .await
    }

    async fn confirm_moved(&self, cookie: &Cookie) -> Result<()> {
        self.confirm(cookie.clone(), false).await
    }

    async fn confirm_cancelled(&self) -> Result<()> {
        self.confirm(Cookie::default(), true).await
    }
}

/// libvirt has one code for "never" and for "not while another migration runs".
fn busy_if_it_has_a_job(domain: &Domain, error: HypervisorError) -> HypervisorError {
    match guest::job(domain) {
        Ok(Some(_)) if error.class == ErrorClass::UserMustAct => HypervisorError {
            class: ErrorClass::Busy,
            ..error
        },
        Ok(_) | Err(_) => error,
    }
}

/// Marks the end of Perform, however it ends.
struct Ended(Arc<Progress>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::SeqCst);
    }
}

impl Drop for LibvirtOutgoing {
    fn drop(&mut self) {
        self.progress.aborted.store(true, Ordering::SeqCst);
        if !self.progress.is_performing() {
            return;
        }
        let (acts, guest, progress) = (Arc::clone(&self.acts), self.guest, Arc::clone(&self.progress));
        let thread = std::thread::Builder::new().name("libvirt-abort".to_owned());
        if let Err(error) = thread.spawn(move || abort_until_ended(&acts, guest, &progress)) {
            tracing::error!(%error, "no thread to abort a migration that was let go");
        }
    }
}

/// An abort that comes before QEMU has begun to send may be lost, so it is repeated. In post-copy nothing is
/// touched: the guest runs on the other side.
fn abort_until_ended(acts: &Pool, guest: GuestId, progress: &Progress) {
    let abort = |connection: &Arc<Connection>| {
        let domain = Domain::get(connection, guest)?;
        let post_copy = guest::state(&domain)?.is_post_copy();
        if !post_copy {
            domain.abort_job()?;
        }
        Ok(post_copy)
    };
    while progress.is_performing() {
        match acts.call_blocking(abort) {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "abort of a migration that was let go"),
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}

fn perform_params(flags: &MigrateFlags, request: &PerformRequest) -> Result<Params> {
    let mut params = migrate_params(flags)?.text(virt_sys::VIR_MIGRATE_PARAM_URI, &unix_uri(&request.socket)?)?;
    if flags.copied.is_some() {
        params = params.text(virt_sys::VIR_MIGRATE_PARAM_DISKS_URI, &unix_uri(&request.disks_socket)?)?;
    }
    if let Some(xml) = &request.persistent_xml {
        params = params.text(virt_sys::VIR_MIGRATE_PARAM_PERSIST_XML, xml)?;
    }
    // In post-copy the guest here stands still.
    if flags.auto_converge && !flags.resume {
        let percent = |value: u32| i32::try_from(value.clamp(1, 99)).unwrap_or(99);
        params = params
            .int(
                virt_sys::VIR_MIGRATE_PARAM_AUTO_CONVERGE_INITIAL,
                percent(request.throttle.initial),
            )?
            .int(
                virt_sys::VIR_MIGRATE_PARAM_AUTO_CONVERGE_INCREMENT,
                percent(request.throttle.increment),
            )?;
    }
    if request.bandwidth > 0 {
        params = params.unsigned_long(virt_sys::VIR_MIGRATE_PARAM_BANDWIDTH, mebibytes(request.bandwidth))?;
    }
    Ok(params)
}

/// MiB/s, rounded up: a limit may not become "none".
fn mebibytes(bytes: u64) -> u64 {
    bytes.div_ceil(1024 * 1024)
}

/// Whole milliseconds, at least one.
fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::super::raw::Value;
    use super::*;
    use crate::hypervisor::CopiedDisks;
    use crate::hypervisor::Throttle;

    #[test]
    fn a_small_limit_does_not_become_none() {
        assert_eq!(
            (mebibytes(0), mebibytes(1), mebibytes(1 << 20), mebibytes((1 << 20) + 1)),
            (0, 1, 1, 2)
        );
        assert_eq!(milliseconds(Duration::from_micros(10)), 1);
    }

    #[test]
    fn perform_names_the_sources_own_socket_and_the_definition() {
        let flags = MigrateFlags {
            persistent: true,
            post_copy: false,
            auto_converge: false,
            storage_proved: false,
            parallel: 2,
            zstd: false,
            copied: CopiedDisks::new(vec!["vdb".to_owned()]),
            detect_zeroes: false,
            resume: false,
        };
        let request = PerformRequest {
            cookie: Cookie::default(),
            socket: "/run/drover/m/source.sock".into(),
            disks_socket: "/run/drover/m/disks.sock".into(),
            persistent_xml: Some("<domain/>".to_owned()),
            bandwidth: 10 << 20,
            max_downtime: None,
            throttle: Throttle {
                initial: 35,
                increment: 10,
            },
        };
        let values = perform_params(&flags, &request).unwrap().values();
        assert_eq!(
            values["migrate_uri"],
            Value::Text("unix:///run/drover/m/source.sock".to_owned())
        );
        assert_eq!(values["persistent_xml"], Value::Text("<domain/>".to_owned()));
        assert_eq!(
            values["disks_uri"],
            Value::Text("unix:///run/drover/m/disks.sock".to_owned())
        );
        assert_eq!(values["migrate_disks"], Value::Text("vdb".to_owned()));
        let shared = MigrateFlags { copied: None, ..flags };
        assert!(
            !perform_params(&shared, &request)
                .unwrap()
                .values()
                .contains_key("disks_uri")
        );
        assert_eq!(values["bandwidth"], Value::Number(10));
        assert_eq!(values["parallel.connections"], Value::Number(2));
        assert!(!values.contains_key("auto_converge.initial"), "not allowed");
        let allowed = MigrateFlags {
            auto_converge: true,
            ..flags
        };
        let values = perform_params(&allowed, &request).unwrap().values();
        assert_eq!(values["auto_converge.initial"], Value::Number(35));
        assert_eq!(values["auto_converge.increment"], Value::Number(10));
    }
}
