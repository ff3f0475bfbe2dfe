//! TLS towards callers: certificate and key, the handshake, and a renewed certificate without a restart.
//!
//! `app.rs` reads the files at start and again at SIGHUP; `listener.rs` shakes hands in each connection's own task.
//! A pair that cannot be used never replaces one that can. A new pair replaces the whole configuration, so that no
//! session from before is resumed under a certificate that was taken out of use.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::limits::HEADER_READ_TIMEOUT;

/// The only protocol that is agreed on; the listener speaks no other.
const ALPN_HTTP_1_1: &[u8] = b"http/1.1";
/// Largest file of certificates or of a key, in bytes. A long chain is a hundredth of it; more is surely another file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The PEM files of a server that speaks TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, then those between it and its root. Key `tls_cert`.
    pub cert: PathBuf,
    /// Its private key, unencrypted. Key `tls_key`.
    pub key: PathBuf,
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: {} {why}", path.display())]
pub struct TlsError {
    setting: &'static str,
    path: PathBuf,
    why: String,
}

/// What the listener needs to speak TLS.
#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    /// Held while the files are read, so that of two readings the later one counts.
    reading: Mutex<()>,
    config: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads certificate and key.
    ///
    /// # Errors
    ///
    /// A file cannot be read or holds nothing of use, or the key does not belong to the certificate.
    pub fn read(files: TlsFiles) -> Result<Self, TlsError> {
        let config = RwLock::new(Arc::new(configure(&files)?));
        Ok(Self { files, reading: Mutex::new(()), config })
    }

    /// Reads them again, for the connections that come from now on.
    ///
    /// # Errors
    ///
    /// As [`Self::read`]; what was read before stays in use.
    pub fn read_again(&self) -> Result<(), TlsError> {
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let config = Arc::new(configure(&self.files)?);
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// Shakes hands; the caller has as long for it as for the head of a request.
    ///
    /// # Errors
    ///
    /// The caller speaks no TLS, refuses the certificate, is too slow, or has gone.
    pub async fn accept<S>(&self, socket: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner));
        let handshake = TlsAcceptor::from(config).accept(socket);
        tokio::time::timeout(HEADER_READ_TIMEOUT, handshake)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

fn configure(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let certified = Arc::new(SingleCertAndKey::from(read_pair(files, &provider)?));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| cert_fault(files, error.to_string()))?
        .with_no_client_auth()
        .with_cert_resolver(certified);
    config.alpn_protocols = vec![ALPN_HTTP_1_1.to_vec()];
    Ok(config)
}

fn read_pair(files: &TlsFiles, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let cert = read(&files.cert).map_err(|why| cert_fault(files, why))?;
    let key = read(&files.key).map_err(|why| key_fault(files, why))?;
    let chain = CertificateDer::pem_slice_iter(&cert)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| cert_fault(files, format!("is no valid PEM: {error}")))?;
    if chain.is_empty() {
        return Err(cert_fault(files, "holds no certificate in PEM form"));
    }
    // The parser's own words may quote a line, so they are not shown for a key.
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| match error {
        PemError::NoItemsFound => key_fault(files, "holds no unencrypted private key in PEM form"),
        _ => key_fault(files, "is no valid PEM"),
    })?;
    let key = provider
        .key_provider
        .load_private_key(key)
        .map_err(|_| key_fault(files, "holds no RSA, ECDSA or Ed25519 key that can be used"))?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => {
            let cert = files.cert.display();
            Err(key_fault(files, format!("is not the key of the certificate in {cert} (tls_cert)")))
        }
        Err(error) => Err(cert_fault(files, format!("holds no certificate to use: {error}"))),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let cannot = |error: io::Error| format!("cannot be read: {error}");
    // Before it is opened: opening a FIFO waits for somebody who writes, maybe for ever.
    if !std::fs::metadata(path).map_err(cannot)?.is_file() {
        return Err("is not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(cannot)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is larger than {FILE_BYTES_MAX} bytes"));
    }
    Ok(bytes)
}

fn cert_fault(files: &TlsFiles, why: impl Into<String>) -> TlsError {
    TlsError { setting: "tls_cert", path: files.cert.clone(), why: why.into() }
}

fn key_fault(files: &TlsFiles, why: impl Into<String>) -> TlsError {
    TlsError { setting: "tls_key", path: files.key.clone(), why: why.into() }
}
