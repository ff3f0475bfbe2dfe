//! An authority for one test: certificates for this machine, and a client that believes nobody else.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Signs certificates, and keeps the pair that a server uses in files.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

/// A certificate for 127.0.0.1 with its key, as PEM.
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
    der: CertificateDer<'static>,
}

impl Pair {
    /// Whether a server showed this certificate.
    pub(crate) fn is(&self, served: &CertificateDer<'_>) -> bool {
        self.der == *served
    }
}

impl Authority {
    /// Its files go into this directory.
    pub(crate) fn new(dir: &Path) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.join("root.pem"), issuer.pem()).unwrap();
        Self { issuer, dir: dir.to_owned() }
    }

    /// A new pair for this machine.
    pub(crate) fn issue(&self) -> Pair {
        self.issue_for("127.0.0.1")
    }

    /// A new pair for this host.
    pub(crate) fn issue_for(&self, host: &str) -> Pair {
        let params = CertificateParams::new([host.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Pair { cert: cert.pem(), key: key.serialize_pem(), der: cert.der().clone() }
    }

    /// Puts a pair where the server reads it.
    pub(crate) fn install(&self, pair: &Pair) {
        std::fs::write(self.cert_path(), &pair.cert).unwrap();
        std::fs::write(self.key_path(), &pair.key).unwrap();
    }

    pub(crate) fn root_path(&self) -> PathBuf {
        self.dir.join("root.pem")
    }

    pub(crate) fn cert_path(&self) -> PathBuf {
        self.dir.join("cert.pem")
    }

    pub(crate) fn key_path(&self) -> PathBuf {
        self.dir.join("key.pem")
    }

    /// What such a client trusts.
    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        roots
    }

    /// A client that trusts this authority alone and offers no other protocol than HTTP/1.1 and HTTP/2.
    pub(crate) fn client(&self) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config
    }
}

/// Opens a connection and shakes hands.
pub(crate) async fn connect(
    address: SocketAddr,
    config: Arc<ClientConfig>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(address).await?;
    let name = ServerName::IpAddress(address.ip().into());
    TlsConnector::from(config).connect(name, socket).await
}

/// The certificate that a server shows to somebody who comes now.
pub(crate) async fn served(address: SocketAddr, config: ClientConfig) -> CertificateDer<'static> {
    let stream = connect(address, Arc::new(config)).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}
