//! Verification of a URL: what counts as consent, and that a receiver without it changes nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use serde_json::json;
use tokio::sync::Notify;

use crate::harness::receiver::{Receiver, Reply, Seen};
use crate::harness::server::TestServer;

const VERIFY: &str = "/staff-contact-event-sub/verify";

type Answering = fn(&Seen) -> Reply;

fn consent_in(body: &str) -> impl Fn(&Seen) -> Reply + Send + Sync + 'static {
    let body = body.to_owned();
    move |seen| Reply::body(200, body.replace("CHALLENGE", &seen.challenge()))
}

#[tokio::test(flavor = "multi_thread")]
async fn challenge_is_random_signed_and_all_there_is_in_the_body() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let app = server.app();

    app.subscribe(true, &receiver.url_of("/hook?key=1")).await.expect(200);
    app.subscribe(true, &receiver.url_of("/hook?key=1")).await.expect(200);

    let secret = app.get("/staff-contact-event-sub/secret").await.expect(200);
    let challenges = receiver.challenges();
    assert_eq!(challenges.len(), 2);
    for seen in &challenges {
        seen.assert_signed_with(secret["secret"].as_str().unwrap());
        assert_eq!((seen.method.as_str(), seen.path.as_str()), ("POST", "/hook"));
        assert_eq!(seen.json(), json!({"challenge": seen.challenge()}));
        assert!(seen.challenge().len() >= 22, "fewer than 128 bits: {seen:?}");
        assert!(seen.header("content-type").starts_with("application/json"));
    }
    assert_ne!(challenges[0].challenge(), challenges[1].challenge());
    assert_ne!(challenges[0].event_id(), challenges[1].event_id());
}

