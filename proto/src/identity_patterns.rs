//! Which URIs name which identities, for a PKI that writes them in a way of its own. Without configuration it is
//! SPIFFE as Drover has it: `spiffe://<trust-domain>/controller`, `/agent/<host-id>`, `/user/<name>`.
//!
//! Promise: a URI means one identity or none. A pattern for agents names the host, so that no two hosts share one.

use serde::Deserialize;

use crate::identity::{Identity, IdentityError, TrustDomain, is_user_name, shorten, uri_of};

/// Longest pattern, and longest URI that is compared with one, in bytes.
const MAX_BYTES: usize = 2048;

/// As it is written in a configuration: `[identities]`. A kind without patterns keeps the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PatternLists {
    /// Whole URIs.
    pub controller: Vec<String>,
    /// URIs with `{host}` where the host id stands.
    pub agent: Vec<String>,
    /// URIs, with `{name}` where the user's name stands.
    pub user: Vec<String>,
}

/// From URI to identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityPatterns {
    trust_domain: TrustDomain,
    patterns: Vec<Pattern>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Controller,
    Agent,
    User,
}

/// Everything before and after the one part that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    kind: Kind,
    before: String,
    after: String,
}

impl From<TrustDomain> for IdentityPatterns {
    fn from(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            patterns: Vec::new(),
        }
    }
}

impl IdentityPatterns {
    /// Reads what is configured; `trust_domain` is for the kinds without patterns.
    pub fn new(trust_domain: TrustDomain, lists: &PatternLists) -> Result<Self, IdentityError> {
        let kinds = [
            (Kind::Controller, &lists.controller),
            (Kind::Agent, &lists.agent),
            (Kind::User, &lists.user),
        ];
        let written = kinds
            .into_iter()
            .flat_map(|(kind, list)| list.iter().map(move |text| (kind, text)));
        let patterns = written
            .map(|(kind, text)| Pattern::read(kind, text))
            .collect::<Result<_, _>>()?;
        Ok(Self { trust_domain, patterns })
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Who a URI names.
    pub fn identify(&self, uri: &str) -> Result<Identity, IdentityError> {
        if self.patterns.is_empty() {
            return Identity::from_uri(uri, &self.trust_domain);
        }
        let refuse = |why| IdentityError::Uri {
            given: shorten(uri),
            why,
        };
        if uri.len() > MAX_BYTES {
            return Err(refuse("it is too long"));
        }
        // A kind that has patterns of its own is not read in the usual way as well.
        let usual = Identity::from_uri(uri, &self.trust_domain)
            .ok()
            .filter(|identity| !self.has(kind_of(identity)));
        let configured = self.patterns.iter().filter_map(|pattern| pattern.read_uri(uri));
        let mut named: Vec<Identity> = configured.chain(usual).collect();
        named.dedup();
        match named.len() {
            1 => Ok(named.remove(0)),
            0 => Err(refuse("no pattern of [identities] fits")),
            _ => Err(refuse("patterns of [identities] contradict each other")),
        }
    }

    /// Who the holder of a certificate is. The chain must have been verified already.
    pub fn of_certificate(&self, der: &[u8]) -> Result<Identity, IdentityError> {
        self.identify(&uri_of(der)?)
    }

    fn has(&self, kind: Kind) -> bool {
        self.patterns.iter().any(|pattern| pattern.kind == kind)
    }
}

fn kind_of(identity: &Identity) -> Kind {
    match identity {
        Identity::Controller => Kind::Controller,
        Identity::Agent(_) => Kind::Agent,
        Identity::User(_) => Kind::User,
    }
}

impl Pattern {
    fn read(kind: Kind, text: &str) -> Result<Self, IdentityError> {
        let refuse = |why| {
            Err(IdentityError::Pattern {
                given: shorten(text),
                why,
            })
        };
        let part = match kind {
            Kind::Controller => "",
            Kind::Agent => "{host}",
            Kind::User => "{name}",
        };
        let (before, after) = match text.split_once(part) {
            _ if part.is_empty() => (text, ""),
            Some(halves) => halves,
            None if kind == Kind::Agent => {
                return refuse("it must contain {host}: an identity that several hosts share is none");
            }
            None => return refuse("it must contain {name}"),
        };
        // Percent signs are refused because some reader could decode them into another name.
        let allowed = |c: u8| c.is_ascii_graphic() && !matches!(c, b'{' | b'}' | b'%');
        if text.len() > MAX_BYTES || !before.bytes().chain(after.bytes()).all(allowed) {
            return refuse("expected a URI of printable ASCII without braces and percent signs");
        }
        if !before.contains("://") {
            return refuse("it must begin with a scheme, like spiffe://");
        }
        Ok(Self {
            kind,
            before: before.to_owned(),
            after: after.to_owned(),
        })
    }

