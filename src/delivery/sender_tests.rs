//! The sender against real sockets: what arrives at a receiver, and what receivers can do to us.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

use super::{Answer, Attempt, AttemptTimer, Line, Outcome, Sender, Settings, Step};
use crate::delivery::challenge::{self, Nonce};
use crate::delivery::signing::verify;
use crate::delivery::target_guard::{Settings as GuardSettings, TargetGuard};
use crate::domain::clock::{Clock, Moment, Timestamp};
use crate::domain::subscription::{SigningSecret, StoredSecret};

#[path = "sender_test_receiver.rs"]
mod receiver;

#[path = "sender_guard_tests.rs"]
mod guarding;

#[path = "sender_connection_tests.rs"]
mod connections;

#[path = "sender_hostile_tests.rs"]
mod hostile;

#[path = "sender_lease_tests.rs"]
mod leases;

use receiver::{Names, OK, Receiver, trusting_client};

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
    Setup { sender, guard, names }
}

fn setup() -> Setup {
    setup_with(trusting_client(), |_| ())
}

fn secrets() -> [StoredSecret; 1] {
    [stored(7, None)]
}

fn stored(byte: u8, expires_at: Option<Timestamp>) -> StoredSecret {
    StoredSecret { secret: SigningSecret(vec![byte; 32]), expires_at }
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
    sender.attempt(line, attempt, &mut AttemptTimer::default()).await
}

/// One attempt at a receiver that always answers the same.
async fn answer_to(answer: impl Into<Vec<u8>>) -> Answer {
    let Setup { sender, .. } = setup();
    let receiver = Receiver::answering(answer).await;
    attempt(&sender, &sender.line(&receiver.url("/")).unwrap()).await
}

fn failed(step: Step) -> Answer {
    Answer { outcome: Outcome::Failed, status: None, step, answer_start: Bytes::new() }
}

fn delivered() -> Answer {
    let (outcome, status) = (Outcome::Delivered, Some(200));
    Answer { outcome, status, step: Step::Status, answer_start: Bytes::new() }
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
        ("user-agent", concat!("Rollcall/", env!("CARGO_PKG_VERSION"))),
        ("webhook-id", "evt_1"),
        ("webhook-signature", headers["webhook-signature"]),
        ("webhook-timestamp", "1649367553"),
    ];
    assert_eq!(headers.iter().map(|(k, v)| (*k, *v)).collect::<Vec<_>>(), expected);
    let signature = headers["webhook-signature"];
    let now = FixedClock.now();
    let verdict =
        verify(&secrets()[0].secret, "evt_1", "1649367553", signature, body.as_bytes(), now);
    assert_eq!((body, verdict), (BODY, Ok(())));
}

#[tokio::test]
async fn secrets_sign_until_the_moment_they_expire() {
    let setup = setup();
    let now = FixedClock.now();
    let later = now.plus(Duration::from_millis(1));
    let secrets = [stored(3, None), stored(2, Some(later)), stored(1, Some(now))];
    let attempt = Attempt {
        id: "evt_1",
        body: Bytes::from_static(BODY.as_bytes()),
        secrets: &secrets,
        sequence: None,
        contact_version: None,
        number: None,
    };

    let headers = setup.sender.headers(&attempt);

    let signature = headers["webhook-signature"].to_str().unwrap();
    let fits = secrets.each_ref().map(|stored| {
        let body = BODY.as_bytes();
        verify(&stored.secret, "evt_1", "1649367553", signature, body, now).is_ok()
    });
    assert_eq!((fits, signature.matches("v1,").count()), ([true, true, false], 2));
}

