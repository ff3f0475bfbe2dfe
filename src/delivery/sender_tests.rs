//! The sender against real sockets: what arrives at a receiver, and what receivers can do to us.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use super::connector::{Proxy, platform_tls};
use super::{Answer, Attempt, Line, Outcome, Sender, Settings, Step, TargetHost};
use crate::delivery::challenge::{self, Nonce};
use crate::delivery::signing::verify;
use crate::delivery::target_guard::{Settings as GuardSettings, TargetGuard};
use crate::domain::clock::{Clock, Moment, Timestamp};
use crate::domain::subscription::SigningSecret;

#[path = "sender_test_receiver.rs"]
mod receiver;

use receiver::{Names, OK, Receiver, acceptor, trusting_client};

const BODY: &str = r#"{"type":"message"}"#;

#[derive(Debug)]
struct FixedClock;

impl Clock for FixedClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_649_367_553_900)
    }

    fn moment(&self) -> Moment {
        Moment(0)
    }
}

/// A sender that may call loopback, and what it is made of.
struct Setup {
    sender: Sender,
    guard: Arc<TargetGuard>,
    names: Names,
}

fn setup_with(tls: rustls::ClientConfig, change: impl FnOnce(&mut Settings)) -> Setup {
    let names = Names::default();
    names.set(&["127.0.0.1"]);
    let guard = Arc::new(TargetGuard::new(
        GuardSettings {
            allow_targets: vec!["127.0.0.0/8".parse().unwrap()],
            allow_http: true,
            ..GuardSettings::default()
        },
        names.clone(),
    ));
    let mut settings = Settings::default();
    change(&mut settings);
    let clock = Arc::new(FixedClock);
    let sender = Sender::with_tls(&settings, Arc::clone(&guard), clock, tls).unwrap();
    Setup {
        sender,
        guard,
        names,
    }
}

fn setup() -> Setup {
    setup_with(trusting_client(), |_| ())
}

fn secrets() -> [SigningSecret; 1] {
    [SigningSecret(vec![7; 32])]
}

async fn attempt(sender: &Sender, line: &Line) -> Answer {
    let attempt = Attempt {
        id: "evt_1",
        body: Bytes::from_static(BODY.as_bytes()),
        secrets: &secrets(),
        sequence: Some(42),
        contact_version: Some(3),
        number: Some(1),
    };
    sender.attempt(line, attempt).await
}

/// One attempt at a receiver that always answers the same.
async fn answer_to(answer: impl Into<Vec<u8>>) -> Answer {
    let Setup { sender, .. } = setup();
    let receiver = Receiver::answering(answer).await;
    attempt(&sender, &sender.line(&receiver.url("/")).unwrap()).await
}

fn failed(step: Step) -> Answer {
    Answer {
        outcome: Outcome::Failed,
        status: None,
        step,
        answer_start: Bytes::new(),
    }
}

fn delivered() -> Answer {
    let (outcome, status) = (Outcome::Delivered, Some(200));
    Answer {
        outcome,
        status,
        step: Step::Status,
        answer_start: Bytes::new(),
    }
}

#[tokio::test]
async fn a_notification_arrives_signed_and_byte_for_byte() {
    let Setup { sender, .. } = setup();
    let receiver = Receiver::answering(OK).await;
    let line = sender.line(&receiver.url("//a/../b/%2e?x='1'&y")).unwrap();

    assert_eq!(attempt(&sender, &line).await, delivered());

    let request = receiver.requests().remove(0);
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    let mut lines = head.split("\r\n");
    assert_eq!(lines.next(), Some("POST //a/../b/%2e?x='1'&y HTTP/1.1"));
    let headers: std::collections::BTreeMap<_, _> =
        lines.map(|line| line.split_once(": ").unwrap()).collect();
    let expected = [
        ("content-length", "18"),
        ("content-type", "application/json"),
        ("host", &receiver.address.to_string()),
        ("rollcall-attempt", "1"),
        ("rollcall-contact-version", "3"),
        ("rollcall-sequence", "42"),
        (
            "user-agent",
            concat!("Rollcall/", env!("CARGO_PKG_VERSION")),
        ),
        ("webhook-id", "evt_1"),
        ("webhook-signature", headers["webhook-signature"]),
        ("webhook-timestamp", "1649367553"),
    ];
    assert_eq!(
        headers.iter().map(|(k, v)| (*k, *v)).collect::<Vec<_>>(),
        expected
    );
    let signature = headers["webhook-signature"];
    let now = FixedClock.now();
    let verdict = verify(
        &secrets()[0],
        "evt_1",
        "1649367553",
        signature,
        body.as_bytes(),
        now,
    );
    assert_eq!((body, verdict), (BODY, Ok(())));
}

