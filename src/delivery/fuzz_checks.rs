//! What must hold of URLs, name servers' answers and receivers' answers. Run by `src/fuzzing.rs` only.

use std::future::Future;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{RETRY_AFTER, TRANSFER_ENCODING};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::Instant;

use super::challenge;
use super::outcome::{Outcome, judge_answer};
use super::sender::{BODY_BYTES_MAX, BodyEnd, HEADER_BYTES_MAX, read_body};
use super::target_guard::{
    Lookup, LookupFuture, Resolve, Settings, Target, TargetGuard, TargetHost,
};
use crate::domain::clock::Timestamp;

/// Networks that are no public unicast, written down once more from the registries: what the table is judged by.
const NOT_PUBLIC: [&str; 40] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "255.255.255.255/32",
    "::/128",
    "::1/128",
    "::/96",
    "::ffff:0:0/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "100:0:0:1::/64",
    "2001::/32",
    "2001:2::/48",
    "2001:10::/28",
    "2001:20::/28",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
    "4000::/2",
    "8000::/1",
    "::/3",
    "2001:1::/32",
];

/// Where the challenge of a test stands; as long as a real one.
const CHALLENGE: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const NOW: Timestamp = Timestamp::from_millis(1_763_900_000_123);
/// Bytes kept of an answer.
const KEEP: usize = 1024;

fn is_public(address: IpAddr) -> bool {
    let within = |net: &&str| net.parse::<IpNet>().is_ok_and(|net| net.contains(&address));
    !NOT_PUBLIC.iter().any(within)
}

/// The answer of the name servers for every name.
#[derive(Debug)]
struct Fixed(Vec<IpAddr>);

impl Resolve for Fixed {
    fn lookup<'a>(&'a self, _: &'a str) -> LookupFuture<'a> {
        Box::pin(std::future::ready(Ok(Lookup {
            addresses: self.0.clone(),
            ttl: Duration::from_secs(1),
        })))
    }
}

/// A line with a URL, then lines with what its name stands for: from the text to the addresses that are called.
pub(crate) fn check_url(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n').map(std::str::from_utf8);
    let Some(Ok(url)) = lines.next() else { return };
    let answer: Vec<IpAddr> = lines.flatten().filter_map(|line| line.parse().ok()).collect();
    let guard = TargetGuard::new(Settings::default(), Fixed(answer.clone()));
    for address in &answer {
        assert_eq!(guard.judge(*address).is_ok(), is_allowed(*address), "{address}");
    }
    let lenient = Settings { allow_http: true, ..Settings::default() };
    let lenient = TargetGuard::new(lenient, Fixed(answer.clone())).check_url(url);
    let Ok(target) = guard.check_url(url) else {
        // What production refuses, `allow_http` lets through only without encryption.
        assert!(lenient.is_err() || lenient.is_ok_and(|target| !target.tls), "{url}");
        return;
    };
    assert_eq!(lenient.as_ref(), Ok(&target));
    check_reading(url, &target);
    match (&target.host, at_once(guard.resolve(&target))) {
        (TargetHost::Address(address), resolved) => {
            assert!(is_allowed(*address), "{url} leads to {address}");
            assert_eq!(resolved.as_deref(), Ok(&[*address][..]));
        }
        (TargetHost::Name(name), resolved) => {
            let good = !answer.is_empty() && answer.iter().all(|address| is_allowed(*address));
            assert_eq!(resolved.is_ok(), good, "{name} stands for {answer:?}");
            if let Ok(addresses) = resolved {
                assert_eq!(&addresses[..], answer);
            }
        }
    }
}

/// Public, and with no IPv4 address inside that some translator could unwrap (ISATAP).
fn is_allowed(address: IpAddr) -> bool {
    // The guard refuses some public blocks too, where no receiver lives; there it may differ from the registries.
    let stricter =
        ["192.31.196.0/24", "192.52.193.0/24", "192.175.48.0/24", "2620:4f:8000::/48", "2001::/23"];
    let stricter =
        stricter.iter().any(|net| net.parse::<IpNet>().is_ok_and(|net| net.contains(&address)));
    is_public(address) && !stricter && !matches!(address, IpAddr::V6(v6) if is_isatap(v6))
}

fn is_isatap(address: Ipv6Addr) -> bool {
    matches!(address.segments(), [_, _, _, _, 0 | 0x200, 0x5efe, _, _])
}

