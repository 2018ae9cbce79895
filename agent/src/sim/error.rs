//! The errors of a simulated libvirt, with libvirt's codes and Drover's classes (`facts/libvirt.md` §6).

use drover_proto::ids::GuestId;

use crate::hypervisor::{ErrorClass, HypervisorError};

fn error(class: ErrorClass, code: &str, message: impl Into<String>) -> HypervisorError {
    HypervisorError {
        class,
        code: code.to_owned(),
        message: message.into(),
    }
}

pub(super) fn no_guest(guest: GuestId) -> HypervisorError {
    error(
        ErrorClass::NoGuest,
        "VIR_ERR_NO_DOMAIN",
        format!("no domain with matching uuid '{guest}'"),
    )
}

/// Another call holds the guest's job lock.
pub(super) fn busy() -> HypervisorError {
    error(
        ErrorClass::Busy,
        "VIR_ERR_OPERATION_TIMEOUT",
        "cannot acquire state change lock",
    )
}

pub(super) fn invalid(message: &str) -> HypervisorError {
    error(ErrorClass::UserMustAct, "VIR_ERR_OPERATION_INVALID", message)
}

pub(super) fn unsupported(message: &str) -> HypervisorError {
    error(ErrorClass::UserMustAct, "VIR_ERR_INVALID_ARG", message)
}

/// As `invalid`, from Perform, Finish or Confirm: the other side may have gone on.
pub(super) fn too_late(message: &str) -> HypervisorError {
    error(ErrorClass::Ambiguous, "VIR_ERR_OPERATION_INVALID", message)
}

pub(super) fn exists(message: String) -> HypervisorError {
    error(ErrorClass::UserMustAct, "VIR_ERR_DOM_EXIST", message)
}

pub(super) fn bad_xml(message: impl Into<String>) -> HypervisorError {
    error(ErrorClass::UserMustAct, "VIR_ERR_XML_ERROR", message)
}

pub(super) fn unfit(code: &str, message: String) -> HypervisorError {
    error(ErrorClass::Unfit, code, message)
}

/// The stream or the other side broke.
pub(super) fn failed(message: impl Into<String>) -> HypervisorError {
    error(ErrorClass::Ambiguous, "VIR_ERR_OPERATION_FAILED", message)
}

pub(super) fn aborted() -> HypervisorError {
    error(
        ErrorClass::Aborted,
        "VIR_ERR_OPERATION_ABORTED",
        "migration job: canceled by client",
    )
}

/// The daemon is gone, or the connection of this handle with it.
pub(super) fn disconnected() -> HypervisorError {
    error(ErrorClass::Ambiguous, "VIR_ERR_RPC", "client socket is closed")
}

/// It may have been done: the answer did not come.
pub(super) fn answer_lost() -> HypervisorError {
    error(ErrorClass::Ambiguous, "VIR_ERR_RPC", "the answer was lost")
}

/// A script wanted it so.
pub(super) fn scripted() -> HypervisorError {
    error(
        ErrorClass::UserMustAct,
        "VIR_ERR_OPERATION_DENIED",
        "refused by the simulation's script",
    )
}
