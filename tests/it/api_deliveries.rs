//! Single deliveries: what failed can be seen, sent again, and everything since a point replayed.

use http::Method;
use serde_json::{Value, json};

use crate::harness::client::Api;
use crate::harness::receiver::{Receiver, Reply};
use crate::harness::server::TestServer;

const DELIVERIES: &str = "/staff-contact-event-sub/deliveries";
const REPLAY: &str = "/staff-contact-event-sub/replay";

async fn redeliver(app: &Api, sequence: u64) -> Value {
    let path = format!("{DELIVERIES}/{sequence}/redeliver");
    app.send(Method::POST, &path, String::new()).await.expect(200)
}

/// A server with short retries, and a receiver that refuses contacts whose last name is `Bad` while told to.
async fn refusing() -> (TestServer, Receiver) {
    let server = TestServer::builder().flag("--retry-schedule", "1s").start().await;
    let receiver = Receiver::start().await;
    receiver.answer(|seen| {
        let bad = seen.full_name().ends_with("Bad");
        if bad { Reply::body(422, "no such department") } else { Reply::status(204) }
    });
    server.app().subscribe(true, &receiver.url()).await.expect(200);
    (server, receiver)
}

/// Creates good contacts until the delivery of event 1 has this state: only others' successes use up its retries.
async fn until_state(app: &Api, wanted: &str) -> Value {
    for number in 0..200 {
        let delivery = app.get(&format!("{DELIVERIES}/1")).await.expect(200);
        if delivery["state"] == wanted {
            return delivery;
        }
        app.create_contact("Ana", &format!("{wanted}{number}")).await;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("event 1 never became {wanted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_attempts_are_shown_until_the_delivery_is_exhausted_and_after() {
    let (server, receiver) = refusing().await;
    let app = server.app();
    let bad = app.create_contact("Ana", "Bad").await;

    let held = until_state(&app, "held").await;
    let list = app.get(&format!("{DELIVERIES}?state=held")).await.expect(200);
    let exhausted = until_state(&app, "exhausted").await;

    assert_eq!((&held["sequence"], &held["contact"]), (&json!(1), &json!(bad)));
    assert_eq!((&held["status"], &held["fullName"]), (&json!("staffCreate"), &json!("Ana Bad")));
    assert!(held["nextAttemptAt"].is_string() && held["exhaustedAt"].is_null(), "{held}");
    let failed = &held["failedAttempts"][0];
    assert_eq!(
        json!([failed["attempt"], failed["status"], failed["step"], failed["answer"]]),
        json!([1, 422, "status", "no such department"])
    );
    assert_eq!((&list["items"][0]["sequence"], &list["next"]), (&json!(1), &Value::Null));
    assert!(exhausted["exhaustedAt"].is_string(), "{exhausted}");
    assert_eq!(exhausted["attempts"], json!(exhausted["failedAttempts"].as_array().unwrap().len()));
    let held = app.get(&format!("{DELIVERIES}?state=held")).await.expect(200);
    assert_eq!(held["items"], json!([]));
    let good = receiver.wait_for_delivered(1).await[0].sequence();
    let good = app.get(&format!("{DELIVERIES}/{good}")).await.expect(200);
    assert_eq!(json!([good["state"], good["failedAttempts"]]), json!(["delivered", []]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exhausted_event_is_sent_again_on_request() {
    let (server, receiver) = refusing().await;
    let app = server.app();
    app.create_contact("Ana", "Bad").await;
    until_state(&app, "exhausted").await;
    receiver.answer(|_| Reply::status(204));

    let delivery = redeliver(&app, 1).await;

    // It may have been delivered before its state was read.
    assert!(delivery["state"] == "held" || delivery["state"] == "delivered", "{delivery}");
    receiver
        .wait_until("event 1", |it| it.delivered().iter().any(|seen| seen.sequence() == 1))
        .await;
    app.wait_until_idle().await;
    assert_eq!(app.subscription().await["exhausted"], json!(0));
    let after = app.get(&format!("{DELIVERIES}/1")).await.expect(200);
    assert_eq!(after["state"], "delivered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redelivered_event_is_followed_by_the_newest_of_its_contact() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    app.subscribe(true, &receiver.url()).await.expect(200);
    let id = app.create_contact("Ana", "One").await;
    for name in ["Two", "Three"] {
        let path = format!("/contacts/staff/{id}");
        app.patch(&path, json!({"lastName": name})).await.expect(200);
    }
    receiver.wait_for_delivered(3).await;
    app.wait_until_idle().await;

    redeliver(&app, 1).await;

    receiver.wait_for_delivered(5).await;
    app.wait_until_idle().await;
    let names: Vec<String> = receiver.notifications().iter().map(|n| n.full_name()).collect();
    assert_eq!(names, ["Ana One", "Ana Two", "Ana Three", "Ana One", "Ana Three"]);
    let ids: Vec<String> =
        receiver.notifications().iter().map(|n| n.event_id().to_owned()).collect();
    assert_eq!((&ids[0], &ids[2]), (&ids[3], &ids[4]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_sends_everything_since_a_number_or_a_time_again_in_order() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    app.create_contact("Ana", "Before").await;
    app.subscribe(true, &receiver.url()).await.expect(200);
    for number in 0..20 {
        app.create_contact("Ana", &format!("N{number}")).await;
    }
    receiver.wait_for_delivered(20).await;
    app.wait_until_idle().await;
    let before = app.get(&format!("{DELIVERIES}/1")).await.expect(200);
    assert_eq!(before["state"], "notOwed");

    let replayed = app.post(REPLAY, json!({"after": 11})).await.expect(200);
    assert_eq!(replayed, json!({"after": 11, "newest": 21}));
    receiver.wait_for_delivered(30).await;
    app.wait_until_idle().await;

    let first = app.get(&format!("{DELIVERIES}/1")).await.expect(200);
    let replayed = app.post(REPLAY, json!({"since": first["time"]})).await.expect(200);
    assert_eq!(replayed, json!({"after": 0, "newest": 21}));
    receiver.wait_for_delivered(51).await;
    app.wait_until_idle().await;
    let mut all: Vec<u64> = receiver.delivered().iter().map(|seen| seen.sequence()).collect();
    all.sort_unstable();
    let expected = (1..=21).flat_map(|n| match n {
        1 => vec![n],
        2..=11 => vec![n; 2],
        _ => vec![n; 3],
    });
    assert_eq!(all, expected.collect::<Vec<u64>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_sent_again_is_refused_and_changes_nothing() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    app.create_contact("Ana", "One").await;
    app.post(REPLAY, json!({"after": 0})).await.refused(404, 6_451_011);
    app.subscribe(true, &receiver.url()).await.expect(200);

    for path in ["0", "01", "-1", "x", "9223372036854775808"] {
        app.get(&format!("{DELIVERIES}/{path}")).await.refused(400, 6_451_000);
    }
    app.get(&format!("{DELIVERIES}/2")).await.refused(404, 6_451_011);
    app.post(&format!("{DELIVERIES}/2/redeliver"), json!({})).await.refused(404, 6_451_011);
    let message = app.post(REPLAY, json!({"after": 2})).await.refused(400, 6_451_000);
    assert!(message.contains("after") && message.contains('1'), "{message}");

    app.subscribe(false, &receiver.url()).await.expect(200);
    let message =
        app.post(&format!("{DELIVERIES}/1/redeliver"), json!({})).await.refused(400, 6_451_000);
    assert!(message.contains("enable"), "{message}");
    app.post(REPLAY, json!({"after": 0})).await.refused(400, 6_451_000);
    assert_eq!(receiver.notifications().len(), 0);
}