#[tokio::test]
async fn statuses_become_outcomes_and_failures_keep_a_kilobyte() {
    let long = format!(
        "HTTP/1.1 500 No\r\ncontent-length: 2000\r\n\r\n{}",
        "x".repeat(2000)
    );
    for (answer, outcome, status, start) in [
        (
            "HTTP/1.1 204 No Content\r\n\r\n",
            Outcome::Delivered,
            204,
            0,
        ),
        (
            "HTTP/1.1 202 OK\r\ncontent-length: 3\r\n\r\nabc",
            Outcome::Delivered,
            202,
            0,
        ),
        (
            "HTTP/1.1 410 Gone\r\ncontent-length: 3\r\n\r\nabc",
            Outcome::Gone,
            410,
            3,
        ),
        (
            "HTTP/1.1 404 No\r\ncontent-length: 3\r\n\r\nabc",
            Outcome::Failed,
            404,
            3,
        ),
        (
            "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n",
            Outcome::Failed,
            503,
            0,
        ),
        (
            "HTTP/1.1 429 No\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n",
            Outcome::Pause {
                after: Some(Duration::from_secs(7)),
            },
            429,
            0,
        ),
        (
            "HTTP/1.1 503 No\r\nretry-after: \u{e4}\r\ncontent-length: 0\r\n\r\n",
            Outcome::Pause { after: None },
            503,
            0,
        ),
        (long.as_str(), Outcome::Failed, 500, 1024),
    ] {
        let got = answer_to(answer).await;

        assert_eq!(
            (got.outcome, got.status),
            (outcome, Some(status)),
            "{answer}"
        );
        assert_eq!(
            (got.step, got.answer_start.len()),
            (Step::Status, start),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let other = Receiver::answering(OK).await;
    for status in [301, 302, 303, 307, 308] {
        let location = other.url("/");
        let answer =
            format!("HTTP/1.1 {status} Go\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");

        let got = answer_to(answer).await;

        assert_eq!((got.outcome, got.status), (Outcome::Failed, Some(status)));
    }
    assert_eq!(other.connections(), 0);
}

#[tokio::test]
async fn a_receiver_that_hangs_costs_no_more_than_the_timeout() {
    let Setup { sender, .. } = setup_with(trusting_client(), |settings| {
        settings.request_timeout = Duration::from_millis(100);
    });
    for answer in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 100 Continue\r\n\r\n"] {
        let receiver = Receiver::answering(answer).await;
        let line = sender.line(&receiver.url("/")).unwrap();

        let got = tokio::time::timeout(Duration::from_secs(5), attempt(&sender, &line)).await;

        assert_eq!(got.unwrap(), failed(Step::Timeout), "{answer}");
    }
}

#[tokio::test]
async fn a_2xx_is_delivered_whatever_becomes_of_its_body() {
    // The first is cut off, the second hangs, the third never ends.
    let cut = Receiver::start(|receiver, _, mut stream| async move {
        receiver.read(&mut stream).await?;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc")
            .await
            .ok()
    })
    .await;
    let hanging = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc").await;
    let endless = Receiver::start(flood(b"HTTP/1.1 200 OK\r\n\r\n", b"x")).await;
    let Setup { sender, .. } = setup();

    for receiver in [cut, hanging, endless] {
        let line = sender.line(&receiver.url("/")).unwrap();
        assert_eq!(attempt(&sender, &line).await, delivered());
    }
}

/// A script that answers `start` and then, 10 MB long, the same byte; it notes how much was taken.
fn flood(
    start: &'static [u8],
    byte: &'static [u8; 1],
) -> impl Fn(Receiver, usize, tokio::net::TcpStream) -> futures::Boxed + Send {
    move |receiver, _, mut stream| {
        Box::pin(async move {
            receiver.read(&mut stream).await?;
            stream.write_all(start).await.ok()?;
            let piece = byte.repeat(16 * 1024);
            for sent in 0..640 {
                if stream.write_all(&piece).await.is_err() {
                    receiver.note(format!("broke after {sent}"));
                    return None;
                }
            }
            receiver.note("all was taken");
            Some(())
        })
    }
}

mod futures {
    //! The boxed future that a script in a function of its own gives.
    pub(super) type Boxed = std::pin::Pin<Box<dyn Future<Output = Option<()>> + Send>>;
}

#[tokio::test]
async fn no_more_than_64_kib_of_an_answer_are_read() {
    let answer = b"HTTP/1.1 500 No\r\ncontent-length: 10485760\r\n\r\n";
    let receiver = Receiver::start(flood(answer, b"x")).await;
    let Setup { sender, .. } = setup();
    let line = sender.line(&receiver.url("/")).unwrap();

    let got = attempt(&sender, &line).await;
    while receiver.requests().len() < 2 {
        tokio::task::yield_now().await;
    }

    assert_eq!((got.status, got.answer_start.len()), (Some(500), 1024));
    assert!(
        receiver.requests()[1].starts_with("broke after"),
        "{:?}",
        receiver.requests()
    );
    assert!(line.pool.take(&["127.0.0.1".parse().unwrap()]).is_none());
}

#[tokio::test]
async fn headers_are_limited_and_garbage_is_not_http() {
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(200));
    let fits = format!(
        "HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 0\r\n\r\n",
        "y".repeat(15_000)
    );
    let exceeds = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(17_000));

    assert_eq!(answer_to(fits).await, delivered());
    assert_eq!(answer_to(exceeds).await, failed(Step::Size));
    assert_eq!(answer_to(many).await, failed(Step::Size));
    assert_eq!(
        answer_to("SSH-2.0-OpenSSH_9.9\r\n\r\n").await,
        failed(Step::Status)
    );
    let receiver = Receiver::start(flood(b"HTTP/1.1 200 OK\r\nx: ", b"y")).await;
    let Setup { sender, .. } = setup();
    let line = sender.line(&receiver.url("/")).unwrap();
    assert_eq!(attempt(&sender, &line).await, failed(Step::Size));
}

