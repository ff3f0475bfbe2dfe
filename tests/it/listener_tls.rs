//! HTTPS: what is agreed on, certificates that are replaced while the server runs, and callers that are no TLS clients.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::certificates::{Authority, connect, served};
use crate::harness::client::RawConnection;
use crate::harness::server::TestServer;
use crate::harness::{PATIENCE, eventually};

/// The time that a caller has for the handshake.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

async fn https_server() -> (TestServer, Authority) {
    let (builder, authority) = TestServer::builder().flag("--log", "info").tls();
    (builder.start().await, authority)
}

/// A client that offers this version only.
fn client_of(
    authority: &Authority,
    version: &'static rustls::SupportedProtocolVersion,
) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(authority.roots())
        .with_no_client_auth();
    config.alpn_protocols = authority.client().alpn_protocols;
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered_over_tls_and_the_address_says_so() {
    for command in ["dev", "serve"] {
        let (builder, _authority) = TestServer::builder().tls();
        let builder = if command == "serve" { builder.serve() } else { builder };
        let server = builder.start().await;

        assert!(server.base_url.starts_with("https://127.0.0.1:"), "{}", server.base_url);
        let id = server.app().create_contact("Ana", "Reyes").await;
        let contact = server.app().get(&format!("/contacts/staff/{id}")).await.expect(200);
        assert_eq!(contact["lastName"], "Reyes");
        // Longer than one TLS record and than what is read at a time.
        let long = "x".repeat(200_000);
        server
            .app()
            .post("/contacts/staff", serde_json::json!({ "x": long }))
            .await
            .refused(400, 6_451_000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_1_2_and_1_3_are_spoken_with_http_1_1_and_nothing_else() {
    let (server, authority) = https_server().await;

    for (version, expected) in [
        (&rustls::version::TLS12, ProtocolVersion::TLSv1_2),
        (&rustls::version::TLS13, ProtocolVersion::TLSv1_3),
    ] {
        let config = Arc::new(client_of(&authority, version));
        let stream = connect(server.address(), config).await.unwrap();

        assert_eq!(stream.get_ref().1.protocol_version(), Some(expected));
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    }
    let mut only_h2 = authority.client();
    only_h2.alpn_protocols = vec![b"h2".to_vec()];
    assert!(connect(server.address(), Arc::new(only_h2)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_are_refused_have_the_envelope_over_tls_too() {
    let (server, authority) = https_server().await;
    let mut stream = connect(server.address(), Arc::new(authority.client())).await.unwrap();

    stream.write_all(b"GARBAGE\r\n\r\n").await.unwrap();

    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("x-request-id: req_"), "{answer}");
    assert!(answer.contains(r#"{"code":6451000,"#), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_takes_a_renewed_certificate_and_keeps_open_connections() {
    let (server, authority) = https_server().await;
    let before = server.app();
    before.get("/event-hooks").await.expect(200);
    let renewed = authority.issue();

    authority.install(&renewed);
    assert!(!renewed.is(&served(server.address(), authority.client()).await));
    server.hang_up();

    eventually("the renewed certificate is served", async || {
        renewed.is(&served(server.address(), authority.client()).await).then_some(())
    })
    .await;
    before.get("/event-hooks").await.expect(200);
    server.app().get("/event-hooks").await.expect(200);
    assert!(server.log().contains("certificate read again"), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_with_files_that_cannot_be_used_keeps_the_earlier_certificate() {
    let (server, authority) = https_server().await;
    let first = served(server.address(), authority.client()).await;
    let renewed = authority.issue();

    // Half way through a renewal: the new certificate with the old key.
    std::fs::write(authority.cert_path(), &renewed.cert).unwrap();
    server.hang_up();

    eventually("the fault is logged", async || {
        server.log().contains("certificate not read again, the earlier one stays").then_some(())
    })
    .await;
    let log = server.log();
    let warned = log.lines().find(|line| line.contains("certificate not read again")).unwrap();
    assert!(warned.contains(r#""level":"WARN""#) && warned.contains("tls_key: "), "{warned}");
    assert_eq!(served(server.address(), authority.client()).await, first);

    authority.install(&renewed);
    server.hang_up();
    eventually("the renewed certificate is served", async || {
        renewed.is(&served(server.address(), authority.client()).await).then_some(())
    })
    .await;
}

/// A FIFO in the place of this file, which nobody writes to.
fn make_fifo(path: &Path) {
    std::fs::remove_file(path).unwrap();
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn fifo_in_place_of_a_file_blocks_neither_later_renewals_nor_the_end() {
    let (mut server, authority) = https_server().await;
    let renewed = authority.issue();

    make_fifo(&authority.cert_path());
    server.hang_up();

    eventually("the fault is logged", async || {
        server.log().contains("is not a regular file").then_some(())
    })
    .await;
    std::fs::remove_file(authority.cert_path()).unwrap();
    authority.install(&renewed);
    server.hang_up();
    eventually("the renewed certificate is served", async || {
        renewed.is(&served(server.address(), authority.client()).await).then_some(())
    })
    .await;
    let status = server.terminate(PATIENCE).await;
    assert_eq!(status.expect("it must end").code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn handshake_and_head_that_do_not_come_are_cut_off() {
    let (server, authority) = https_server().await;
    let started = Instant::now();
    let mut silent = RawConnection::open(server.address()).await;
    let mut slow = RawConnection::open(server.address()).await;
    slow.write(b"\x16\x03\x01\x02\x00\x01").await;
    let mut slow_head = connect(server.address(), Arc::new(authority.client())).await.unwrap();
    slow_head.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();

    server.app().get("/event-hooks").await.expect(200);
    assert!(silent.is_closed().await);
    assert!(slow.is_closed().await);
    assert!(started.elapsed() > HANDSHAKE_WITHIN - Duration::from_secs(1));
    let mut answer = Vec::new();
    // How the connection ends after the answer is not the matter here.
    drop(tokio::time::timeout(PATIENCE, slow_head.read_to_end(&mut answer)).await.unwrap());
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_to_the_tls_port_ends_without_waiting_for_a_timeout() {
    let (server, _authority) = https_server().await;
    let started = Instant::now();
    let mut plain = TcpStream::connect(server.address()).await.unwrap();

    plain.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();

    let mut answer = Vec::new();
    // A reset is as good an end as a close.
    drop(tokio::time::timeout(PATIENCE, plain.read_to_end(&mut answer)).await.unwrap());
    assert!(started.elapsed() < HANDSHAKE_WITHIN);
    assert!(!answer.starts_with(b"HTTP/"), "{answer:?}");
    server.app().get("/event-hooks").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_or_key_that_cannot_be_used_is_named_at_start() {
    let (builder, authority) = TestServer::builder().serve().tls();
    let other = authority.issue();
    let good = authority.issue();
    let check = |cert: &str, key: &str, setting: &str, why: &str| {
        std::fs::write(authority.cert_path(), cert).unwrap();
        std::fs::write(authority.key_path(), key).unwrap();

        let (code, said) = builder.start_and_fail();

        assert_eq!(code, Some(1), "{said}");
        let file = if setting == "tls_cert" { authority.cert_path() } else { authority.key_path() };
        let expected = format!("{setting}: {} {why}", file.display());
        assert!(said.contains(&expected), "{expected} is missing in {said}");
    };

    check("", &good.key, "tls_cert", "holds no certificate");
    check(&good.key, &good.key, "tls_cert", "holds no certificate");
    check(&good.cert.replace("MII", "!!!"), &good.key, "tls_cert", "is no valid PEM");
    check(&"x".repeat((1 << 20) + 1), &good.key, "tls_cert", "is larger than 1048576 bytes");
    check(&good.cert, &good.cert, "tls_key", "holds no unencrypted private key");
    check(&good.cert, &other.key, "tls_key", "is not the key of the certificate in");
    for (path, setting) in [(authority.key_path(), "tls_key"), (authority.cert_path(), "tls_cert")]
    {
        std::fs::write(authority.cert_path(), &good.cert).unwrap();
        make_fifo(&path);
        let (code, said) = builder.start_and_fail();
        assert_eq!(code, Some(1), "{said}");
        let expected = format!("{setting}: {} is not a regular file", path.display());
        assert!(said.contains(&expected), "{expected} is missing in {said}");
    }
    std::fs::remove_file(authority.cert_path()).unwrap();
    let (code, said) = builder.start_and_fail();
    assert_eq!(code, Some(1), "{said}");
    let expected = format!("tls_cert: {} cannot be read", authority.cert_path().display());
    assert!(said.contains(&expected), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_says_what_its_certificate_lacks_when_it_cannot_call_itself() {
    let (builder, _authority) = TestServer::builder().tls();
    let (_other, stranger) = TestServer::builder().tls();

    let (code, said) = builder.variable("SSL_CERT_FILE", stranger.root_path()).start_and_fail();

    assert_eq!(code, Some(1), "{said}");
    let hint = "the certificate must be valid for that address and trusted by this machine";
    assert!(said.contains(hint) && said.contains("invalid peer certificate"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_beyond_this_machine_is_warned_about_unless_a_proxy_is_named() {
    let warned = async |flags: &[(&str, &str)]| {
        let mut builder = TestServer::builder().flag("--log", "info");
        for (name, value) in flags {
            builder = builder.flag(name, value);
        }
        let server = builder.start().await;
        eventually("the start is logged", async || {
            server.log().contains("server started").then_some(())
        })
        .await;
        server.log().matches("tokens travel unencrypted").count()
    };
    let everywhere = ("--listen", "0.0.0.0:0");

    assert_eq!(warned(&[everywhere]).await, 1);
    assert_eq!(warned(&[everywhere, ("--trusted-proxies", "10.0.0.1")]).await, 0);
    assert_eq!(warned(&[]).await, 0);
    let (builder, _authority) = TestServer::builder().flag("--log", "info").tls();
    let server = builder.flag("--listen", "0.0.0.0:0").start().await;
    assert!(!server.log().contains("tokens travel unencrypted"), "{}", server.log());
}
