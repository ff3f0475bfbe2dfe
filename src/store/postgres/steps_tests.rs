//! Each step of a group is needed: two nodes at once, services in opposite orders, connections that are cut around a
//! commit. Every test checks what holds in the end against what was acknowledged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::Target;
use super::test_database::TestDatabase;
use super::tests::{open_alone, open_at};
use crate::domain::contact::{ContactPatch, Field};
use crate::domain::event::EventKind;
use crate::domain::id::{ContactId, ServiceId};
use crate::store::command::{ContactAnswer, ContactChange, IfMatch};
use crate::store::rows::ContactQuery;
use crate::store::{Error, Store};

fn patch(body: serde_json::Value) -> ContactPatch {
    let serde_json::Value::Object(object) = body else { unreachable!("cases give objects") };
    ContactPatch::from_json(object).unwrap()
}

fn create(email: &str) -> ContactChange {
    ContactChange::Create(patch(json!({"firstName": "Ana", "lastName": "Ng", "email": email})))
}

/// Replays the log of a service and compares what it leads to with the rows.
async fn check_log(store: &Store, service: ServiceId) -> u64 {
    let mut versions: BTreeMap<ContactId, u64> = BTreeMap::new();
    let mut gone = BTreeSet::new();
    let (mut after, mut at) = (0, None);
    loop {
        let events = store.read.list_events(service, after, 1000).await.unwrap();
        if events.is_empty() {
            break;
        }
        for event in events {
            assert_eq!(event.sequence, after + 1, "the log has a gap");
            assert!(at <= Some(event.at), "time goes back");
            at = Some(event.at);
            after = event.sequence;
            assert!(!gone.contains(&event.contact), "an event after the staffDelete");
            let before = versions.insert(event.contact, event.contact_version);
            assert_eq!(before.unwrap_or(0) + 1, event.contact_version, "a version is missing");
            assert_eq!(before.is_none(), event.kind == EventKind::Create);
            if event.kind == EventKind::Delete {
                gone.insert(event.contact);
                versions.remove(&event.contact);
            }
        }
    }
    let query = ContactQuery { offset: 0, limit: 500, full_name: None };
    let list = store.read.list_contacts(service, query).await.unwrap();
    let rows: BTreeMap<_, _> = list.items.iter().map(|it| (it.id, it.version)).collect();
    assert_eq!(rows, versions);
    assert_eq!((list.sequence, list.total), (after, versions.len() as u64));
    let emails: BTreeSet<_> = list.items.iter().map(|it| it.fields.text(Field::Email)).collect();
    assert_eq!(emails.len(), list.items.len());
    let numbers: Vec<u32> = list.items.iter().filter_map(|it| it.fields.extension()).collect();
    assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len(), numbers.len(), "a number twice");
    after
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_change_the_same_contacts_and_emails_at_once() {
    let database = TestDatabase::new().await;
    let (one, two) = (open_alone(&database).await, open_alone(&database).await);
    let service = one.store.write.create_service("Service".to_owned()).await.unwrap().id;
    let changed = Arc::new(AtomicUsize::new(0));
    let mut tasks = Vec::new();
    for worker in 0_usize..16 {
        let store = if worker % 2 == 0 { one.store.clone() } else { two.store.clone() };
        let changed = Arc::clone(&changed);
        tasks.push(tokio::spawn(async move {
            for round in 0..60 {
                // Eight e-mails for all: everybody meets everybody.
                let email = format!("c{}@example.org", (worker + round) % 8);
                let id = match store.write.change_contact(service, create(&email), None).await {
                    Ok(ContactAnswer::Created(contact)) => contact.id,
                    Err(Error::Conflict(field)) => {
                        assert_eq!(field.field, "email");
                        let query = ContactQuery { offset: 0, limit: 8, full_name: None };
                        let list = store.read.list_contacts(service, query).await.unwrap();
                        let Some(contact) = list.items.get(round % 8) else { continue };
                        contact.id
                    }
                    other => panic!("unexpected {other:?}"),
                };
                changed.fetch_add(1, Ordering::Relaxed);
                let edit = ContactChange::Edit {
                    id,
                    patch: patch(json!({"jobTitle": format!("{worker} {round}")})),
                    if_match: IfMatch::Any,
                };
                let delete = ContactChange::Delete { id, if_match: IfMatch::Any };
                for change in [edit, delete] {
                    match store.write.change_contact(service, change, None).await {
                        Ok(_) | Err(Error::NotFound) => {}
                        other => panic!("unexpected {other:?}"),
                    }
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }

    let head = check_log(&one.store, service).await;
    assert!(head > 500, "{head}");
    assert_eq!(check_log(&two.store, service).await, head);
    one.close().await;
    two.close().await;
}

/// With more than two, several wait in the middle of taking their locks when one commits.
const NODES: usize = 4;
/// So many that taking their locks takes a while.
const SERVICES: usize = 64;
const ROUNDS: u64 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_in_opposite_orders_never_lock_each_other_out() {
    let database = TestDatabase::new().await;
    let mut nodes = Vec::new();
    for _ in 0..NODES {
        nodes.push(open_alone(&database).await);
    }
    let one = nodes[0].store.clone();
    let mut services = Vec::new();
    for _ in 0..SERVICES {
        services.push(one.write.create_service("Service".to_owned()).await.unwrap().id);
    }
    let mut tasks = Vec::new();
    for worker in 0_usize..8 {
        let store = nodes[worker % NODES].store.clone();
        let mut services = services.clone();
        if worker % 2 == 0 {
            services.reverse();
        }
        tasks.push(tokio::spawn(async move {
            for round in 0..ROUNDS {
                // All at once, so that the groups of both nodes take up many services in these orders.
                let changes = services.iter().enumerate().map(|(at, service)| {
                    let email = format!("c{worker}-{round}-{at}@example.org");
                    let store = store.clone();
                    let service = *service;
                    async move { store.write.change_contact(service, create(&email), None).await }
                });
                for done in futures_util::future::join_all(changes).await {
                    assert!(matches!(done, Ok(ContactAnswer::Created(_))), "{done:?}");
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }

    for service in services {
        assert_eq!(one.read.list_log(service, 0, 1).await.unwrap().unwrap().newest, 8 * ROUNDS);
    }
    let client = database.target.connect_plain().await.unwrap();
    let row = client
        .query_one("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 0);
    drop(client);
    for node in nodes {
        node.close().await;
    }
}

/// Passes everything through until told to cut at the next commit.
const PASS: u8 = 0;
/// The commit reaches the database, its answer does not come back.
const CUT_BEHIND: u8 = 1;
/// The commit does not reach the database.
const CUT_BEFORE: u8 = 2;

/// A proxy in front of PostgreSQL that knows a commit when it sees one.
async fn proxy(upstream: String, cut: Arc<AtomicU8>, cuts: Arc<AtomicUsize>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&upstream).await.unwrap();
            client.set_nodelay(true).unwrap();
            server.set_nodelay(true).unwrap();
            let (cut, cuts) = (Arc::clone(&cut), Arc::clone(&cuts));
            tokio::spawn(async move {
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let back = tokio::spawn(async move {
                    let mut buffer = vec![0; 65_536];
                    while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
                        if to_client.write_all(&buffer[..count]).await.is_err() {
                            break;
                        }
                    }
                });
                let mut buffer = vec![0; 1 << 20];
                while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
                    let commits = buffer[..count].windows(7).any(|part| part == b"COMMIT\0");
                    let how = if commits { cut.swap(PASS, Ordering::SeqCst) } else { PASS };
                    if how != PASS {
                        cuts.fetch_add(1, Ordering::SeqCst);
                    }
                    if how == CUT_BEFORE {
                        break;
                    }
                    if how == CUT_BEHIND {
                        // Nothing goes back from here on.
                        back.abort();
                    }
                    if to_server.write_all(&buffer[..count]).await.is_err() || how == CUT_BEHIND {
                        // Time for the commit to happen, or to be still under way when the group is made again.
                        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                        break;
                    }
                }
                back.abort();
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_around_a_commit_loses_and_doubles_nothing() {
    let database = TestDatabase::new().await;
    let url = database.url.clone();
    let (cut, cuts) = (Arc::new(AtomicU8::new(PASS)), Arc::new(AtomicUsize::new(0)));
    let host = url.split('@').nth(1).unwrap().split('/').next().unwrap().to_owned();
    let port = proxy(host.clone(), Arc::clone(&cut), Arc::clone(&cuts)).await;
    let through = url.replace(&host, &format!("127.0.0.1:{port}"));
    let postgres = open_at(&Target::parse(&through).unwrap()).await;
    let store = postgres.store.clone();
    let service = store.write.create_service("Service".to_owned()).await.unwrap().id;

    let mut tasks = Vec::new();
    for worker in 0..8 {
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            for round in 0..50 {
                let email = format!("c{worker}-{round}@example.org");
                let done = store.write.change_contact(service, create(&email), None).await;
                let Ok(ContactAnswer::Created(contact)) = done else { panic!("{done:?}") };
                if round % 5 == 0 {
                    let id = contact.id;
                    let delete = ContactChange::Delete { id, if_match: IfMatch::Any };
                    let gone = store.write.change_contact(service, delete, None).await;
                    assert_eq!(gone, Ok(ContactAnswer::Deleted(id)));
                }
            }
        }));
    }
    let cutting = tokio::spawn({
        let cut = Arc::clone(&cut);
        async move {
            for number in 0_u8.. {
                cut.store(if number % 2 == 0 { CUT_BEHIND } else { CUT_BEFORE }, Ordering::SeqCst);
                // Longer than a group takes that is made again: else every commit would be cut.
                tokio::time::sleep(std::time::Duration::from_millis(60)).await;
            }
        }
    });
    for task in tasks {
        task.await.unwrap();
    }
    cutting.abort();
    cut.store(PASS, Ordering::SeqCst);

    // 400 creates and 80 deletes, each acknowledged once: each is in the log once.
    assert_eq!(check_log(&store, service).await, 480);
    assert!(cuts.load(Ordering::SeqCst) >= 4, "{cuts:?}");
    postgres.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_database_will_not_take_fails_alone() {
    let database = TestDatabase::new().await;
    let postgres = open_alone(&database).await;
    let store = postgres.store.clone();
    let service = store.write.create_service("Service".to_owned()).await.unwrap().id;
    let client = database.target.connect_plain().await.unwrap();
    // Stands for whatever a table refuses that our own rules let through.
    let check = "ALTER TABLE contacts ADD CONSTRAINT refused CHECK (email NOT LIKE 'bad%')";
    client.batch_execute(check).await.unwrap();

    let mut tasks = Vec::new();
    for number in 0..60 {
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            let kind = if number % 10 == 0 { "bad" } else { "good" };
            let email = format!("{kind}{number}@example.org");
            (kind, store.write.change_contact(service, create(&email), None).await)
        }));
    }
    for task in tasks {
        let (kind, done) = task.await.unwrap();
        match done {
            Ok(ContactAnswer::Created(_)) => assert_eq!(kind, "good"),
            Err(Error::Unavailable(text)) => {
                assert_eq!(kind, "bad", "{text}");
                assert!(text.contains("refused") && !text.contains("example.org"), "{text}");
            }
            other => panic!("unexpected {other:?}"),
        }
    }

    assert_eq!(check_log(&store, service).await, 54);
    postgres.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_database_warns_of_before_a_commit_does_not_put_it_in_doubt() {
    let database = TestDatabase::new().await;
    let postgres = open_alone(&database).await;
    let store = postgres.store.clone();
    let client = database.target.connect_plain().await.unwrap();
    // As when transaction numbers are running out: at the first write of each transaction.
    let warn = "CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE WARNING 'must be vacuumed'; RETURN NEW; END $$; \
         CREATE TRIGGER warn BEFORE INSERT ON groups FOR EACH ROW EXECUTE FUNCTION warn()";
    client.batch_execute(warn).await.unwrap();

    let service = store.write.create_service("Service".to_owned()).await.unwrap().id;
    let done = store.write.change_contact(service, create("c@example.org"), None).await;

    assert!(matches!(done, Ok(ContactAnswer::Created(_))), "{done:?}");
    assert_eq!(check_log(&store, service).await, 1);
    postgres.close().await;
}

/// Creates a contact with this number or the lowest free one; gives its id and number.
async fn numbered(
    store: &Store,
    service: ServiceId,
    email: &str,
    number: Option<u32>,
) -> (ContactId, u32) {
    let mut body = json!({"firstName": "Ana", "lastName": "Ng", "email": email});
    if let Some(number) = number {
        body["extensionNumber"] = json!(number);
    }
    let change = ContactChange::Create(patch(body));
    match store.write.change_contact(service, change, None).await {
        Ok(ContactAnswer::Created(contact)) => {
            (contact.id, contact.fields.extension().unwrap_or_default())
        }
        other => panic!("unexpected {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_finds_the_lowest_free_number_whoever_took_and_gave_up_others() {
    let database = TestDatabase::new().await;
    let (one, two) = (open_alone(&database).await, open_alone(&database).await);
    let service = one.store.write.create_service("Service".to_owned()).await.unwrap().id;
    let client = database.target.connect_plain().await.unwrap();
    let email = |number: u32| format!("n{number}@example.org");
    let mut ids = Vec::new();
    for number in 100..110 {
        // In turns: neither has heard of what the other did.
        let store = if number % 2 == 0 { &one.store } else { &two.store };
        let (id, found) = numbered(store, service, &email(number), None).await;
        assert_eq!(found, number);
        ids.push(id);
    }
    assert_eq!(numbered(&two.store, service, "chosen@example.org", Some(111)).await.1, 111);
    let taken = json!({"extensionNumber": 111});
    let edit = ContactChange::Edit { id: ids[0], patch: patch(taken), if_match: IfMatch::Any };
    let refused = one.store.write.change_contact(service, edit, None).await.unwrap_err();
    assert!(matches!(refused, Error::Conflict(field) if field.field == "extensionNumber"));
    let none = json!({"extensionNumber": null});
    let edit = ContactChange::Edit { id: ids[4], patch: patch(none), if_match: IfMatch::Any };
    one.store.write.change_contact(service, edit, None).await.unwrap();
    let delete = ContactChange::Delete { id: ids[2], if_match: IfMatch::Any };
    one.store.write.change_contact(service, delete, None).await.unwrap();
    for (at, number) in [102, 104, 110, 112].into_iter().enumerate() {
        let store = if at % 2 == 0 { &two.store } else { &one.store };
        assert_eq!(numbered(store, service, &format!("r{at}@example.org"), None).await.1, number);
    }

    // What was removed from the log meanwhile cannot be followed.
    numbered(&two.store, service, "p@example.org", None).await;
    let prune = "DELETE FROM events; UPDATE services SET floor = (SELECT max(head) FROM rolls)";
    client.batch_execute(prune).await.unwrap();
    assert_eq!(numbered(&one.store, service, "q@example.org", None).await.1, 114);

    // Neither is followed what is very much.
    let much = format!(
        "INSERT INTO events SELECT service, head + n, service, service, 2, n + 1, 'Ana', last_event_at \
         FROM rolls, generate_series(1, {0}) n; UPDATE rolls SET head = head + {0}; \
         INSERT INTO contacts SELECT service, service, 1, 1, 1, 'other@example.org', 115, 'ana', '{{}}' FROM rolls",
        super::numbers::BEHIND_MAX
    );
    client.batch_execute(&much).await.unwrap();
    assert_eq!(numbered(&one.store, service, "s@example.org", None).await.1, 116);
    one.close().await;
    two.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_take_and_give_up_numbers_at_once_never_give_one_twice() {
    let database = TestDatabase::new().await;
    let (one, two) = (open_alone(&database).await, open_alone(&database).await);
    let service = one.store.write.create_service("Service".to_owned()).await.unwrap().id;
    let mut tasks = Vec::new();
    for worker in 0_usize..12 {
        let store = if worker % 2 == 0 { one.store.clone() } else { two.store.clone() };
        tasks.push(tokio::spawn(async move {
            for round in 0..40 {
                let email = format!("w{worker}r{round}@example.org");
                let (id, _) = numbered(&store, service, &email, None).await;
                if round % 4 != 0 {
                    let delete = ContactChange::Delete { id, if_match: IfMatch::Any };
                    store.write.change_contact(service, delete, None).await.unwrap();
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }

    // 120 are left, and check_log finds no number twice.
    check_log(&one.store, service).await;
    let query = ContactQuery { offset: 0, limit: 500, full_name: None };
    let list = one.store.read.list_contacts(service, query).await.unwrap();
    let mut taken: Vec<u32> = list.items.iter().filter_map(|it| it.fields.extension()).collect();
    taken.sort_unstable();
    assert_eq!(taken.len(), 120);
    let lowest = (100..).find(|number| !taken.contains(number)).unwrap();
    assert_eq!(numbered(&two.store, service, "last@example.org", None).await.1, lowest);
    assert!(*taken.last().unwrap() < 100 + 120 + 12, "numbers run away: {taken:?}");
    one.close().await;
    two.close().await;
}
