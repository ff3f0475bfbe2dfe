//! Connections that go quiet, with hyper and a router behind them: each ends, and a late head is told so.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_util::sync::CancellationToken;

use super::{Connection, ConnectionProgress, HeadNote, WaitEnd, Waits};
use crate::http::listener::serve_http;

/// Longer than any of these tests.
const NEVER: Duration = Duration::from_secs(3600);
/// As short as it can be: what is waited for here never comes.
const SOON: Duration = Duration::from_millis(20);
/// How long a test waits before it fails.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes that fit between the two ends.
const IN_FLIGHT_BYTES: usize = 64 * 1024;

const AT_ONCE: &str = "GET /at-once HTTP/1.1\r\nHost: a\r\n\r\n";
const LATER: &str = "GET /later HTTP/1.1\r\nHost: a\r\n\r\n";
const POST: &str = "POST /at-once HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}";
const CHUNKED: &str =
    "POST /at-once HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n";

/// Two ways to answer: within the poll that brought the request, and after another one.
fn router() -> Router {
    let at_once = get(async || "").post(async |_: String| "");
    let later = get(async || {
        tokio::task::yield_now().await;
        ""
    });
    Router::new().route("/at-once", at_once).route("/later", later)
}

/// Serves a connection on which this has arrived already; gives the caller's end.
async fn serve(arrived: &str, waits: Waits) -> DuplexStream {
    let (socket, mut caller) = duplex(IN_FLIGHT_BYTES);
    caller.write_all(arrived.as_bytes()).await.unwrap();
    let connection = Connection::with_waits(socket, waits);
    let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
    tokio::spawn(serve_http(connection, peer, router(), CancellationToken::new()));
    caller
}

/// Everything until the server closes; fails when it does not.
async fn read_to_end(mut caller: DuplexStream, case: &str) -> String {
    let mut answer = String::new();
    let read = tokio::time::timeout(PATIENCE, caller.read_to_string(&mut answer)).await;
    read.unwrap_or_else(|_| panic!("still open: {case:?}")).unwrap();
    answer
}

#[tokio::test]
async fn idle_connection_is_closed_before_and_behind_a_request() {
    for arrived in ["", AT_ONCE, LATER, POST, CHUNKED] {
        let caller = serve(arrived, Waits { head: NEVER, idle: SOON }).await;

        let answer = read_to_end(caller, arrived).await;

        let requests = usize::from(!arrived.is_empty());
        assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), requests, "{answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), requests, "{answer}");
    }
}

#[tokio::test]
async fn request_that_comes_before_the_answer_to_the_one_before_ends_the_connection() {
    for first in [AT_ONCE, LATER, POST, CHUNKED] {
        for behind in [AT_ONCE, POST, CHUNKED, "G", "GET / HTTP/1.1\r\nHost: a\r\n"] {
            let arrived = format!("{first}{behind}");
            let caller = serve(&arrived, Waits { head: NEVER, idle: NEVER }).await;

            let answer = read_to_end(caller, &arrived).await;

            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{arrived:?}: {answer}");
            assert!(answer.contains("HTTP/1.1 200 OK\r\n"), "{arrived:?}: {answer}");
            assert!(answer.contains("connection: close\r\n"), "{arrived:?}: {answer}");
        }
    }
}

#[tokio::test]
async fn idle_connection_is_closed_when_its_requests_came_one_by_one() {
    for request in [AT_ONCE, LATER, POST, CHUNKED] {
        let mut caller = serve(request, Waits { head: NEVER, idle: SOON }).await;
        let mut start = [0; 15];
        caller.read_exact(&mut start).await.unwrap();
        assert_eq!(&start, b"HTTP/1.1 200 OK");

        // The server may be about to close; then nothing needs to be written any more.
        drop(caller.write_all(request.as_bytes()).await);

        read_to_end(caller, request).await;
    }
}

#[tokio::test]
async fn late_head_is_told_so_whatever_came_before_it() {
    for before in ["", AT_ONCE, LATER, POST, CHUNKED] {
        let mut caller = serve(before, Waits { head: SOON, idle: NEVER }).await;
        if !before.is_empty() {
            let mut start = [0; 15];
            caller.read_exact(&mut start).await.unwrap();
            assert_eq!(&start, b"HTTP/1.1 200 OK");
        }
        caller.write_all(b"GET /l").await.unwrap();

        let answer = read_to_end(caller, before).await;

        let last = answer.rfind("HTTP/1.1 ").map(|at| &answer[at..]).unwrap_or_default();
        assert!(last.starts_with("HTTP/1.1 408 "), "{before:?}: {answer}");
    }
}

#[tokio::test]
async fn connection_behind_a_stray_line_break_is_idle_and_not_in_a_head() {
    for first in [AT_ONCE, LATER, POST] {
        let arrived = format!("{first}\r\n");
        let caller = serve(&arrived, Waits { head: SOON, idle: 10 * SOON }).await;

        let answer = read_to_end(caller, &arrived).await;

        assert!(!answer.contains("HTTP/1.1 408 "), "{answer}");
        assert!(!answer.contains("connection: close\r\n"), "{answer}");
    }
}

#[test]
fn caller_that_takes_an_answer_slowly_is_not_idle() {
    let progress = ConnectionProgress::new(Waits { head: NEVER, idle: NEVER });
    progress.lock().note_read(AT_ONCE.as_bytes());
    assert_eq!(progress.begin_request(false), HeadNote::Clear);
    assert_eq!(progress.lock().wait_end(), None);
    assert!(!progress.end_request());
    let (before, end) = progress.lock().wait_end().unwrap();
    assert_eq!(end, WaitEnd::Idle);

    std::thread::sleep(Duration::from_millis(1));
    progress.lock().note_written();

    assert!(progress.lock().wait_end().unwrap().0 > before);
}