/// The target is the text and nothing else, read by cutting it at its separators.
fn check_reading(url: &str, target: &Target) {
    assert!(target.tls && url.len() <= 2048 && url.is_ascii());
    let (scheme, rest) = url.split_once("://").expect("an accepted url has a scheme");
    assert!(scheme.eq_ignore_ascii_case("https"));
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    assert!(!authority.contains('@') && !url.contains(['#', '\\', ' ']), "{url}");
    assert!(target.path_and_query == path || target.path_and_query == format!("/{path}"), "{url}");
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
        _ => (authority, Some(443)),
    };
    assert_eq!(Some(target.port), port, "{url}");
    assert!(![0, 22, 25, 2375, 5432, 6379, 9200, 11211].contains(&target.port), "{url}");
    match &target.host {
        TargetHost::Name(name) => {
            assert_eq!(*name, host.to_ascii_lowercase(), "{url}");
            assert!(name.contains('.') && name.parse::<IpAddr>().is_err(), "{url}");
            let last = name.rsplit('.').next().unwrap_or_default();
            assert!(!["localhost", "local", "internal", ""].contains(&last), "{url}");
            // Other readers take a last label of digits for an address.
            assert!(last.bytes().any(|byte| !byte.is_ascii_digit()), "{url}");
        }
        TargetHost::Address(address) => {
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            assert_eq!(bare.parse(), Ok(*address), "{url}");
        }
    }
    // Another parser, that of the HTTP library, understands the same.
    let uri: http::Uri = url.parse().expect("an accepted url is one for the HTTP library");
    assert_eq!(uri.host().map(str::to_ascii_lowercase), Some(host.to_ascii_lowercase()), "{url}");
    assert_eq!(uri.port_u16().unwrap_or(443), target.port, "{url}");
}

/// The result of a future that waits for nobody.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("it waits although nobody has to be asked"),
    }
}

/// The body of an answer to a challenge; the challenge stands in for `CHALLENGE` in the input.
pub(crate) fn check_challenge(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        assert!(challenge::judge_answer(bytes, CHALLENGE).is_err());
        return;
    };
    let body = text.replace("CHALLENGE", CHALLENGE);
    if challenge::judge_answer(body.as_bytes(), CHALLENGE).is_err() {
        return;
    }
    let answer: Value = serde_json::from_str(&body).expect("an accepted answer is JSON");
    assert!(matches!(answer["code"].as_u64(), Some(0 | 200)), "{body}");
    let result = match &answer["result"] {
        Value::String(inner) => serde_json::from_str(inner).expect("an accepted result is JSON"),
        other => other.clone(),
    };
    assert_eq!(result["challenge"], CHALLENGE, "{body}");
    // The request echoed as it came is no consent.
    assert!(challenge::judge_answer(result.to_string().as_bytes(), CHALLENGE).is_err());
}

/// The bytes of a receiver's answer, by way of hyper's client: limits hold, and the meaning is that of its status.
pub(crate) fn check_receiver(bytes: &[u8]) {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime without sockets needs nothing of the system");
    }
    RUNTIME.with(|runtime| runtime.block_on(receive(bytes)));
}

async fn receive(bytes: &[u8]) {
    let (socket, mut receiver) = duplex(1 << 20);
    let opened = http1::Builder::new()
        .max_buf_size(HEADER_BYTES_MAX as usize)
        .handshake(TokioIo::new(socket))
        .await;
    let Ok((mut client, connection)) = opened else { return };
    let request = Request::post("/hook").body(Full::new(Bytes::from_static(b"{}")));
    let Ok(request) = request else { return };
    let answering = async {
        // What comes before the request is a fault of its own, and the client does not read it as an answer.
        let mut sent = [0; 1024];
        drop(receiver.read(&mut sent).await);
        drop(receiver.write_all(bytes).await);
        drop(receiver.shutdown().await);
        // Kept open, so that writing the request does not fail.
        receiver
    };
    let asking = async {
        let answer = client.send_request(request).await.ok()?;
        let (head, body) = answer.into_parts();
        let until = Instant::now() + Duration::from_secs(5);
        let (kept, end) = read_body(body, KEEP, until).await;
        drop(client);
        Some((head, kept, end))
    };
    let driving = async {
        tokio::task::yield_now().await;
        drop(connection.await);
    };
    let (asked, (), _receiver) = tokio::join!(asking, driving, answering);
    let Some((head, kept, end)) = asked else { return };
    assert!(kept.len() <= KEEP && kept.len() <= BODY_BYTES_MAX);
    assert_ne!(end, BodyEnd::TimedOut);
    let chunked = head.headers.contains_key(TRANSFER_ENCODING);
    let sent_so = kept.is_empty() || bytes.windows(kept.len()).any(|part| part == kept);
    assert!(chunked || sent_so, "what was kept was not sent so");
    let header = head.headers.get(RETRY_AFTER).map(|value| value.to_str().unwrap_or(""));
    check_outcome(head.status.as_u16(), header);
}

fn check_outcome(status: u16, retry_after: Option<&str>) {
    let outcome = judge_answer(status, retry_after, NOW);
    match outcome {
        Outcome::Delivered => assert_eq!(status / 100, 2),
        Outcome::Gone => assert_eq!(status, 410),
        Outcome::Pause { after } => {
            assert!(status == 429 || (status == 503 && retry_after.is_some()));
            let hour = Duration::from_secs(1)..=Duration::from_secs(3600);
            assert!(after.is_none_or(|after| hour.contains(&after)), "{retry_after:?}: {after:?}");
        }
        Outcome::Failed => assert!(status / 100 != 2 && status != 410 && status != 429),
    }
}
