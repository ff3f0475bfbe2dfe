//! Orderly stops and what a start finds: everything is recorded, crashes repeat little, keys and held deliveries
//! are kept. Kills at random moments stand in `delivery_crash.rs`.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use crate::harness::client::Api;
use crate::harness::eventually;
use crate::harness::receiver::{Receiver, Reply, Seen};
use crate::harness::server::TestServer;
use crate::harness::writers::{Acknowledged, start_writers};

/// Most events that a crash may repeat, for one subscription.
const REPEATED_MAX: usize = 256;

/// How often an event came again; each time it must have been the newest of its contact.
fn count_repetitions(seen: &[Seen]) -> usize {
    let mut newest: HashMap<String, u64> = HashMap::new();
    let mut repeated = 0;
    for seen in seen {
        let last = newest.entry(seen.contact()).or_default();
        assert!(seen.version() >= *last, "{} after {last}: {seen:?}", seen.version());
        repeated += usize::from(seen.version() == *last);
        *last = seen.version();
    }
    repeated
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_in_order_with_everything_recorded() {
    let mut server = TestServer::start().await;
    let receiver = Receiver::start().await;
    receiver.work(|_| async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        Reply::status(200)
    });
    server.app().subscribe(true, &receiver.url()).await.expect(200);
    let acknowledged = Arc::new(Acknowledged::default());
    let writers = start_writers(&server.app(), "w", Duration::ZERO, &acknowledged);
    acknowledged.wait_for(300).await;

    let status = server.terminate(Duration::from_secs(10)).await;
    acknowledged.stop();
    writers.join_all().await;

    let status = status.expect("it must end within 10 s");
    assert_eq!(status.code(), Some(0), "{status:?}");
    let before = receiver.delivered().len();
    server.restart().await;
    server.app().wait_until_idle().await;
    let delivered = receiver.delivered();
    assert!(before < delivered.len(), "the test must stop the server with events pending");
    assert_eq!(count_repetitions(&receiver.notifications()), 0, "{before} before the restart");
    let told: BTreeSet<(String, u64)> =
        delivered.iter().map(|n| (n.contact(), n.version())).collect();
    let lost = acknowledged.changes.lock().unwrap().keys().any(|change| !told.contains(change));
    assert!(!lost, "an acknowledged change was lost");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_does_not_wait_for_receivers_and_callers_that_hang() {
    let mut server = TestServer::start().await;
    let receiver = Receiver::start().await;
    receiver.answer(|_| Reply::Hang);
    server.app().subscribe(true, &receiver.url()).await.expect(200);
    server.app().create_contact("Ana", "Reyes").await;
    receiver.wait_for_notifications(1).await;
    let mut hanging = crate::harness::client::RawConnection::open(server.address()).await;
    hanging.write("GET /livez HTTP/1.1\r\nHost: x\r\n").await;

    let status = server.terminate(Duration::from_secs(14)).await;

    assert_eq!(status.expect("it must end after its grace of 10 s").code(), Some(0));
    receiver.answer(|_| Reply::status(200));
    server.restart().await;
    receiver.wait_for_delivered(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn second_server_on_one_data_directory_is_refused() {
    let mut server = TestServer::start().await;
    let second = server.builder_of();

    let (code, said) = tokio::task::spawn_blocking(move || second.start_and_fail()).await.unwrap();

    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is in use by another rollcall process"), "{said}");
    assert!(said.contains("choose another directory with --data-dir"), "{said}");
    server.app().create_contact("Ana", "Reyes").await;
    server.kill();
    server.restart().await;
    assert_eq!(server.app().list_contact_ids().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn held_and_exhausted_deliveries_survive_a_crash() {
    let mut server = TestServer::builder().flag("--retry-schedule", "1s").start().await;
    let receiver = Receiver::start().await;
    receiver.answer(|seen| Reply::status(if seen.full_name() == "Ana Poison" { 500 } else { 200 }));
    server.app().subscribe(true, &receiver.url()).await.expect(200);
    let id = server.app().create_contact("Ana", "Poison").await;
    server.app().delete(&format!("/contacts/staff/{id}")).await.expect(200);
    receiver.wait_for_notifications(1).await;
    server.app().create_contact("Ben", "Good").await;
    receiver.wait_for_delivered(1).await;

    server.kill();
    server.restart().await;

    receiver.wait_for_notifications(3).await;
    receiver.answer(|_| Reply::status(200));
    receiver
        .wait_until("the delete arrived", |receiver| {
            receiver.kinds_of(&id).last().is_some_and(|kind| kind == "staffDelete")
        })
        .await;
    receiver.assert_contacts_in_order();
    server.app().wait_until_idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_crash_repeats_at_most_256_events_and_only_the_newest_of_their_contacts() {
    let mut server = TestServer::builder().flag("--max-in-flight", "256").start().await;
    let receiver = Receiver::start().await;
    receiver.work(|_| async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        Reply::status(200)
    });
    server.app().subscribe(true, &receiver.url()).await.expect(200);
    let mut ids = Vec::new();
    for number in 0..400 {
        ids.push(server.app().create_contact("Ana", &number.to_string()).await);
    }
    for edit in 0..5 {
        let edit = |id: &String| json!({"op": "edit", "id": id, "contact": {"jobTitle": edit.to_string()}});
        let items: Vec<Value> = ids.iter().map(edit).collect();
        server.app().post("/contacts/staff-batch", json!({"items": items})).await.expect(200);
    }

    for crash in 1..=3 {
        receiver
            .wait_until("a part of the events arrived", |receiver| {
                let all = receiver.notifications();
                all.iter().map(Seen::sequence).collect::<BTreeSet<_>>().len() >= crash * 500
            })
            .await;
        server.kill();
        server.restart().await;
        let repeated = count_repetitions(&receiver.notifications());
        assert!(repeated <= crash * REPEATED_MAX, "{repeated} after {crash} crashes");
    }

    server.app().wait_until_idle().await;
    let all = receiver.notifications();
    let repeated = count_repetitions(&all);
    assert!(repeated <= 3 * REPEATED_MAX, "{repeated} repeated");
    let sequences: BTreeSet<u64> = receiver.delivered().iter().map(Seen::sequence).collect();
    assert_eq!(sequences, (1..=2400).collect());
}

/// Creates contacts with a key each, and gives the number of the first that got no answer.
async fn create_with_keys(app: Api, writer: usize, from: usize) -> usize {
    for number in from.. {
        let answer = create_with_key(&app, writer, number).await;
        if answer.is_none_or(|status| status == 503) {
            return number;
        }
        assert_eq!(answer, Some(201), "{writer}.{number}");
    }
    unreachable!("there is always another number")
}

async fn create_with_key(app: &Api, writer: usize, number: usize) -> Option<u16> {
    let app = app.with_header("idempotency-key", &format!("{writer}.{number}"));
    let email = format!("{writer}.{number}@example.com");
    let contact = json!({"firstName": "A", "lastName": "B", "email": email}).to_string();
    let answer = app.try_send(Method::POST, "/contacts/staff", contact).await.ok()?;
    Some(answer.status)
}

#[tokio::test(flavor = "multi_thread")]
async fn request_that_is_repeated_with_its_key_after_a_crash_is_done_once() {
    let mut server = TestServer::start().await;
    let mut next = [0; 8];

    for _ in 0..3 {
        let before = server.app().subscription().await["newest"].as_u64().unwrap();
        let app = server.app();
        let creating: Vec<_> = (0..8)
            .map(|writer| tokio::spawn(create_with_keys(app.clone(), writer, next[writer])))
            .collect();
        eventually("contacts were created", || async {
            let status = app.subscription().await;
            (status["newest"].as_u64().unwrap() > before + 100).then_some(())
        })
        .await;
        server.kill();
        for (writer, creating) in creating.into_iter().enumerate() {
            next[writer] = creating.await.unwrap();
        }
        server.restart().await;
    }
    for (writer, number) in next.into_iter().enumerate() {
        assert_eq!(create_with_key(&server.app(), writer, number).await, Some(201));
    }

    let created: usize = next.iter().map(|number| number + 1).sum();
    assert_eq!(server.app().list_contact_ids().await.len(), created);
    let status = server.app().subscription().await;
    assert_eq!(status["newest"], json!(created));
}
