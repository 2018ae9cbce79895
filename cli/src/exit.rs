//! Exit codes, and the error that carries one: what went wrong, and the next step.

use std::fmt;

use drover_proto::failure::{Failure, Reason, sources};
use drover_proto::tls::TlsError;
use drover_proto::v1::{Migration, MigrationPhase, MigrationState};
use tonic::{Code, Status};

use crate::render::words::without_manual;
use crate::trouble;

/// Shown at the end of `--help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0    done
  1    the migration failed, or another error
  2    wrong usage or a bad value
  3    refused: a check failed, or the state of things forbids it
  4    no such guest, host or migration, or an ambiguous name
  5    the controller cannot be reached, or TLS failed
  6    the migration was cancelled
  7    the migration needs attention: a person or a host that is away
  8    the guest ended by itself meanwhile
  9    not allowed
  130  interrupted; what was asked for goes on";

/// The same as a document.
pub(crate) fn codes() -> serde_json::Value {
    let line = |line: &str| {
        let (code, meaning) = line.trim_start().split_once(' ')?;
        let code: u8 = code.parse().ok()?;
        Some(serde_json::json!({ "code": code, "meaning": meaning.trim_start() }))
    };
    serde_json::json!({ "exit_codes": HELP.lines().filter_map(line).collect::<Vec<_>>() })
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Refused = 3,
    NotFound = 4,
    Unreachable = 5,
    Cancelled = 6,
    Attention = 7,
    GuestEnded = 8,
    NotAllowed = 9,
    Interrupted = 130,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error for the person at the terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) exit: Exit,
    pub(crate) message: String,
    /// What to do next.
    pub(crate) next: Option<String>,
}