    fn read_uri(&self, uri: &str) -> Option<Identity> {
        let part = uri.strip_prefix(&self.before)?.strip_suffix(&self.after)?;
        match self.kind {
            Kind::Controller => part.is_empty().then_some(Identity::Controller),
            Kind::Agent => part.parse().ok().map(Identity::Agent),
            Kind::User => is_user_name(part).then(|| Identity::User(part.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_pki::TestCa;

    fn domain() -> TrustDomain {
        "drover.local".parse().unwrap()
    }

    fn lists(controller: &[&str], agent: &[&str], user: &[&str]) -> PatternLists {
        let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        PatternLists {
            controller: owned(controller),
            agent: owned(agent),
            user: owned(user),
        }
    }

    fn read(lists: &PatternLists) -> Result<IdentityPatterns, IdentityError> {
        IdentityPatterns::new(domain(), lists)
    }

    #[test]
    fn a_foreign_pki_names_identities_in_its_own_way() {
        let patterns = read(&lists(
            &["spiffe://prod.example/ns/drover/sa/controller"],
            &["spiffe://prod.example/node/{host}/drover", "urn://dc1/{host}"],
            &["https://idp.example/users/{name}"],
        ))
        .unwrap();
        let agent = |host: &str| Identity::Agent(host.parse().unwrap());
        for (uri, expected) in [
            ("spiffe://prod.example/ns/drover/sa/controller", Identity::Controller),
            ("spiffe://prod.example/node/host-1/drover", agent("host-1")),
            ("urn://dc1/host-1", agent("host-1")),
            (
                "https://idp.example/users/alice@example.org",
                Identity::User("alice@example.org".to_owned()),
            ),
        ] {
            assert_eq!(patterns.identify(uri).unwrap(), expected);
        }
        for uri in [
            "",
            "spiffe://prod.example/ns/drover/sa/controller/",
            "spiffe://prod.example/ns/drover/sa/controllerx",
            "spiffe://prod.example/node/host-1/other",
            "spiffe://prod.example/node/a/b/drover",
            "spiffe://prod.example/node//drover",
            "spiffe://prod.example/node/HOST/drover",
            "https://idp.example/users/a/b",
            "https://idp.example/users/..",
            "https://idp.example/users/%61",
            // What Drover has by itself counts no more where patterns are configured.
            "spiffe://drover.local/controller",
            "spiffe://drover.local/agent/host-1",
            "spiffe://drover.local/user/alice",
        ] {
            assert!(patterns.identify(uri).is_err(), "{uri:?} was accepted");
        }
    }

    #[test]
    fn a_kind_without_patterns_stays_as_it_is() {
        let patterns = read(&lists(&[], &[], &["https://idp.example/{name}"])).unwrap();
        assert_eq!(
            patterns.identify("spiffe://drover.local/controller").unwrap(),
            Identity::Controller
        );
        assert!(patterns.identify("spiffe://drover.local/user/alice").is_err());
        assert!(patterns.identify("https://idp.example/alice").is_ok());
        let usual = IdentityPatterns::from(domain());
        assert!(usual.identify("spiffe://drover.local/user/alice").is_ok());
    }

    #[test]
    fn an_agent_pattern_without_a_host_is_refused() {
        let shared = "spiffe://prod.example/ns/drover/sa/agent";
        let refused = read(&lists(&[], &[shared], &[])).unwrap_err();
        assert!(refused.to_string().contains("{host}"), "{refused}");
        for bad in [
            "{host}",
            "spiffe:{host}",
            "a://{host}/{host}",
            "a://ü/{host}",
            "a://%41/{host}",
        ] {
            assert!(read(&lists(&[], &[bad], &[])).is_err(), "{bad:?} was accepted");
        }
        assert!(read(&lists(&[], &[], &["https://idp.example/everybody"])).is_err());
        assert!(read(&lists(&["no uri"], &[], &[])).is_err());
    }

    #[test]
    fn patterns_that_contradict_each_other_name_nobody() {
        let patterns = read(&lists(&[], &["a://x/{host}"], &["a://x/{name}"])).unwrap();
        let refused = patterns.identify("a://x/host-1").unwrap_err();
        assert!(refused.to_string().contains("contradict"), "{refused}");
    }

    #[test]
    fn a_certificate_with_several_uris_names_nobody() {
        let patterns = read(&lists(&[], &["a://x/{host}"], &[])).unwrap();
        let ca = TestCa::new();
        let one = ca.issue(&["a://x/host-1"]);
        assert!(patterns.of_certificate(one.der()).is_ok());
        let two = ca.issue(&["a://x/host-1", "b://unknown"]);
        assert_eq!(
            patterns.of_certificate(two.der()).unwrap_err(),
            IdentityError::UriCount(2)
        );
    }

    #[test]
    fn a_configuration_is_read_as_written() {
        let lists: PatternLists = serde_json::from_str(r#"{"agent": ["a://x/{host}"]}"#).unwrap();
        assert_eq!(lists.agent, ["a://x/{host}"]);
        assert!(serde_json::from_str::<PatternLists>(r#"{"agents": []}"#).is_err());
    }
}
