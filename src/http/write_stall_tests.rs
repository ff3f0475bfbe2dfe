//! A caller that takes nothing, in the clear and through TLS.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rcgen::CertifiedKey;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::WriteStall;
use crate::http::tls::{Tls, TlsFiles};

/// Bytes that fit between the two ends: less than any answer here.
const IN_FLIGHT_BYTES: usize = 512;

/// A socket with less patience than those of the server, so that nobody waits for the tests.
fn impatient<S>(socket: S) -> WriteStall<S> {
    WriteStall { timeout: Duration::from_secs(1), ..WriteStall::new(socket) }
}

#[tokio::test]
async fn write_ends_when_no_byte_was_taken_for_the_time() {
    let (socket, _caller) = duplex(IN_FLIGHT_BYTES);
    let mut socket = impatient(socket);

    let error = socket.write_all(&[0; 2 * IN_FLIGHT_BYTES]).await.unwrap_err();

    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

/// Both ends of a connection with TLS.
async fn shake_hands(name: &str) -> (impl AsyncWriteExt + Unpin, TlsStream<DuplexStream>) {
    let CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    let path = |kind: &str| -> PathBuf {
        std::env::temp_dir().join(format!("rollcall-{kind}-{}-{name}", std::process::id()))
    };
    let files = TlsFiles { cert: path("cert"), key: path("key") };
    std::fs::write(&files.cert, cert.pem()).unwrap();
    std::fs::write(&files.key, signing_key.serialize_pem()).unwrap();
    let tls = Tls::read(files.clone()).unwrap();
    std::fs::remove_file(&files.cert).unwrap();
    std::fs::remove_file(&files.key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (socket, caller) = duplex(IN_FLIGHT_BYTES);
    let name = ServerName::try_from("a.example").unwrap();
    let connector = TlsConnector::from(Arc::new(client));
    let (server, client) =
        tokio::join!(tls.accept(impatient(socket)), connector.connect(name, caller));
    (server.unwrap(), client.unwrap())
}

#[tokio::test]
async fn flush_of_what_tls_holds_back_ends_too() {
    let (mut server, _caller) = shake_hands("flush").await;

    // TLS takes it all, although nobody reads.
    server.write_all(&[0; 8 * IN_FLIGHT_BYTES]).await.unwrap();
    let error = server.flush().await.unwrap_err();

    assert_eq!(error.kind(), ErrorKind::TimedOut);
}

#[tokio::test]
async fn farewell_of_tls_that_nobody_takes_ends_too() {
    let (mut server, _caller) = shake_hands("farewell").await;

    server.write_all(&[0; 8 * IN_FLIGHT_BYTES]).await.unwrap();
    let error = server.shutdown().await.unwrap_err();

    assert_eq!(error.kind(), ErrorKind::TimedOut);
}