impl Problem {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            next: None,
        }
    }

    pub(crate) fn with_next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        match &self.next {
            Some(next) => write!(f, "\n  next: {next}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Problem {}

impl From<TlsError> for Problem {
    fn from(error: TlsError) -> Self {
        if let Some(problem) = trouble::of_connection(&error) {
            return problem;
        }
        let next = match &error {
            TlsError::Read { .. } | TlsError::Invalid { .. } | TlsError::Identity(_) => {
                "look at the files with `drover pki show FILE…`, or name others with --cert, --key and --ca"
            }
            TlsError::Address { .. } => "give the controller's address as --controller host:port",
            TlsError::Connect { .. } => "is the controller running there? Name another with --controller",
            TlsError::Handshake { .. } | TlsError::NoCertificate { .. } => {
                "do both sides' certificates come from the same authority? Compare them with `drover pki show`"
            }
            TlsError::WrongPeer { .. } | TlsError::Alpn { .. } => {
                "that is no controller: name its address with --controller"
            }
            TlsError::IdentityChanged { .. } => "start again",
        };
        Self::new(Exit::Unreachable, error.to_string()).with_next(next)
    }
}

impl From<Status> for Problem {
    fn from(status: Status) -> Self {
        let failure = Failure::from_status(&status);
        let tls = sources(&status).find_map(|error| error.downcast_ref::<TlsError>());
        if let Some(problem) = tls.and_then(trouble::of_connection) {
            return problem;
        }
        let exit = if failure.reason == Reason::GuestAmbiguous {
            // Which one is meant, the command line can say.
            Exit::NotFound
        } else if failure.reason == Reason::HostUnreachable && failure.is_answered() {
            // The controller has answered; it is a host that is away.
            Exit::Attention
        } else {
            exit_of(failure.reason.code())
        };
        let next = match tls {
            Some(TlsError::Connect { .. }) | None => trouble::of_role(&failure)
                .or_else(|| failure.remedy.clone())
                .or_else(|| next_step(&failure)),
            Some(_) => Some("compare the certificates of both sides with `drover pki show`".to_owned()),
        };
        Self {
            exit,
            message: without_manual(&trouble::of_fields(&failure).unwrap_or(failure.message)),
            next,
        }
    }
}

/// A fault of this program.
impl From<anyhow::Error> for Problem {
    fn from(error: anyhow::Error) -> Self {
        Self::new(Exit::Failed, format!("{error:#}"))
    }
}

fn exit_of(code: Code) -> Exit {
    match code {
        Code::NotFound => Exit::NotFound,
        Code::InvalidArgument => Exit::Usage,
        Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted | Code::OutOfRange => Exit::Refused,
        Code::Unavailable | Code::DeadlineExceeded => Exit::Unreachable,
        Code::PermissionDenied | Code::Unauthenticated => Exit::NotAllowed,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::ResourceExhausted
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss => Exit::Failed,
    }
}

/// What helps in most cases, where the controller says nothing better.
fn next_step(failure: &Failure) -> Option<String> {
    let reason = failure.reason;
    let step = match reason.code() {
        Code::NotFound if reason == Reason::GuestNotFound => "see `drover guest list`",
        Code::NotFound if reason == Reason::HostNotFound => "see `drover host list`",
        Code::NotFound | Code::AlreadyExists => "see `drover migration list`",
        Code::Unavailable if reason == Reason::StoreFailed => "see the controller's log, and whether its disk is full",
        Code::Unavailable if reason == Reason::HostUnreachable && failure.is_answered() => {
            "see `drover host list`, and on that host whether drover-agent runs and what its log says"
        }
        Code::Unavailable if failure.is_answered() => "see the controller's log, and try again",
        Code::Unavailable => "is the controller running there? Name another with --controller",
        Code::DeadlineExceeded => {
            "does the controller hang? See its log. What was asked for may have been done: see `drover migration list`"
        }
        Code::PermissionDenied | Code::Unauthenticated => {
            "see who you are with `drover pki show CERTIFICATE`, and ask for a role"
        }
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::InvalidArgument
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss => return None,
    };
    Some(step.to_owned())
}

/// The exit code for a migration as it stands.
pub(crate) fn of_migration(migration: &Migration) -> Exit {
    match migration.state() {
        MigrationState::Succeeded
        | MigrationState::Queued
        | MigrationState::Running
        | MigrationState::Cancelling
        | MigrationState::Unspecified => Exit::Done,
        MigrationState::AttentionRequired => Exit::Attention,
        MigrationState::Cancelled => Exit::Cancelled,
        MigrationState::GuestEnded => Exit::GuestEnded,
        MigrationState::Failed => of_failed(migration),
    }
}

/// The exit code for a migration that was refused, or would be, or failed.
pub(crate) fn of_failed(migration: &Migration) -> Exit {
    let Some(error) = &migration.error else {
        return Exit::Failed;
    };
    let not_found = Reason::from_name(&error.reason).is_some_and(|reason| reason.code() == Code::NotFound);
    match error.phase() {
        _ if not_found => Exit::NotFound,
        MigrationPhase::Validate => Exit::Refused,
        MigrationPhase::Unspecified
        | MigrationPhase::Prepare
        | MigrationPhase::Transfer
        | MigrationPhase::Verify
        | MigrationPhase::Finalize
        | MigrationPhase::Abort
        | MigrationPhase::Discard => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use drover_proto::v1::MigrationError;

    use super::*;

    #[test]
    fn a_failure_tells_code_and_next_step() {
        let status = Status::from(Failure::new(Reason::MigrationExists, "it moves already").with_remedy("wait"));
        let problem = Problem::from(status);
        assert_eq!(problem.exit, Exit::Refused);
        assert_eq!(problem.to_string(), "it moves already\n  next: wait");
        let lost = Problem::from(Status::unavailable("gone"));
        assert_eq!(lost.exit, Exit::Unreachable);
        assert!(lost.next.unwrap().contains("--controller"));
    }

    #[test]
    fn an_agent_that_is_silent_is_looked_for_on_its_host() {
        let silent = Failure::new(Reason::HostUnreachable, "the agent of host-a is silent");
        let problem = Problem::from(Status::from(silent));
        assert_eq!(problem.exit, Exit::Attention);
        assert!(problem.next.unwrap().contains("drover host list"));
    }

    #[test]
    fn a_full_disk_is_not_an_absent_controller() {
        let full = Failure::new(Reason::StoreFailed, "the store could not be read or written");
        let problem = Problem::from(Status::from(full));
        assert!(problem.next.unwrap().contains("disk is full"));
        assert_eq!(codes()["exit_codes"][1]["code"], 1);
        assert_eq!(codes()["exit_codes"].as_array().unwrap().len(), 11);
    }

    #[test]
    fn a_failed_migration_tells_refusal_from_failure() {
        let failed = |reason: &str, phase: MigrationPhase| {
            let error = MigrationError {
                reason: reason.to_owned(),
                phase: phase.into(),
                ..Default::default()
            };
            of_migration(&Migration {
                state: MigrationState::Failed.into(),
                error: Some(error),
                ..Default::default()
            })
        };
        assert_eq!(failed("STORAGE_NOT_SHARED", MigrationPhase::Validate), Exit::Refused);
        assert_eq!(failed("GUEST_NOT_FOUND", MigrationPhase::Validate), Exit::NotFound);
        assert_eq!(failed("TRANSFER_FAILED", MigrationPhase::Transfer), Exit::Failed);
    }
}
