//! Receivers for the sender's tests: real sockets on loopback, each connection following a script.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::delivery::target_guard::{Lookup, LookupError, LookupFuture, Resolve};

/// The shortest answer that keeps the connection.
pub(super) const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// Every name stands for these addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(Arc<Mutex<Vec<IpAddr>>>);

impl Names {
    pub(super) fn set(&self, addresses: &[&str]) {
        *self.0.lock().unwrap() = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
    }
}

impl Resolve for Names {
    fn lookup<'a>(&'a self, _: &'a str) -> LookupFuture<'a> {
        let addresses = self.0.lock().unwrap().clone();
        let missing = addresses.is_empty();
        let answer = Lookup { addresses, ttl: Duration::from_secs(60) };
        Box::pin(async move { if missing { Err(LookupError::NotFound) } else { Ok(answer) } })
    }
}

/// A listener, how many connections it took, and the requests its scripts noted.
#[derive(Clone)]
pub(super) struct Receiver {
    pub(super) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Receiver {
    /// Listens on a free port of 127.0.0.1; the script gets each connection with its number.
    pub(super) async fn start<F, Fut>(script: F) -> Self
    where
        F: Fn(Receiver, usize, TcpStream) -> Fut + Send + 'static,
        Fut: Future<Output = Option<()>> + Send + 'static,
    {
        Self::start_at("127.0.0.1:0".parse().unwrap(), script).await
    }

    pub(super) async fn start_at<F, Fut>(address: SocketAddr, script: F) -> Self
    where
        F: Fn(Receiver, usize, TcpStream) -> Fut + Send + 'static,
        Fut: Future<Output = Option<()>> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.unwrap();
        let receiver = Self {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            requests: Arc::default(),
        };
        let shared = receiver.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = shared.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(script(shared.clone(), number, stream));
            }
        });
        receiver
    }

    /// Gives the same answer to every request, on connections that stay open.
    pub(super) async fn answering(answer: impl Into<Vec<u8>>) -> Self {
        let answer = Arc::new(answer.into());
        Self::start(move |receiver, _, stream| {
            let answer = Arc::clone(&answer);
            async move { receiver.serve(stream, &answer).await }
        })
        .await
    }

    /// Notes and answers requests until the connection ends.
    pub(super) async fn serve<S>(&self, mut stream: S, answer: &[u8]) -> Option<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            self.read(&mut stream).await?;
            stream.write_all(answer).await.ok()?;
        }
    }

    /// Reads and notes one request; `None` when the connection ends first.
    pub(super) async fn read<S: AsyncRead + Unpin>(&self, stream: &mut S) -> Option<()> {
        let mut text = String::new();
        let mut missing = None;
        while missing != Some(0) {
            let mut byte = [0];
            stream.read_exact(&mut byte).await.ok()?;
            text.push(char::from(byte[0]));
            missing = missing.map(|bytes: usize| bytes - 1);
            if missing.is_none() && text.ends_with("\r\n\r\n") {
                let length = text.split("content-length: ").nth(1);
                let length = length.and_then(|rest| rest.split("\r\n").next());
                missing = Some(length.map_or(0, |digits| digits.parse().unwrap()));
            }
        }
        self.requests.lock().unwrap().push(text);
        Some(())
    }

    pub(super) fn note(&self, text: impl Into<String>) {
        self.requests.lock().unwrap().push(text.into());
    }

    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// Client settings that trust the tests' own root alone.
pub(super) fn trusting_client() -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate(ROOT)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

/// Accepts TLS as hooks.example.com and 127.0.0.1, offering these protocols.
pub(super) fn acceptor(protocols: &[&str]) -> tokio_rustls::TlsAcceptor {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivatePkcs8KeyDer::from(STANDARD.decode(LEAF_KEY).unwrap());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate(LEAF)], key.into())
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}

fn certificate(text: &str) -> CertificateDer<'static> {
    CertificateDer::from(STANDARD.decode(text).unwrap())
}

/// A root that signs nothing but [`LEAF`], for 100 years; its key is thrown away.
const ROOT: &str = "MIIBgDCCASagAwIBAgIURHfeBE7XGg/vUTdqWlBpLnhJ35EwCgYIKoZIzj0EAwIwHTEbMBkGA1UEAwwSUm9sbGNhbGwgdGVz\
dCByb290MCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjAdMRswGQYDVQQDDBJSb2xsY2FsbCB0ZXN0IHJvb3Qw\
WTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAS3QBYBD2lRLRZeETHyUGhHmcjroQxh1ZuDChjsmRBtV7C7TuL20eW3WPbMohvn\
WutIeT0RR7bR5CGHKCq70QMvo0IwQDAPBgNVHRMBAf8EBTADAQH/MA4GA1UdDwEB/wQEAwICBDAdBgNVHQ4EFgQUFpODyZAu\
7+s+PzXzah6GZZhEI0IwCgYIKoZIzj0EAwIDSAAwRQIgDemDTjHdbrl6V168HTeYWded5sllwArtAeqpY1a2PGsCIQCR3fEP\
XfFRjyd9S14m9qgt9jnCqKKtnXGu+houhuNj8w==";

/// A certificate for hooks.example.com and 127.0.0.1.
const LEAF: &str = "MIIBvDCCAWKgAwIBAgIUNRtffyKC540D/TVTsTYmIGRVt3EwCgYIKoZIzj0EAwIwHTEbMBkGA1UEAwwSUm9sbGNhbGwgdGVz\
dCByb290MCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjATMREwDwYDVQQDDAhyZWNlaXZlcjBZMBMGByqGSM49\
AgEGCCqGSM49AwEHA0IABDCbNFmfD+XrtCr5RupiKZmOuu0pNyHwbXLY6KpnfpcVB2fND+At9OAVJO39W9meVzM0bMpdNrE+\
gmAZ1IgZqf2jgYcwgYQwIgYDVR0RBBswGYIRaG9va3MuZXhhbXBsZS5jb22HBH8AAAEwCQYDVR0TBAIwADATBgNVHSUEDDAK\
BggrBgEFBQcDATAdBgNVHQ4EFgQUeo8iBN6wOp4YdzWakMWb1BO+Y2wwHwYDVR0jBBgwFoAUFpODyZAu7+s+PzXzah6GZZhE\
I0IwCgYIKoZIzj0EAwIDSAAwRQIhALI/dY61MwWj0VAbQ0s8juagI+nbkZwt2lC8Hcme5dmeAiA9cOtRaIwUpG3mBO77Hadb\
bcuYeamT/31oKC56beZOFw==";

/// The key of [`LEAF`]; it protects nothing.
const LEAF_KEY: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQghQsdMJbLDyyblU4+FVTvWqUumycYJji7RfU5FZ9tW/2hRANC\
AAQwmzRZnw/l67Qq+UbqYimZjrrtKTch8G1y2OiqZ36XFQdnzQ/gLfTgFSTt/VvZnlczNGzKXTaxPoJgGdSIGan9";
