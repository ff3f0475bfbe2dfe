//! Callers that take more than their share: connections, requests before answers, bodies that trickle, compressed bodies.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::client::{RawConnection, raw};
use crate::harness::server::TestServer;
use crate::harness::{PATIENCE, eventually};

const GET: &str = "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n";

/// A connection from this address of loopback.
async fn connect(server: SocketAddr, from: [u8; 4]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(from)), 0)).unwrap();
    socket.connect(server).await.unwrap()
}

/// What comes until the server closes, or until an answer is whole.
async fn read(socket: &mut TcpStream) -> String {
    let mut seen = Vec::new();
    let reading = async {
        let mut space = [0; 4096];
        while let Ok(count @ 1..) = socket.read(&mut space).await {
            seen.extend_from_slice(&space[..count]);
            if seen.ends_with(b"}") {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("neither an answer nor an end");
    String::from_utf8(seen).unwrap()
}

async fn ask(socket: &mut TcpStream) -> String {
    drop(socket.write_all(GET.as_bytes()).await);
    read(socket).await
}

#[tokio::test(flavor = "multi_thread")]
async fn address_over_its_connections_is_refused_at_once_and_no_other_is() {
    let server = TestServer::builder().flag("--connections-per-address", "3").start().await;
    let (one, other) = ([127, 0, 0, 2], [127, 0, 0, 3]);
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut connection = connect(server.address(), one).await;
        assert!(ask(&mut connection).await.starts_with("HTTP/1.1 200 "));
        held.push(connection);
    }

    let refused = read(&mut connect(server.address(), one).await).await;
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
    assert!(refused.contains("connection: close\r\n"), "{refused}");
    let body = r#"{"code":6451010,"message":"too many connections from this address"}"#;
    assert!(refused.ends_with(body), "{refused}");
    for _ in 0..20 {
        drop(read(&mut connect(server.address(), one).await).await);
    }
    assert!(ask(&mut connect(server.address(), other).await).await.starts_with("HTTP/1.1 200 "));
    assert!(ask(&mut held[0]).await.starts_with("HTTP/1.1 200 "), "the others stay");

    drop(held.pop());
    eventually("its place comes back", async || {
        let answer = ask(&mut connect(server.address(), one).await).await;
        answer.starts_with("HTTP/1.1 200 ").then_some(())
    })
    .await;
    let told = server.log().matches("connections refused").count();
    assert_eq!(told, 1, "one line for all of them");
    assert!(!server.log().contains("127.0.0.2"), "no address in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_are_not_counted_and_zero_is_off() {
    for flags in [
        [("--connections-per-address", "1"), ("--trusted-proxies", "127.0.0.0/8")],
        [("--connections-per-address", "0"), ("--trusted-proxies", "")],
    ] {
        let mut builder = TestServer::builder();
        for (name, value) in flags {
            builder = builder.flag(name, value);
        }
        let server = builder.start().await;
        let mut held = Vec::new();
        for _ in 0..20 {
            let mut connection = connect(server.address(), [127, 0, 0, 2]).await;
            assert!(ask(&mut connection).await.starts_with("HTTP/1.1 200 "));
            held.push(connection);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_hang_count_and_end() {
    let (builder, _authority) = TestServer::builder().flag("--connections-per-address", "2").tls();
    let server = builder.start().await;
    let one = [127, 0, 0, 2];
    let mut hanging = [connect(server.address(), one).await, connect(server.address(), one).await];

    let started = Instant::now();
    assert_eq!(read(&mut connect(server.address(), one).await).await, "");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    for connection in &mut hanging {
        assert_eq!(read(connection).await, "");
    }

    let mut next = connect(server.address(), one).await;
    let waited = tokio::time::timeout(Duration::from_secs(2), next.read(&mut [0; 1])).await;
    assert!(waited.is_err(), "it waits for the handshake and was not refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn request_before_the_answer_to_the_one_before_is_not_served() {
    let server = TestServer::start().await;
    let post = |lengths: &str, body: &str| {
        format!(
            "POST /v1/api/apps/{}/contacts/staff HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n{lengths}\r\n{body}",
            server.app_id, server.app_token
        )
    };
    let body = |name: &str| {
        format!(r#"{{"firstName":"{name}","lastName":"X","email":"{name}@example.com"}}"#)
    };
    let whole = |name: &str| {
        let body = body(name);
        post(&format!("Content-Length: {}\r\n", body.len()), &body)
    };
    let chunked = |name: &str| {
        let body = body(name);
        let chunks = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        post("Transfer-Encoding: chunked\r\n", &chunks)
    };

    for (at, sent) in [
        whole("a0") + &whole("b0"),
        whole("a1") + &chunked("b1"),
        chunked("a2") + &whole("b2"),
        chunked("a3") + &chunked("b3"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut connection = RawConnection::open(server.address()).await;
        connection.write(sent).await;

        let answer = connection.read_answer().await;

        assert_eq!(answer.header("connection"), Some("close"), "{at}: {answer:?}");
        answer.expect(201);
        assert!(connection.is_closed().await, "{at}");
    }
    assert_eq!(server.app().list_contact_ids().await.len(), 4, "the second ones were not made");
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_with_bad_sizes_are_400_and_end_the_connection() {
    let server = TestServer::start().await;
    let path = format!("/v1/api/apps/{}/contacts/staff", server.app_id);
    let token = &server.app_token;

    for body in [
        "0x2\r\n{}\r\n0\r\n\r\n",
        "-2\r\n{}\r\n0\r\n\r\n",
        "\r\n{}\r\n0\r\n\r\n",
        "2\n{}\r\n0\r\n\r\n",
        "2\r\n{}x\r\n0\r\n\r\n",
        "fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
        "g\r\n{}\r\n0\r\n\r\n",
    ] {
        let mut connection = RawConnection::open(server.address()).await;
        let sent = format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nTransfer-Encoding: chunked\r\n\r\n{body}{GET}"
        );
        connection.write(sent).await;

        connection.read_answer().await.refused(400, 6_451_000);
        assert!(connection.is_closed().await, "{body:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn body_that_trickles_is_408_although_bytes_keep_coming() {
    let server = TestServer::start().await;
    let mut connection = RawConnection::open(server.address()).await;
    let started = Instant::now();
    let head = format!(
        "POST /v1/api/apps/{}/contacts/staff HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\nContent-Length: 1000\r\n\r\n",
        server.app_id, server.app_token
    );
    connection.write(head).await;

    while started.elapsed() < Duration::from_secs(17) && connection.write(" ").await {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }

    connection.read_answer().await.refused(408, 6_451_000);
    assert!(connection.is_closed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_body_is_taken_as_it_is_and_is_no_json() {
    let server = TestServer::start().await;
    // A gzip member of `{}`.
    let gzip =
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xab\xae\x05\x00\x43\xbf\xa6\xa3\x02\x00\x00\x00";
    let head = format!(
        "POST /v1/api/apps/{}/contacts/staff HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
        server.app_id,
        server.app_token,
        gzip.len()
    );

    let answer = raw(server.address(), [head.as_bytes(), gzip].concat()).await;

    let message = answer.refused(400, 6_451_000);
    assert!(message.starts_with("malformed JSON"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_beyond_every_range_are_refused_by_name() {
    let server = TestServer::start().await;
    for (number, field) in [
        ("1e400", "malformed JSON"),
        ("99999999999999999999999999", "extensionNumber"),
        ("1e5", "extensionNumber"),
        ("-0", "extensionNumber"),
        ("1000000", "extensionNumber"),
    ] {
        let body = format!(
            r#"{{"firstName":"A","lastName":"B","email":"a@b","extensionNumber":{number}}}"#
        );
        let answer = server.app().send(http::Method::POST, "/contacts/staff", body).await;

        let message = answer.refused(400, 6_451_000);
        assert!(message.starts_with(field), "{number}: {message}");
    }
}
