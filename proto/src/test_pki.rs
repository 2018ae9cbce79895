//! A certificate authority for tests: certificates with chosen names and lifetimes, written where `Tls::load` reads.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

use crate::tls::TlsFiles;

pub(crate) struct TestCa(CertifiedIssuer<'static, KeyPair>);

pub(crate) struct TestCertificate {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl TestCa {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate valid now, with these URI names.
    pub(crate) fn issue(&self, uris: &[&str]) -> TestCertificate {
        let now = OffsetDateTime::now_utc();
        self.issue_for(uris, now - Duration::hours(1), now + Duration::hours(1))
    }

    pub(crate) fn issue_for(&self, uris: &[&str], from: OffsetDateTime, until: OffsetDateTime) -> TestCertificate {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris.iter().map(|&uri| SanType::URI(uri.try_into().unwrap())).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = from;
        params.not_after = until;
        TestCertificate {
            certificate: params.signed_by(&key, &self.0).unwrap(),
            key,
        }
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// Writes certificate, key and this authority into `folder`.
    pub(crate) fn write(&self, folder: &Path, certificate: &TestCertificate) -> TlsFiles {
        let files = TlsFiles {
            certificate: folder.join("tls.crt"),
            key: folder.join("tls.key"),
            ca: folder.join("ca.crt"),
        };
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(&files.certificate, certificate.certificate.pem()).unwrap();
        std::fs::write(&files.key, certificate.key.serialize_pem()).unwrap();
        std::fs::write(&files.ca, self.0.pem()).unwrap();
        files
    }
}

impl TestCertificate {
    pub(crate) fn der(&self) -> &[u8] {
        self.certificate.der()
    }
}
