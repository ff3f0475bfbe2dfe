//! Order per contact and nothing lost, with a receiver that fails; other contacts and other receivers go on.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::client::Api;
use crate::harness::receiver::{Receiver, Reply, Seen};
use crate::harness::server::TestServer;

const LIFE: [&str; 4] = ["staffCreate", "staffEdit", "staffEdit", "staffDelete"];

/// Creates, edits twice and deletes one contact; gives its id.
async fn live(app: &Api, last: &str) -> String {
    let id = app.create_contact("Ana", last).await;
    let path = format!("/contacts/staff/{id}");
    app.patch(&path, json!({"jobTitle": "a"})).await.expect(200);
    app.patch(&path, json!({"firstName": "Eva"})).await.expect(200);
    app.delete(&path).await.expect(200);
    id
}

/// Lives of several contacts at once.
async fn live_many(app: &Api, tasks: usize, each: usize) -> Vec<String> {
    let mut running = tokio::task::JoinSet::new();
    for task in 0..tasks {
        let app = app.clone();
        running.spawn(async move {
            let mut ids = Vec::new();
            for n in 0..each {
                ids.push(live(&app, &format!("C{task}-{n}")).await);
            }
            ids
        });
    }
    running.join_all().await.concat()
}

fn kinds_by_contact(seen: &[Seen]) -> BTreeMap<String, Vec<String>> {
    let mut kinds: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for seen in seen {
        kinds.entry(seen.contact()).or_default().push(seen.kind());
    }
    kinds
}

