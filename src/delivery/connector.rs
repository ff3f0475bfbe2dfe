//! Opens connections: to judged addresses only, directly or through the configured proxy, with TLS for https.
//!
//! `client.rs` hands in the addresses that the target guard has judged; no name is resolved here but the
//! proxy's own. The host name stays for TLS, so a certificate is checked against what was subscribed.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::ClientConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::stream::{Patience, Stream};
use super::{SenderError, Step};
use crate::domain::clock::Clock;

/// Most bytes of the proxy's answer to CONNECT; it has no body, and its headers are of no interest.
const PROXY_ANSWER_BYTES_MAX: usize = 8 * 1024;

/// Most addresses of one name that are tried: enough for both families and a dead one or two in each. More
/// would leave each too little of the connect timeout.
pub(super) const ADDRESSES_TRIED_MAX: usize = 6;

/// Opens connections with one set of settings.
pub(super) struct Connector {
    pub(super) connect_timeout: Duration,
    pub(super) tls: TlsConnector,
    pub(super) proxy: Option<Proxy>,
    /// How long connections are kept.
    pub(super) patience: Patience,
    /// How many connections are open or being opened.
    pub(super) open: AtomicUsize,
    /// How many may be open for one to be kept.
    pub(super) kept_max: usize,
    /// The clock of the lease.
    pub(super) clock: Arc<dyn Clock>,
}

impl Connector {
    /// Opens a connection to the first of the addresses that takes it, until `deadline`; gives it with its address
    /// and whether HTTP/2 was agreed on.
    ///
    /// Every address gets an equal share of the time that is left when its turn comes.
    ///
    /// # Errors
    ///
    /// [`Step::Connect`] or [`Step::Tls`]; the time running out counts for the step it runs out in.
    pub(super) async fn open(
        &self,
        addresses: &[IpAddr],
        port: u16,
        server_name: Option<&ServerName<'static>>,
        deadline: Instant,
    ) -> Result<(Stream, IpAddr, bool), Step> {
        let (stream, address) = self.open_tcp(addresses, port, deadline).await?;
        let Some(server_name) = server_name else {
            return Ok((Stream::Plain(stream), address, false));
        };
        let handshake = self.tls.connect(server_name.clone(), stream);
        let stream = within(deadline, Step::Tls, handshake).await?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        Ok((Stream::Tls(Box::new(stream)), address, http2))
    }

    async fn open_tcp(
        &self,
        addresses: &[IpAddr],
        port: u16,
        deadline: Instant,
    ) -> Result<(TcpStream, IpAddr), Step> {
        let tried = &addresses[..addresses.len().min(ADDRESSES_TRIED_MAX)];
        for (index, address) in tried.iter().enumerate() {
            let left = u32::try_from(tried.len() - index).unwrap_or(1);
            let now = Instant::now();
            let until = now + deadline.saturating_duration_since(now) / left;
            let target = SocketAddr::new(*address, port);
            let opened = match &self.proxy {
                None => open_within(until, TcpStream::connect(target)).await,
                Some(proxy) => open_within(until, proxy.open(target)).await,
            };
            if opened.as_ref().is_err_and(|step| *step == Step::Local) {
                return Err(Step::Local);
            }
            if let Ok(stream) = opened
                // Requests are small and written at once; waiting for more to send only costs time.
                && stream.set_nodelay(true).is_ok()
            {
                return Ok((stream, *address));
            }
        }
        Err(Step::Connect)
    }
}

/// An HTTP proxy that opens tunnels.
#[derive(Clone)]
pub(super) struct Proxy {
    host: String,
    port: u16,
    /// The value of `Proxy-Authorization`.
    authorization: Option<String>,
}

