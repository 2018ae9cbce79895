//! A handle of one guest on one connection. A handle is a name, not the guest: it outlives it.

use std::ffi::{c_int, c_uint};
use std::ptr::NonNull;
use std::sync::Arc;

use drover_proto::ids::GuestId;
use uuid::Uuid;

use super::error::{Call, last_code, own_error};
use super::params::{Params, Values};
use super::{Connection, c_string, copy_string, take_string};
use crate::hypervisor::{ErrorClass, Result};

#[derive(Debug)]
pub(in crate::libvirt) struct Domain {
    raw: NonNull<virt_sys::virDomain>,
    // Dropped after the handle is freed, so that the connection closes on its own thread.
    connection: Arc<Connection>,
}

// SAFETY: libvirt's handles may be used from any thread, by several at a time.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

/// What `virDomainGetInfo` says of a guest's size.
#[derive(Clone, Copy, Debug)]
pub(in crate::libvirt) struct Size {
    /// Bytes, at most.
    pub(in crate::libvirt) memory: u64,
    pub(in crate::libvirt) vcpus: u32,
}

/// What `virDomainGetBlockJobInfo` says of a block job: bytes.
#[derive(Clone, Copy, Debug)]
pub(in crate::libvirt) struct BlockJob {
    pub(in crate::libvirt) done: u64,
    pub(in crate::libvirt) end: u64,
}

impl Domain {
    /// The guest with this id; `None` is libvirt's word that there is none.
    pub(in crate::libvirt) fn find(connection: &Arc<Connection>, guest: GuestId) -> Result<Option<Self>> {
        let uuid = guest.as_uuid().as_bytes().as_ptr();
        // SAFETY: the connection is open; libvirt reads 16 bytes.
        let raw = unsafe { virt_sys::virDomainLookupByUUID(connection.raw(), uuid) };
        Self::found(connection, raw)
    }

    pub(in crate::libvirt) fn find_by_name(connection: &Arc<Connection>, name: &str) -> Result<Option<Self>> {
        let name = c_string(name)?;
        // SAFETY: the connection is open; the name is terminated.
        let raw = unsafe { virt_sys::virDomainLookupByName(connection.raw(), name.as_ptr()) };
        Self::found(connection, raw)
    }

    /// As [`Self::find`], where the guest has to be there.
    pub(in crate::libvirt) fn get(connection: &Arc<Connection>, guest: GuestId) -> Result<Self> {
        Self::find(connection, guest)?.ok_or_else(|| {
            own_error(
                ErrorClass::NoGuest,
                "NO_GUEST",
                format!("there is no guest {guest} here"),
            )
        })
    }

    fn found(connection: &Arc<Connection>, raw: virt_sys::virDomainPtr) -> Result<Option<Self>> {
        match NonNull::new(raw) {
            Some(raw) => Ok(Some(Self {
                raw,
                connection: Arc::clone(connection),
            })),
            None if last_code() == virt_sys::VIR_ERR_NO_DOMAIN => Ok(None),
            None => Err(connection.failed(Call::Look)),
        }
    }

    /// Every guest that libvirt knows, active or not.
    pub(in crate::libvirt) fn all(connection: &Arc<Connection>) -> Result<Vec<Self>> {
        let mut list: *mut virt_sys::virDomainPtr = std::ptr::null_mut();
        // SAFETY: the connection is open, the target is ours.
        let count = unsafe { virt_sys::virConnectListAllDomains(connection.raw(), &raw mut list, 0) };
        let count = connection.check(count, Call::Look)?;
        let all = (0..usize::try_from(count).unwrap_or(0))
            // SAFETY: libvirt says that the array has `count` elements; each handle is ours.
            .filter_map(|at| NonNull::new(unsafe { *list.add(at) }))
            .map(|raw| Self {
                raw,
                connection: Arc::clone(connection),
            })
            .collect();
        // SAFETY: the array itself is malloc'ed and ours.
        unsafe { libc::free(list.cast()) };
        Ok(all)
    }

    /// Defines a guest, or replaces its definition.
    pub(in crate::libvirt) fn define(connection: &Arc<Connection>, xml: &str) -> Result<()> {
        let xml = c_string(xml)?;
        // SAFETY: the connection is open; the text is terminated.
        let raw = unsafe { virt_sys::virDomainDefineXMLFlags(connection.raw(), xml.as_ptr(), 0) };
        match NonNull::new(raw) {
            Some(raw) => {
                drop(Self {
                    raw,
                    connection: Arc::clone(connection),
                });
                Ok(())
            }
            None => Err(connection.failed(Call::Act)),
        }
    }

    /// Starts a guest that has no definition and goes when it ends.
    pub(in crate::libvirt) fn create(connection: &Arc<Connection>, xml: &str, flags: c_uint) -> Result<Self> {
        let xml = c_string(xml)?;
        // SAFETY: the connection is open; the text is terminated.
        let raw = unsafe { virt_sys::virDomainCreateXML(connection.raw(), xml.as_ptr(), flags) };
        let raw = NonNull::new(raw).ok_or_else(|| connection.failed(Call::Act))?;
        Ok(Self {
            raw,
            connection: Arc::clone(connection),
        })
    }

