//! The feed: the event log over HTTP, with the bodies that receivers get, and the wait for what comes next.

use std::time::{Duration, Instant};

use http::Method;
use serde_json::{Value, json};

use crate::harness::client::Api;
use crate::harness::eventually;
use crate::harness::receiver::Receiver;
use crate::harness::server::TestServer;

const FEED: &str = "/staff-contact-events";

/// Far below the wait that is asked for, far above the time that an answer takes.
const AT_ONCE: Duration = Duration::from_secs(8);

async fn feed(app: &Api, query: &str) -> Value {
    app.get(&format!("{FEED}?{query}")).await.expect(200)
}

fn numbers(page: &Value) -> Vec<u64> {
    let items = page["items"].as_array().unwrap();
    items.iter().map(|item| item["sequence"].as_u64().unwrap()).collect()
}

/// Waits until so many requests have begun to wait; the server must log at level debug.
async fn wait_for_waiting(server: &TestServer, count: usize) {
    eventually("a feed request waits", || async {
        (server.log().matches("feed request waits").count() >= count).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn feed_gives_the_notifications_that_a_receiver_gets() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let app = server.app();
    app.subscribe(true, &receiver.url()).await.expect(200);
    let id = app.create_contact("Zoë \"Z\"", "Núñez").await;
    app.delete(&format!("/contacts/staff/{id}")).await.expect(200);

    let page = feed(&app, "").await;

    let seen = receiver.wait_for_delivered(2).await;
    assert_eq!(numbers(&page), [1, 2]);
    for (item, seen) in page["items"].as_array().unwrap().iter().zip(&seen) {
        let fields: Vec<&String> = item.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["id", "notification", "sequence", "time"]);
        assert_eq!(item["notification"], seen.json());
        assert_eq!(item["id"], seen.event_id());
    }
    let text = app.get(FEED).await.body;
    let body = std::str::from_utf8(&seen[0].body).unwrap();
    assert!(std::str::from_utf8(&text).unwrap().contains(body), "the bytes of the notification");
    assert_eq!(json!([page["next"], page["newest"], page["gap"]]), json!([2, 2, null]));
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_followed_with_next() {
    let server = TestServer::start().await;
    let app = server.app();
    for name in ["A", "B", "C"] {
        app.create_contact("Ana", name).await;
    }

    let first = feed(&app, "limit=2").await;
    let second = feed(&app, &format!("limit=2&after={}", first["next"])).await;
    let third = feed(&app, &format!("limit=2&after={}", second["next"])).await;
    let beyond = feed(&app, "after=9").await;

    assert_eq!((numbers(&first), numbers(&second)), (vec![1, 2], vec![3]));
    assert_eq!((numbers(&third), &third["next"], &third["newest"]), (vec![], &json!(3), &json!(3)));
    assert_eq!((numbers(&beyond), &beyond["next"]), (vec![], &json!(9)));
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_parameters_are_named() {
    let server = TestServer::start().await;
    let app = server.app();

    for (query, message) in [
        ("limit=501", "exceed maximum limit 500"),
        ("limit=0", "limit: must be from 1 to 500"),
        ("limit=-1", "negative limit"),
        ("after=-1", "negative after"),
        ("after=one", "after: must be a whole number"),
        ("wait=31", "exceed maximum wait 30"),
        ("wait=-1", "negative wait"),
        ("wait=0.5", "wait: must be a whole number"),
    ] {
        let answer = app.get(&format!("{FEED}?{query}")).await;
        assert_eq!(answer.refused(400, 6_451_000), message, "{query}");
    }
    feed(&app, "limit=500&after=0&wait=0&other=1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_request_is_answered_by_the_next_commit() {
    let server = TestServer::builder().flag("--log", "debug").start().await;
    let app = server.app();
    app.create_contact("Ana", "One").await;
    let asking = tokio::spawn({
        let app = app.clone();
        async move { feed(&app, "after=1&wait=30").await }
    });
    wait_for_waiting(&server, 1).await;

    let from = Instant::now();
    app.create_contact("Ana", "Two").await;
    let page = asking.await.unwrap();

    assert!(from.elapsed() < AT_ONCE, "{:?}", from.elapsed());
    assert_eq!((numbers(&page), &page["next"]), (vec![2], &json!(2)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_longer_than_the_time_for_a_head_ends_with_an_empty_list_on_the_same_connection() {
    let server = TestServer::start().await;
    let app = server.app();

    let from = Instant::now();
    let page = feed(&app, "wait=11").await;

    assert!(from.elapsed() >= Duration::from_secs(11), "{:?}", from.elapsed());
    assert_eq!(json!([page["items"], page["next"]]), json!([[], 0]));
    feed(&app, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_with_the_token() {
    let server = TestServer::builder().flag("--log", "debug").start().await;
    let (app_id, token) = server.create_app(&["events"]).await;
    let app = server.app_with(&app_id, &token);
    let asking = tokio::spawn(async move { app.get(&format!("{FEED}?wait=30")).await });
    wait_for_waiting(&server, 1).await;

    let path = format!("/services/{}/apps/{app_id}", server.service_id);
    server.admin().delete(&path).await.expect(200);
    server.app().create_contact("Ana", "Secret").await;

    asking.await.unwrap().refused(401, 6_452_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_requests_do_not_hold_up_the_stop() {
    let mut server = TestServer::builder().flag("--log", "debug").start().await;
    let app = server.app();
    let asking: Vec<_> = (0..3)
        .map(|_| {
            let app = app.clone();
            tokio::spawn(
                async move { app.try_send(Method::GET, &format!("{FEED}?wait=30"), "").await },
            )
        })
        .collect();
    wait_for_waiting(&server, 3).await;

    let status = server.terminate(AT_ONCE).await;

    assert_eq!(status.and_then(|status| status.code()), Some(0));
    for asked in asking {
        let page = asked.await.unwrap().unwrap().expect(200);
        assert_eq!(numbers(&page), [0; 0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_more_than_may_wait_is_told_to_come_back_until_a_caller_has_gone() {
    let server = TestServer::builder().flag("--log", "debug").start().await;
    let app = server.app();
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..256 {
        let app = app.clone();
        asking.spawn(async move { app.get(&format!("{FEED}?wait=30")).await });
    }
    wait_for_waiting(&server, 256).await;

    let refused = app.get(&format!("{FEED}?wait=1")).await;
    refused.refused(503, 6_451_001);
    assert_eq!(refused.header("retry-after"), Some("1"));
    feed(&app, "").await;

    asking.shutdown().await;
    eventually("there is a place again", || async {
        (app.get(&format!("{FEED}?wait=1")).await.status == 200).then_some(())
    })
    .await;
}
