//! What the inner layers say, as a failure that the controller can act upon.
//!
//! A failure is evidence where a repeat would come out the same. After Finish and Confirm nobody knows that of
//! libvirt's answers, so there [`unsure`] makes every ambiguous one transient: the controller looks again.

use drover_proto::failure::{Failure, Reason};

use crate::hypervisor::{ErrorClass, HypervisorError};
use crate::journal::{Forbidden, JournalError};
use crate::offline::outgoing::{FILES, NO_SPACE};
use crate::tunnel::TunnelError;

impl From<HypervisorError> for Failure {
    fn from(error: HypervisorError) -> Self {
        let reason = match error.class {
            // Of a guest that is shut off: libvirt had no part in it.
            ErrorClass::UserMustAct if error.code == NO_SPACE => {
                return Self::new(Reason::NoSpace, error.message)
                    .with_remedy("make room there, or choose another host");
            }
            ErrorClass::UserMustAct if error.code == FILES => {
                let remedy = "see the storage and the log of the agent on the host that is named";
                return Self::new(Reason::StorageUnusable, error.message).with_remedy(remedy);
            }
            ErrorClass::Unavailable if error.code == FILES => Reason::TransferFailed,
            ErrorClass::Ambiguous | ErrorClass::UserMustAct => Reason::LibvirtFailed,
            ErrorClass::NoGuest => Reason::GuestNotFound,
            ErrorClass::Busy => Reason::GuestBusy,
            ErrorClass::Unfit => Reason::Unfit,
            ErrorClass::Aborted => Reason::Cancelled,
            ErrorClass::Unavailable => Reason::LibvirtUnavailable,
        };
        Self::new(reason, error.to_string())
    }
}

/// Where an error of libvirt's proves nothing.
pub(super) fn unsure(error: HypervisorError) -> Failure {
    match error.class {
        ErrorClass::Ambiguous | ErrorClass::Busy | ErrorClass::Aborted => {
            Failure::new(Reason::LibvirtUnavailable, error.to_string())
        }
        ErrorClass::NoGuest | ErrorClass::Unfit | ErrorClass::UserMustAct | ErrorClass::Unavailable => error.into(),
    }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        let reason = match error {
            JournalError::TooLarge { .. } => Reason::Unfit,
            JournalError::Slots(_)
            | JournalError::Io { .. }
            | JournalError::Damaged { .. }
            | JournalError::Encoding(_) => Reason::JournalFailed,
        };
        Self::new(reason, error.to_string())
    }
}

impl From<Forbidden> for Failure {
    fn from(forbidden: Forbidden) -> Self {
        let reason = match forbidden {
            Forbidden::Tombstoned => Reason::Tombstoned,
            Forbidden::NeverRan => Reason::NeverRan,
            Forbidden::MayHaveRun => Reason::TooLate,
            Forbidden::Decided => Reason::VerdictConflict,
            Forbidden::TooEarly => Reason::MigrationState,
            Forbidden::PostCopy => Reason::PostCopy,
        };
        Self::new(reason, forbidden.to_string())
    }
}

impl From<TunnelError> for Failure {
    fn from(error: TunnelError) -> Self {
        Self::new(Reason::TransferFailed, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_files_come_to_is_not_said_to_be_libvirts() {
        let failure = |class, code: &str| {
            Failure::from(HypervisorError {
                class,
                code: code.to_owned(),
                message: "why".to_owned(),
            })
        };
        let full = failure(ErrorClass::UserMustAct, NO_SPACE);
        assert_eq!((full.reason, full.message.as_str()), (Reason::NoSpace, "why"));
        assert!(full.remedy.is_some());
        assert_eq!(failure(ErrorClass::UserMustAct, FILES).reason, Reason::StorageUnusable);
        assert_eq!(failure(ErrorClass::Unavailable, FILES).reason, Reason::TransferFailed);
        let libvirts = failure(ErrorClass::UserMustAct, "VIR_ERR_OPERATION_INVALID");
        assert_eq!(libvirts.reason, Reason::LibvirtFailed);
        assert!(libvirts.message.contains("VIR_ERR_OPERATION_INVALID"));
    }
}