#[tokio::test]
async fn a_connection_is_kept_for_the_next_attempt() {
    let Setup { sender, .. } = setup();
    let receiver = Receiver::answering("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc").await;
    let line = sender.line(&receiver.url("/")).unwrap();

    for _ in 0..20 {
        assert_eq!(attempt(&sender, &line).await, delivered());
    }

    assert_eq!((receiver.connections(), receiver.requests().len()), (1, 20));
}

/// The first connection answers once and gives `last` to the second request before it closes; later
/// connections do as `fresh` says.
async fn receiver_that_closes(last: &'static [u8], fresh: &'static [u8]) -> Receiver {
    Receiver::start(move |receiver, number, mut stream| async move {
        receiver.read(&mut stream).await?;
        if number > 0 {
            return stream.write_all(fresh).await.ok();
        }
        stream.write_all(OK).await.ok()?;
        receiver.read(&mut stream).await?;
        stream.write_all(last).await.ok()
    })
    .await
}

#[tokio::test]
async fn a_request_that_a_kept_connection_swallowed_is_repeated_once_on_a_fresh_one() {
    for (last, fresh, second, connections) in [
        (&b""[..], OK, delivered(), 2),
        // Repeated once, not until it works.
        (b"", b"", failed(Step::Connect), 2),
        // One byte of an answer: the receiver may have worked on it.
        (b"H", OK, failed(Step::Connect), 1),
    ] {
        let Setup { sender, .. } = setup();
        let receiver = receiver_that_closes(last, fresh).await;
        let line = sender.line(&receiver.url("/")).unwrap();

        assert_eq!(attempt(&sender, &line).await, delivered());
        assert_eq!(attempt(&sender, &line).await, second);

        assert_eq!(receiver.connections(), connections);
        assert_eq!(receiver.requests().len(), 1 + connections);
    }
}

