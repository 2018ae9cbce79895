//! The five calls of libvirt's migration protocol, which its headers do not declare.
//!
//! libvirt.so exports them under its private version node, for its own tools; the signatures have been the
//! same since 1.1.0. They are looked up at run time, so that a libvirt without them is a clear message and
//! not a program that does not start.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::{Arc, OnceLock};

use super::error::Call;
use super::{Connection, Domain, Params, take_string};
use crate::hypervisor::{Begun, Cookie, Result};

type DomainPtr = virt_sys::virDomainPtr;
type ConnectPtr = virt_sys::virConnectPtr;
type ParamsPtr = virt_sys::virTypedParameterPtr;

type Begin = unsafe extern "C" fn(DomainPtr, ParamsPtr, c_int, *mut *mut c_char, *mut c_int, c_uint) -> *mut c_char;
type Prepare = unsafe extern "C" fn(
    ConnectPtr,
    ParamsPtr,
    c_int,
    *const c_char,
    c_int,
    *mut *mut c_char,
    *mut c_int,
    *mut *mut c_char,
    c_uint,
) -> c_int;
type Perform = unsafe extern "C" fn(
    DomainPtr,
    *const c_char,
    ParamsPtr,
    c_int,
    *const c_char,
    c_int,
    *mut *mut c_char,
    *mut c_int,
    c_uint,
) -> c_int;
type Finish = unsafe extern "C" fn(
    ConnectPtr,
    ParamsPtr,
    c_int,
    *const c_char,
    c_int,
    *mut *mut c_char,
    *mut c_int,
    c_uint,
    c_int,
) -> DomainPtr;
type Confirm = unsafe extern "C" fn(DomainPtr, ParamsPtr, c_int, *const c_char, c_int, c_uint, c_int) -> c_int;

/// The entry points of this process's libvirt.
pub(in crate::libvirt) struct FiveCalls {
    begin: Begin,
    prepare: Prepare,
    perform: Perform,
    finish: Finish,
    confirm: Confirm,
}

/// The five calls, or which of them this libvirt does not export.
pub(in crate::libvirt) fn five_calls() -> std::result::Result<&'static FiveCalls, String> {
    static BOUND: OnceLock<std::result::Result<FiveCalls, String>> = OnceLock::new();
    BOUND.get_or_init(FiveCalls::bind).as_ref().map_err(Clone::clone)
}

/// A pointer to an exported function.
fn symbol(name: &CStr) -> std::result::Result<*mut c_void, String> {
    // SAFETY: a terminated name; the default scope has all libraries this program was linked with.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if found.is_null() {
        let name = name.to_string_lossy();
        return Err(format!(
            "this libvirt.so does not export {name}: Drover cannot migrate with it"
        ));
    }
    Ok(found)
}

impl FiveCalls {
    fn bind() -> std::result::Result<Self, String> {
        let begin = symbol(c"virDomainMigrateBegin3Params")?;
        let prepare = symbol(c"virDomainMigratePrepare3Params")?;
        let perform = symbol(c"virDomainMigratePerform3Params")?;
        let finish = symbol(c"virDomainMigrateFinish3Params")?;
        let confirm = symbol(c"virDomainMigrateConfirm3Params")?;
        // SAFETY: the symbols are functions of exactly these types in every libvirt since 1.1.0.
        unsafe {
            Ok(Self {
                begin: std::mem::transmute::<*mut c_void, Begin>(begin),
                prepare: std::mem::transmute::<*mut c_void, Prepare>(prepare),
                perform: std::mem::transmute::<*mut c_void, Perform>(perform),
                finish: std::mem::transmute::<*mut c_void, Finish>(finish),
                confirm: std::mem::transmute::<*mut c_void, Confirm>(confirm),
            })
        }
    }

    pub(in crate::libvirt) fn begin(&self, domain: &Domain, params: &Params, flags: u32) -> Result<Begun> {
        let (array, used) = params.raw();
        let mut out = CookieOut::new();
        let (text, length) = out.targets();
        // SAFETY: handle, parameters and targets live through the call; what it allocates becomes ours.
        let xml = unsafe { (self.begin)(domain.raw(), array, used, text, length, flags) };
        if xml.is_null() {
            return Err(domain.connection().failed(Call::Act));
        }
        // SAFETY: a string from libvirt that we own.
        let xml = unsafe { take_string(xml) };
        Ok(Begun {
            xml,
            cookie: out.take(),
        })
    }

