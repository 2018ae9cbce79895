//! Who a peer is: one SPIFFE URI in its certificate, `spiffe://<trust-domain>/controller`, `/agent/<host-id>` or
//! `/user/<name>`. Everything else is refused, so that no two spellings name one identity.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::ids::HostId;

/// Longest SPIFFE URI that is read, in bytes (the standard's own limit).
const MAX_URI_BYTES: usize = 2048;

/// Longest user name, in bytes.
const MAX_USER_BYTES: usize = 128;

/// The name space of identities: a DNS-like name in lower case, `drover.local`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(String);

impl TrustDomain {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'-' | b'_');
        if (1..=255).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdentityError::TrustDomain { given: shorten(text) })
        }
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, IdentityError> {
        text.parse()
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who somebody is. `Display` is without the trust domain: `controller`, `agent/host-1`, `user/alice`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A controller.
    Controller,
    /// The agent of a host.
    Agent(HostId),
    /// A person or a program that uses the public API.
    User(String),
}

/// Why something is no identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("trust domain {given:?} is not valid: expected a-z, 0-9, '.', '-' and '_'")]
    TrustDomain { given: String },
    #[error("{given:?} is not a Drover identity: {why}")]
    Uri { given: String, why: &'static str },
    #[error("{given:?} is not in the trust domain {expected}")]
    OtherTrustDomain { given: String, expected: TrustDomain },
    #[error("the certificate cannot be read: {0}")]
    Certificate(String),
    #[error("the certificate has {0} URI names, but an identity is exactly one")]
    UriCount(usize),
    #[error("the pattern {given:?} of [identities] is not valid: {why}")]
    Pattern { given: String, why: &'static str },
}

impl Identity {
    /// `spiffe://<trust-domain>/…`.
    pub fn uri(&self, trust_domain: &TrustDomain) -> String {
        format!("spiffe://{trust_domain}/{self}")
    }

    /// Reads a URI of the given trust domain.
    pub fn from_uri(uri: &str, trust_domain: &TrustDomain) -> Result<Self, IdentityError> {
        let refuse = |why| IdentityError::Uri {
            given: shorten(uri),
            why,
        };
        if uri.len() > MAX_URI_BYTES {
            return Err(refuse("it is too long"));
        }
        let rest = uri
            .strip_prefix("spiffe://")
            .ok_or_else(|| refuse("it does not begin with spiffe://"))?;
        let (domain, path) = rest.split_once('/').ok_or_else(|| refuse("it has no path"))?;
        if domain != trust_domain.as_str() {
            return Err(IdentityError::OtherTrustDomain {
                given: shorten(uri),
                expected: trust_domain.clone(),
            });
        }
        Self::from_path(path).map_err(refuse)
    }

    /// Reads the part after the trust domain: `controller`, `agent/<host-id>`, `user/<name>`.
    fn from_path(path: &str) -> Result<Self, &'static str> {
        match path.split_once('/') {
            None if path == "controller" => Ok(Self::Controller),
            Some(("agent", host)) => host.parse().map(Self::Agent).map_err(|_| "the host id is not valid"),
            Some(("user", name)) if is_user_name(name) => Ok(Self::User(name.to_owned())),
            Some(("user", _)) => Err("the user name may have a-z, A-Z, 0-9, '.', '-', '_' and '@'"),
            None | Some(_) => Err("expected /controller, /agent/<host-id> or /user/<name>"),
        }
    }

    /// Reads the identity in a certificate: its only URI name. The chain must have been verified already.
    pub fn from_certificate(der: &[u8], trust_domain: &TrustDomain) -> Result<Self, IdentityError> {
        Self::from_uri(&uri_of(der)?, trust_domain)
    }
}

/// The only URI name of a certificate.
pub(crate) fn uri_of(der: &[u8]) -> Result<String, IdentityError> {
    let unreadable = |error: &dyn fmt::Display| IdentityError::Certificate(error.to_string());
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| unreadable(&error))?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| unreadable(&error))?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| {
            if let GeneralName::URI(uri) = name {
                Some(*uri)
            } else {
                None
            }
        })
        .collect();
    match uris[..] {
        [uri] => Ok(uri.to_owned()),
        [] | [_, _, ..] => Err(IdentityError::UriCount(uris.len())),
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Controller => f.write_str("controller"),
            Self::Agent(host) => write!(f, "agent/{host}"),
            Self::User(name) => write!(f, "user/{name}"),
        }
    }
}

