//! The subscription of an app: enable, disable, where it stands, and which of two requests wins.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::harness::client::SUBSCRIPTION;
use crate::harness::receiver::{Receiver, Reply};
use crate::harness::server::TestServer;

#[tokio::test(flavor = "multi_thread")]
async fn enable_and_disable_answer_exactly_two_fields() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let url = receiver.url();

    let enabled = server.app().subscribe(true, &url).await;
    let disabled = server.app().subscribe(false, &url).await;

    let body =
        |enabled: bool| format!(r#"{{"code":200,"result":{{"enabled":{enabled},"url":"{url}"}}}}"#);
    assert_eq!(String::from_utf8_lossy(&enabled.body), body(true));
    assert_eq!(String::from_utf8_lossy(&disabled.body), body(false));
    assert_eq!(enabled.header("content-type"), Some("application/json"));
    assert_eq!(receiver.challenges().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_without_a_good_body_are_400_and_change_nothing() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    server.app().subscribe(true, &receiver.url()).await.expect(200);
    let before = server.app().subscription().await;
    let url = json!(receiver.url_of("/other"));

    for bad in [
        String::new(),
        "{}".to_owned(),
        "[]".to_owned(),
        format!(r#"{{"url":{url}}}"#),
        r#"{"enabled":false}"#.to_owned(),
        format!(r#"{{"enabled":"false","url":{url}}}"#),
        format!(r#"{{"enabled":null,"url":{url}}}"#),
        r#"{"enabled":false,"url":7}"#.to_owned(),
        format!(r#"{{"enabled":false,"enabled":false,"url":{url}}}"#),
        format!(r#"{{"enabled":false,"url":{url}}} x"#),
    ] {
        let answer = server.app().send(Method::PATCH, SUBSCRIPTION, bad.clone()).await;
        assert_eq!(answer.status, 400, "{bad}");
        answer.refused(400, 6_451_000);
    }

    assert_eq!(server.app().subscription().await, before);
    assert_eq!(receiver.challenges().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_are_ignored_but_not_when_they_come_twice() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let url = receiver.url();

    let body = json!({"enabled": true, "url": url, "name": "CRM", "x": {"y": [1]}});
    server.app().patch(SUBSCRIPTION, body).await.expect(200);

    let twice = format!(r#"{{"enabled":true,"url":"{url}","x":1,"x":1}}"#);
    server.app().send(Method::PATCH, SUBSCRIPTION, twice).await.refused(400, 6_451_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_follows_the_subscription_from_never_to_disabled() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    app.create_contact("Ana", "Before").await;
    let part = |status: &Value| json!([status["enabled"], status["url"], status["state"]]);

    let never = app.subscription().await;
    assert_eq!(part(&never), json!([false, "", "none"]));
    assert_eq!(never["verifiedAt"], Value::Null);

    app.subscribe(true, &receiver.url()).await.expect(200);
    let active = app.subscription().await;
    assert_eq!(part(&active), json!([true, receiver.url(), "active"]));
    assert_eq!(json!([active["cursor"], active["newest"], active["held"]]), json!([1, 1, 0]));
    assert!(active["verifiedAt"].is_string() && active["updatedAt"].is_string(), "{active}");
    let hooks = app.get("/event-hooks").await.expect(200);
    assert_eq!(hooks["items"][0]["url"], json!(receiver.url()), "{hooks}");

    app.subscribe(false, "anything").await.expect(200);
    let off = app.subscription().await;
    assert_eq!(part(&off), json!([false, receiver.url(), "none"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn disable_takes_any_url_of_at_most_2048_bytes_and_stores_the_first() {
    let server = TestServer::start().await;
    let app = server.app();
    let longest = "x".repeat(2048);

    assert_eq!(app.subscribe(false, &longest).await.expect(200)["url"], json!(longest));
    assert_eq!(app.subscription().await["url"], json!(longest));
    app.subscribe(false, "").await.expect(200);
    app.subscribe(false, &"x".repeat(2049)).await.refused(400, 6_451_000);
    assert_eq!(app.subscription().await["url"], json!(longest));
}

#[tokio::test(flavor = "multi_thread")]
async fn disable_then_enable_starts_at_the_newest_event() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    app.create_contact("Ana", "Zero").await;
    app.subscribe(true, &receiver.url()).await.expect(200);
    app.create_contact("Ana", "One").await;
    receiver.wait_for_delivered(1).await;

    app.subscribe(false, &receiver.url()).await.expect(200);
    app.create_contact("Ana", "Two").await;
    app.subscribe(true, &receiver.url()).await.expect(200);
    app.create_contact("Ana", "Three").await;

    receiver.wait_for_delivered(2).await;
    app.wait_until_idle().await;
    let names: Vec<String> = receiver.notifications().iter().map(|n| n.full_name()).collect();
    assert_eq!(names, ["Ana One", "Ana Three"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn disable_drops_what_is_pending() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    receiver.answer(|_| Reply::status(500));
    app.subscribe(true, &receiver.url()).await.expect(200);
    app.create_contact("Ana", "Dropped").await;
    receiver.wait_for_notifications(1).await;

    app.subscribe(false, &receiver.url()).await.expect(200);
    receiver.answer(|_| Reply::status(200));
    app.subscribe(true, &receiver.url()).await.expect(200);
    app.create_contact("Ana", "Sent").await;

    receiver.wait_for_delivered(1).await;
    app.wait_until_idle().await;
    let names: Vec<String> = receiver.delivered().iter().map(|n| n.full_name()).collect();
    assert_eq!(names, ["Ana Sent"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn enable_again_with_the_same_url_verifies_and_keeps_cursor_and_secret() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    let secret = app.get("/staff-contact-event-sub/secret").await.expect(200);
    receiver.answer(|_| Reply::status(500));
    app.subscribe(true, &receiver.url()).await.expect(200);
    app.create_contact("Ana", "Owed").await;
    receiver.wait_for_notifications(1).await;

    app.subscribe(true, &receiver.url()).await.expect(200);
    receiver.answer(|_| Reply::status(200));

    let delivered = receiver.wait_for_delivered(1).await;
    assert_eq!(delivered[0].full_name(), "Ana Owed");
    assert_eq!(receiver.challenges().len(), 2);
    assert_eq!(app.get("/staff-contact-event-sub/secret").await.expect(200), secret);
}

#[tokio::test(flavor = "multi_thread")]
async fn undelivered_events_go_to_the_new_url_in_order() {
    let server = TestServer::start().await;
    let (old, new) = (Receiver::start().await, Receiver::start().await);
    let app = server.app();
    old.answer(|seen| Reply::status(if seen.full_name() == "Ana Good" { 200 } else { 500 }));
    app.subscribe(true, &old.url()).await.expect(200);
    app.create_contact("Ana", "Good").await;
    old.wait_for_delivered(1).await;
    let id = app.create_contact("Ana", "Owed").await;
    let path = format!("/contacts/staff/{id}");
    app.patch(&path, json!({"jobTitle": "x"})).await.expect(200);
    app.delete(&path).await.expect(200);
    old.wait_for_notifications(2).await;

    app.subscribe(true, &new.url()).await.expect(200);

    new.wait_for_delivered(3).await;
    app.wait_until_idle().await;
    assert_eq!(new.kinds_of(&id), ["staffCreate", "staffEdit", "staffDelete"]);
    assert_eq!(new.notifications().len(), 3, "the delivered event must not come again");
    assert_eq!(app.subscription().await["url"], json!(new.url()));
}

#[tokio::test(flavor = "multi_thread")]
async fn disable_behind_a_slow_enable_takes_effect_at_once_and_supersedes_it() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    let gate = Arc::new(Semaphore::new(0));
    let waiting = Arc::clone(&gate);
    receiver.work_on_challenges(move |seen| {
        let waiting = Arc::clone(&waiting);
        async move {
            drop(waiting.acquire().await);
            Reply::consent(&seen.challenge())
        }
    });
    let (slow, url) = (app.clone(), receiver.url());
    let enable = tokio::spawn(async move { slow.subscribe(true, &url).await });
    receiver.wait_until("the challenge came", |receiver| receiver.challenges().len() == 1).await;

    app.subscribe(false, "x").await.expect(200);
    gate.add_permits(1);

    let superseded = enable.await.unwrap();
    assert_eq!(superseded.refused(400, 6_451_000), "superseded by a later request");
    let status = app.subscription().await;
    assert_eq!(json!([status["enabled"], status["state"]]), json!([false, "none"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn later_of_two_enables_wins_whichever_receiver_answers_first() {
    let server = TestServer::start().await;
    let (early, late) = (Receiver::start().await, Receiver::start().await);
    let app = server.app();
    let gate = Arc::new(Semaphore::new(0));
    let waiting = Arc::clone(&gate);
    early.work_on_challenges(move |seen| {
        let waiting = Arc::clone(&waiting);
        async move {
            drop(waiting.acquire().await);
            Reply::consent(&seen.challenge())
        }
    });
    let (slow, url) = (app.clone(), early.url());
    let first = tokio::spawn(async move { slow.subscribe(true, &url).await });
    early.wait_until("the challenge came", |receiver| receiver.challenges().len() == 1).await;

    app.subscribe(true, &late.url()).await.expect(200);
    gate.add_permits(1);

    first.await.unwrap().refused(400, 6_451_000);
    assert_eq!(app.subscription().await["url"], json!(late.url()));
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_later_request_does_not_supersede_an_earlier_one() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    let gate = Arc::new(Semaphore::new(0));
    let waiting = Arc::clone(&gate);
    receiver.work_on_challenges(move |seen| {
        let waiting = Arc::clone(&waiting);
        async move {
            drop(waiting.acquire().await);
            Reply::consent(&seen.challenge())
        }
    });
    let (slow, url) = (app.clone(), receiver.url());
    let enable = tokio::spawn(async move { slow.subscribe(true, &url).await });
    receiver.wait_until("the challenge came", |receiver| receiver.challenges().len() == 1).await;

    app.subscribe(true, "ftp://example.com/").await.refused(400, 6_451_000);
    gate.add_permits(1);

    enable.await.unwrap().expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn receiver_may_call_us_while_it_answers_a_challenge() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    let calling = app.clone();
    receiver.work_on_challenges(move |seen| {
        let app = calling.clone();
        async move {
            app.subscription().await;
            app.create_contact("Ana", "Meanwhile").await;
            Reply::consent(&seen.challenge())
        }
    });

    app.subscribe(true, &receiver.url()).await.expect(200);
    app.create_contact("Ana", "Later").await;

    receiver
        .wait_until("the later event came", |receiver| {
            receiver.delivered().iter().any(|seen| seen.full_name() == "Ana Later")
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_app_has_its_own_subscription() {
    let server = TestServer::start().await;
    let (ours, theirs) = (Receiver::start().await, Receiver::start().await);
    let (app, token) = server.create_app(&["events"]).await;
    let other = server.app_with(&app, &token);
    server.app().subscribe(true, &ours.url()).await.expect(200);
    other.subscribe(true, &theirs.url()).await.expect(200);

    server.app().create_contact("Ana", "Both").await;
    ours.wait_for_delivered(1).await;
    theirs.wait_for_delivered(1).await;
    other.subscribe(false, &theirs.url()).await.expect(200);
    server.app().create_contact("Ana", "One").await;
    ours.wait_for_delivered(2).await;

    assert_eq!(theirs.notifications().len(), 1);
    assert_eq!(server.app().subscription().await["enabled"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn subscription_survives_a_restart() {
    let mut server = TestServer::start().await;
    let receiver = Receiver::start().await;
    server.app().subscribe(true, &receiver.url()).await.expect(200);

    server.kill();
    server.restart().await;
    server.app().create_contact("Ana", "Reyes").await;

    receiver.wait_for_delivered(1).await;
    assert_eq!(receiver.challenges().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn disable_stops_sending_at_once() {
    let server = TestServer::start().await;
    let (receiver, witness) = (Receiver::start().await, Receiver::start().await);
    receiver.work(|_| async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Reply::status(200)
    });
    let app = server.app();
    app.subscribe(true, &receiver.url()).await.expect(200);
    let items: Vec<Value> = (0..500)
        .map(|n| {
            let email = format!("{n}@example.com");
            json!({"op": "create", "contact": {"firstName": "N", "lastName": "N", "email": email}})
        })
        .collect();
    app.post("/contacts/staff-batch", json!({"items": items})).await.expect(200);
    receiver.wait_for_delivered(20).await;

    app.subscribe(false, &receiver.url()).await.expect(200);
    let answered = Instant::now();

    let (other, token) = server.create_app(&["events"]).await;
    server.app_with(&other, &token).subscribe(true, &witness.url()).await.expect(200);
    app.create_contact("Ana", "Last").await;
    witness.wait_for_delivered(1).await;
    let all = receiver.notifications();
    assert!(all.len() < 400, "{} were sent before the test could disable", all.len());
    let late = all.iter().filter(|seen| seen.at > answered + Duration::from_millis(100)).count();
    assert_eq!(late, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn contact_goes_to_the_new_url_when_its_hanging_attempt_at_the_old_one_has_ended() {
    let server = TestServer::builder()
        .flag("--connect-timeout", "1s")
        .flag("--request-timeout", "2s")
        .start()
        .await;
    let (old, new) = (Receiver::start().await, Receiver::start().await);
    let app = server.app();
    old.answer(|_| Reply::Hang);
    app.subscribe(true, &old.url()).await.expect(200);
    let id = app.create_contact("Ana", "Reyes").await;
    app.delete(&format!("/contacts/staff/{id}")).await.expect(200);
    old.wait_for_notifications(1).await;

    app.subscribe(true, &new.url()).await.expect(200);

    new.wait_for_delivered(2).await;
    assert_eq!(new.kinds_of(&id), ["staffCreate", "staffDelete"]);
    assert_eq!(old.notifications().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn storm_of_requests_leaves_a_subscription_that_works() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..40 {
        let (app, url) = (server.app(), receiver.url());
        tasks.spawn(async move { app.subscribe(number % 2 == 0, &url).await });
    }

    for answer in tasks.join_all().await {
        if answer.status != 200 {
            assert_eq!(answer.refused(400, 6_451_000), "superseded by a later request");
        }
    }
    server.app().subscribe(true, &receiver.url()).await.expect(200);
    let id = server.app().create_contact("Ana", "Reyes").await;

    receiver.wait_for_delivered(1).await;
    server.app().wait_until_idle().await;
    assert_eq!(receiver.kinds_of(&id), ["staffCreate"]);
}