impl Proxy {
    /// Reads `http://[user:password@]host[:port]`, port 80 unless given.
    ///
    /// # Errors
    ///
    /// [`SenderError::Proxy`] for anything else.
    pub(super) fn parse(text: &str) -> Result<Self, SenderError> {
        let url = url::Url::parse(text).map_err(|_| SenderError::Proxy)?;
        let plain = url.scheme() == "http" && url.path() == "/" && url.query().is_none();
        let (Some(host), Some(port), true) = (url.host(), url.port_or_known_default(), plain)
        else {
            return Err(SenderError::Proxy);
        };
        let host = match host {
            url::Host::Domain(name) => name.to_owned(),
            url::Host::Ipv4(address) => address.to_string(),
            url::Host::Ipv6(address) => address.to_string(),
        };
        let authorization = if url.username().is_empty() {
            None
        } else {
            let user = decode_percent(url.username()).ok_or(SenderError::Proxy)?;
            let password =
                decode_percent(url.password().unwrap_or("")).ok_or(SenderError::Proxy)?;
            Some(format!("Basic {}", STANDARD.encode([&user[..], b":", &password].concat())))
        };
        Ok(Self { host, port, authorization })
    }

    /// Asks for a tunnel. The address is named, not the host: the proxy must not resolve again what was judged.
    async fn open(&self, target: SocketAddr) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let authorization = match &self.authorization {
            Some(value) => format!("Proxy-Authorization: {value}\r\n"),
            None => String::new(),
        };
        let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n");
        stream.write_all(request.as_bytes()).await?;

        let mut answer = Vec::new();
        // Byte by byte would be safe but slow; reading too far is not possible, since in a TLS tunnel the
        // client speaks first.
        while !answer.ends_with(b"\r\n\r\n") {
            if answer.len() > PROXY_ANSWER_BYTES_MAX || stream.read_buf(&mut answer).await? == 0 {
                return Err(io::Error::other("proxy gave no answer to CONNECT"));
            }
        }
        let granted = answer.starts_with(b"HTTP/1.1 2") || answer.starts_with(b"HTTP/1.0 2");
        if granted { Ok(stream) } else { Err(io::Error::other("proxy refused to CONNECT")) }
    }
}

/// TLS 1.2 and 1.3, the platform's roots, HTTP/2 offered first.
///
/// # Errors
///
/// [`SenderError::Tls`] when the cryptography does not provide these versions.
pub(super) fn platform_tls() -> Result<ClientConfig, SenderError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(SenderError::Tls)?;
    let mut config = match platform_verifier(provider) {
        Some(verifier) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth(),
        None => {
            builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// `None` on a machine without root certificates: https then fails at step tls, but the rest of the server works.
fn platform_verifier(provider: Arc<CryptoProvider>) -> Option<rustls_platform_verifier::Verifier> {
    match rustls_platform_verifier::Verifier::new(provider) {
        Ok(verifier) => Some(verifier),
        Err(error) => {
            tracing::warn!(%error, "root certificates of the system not readable, no https receiver can be called");
            None
        }
    }
}

/// Errors of the system that are about this machine, by their numbers on Linux: no free descriptor in the process
/// (`EMFILE`) or in the system (`ENFILE`), no buffer (`ENOBUFS`).
const LOCAL_ERRORS: [i32; 3] = [24, 23, 105];

async fn open_within<T>(
    until: Instant,
    work: impl Future<Output = io::Result<T>>,
) -> Result<T, Step> {
    let judged = async {
        work.await.map_err(|error| match error.raw_os_error() {
            Some(number) if LOCAL_ERRORS.contains(&number) => Step::Local,
            _ => Step::Connect,
        })
    };
    tokio::time::timeout_at(until, judged).await.unwrap_or(Err(Step::Connect))
}

async fn within<T, E>(
    until: Instant,
    step: Step,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, Step> {
    match tokio::time::timeout_at(until, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(_)) | Err(_) => Err(step),
    }
}

fn decode_percent(text: &str) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            decoded.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            decoded.push(first);
            rest = after;
        }
    }
    Some(decoded)
}