/// Reads what `Display` writes.
impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        Self::from_path(text).map_err(|why| IdentityError::Uri {
            given: shorten(text),
            why,
        })
    }
}

/// No percent signs, slashes or dots alone: nothing that a reader of URIs could normalise into another name.
pub(crate) fn is_user_name(name: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_' | b'@');
    (1..=MAX_USER_BYTES).contains(&name.len()) && name.bytes().all(allowed) && name != "." && name != ".."
}

/// What comes from outside may be long: an error quotes only its beginning.
pub(crate) fn shorten(text: &str) -> String {
    text.chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_pki::TestCa;

    fn domain() -> TrustDomain {
        "drover.local".parse().unwrap()
    }

    #[test]
    fn identities_are_written_and_read_back() {
        let agent = Identity::Agent("host-1".parse().unwrap());
        let user = Identity::User("alice@example.org".to_owned());
        for (identity, uri) in [
            (Identity::Controller, "spiffe://drover.local/controller"),
            (agent, "spiffe://drover.local/agent/host-1"),
            (user, "spiffe://drover.local/user/alice@example.org"),
        ] {
            assert_eq!(identity.uri(&domain()), uri);
            assert_eq!(Identity::from_uri(uri, &domain()).unwrap(), identity);
            assert_eq!(identity.to_string().parse::<Identity>().unwrap(), identity);
        }
    }

    #[test]
    fn hostile_uris_are_refused() {
        let long = format!("spiffe://drover.local/user/{}", "a".repeat(5000));
        for uri in [
            "",
            "spiffe://",
            "spiffe://drover.local",
            "spiffe://drover.local/",
            "spiffe:///controller",
            "spiffe://drover.local/controller/",
            "spiffe://drover.local//controller",
            "spiffe://drover.local/Controller",
            "spiffe://drover.local/controller?x=1",
            "spiffe://drover.local/controller#x",
            "spiffe://drover.local/%63ontroller",
            "spiffe://drover.local:443/controller",
            "spiffe://user@drover.local/controller",
            "spiffe://DROVER.local/controller",
            "SPIFFE://drover.local/controller",
            "https://drover.local/controller",
            "spiffe://drover.local/agent",
            "spiffe://drover.local/agent/",
            "spiffe://drover.local/agent/../controller",
            "spiffe://drover.local/agent/host-1/controller",
            "spiffe://drover.local/agent/HOST",
            "spiffe://drover.local/user/",
            "spiffe://drover.local/user/..",
            "spiffe://drover.local/user/a/b",
            "spiffe://drover.local/user/a b",
            "spiffe://drover.local/user/a\0",
            "spiffe://drover.local/user/ä",
            "spiffe://drover.local/admin/a",
            " spiffe://drover.local/controller",
            long.as_str(),
        ] {
            assert!(Identity::from_uri(uri, &domain()).is_err(), "{uri:?} was accepted");
        }
    }

    #[test]
    fn another_trust_domain_is_refused() {
        let error = Identity::from_uri("spiffe://evil.local/controller", &domain()).unwrap_err();
        assert!(matches!(error, IdentityError::OtherTrustDomain { .. }), "{error}");
    }

    #[test]
    fn a_certificate_has_exactly_one_uri() {
        let ca = TestCa::new();
        let one = ca.issue(&["spiffe://drover.local/controller"]);
        assert_eq!(
            Identity::from_certificate(one.der(), &domain()).unwrap(),
            Identity::Controller
        );
        let two = ca.issue(&["spiffe://drover.local/controller", "spiffe://drover.local/agent/host-1"]);
        assert_eq!(
            Identity::from_certificate(two.der(), &domain()).unwrap_err(),
            IdentityError::UriCount(2)
        );
        let none = ca.issue(&[]);
        assert_eq!(
            Identity::from_certificate(none.der(), &domain()).unwrap_err(),
            IdentityError::UriCount(0)
        );
        let noise = Identity::from_certificate(b"noise", &domain()).unwrap_err();
        assert!(matches!(noise, IdentityError::Certificate(_)), "{noise}");
    }
}
