//! A certificate authority for the tests.

use std::path::Path;
use std::time::{Duration, SystemTime};

use drover_proto::tls::{Tls, TlsFiles};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};

pub(crate) struct Pki(CertifiedIssuer<'static, KeyPair>);

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// TLS of the process with this identity, `agent/a` or `controller`.
    pub(crate) fn tls(&self, folder: &Path, identity: &str) -> Tls {
        self.tls_for(folder, identity, Duration::from_secs(24 * 3600))
    }

    /// The same, for a time from now.
    pub(crate) fn tls_for(&self, folder: &Path, identity: &str, life: Duration) -> Tls {
        let mut params = CertificateParams::default();
        let uri = format!("spiffe://drover.local/{identity}");
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = (SystemTime::now() + life).into();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let folder = folder.join(identity.replace('/', "-"));
        std::fs::create_dir_all(&folder).unwrap();
        let files = TlsFiles {
            certificate: folder.join("tls.crt"),
            key: folder.join("tls.key"),
            ca: folder.join("ca.crt"),
        };
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        std::fs::write(&files.ca, self.0.pem()).unwrap();
        Tls::load(files, "drover.local".parse().unwrap()).unwrap()
    }
}
