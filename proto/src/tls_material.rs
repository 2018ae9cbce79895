//! Certificate, key and authorities as read from files: checked before anybody uses them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

use crate::identity::{Identity, IdentityError};
use crate::identity_patterns::IdentityPatterns;
use crate::tls::{TlsError, TlsFiles};

/// What one set of files gives.
pub(crate) struct Material {
    /// The bytes of the three files, to notice a change.
    contents: [Vec<u8>; 3],
    pub(crate) key: Arc<CertifiedKey>,
    pub(crate) identity: Identity,
    /// Of the own certificate.
    pub(crate) life: Life,
    pub(crate) servers: Arc<dyn ServerCertVerifier>,
    pub(crate) clients: Arc<dyn ClientCertVerifier>,
}

/// Reads the three files.
pub(crate) fn read(files: &TlsFiles) -> Result<[Vec<u8>; 3], TlsError> {
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|source| TlsError::Read {
            path: path.clone(),
            source,
        })
    };
    Ok([read(&files.certificate)?, read(&files.key)?, read(&files.ca)?])
}

impl Material {
    /// Parses what was read, and refuses what a peer would refuse: a key of another certificate, an expired one, one
    /// that these authorities did not sign, one without an identity.
    pub(crate) fn parse(
        contents: [Vec<u8>; 3],
        files: &TlsFiles,
        identities: &IdentityPatterns,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, TlsError> {
        let [certificate, key, ca] = &contents;
        let chain = certificates(certificate, &files.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| invalid(&files.key, &error))?;
        let mut roots = RootCertStore::empty();
        for authority in certificates(ca, &files.ca)? {
            roots.add(authority).map_err(|error| invalid(&files.ca, &error))?;
        }
        let roots = Arc::new(roots);

        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider))
            .build()
            .map_err(|error| invalid(&files.ca, &error))?;
        let identity = identities.of_certificate(&chain[0])?;
        let life = Life::of(&chain[0])?;
        verify(&chain, &identity, &roots, &*clients, provider).map_err(|error| invalid(&files.certificate, &error))?;
        let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| invalid(&files.key, &error))?;
        let servers = Arc::new(ChainVerifier {
            roots,
            provider: Arc::clone(provider),
        });
        Ok(Self {
            contents,
            key: Arc::new(key),
            identity,
            life,
            servers,
            clients,
        })
    }

    pub(crate) fn is_made_of(&self, contents: &[Vec<u8>; 3]) -> bool {
        self.contents == *contents
    }
}

/// From when and until when a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) from: SystemTime,
    pub(crate) until: SystemTime,
}

impl Life {
    pub(crate) fn of(der: &[u8]) -> Result<Self, TlsError> {
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|error| TlsError::Identity(IdentityError::Certificate(error.to_string())))?;
        let time = |time: ASN1Time| {
            let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
        };
        Ok(Self {
            from: time(certificate.validity().not_before),
            until: time(certificate.validity().not_after),
        })
    }
}

fn certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(path, &error))?;
    if certificates.is_empty() {
        return Err(invalid(path, &"there is no certificate in it"));
    }
    Ok(certificates)
}

fn invalid(path: &Path, error: &dyn fmt::Display) -> TlsError {
    TlsError::Invalid {
        path: path.to_owned(),
        why: error.to_string(),
    }
}

/// What peers will look at. Users are clients only; everybody else is both.
fn verify(
    chain: &[CertificateDer<'_>],
    identity: &Identity,
    roots: &RootCertStore,
    clients: &dyn ClientCertVerifier,
    provider: &CryptoProvider,
) -> Result<(), rustls::Error> {
    clients.verify_client_cert(&chain[0], &chain[1..], UnixTime::now())?;
    match identity {
        Identity::User(_) => Ok(()),
        Identity::Controller | Identity::Agent(_) => {
            let algorithms = provider.signature_verification_algorithms.all;
            let leaf = ParsedCertificate::try_from(&chain[0])?;
            verify_server_cert_signed_by_trust_anchor(&leaf, roots, &chain[1..], UnixTime::now(), algorithms)
        }
    }
}

/// Checks a server's chain, not its DNS name: who it is, its SPIFFE URI says, and `Tls::connect` compares that.
#[derive(Debug)]
struct ChainVerifier {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ChainVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let leaf = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.roots, intermediates, now, algorithms)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
