//! What an error of TLS, of a role or of a field means to whoever typed the command, and the next step.

use std::io;
use std::path::{Path, PathBuf};

use drover_proto::authorization::{Caller, TABLE};
use drover_proto::failure::Failure;
use drover_proto::roles::Role;
use drover_proto::tls::{TlsError, TlsFiles};
use time::OffsetDateTime;

use crate::exit::{Exit, Problem};
use crate::pki;

/// Field of the API, without what stands before it → the option that sets it.
const OPTIONS: &[(&str, &str)] = &[
    ("policy.max_downtime", "--max-downtime"),
    ("policy.deadline", "--deadline"),
    ("policy.on_deadline", "--on-deadline"),
    ("policy.bandwidth_limit_bytes_per_second", "--bandwidth"),
    ("policy.parallel_connections", "--parallel"),
    ("policy.compression", "--compression"),
    ("policy.storage.copy_disks", "--copy-disks"),
    ("policy.storage.delete_source", "--delete-source"),
    ("policy.storage.backing_chain", "--backing-chain"),
    ("policy.mode", "--mode"),
    ("max_downtime", "--max-downtime"),
    ("deadline", "--deadline"),
    ("bandwidth_limit_bytes_per_second", "--bandwidth"),
    ("destination_host", "--to"),
    ("source_host", "--from"),
    ("request_id", "--request-id"),
    ("labels", "--label"),
    ("filter", "--filter"),
    ("etag", "--etag"),
];

/// A failed connection, in other words than those of TLS where they mislead.
pub(crate) fn of_connection(error: &TlsError) -> Option<Problem> {
    let TlsError::Handshake { address, source } = error else {
        return None;
    };
    let (message, next) = if source.kind() == io::ErrorKind::TimedOut {
        (
            format!("what listens at {address} did not answer in time"),
            "is it a Drover controller, and does it hang? See its log, or name another with --controller",
        )
    } else if source.to_string().contains("corrupt message") {
        (
            format!("what answers at {address} does not speak TLS: it is no Drover controller"),
            "name the controller's address with --controller",
        )
    } else {
        return None;
    };
    Some(Problem::new(Exit::Unreachable, message).with_next(next))
}

/// Files that cannot be used: which of them, and since when.
pub(crate) fn of_files(error: TlsError, files: &TlsFiles) -> Problem {
    let TlsError::Invalid { path, why } = &error else {
        return error.into();
    };
    let known = |file: &PathBuf| Some((file.clone(), expired(file)?));
    let old = if why.contains("expired") {
        known(path).or_else(|| known(&files.ca))
    } else {
        None
    };
    if let Some((file, when)) = old {
        let message = format!("{} expired on {when}", file.display());
        return Problem::new(Exit::Unreachable, message)
            .with_next("get a new certificate from your authority (`drover pki issue` makes one for a trial)");
    }
    // The latter where two authorities have the same name.
    if why.contains("UnknownIssuer") || why.contains("BadSignature") {
        let (certificate, ca) = (files.certificate.display(), files.ca.display());
        let message = format!("no authority in {ca} has signed {certificate}");
        let next = format!("is it the right file of authorities? See `drover pki show {ca} {certificate}`");
        return Problem::new(Exit::Unreachable, message).with_next(next);
    }
    error.into()
}

/// When the first certificate of a file expired, if it did.
fn expired(file: &Path) -> Option<String> {
    let entries = pki::describe(file, OffsetDateTime::now_utc()).ok()?;
    let old = entries.iter().find(|entry| entry["expired"] == true)?;
    Some(old["not_after"].as_str()?.to_owned())
}

/// Who may do what was refused, and where that is said.
pub(crate) fn of_role(failure: &Failure) -> Option<String> {
    let (who, path) = failure.message.split_once(" may not call ")?;
    let user = who.strip_prefix("user/")?;
    let (_, callers) = TABLE.iter().find(|(row, _)| *row == path)?;
    let roles: Vec<&str> = callers.iter().filter_map(role).collect();
    let (last, first) = roles.split_last()?;
    let roles = if first.is_empty() {
        (*last).to_owned()
    } else {
        format!("{} or {last}", first.join(", "))
    };
    Some(format!(
        "it takes the role {roles}, and what {user} has, if any, is another. Roles stand in [roles] of the controller's \
         configuration, which it reads when it starts"
    ))
}

