//! Mutual TLS 1.3 between Drover's processes. Both sides always show a certificate; who the peer is, its SPIFFE URI
//! says.
//!
//! Promise: files are re-read when they change, without dropping a stream; a bad new file is reported and the old
//! material stays.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::ServerName;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, CommonState, ServerConfig};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::identity::{Identity, IdentityError, TrustDomain};
use crate::identity_patterns::IdentityPatterns;
use crate::tls_material::{self, Material};

/// Limit of a TCP connect.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Limit of a handshake, either side.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// ALPN of gRPC.
pub const ALPN_H2: &[u8] = b"h2";

/// ALPN of QEMU's byte streams.
pub const ALPN_DATA: &[u8] = b"drover-data/1";

/// Where certificate, key and authorities lie, all PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The own certificate, then its intermediates.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities that sign peers' certificates.
    pub ca: PathBuf,
}

/// What can go wrong with TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not usable: {why}", path.display())]
    Invalid { path: PathBuf, why: String },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("the new certificate is for {new}, this process is {old}")]
    IdentityChanged { old: Identity, new: Identity },
    #[error("{address:?} is not an address: expected host:port")]
    Address { address: String },
    #[error("cannot connect to {address}: {source}")]
    Connect { address: String, source: io::Error },
    #[error("no TLS with {address}: {source}")]
    Handshake { address: String, source: io::Error },
    #[error("the peer at {address} shows no certificate")]
    NoCertificate { address: String },
    #[error("the peer at {address} is {found}, expected {expected}")]
    WrongPeer {
        address: String,
        found: Identity,
        expected: Identity,
    },
    #[error("the peer at {address} does not speak {expected}")]
    Alpn { address: String, expected: String },
}

/// This process's certificate and the authorities it trusts. Cheap to clone; all clones reload together.
#[derive(Clone)]
pub struct Tls {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) files: TlsFiles,
    pub(crate) identities: IdentityPatterns,
    pub(crate) provider: Arc<CryptoProvider>,
    pub(crate) material: ArcSwap<Material>,
    /// Why the files as they are now are not in use.
    pub(crate) bad_files: Mutex<Option<String>>,
}

impl Tls {
    /// Reads and checks the files; identities are named in Drover's own way.
    pub fn load(files: TlsFiles, trust_domain: TrustDomain) -> Result<Self, TlsError> {
        Self::load_with(files, trust_domain.into())
    }

    /// Reads and checks the files; identities are named as configured.
    pub fn load_with(files: TlsFiles, identities: IdentityPatterns) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let material = Material::parse(tls_material::read(&files)?, &files, &identities, &provider)?;
        Ok(Self {
            shared: Arc::new(Shared {
                files,
                identities,
                provider,
                material: ArcSwap::from_pointee(material),
                bad_files: Mutex::default(),
            }),
        })
    }

    /// How identities are named.
    pub fn identities(&self) -> &IdentityPatterns {
        &self.shared.identities
    }

    /// Who this process is, by its own certificate.
    pub fn own_identity(&self) -> Identity {
        self.shared.material.load().identity.clone()
    }

    /// For servers. Asks for a client certificate and refuses peers without one. The newest material at each call.
    pub fn server_config(&self, alpn: &[&[u8]]) -> Arc<ServerConfig> {
        let material = self.shared.material.load();
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.shared.provider))
            .with_protocol_versions(&[&TLS13])
            .expect("the provider speaks TLS 1.3")
            .with_client_cert_verifier(Arc::clone(&material.clients))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&material.key))));
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        // No resumption: every connection is checked against the authorities of today.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }

    /// For clients. Checks the server's chain, not who it is: that is `connect`'s part.
    pub fn client_config(&self, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        let material = self.shared.material.load();
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.shared.provider))
            .with_protocol_versions(&[&TLS13])
            .expect("the provider speaks TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&material.servers))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&material.key))));
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.resumption = Resumption::disabled();
        Arc::new(config)
    }

    /// Connects to `host:port`, and makes sure that it is `expected` who answers.
    pub async fn connect(
        &self,
        address: &str,
        alpn: &[u8],
        expected: &Identity,
    ) -> Result<TlsStream<TcpStream>, TlsError> {
        Ok(self.connect_until(address, alpn, expected).await?.0)
    }

    /// The same, with the end of the life of the peer's certificate.
    pub(crate) async fn connect_until(
        &self,
        address: &str,
        alpn: &[u8],
        expected: &Identity,
    ) -> Result<(TlsStream<TcpStream>, SystemTime), TlsError> {
        let name = server_name(address)?;
        let refused = |source| TlsError::Connect {
            address: address.to_owned(),
            source,
        };
        let tcp = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await;
        let tcp = tcp
            .map_err(|_| refused(io::ErrorKind::TimedOut.into()))?
            .map_err(refused)?;
        tcp.set_nodelay(true).map_err(refused)?;

        let failed = |source| TlsError::Handshake {
            address: address.to_owned(),
            source,
        };
        let handshake = TlsConnector::from(self.client_config(&[alpn])).connect(name, tcp);
        let stream = timeout(HANDSHAKE_TIMEOUT, handshake).await;
        let stream = stream
            .map_err(|_| failed(io::ErrorKind::TimedOut.into()))?
            .map_err(failed)?;

        let session = stream.get_ref().1;
        let (found, expires) = peer_identity(session, self.identities(), address)?;
        if found != *expected {
            return Err(TlsError::WrongPeer {
                address: address.to_owned(),
                found,
                expected: expected.clone(),
            });
        }
        if session.alpn_protocol() != Some(alpn) {
            let expected = String::from_utf8_lossy(alpn).into_owned();
            return Err(TlsError::Alpn {
                address: address.to_owned(),
                expected,
            });
        }
        Ok((stream, expires))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("files", &self.shared.files)
            .finish_non_exhaustive()
    }
}

/// Who the peer of a finished handshake is, and when its certificate's life ends.
pub(crate) fn peer_identity(
    session: &CommonState,
    identities: &IdentityPatterns,
    address: &str,
) -> Result<(Identity, SystemTime), TlsError> {
    let Some([leaf, ..]) = session.peer_certificates() else {
        return Err(TlsError::NoCertificate {
            address: address.to_owned(),
        });
    };
    Ok((identities.of_certificate(leaf)?, tls_material::Life::of(leaf)?.until))
}

/// The part of `host:port` before the port; goes into SNI only.
fn server_name(address: &str) -> Result<ServerName<'static>, TlsError> {
    let wrong = || TlsError::Address {
        address: address.to_owned(),
    };
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    port.parse::<u16>().map_err(|_| wrong())?;
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    ServerName::try_from(host.to_owned()).map_err(|_| wrong())
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