#[tokio::test]
async fn a_fresh_connection_that_closes_is_a_failure() {
    let receiver =
        Receiver::start(|receiver, _, mut stream| async move { receiver.read(&mut stream).await })
            .await;
    let Setup { sender, .. } = setup();

    let got = attempt(&sender, &sender.line(&receiver.url("/")).unwrap()).await;

    assert_eq!(got, failed(Step::Connect));
    assert_eq!(receiver.connections(), 1);
}

#[tokio::test]
async fn an_aborted_attempt_closes_its_connection() {
    let (ended, end) = oneshot::channel();
    let ended = Arc::new(std::sync::Mutex::new(Some(ended)));
    let receiver = Receiver::start(move |receiver, _, mut stream| {
        let ended = Arc::clone(&ended);
        async move {
            receiver.read(&mut stream).await?;
            let read = stream.read(&mut [0; 8]).await;
            ended.lock().unwrap().take()?.send(read.unwrap_or(0)).ok()
        }
    })
    .await;
    let Setup { sender, .. } = setup();
    let line = sender.line(&receiver.url("/")).unwrap();

    tokio::select! {
        _ = attempt(&sender, &line) => panic!("the receiver never answers"),
        () = async { while receiver.requests().is_empty() { tokio::task::yield_now().await } } => (),
    }

    let end = tokio::time::timeout(Duration::from_secs(5), end).await;
    assert_eq!(end, Ok(Ok(0)));
}

#[tokio::test]
async fn a_literal_address_is_judged_at_connect_even_if_the_check_was_bypassed() {
    let receiver = Receiver::answering(OK).await;
    let guard = Arc::new(TargetGuard::new(GuardSettings::default(), Names::default()));
    let clock = Arc::new(FixedClock);
    let sender = Sender::new(&Settings::default(), guard, clock).unwrap();
    let allowed = setup().guard.check_url(&receiver.url("/")).unwrap();
    assert!(matches!(allowed.host, TargetHost::Address(_)));

    let got = attempt(&sender, &Line::new(allowed).unwrap()).await;

    assert_eq!(got, failed(Step::Address));
    assert_eq!(receiver.connections(), 0);
}

#[tokio::test]
async fn a_name_that_changes_between_check_and_connect_is_refused() {
    let Setup { sender, names, .. } = setup();
    let receiver = Receiver::answering(OK).await;
    let url = format!("http://hooks.example.com:{}/", receiver.address.port());
    let line = sender.line(&url).unwrap();

    for (addresses, step) in [
        (&["10.0.0.1"][..], Step::Address),
        (&["127.0.0.1", "10.0.0.1"], Step::Address),
        (&[], Step::Name),
    ] {
        names.set(addresses);
        let line = sender.line(&url.replace("hooks", step.name())).unwrap();
        setup_is_clean(&line);
        assert_eq!(attempt(&sender, &line).await, failed(step));
    }
    assert_eq!(receiver.connections(), 0);
    names.set(&["127.0.0.1"]);
    assert_eq!(attempt(&sender, &line).await, delivered());
}

