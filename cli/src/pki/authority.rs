//! The authority: makes itself, signs others. ECDSA P-256. Its trust domain is in its own certificate, as SPIFFE has it.

use std::net::IpAddr;
use std::path::Path;

use drover_proto::identity::{Identity, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::GeneralName;

use super::files::{read, write_public, write_secret};
use crate::exit::{Exit, Problem};

const CA_DAYS: i64 = 3650;

/// Certificates are valid a little before they are made: clocks differ.
const BACKDATE: Duration = Duration::hours(1);

pub(super) struct Authority {
    pub(super) trust_domain: TrustDomain,
    /// Its certificate.
    pub(super) pem: String,
    key: KeyPair,
}

/// Names beside the identity.
pub(super) struct Names {
    pub(super) dns: Vec<String>,
    pub(super) ip: Vec<IpAddr>,
}

fn failed(what: &str, error: &dyn std::fmt::Display) -> Problem {
    Problem::new(Exit::Failed, format!("{what}: {error}"))
}

impl Authority {
    pub(super) fn create(trust_domain: &TrustDomain) -> Result<Self, Problem> {
        let failed = |error: rcgen::Error| failed("cannot make an authority", &error);
        let key = new_key()?;
        let mut params = params(&format!("Drover development CA for {trust_domain}"), CA_DAYS);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))?];
        let pem = params.self_signed(&key).map_err(failed)?.pem();
        Ok(Self {
            trust_domain: trust_domain.clone(),
            pem,
            key,
        })
    }

    /// Reads the authority in `dir`; none where there is none at all.
    pub(super) fn load_if_there(dir: &Path) -> Result<Option<Self>, Problem> {
        let (certificate, key) = (dir.join("ca.crt"), dir.join("ca.key"));
        if !certificate.exists() && !key.exists() {
            return Ok(None);
        }
        let broken = |path: &Path, error: &dyn std::fmt::Display| {
            failed(&format!("{} is not usable", path.display()), error).with_next("make a new one with --force")
        };
        let pem = read(&certificate)?;
        let secret = KeyPair::from_pem(&read(&key)?).map_err(|error| broken(&key, &error))?;
        let trust_domain = trust_domain_of(&pem).map_err(|error| broken(&certificate, &error))?;
        Ok(Some(Self {
            trust_domain,
            pem,
            key: secret,
        }))
    }

    /// The key first: a certificate without its key would look like an authority.
    pub(super) fn save(&self, dir: &Path) -> Result<(), Problem> {
        write_secret(&dir.join("ca.key"), &self.key.serialize_pem())?;
        write_public(&dir.join("ca.crt"), &self.pem)
    }

    /// A certificate for both roles, server and client, with exactly one URI. Gives certificate and key as PEM.
    pub(super) fn issue(&self, identity: &Identity, names: &Names, days: u32) -> Result<(String, String), Problem> {
        let failed = |error: rcgen::Error| failed("cannot make the certificate", &error);
        let mut params = params(&identity.to_string(), i64::from(days));
        params.subject_alt_names = vec![uri(&identity.uri(&self.trust_domain))?];
        for name in &names.dns {
            let wrong = |_| Problem::new(Exit::Usage, format!("{name:?} is no DNS name"));
            params
                .subject_alt_names
                .push(SanType::DnsName(name.as_str().try_into().map_err(wrong)?));
        }
        params
            .subject_alt_names
            .extend(names.ip.iter().copied().map(SanType::IpAddress));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = new_key()?;
        let issuer = Issuer::from_ca_cert_pem(&self.pem, &self.key).map_err(failed)?;
        let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

fn new_key() -> Result<KeyPair, Problem> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| failed("cannot make a key", &error))
}

fn params(common_name: &str, days: i64) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = now - BACKDATE;
    params.not_after = now + Duration::days(days);
    params
}

fn uri(uri: &str) -> Result<SanType, Problem> {
    Ok(SanType::URI(
        uri.try_into()
            .map_err(|error| failed("cannot name the certificate", &error))?,
    ))
}

/// The trust domain in an authority's own certificate.
fn trust_domain_of(pem: &str) -> Result<TrustDomain, String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|error| error.to_string())?;
    let certificate = pem.parse_x509().map_err(|error| error.to_string())?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| error.to_string())?;
    let found = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .find_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix("spiffe://"),
            GeneralName::OtherName(..)
            | GeneralName::RFC822Name(_)
            | GeneralName::DNSName(_)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::IPAddress(_)
            | GeneralName::RegisteredID(_)
            | GeneralName::Invalid(..) => None,
        });
    found
        .ok_or("it names no trust domain")?
        .parse()
        .map_err(|error| format!("{error}"))
}
