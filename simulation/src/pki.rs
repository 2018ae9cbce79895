//! Certificates of the controller, the agents and a user: one set for all worlds of a process.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use drover_proto::tls::{Tls, TlsFiles};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use tempfile::TempDir;

/// The identities that a world needs.
const IDENTITIES: [&str; 4] = ["controller", "agent/host-a", "agent/host-b", "user/operator"];

/// Certificates on disk.
#[derive(Debug)]
pub struct Pki {
    folder: TempDir,
}

impl Pki {
    /// Made where no world has it. It goes with the last that has: what is static is never dropped, and its folder
    /// would stay behind.
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Pki>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let made = Arc::new(Self::new().expect("certificates can be made"));
            *shared = Arc::downgrade(&made);
            made
        })
    }

    fn new() -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "authority of a simulation");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let folder = tempfile::tempdir()?;
        for identity in IDENTITIES {
            write(folder.path(), &ca, identity)?;
        }
        Ok(Self { folder })
    }

    /// Files of one of the [identities](IDENTITIES).
    pub fn files(&self, identity: &str) -> TlsFiles {
        files(self.folder.path(), identity)
    }

    /// The same, loaded.
    pub fn tls(&self, identity: &str) -> anyhow::Result<Tls> {
        Ok(Tls::load(self.files(identity), "drover.local".parse()?)?)
    }
}

fn folder_of(folder: &Path, identity: &str) -> PathBuf {
    folder.join(identity.replace('/', "-"))
}

fn files(folder: &Path, identity: &str) -> TlsFiles {
    let folder = folder_of(folder, identity);
    TlsFiles {
        certificate: folder.join("tls.crt"),
        key: folder.join("tls.key"),
        ca: folder.join("ca.crt"),
    }
}

fn write(folder: &Path, ca: &CertifiedIssuer<'static, KeyPair>, identity: &str) -> anyhow::Result<()> {
    let mut params = CertificateParams::default();
    let uri = format!("spiffe://drover.local/{identity}");
    params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into()?)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, ca)?;
    std::fs::create_dir_all(folder_of(folder, identity))?;
    let files = files(folder, identity);
    std::fs::write(&files.certificate, certificate.pem())?;
    std::fs::write(&files.key, key.serialize_pem())?;
    std::fs::write(&files.ca, ca.pem())?;
    Ok(())
}
