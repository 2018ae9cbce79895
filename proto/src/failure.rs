//! An error as it goes from one process to another: reason, words, remedy; to and from `tonic::Status`.
//!
//! Promise: what a peer said and what only looks like it are told apart. A lost connection, a deadline or a proxy's
//! answer is never evidence (`Failure::is_evidence`).

use std::collections::HashMap;

use tonic::{Code, Status, TimeoutExpired};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::ids::HostId;
pub use crate::reason::Reason;

/// The domain in every `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "drover";

/// Details travel in HTTP/2 headers, which peers limit to 16 KiB or less: longer texts are cut.
const MAX_TEXT_BYTES: usize = 2000;

/// At most so many bad fields are listed.
const MAX_FIELDS: usize = 16;

/// An error that another process can act upon.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub reason: Reason,
    /// For people.
    pub message: String,
    /// What to do about it, for people.
    pub remedy: Option<String>,
    /// Where it arose; none: where the request was sent.
    pub host: Option<HostId>,
    /// Fields of the request that are not valid, each with why.
    pub fields: Vec<(String, String)>,
    /// Whether this was said by Drover, not guessed from a lost connection.
    answered: bool,
}

impl Failure {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            remedy: None,
            host: None,
            fields: Vec::new(),
            answered: true,
        }
    }

    /// A field of the request that is not valid.
    pub fn invalid(field: impl Into<String>, why: impl Into<String>) -> Self {
        let (field, why) = (field.into(), why.into());
        Self::new(Reason::InvalidArgument, format!("{field}: {why}")).with_field(field, why)
    }

    /// A fault of Drover's own.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Reason::Internal, message)
    }

    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    #[must_use]
    pub fn at_host(mut self, host: HostId) -> Self {
        self.host = Some(host);
        self
    }

    #[must_use]
    pub fn with_field(mut self, field: impl Into<String>, why: impl Into<String>) -> Self {
        self.fields.push((field.into(), why.into()));
        self
    }

    /// Whether the peer really said so and will say so again: a reason of ours that does not pass by itself.
    /// False for a lost connection, a deadline, an answer that is not Drover's, and for transient reasons.
    pub const fn is_evidence(&self) -> bool {
        self.answered && !self.reason.is_transient()
    }

    /// Whether the peer answered at all.
    pub const fn is_answered(&self) -> bool {
        self.answered
    }

    /// Reads a status; one without our details becomes what its code suggests, and is no evidence.
    pub fn from_status(status: &Status) -> Self {
        let details = status.get_error_details();
        let ours = details
            .error_info()
            .filter(|info| info.domain == DOMAIN)
            .and_then(|info| Some((Reason::from_name(&info.reason)?, info)));
        let Some((reason, info)) = ours else {
            return Self {
                answered: false,
                ..Self::new(guess(status), describe(status))
            };
        };
        let violations = details
            .bad_request()
            .map(|bad| bad.field_violations.as_slice())
            .unwrap_or_default();
        Self {
            reason,
            message: status.message().to_owned(),
            remedy: info.metadata.get("remedy").cloned(),
            host: info.metadata.get("host").and_then(|host| host.parse().ok()),
            fields: violations
                .iter()
                .map(|bad| (bad.field.clone(), bad.description.clone()))
                .collect(),
            answered: true,
        }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let mut metadata = HashMap::new();
        if let Some(remedy) = &failure.remedy {
            metadata.insert("remedy".to_owned(), cut(remedy));
        }
        if let Some(host) = &failure.host {
            metadata.insert("host".to_owned(), host.to_string());
        }
        let mut details = ErrorDetails::with_error_info(failure.reason.name(), DOMAIN, metadata);
        if !failure.fields.is_empty() {
            let violation = |(field, why): &(String, String)| FieldViolation::new(cut(field), cut(why));
            details.set_bad_request(
                failure
                    .fields
                    .iter()
                    .take(MAX_FIELDS)
                    .map(violation)
                    .collect::<Vec<_>>(),
            );
        }
        Self::with_error_details(failure.reason.code(), cut(&failure.message), details)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::from_status(&status)
    }
}

/// The nearest reason for a status that has none of ours.
fn guess(status: &Status) -> Reason {
    if is_timeout(status) {
        return Reason::DeadlineExceeded;
    }
    match status.code() {
        Code::Unavailable => Reason::HostUnreachable,
        Code::DeadlineExceeded => Reason::DeadlineExceeded,
        Code::Cancelled => Reason::Cancelled,
        Code::Unimplemented => Reason::Unimplemented,
        Code::Unauthenticated => Reason::Unauthenticated,
        Code::PermissionDenied => Reason::PermissionDenied,
        Code::InvalidArgument => Reason::InvalidArgument,
        Code::ResourceExhausted => Reason::ResourceExhausted,
        Code::Ok
        | Code::Unknown
        | Code::NotFound
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Internal
        | Code::DataLoss => Reason::Internal,
    }
}

/// tonic reports an expired deadline of its own as CANCELLED.
fn is_timeout(status: &Status) -> bool {
    status.code() == Code::Cancelled
        && (sources(status).any(|error| error.is::<TimeoutExpired>())
            || status.message() == TimeoutExpired(()).to_string())
}

/// The error and all that lies beneath it.
pub fn sources<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// The status in words, with the innermost cause, which tonic leaves out.
fn describe(status: &Status) -> String {
    let cause = sources(status).skip(1).last().map(ToString::to_string);
    match cause {
        Some(cause) if !status.message().contains(&cause) => format!("{}: {cause}", status.message()),
        Some(_) | None if status.message().is_empty() => status.code().description().to_owned(),
        Some(_) | None => status.message().to_owned(),
    }
}

fn cut(text: &str) -> String {
    if text.len() <= MAX_TEXT_BYTES {
        return text.to_owned();
    }
    let end = (0..=MAX_TEXT_BYTES)
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_goes_through_a_status_and_back() {
        for &reason in Reason::ALL {
            let failure = Failure::new(reason, "what happened")
                .with_remedy("what to do")
                .at_host("host-1".parse().unwrap())
                .with_field("migration.guest_uuid", "is no UUID");
            let status = Status::from(failure.clone());
            assert_eq!(status.code(), reason.code());
            assert_eq!(Failure::from_status(&status), failure);
            assert_eq!(Failure::from_status(&status).is_evidence(), !reason.is_transient());
        }
    }

    #[test]
    fn what_drover_did_not_say_is_no_evidence() {
        for code in [
            Code::Unavailable,
            Code::Cancelled,
            Code::NotFound,
            Code::FailedPrecondition,
            Code::Unknown,
        ] {
            let failure = Failure::from_status(&Status::new(code, "something"));
            assert!(!failure.is_evidence() && !failure.is_answered(), "{code:?}");
        }
        let foreign = ErrorDetails::with_error_info("NEVER_RAN", "example.org", HashMap::new());
        let status = Status::with_error_details(Code::FailedPrecondition, "somebody else", foreign);
        assert!(!Failure::from_status(&status).is_evidence());
    }

    #[test]
    fn an_expired_deadline_is_not_a_cancellation() {
        let status = Status::from_error(Box::new(TimeoutExpired(())));
        assert_eq!(status.code(), Code::Cancelled);
        assert_eq!(Failure::from_status(&status).reason, Reason::DeadlineExceeded);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let status = Status::from(Failure::new(Reason::Internal, "ä".repeat(5000)));
        assert!(status.message().len() <= MAX_TEXT_BYTES + "…".len());
        assert!(status.message().ends_with("ä…"));
    }
}