/// A new line has no connection that could hide the check.
fn setup_is_clean(line: &Line) {
    assert!(line.pool.take(&["127.0.0.1".parse().unwrap()]).is_none());
}

#[tokio::test]
async fn a_kept_connection_is_not_used_once_its_address_left_the_answer() {
    let Setup {
        sender,
        guard,
        names,
    } = setup();
    let first = Receiver::answering(OK).await;
    let address = format!("127.0.0.2:{}", first.address.port())
        .parse()
        .unwrap();
    let second = Receiver::start_at(address, |receiver, _, stream| async move {
        receiver.serve(stream, OK).await
    })
    .await;
    let url = format!("http://hooks.example.com:{}/", first.address.port());
    let line = sender.line(&url).unwrap();

    let mut counts = Vec::new();
    for addresses in [
        &["127.0.0.1"][..],
        &["127.0.0.2", "127.0.0.1"],
        &["127.0.0.2"],
    ] {
        names.set(addresses);
        guard.forget_answers();
        assert_eq!(attempt(&sender, &line).await, delivered());
        counts.push((first.requests().len(), second.requests().len()));
    }
    names.set(&["10.0.0.1"]);
    guard.forget_answers();
    assert_eq!(attempt(&sender, &line).await, failed(Step::Address));

    assert_eq!(counts, [(1, 0), (2, 0), (2, 1)]);
    assert_eq!((first.connections(), second.requests().len()), (1, 1));
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_refuses() {
    let Setup { sender, names, .. } = setup();
    let receiver = Receiver::answering(OK).await;
    names.set(&["127.0.0.3", "127.0.0.1"]);
    let url = format!("http://hooks.example.com:{}/", receiver.address.port());

    let got = attempt(&sender, &sender.line(&url).unwrap()).await;

    assert_eq!(got, delivered());
    names.set(&["127.0.0.3"]);
    let url = format!("http://other.example.com:{}/", receiver.address.port());
    assert_eq!(
        attempt(&sender, &sender.line(&url).unwrap()).await,
        failed(Step::Connect)
    );
}

/// A receiver that speaks TLS, and HTTP/1.1 inside.
async fn tls_receiver() -> Receiver {
    Receiver::start(|receiver, _, stream| async move {
        let stream = acceptor(&["http/1.1"]).accept(stream).await.ok()?;
        receiver.serve(stream, OK).await
    })
    .await
}

#[tokio::test]
async fn certificates_are_checked_against_roots_and_host() {
    let receiver = tls_receiver().await;
    let port = receiver.address.port();
    let plain = Receiver::answering("HTTP/1.1 400 No\r\n\r\n")
        .await
        .address
        .port();
    for (tls, url, expected) in [
        (
            trusting_client(),
            format!("https://hooks.example.com:{port}/"),
            delivered(),
        ),
        (
            trusting_client(),
            format!("https://127.0.0.1:{port}/"),
            delivered(),
        ),
        (
            trusting_client(),
            format!("https://other.example.com:{port}/"),
            failed(Step::Tls),
        ),
        (
            trusting_client(),
            format!("https://127.0.0.2:{port}/"),
            failed(Step::Connect),
        ),
        (
            trusting_client(),
            format!("https://127.0.0.1:{plain}/"),
            failed(Step::Tls),
        ),
        (
            platform_tls().unwrap(),
            format!("https://127.0.0.1:{port}/"),
            failed(Step::Tls),
        ),
    ] {
        let Setup { sender, .. } = setup_with(tls, |_| ());
        let line = sender.line(&url).unwrap();
        assert_eq!(attempt(&sender, &line).await, expected, "{url}");
    }
    assert_eq!(receiver.requests().len(), 2);
    assert!(receiver.requests()[0].contains(&format!("\r\nhost: hooks.example.com:{port}\r\n")));
}

#[tokio::test]
async fn a_tls_handshake_that_hangs_ends_with_the_connect_timeout() {
    let receiver = Receiver::start(|_, _, mut stream| async move {
        while stream.read(&mut [0; 512]).await.ok()? > 0 {}
        Some(())
    })
    .await;
    let Setup { sender, .. } = setup_with(trusting_client(), |settings| {
        settings.connect_timeout = Duration::from_millis(100);
    });
    let url = format!("https://127.0.0.1:{}/", receiver.address.port());

    assert_eq!(
        attempt(&sender, &sender.line(&url).unwrap()).await,
        failed(Step::Tls)
    );
}

/// A receiver that speaks HTTP/2; it notes host, path and body, and closes each connection after `most` answers.
async fn http2_receiver(most: usize) -> Receiver {
    Receiver::start(move |receiver, _, stream| async move {
        let stream = acceptor(&["h2"]).accept(stream).await.ok()?;
        let (close, closed) = tokio::sync::watch::channel(0);
        let service = hyper::service::service_fn(move |request: http::Request<_>| {
            let (receiver, close) = (receiver.clone(), close.clone());
            async move {
                let uri = request.uri().to_string();
                let body: hyper::body::Incoming = request.into_body();
                let body = body.collect().await.unwrap().to_bytes();
                receiver.note(format!("{uri} {}", String::from_utf8_lossy(&body)));
                close.send_modify(|count| *count += 1);
                Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from_static(b"ok"))))
            }
        });
        let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service);
        let mut serving = std::pin::pin!(serving);
        let enough = async move {
            let mut closed = closed;
            closed.wait_for(|count| *count >= most).await.is_ok()
        };
        tokio::select! {
            _ = &mut serving => (),
            _ = enough => {
                serving.as_mut().graceful_shutdown();
                let _ended = serving.await;
            }
        }
        Some(())
    })
    .await
}

