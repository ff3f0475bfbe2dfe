//! The short forms of `make bench-isolation`, `-refusing`, `-backlog` and `-idle`: delivery, order and bounds in small
//! numbers. How fast it is, only the benchmarks say.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::harness::client::Api;
use crate::harness::receiver::{Receiver, Reply, Seen};
use crate::harness::server::TestServer;

/// Far above what these tests need, far below what a fault without a bound would take.
const MEMORY_MIB_MAX: u64 = 256;

/// Changes in a batch: as many as the API takes.
const BATCH: usize = 500;

/// Callers at a time while apps are subscribed.
const CALLERS: usize = 8;

/// What came to each path: every contact's newest version, and how many notifications there were.
#[derive(Default)]
struct Tally {
    newest: Mutex<HashMap<(String, String), u64>>,
    out_of_order: AtomicUsize,
    count: AtomicUsize,
}

impl Tally {
    /// Notes a notification that is accepted. Versions of a contact must come as 1, 2, 3 …
    fn note(&self, seen: &Seen) -> Reply {
        let mut newest = self.newest.lock().unwrap();
        let last = newest.entry((seen.path.clone(), seen.contact())).or_default();
        if seen.version() != *last + 1 {
            self.out_of_order.fetch_add(1, Ordering::SeqCst);
        }
        *last = seen.version();
        self.count.fetch_add(1, Ordering::SeqCst);
        Reply::status(200)
    }

    /// Waits for so many, piece by piece: all of them take longer than a test's patience on a busy machine.
    async fn wait_for(&self, receiver: &Receiver, count: usize) {
        for part in (0..count).step_by(BATCH).skip(1).chain([count]) {
            let what = format!("{part} of {count} accepted");
            receiver.wait_until(&what, |_| self.count.load(Ordering::SeqCst) >= part).await;
        }
    }

    /// Exactly so many, none twice, none out of order.
    fn assert_clean(&self, count: usize) {
        assert_eq!(self.count.load(Ordering::SeqCst), count);
        assert_eq!(self.out_of_order.load(Ordering::SeqCst), 0);
    }
}

/// Subscribes so many new apps of the server's service, each to its own URL.
async fn subscribe_apps(
    server: &TestServer,
    count: usize,
    url: impl Fn(usize) -> String,
) -> Vec<Api> {
    let mut apps = Vec::new();
    for first in (0..count).step_by(CALLERS) {
        let mut calls = Vec::new();
        for number in first..(first + CALLERS).min(count) {
            let path = format!("/services/{}/apps", server.service_id);
            let (admin, anyone, url) = (server.admin(), server.anyone(None), url(number));
            calls.push(tokio::spawn(async move {
                let app = json!({"name": format!("App {number}"), "scopes": ["events"]});
                let app = admin.post(&path, app).await.expect(201);
                let path = format!("/v1/api/apps/{}", app["appID"].as_str().unwrap());
                let app = anyone.below(&path).with_token(app["appToken"].as_str());
                app.subscribe(true, &url).await.expect(200);
                app
            }));
        }
        for call in calls {
            apps.push(call.await.unwrap());
        }
    }
    apps
}

/// Creates contacts and edits each once: two events each.
async fn create_and_edit(app: &Api, contacts: usize) {
    for first in (0..contacts).step_by(BATCH) {
        let create = |number: usize| {
            let email = format!("{number}@example.com");
            json!({"op": "create", "contact": {"firstName": "Ana", "lastName": format!("No {number}"), "email": email}})
        };
        let items: Vec<Value> = (first..(first + BATCH).min(contacts)).map(create).collect();
        let batch = json!({"items": items});
        let made = app.post("/contacts/staff-batch", batch).await.expect(200);
        let edit = |item: &Value| json!({"op": "edit", "id": item["result"]["id"], "contact": {"jobTitle": "Lead"}});
        let items: Vec<Value> = made["items"].as_array().unwrap().iter().map(edit).collect();
        app.post("/contacts/staff-batch", json!({"items": items})).await.expect(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn healthy_receivers_get_everything_beside_those_that_hang_refuse_or_fail() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let closing = Receiver::start().await;
    let tally = Arc::new(Tally::default());
    let noting = Arc::clone(&tally);
    receiver.answer(move |seen| match seen.path.as_str() {
        "/hang" => Reply::Hang,
        "/fail" => Reply::status(500),
        _ => noting.note(seen),
    });
    let apps = subscribe_apps(&server, 100, |number| match number {
        0..4 => receiver.url_of("/hang"),
        4..7 => receiver.url_of("/fail"),
        7..10 => closing.url(),
        _ => receiver.url_of(&format!("/{number}")),
    })
    .await;
    drop(closing);

    create_and_edit(&server.app(), 20).await;

    tally.wait_for(&receiver, 90 * 40).await;
    tally.assert_clean(90 * 40);
    for bad in &apps[4..10] {
        bad.wait_for_state("failing").await;
    }
    assert!(server.memory_mib() <= MEMORY_MIB_MAX);
}

#[tokio::test(flavor = "multi_thread")]
async fn contacts_that_are_refused_for_good_are_held_and_the_others_arrive() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let tally = Arc::new(Tally::default());
    let noting = Arc::clone(&tally);
    receiver.answer(move |seen| {
        let number: u64 = seen.full_name().rsplit(' ').next().unwrap().parse().unwrap();
        if number % 10 < 3 { Reply::status(500) } else { noting.note(seen) }
    });
    let app = server.app();
    app.subscribe(true, &receiver.url()).await.expect(200);

    create_and_edit(&app, 500).await;

    tally.wait_for(&receiver, 700).await;
    tally.assert_clean(700);
    let status = app.subscription().await;
    assert!(status["held"].as_u64().unwrap() <= 300, "{status}");
    assert_eq!(status["exhausted"], 0);
    assert!(server.memory_mib() <= MEMORY_MIB_MAX);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_outlasts_a_crash_and_is_drained_in_order_in_little_memory() {
    let mut server = TestServer::start().await;
    let receiver = Receiver::start().await;
    receiver.answer(|_| Reply::status(500));
    server.app().subscribe(true, &receiver.url()).await.expect(200);
    create_and_edit(&server.app(), 10_000).await;
    server.app().wait_for_state("failing").await;
    let owed = server.memory_mib();
    server.kill();
    server.restart().await;

    let tally = Arc::new(Tally::default());
    let noting = Arc::clone(&tally);
    receiver.answer(move |seen| noting.note(seen));
    server.app().subscribe(true, &receiver.url()).await.expect(200);

    tally.wait_for(&receiver, 20_000).await;
    server.app().wait_until_idle().await;
    tally.assert_clean(20_000);
    assert!(owed.max(server.memory_mib()) <= MEMORY_MIB_MAX);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_subscriptions_take_little_memory_and_all_wake() {
    let mut server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let tally = Arc::new(Tally::default());
    let noting = Arc::clone(&tally);
    receiver.answer(move |seen| noting.note(seen));
    subscribe_apps(&server, 1_000, |number| receiver.url_of(&format!("/{number}"))).await;
    let before = server.memory_mib();
    server.terminate(crate::harness::PATIENCE).await.unwrap();
    server.restart().await;

    server.app().create_contact("Ana", "Ng").await;

    tally.wait_for(&receiver, 1_000).await;
    tally.assert_clean(1_000);
    assert!(before.max(server.memory_mib()) <= MEMORY_MIB_MAX);
}
