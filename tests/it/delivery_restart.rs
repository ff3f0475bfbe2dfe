//! Crashes and orderly stops: what was acknowledged arrives, no contact goes back, little is repeated.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};

use crate::harness::client::Api;
use crate::harness::eventually;
use crate::harness::receiver::{Receiver, Reply, Seen};
use crate::harness::server::TestServer;

/// Most events that a crash may repeat, for one subscription.
const REPEATED_MAX: usize = 256;

/// What callers were told: the contact and its version, a delete as its last one.
#[derive(Default)]
struct Acknowledged {
    changes: Mutex<BTreeSet<(String, u64)>>,
    deletes: Mutex<BTreeSet<String>>,
    count: AtomicUsize,
    stop: AtomicBool,
}

impl Acknowledged {
    fn note(&self, contact: &Value) {
        let id = contact["id"].as_str().unwrap().to_owned();
        if let Some(version) = contact["version"].as_u64() {
            self.changes.lock().unwrap().insert((id, version));
        } else {
            self.deletes.lock().unwrap().insert(id);
        }
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    async fn wait_for(&self, count: usize) {
        eventually("enough changes were acknowledged", || async {
            (self.count.load(Ordering::SeqCst) >= count).then_some(())
        })
        .await;
    }
}

/// Creates, edits and deletes contacts until it is told to stop or gets no answer.
async fn write(app: Api, name: String, acknowledged: Arc<Acknowledged>) {
    for number in 0.. {
        let email = format!("{name}.{number}@example.com");
        let contact = json!({"firstName": "A", "lastName": "B", "email": email});
        let Some(created) =
            tell(&app, Method::POST, "/contacts/staff", &contact, &acknowledged).await
        else {
            return;
        };
        let path = format!("/contacts/staff/{}", created["id"].as_str().unwrap());
        for edit in 0..3 {
            let edit = json!({"jobTitle": edit.to_string()});
            if tell(&app, Method::PATCH, &path, &edit, &acknowledged).await.is_none() {
                return;
            }
        }
        if number % 2 == 0
            && tell(&app, Method::DELETE, &path, &json!({}), &acknowledged).await.is_none()
        {
            return;
        }
    }
}

async fn tell(
    app: &Api,
    method: Method,
    path: &str,
    body: &Value,
    acknowledged: &Acknowledged,
) -> Option<Value> {
    if acknowledged.stopped() {
        return None;
    }
    let answer = app.try_send(method, path, body.to_string()).await.ok()?;
    if answer.status == 503 {
        return None;
    }
    assert!([200, 201].contains(&answer.status), "{answer:?}");
    let result = answer.json()["result"].take();
    acknowledged.note(&result);
    Some(result)
}

fn start_writers(
    app: &Api,
    round: usize,
    acknowledged: &Arc<Acknowledged>,
) -> tokio::task::JoinSet<()> {
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..8 {
        let name = format!("r{round}.w{number}");
        writers.spawn(write(app.clone(), name, Arc::clone(acknowledged)));
    }
    writers
}

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

/// The ids of all contacts on the roll.
async fn list_ids(app: &Api) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    loop {
        let path = format!("/contacts/staffcontact-list?limit=500&offset={}", ids.len());
        let page = app.get(&path).await.expect(200);
        let items = page["items"].as_array().unwrap();
        if items.is_empty() {
            return ids;
        }
        ids.extend(items.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
    }
}

/// The contacts that are on the roll as far as a receiver knows.
fn ids_told(seen: &[Seen]) -> BTreeSet<String> {
    let last: BTreeMap<String, String> = seen.iter().map(|n| (n.contact(), n.kind())).collect();
    last.into_iter().filter(|(_, kind)| kind != "staffDelete").map(|(id, _)| id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_the_server_is_killed_under_load() {
    let mut server = TestServer::start().await;
    let receiver = Receiver::start().await;
    receiver.answer(|seen| {
        let fails = seen.header("rollcall-attempt") == "1" && seen.sequence() % 50 == 0;
        Reply::status(if fails { 500 } else { 200 })
    });
    server.app().subscribe(true, &receiver.url()).await.expect(200);
    let acknowledged = Arc::new(Acknowledged::default());

    for round in 1..=3 {
        let writers = start_writers(&server.app(), round, &acknowledged);
        let target = acknowledged.count.load(Ordering::SeqCst) + 150 * round;
        acknowledged.wait_for(target).await;
        server.kill();
        writers.join_all().await;
        server.restart().await;
    }

    server.app().wait_until_idle().await;
    let delivered = receiver.delivered();
    let told: BTreeSet<(String, u64)> =
        delivered.iter().map(|n| (n.contact(), n.version())).collect();
    let missing: Vec<_> = acknowledged
        .changes
        .lock()
        .unwrap()
        .iter()
        .filter(|change| !told.contains(change))
        .cloned()
        .collect();
    assert!(missing.is_empty(), "acknowledged and not delivered: {missing:?}");
    let deleted: BTreeSet<String> =
        delivered.iter().filter(|n| n.kind() == "staffDelete").map(Seen::contact).collect();
    assert!(deleted.is_superset(&acknowledged.deletes.lock().unwrap()), "a delete was lost");
    receiver.assert_contacts_in_order();
    let repeated = count_repetitions(&delivered);
    assert!(repeated <= 3 * REPEATED_MAX, "{repeated} repetitions");
    assert_eq!(ids_told(&delivered), list_ids(&server.app()).await);
    let sequences: BTreeSet<u64> = delivered.iter().map(Seen::sequence).collect();
    assert_eq!(sequences, (1..=sequences.len() as u64).collect(), "the log has gaps");
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
    let writers = start_writers(&server.app(), 0, &acknowledged);
    acknowledged.wait_for(300).await;

    let status = server.terminate(Duration::from_secs(10)).await;
    acknowledged.stop.store(true, Ordering::SeqCst);
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
    assert!(
        told.is_superset(&acknowledged.changes.lock().unwrap()),
        "an acknowledged change was lost"
    );
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
    assert_eq!(list_ids(&server.app()).await.len(), 1);
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

#[tokio::test(flavor = "multi_thread")]
async fn first_start_may_be_killed_at_any_time() {
    let builder = TestServer::builder();
    for step in 0..20 {
        builder.start_and_kill(Duration::from_millis(step * 3)).await;
    }

    let server = builder.start().await;

    let receiver = Receiver::start().await;
    server.app().subscribe(true, &receiver.url()).await.expect(200);
    server.app().create_contact("Ana", "Reyes").await;
    receiver.wait_for_delivered(1).await;
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
    assert_eq!(list_ids(&server.app()).await.len(), created);
    let status = server.app().subscription().await;
    assert_eq!(status["newest"], json!(created));
}
