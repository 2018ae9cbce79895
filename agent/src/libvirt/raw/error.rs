//! libvirt's errors: read on the thread of the call, and sorted into what a caller may conclude.
//!
//! The table is the one of `facts/libvirt.md` §6. What an error means depends on the call as well: a lost
//! connection says nothing has happened when we only looked, and nothing at all when we acted.

use crate::hypervisor::{ErrorClass, HypervisorError};

/// What kind of call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::libvirt) enum Call {
    /// Changes nothing.
    Look,
    /// Changes something; libvirt checks first, and most refusals are certain.
    Act,
    /// Perform, Finish, Confirm: whatever the code says, the other side may have gone on.
    Late,
}

/// An error of ours, not of libvirt.
pub(in crate::libvirt) fn own_error(class: ErrorClass, code: &str, message: impl Into<String>) -> HypervisorError {
    HypervisorError {
        class,
        code: format!("DROVER_{code}"),
        message: message.into(),
    }
}

/// The error that the last libvirt call on this thread left, where there is no connection to ask.
pub(super) fn last_error(call: Call, connected: bool) -> HypervisorError {
    read_last().classified(call, connected)
}

/// The code of the last error on this thread.
pub(super) fn last_code() -> virt_sys::virErrorNumber {
    read_last().code
}

/// What libvirt said, copied before the next call overwrites it.
pub(super) struct Said {
    code: virt_sys::virErrorNumber,
    message: String,
}

impl Said {
    /// `connected` is whether the connection of the call still lives.
    pub(super) fn classified(self, call: Call, connected: bool) -> HypervisorError {
        let Self { code, message } = self;
        HypervisorError {
            class: classify(call, code, connected),
            code: name_of(code),
            message,
        }
    }
}

/// The last error on this thread.
pub(super) fn read_last() -> Said {
    // SAFETY: takes no arguments; gives null or a pointer to this thread's error.
    let error = unsafe { virt_sys::virGetLastError() };
    if error.is_null() {
        return Said {
            code: virt_sys::VIR_ERR_OK,
            message: "libvirt gave no reason".to_owned(),
        };
    }
    // SAFETY: not null; the error stays until the next libvirt call on this thread.
    let (code, message) = unsafe { ((*error).code, (*error).message) };
    // SAFETY: null or a terminated string with the lifetime of the error.
    let message = unsafe { super::copy_string(message) };
    Said {
        code: code.try_into().unwrap_or(virt_sys::VIR_ERR_INTERNAL_ERROR),
        message,
    }
}

fn classify(call: Call, code: virt_sys::virErrorNumber, connected: bool) -> ErrorClass {
    if code == virt_sys::VIR_ERR_OPERATION_ABORTED {
        return ErrorClass::Aborted;
    }
    match call {
        Call::Late => return ErrorClass::Ambiguous,
        Call::Act if !connected => return ErrorClass::Ambiguous,
        Call::Look if !connected => return ErrorClass::Unavailable,
        Call::Look | Call::Act => {}
    }
    CODES
        .iter()
        .find(|row| row.0 == code)
        .map_or(ErrorClass::Ambiguous, |row| row.2)
}

fn name_of(code: virt_sys::virErrorNumber) -> String {
    CODES
        .iter()
        .find(|row| row.0 == code)
        .map_or_else(|| format!("VIR_ERR_{code}"), |row| row.1.to_owned())
}

type Row = (virt_sys::virErrorNumber, &'static str, ErrorClass);

macro_rules! codes {
    ($($class:ident: $($name:ident)*;)*) => {
        &[$($((virt_sys::$name, stringify!($name), ErrorClass::$class),)*)*]
    };
}

const CODES: &[Row] = codes! {
    Aborted: VIR_ERR_OPERATION_ABORTED;
    NoGuest: VIR_ERR_NO_DOMAIN;
    Busy: VIR_ERR_OPERATION_TIMEOUT VIR_ERR_RESOURCE_BUSY;
    Unavailable: VIR_ERR_NO_CONNECT VIR_ERR_INVALID_CONN;
    Unfit: VIR_ERR_CPU_INCOMPATIBLE VIR_ERR_CONFIG_UNSUPPORTED VIR_ERR_DEVICE_MISSING VIR_ERR_NO_NETWORK
        VIR_ERR_NO_STORAGE_POOL VIR_ERR_NO_STORAGE_VOL VIR_ERR_NO_MEMORY VIR_ERR_NO_INTERFACE VIR_ERR_NO_SECRET;
    UserMustAct: VIR_ERR_MIGRATE_UNSAFE VIR_ERR_ARGUMENT_UNSUPPORTED VIR_ERR_OPERATION_UNSUPPORTED
        VIR_ERR_NO_SUPPORT VIR_ERR_OPERATION_INVALID VIR_ERR_OPERATION_DENIED VIR_ERR_ACCESS_DENIED
        VIR_ERR_INVALID_ARG VIR_ERR_XML_ERROR VIR_ERR_XML_DETAIL VIR_ERR_XML_INVALID_SCHEMA VIR_ERR_DOM_EXIST
        VIR_ERR_AUTH_FAILED VIR_ERR_AUTH_CANCELLED VIR_ERR_AUTH_UNAVAILABLE VIR_ERR_HOOK_SCRIPT_FAILED
        VIR_ERR_SNAPSHOT_REVERT_RISKY;
    Ambiguous: VIR_ERR_INTERNAL_ERROR VIR_ERR_SYSTEM_ERROR VIR_ERR_RPC VIR_ERR_OPERATION_FAILED
        VIR_ERR_AGENT_UNRESPONSIVE VIR_ERR_OK;
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_certain_only_while_the_connection_lives() {
        let code = virt_sys::VIR_ERR_MIGRATE_UNSAFE;
        assert_eq!(classify(Call::Act, code, true), ErrorClass::UserMustAct);
        assert_eq!(classify(Call::Act, code, false), ErrorClass::Ambiguous);
        assert_eq!(classify(Call::Look, code, false), ErrorClass::Unavailable);
    }

    #[test]
    fn after_perform_only_a_cancel_is_certain() {
        for row in CODES.iter().filter(|row| row.2 != ErrorClass::Aborted) {
            assert_eq!(classify(Call::Late, row.0, true), ErrorClass::Ambiguous, "{}", row.1);
        }
        assert_eq!(
            classify(Call::Late, virt_sys::VIR_ERR_OPERATION_ABORTED, false),
            ErrorClass::Aborted
        );
    }

    #[test]
    fn what_is_not_in_the_table_is_ambiguous() {
        assert_eq!(classify(Call::Act, 9999, true), ErrorClass::Ambiguous);
        assert_eq!(name_of(9999), "VIR_ERR_9999");
        assert_eq!(name_of(virt_sys::VIR_ERR_NO_DOMAIN), "VIR_ERR_NO_DOMAIN");
    }

    #[test]
    fn no_code_has_two_rows() {
        for (at, row) in CODES.iter().enumerate() {
            assert!(
                CODES[at + 1..].iter().all(|other| other.0 != row.0),
                "{} is there twice",
                row.1
            );
        }
    }
}
