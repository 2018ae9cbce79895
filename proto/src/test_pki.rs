//! A certificate authority for tests: certificates with chosen names and lifetimes, written where `Tls::load` reads.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

use crate::tls::TlsFiles;

pub(crate) struct TestCa {
    issuer: CertifiedIssuer<'static, KeyPair>,
    params: CertificateParams,
}

pub(crate) struct TestCertificate {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl TestCa {
    pub(crate) fn new() -> Self {
        Self::named("test CA")
    }

    pub(crate) fn named(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params.clone(), KeyPair::generate().unwrap()).unwrap();
        Self { issuer, params }
    }

    /// A certificate of `new`'s key and name by this authority: who trusts this one may trust that one through it.
    pub(crate) fn cross_sign(&self, new: &Self) -> String {
        new.params.signed_by(new.issuer.key(), &self.issuer).unwrap().pem()
    }

    /// A certificate valid now, with these URI names.
    pub(crate) fn issue(&self, uris: &[&str]) -> TestCertificate {
        let now = OffsetDateTime::now_utc();
        self.issue_for(uris, now - Duration::hours(1), now + Duration::hours(1))
    }

    pub(crate) fn issue_for(&self, uris: &[&str], from: OffsetDateTime, until: OffsetDateTime) -> TestCertificate {
        let usages = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue_with(uris, from, until, &usages)
    }

    pub(crate) fn issue_with(
        &self,
        uris: &[&str],
        from: OffsetDateTime,
        until: OffsetDateTime,
        usages: &[ExtendedKeyUsagePurpose],
    ) -> TestCertificate {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris.iter().map(|&uri| SanType::URI(uri.try_into().unwrap())).collect();
        params.extended_key_usages = usages.to_vec();
        params.not_before = from;
        params.not_after = until;
        TestCertificate {
            certificate: params.signed_by(&key, &self.issuer).unwrap(),
            key,
        }
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
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
        std::fs::write(&files.ca, self.issuer.pem()).unwrap();
        files
    }
}

impl TestCertificate {
    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }

    pub(crate) fn key(&self) -> String {
        self.key.serialize_pem()
    }

    pub(crate) fn der(&self) -> &[u8] {
        self.certificate.der()
    }
}