#[tokio::test]
async fn statuses_become_outcomes_and_failures_keep_a_kilobyte() {
    let long = format!("HTTP/1.1 500 No\r\ncontent-length: 2000\r\n\r\n{}", "x".repeat(2000));
    for (answer, outcome, status, start) in [
        ("HTTP/1.1 204 No Content\r\n\r\n", Outcome::Delivered, 204, 0),
        ("HTTP/1.1 202 OK\r\ncontent-length: 3\r\n\r\nabc", Outcome::Delivered, 202, 0),
        ("HTTP/1.1 410 Gone\r\ncontent-length: 3\r\n\r\nabc", Outcome::Gone, 410, 3),
        ("HTTP/1.1 404 No\r\ncontent-length: 3\r\n\r\nabc", Outcome::Failed, 404, 3),
        ("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", Outcome::Failed, 503, 0),
        (
            "HTTP/1.1 429 No\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n",
            Outcome::Pause { after: Some(Duration::from_secs(7)) },
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

        assert_eq!((got.outcome, got.status), (outcome, Some(status)), "{answer}");
        assert_eq!((got.step, got.answer_start.len()), (Step::Status, start), "{answer}");
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
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc").await.ok()
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
    assert!(receiver.requests()[1].starts_with("broke after"), "{:?}", receiver.requests());
    while line.slot.connections().is_some() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn headers_are_limited_and_garbage_is_not_http() {
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(200));
    let fits = format!("HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 0\r\n\r\n", "y".repeat(15_000));
    let exceeds = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(17_000));

    assert_eq!(answer_to(fits).await, delivered());
    assert_eq!(answer_to(exceeds).await, failed(Step::Size));
    assert_eq!(answer_to(many).await, failed(Step::Size));
    assert_eq!(answer_to("SSH-2.0-OpenSSH_9.9\r\n\r\n").await, failed(Step::Status));
    let receiver = Receiver::start(flood(b"HTTP/1.1 200 OK\r\nx: ", b"y")).await;
    let Setup { sender, .. } = setup();
    let line = sender.line(&receiver.url("/")).unwrap();
    assert_eq!(attempt(&sender, &line).await, failed(Step::Size));
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

#[test]
fn settings_are_shown_without_the_password_of_the_proxy() {
    let settings = Settings { proxy: Some("http://a:hunter2@p".into()), ..Settings::default() };

    let shown = format!("{settings:?}");

    assert!(shown.contains("15s") && shown.contains("Some") && !shown.contains("hunter2"));
}

async fn verification(answer: impl Into<Vec<u8>>) -> String {
    let Setup { sender, .. } = setup();
    let receiver = Receiver::answering(answer).await;
    let line = sender.line(&receiver.url("/")).unwrap();
    let nonce = Nonce::from_bytes([1; 16], [2; 32]);
    let verdict = challenge::verify(&sender, &line, &secrets(), &nonce).await;
    let request = receiver.requests().remove(0);
    assert!(request.ends_with(&format!("\r\n\r\n{{\"challenge\":\"{}\"}}", "02".repeat(32))));
    assert!(request.contains(&format!("\r\nwebhook-id: chal_{}\r\n", "01".repeat(16))));
    assert!(request.contains("\r\nwebhook-signature: v1,") && !request.contains("rollcall-"));
    verdict.map_or_else(|failure| failure.to_string(), |()| "verified".to_owned())
}

#[tokio::test]
async fn a_verification_sends_the_challenge_and_says_at_most_step_and_status() {
    let with =
        |body: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let consent = format!(r#"{{"code":200,"result":{{"challenge":"{}"}}}}"#, "02".repeat(32));
    let padded = |size: usize| with(&format!("{consent}{}", " ".repeat(size - consent.len())));
    for (answer, verdict) in [
        (with(&consent), "verified"),
        (padded(65_536), "verified"),
        (padded(65_537), "step size: the receiver's answer is too large"),
        (with("secret"), "step json: the answer is not a JSON object without duplicate keys"),
        (with(&consent).replace("200 OK", "500 No"), "step status: the receiver answered 500"),
        (with(&consent).replace("200 OK", "302 No"), "step status: the receiver answered 302"),
        (with(&consent.replace("02", "03")), "step challenge: the answer's result does not hold"),
    ] {
        let got = verification(answer).await;
        assert!(got.contains(verdict), "{verdict}: {got}");
    }
}