#[tokio::test(flavor = "multi_thread")]
async fn token_that_ends_during_a_challenge_subscribes_nothing() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let go_on = Arc::new(Notify::new());
    let gate = Arc::clone(&go_on);
    receiver.work_on_challenges(move |seen| {
        let gate = Arc::clone(&gate);
        async move {
            gate.notified().await;
            Reply::consent(&seen.challenge())
        }
    });
    let (app, url) = (server.app(), receiver.url());
    let subscribing = tokio::spawn(async move { app.subscribe(true, &url).await });
    receiver.wait_until("the challenge is there", |it| it.challenges().len() == 1).await;

    let rotate = format!("/services/{}/apps/{}/token/rotate", server.service_id, server.app_id);
    let rotated = server.admin().post(&rotate, json!({"overlap": 0})).await.expect(200);
    go_on.notify_one();

    assert_eq!(subscribing.await.unwrap().status, 401);
    let token = rotated["appToken"].as_str().unwrap();
    let app = server.app_with(&server.app_id, token);
    let stored = app.get("/staff-contact-event-sub").await.expect(200);
    assert_eq!((&stored["enabled"], &stored["url"]), (&json!(false), &json!("")));
    // With the one that works, the same succeeds.
    go_on.notify_one();
    app.subscribe(true, &receiver.url()).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_documented_form_of_consent_is_accepted() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;

    for body in [
        r#"{"code":200,"result":{"challenge":"CHALLENGE"}}"#,
        r#"{"code":0,"result":{"challenge":"CHALLENGE"}}"#,
        r#"{"code":200,"result":"{\"challenge\":\"CHALLENGE\"}"}"#,
        r#" {"result":{"x":1,"challenge":"CHALLENGE"},"code":200,"message":"ok"} "#,
    ] {
        receiver.answer_challenges(consent_in(body));
        let answer = server.app().subscribe(true, &receiver.url()).await;
        assert_eq!(answer.status, 200, "{body}: {answer:?}");
    }
    receiver.answer_challenges(|seen| match Reply::consent(&seen.challenge()) {
        Reply::Answer { headers, body, .. } => Reply::Answer { status: 299, headers, body },
        other => other,
    });
    server.app().subscribe(true, &receiver.url()).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_not_consent_names_its_step_and_tells_nothing_more() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;

    for (step, body) in [
        ("challenge", r#"{"code":200,"result":{"challenge":"secret-word"}}"#),
        ("challenge", r#"{"code":200,"result":{"challenge":"CHALLENGE "}}"#),
        ("challenge", r#"{"code":200,"result":"CHALLENGE"}"#),
        ("challenge", r#"{"code":200,"result":{}}"#),
        ("challenge", r#"{"code":200}"#),
        ("challenge", r#"{"code":200,"challenge":"CHALLENGE"}"#),
        ("code", r#"{"code":500,"result":{"challenge":"CHALLENGE"}}"#),
        ("code", r#"{"code":"200","result":{"challenge":"CHALLENGE"}}"#),
        ("code", r#"{"result":{"challenge":"CHALLENGE"}}"#),
        ("code", r#"{"challenge":"CHALLENGE"}"#),
        ("json", "secret-word"),
        ("json", ""),
        ("json", r#"["CHALLENGE"]"#),
        ("json", r#"{"code":200,"code":200,"result":{"challenge":"CHALLENGE"}}"#),
        ("json", r#"{"code":200,"result":{"challenge":"x","challenge":"CHALLENGE"}}"#),
        ("json", r#"{"code":200,"result":{"challenge":"CHALLENGE"}} x"#),
    ] {
        receiver.answer_challenges(consent_in(body));
        let answer = server.app().subscribe(true, &receiver.url()).await;
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
        let message = answer.refused(400, 6_451_000);
        assert!(message.contains(&format!("step {step}")), "{body}: {message}");
        assert!(!message.contains("secret-word"), "{message}");
    }
    assert_eq!(server.app().subscription().await["state"], "none");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_receivers_are_refused_while_the_earlier_subscription_goes_on() {
    let server = TestServer::start().await;
    let (good, bad) = (Receiver::start().await, Receiver::start().await);
    let app = server.app();
    app.subscribe(true, &good.url()).await.expect(200);
    let before = app.subscription().await;
    let cases: [(&str, Answering); 8] = [
        ("status", |_| Reply::body(500, "secret-word")),
        ("status", |seen| match Reply::consent(&seen.challenge()) {
            Reply::Answer { headers, body, .. } => Reply::Answer { status: 404, headers, body },
            other => other,
        }),
        ("status", |_| Reply::header(302, "location", "/hook2")),
        ("status", |_| Reply::header(307, "location", "/hook2")),
        ("size", |_| Reply::body(200, vec![b' '; 10 << 20])),
        ("json", |seen| Reply::body(200, [b"\xff".as_slice(), &seen.body].concat())),
        ("code", |seen| Reply::body(200, seen.body.clone())),
        ("connect", |_| Reply::Close),
    ];

    for (number, (step, reply)) in cases.into_iter().enumerate() {
        bad.answer_challenges(reply);
        let answer = app.subscribe(true, &bad.url()).await;
        let message = answer.refused(400, 6_451_000);
        assert!(message.contains(&format!("step {step}")), "case {number}: {message}");
        assert!(!message.contains("secret-word") && !message.contains("hook2"), "{message}");
        assert_eq!(answer.header("location"), None);
        app.create_contact("Ana", &number.to_string()).await;
        good.wait_for_delivered(number + 1).await;
    }

    assert_eq!(bad.challenges().len(), 8, "a redirect was followed or a challenge repeated");
    assert!(bad.notifications().is_empty());
    let after = app.subscription().await;
    assert_eq!((&after["url"], &after["verifiedAt"]), (&before["url"], &before["verifiedAt"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn receiver_that_is_not_there_is_refused_at_connect() {
    let server = TestServer::start().await;
    let free = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };

    let answer = server.app().subscribe(true, &format!("http://{free}/hook")).await;

    assert!(answer.refused(400, 6_451_000).contains("step connect"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn receiver_without_encryption_is_refused_at_tls_when_the_url_says_https() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;

    let url = receiver.url().replace("http://", "https://");
    let answer = server.app().subscribe(true, &url).await;

    assert!(answer.refused(400, 6_451_000).contains("step tls"), "{answer:?}");
    assert!(receiver.challenges().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_and_trickling_receivers_are_given_up_after_10_seconds() {
    let server = TestServer::start().await;
    let (silent, trickling) = (Receiver::start().await, Receiver::start().await);
    silent.answer_challenges(|_| Reply::Hang);
    trickling.answer_challenges(|_| Reply::Trickle(Duration::from_millis(300)));
    let started = Instant::now();

    let app = server.app();
    let (silent_url, trickling_url) = (silent.url(), trickling.url());
    let (one, two) =
        tokio::join!(app.subscribe(true, &silent_url), app.subscribe(true, &trickling_url));

    for answer in [one, two] {
        assert!(answer.refused(400, 6_451_000).contains("step timeout"), "{answer:?}");
    }
    let took = started.elapsed();
    assert!((9..15).contains(&took.as_secs()), "{took:?}");
    app.create_contact("Ana", "Reyes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn challenges_are_limited_and_the_subscription_stays() {
    let server = TestServer::builder().flag("--verifications-per-app", "2").start().await;
    let receiver = Receiver::start().await;
    let (app, token) = server.create_app(&["events"]).await;
    for _ in 0..2 {
        server.app().subscribe(true, &receiver.url()).await.expect(200);
    }

    let over = server.app().subscribe(true, &receiver.url_of("/other")).await;

    assert_eq!(over.refused(429, 6_451_010), "Too many requests");
    let seconds: u64 = over.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&seconds), "{seconds}");
    assert_eq!(server.app().subscription().await["url"], json!(receiver.url()));
    assert_eq!(receiver.challenges().len(), 2);
    server.app_with(&app, &token).subscribe(true, &receiver.url()).await.expect(200);
    server.app().subscribe(false, "x").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_receiver_cannot_be_flooded_by_names_ports_letters_paths_or_failures() {
    let server = TestServer::builder().flag("--verifications-per-host", "5").start().await;
    let (receiver, neighbour) = (Receiver::start().await, Receiver::start().await);
    receiver.answer_challenges(|_| Reply::body(500, "no"));
    let port = receiver.url_of("").rsplit(':').next().unwrap().to_owned();
    let app = server.app();

    for host in ["a.localhost", "A.LOCALHOST", "b.localhost", "localhost", "127.0.0.1"] {
        let answer = app.subscribe(true, &format!("http://{host}:{port}/hook")).await;
        assert!(answer.refused(400, 6_451_000).contains("step status"), "{host}: {answer:?}");
    }
    assert_eq!(receiver.challenges().len(), 5);

    for url in [
        format!("http://a.localhost:{port}/hook"),
        format!("http://c.localhost:{port}/hook"),
        format!("http://D.localhost:{port}/hook?x=1"),
        format!("http://127.0.0.1:{port}/other"),
        neighbour.url(),
    ] {
        let answer = app.subscribe(true, &url).await;
        assert_eq!(answer.refused(429, 6_451_010), "Too many requests", "{url}");
        let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=12).contains(&seconds), "{url}: {seconds}");
    }
    assert_eq!(receiver.challenges().len(), 5);
    assert!(neighbour.challenges().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn apps_share_the_limits_of_a_host_and_of_the_server() {
    for flag in ["--verifications-per-host", "--verifications-total"] {
        let server = TestServer::builder().flag(flag, "2").start().await;
        let receiver = Receiver::start().await;
        let (app, token) = server.create_app(&["events"]).await;
        server.app().subscribe(true, &receiver.url()).await.expect(200);
        server.app_with(&app, &token).subscribe(true, &receiver.url()).await.expect(200);

        let tested = server.app().send(Method::POST, VERIFY, String::new()).await;
        let other = server.app_with(&app, &token).subscribe(true, &receiver.url_of("/2")).await;

        for answer in [tested, other] {
            assert_eq!(answer.refused(429, 6_451_010), "Too many requests", "{flag}");
        }
        assert_eq!(receiver.challenges().len(), 2, "{flag}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_urls_use_up_no_challenge() {
    let server = TestServer::builder().flag("--verifications-per-app", "1").start().await;
    let receiver = Receiver::start().await;

    for _ in 0..3 {
        server.app().subscribe(true, "http://10.0.0.1/").await.refused(400, 6_451_000);
    }

    server.app().subscribe(true, &receiver.url()).await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_can_test_its_receiver_without_changing_anything() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    app.post(VERIFY, json!({})).await.refused(404, 6_451_011);
    app.subscribe(true, &receiver.url()).await.expect(200);
    let before = app.subscription().await;

    let verified = app.send(Method::POST, VERIFY, String::new()).await.expect(200);
    receiver.answer_challenges(|_| Reply::body(500, "secret-word"));
    let refused = app.send(Method::POST, VERIFY, String::new()).await;

    assert_eq!(verified, json!({"verified": true, "url": receiver.url()}));
    let message = refused.refused(400, 6_451_000);
    assert!(message.contains("status") && !message.contains("secret-word"), "{message}");
    assert_eq!(receiver.challenges().len(), 3);
    assert_eq!(app.subscription().await, before);

    receiver.answer_challenges(|seen| Reply::consent(&seen.challenge()));
    app.subscribe(false, "").await.expect(200);
    app.post(VERIFY, json!({})).await.expect(200);
    assert_eq!(app.subscription().await["enabled"], json!(false));
}
