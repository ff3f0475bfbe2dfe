//! What must hold of bytes on a connection and of headers, whoever sent them. Run by `src/fuzzing.rs` only.
//!
//! [`check_connection`] runs everything between the socket and a handler, hyper included, and compares each request that
//! comes out with a reading by simple rules of its own ([`super::fuzz_reference`]): two readings of the same bytes are
//! what request smuggling lives on.

use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use ::http::header::{CONTENT_LENGTH, ORIGIN};
use ::http::request::Parts;
use ::http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_util::sync::CancellationToken;

use super::auth::bearer;
use super::caller_address::CallerAddresses;
use super::connection::{Arrival, Connection, HeadNote};
use super::cors::{Cors, CorsRequest};
use super::envelope::{ApiError, render};
use super::fuzz_reference::{Message, read_message};
use super::head_scan::HeadScan;
use super::head_scan::bytewise::ByteScan;
use super::limits::{BODY_BYTES_MAX, read_body};
use super::listener::serve_http;
use super::request_log::judge_head;

/// Ends one read of the connection in an input.
const END_OF_READ: u8 = 0xFE;
/// In an input for the scan of heads: the parser gives out a request.
const TAKE: u8 = 0xFD;
/// Bytes that fit between the two ends of a connection: more than an input has.
const IN_FLIGHT_BYTES: usize = 1 << 20;
/// Turns that the server gets between two reads: more than a request without waits needs.
const TURNS: usize = 8;

/// The scan by lines beside the one that looks at every byte.
pub(crate) fn check_heads(bytes: &[u8]) {
    let mut scan = HeadScan::default();
    let mut reference = ByteScan::default();
    for part in bytes.split_inclusive(|byte| matches!(*byte, END_OF_READ | TAKE)) {
        let end = part.last().copied().unwrap_or_default();
        let read =
            part.strip_suffix(&[end]).filter(|_| matches!(end, END_OF_READ | TAKE)).unwrap_or(part);
        scan.feed(read);
        reference.feed(read);
        if end == TAKE {
            assert_eq!(scan.take(), reference.take());
        }
        assert_eq!(scan.in_open_head(), reference.in_open_head());
        assert_eq!(scan.open_request_line(), reference.open_request_line());
    }
    assert_eq!(scan.take(), reference.take());
}

/// A request as a handler would see it.
#[derive(Debug)]
struct Seen {
    head: Parts,
    /// `None` when the head was refused; then nobody reads the body.
    body: Option<Result<Bytes, ApiError>>,
}

/// The surface of [`check_connection`]: judges heads as every surface does, reads the body, notes both.
#[derive(Clone, Debug, Default)]
struct Witness(Arc<Mutex<Vec<Seen>>>);

impl Witness {
    fn lock(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(self, request: Request<Body>) -> Result<Response, Infallible> {
        let (head, body) = request.into_parts();
        let note = head.extensions.get::<Arrival>().map(|arrival| arrival.note).unwrap_or_default();
        let judged = judge_head(&head, "/fuzz", note);
        let read = match &judged {
            Ok(()) => Some(read_body(body, BODY_BYTES_MAX).await),
            Err(_) => None,
        };
        let failed = match (&judged, &read) {
            (Err(error), _) | (_, Some(Err(error))) => Some(render(error, "req_fuzz")),
            _ => None,
        };
        self.lock().push(Seen { head, body: read });
        let mut response = failed.unwrap_or_else(|| Response::new(Body::from("{}")));
        if note != HeadNote::Clear || response.status() == StatusCode::REQUEST_TIMEOUT {
            response
                .headers_mut()
                .insert(::http::header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }
}

impl tower::Service<Request<Body>> for Witness {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().answer(request))
    }
}

/// Bytes on a connection, in reads that end where the input says: each request that comes out is the one that was sent.
pub(crate) fn check_connection(bytes: &[u8]) {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime without sockets needs nothing of the system");
    }
    let reads: Vec<&[u8]> = bytes.split(|byte| *byte == END_OF_READ).collect();
    let witness = Witness::default();
    let answer = RUNTIME.with(|runtime| runtime.block_on(serve(&reads, witness.clone())));
    let sent = reads.concat();
    check_answer(&answer);
    let mut rest = &sent[..];
    let requests = witness.lock();
    // Of two requests in one read the second came before the answer to the first.
    let accepted = requests.iter().filter(|seen| seen.body.is_some()).count();
    assert!(accepted <= reads.len(), "{accepted} requests were accepted in {} reads", reads.len());
    for seen in requests.iter() {
        let Some((message, behind)) = read_message(rest) else {
            panic!("a request came out that is none by the rules: {seen:?}");
        };
        check_seen(seen, &message);
        rest = behind;
    }
}

