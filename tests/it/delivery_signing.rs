//! What a receiver gets: the body of the reference, the headers around it, and a signature that others can check.

use std::collections::BTreeSet;

use serde_json::json;

use crate::harness::receiver::{Receiver, Reply, Seen};
use crate::harness::server::TestServer;

#[tokio::test(flavor = "multi_thread")]
async fn notification_has_the_bytes_of_the_reference_and_a_good_signature() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    app.subscribe(true, &receiver.url()).await.expect(200);

    let id = app.create_contact("Zoë \"Z\"", "Núñez").await;

    let seen = receiver.wait_for_delivered(1).await.remove(0);
    let expected = format!(
        concat!(
            r#"{{"type":"message","challenge":"","message":{{"type":"contact","status":"staffCreate","#,
            r#""serviceId":"{}","fullName":"Zoë \"Z\" Núñez","id":"{}"}}}}"#
        ),
        server.service_id, id
    );
    assert_eq!(std::str::from_utf8(&seen.body).unwrap(), expected);
    let secret = app.get("/staff-contact-event-sub/secret").await.expect(200);
    let secret = secret["secret"].as_str().unwrap();
    assert!(secret.starts_with("whsec_"), "{secret}");
    seen.assert_signed_with(secret);
    assert_eq!((seen.method.as_str(), seen.path.as_str()), ("POST", "/hook"));
    assert!(seen.header("content-type").starts_with("application/json"));
    assert!(seen.header("user-agent").to_lowercase().contains("rollcall"));
    assert!(seen.header("webhook-signature").starts_with("v1,"));
    assert_eq!((seen.sequence(), seen.version(), seen.header("rollcall-attempt")), (1, 1, "1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_of_one_event_share_its_id_and_count_up() {
    let server = TestServer::builder().flag("--retry-schedule", "1s,1s").start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    receiver.answer(|seen| {
        Reply::status(if seen.header("rollcall-attempt") == "3" { 200 } else { 500 })
    });
    app.subscribe(true, &receiver.url()).await.expect(200);

    app.create_contact("Ana", "Reyes").await;

    receiver.wait_for_delivered(1).await;
    let secret = app.get("/staff-contact-event-sub/secret").await.expect(200);
    let all = receiver.notifications();
    let ids: BTreeSet<&str> = all.iter().map(|seen| seen.event_id()).collect();
    let attempts: Vec<&str> = all.iter().map(|seen| seen.header("rollcall-attempt")).collect();
    assert_eq!((ids.len(), attempts), (1, vec!["1", "2", "3"]));
    for seen in &all {
        seen.assert_signed_with(secret["secret"].as_str().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_change_is_told_with_the_name_of_its_time() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    app.subscribe(true, &receiver.url()).await.expect(200);

    let id = app.create_contact("Ana", "Reyes").await;
    let path = format!("/contacts/staff/{id}");
    app.patch(&path, json!({"lastName": "Prado"})).await.expect(200);
    app.patch(&path, json!({"status": "Suspended"})).await.expect(200);
    app.patch(&path, json!({"status": "Suspended"})).await.expect(200);
    app.delete(&path).await.expect(200);

    let all = receiver.wait_for_delivered(4).await;
    let told: Vec<(String, String, u64, u64)> =
        all.iter().map(|n| (n.kind(), n.full_name(), n.version(), n.sequence())).collect();
    let event = |kind: &str, name: &str, n: u64| (kind.to_owned(), name.to_owned(), n, n);
    assert_eq!(
        told,
        [
            event("staffCreate", "Ana Reyes", 1),
            event("staffEdit", "Ana Prado", 2),
            event("staffEdit", "Ana Prado", 3),
            event("staffDelete", "Ana Prado", 4),
        ]
    );
    let ids: BTreeSet<&str> = all.iter().map(|seen| seen.event_id()).collect();
    assert_eq!(ids.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn apps_of_one_service_have_different_secrets() {
    let server = TestServer::start().await;
    let (app, token) = server.create_app(&["events"]).await;
    let path = "/staff-contact-event-sub/secret";

    let ours = server.app().get(path).await.expect(200);
    let theirs = server.app_with(&app, &token).get(path).await.expect(200);

    assert_ne!(ours["secret"], theirs["secret"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_token_secret_name_or_address_of_staff_is_in_the_log() {
    let server = TestServer::builder().flag("--log", "debug").start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    receiver.answer(|seen| {
        Reply::status(if seen.header("rollcall-attempt") == "2" { 200 } else { 500 })
    });
    app.subscribe(true, &receiver.url()).await.expect(200);
    app.create_contact("Anastasia", "Reyesova").await;
    receiver.wait_for_delivered(1).await;

    let secret = app.get("/staff-contact-event-sub/secret").await.expect(200);
    let log = server.log();
    for hidden in [
        secret["secret"].as_str().unwrap().trim_start_matches("whsec_"),
        server.app_token.as_str(),
        server.admin_token.as_str(),
        "Anastasia",
        "Reyesova",
        "reyesova",
        &receiver.challenges()[0].challenge(),
    ] {
        assert!(!log.contains(hidden), "the log shows {hidden}");
    }
    assert!(log.contains("request finished"));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_rotation_both_secrets_sign_notifications_and_challenges() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    let secret = async || {
        let answer = app.get("/staff-contact-event-sub/secret").await.expect(200);
        answer["secret"].as_str().unwrap().to_owned()
    };
    app.subscribe(true, &receiver.url()).await.expect(200);
    let old = secret().await;

    let rotated = app.post("/staff-contact-event-sub/secret/rotate", json!({})).await.expect(200);
    app.create_contact("Ana", "Reyes").await;
    app.post("/staff-contact-event-sub/verify", json!({})).await.expect(200);

    let new = secret().await;
    assert_eq!(rotated, json!({ "secret": new }));
    assert_ne!(old, new);
    let seen = receiver.wait_for_delivered(1).await.remove(0);
    for seen in [&seen, &receiver.challenges()[1]] {
        seen.assert_signed_with(&old);
        seen.assert_signed_with(&new);
        let signatures: Vec<&str> = seen.header("webhook-signature").split(' ').collect();
        assert_eq!(signatures.len(), 2, "{signatures:?}");
        assert!(is_signed_by(seen, signatures[0], &new), "the newest comes first");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_secrets_of_a_rotation_outlive_a_restart_and_a_fourth_stops_the_first() {
    let mut server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    let first = app.get("/staff-contact-event-sub/secret").await.expect(200);
    app.subscribe(true, &receiver.url()).await.expect(200);
    let mut secrets = vec![first["secret"].as_str().unwrap().to_owned()];
    for _ in 0..3 {
        let path = "/staff-contact-event-sub/secret/rotate";
        let rotated = app.send(http::Method::POST, path, "").await.expect(200);
        secrets.push(rotated["secret"].as_str().unwrap().to_owned());
    }
    app.create_contact("Ana", "Reyes").await;
    receiver.wait_for_delivered(1).await;
    app.wait_until_idle().await;

    server.kill();
    server.restart().await;
    server.app().create_contact("Bo", "Lund").await;

    for seen in receiver.wait_for_delivered(2).await {
        assert_eq!(seen.header("webhook-signature").split(' ').count(), 3);
        for secret in &secrets[1..] {
            seen.assert_signed_with(secret);
        }
        assert!(!is_signed_by(&seen, seen.header("webhook-signature"), &secrets[0]));
    }
}

/// Whether somebody else's implementation of Standard Webhooks takes the request with these signatures alone.
fn is_signed_by(seen: &Seen, signatures: &str, secret: &str) -> bool {
    let mut headers = seen.headers.clone();
    headers.insert("webhook-signature", signatures.parse().unwrap());
    standardwebhooks::Webhook::new(secret).unwrap().verify(&seen.body, &headers).is_ok()
}
