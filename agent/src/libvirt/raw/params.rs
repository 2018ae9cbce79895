//! libvirt's typed parameters: building them for a call, reading those of an answer.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_int};

use super::error::{Call, last_error};
use super::{c_string, copy_string, initialise};
use crate::hypervisor::Result;

/// What an answer says, by name.
pub(in crate::libvirt) type Values = BTreeMap<String, Value>;

/// One value of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::libvirt) enum Value {
    /// Any integer; a negative one counts as zero, for no field that Drover reads can be.
    Number(u64),
    Real(f64),
    Truth(bool),
    Text(String),
}

/// Parameters for a call; freed when dropped.
#[derive(Debug)]
pub(in crate::libvirt) struct Params {
    array: virt_sys::virTypedParameterPtr,
    used: c_int,
    room: c_int,
}

// SAFETY: plain memory with one owner; nothing in it belongs to a thread.
unsafe impl Send for Params {}

impl Params {
    pub(in crate::libvirt) fn new() -> Result<Self> {
        // Also these functions crash in a libvirt that was not initialised.
        initialise()?;
        Ok(Self {
            array: std::ptr::null_mut(),
            used: 0,
            room: 0,
        })
    }

    pub(in crate::libvirt) fn text(mut self, name: &CStr, value: &str) -> Result<Self> {
        let value = c_string(value)?;
        let (array, used, room) = (&raw mut self.array, &raw mut self.used, &raw mut self.room);
        // SAFETY: the three describe one array that libvirt grows; it copies name and value.
        let done = unsafe { virt_sys::virTypedParamsAddString(array, used, room, name.as_ptr(), value.as_ptr()) };
        self.added(done)
    }

    pub(in crate::libvirt) fn unsigned_long(mut self, name: &CStr, value: u64) -> Result<Self> {
        let (array, used, room) = (&raw mut self.array, &raw mut self.used, &raw mut self.room);
        // SAFETY: the three describe one array that libvirt grows; it copies the name.
        let done = unsafe { virt_sys::virTypedParamsAddULLong(array, used, room, name.as_ptr(), value) };
        self.added(done)
    }

    pub(in crate::libvirt) fn int(mut self, name: &CStr, value: i32) -> Result<Self> {
        let (array, used, room) = (&raw mut self.array, &raw mut self.used, &raw mut self.room);
        // SAFETY: the three describe one array that libvirt grows; it copies the name.
        let done = unsafe { virt_sys::virTypedParamsAddInt(array, used, room, name.as_ptr(), value) };
        self.added(done)
    }

    fn added(self, result: c_int) -> Result<Self> {
        if result < 0 {
            Err(last_error(Call::Look, true))
        } else {
            Ok(self)
        }
    }

    /// Array and length, for a call that only reads them.
    pub(super) fn raw(&self) -> (virt_sys::virTypedParameterPtr, c_int) {
        (self.array, self.used)
    }

    /// Takes over an array that libvirt allocated.
    ///
    /// # Safety
    /// `array` with `used` elements comes from libvirt and belongs to the caller.
    pub(super) unsafe fn from_raw(array: virt_sys::virTypedParameterPtr, used: c_int) -> Self {
        Self {
            array,
            used,
            room: used,
        }
    }

    /// Every value of a name that may be there more than once.
    #[cfg(test)]
    pub(in crate::libvirt) fn all_texts(&self, name: &str) -> Vec<String> {
        // SAFETY: the array and its length are ours and fit each other.
        let params = unsafe { elements(self.array, self.used) };
        let named = params.iter().filter(|param| name_of(param) == name);
        let texts = named.filter_map(value_of).filter_map(|value| match value {
            Value::Text(text) => Some(text),
            Value::Number(_) | Value::Real(_) | Value::Truth(_) => None,
        });
        texts.collect()
    }

    pub(in crate::libvirt) fn values(&self) -> Values {
        // SAFETY: the array and its length are ours and fit each other.
        unsafe { read(self.array, self.used) }
    }
}

impl Drop for Params {
    fn drop(&mut self) {
        // SAFETY: the array is ours; null with length 0 is allowed.
        unsafe { virt_sys::virTypedParamsFree(self.array, self.used) };
    }
}

/// The elements of an array, as long as its owner lets it be.
///
/// # Safety
/// `array` is null or has `used` elements, all set by libvirt, which outlive the answer.
unsafe fn elements<'a>(array: virt_sys::virTypedParameterPtr, used: c_int) -> &'a [virt_sys::virTypedParameter] {
    let count = usize::try_from(used).unwrap_or(0);
    if array.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: the caller's promise; not null and not empty.
    unsafe { std::slice::from_raw_parts(array, count) }
}

/// Copies the values of an array.
///
/// # Safety
/// `array` is null or has `used` elements, all set by libvirt.
pub(super) unsafe fn read(array: virt_sys::virTypedParameterPtr, used: c_int) -> Values {
    // SAFETY: the caller's promise.
    let params = unsafe { elements(array, used) };
    params
        .iter()
        .filter_map(|param| Some((name_of(param), value_of(param)?)))
        .collect()
}

fn name_of(param: &virt_sys::virTypedParameter) -> String {
    let bytes: Vec<u8> = param
        .field
        .iter()
        .map(|&c| c.cast_unsigned())
        .take_while(|&c| c != 0)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn value_of(param: &virt_sys::virTypedParameter) -> Option<Value> {
    let value = &param.value;
    let kind = u32::try_from(param.type_).ok()?;
    // SAFETY: the type says which field of the union libvirt has set; a string is terminated.
    let value = unsafe {
        match kind {
            virt_sys::VIR_TYPED_PARAM_INT => Value::Number(u64::try_from(value.i).unwrap_or(0)),
            virt_sys::VIR_TYPED_PARAM_UINT => Value::Number(value.ui.into()),
            virt_sys::VIR_TYPED_PARAM_LLONG => Value::Number(u64::try_from(value.l).unwrap_or(0)),
            virt_sys::VIR_TYPED_PARAM_ULLONG => Value::Number(value.ul),
            virt_sys::VIR_TYPED_PARAM_DOUBLE => Value::Real(value.d),
            virt_sys::VIR_TYPED_PARAM_BOOLEAN => Value::Truth(value.b != 0),
            virt_sys::VIR_TYPED_PARAM_STRING => Value::Text(copy_string(value.s)),
            _ => return None,
        }
    };
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_read_back() {
        let params = Params::new()
            .and_then(|params| params.text(virt_sys::VIR_MIGRATE_PARAM_URI, "unix:///run/x"))
            .and_then(|params| params.unsigned_long(virt_sys::VIR_MIGRATE_PARAM_BANDWIDTH, u64::MAX))
            .and_then(|params| params.int(virt_sys::VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS, 4))
            .unwrap();
        let values = params.values();
        assert_eq!(values.len(), 3);
        assert_eq!(values["migrate_uri"], Value::Text("unix:///run/x".to_owned()));
        assert_eq!(values["bandwidth"], Value::Number(u64::MAX));
        assert_eq!(values["parallel.connections"], Value::Number(4));
    }

    #[test]
    fn no_parameters_are_no_values() {
        assert!(Params::new().unwrap().values().is_empty());
    }

    #[test]
    fn a_nul_byte_is_refused_and_leaks_nothing() {
        let params = Params::new()
            .unwrap()
            .text(virt_sys::VIR_MIGRATE_PARAM_URI, "unix:///a")
            .unwrap();
        let error = params.text(virt_sys::VIR_MIGRATE_PARAM_DEST_NAME, "a\0b").unwrap_err();
        assert_eq!(error.code, "DROVER_NUL_IN_TEXT");
    }
}