async fn serve(reads: &[&[u8]], witness: Witness) -> Vec<u8> {
    let (socket, mut caller) = duplex(IN_FLIGHT_BYTES);
    let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let serving = serve_http(Connection::new(socket), peer, witness, CancellationToken::new());
    let calling = async {
        for read in reads {
            // Fails when the server has closed, which it may.
            drop(caller.write_all(read).await);
            for _ in 0..TURNS {
                tokio::task::yield_now().await;
            }
        }
        drop(caller.shutdown().await);
        let mut answer = Vec::new();
        drop(caller.read_to_end(&mut answer).await);
        answer
    };
    tokio::join!(serving, calling).1
}

fn check_answer(answer: &[u8]) {
    let start = answer.get(..9).unwrap_or(answer);
    let known = [&b"HTTP/1.1 "[..], b"HTTP/1.0 ", b""].contains(&start);
    assert!(known, "the answer begins with {:?}", String::from_utf8_lossy(start));
}

fn check_seen(seen: &Seen, message: &Message<'_>) {
    let head = &seen.head;
    assert_eq!(head.method.as_str().as_bytes(), message.method);
    if message.target.starts_with(b"/") && !message.target.contains(&b'#') {
        assert_eq!(head.uri.to_string().as_bytes(), message.target);
    }
    // hyper takes a length out that another one follows or that chunks replace.
    let mut got: Vec<(&[u8], &[u8])> = Vec::new();
    for (name, value) in head.headers.iter().filter(|(name, _)| *name != CONTENT_LENGTH) {
        got.push((name.as_str().as_bytes(), value.as_bytes()));
    }
    let lower: Vec<(Vec<u8>, &[u8])> =
        message.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), *value)).collect();
    let mut sent: Vec<(&[u8], &[u8])> = lower
        .iter()
        .filter(|(name, _)| name != b"content-length")
        .map(|(name, value)| (&name[..], *value))
        .collect();
    got.sort_by_key(|(name, _)| *name);
    sent.sort_by_key(|(name, _)| *name);
    assert_eq!(got, sent);
    let Some(read) = &seen.body else { return };
    // Accepted: nobody else can have read these bytes in another way.
    let of = |wanted: &str| lower.iter().filter(|(name, _)| name == wanted.as_bytes()).count();
    let hosts = of("host");
    assert!(hosts == 1 || (hosts == 0 && message.minor == b'0'), "{hosts} hosts were accepted");
    let (lengths, encodings) = (of("content-length"), of("transfer-encoding"));
    assert!(lengths + encodings <= 1, "{lengths} lengths and {encodings} encodings were accepted");
    if let Ok(body) = read {
        assert_eq!(Some(&body[..]), message.body.as_deref(), "another body was read than was sent");
    }
}

/// Lines of headers behind a first line: token, caller's address, origin.
pub(crate) fn check_headers(bytes: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n').skip(1) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            headers.append(name, value);
        }
    }
    if let Some(token) = bearer(&headers) {
        assert!(!token.is_empty() && token.bytes().all(|byte| (b'!'..=b'~').contains(&byte)));
    }
    check_addresses(&headers);
    check_origin(&headers);
}

fn check_addresses(headers: &HeaderMap) {
    const FORWARDED: &str = "x-forwarded-for";
    let proxy = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    let stranger = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
    let addresses = CallerAddresses::new(vec!["10.0.0.0/8".parse().expect("a network")]);
    let find = |peer, headers: &HeaderMap| {
        let (mut head, ()) = Request::new(()).into_parts();
        head.headers = headers.clone();
        head.extensions.insert(Arrival { peer, note: HeadNote::Clear });
        addresses.find(&head)
    };
    assert_eq!(find(stranger, headers), stranger, "a stranger's header was believed");
    let found = find(proxy, headers);
    assert_eq!(found, found.to_canonical());
    let is_proxy = |address| matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 10);
    if is_proxy(found) {
        return;
    }
    // What a caller writes himself stands left of what the proxy appends, and changes nothing.
    let mut longer = HeaderMap::new();
    longer.append(FORWARDED, HeaderValue::from_static("203.0.113.77, x"));
    for value in headers.get_all(FORWARDED) {
        longer.append(FORWARDED, value.clone());
    }
    assert_eq!(find(proxy, &longer), found);
}

fn check_origin(headers: &HeaderMap) {
    let allowed = "https://a.example";
    let (mut head, ()) = Request::new(()).into_parts();
    head.headers = headers.clone();
    head.uri = ::http::Uri::from_static("/v1/api/apps");
    if let CorsRequest::Allowed(origin) = Cors::new(&[allowed.to_owned()]).judge(&head) {
        assert_eq!(origin.as_bytes(), allowed.as_bytes());
        assert!(headers.get(ORIGIN).is_some());
    }
}