#[tokio::test]
async fn http2_is_used_where_offered_on_one_connection() {
    let receiver = http2_receiver(usize::MAX).await;
    let Setup { sender, .. } = setup();
    let url = format!("https://hooks.example.com:{}//a?b", receiver.address.port());
    let line = sender.line(&url).unwrap();

    assert_eq!(attempt(&sender, &line).await, delivered());
    let many = (0..50).map(|_| attempt(&sender, &line));
    for answer in join_all(many).await {
        assert_eq!(answer, delivered());
    }

    assert_eq!((receiver.connections(), receiver.requests().len()), (1, 51));
    assert_eq!(receiver.requests()[0], format!("{url} {BODY}"));
}

#[tokio::test]
async fn an_http2_connection_that_ends_is_replaced() {
    let receiver = http2_receiver(3).await;
    let Setup { sender, .. } = setup();
    let url = format!("https://127.0.0.1:{}/", receiver.address.port());
    let line = sender.line(&url).unwrap();

    for _ in 0..9 {
        assert_eq!(attempt(&sender, &line).await, delivered());
    }

    assert!(
        (3..=4).contains(&receiver.connections()),
        "{}",
        receiver.connections()
    );
}

/// Runs futures side by side.
async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(move |cx| {
        for (future, output) in &mut running {
            if output.is_none()
                && let std::task::Poll::Ready(done) = future.as_mut().poll(cx)
            {
                *output = Some(done);
            }
        }
        if running.iter().any(|(_, output)| output.is_none()) {
            return std::task::Poll::Pending;
        }
        let outputs = running.iter_mut().filter_map(|(_, output)| output.take());
        std::task::Poll::Ready(outputs.collect())
    })
    .await
}

