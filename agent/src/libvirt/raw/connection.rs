//! One connection to libvirtd. Shared by reference counting; closing never blocks the one who lets go.

use std::ffi::{c_int, c_ulong};
use std::ptr::NonNull;
use std::sync::Arc;

use super::error::{Call, last_error, read_last};
use super::{c_string, copy_string, initialise, take_string};
use crate::hypervisor::{HypervisorError, Result};

type Raw = NonNull<virt_sys::virConnect>;

/// An open connection. The last one who lets go closes it, on a thread made for that: closing is a round trip
/// to libvirtd, and what hangs on it (job locks, waiting copies) must be let go also when a future is dropped.
#[derive(Debug)]
pub(in crate::libvirt) struct Connection {
    raw: Raw,
}

// SAFETY: libvirt's connections may be used from any thread, by several at a time.
unsafe impl Send for Connection {}
// SAFETY: as above.
unsafe impl Sync for Connection {}

impl Connection {
    /// Opens a connection of its own.
    pub(in crate::libvirt) fn open(uri: &str) -> Result<Arc<Self>> {
        initialise()?;
        let uri = c_string(uri)?;
        // SAFETY: a terminated string that outlives the call.
        let raw = unsafe { virt_sys::virConnectOpen(uri.as_ptr()) };
        match NonNull::new(raw) {
            Some(raw) => Ok(Arc::new(Self { raw })),
            None => Err(last_error(Call::Look, false)),
        }
    }

    /// Lets libvirt notice a daemon that hangs: the connection is closed after `interval * count` seconds of
    /// silence. Only for connections on which nothing hangs.
    pub(in crate::libvirt) fn keep_alive(&self, interval: i32, count: u32) -> Result<()> {
        // SAFETY: the connection is open; the event loop runs.
        let done = unsafe { virt_sys::virConnectSetKeepAlive(self.raw(), interval, count) };
        self.check(done, Call::Look).map(drop)
    }

    /// Whether the connection still stands. Asks nobody: libvirtd's end closes it, or the keepalive.
    pub(in crate::libvirt) fn is_alive(&self) -> bool {
        // SAFETY: the connection is open.
        unsafe { virt_sys::virConnectIsAlive(self.raw()) == 1 }
    }

    pub(super) fn raw(&self) -> *mut virt_sys::virConnect {
        self.raw.as_ptr()
    }

    /// The error of the call on this connection that has just failed, on this thread.
    pub(super) fn failed(&self, call: Call) -> HypervisorError {
        // Copied first: the question whether the connection lives overwrites it.
        let said = read_last();
        said.classified(call, self.is_alive())
    }

    /// The result of a C call where a negative number is failure.
    pub(super) fn check(&self, result: c_int, call: Call) -> Result<c_int> {
        if result < 0 { Err(self.failed(call)) } else { Ok(result) }
    }

    /// libvirt's description of the host (XML).
    pub(in crate::libvirt) fn capabilities(&self) -> Result<String> {
        // SAFETY: the connection is open; the string is ours.
        let text = unsafe { virt_sys::virConnectGetCapabilities(self.raw()) };
        if text.is_null() {
            return Err(self.failed(Call::Look));
        }
        // SAFETY: a string from libvirt that we own.
        Ok(unsafe { take_string(text) })
    }

    pub(in crate::libvirt) fn hostname(&self) -> Result<String> {
        // SAFETY: the connection is open; the string is ours.
        let text = unsafe { virt_sys::virConnectGetHostname(self.raw()) };
        if text.is_null() {
            return Err(self.failed(Call::Look));
        }
        // SAFETY: a string from libvirt that we own.
        Ok(unsafe { take_string(text) })
    }

    /// The versions of libvirtd and of QEMU.
    pub(in crate::libvirt) fn versions(&self) -> Result<(u64, u64)> {
        let (mut libvirt, mut qemu): (c_ulong, c_ulong) = (0, 0);
        // SAFETY: the connection is open, the target is ours.
        let done = unsafe { virt_sys::virConnectGetLibVersion(self.raw(), &raw mut libvirt) };
        self.check(done, Call::Look)?;
        // SAFETY: as above.
        let done = unsafe { virt_sys::virConnectGetVersion(self.raw(), &raw mut qemu) };
        self.check(done, Call::Look)?;
        Ok((libvirt, qemu))
    }

    /// The number of the host's CPUs.
    pub(in crate::libvirt) fn cpus(&self) -> Result<u32> {
        // SAFETY: a plain C struct of numbers, for which zeroes are valid.
        let mut info: virt_sys::virNodeInfo = unsafe { std::mem::zeroed() };
        // SAFETY: the connection is open, the target is ours.
        let done = unsafe { virt_sys::virNodeGetInfo(self.raw(), &raw mut info) };
        self.check(done, Call::Look)?;
        Ok(info.cpus)
    }

    /// The names of the active networks; none where libvirt has no network driver.
    pub(in crate::libvirt) fn active_networks(&self) -> Result<Vec<String>> {
        let mut list: *mut virt_sys::virNetworkPtr = std::ptr::null_mut();
        let flags = virt_sys::VIR_CONNECT_LIST_NETWORKS_ACTIVE;
        // SAFETY: the connection is open, the target is ours.
        let count = unsafe { virt_sys::virConnectListAllNetworks(self.raw(), &raw mut list, flags) };
        if count < 0 && super::error::last_code() == virt_sys::VIR_ERR_NO_SUPPORT {
            return Ok(Vec::new());
        }
        let count = self.check(count, Call::Look)?;
        let mut names = Vec::new();
        for at in 0..usize::try_from(count).unwrap_or(0) {
            // SAFETY: libvirt says that the array has `count` elements.
            let network = unsafe { *list.add(at) };
            // SAFETY: a network handle of ours; the name lives as long as the handle.
            names.push(unsafe { copy_string(virt_sys::virNetworkGetName(network)) });
            // SAFETY: ours, and not used again.
            unsafe { virt_sys::virNetworkFree(network) };
        }
        // SAFETY: the array itself is malloc'ed and ours.
        unsafe { libc::free(list.cast()) };
        Ok(names)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        struct Last(Raw);
        // SAFETY: the pointer moves to one thread, which closes it.
        unsafe impl Send for Last {}
        impl Last {
            fn close(self) {
                // SAFETY: the last reference of ours; nobody uses it after this.
                unsafe { virt_sys::virConnectClose(self.0.as_ptr()) };
            }
        }
        let last = Last(self.raw);
        let closer = std::thread::Builder::new().name("libvirt-close".to_owned());
        if let Err(error) = closer.spawn(move || last.close()) {
            // Without a thread it is closed here: late is better than never.
            tracing::warn!(%error, "no thread to close a libvirt connection");
            Last(self.raw).close();
        }
    }
}