    /// Ends a guest at once. Only for one that this agent has made for itself: never for a copy of a user's.
    pub(in crate::libvirt) fn destroy(&self) -> Result<()> {
        // SAFETY: the handle is ours.
        let done = unsafe { virt_sys::virDomainDestroy(self.raw()) };
        self.check(done, Call::Act).map(drop)
    }

    pub(super) fn raw(&self) -> *mut virt_sys::virDomain {
        self.raw.as_ptr()
    }

    pub(in crate::libvirt) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    fn check(&self, result: c_int, call: Call) -> Result<c_int> {
        self.connection.check(result, call)
    }

    pub(in crate::libvirt) fn id(&self) -> Result<GuestId> {
        // SAFETY: the handle is ours.
        unsafe { id_of(self.raw()) }
            .ok_or_else(|| own_error(ErrorClass::Ambiguous, "NO_UUID", "libvirt names a guest without a UUID"))
    }

    pub(in crate::libvirt) fn name(&self) -> String {
        // SAFETY: the name lives as long as the handle.
        unsafe { copy_string(virt_sys::virDomainGetName(self.raw())) }
    }

    /// State and reason, as libvirt numbers them.
    pub(in crate::libvirt) fn state(&self) -> Result<(c_uint, c_uint)> {
        let (mut state, mut reason) = (0, 0);
        // SAFETY: the handle and the targets are ours.
        let done = unsafe { virt_sys::virDomainGetState(self.raw(), &raw mut state, &raw mut reason, 0) };
        self.check(done, Call::Look)?;
        Ok((state.cast_unsigned(), reason.cast_unsigned()))
    }

    pub(in crate::libvirt) fn xml(&self, flags: c_uint) -> Result<String> {
        // SAFETY: the handle is ours; so is the string.
        let text = unsafe { virt_sys::virDomainGetXMLDesc(self.raw(), flags) };
        if text.is_null() {
            return Err(self.connection.failed(Call::Look));
        }
        // SAFETY: a string from libvirt that we own.
        Ok(unsafe { take_string(text) })
    }

    pub(in crate::libvirt) fn is_persistent(&self) -> Result<bool> {
        // SAFETY: the handle is ours.
        let done = unsafe { virt_sys::virDomainIsPersistent(self.raw()) };
        Ok(self.check(done, Call::Look)? == 1)
    }

    pub(in crate::libvirt) fn autostart(&self) -> Result<bool> {
        let mut autostart = 0;
        // SAFETY: the handle and the target are ours.
        let done = unsafe { virt_sys::virDomainGetAutostart(self.raw(), &raw mut autostart) };
        self.check(done, Call::Look)?;
        Ok(autostart != 0)
    }

    pub(in crate::libvirt) fn set_autostart(&self, autostart: bool) -> Result<()> {
        // SAFETY: the handle is ours.
        let done = unsafe { virt_sys::virDomainSetAutostart(self.raw(), autostart.into()) };
        self.check(done, Call::Act).map(drop)
    }

    pub(in crate::libvirt) fn snapshots(&self) -> Result<u32> {
        // SAFETY: the handle is ours.
        let count = unsafe { virt_sys::virDomainSnapshotNum(self.raw(), 0) };
        Ok(self.check(count, Call::Look)?.cast_unsigned())
    }

    /// A libvirt that has none of them (a driver for tests, say) counts as one with no checkpoint.
    pub(in crate::libvirt) fn checkpoints(&self) -> Result<u32> {
        // SAFETY: the handle is ours; without a list libvirt only counts.
        let count = unsafe { virt_sys::virDomainListAllCheckpoints(self.raw(), std::ptr::null_mut(), 0) };
        if count < 0 && last_code() == virt_sys::VIR_ERR_NO_SUPPORT {
            return Ok(0);
        }
        Ok(self.check(count, Call::Look)?.cast_unsigned())
    }

    /// Whether libvirt keeps its memory, saved when it was shut off.
    pub(in crate::libvirt) fn has_managed_save(&self) -> Result<bool> {
        // SAFETY: the handle is ours.
        let has = unsafe { virt_sys::virDomainHasManagedSaveImage(self.raw(), 0) };
        Ok(self.check(has, Call::Look)? != 0)
    }

    /// The block job (a copy, a commit, a pull, a backup) that runs on this disk, if any.
    pub(in crate::libvirt) fn block_job(&self, target: &str) -> Result<Option<BlockJob>> {
        let target = c_string(target)?;
        // SAFETY: a plain C struct of numbers, for which zeroes are valid.
        let mut info: virt_sys::virDomainBlockJobInfo = unsafe { std::mem::zeroed() };
        // SAFETY: the handle and the target are ours; the name is terminated.
        let found = unsafe { virt_sys::virDomainGetBlockJobInfo(self.raw(), target.as_ptr(), &raw mut info, 0) };
        let runs = self.check(found, Call::Look)? > 0;
        Ok(runs.then_some(BlockJob {
            done: info.cur,
            end: info.end,
        }))
    }

