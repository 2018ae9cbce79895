//! The safe layer over libvirt's C interface, and the only unsafe code of the agent.
//!
//! Everything here blocks and runs on the caller's thread. libvirt keeps its last error per thread, so each
//! wrapper reads it before it returns; what comes out is a [`HypervisorError`] or plain Rust data.
//!
//! `virt-sys` is used for declarations only. The `virt` crate on top of it is not: it swallows errors, leaks
//! typed parameters, and its Drop impls panic.

mod callbacks;
mod connection;
mod cpu;
mod dirty_rate;
mod domain;
mod error;
mod five_calls;
mod params;

pub(super) use callbacks::{RawEvent, Sink, Watch};
pub(super) use connection::Connection;
pub(super) use cpu::Compared;
pub(super) use domain::{BlockJob, Domain};
pub(super) use error::own_error;
pub(super) use five_calls::{FiveCalls, five_calls};
pub(super) use params::{Params, Value, Values};

use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::OnceLock;

use crate::hypervisor::{ErrorClass, Result};

/// Prepares libvirt for this process: once, and before any connection is opened.
///
/// libvirt's default is to print every error to stderr; the event loop has to exist before a connection does.
fn initialise() -> Result<()> {
    static DONE: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let done = DONE.get_or_init(|| {
        // SAFETY: no arguments; libvirt allows the call at any time and more than once.
        if unsafe { virt_sys::virInitialize() } < 0 {
            return Err("libvirt does not initialise".to_owned());
        }
        // SAFETY: the handler is a function without state that lives for ever.
        unsafe { virt_sys::virSetErrorFunc(std::ptr::null_mut(), Some(keep_quiet)) };
        // SAFETY: called once, before the first connection, as the documentation demands.
        if unsafe { virt_sys::virEventRegisterDefaultImpl() } < 0 {
            return Err("libvirt's event loop cannot be registered".to_owned());
        }
        std::thread::Builder::new()
            .name("libvirt-events".to_owned())
            .spawn(run_event_loop)
            .map(drop)
            .map_err(|error| format!("no thread for libvirt's event loop: {error}"))
    });
    done.clone()
        .map_err(|message| own_error(ErrorClass::Unavailable, "NOT_INITIALISED", message))
}

extern "C" fn keep_quiet(_: *mut c_void, _: virt_sys::virErrorPtr) {}

fn run_event_loop() {
    loop {
        // SAFETY: the default implementation was registered, and this is the only thread that runs it.
        if unsafe { virt_sys::virEventRunDefaultImpl() } < 0 {
            tracing::error!("libvirt's event loop failed, trying again in a second");
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
    }
}

/// A string for libvirt. No value that Drover passes on may contain NUL.
fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| {
        own_error(
            ErrorClass::UserMustAct,
            "NUL_IN_TEXT",
            "a text for libvirt contains a NUL byte",
        )
    })
}

/// Copies and frees a string that libvirt allocated; null gives an empty one.
///
/// # Safety
/// `text` is null or a NUL-terminated string from libvirt that the caller owns.
unsafe fn take_string(text: *mut c_char) -> String {
    // SAFETY: the caller's promise.
    let copy = unsafe { copy_string(text) };
    // SAFETY: libvirt allocates with malloc; free accepts null.
    unsafe { libc::free(text.cast()) };
    copy
}

/// Copies a string that libvirt keeps; null gives an empty one.
///
/// # Safety
/// `text` is null or a NUL-terminated string that stays for the length of this call.
unsafe fn copy_string(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and terminated by the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