fn role(caller: &Caller) -> Option<&'static str> {
    match caller {
        Caller::With(Role::Viewer) => Some("viewer"),
        Caller::With(Role::Operator) => Some("operator"),
        Caller::With(Role::Admin) => Some("admin"),
        Caller::With(Role::Scheduler) => Some("scheduler"),
        Caller::Controller | Caller::AnyAgent | Caller::AnyUser => None,
    }
}

/// Bad fields by the names of their options, where there are some; all of them.
pub(crate) fn of_fields(failure: &Failure) -> Option<String> {
    let word = |(field, why): &(String, String)| {
        let name = option(field).unwrap_or(field);
        format!("{name}: {}", why.trim())
    };
    failure
        .fields
        .iter()
        .any(|(field, _)| option(field).is_some())
        .then(|| {
            let words: Vec<String> = failure.fields.iter().map(word).collect();
            words.join("; ")
        })
}

fn option(field: &str) -> Option<&'static str> {
    let field = field.strip_prefix("migration.").unwrap_or(field);
    let is_it = |name: &str| field == name || field.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'));
    OPTIONS.iter().find(|(name, _)| is_it(name)).map(|(_, option)| *option)
}

#[cfg(test)]
mod tests {
    use drover_proto::failure::Reason;

    use super::*;

    #[test]
    fn fields_are_told_by_their_options() {
        let failure = Failure::invalid("migration.policy.bandwidth_limit_bytes_per_second", "is too small")
            .with_field("migration.labels.team", "is too long");
        assert_eq!(
            of_fields(&failure).unwrap(),
            "--bandwidth: is too small; --label: is too long"
        );
        assert_eq!(of_fields(&Failure::invalid("page_size", "must not be negative")), None);
    }

    #[test]
    fn an_expired_file_is_named_with_its_day() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 2, 3);
        let old = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        std::fs::write(at("tls.crt"), old.pem()).unwrap();
        let files = TlsFiles {
            certificate: at("tls.crt"),
            key: at("tls.key"),
            ca: at("ca.crt"),
        };
        let invalid = |why: &str| TlsError::Invalid {
            path: at("tls.crt"),
            why: why.to_owned(),
        };
        let problem = of_files(invalid("invalid peer certificate: certificate expired"), &files);
        assert!(
            problem.message.ends_with("tls.crt expired on 2021-02-03T00:00:00Z"),
            "{problem}"
        );
        let problem = of_files(invalid("invalid peer certificate: UnknownIssuer"), &files);
        assert!(problem.message.starts_with("no authority in "), "{problem}");
    }

    #[test]
    fn a_role_that_would_do_is_named() {
        let refused = |path: &str| Failure::new(Reason::PermissionDenied, format!("user/vic may not call {path}"));
        let said = of_role(&refused("/drover.v1.HostService/CordonHost")).unwrap();
        assert!(
            said.starts_with("it takes the role operator or admin, and what vic has"),
            "{said}"
        );
        assert!(said.contains("when it starts"));
        assert_eq!(of_role(&refused("/drover.v1.HostService/RegisterHost")), None);
    }

    #[test]
    fn what_is_no_controller_is_not_about_certificates() {
        let failed = |source: io::Error| TlsError::Handshake {
            address: "c:1".to_owned(),
            source,
        };
        let silent = of_connection(&failed(io::ErrorKind::TimedOut.into())).unwrap();
        assert!(silent.message.contains("did not answer in time"));
        let other = of_connection(&failed(io::Error::other(
            "received corrupt message of type InvalidContentType",
        )));
        assert!(other.unwrap().message.contains("no Drover controller"));
        assert_eq!(of_connection(&failed(io::Error::other("UnknownIssuer"))), None);
    }
}
