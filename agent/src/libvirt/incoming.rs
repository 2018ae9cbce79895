//! The destination's side of one migration: Prepare and Finish on a connection of its own.
//!
//! ```text
//! prepare ──▶ waiting copy ──finish──▶ guest in place (still, unless it may go post-copy)
//!                  ├──cancel──▶ nothing
//!                  └─ dropped: the connection closes, libvirt destroys the waiting copy
//! ```
//! The copy is told once how it goes on: a second Finish after an error inside the first could kill a guest
//! that runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use drover_proto::ids::GuestId;

use super::flags::{Side, migrate_flags, migrate_params};
use super::raw::{Connection, Domain, FiveCalls, Params, own_error};
use super::threads::on_own_thread;
use super::{guest, unix_uri};
use crate::hypervisor::{
    Cookie, ErrorClass, GuestState, HypervisorError, Incoming, MigrateFlags, PrepareRequest, Result,
};

pub(super) struct LibvirtIncoming {
    calls: &'static FiveCalls,
    connection: Arc<Connection>,
    guest: GuestId,
    name: String,
    flags: MigrateFlags,
    cookie: Cookie,
    /// Finish was called, one way or the other.
    told: AtomicBool,
}

impl LibvirtIncoming {
    /// Prepare3 on a new connection. Blocks.
    pub(super) fn prepare(uri: &str, calls: &'static FiveCalls, request: PrepareRequest) -> Result<Self> {
        let connection = Connection::open(uri)?;
        let flags = migrate_flags(&request.flags, Side::Destination);
        let cookie = calls
            .prepare(&connection, &prepare_params(&request)?, &request.cookie, flags)
            .map_err(|error| unfit_if_nothing_is_there(&connection, request.guest, error))?;
        let PrepareRequest { guest, name, flags, .. } = request;
        Ok(Self {
            calls,
            connection,
            guest,
            name,
            flags,
            cookie,
            told: AtomicBool::new(false),
        })
    }

    async fn tell(&self, cookie: Cookie, cancelled: bool) -> Result<Cookie> {
        if self.told.swap(true, Ordering::SeqCst) {
            let message = "the waiting copy was told before how it goes on";
            return Err(own_error(ErrorClass::Ambiguous, "FINISH_TWICE", message));
        }
        let (calls, connection, name) = (self.calls, Arc::clone(&self.connection), self.name.clone());
        let flags = migrate_flags(&self.flags, Side::Destination);
        on_own_thread("libvirt-finish", move || {
            calls.finish(&connection, &name, &cookie, flags, cancelled)
        })
        .await
    }
}

#[async_trait]
impl Incoming for LibvirtIncoming {
    fn cookie(&self) -> &Cookie {
        &self.cookie
    }

    async fn finish(&self, cookie: &Cookie) -> Result<Cookie> {
        self.tell(cookie.clone(), false).await
    }

    async fn cancel(&self) -> Result<()> {
        let told = self.tell(Cookie::default(), true).await;
        let Err(error) = told else { return Ok(()) };
        // libvirt answers a cancel with an error even where it did what was asked: what is there now decides.
        let (connection, guest) = (Arc::clone(&self.connection), self.guest);
        on_own_thread("libvirt-cancel", move || match Domain::find(&connection, guest)? {
            Some(domain) if guest::state(&domain)?.is_active() => Err(error),
            Some(_) | None => Ok(()),
        })
        .await
    }
}

/// libvirt has no code for most reasons why QEMU does not start. When it answered and there is no copy, then
/// nothing happened, and another host may do better.
fn unfit_if_nothing_is_there(connection: &Arc<Connection>, guest: GuestId, error: HypervisorError) -> HypervisorError {
    if error.class != ErrorClass::Ambiguous || !connection.is_alive() {
        return error;
    }
    let state = Domain::find(connection, guest).and_then(|found| found.as_ref().map(guest::state).transpose());
    match state {
        Ok(None | Some(GuestState::ShutOff)) => HypervisorError {
            class: ErrorClass::Unfit,
            ..error
        },
        Ok(Some(_)) | Err(_) => error,
    }
}

fn prepare_params(request: &PrepareRequest) -> Result<Params> {
    let params = migrate_params(&request.flags)?
        .text(virt_sys::VIR_MIGRATE_PARAM_DEST_NAME, &request.name)?
        .text(virt_sys::VIR_MIGRATE_PARAM_DEST_XML, &request.xml)?
        .text(virt_sys::VIR_MIGRATE_PARAM_URI, &unix_uri(&request.socket)?)?;
    if request.flags.copied.is_none() {
        return Ok(params);
    }
    params.text(virt_sys::VIR_MIGRATE_PARAM_DISKS_URI, &unix_uri(&request.disks_socket)?)
}