#[tokio::test(flavor = "multi_thread")]
async fn every_contact_arrives_whole_and_in_order_while_one_in_five_first_attempts_fails() {
    let server = TestServer::builder().flag("--retry-schedule", "1s,1s").start().await;
    let receiver = Receiver::start().await;
    receiver.answer(|seen| {
        let fails = seen.header("rollcall-attempt") == "1" && seen.sequence() % 5 == 0;
        Reply::status(if fails { 500 } else { 200 })
    });
    server.app().subscribe(true, &receiver.url()).await.expect(200);

    let ids = live_many(&server.app(), 8, 6).await;

    receiver.wait_for_delivered(ids.len() * LIFE.len()).await;
    server.app().wait_until_idle().await;
    let delivered = receiver.delivered();
    let kinds = kinds_by_contact(&delivered);
    assert_eq!(kinds.keys().collect::<BTreeSet<_>>(), ids.iter().collect());
    assert!(kinds.values().all(|kinds| *kinds == LIFE), "{kinds:#?}");
    let events: BTreeSet<&str> = delivered.iter().map(|seen| seen.event_id()).collect();
    assert_eq!(events.len(), delivered.len(), "an event was delivered twice");
    let failed = receiver.notifications().len() - delivered.len();
    assert_eq!(failed, delivered.len() / 5);
    receiver.assert_contacts_in_order();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_one_contact_are_never_on_their_way_together() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let working: Arc<Mutex<HashSet<String>>> = Arc::default();
    let together: Arc<Mutex<Vec<Seen>>> = Arc::default();
    let (busy, seen_together) = (Arc::clone(&working), Arc::clone(&together));
    receiver.work(move |seen| {
        let (busy, together) = (Arc::clone(&busy), Arc::clone(&seen_together));
        async move {
            let contact = seen.contact();
            if !busy.lock().unwrap().insert(contact.clone()) {
                together.lock().unwrap().push(seen);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            busy.lock().unwrap().remove(&contact);
            Reply::status(200)
        }
    });
    server.app().subscribe(true, &receiver.url()).await.expect(200);

    let ids = live_many(&server.app(), 8, 4).await;

    receiver.wait_for_delivered(ids.len() * LIFE.len()).await;
    assert!(together.lock().unwrap().is_empty(), "{together:?}");
    let kinds = kinds_by_contact(&receiver.delivered());
    assert!(kinds.values().all(|kinds| *kinds == LIFE), "{kinds:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn contact_that_fails_waits_alone() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    receiver.answer(|seen| Reply::status(if seen.full_name() == "Ana Poison" { 500 } else { 200 }));
    server.app().subscribe(true, &receiver.url()).await.expect(200);

    let poison = server.app().create_contact("Ana", "Poison").await;
    receiver.wait_for_notifications(1).await;
    let ids = live_many(&server.app(), 4, 5).await;
    let edit = json!({"lastName": "Cured"});
    server.app().patch(&format!("/contacts/staff/{poison}"), edit).await.expect(200);

    receiver.wait_for_delivered(ids.len() * LIFE.len()).await;
    let kinds = kinds_by_contact(&receiver.delivered());
    assert!(kinds.values().all(|kinds| *kinds == LIFE), "{kinds:#?}");
    assert!(receiver.notifications().iter().all(|seen| seen.full_name() != "Ana Cured"));
    let status = server.app().subscription().await;
    assert_eq!(status["state"], "active");
    assert!(status["oldestUndelivered"].is_string(), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_receiver_of_one_app_does_not_slow_another() {
    let server = TestServer::start().await;
    let (dead, healthy) = (Receiver::start().await, Receiver::start().await);
    dead.answer(|_| Reply::Hang);
    let (app, token) = server.create_app(&["events"]).await;
    server.app_with(&app, &token).subscribe(true, &dead.url()).await.expect(200);
    server.app().subscribe(true, &healthy.url()).await.expect(200);

    let ids = live_many(&server.app(), 4, 10).await;
    let written = Instant::now();
    healthy.wait_for_delivered(ids.len() * LIFE.len()).await;

    assert!(written.elapsed() < Duration::from_secs(10), "{:?}", written.elapsed());
    assert!(dead.delivered().is_empty());
    assert!(dead.open_connections() <= 32, "{}", dead.open_connections());
}

#[tokio::test(flavor = "multi_thread")]
async fn backlog_of_a_batch_arrives_whole() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    server.app().subscribe(true, &receiver.url()).await.expect(200);
    for batch in 0..4 {
        let items: Vec<_> = (0..500)
            .map(|n| {
                let email = format!("{batch}.{n}@example.com");
                let contact = json!({"firstName": "N", "lastName": n.to_string(), "email": email});
                json!({"op": "create", "contact": contact})
            })
            .collect();
        server.app().post("/contacts/staff-batch", json!({"items": items})).await.expect(200);
    }

    let delivered = receiver.wait_for_delivered(2000).await;

    let sequences: BTreeSet<u64> = delivered.iter().map(Seen::sequence).collect();
    assert_eq!(sequences, (1..=2000).collect());
    assert_eq!(server.app().wait_until_idle().await["cursor"], 2000);
}

#[tokio::test(flavor = "multi_thread")]
async fn contact_with_more_events_than_a_window_holds_blocks_nobody_and_comes_whole_after_a_crash()
{
    let mut server = TestServer::start().await;
    let receiver = Receiver::start().await;
    receiver.answer(|seen| Reply::status(if seen.full_name() == "Ana Poison" { 500 } else { 200 }));
    server.app().subscribe(true, &receiver.url()).await.expect(200);
    let id = server.app().create_contact("Ana", "Poison").await;
    for batch in 0..3 {
        let edit = |n: u32| {
            let contact = json!({"jobTitle": format!("{batch}.{n}")});
            json!({"op": "edit", "id": id, "contact": contact})
        };
        let items: Vec<_> = (0..500).map(edit).collect();
        server.app().post("/contacts/staff-batch", json!({"items": items})).await.expect(200);
    }

    let others = live_many(&server.app(), 4, 5).await;
    receiver.wait_for_delivered(others.len() * LIFE.len()).await;
    server.kill();
    server.restart().await;
    receiver.answer(|_| Reply::status(200));

    server.app().wait_until_idle().await;
    receiver.assert_contacts_in_order();
    let mut delivered = receiver.delivered();
    delivered.retain(|seen| seen.contact() == id);
    let versions: Vec<u64> = delivered.iter().map(Seen::version).collect();
    assert_eq!(versions, (1..=1501).collect::<Vec<u64>>());
    let kinds = kinds_by_contact(&receiver.delivered());
    assert_eq!(kinds.len(), others.len() + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_app_of_a_service_gets_every_event_in_order() {
    let server = TestServer::start().await;
    let receiver = Receiver::start().await;
    let mut apps = Vec::new();
    for number in 0..30 {
        let (app, token) = server.create_app(&["events"]).await;
        let api = server.app_with(&app, &token);
        api.subscribe(true, &receiver.url_of(&format!("/{number}"))).await.expect(200);
        apps.push(api);
    }

    let ids = live_many(&server.app(), 4, 5).await;

    receiver.wait_for_delivered(apps.len() * ids.len() * LIFE.len()).await;
    for (number, app) in apps.iter().enumerate() {
        app.wait_until_idle().await;
        let path = format!("/{number}");
        let mut own = receiver.delivered();
        own.retain(|seen| seen.path == path);
        let kinds = kinds_by_contact(&own);
        assert_eq!(kinds.len(), ids.len(), "app {number}");
        assert!(kinds.values().all(|kinds| *kinds == LIFE), "app {number}: {kinds:#?}");
    }
}