    pub(in crate::libvirt) fn size(&self) -> Result<Size> {
        // SAFETY: a plain C struct of numbers, for which zeroes are valid.
        let mut info: virt_sys::virDomainInfo = unsafe { std::mem::zeroed() };
        // SAFETY: the handle and the target are ours.
        let done = unsafe { virt_sys::virDomainGetInfo(self.raw(), &raw mut info) };
        self.check(done, Call::Look)?;
        Ok(Size {
            memory: info.maxMem * 1024,
            vcpus: info.nrVirtCpu.into(),
        })
    }

    /// Stops the CPUs. libvirt counts it as done when they are still already.
    pub(in crate::libvirt) fn suspend(&self) -> Result<()> {
        // SAFETY: the handle is ours.
        let done = unsafe { virt_sys::virDomainSuspend(self.raw()) };
        self.check(done, Call::Act).map(drop)
    }

    pub(in crate::libvirt) fn resume(&self) -> Result<()> {
        // SAFETY: the handle is ours.
        let done = unsafe { virt_sys::virDomainResume(self.raw()) };
        self.check(done, Call::Act).map(drop)
    }

    /// libvirt asks the guest agent where there is one, else it presses the power button.
    pub(in crate::libvirt) fn shut_down(&self) -> Result<()> {
        // SAFETY: the handle is ours.
        let done = unsafe { virt_sys::virDomainShutdownFlags(self.raw(), 0) };
        self.check(done, Call::Act).map(drop)
    }

    /// Starts a guest from its definition.
    pub(in crate::libvirt) fn start(&self) -> Result<()> {
        // SAFETY: the handle is ours.
        let done = unsafe { virt_sys::virDomainCreate(self.raw()) };
        self.check(done, Call::Act).map(drop)
    }

    pub(in crate::libvirt) fn undefine(&self, flags: c_uint) -> Result<()> {
        // SAFETY: the handle is ours.
        let done = unsafe { virt_sys::virDomainUndefineFlags(self.raw(), flags) };
        self.check(done, Call::Act).map(drop)
    }

    /// Kind (`VIR_DOMAIN_JOB_…`) and statistics of the guest's job.
    pub(in crate::libvirt) fn job_stats(&self, flags: c_uint) -> Result<(c_uint, Values)> {
        let (mut kind, mut array, mut used) = (0, std::ptr::null_mut(), 0);
        let (kind_at, array_at, used_at) = (&raw mut kind, &raw mut array, &raw mut used);
        // SAFETY: the handle and the targets are ours.
        let done = unsafe { virt_sys::virDomainGetJobStats(self.raw(), kind_at, array_at, used_at, flags) };
        // SAFETY: libvirt has set both together, or left null and 0.
        let params = unsafe { Params::from_raw(array, used) };
        self.check(done, Call::Look)?;
        Ok((kind.cast_unsigned(), params.values()))
    }

    pub(in crate::libvirt) fn abort_job(&self) -> Result<()> {
        // SAFETY: the handle is ours.
        let done = unsafe { virt_sys::virDomainAbortJob(self.raw()) };
        self.check(done, Call::Act).map(drop)
    }

    pub(in crate::libvirt) fn start_post_copy(&self) -> Result<()> {
        // SAFETY: the handle is ours.
        let done = unsafe { virt_sys::virDomainMigrateStartPostCopy(self.raw(), 0) };
        self.check(done, Call::Act).map(drop)
    }

    pub(in crate::libvirt) fn set_max_downtime(&self, milliseconds: u64) -> Result<()> {
        // SAFETY: the handle is ours.
        let done = unsafe { virt_sys::virDomainMigrateSetMaxDowntime(self.raw(), milliseconds, 0) };
        self.check(done, Call::Act).map(drop)
    }

    pub(in crate::libvirt) fn set_max_speed(&self, mebibytes_per_second: u64) -> Result<()> {
        // SAFETY: the handle is ours.
        let done = unsafe { virt_sys::virDomainMigrateSetMaxSpeed(self.raw(), mebibytes_per_second, 0) };
        self.check(done, Call::Act).map(drop)
    }
}

/// The guest that a handle names.
///
/// # Safety
/// `raw` is a valid handle for the length of this call.
pub(super) unsafe fn id_of(raw: virt_sys::virDomainPtr) -> Option<GuestId> {
    let mut bytes = [0_u8; 16];
    // SAFETY: a valid handle; libvirt writes 16 bytes.
    if unsafe { virt_sys::virDomainGetUUID(raw, bytes.as_mut_ptr()) } < 0 || bytes == [0; 16] {
        return None;
    }
    Some(GuestId::from_uuid(Uuid::from_bytes(bytes)))
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: the handle is ours and not used again. It is local: no round trip.
        unsafe { virt_sys::virDomainFree(self.raw()) };
    }
}