#[tokio::test]
async fn a_proxy_is_asked_for_the_judged_address_and_sees_no_request() {
    let target = tls_receiver().await;
    let to = target.address;
    let proxy = Receiver::start(move |proxy, _, mut stream| async move {
        proxy.read(&mut stream).await?;
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nvia: x\r\n\r\n")
            .await
            .ok()?;
        let mut onward = tokio::net::TcpStream::connect(to).await.ok()?;
        tokio::io::copy_bidirectional(&mut stream, &mut onward)
            .await
            .ok()
            .map(|_| ())
    })
    .await;
    let Setup { sender, .. } = setup_with(trusting_client(), |settings| {
        settings.proxy = Some(format!("http://us%65r:p%3Aw@{}", proxy.address));
    });
    let url = format!("https://hooks.example.com:{}/", to.port());

    assert_eq!(
        attempt(&sender, &sender.line(&url).unwrap()).await,
        delivered()
    );

    let expected = format!(
        "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\nProxy-Authorization: Basic dXNlcjpwOnc=\r\n\r\n"
    );
    assert_eq!(proxy.requests(), [expected]);
    assert_eq!(
        sender.line("http://127.0.0.1:1/").unwrap_err().step,
        Step::Url
    );
}

#[tokio::test]
async fn a_proxy_that_refuses_is_a_failure_to_connect() {
    let refusal = "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n";
    let proxy = Receiver::answering(refusal).await;
    let Setup { sender, .. } = setup_with(trusting_client(), |settings| {
        settings.proxy = Some(format!("http://{}/", proxy.address));
    });

    let got = attempt(&sender, &sender.line("https://hooks.example.com/").unwrap()).await;

    assert_eq!(got, failed(Step::Connect));
    assert_eq!(proxy.connections(), 1);
}

#[test]
fn a_proxy_is_an_http_url_without_path() {
    for text in [
        "http://proxy:3128",
        "http://proxy",
        "http://u:p@[::1]:3128/",
        "http://10.0.0.1:1",
    ] {
        assert!(Proxy::parse(text).is_ok(), "{text}");
    }
    for text in [
        "",
        "proxy:3128",
        "https://proxy:3128",
        "socks5://proxy:1",
        "http://proxy/a",
        "http://p/?q",
        "http://u%zz:p@proxy",
    ] {
        assert!(Proxy::parse(text).is_err(), "{text}");
    }
}

async fn verification(answer: impl Into<Vec<u8>>) -> String {
    let Setup { sender, .. } = setup();
    let receiver = Receiver::answering(answer).await;
    let line = sender.line(&receiver.url("/")).unwrap();
    let nonce = Nonce::from_bytes([1; 16], [2; 32]);
    let verdict = challenge::verify(&sender, &line, &secrets(), &nonce).await;
    let request = receiver.requests().remove(0);
    assert!(request.ends_with(&format!(
        "\r\n\r\n{{\"challenge\":\"{}\"}}",
        "02".repeat(32)
    )));
    assert!(request.contains(&format!("\r\nwebhook-id: chal_{}\r\n", "01".repeat(16))));
    assert!(request.contains("\r\nwebhook-signature: v1,") && !request.contains("rollcall-"));
    verdict.map_or_else(|failure| failure.to_string(), |()| "verified".to_owned())
}

#[tokio::test]
async fn a_verification_sends_the_challenge_and_says_at_most_step_and_status() {
    let with = |body: &str| {
        format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let consent = format!(
        r#"{{"code":200,"result":{{"challenge":"{}"}}}}"#,
        "02".repeat(32)
    );
    let padded = |size: usize| with(&format!("{consent}{}", " ".repeat(size - consent.len())));
    for (answer, verdict) in [
        (with(&consent), "verified"),
        (padded(65_536), "verified"),
        (
            padded(65_537),
            "step size: the receiver's answer is too large",
        ),
        (
            with("secret"),
            "step json: the answer is not a JSON object without duplicate keys",
        ),
        (
            with(&consent).replace("200 OK", "500 No"),
            "step status: the receiver answered 500",
        ),
        (
            with(&consent).replace("200 OK", "302 No"),
            "step status: the receiver answered 302",
        ),
        (
            with(&consent.replace("02", "03")),
            "step challenge: the answer's result does not hold",
        ),
    ] {
        let got = verification(answer).await;
        assert!(got.contains(verdict), "{verdict}: {got}");
    }
}
