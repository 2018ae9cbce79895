//! What a guest writes, as QEMU samples it: the two calls that `virt-sys` only declares.

use std::ffi::c_int;

use super::error::Call;
use super::params::{Values, read};
use super::{Domain, own_error};
use crate::hypervisor::{ErrorClass, Result};

/// What is asked for in one go: the sampling, and how much of the host's memory the guest takes.
const WANTED: u32 = virt_sys::VIR_DOMAIN_STATS_DIRTYRATE | virt_sys::VIR_DOMAIN_STATS_BALLOON;

impl Domain {
    /// Begins to sample, for so many seconds; returns at once. By pages: other modes slow the guest down.
    pub(in crate::libvirt) fn start_sampling(&self, seconds: c_int) -> Result<()> {
        let mode = virt_sys::VIR_DOMAIN_DIRTYRATE_MODE_PAGE_SAMPLING;
        // SAFETY: the handle is ours.
        let done = unsafe { virt_sys::virDomainStartDirtyRateCalc(self.raw(), seconds, mode) };
        self.connection().check(done, Call::Look).map(drop)
    }

    /// How the sampling is, and the guest's memory. Does not wait for a job: then less is said.
    pub(in crate::libvirt) fn sampled(&self) -> Result<Values> {
        let mut list = [self.raw(), std::ptr::null_mut()];
        let mut records: *mut virt_sys::virDomainStatsRecordPtr = std::ptr::null_mut();
        let flags = virt_sys::VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT;
        // SAFETY: the list ends with null, the handle and the target are ours.
        let count = unsafe { virt_sys::virDomainListGetStats(list.as_mut_ptr(), WANTED, &raw mut records, flags) };
        let count = self.connection().check(count, Call::Look)?;
        let values = (count > 0 && !records.is_null()).then(|| {
            // SAFETY: libvirt says that there is a first record; its parameters fit their number.
            unsafe {
                let first = *records;
                read((*first).params, (*first).nparams)
            }
        });
        // SAFETY: the list is libvirt's and not used again; null is allowed.
        unsafe { virt_sys::virDomainStatsRecordListFree(records) };
        values.ok_or_else(|| own_error(ErrorClass::NoGuest, "NO_STATS", "libvirt says nothing of the guest"))
    }
}
