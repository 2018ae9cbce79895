//! Events: libvirt calls back on its event loop's thread, and what it says is handed on as plain data.
//!
//! A callback must never wait, and never call libvirt. It copies what it was given and passes it to a function
//! of the same manners.

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use drover_proto::ids::GuestId;

use super::Connection;
use super::domain::id_of;
use super::error::Call;
use super::params::{Values, read};
use crate::hypervisor::Result;

/// What libvirt called back with.
#[derive(Clone, Debug)]
pub(in crate::libvirt) enum RawEvent {
    /// `VIR_DOMAIN_EVENT_…` and its detail.
    Lifecycle {
        guest: GuestId,
        event: u32,
        detail: u32,
    },
    Iteration {
        guest: GuestId,
        iteration: u64,
    },
    JobCompleted {
        guest: GuestId,
        stats: Values,
    },
    /// The connection is lost.
    Closed,
}

/// Where events go. Must not block.
pub(in crate::libvirt) type Sink = Arc<dyn Fn(RawEvent) + Send + Sync>;

/// A connection that is being watched; deregistered when dropped, before the connection is let go.
pub(in crate::libvirt) struct Watch {
    connection: Arc<Connection>,
    callbacks: Vec<c_int>,
}

type Generic = unsafe extern "C" fn(virt_sys::virConnectPtr, virt_sys::virDomainPtr, *mut c_void);
type Lifecycle =
    unsafe extern "C" fn(virt_sys::virConnectPtr, virt_sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int;
type Iteration = unsafe extern "C" fn(virt_sys::virConnectPtr, virt_sys::virDomainPtr, c_int, *mut c_void);
type JobCompleted = unsafe extern "C" fn(
    virt_sys::virConnectPtr,
    virt_sys::virDomainPtr,
    virt_sys::virTypedParameterPtr,
    c_int,
    *mut c_void,
);

impl Watch {
    /// Registers for all guests. A hypervisor that lacks one kind of event goes without it.
    pub(in crate::libvirt) fn start(connection: Arc<Connection>, sink: &Sink) -> Result<Self> {
        let opaque = pack(sink);
        // SAFETY: the connection is open; `opaque` is freed by `unpack`, once, by libvirt.
        let done =
            unsafe { virt_sys::virConnectRegisterCloseCallback(connection.raw(), Some(closed), opaque, Some(unpack)) };
        if done < 0 {
            let error = connection.failed(Call::Look);
            // SAFETY: not registered, so libvirt will not free it.
            unsafe { unpack(opaque) };
            return Err(error);
        }
        let mut watch = Self {
            connection,
            callbacks: Vec::new(),
        };
        // SAFETY: libvirt calls each with the arguments of its kind of event; that is what the generic type hides.
        let kinds: [(u32, Generic); 3] = unsafe {
            [
                (
                    virt_sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                    std::mem::transmute::<Lifecycle, Generic>(lifecycle),
                ),
                (
                    virt_sys::VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION,
                    std::mem::transmute::<Iteration, Generic>(iteration),
                ),
                (
                    virt_sys::VIR_DOMAIN_EVENT_ID_JOB_COMPLETED,
                    std::mem::transmute::<JobCompleted, Generic>(job_completed),
                ),
            ]
        };
        for (kind, callback) in kinds {
            watch.register(kind, callback, sink)?;
        }
        Ok(watch)
    }

    fn register(&mut self, kind: u32, callback: Generic, sink: &Sink) -> Result<()> {
        let (opaque, every_guest) = (pack(sink), std::ptr::null_mut());
        let (conn, kind) = (self.connection.raw(), kind.cast_signed());
        // SAFETY: the connection is open; `opaque` is freed by `unpack`, once, by libvirt.
        let id = unsafe {
            virt_sys::virConnectDomainEventRegisterAny(conn, every_guest, kind, Some(callback), opaque, Some(unpack))
        };
        match self.connection.check(id, Call::Look) {
            Ok(id) => {
                self.callbacks.push(id);
                Ok(())
            }
            Err(error) => {
                // SAFETY: not registered, so libvirt will not free it.
                unsafe { unpack(opaque) };
                Err(error)
            }
        }
    }

    pub(in crate::libvirt) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for &id in &self.callbacks {
            // SAFETY: the connection is open, the id is one of its callbacks. It may fail on a lost connection.
            unsafe { virt_sys::virConnectDomainEventDeregisterAny(self.connection.raw(), id) };
        }
        // SAFETY: the callback is the one that was registered.
        unsafe { virt_sys::virConnectUnregisterCloseCallback(self.connection.raw(), Some(closed)) };
    }
}

fn pack(sink: &Sink) -> *mut c_void {
    Box::into_raw(Box::new(Arc::clone(sink))).cast()
}

/// libvirt frees what it was given to pass on.
unsafe extern "C" fn unpack(opaque: *mut c_void) {
    // SAFETY: made by `pack`, and given back once.
    drop(unsafe { Box::from_raw(opaque.cast::<Sink>()) });
}

/// Hands on an event of the guest that `domain` names.
///
/// # Safety
/// `opaque` was made by `pack` and is not freed yet; `domain` is valid for this call.
unsafe fn hand_on(domain: virt_sys::virDomainPtr, opaque: *mut c_void, event: impl FnOnce(GuestId) -> RawEvent) {
    // SAFETY: the caller's promise.
    let (sink, guest) = unsafe { (&*opaque.cast::<Sink>(), id_of(domain)) };
    if let Some(guest) = guest {
        sink(event(guest));
    }
}

unsafe extern "C" fn lifecycle(
    _: virt_sys::virConnectPtr,
    domain: virt_sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    let (event, detail) = (event.cast_unsigned(), detail.cast_unsigned());
    // SAFETY: libvirt passes the registered pointer and a valid handle.
    unsafe { hand_on(domain, opaque, |guest| RawEvent::Lifecycle { guest, event, detail }) };
    0
}

unsafe extern "C" fn iteration(
    _: virt_sys::virConnectPtr,
    domain: virt_sys::virDomainPtr,
    iteration: c_int,
    opaque: *mut c_void,
) {
    let iteration = u64::try_from(iteration).unwrap_or(0);
    // SAFETY: libvirt passes the registered pointer and a valid handle.
    unsafe { hand_on(domain, opaque, |guest| RawEvent::Iteration { guest, iteration }) };
}

unsafe extern "C" fn job_completed(
    _: virt_sys::virConnectPtr,
    domain: virt_sys::virDomainPtr,
    params: virt_sys::virTypedParameterPtr,
    count: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt passes an array of that length.
    let stats = unsafe { read(params, count) };
    // SAFETY: libvirt passes the registered pointer and a valid handle.
    unsafe { hand_on(domain, opaque, |guest| RawEvent::JobCompleted { guest, stats }) };
}

unsafe extern "C" fn closed(_: virt_sys::virConnectPtr, _reason: c_int, opaque: *mut c_void) {
    // SAFETY: libvirt passes the registered pointer.
    let sink = unsafe { &*opaque.cast::<Sink>() };
    sink(RawEvent::Closed);
}
