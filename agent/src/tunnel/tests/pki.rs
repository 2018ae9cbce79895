//! A certificate authority for tests and benchmarks.

use std::path::Path;

use drover_proto::identity::{Identity, TrustDomain};
use drover_proto::tls::{Tls, TlsFiles};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};

pub(crate) struct Pki {
    issuer: CertifiedIssuer<'static, KeyPair>,
    domain: TrustDomain,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self {
            issuer,
            domain: "drover.test".parse().unwrap(),
        }
    }

    /// Writes a certificate of this identity below `folder` and loads it.
    pub(crate) fn tls(&self, folder: &Path, identity: &Identity) -> Tls {
        self.tls_for(folder, identity, time::Duration::days(1))
    }

    /// The same, for a time from now.
    pub(crate) fn tls_for(&self, folder: &Path, identity: &Identity, life: time::Duration) -> Tls {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let uri = identity.uri(&self.domain);
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = time::OffsetDateTime::now_utc() + life;
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let folder = folder.join(format!("{identity:?}").replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
        std::fs::create_dir_all(&folder).unwrap();
        let [crt, pem, ca] = ["tls.crt", "tls.key", "ca.crt"].map(|name| folder.join(name));
        std::fs::write(&crt, certificate.pem()).unwrap();
        std::fs::write(&pem, key.serialize_pem()).unwrap();
        std::fs::write(&ca, self.issuer.pem()).unwrap();
        Tls::load(
            TlsFiles {
                certificate: crt,
                key: pem,
                ca,
            },
            self.domain.clone(),
        )
        .unwrap()
    }
}