    pub(in crate::libvirt) fn prepare(
        &self,
        connection: &Connection,
        params: &Params,
        cookie: &Cookie,
        flags: u32,
    ) -> Result<Cookie> {
        let (array, used) = params.raw();
        let (given, given_length) = cookie_in(cookie);
        let mut uri = std::ptr::null_mut();
        let mut out = CookieOut::new();
        let (text, length) = out.targets();
        let (conn, uri_out) = (connection.raw(), &raw mut uri);
        // SAFETY: all arguments live through the call; what it allocates becomes ours.
        let done = unsafe { (self.prepare)(conn, array, used, given, given_length, text, length, uri_out, flags) };
        let checked = connection.check(done, Call::Act);
        // SAFETY: null or a string of ours. Its value is the URI that we passed in.
        drop(unsafe { take_string(uri) });
        checked.map(|_| out.take())
    }

    pub(in crate::libvirt) fn perform(
        &self,
        domain: &Domain,
        params: &Params,
        cookie: &Cookie,
        flags: u32,
    ) -> Result<Cookie> {
        let (array, used) = params.raw();
        let (given, given_length) = cookie_in(cookie);
        let mut out = CookieOut::new();
        let (text, length) = out.targets();
        let nowhere = std::ptr::null();
        // SAFETY: all arguments live through the call; no destination URI is what says "not peer to peer".
        let done = unsafe {
            (self.perform)(
                domain.raw(),
                nowhere,
                array,
                used,
                given,
                given_length,
                text,
                length,
                flags,
            )
        };
        domain.connection().check(done, Call::Late).map(|_| out.take())
    }

    pub(in crate::libvirt) fn finish(
        &self,
        connection: &Arc<Connection>,
        name: &str,
        cookie: &Cookie,
        flags: u32,
        cancelled: bool,
    ) -> Result<Cookie> {
        let params = Params::new()?.text(virt_sys::VIR_MIGRATE_PARAM_DEST_NAME, name)?;
        let (array, used) = params.raw();
        let (given, given_length) = cookie_in(cookie);
        let mut out = CookieOut::new();
        let (text, length) = out.targets();
        let (conn, cancelled) = (connection.raw(), c_int::from(cancelled));
        // SAFETY: all arguments live through the call; what it allocates becomes ours.
        let domain = unsafe { (self.finish)(conn, array, used, given, given_length, text, length, flags, cancelled) };
        if domain.is_null() {
            return Err(connection.failed(Call::Late));
        }
        // SAFETY: the handle is ours and not used again.
        unsafe { virt_sys::virDomainFree(domain) };
        Ok(out.take())
    }

    pub(in crate::libvirt) fn confirm(
        &self,
        domain: &Domain,
        cookie: &Cookie,
        flags: u32,
        cancelled: bool,
    ) -> Result<()> {
        let (given, given_length) = cookie_in(cookie);
        let (none, cancelled) = (std::ptr::null_mut(), c_int::from(cancelled));
        // SAFETY: handle and cookie live through the call; no parameters is allowed.
        let done = unsafe { (self.confirm)(domain.raw(), none, 0, given, given_length, flags, cancelled) };
        domain.connection().check(done, Call::Late).map(drop)
    }
}

/// A cookie as an argument; none is null.
fn cookie_in(cookie: &Cookie) -> (*const c_char, c_int) {
    match c_int::try_from(cookie.0.len()) {
        Ok(length) if length > 0 => (cookie.0.as_ptr().cast(), length),
        Ok(_) | Err(_) => (std::ptr::null(), 0),
    }
}

/// Where a call leaves a cookie; freed also when the call failed.
struct CookieOut {
    text: *mut c_char,
    length: c_int,
}

impl CookieOut {
    fn new() -> Self {
        Self {
            text: std::ptr::null_mut(),
            length: 0,
        }
    }

    fn targets(&mut self) -> (*mut *mut c_char, *mut c_int) {
        (&raw mut self.text, &raw mut self.length)
    }

    fn take(&self) -> Cookie {
        match usize::try_from(self.length) {
            Ok(length) if length > 0 && !self.text.is_null() => {
                // SAFETY: libvirt says that there are so many bytes.
                let bytes = unsafe { std::slice::from_raw_parts(self.text.cast::<u8>(), length) };
                Cookie(bytes.to_vec())
            }
            Ok(_) | Err(_) => Cookie::default(),
        }
    }
}

impl Drop for CookieOut {
    fn drop(&mut self) {
        // SAFETY: malloc'ed by libvirt and ours, or null.
        unsafe { libc::free(self.text.cast()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_installed_libvirt_has_all_five() {
        assert!(five_calls().is_ok());
    }

    #[test]
    fn a_missing_one_is_named() {
        let error = symbol(c"virDomainMigrateSixth3Params").unwrap_err();
        assert!(error.contains("virDomainMigrateSixth3Params"), "{error}");
    }

    #[test]
    fn an_empty_cookie_is_null() {
        assert_eq!(cookie_in(&Cookie::default()), (std::ptr::null(), 0));
    }
}
