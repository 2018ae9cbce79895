//! The one table of reasons: each with its stable name and its gRPC code. A program decides by the reason, never by a
//! message.

use tonic::Code;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal => $code:ident,)*) => {
        /// Why something did not happen. The names are part of the public API.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])* $variant,)*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its stable name, in upper snake case, as in `google.rpc.ErrorInfo`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// The gRPC code that goes with it.
            pub const fn code(self) -> Code {
                match self {
                    $(Self::$variant => Code::$code,)*
                }
            }

            /// Reads what `name` gives.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|reason| reason.name() == name)
            }
        }
    };
}

reasons! {
    /// The command came from a controller that is no longer in office.
    StaleTerm = "STALE_TERM" => FailedPrecondition,
    /// The attempt was given up before this command arrived.
    Tombstoned = "TOMBSTONED" => FailedPrecondition,
    /// libvirt, or the inventory, does not know the guest.
    GuestNotFound = "GUEST_NOT_FOUND" => NotFound,
    /// More than one host has a guest of this UUID.
    GuestAmbiguous = "GUEST_AMBIGUOUS" => FailedPrecondition,
    /// The destination has a guest of this UUID or name already.
    GuestExists = "GUEST_EXISTS" => AlreadyExists,
    /// The guest does something that forbids this now: another job, a fault, a shutdown.
    GuestBusy = "GUEST_BUSY" => FailedPrecondition,
    /// The guest ended by itself.
    GuestEnded = "GUEST_ENDED" => FailedPrecondition,
    /// The guest is not the same life of it that the command was meant for.
    IncarnationMismatch = "INCARNATION_MISMATCH" => FailedPrecondition,
    /// No such host is registered.
    HostNotFound = "HOST_NOT_FOUND" => NotFound,
    /// The host does not answer.
    HostUnreachable = "HOST_UNREACHABLE" => Unavailable,
    /// The host is not used as a destination.
    HostCordoned = "HOST_CORDONED" => FailedPrecondition,
    /// Two agents claim to be one host.
    HostConflict = "HOST_CONFLICT" => FailedPrecondition,
    /// No such migration.
    MigrationNotFound = "MIGRATION_NOT_FOUND" => NotFound,
    /// The guest has an unfinished migration.
    MigrationExists = "MIGRATION_EXISTS" => AlreadyExists,
    /// The migration is not in a state in which this can be asked for.
    MigrationState = "MIGRATION_STATE" => FailedPrecondition,
    /// The same request id came with another content.
    RequestIdReused = "REQUEST_ID_REUSED" => InvalidArgument,
    /// A disk is not proved to be shared between the two hosts.
    StorageNotShared = "STORAGE_NOT_SHARED" => FailedPrecondition,
    /// A file of the guest cannot be copied: where it lies, what it is, who may use it.
    StorageUnusable = "STORAGE_UNUSABLE" => FailedPrecondition,
    /// A disk is full, or has too little space for what is to come.
    NoSpace = "NO_SPACE" => FailedPrecondition,
    /// Checks before the migration failed; the record lists them.
    ChecksFailed = "CHECKS_FAILED" => FailedPrecondition,
    /// This host cannot take this guest, another may.
    Unfit = "UNFIT" => FailedPrecondition,
    /// A field of the request is not valid.
    InvalidArgument = "INVALID_ARGUMENT" => InvalidArgument,
    /// A message is larger than a server reads.
    MessageTooLarge = "MESSAGE_TOO_LARGE" => ResourceExhausted,
    /// A page token that this server did not give for this request.
    PageTokenInvalid = "PAGE_TOKEN_INVALID" => InvalidArgument,
    /// A resume token that is too old: watch from the beginning.
    ResumeTokenExpired = "RESUME_TOKEN_EXPIRED" => OutOfRange,
    /// The record changed since it was read.
    EtagMismatch = "ETAG_MISMATCH" => Aborted,
    /// The caller may not do this.
    PermissionDenied = "PERMISSION_DENIED" => PermissionDenied,
    /// The caller did not show who it is.
    Unauthenticated = "UNAUTHENTICATED" => Unauthenticated,
    /// The ticket is wrong, expired, or made for somebody else.
    TicketRefused = "TICKET_REFUSED" => PermissionDenied,
    /// The guest never ran at the destination, and never will by this migration.
    NeverRan = "NEVER_RAN" => FailedPrecondition,
    /// Nothing was decided yet about who may run the guest.
    NoVerdict = "NO_VERDICT" => FailedPrecondition,
    /// What was decided is something else.
    VerdictConflict = "VERDICT_CONFLICT" => FailedPrecondition,
    /// The source has not sent everything.
    StillPerforming = "STILL_PERFORMING" => FailedPrecondition,
    /// The main channel was not received to its end.
    StreamIncomplete = "STREAM_INCOMPLETE" => FailedPrecondition,
    /// The guest runs, or may run, at the destination.
    TooLate = "TOO_LATE" => FailedPrecondition,
    /// The guest's memory lies on two hosts.
    PostCopy = "POST_COPY" => FailedPrecondition,
    /// The data connection between the two hosts failed.
    TransferFailed = "TRANSFER_FAILED" => Aborted,
    /// The deadline of the migration expired before the guest had moved.
    TransferDeadline = "TRANSFER_DEADLINE" => Aborted,
    /// libvirtd does not answer.
    LibvirtUnavailable = "LIBVIRT_UNAVAILABLE" => Unavailable,
    /// libvirt refused or failed.
    LibvirtFailed = "LIBVIRT_FAILED" => Internal,
    /// The agent lacks what this needs: an entry point of libvirt, a protocol version, a feature.
    FeatureMissing = "FEATURE_MISSING" => FailedPrecondition,
    /// The journal could not be written.
    JournalFailed = "JOURNAL_FAILED" => ResourceExhausted,
    /// The store did not know the migration: it was lost, or restored from a backup.
    StoreLost = "STORE_LOST" => Aborted,
    /// The store could not be read or written.
    StoreFailed = "STORE_FAILED" => Unavailable,
    /// A limit is reached; later it may not be.
    ResourceExhausted = "RESOURCE_EXHAUSTED" => ResourceExhausted,
    /// The server is shutting down or not ready yet.
    NotServing = "NOT_SERVING" => Unavailable,
    /// Somebody asked for it to be undone.
    Cancelled = "CANCELLED" => Cancelled,
    /// The caller's deadline expired; what was asked for may have been done.
    DeadlineExceeded = "DEADLINE_EXCEEDED" => DeadlineExceeded,
    /// Not made yet.
    Unimplemented = "UNIMPLEMENTED" => Unimplemented,
    /// A fault of Drover's own.
    Internal = "INTERNAL" => Internal,
}

impl Reason {
    /// Whether the same request may come out otherwise in a while, so that it is no evidence of anything.
    pub const fn is_transient(self) -> bool {
        matches!(
            self,
            Self::HostUnreachable
                | Self::LibvirtUnavailable
                | Self::JournalFailed
                | Self::StoreFailed
                | Self::ResourceExhausted
                | Self::NotServing
                | Self::Cancelled
                | Self::DeadlineExceeded
                | Self::Internal
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_upper_snake_case_and_read_back() {
        let mut seen = HashSet::new();
        for &reason in Reason::ALL {
            let name = reason.name();
            assert!(seen.insert(name), "{name} twice");
            assert!(name.bytes().all(|c| c.is_ascii_uppercase() || c == b'_'), "{name}");
            assert_eq!(Reason::from_name(name), Some(reason));
            assert_ne!(reason.code(), Code::Ok);
        }
        assert_eq!(Reason::from_name("NO_SUCH_REASON"), None);
    }
}
