//! What happens to an event that a receiver does not take: sent again, paused, exhausted, or the subscription ends.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::harness::PATIENCE;
use crate::harness::client::Api;
use crate::harness::receiver::{Receiver, Reply, Seen};
use crate::harness::server::TestServer;

fn attempt(seen: &Seen) -> u32 {
    seen.header("rollcall-attempt").parse().unwrap()
}

async fn create_many(app: &Api, prefix: &str, count: usize) {
    for n in 0..count {
        app.create_contact("Ana", &format!("{prefix}{n}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn event_is_sent_again_after_every_kind_of_failure() {
    let server = TestServer::builder()
        .flag("--retry-schedule", "1s,1s")
        .flag("--connect-timeout", "500ms")
        .flag("--request-timeout", "1s")
        .start()
        .await;
    let receiver = Receiver::start().await;
    let kinds: [fn() -> Reply; 7] = [
        || Reply::status(500),
        || Reply::status(404),
        || Reply::status(503),
        || Reply::status(304),
        || Reply::header(302, "location", "/elsewhere"),
        || Reply::Close,
        || Reply::Hang,
    ];
    receiver.answer(move |seen| {
        let number = usize::try_from(seen.sequence()).unwrap();
        if attempt(seen) > 1 || number % 2 == 1 {
            Reply::status(204)
        } else {
            kinds[number / 2 - 1]()
        }
    });
    let app = server.app();
    app.subscribe(true, &receiver.url()).await.expect(200);

    // Every second event is good, so that the failures stay those of their events.
    create_many(&app, "C", 15).await;

    let delivered = receiver.wait_for_delivered(15).await;
    app.wait_until_idle().await;
    let ids: BTreeSet<&str> = delivered.iter().map(|seen| seen.event_id()).collect();
    assert_eq!((ids.len(), delivered.len()), (15, 15));
    assert_eq!(app.subscription().await["state"], "active");
}

#[tokio::test(flavor = "multi_thread")]
async fn event_that_fails_while_others_succeed_is_exhausted_and_its_contact_goes_on() {
    let server = TestServer::builder().flag("--retry-schedule", "1s,1s").start().await;
    let receiver = Receiver::start().await;
    let poisoned = |seen: &Seen| seen.full_name() == "Ana Poison";
    receiver.answer(move |seen| Reply::status(if poisoned(seen) { 500 } else { 200 }));
    let app = server.app();
    app.subscribe(true, &receiver.url()).await.expect(200);
    let id = app.create_contact("Ana", "Poison").await;
    let edit = json!({"lastName": "Cured"});
    app.patch(&format!("/contacts/staff/{id}"), edit).await.expect(200);

    // The first failure uses up no retry; after it a success between two attempts makes the failure the event's.
    for number in 1..=4 {
        receiver
            .wait_until("the next attempt failed", |receiver| {
                let all = receiver.notifications();
                all.iter().filter(|seen| poisoned(seen) && seen.status.is_some()).count() == number
            })
            .await;
        app.create_contact("Ben", &number.to_string()).await;
        receiver
            .wait_until("another contact got through", |receiver| {
                let name = format!("Ben {number}");
                receiver.delivered().iter().any(|seen| seen.full_name() == name)
            })
            .await;
    }

    let status = app.wait_until_idle().await;
    assert_eq!((&status["exhausted"], &status["state"]), (&json!(1), &json!("active")));
    assert_eq!(receiver.notifications().iter().filter(|seen| poisoned(seen)).count(), 4);
    assert_eq!(receiver.kinds_of(&id), ["staffEdit"]);
    receiver.assert_contacts_in_order();
}

/// Answers twice with this status and a wish for 2 s: nothing is sent meanwhile, no retry is used up.
async fn check_pause(status: u16) {
    let server = TestServer::builder().flag("--retry-schedule", "1s").start().await;
    let receiver = Receiver::start().await;
    receiver.answer(move |seen| {
        if seen.sequence() == 1 && attempt(seen) <= 2 {
            Reply::header(status, "retry-after", "2")
        } else {
            Reply::status(200)
        }
    });
    let app = server.app();
    app.subscribe(true, &receiver.url()).await.expect(200);
    app.create_contact("Ana", "First").await;
    receiver.wait_for_notifications(1).await;
    app.wait_for_state("paused").await;
    create_many(&app, "Later", 3).await;

    receiver.wait_for_delivered(4).await;

    let all = receiver.notifications();
    let waited = all[1].at - all[0].at;
    assert!(waited >= Duration::from_millis(1_900), "{waited:?}");
    let idle = app.wait_until_idle().await;
    assert_eq!((&idle["exhausted"], &idle["state"]), (&json!(0), &json!("active")));
}

#[tokio::test(flavor = "multi_thread")]
async fn status_429_pauses_the_whole_subscription_and_uses_up_no_retry() {
    check_pause(429).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_503_with_retry_after_pauses_too() {
    check_pause(503).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_without_a_usable_time_is_one_second() {
    for reply in [Reply::status(429), Reply::header(429, "retry-after", "soon")] {
        let server = TestServer::start().await;
        let receiver = Receiver::start().await;
        receiver.answer(
            move |seen| if attempt(seen) == 1 { reply.clone() } else { Reply::status(200) },
        );
        server.app().subscribe(true, &receiver.url()).await.expect(200);

        server.app().create_contact("Ana", "Reyes").await;

        receiver.wait_for_delivered(1).await;
        let all = receiver.notifications();
        let waited = all[1].at - all[0].at;
        assert!((900..4_000).contains(&waited.as_millis()), "{waited:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn receiver_that_is_gone_disables_the_subscription_and_enabling_resumes() {
    let mut server = TestServer::start().await;
    let receiver = Receiver::start().await;
    receiver.answer(|_| Reply::status(410));
    server.app().subscribe(true, &receiver.url()).await.expect(200);
    server.app().create_contact("Ana", "Gone").await;

    let status = server.app().wait_for_state("disabled").await;

    assert_eq!(status["enabled"], false);
    assert!(status["reason"].as_str().unwrap().contains("410"), "{status}");
    assert_eq!(status["url"], json!(receiver.url()));
    receiver.answer(|_| Reply::status(200));
    server.app().create_contact("Ana", "Meanwhile").await;
    server.kill();
    server.restart().await;
    assert_eq!(server.app().subscription().await["state"], "disabled");
    assert_eq!(receiver.notifications().len(), 1);

    server.app().subscribe(true, &receiver.url()).await.expect(200);
    let delivered = receiver.wait_for_delivered(2).await;

    let names: BTreeSet<String> = delivered.iter().map(Seen::full_name).collect();
    assert_eq!(names, ["Ana Gone", "Ana Meanwhile"].map(str::to_owned).into());
    let status = server.app().wait_until_idle().await;
    assert_eq!((&status["state"], &status["reason"]), (&json!("active"), &Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn unsubscribing_a_disabled_subscription_drops_what_was_pending() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    receiver.answer(|_| Reply::status(410));
    app.subscribe(true, &receiver.url()).await.expect(200);
    app.create_contact("Ana", "Gone").await;
    app.wait_for_state("disabled").await;

    app.subscribe(false, &receiver.url()).await.expect(200);
    receiver.answer(|_| Reply::status(200));
    app.subscribe(true, &receiver.url()).await.expect(200);
    app.create_contact("Ana", "New").await;

    let delivered = receiver.wait_for_delivered(1).await;
    assert_eq!(delivered[0].full_name(), "Ana New");
    app.wait_until_idle().await;
    assert_eq!(receiver.delivered().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn circuit_spares_a_receiver_that_fails_and_closes_by_itself() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    receiver.answer(|_| Reply::status(500));
    app.subscribe(true, &receiver.url()).await.expect(200);

    create_many(&app, "C", 60).await;
    app.wait_for_state("failing").await;
    let started = Instant::now();
    receiver.wait_for_notifications(7).await;
    let probing = started.elapsed();
    let attempts = receiver.notifications();
    receiver.answer(|_| Reply::status(200));

    assert!(attempts.len() <= 12, "{} attempts in {probing:?}", attempts.len());
    let tried: BTreeSet<String> = attempts.iter().map(Seen::contact).collect();
    assert!(tried.len() >= 5, "the probes must try other contacts: {}", tried.len());
    receiver.wait_for_delivered(60).await;
    let status = app.wait_until_idle().await;
    assert_eq!((&status["state"], &status["exhausted"]), (&json!("active"), &json!(0)));
    let ids: BTreeSet<String> = receiver.delivered().iter().map(Seen::contact).collect();
    assert_eq!((ids.len(), receiver.delivered().len()), (60, 60));
}

#[tokio::test(flavor = "multi_thread")]
async fn receiver_that_was_not_there_gets_everything_when_it_comes() {
    let server = TestServer::start().await;
    let gone = Receiver::start().await;
    let app = server.app();
    app.subscribe(true, &gone.url()).await.expect(200);
    app.create_contact("Ana", "Zero").await;
    gone.wait_for_delivered(1).await;
    gone.answer(|_| Reply::Close);
    create_many(&app, "C", 10).await;
    gone.wait_for_notifications(2).await;

    gone.answer(|_| Reply::status(200));

    gone.wait_for_delivered(11).await;
    app.wait_until_idle().await;
    assert_eq!(gone.delivered().len(), 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn success_is_a_success_whatever_its_body_is() {
    let server = TestServer::builder()
        .flag("--request-timeout", "2s")
        .flag("--connect-timeout", "1s")
        .start()
        .await;
    let receiver = Receiver::start().await;
    receiver.answer(|seen| match seen.sequence() {
        1 => Reply::body(200, vec![b'x'; 10 << 20]),
        2 => Reply::body(200, r#"{"code":500,"message":"no"}"#),
        3 => Reply::Trickle(Duration::from_millis(100)),
        _ => Reply::status(202),
    });
    let app = server.app();
    app.subscribe(true, &receiver.url()).await.expect(200);

    create_many(&app, "C", 4).await;

    receiver.wait_for_notifications(4).await;
    app.wait_until_idle().await;
    let attempts: Vec<u32> = receiver.notifications().iter().map(attempt).collect();
    assert_eq!(attempts, [1, 1, 1, 1]);
}

/// Answers the first request of each connection, and closes when a second one comes. Gives the attempts it answered.
async fn answer_once_per_connection(listener: TcpListener, attempts: mpsc::Sender<String>) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let attempts = attempts.clone();
        tokio::spawn(async move {
            let (head, body) = read_request(&mut stream).await?;
            let body: Value = serde_json::from_str(&body).ok()?;
            let consent =
                json!({"code": 200, "result": {"challenge": body["challenge"]}}).to_string();
            let answer =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{consent}", consent.len());
            stream.write_all(answer.as_bytes()).await.ok()?;
            if let Some(line) =
                head.lines().find_map(|line| line.strip_prefix("rollcall-attempt: "))
            {
                attempts.send(line.to_owned()).await.ok()?;
            }
            read_request(&mut stream).await.map(drop)
        });
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<(String, String)> {
    let mut seen = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&seen).to_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
            if body.len() >= length.parse().ok()? {
                return Some((head.to_owned(), body.to_owned()));
            }
        }
        let mut space = [0; 4096];
        match stream.read(&mut space).await {
            Ok(count @ 1..) => seen.extend_from_slice(&space[..count]),
            _ => return None,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_that_the_receiver_closed_while_idle_costs_no_attempt() {
    let server = TestServer::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let (sender, mut attempts) = mpsc::channel(100);
    tokio::spawn(answer_once_per_connection(listener, sender));
    let app = server.app();
    app.subscribe(true, &url).await.expect(200);

    for number in 0..10 {
        app.create_contact("Ana", &number.to_string()).await;
        let attempt = tokio::time::timeout(PATIENCE, attempts.recv()).await;
        assert_eq!(attempt.unwrap().as_deref(), Some("1"), "event {number}");
    }

    let status = app.wait_until_idle().await;
    assert_eq!(status["state"], "active");
}
