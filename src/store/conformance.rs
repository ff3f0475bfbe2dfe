//! One suite for every back end: the same commands give the same answers, rows and commits.
//!
//! A back end calls [`run`] with a way to open a fresh store. Each case is a short story on a store of its own.

use std::future::Future;
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::command::{
    ContactAnswer, ContactChange, IdempotencyKey, IfMatch, NewApp, SubscriptionWish,
};
use super::queue::WaitingRecord;
use super::rows::{ContactQuery, ExhaustedRow, Failing, HeldRow, Record};
use super::{Error, Store};
use crate::domain::clock::Timestamp;
use crate::domain::contact::{ContactPatch, Field, StaffContact};
use crate::domain::event::EventKind;
use crate::domain::id::{AppId, ContactId, ServiceId};
use crate::domain::subscription::{Enabled, SigningSecret, StoredSecret, Subscription};
use crate::domain::tenancy::{Scopes, Token};

#[path = "conformance_audit.rs"]
mod audit;
#[path = "conformance_deliveries.rs"]
mod deliveries;

const NOW: Timestamp = Timestamp::from_millis(1_763_900_000_000);

/// Runs every case, each on a store that `open` makes.
pub(super) async fn run<F, G>(open: F)
where
    F: Fn() -> G,
    G: Future<Output = Store>,
{
    changes_and_events_are_numbered_without_gaps(open().await).await;
    a_page_of_the_log_comes_with_its_head(open().await).await;
    refused_commands_leave_no_trace(open().await).await;
    extensions_are_the_lowest_free(open().await).await;
    versions_are_checked(open().await).await;
    batches_leave_the_refused_out(open().await).await;
    an_idempotency_key_answers_once(open().await).await;
    lists_are_pages_of_one_state(open().await).await;
    tokens_name_their_app_until_they_expire(open().await).await;
    secrets_sign_until_they_expire(open().await).await;
    rotations_stop_the_oldest_secret_beyond_the_limit(open().await).await;
    nothing_crosses_services(open().await).await;
    a_hidden_service_is_gone_at_once(open().await).await;
    later_tickets_win(open().await).await;
    progress_follows_the_wish(open().await).await;
    records_belong_to_a_generation(open().await).await;
    a_record_can_disable(open().await).await;
    concurrent_commands_share_groups(open().await).await;
    deliveries::run(async || open().await).await;
    audit::run(async || open().await).await;
}

async fn service(store: &Store) -> ServiceId {
    store.write.create_service("Service".to_owned()).await.unwrap().id
}

async fn app(store: &Store, service: ServiceId, token: u8) -> AppId {
    let new = NewApp {
        service,
        name: "App".to_owned(),
        scopes: Scopes::all(),
        token: Token::from_random(Token::APP_PREFIX, [token; 32]).hash(),
        secret: SigningSecret(vec![token; 32]),
    };
    store.write.create_app(new).await.unwrap().id
}

fn patch(body: serde_json::Value) -> ContactPatch {
    let serde_json::Value::Object(object) = body else { unreachable!("cases give objects") };
    ContactPatch::from_json(object).unwrap()
}

fn create_of(email: &str) -> ContactChange {
    ContactChange::Create(patch(json!({"firstName": "Ana", "lastName": "Ng", "email": email})))
}

async fn create(store: &Store, service: ServiceId, email: &str) -> StaffContact {
    match store.write.change_contact(service, create_of(email), None).await.unwrap() {
        ContactAnswer::Created(contact) => *contact,
        other => panic!("unexpected {other:?}"),
    }
}

async fn edit(
    store: &Store,
    service: ServiceId,
    id: ContactId,
    body: serde_json::Value,
) -> Result<ContactAnswer, Error> {
    let change = ContactChange::Edit { id, patch: patch(body), if_match: IfMatch::Any };
    store.write.change_contact(service, change, None).await
}

async fn delete(store: &Store, service: ServiceId, id: ContactId) -> Result<ContactAnswer, Error> {
    let change = ContactChange::Delete { id, if_match: IfMatch::Any };
    store.write.change_contact(service, change, None).await
}

async fn record(store: &Store, record: Record) -> Result<(), Error> {
    let (tell, told) = tokio::sync::oneshot::channel();
    let listener = Box::new(move |result| drop(tell.send(result)));
    store.write.queue().push_record(WaitingRecord { record, listener });
    told.await.unwrap()
}

async fn head(store: &Store, service: ServiceId) -> u64 {
    let heads = store.read.list_heads().await.unwrap();
    heads.into_iter().find(|(id, _)| *id == service).unwrap().1
}

fn all() -> ContactQuery {
    ContactQuery { offset: 0, limit: 500, full_name: None }
}

async fn changes_and_events_are_numbered_without_gaps(store: Store) {
    let service = service(&store).await;

    let ana = create(&store, service, "ana@example.org").await;
    edit(&store, service, ana.id, json!({"lastName": "Li"})).await.unwrap();
    edit(&store, service, ana.id, json!({"lastName": "Li"})).await.unwrap();
    delete(&store, service, ana.id).await.unwrap();

    let events = store.read.list_events(service, 0, 10).await.unwrap();
    let seen: Vec<_> = events
        .iter()
        .map(|e| (e.sequence, e.kind, e.contact_version, e.full_name.as_str()))
        .collect();
    assert_eq!(
        seen,
        [
            (1, EventKind::Create, 1, "Ana Ng"),
            (2, EventKind::Edit, 2, "Ana Li"),
            (3, EventKind::Delete, 3, "Ana Li"),
        ]
    );
    assert!(events.windows(2).all(|pair| pair[0].at <= pair[1].at && pair[0].id != pair[1].id));
    assert_eq!(head(&store, service).await, 3);
    assert_eq!(store.read.list_events(service, 1, 1).await.unwrap(), events[1..2]);
    assert_eq!(store.read.find_contact(service, ana.id).await.unwrap(), None);
}

async fn a_page_of_the_log_comes_with_its_head(store: Store) {
    let service = service(&store).await;
    let other = self::service(&store).await;
    create(&store, other, "x@example.org").await;
    for number in 0..3 {
        create(&store, service, &format!("c{number}@example.org")).await;
    }
    let page = async |after, limit| {
        let page = store.read.list_log(service, after, limit).await.unwrap().unwrap();
        (page.events.iter().map(|event| event.sequence).collect::<Vec<_>>(), page.newest)
    };

    assert_eq!(page(0, 2).await, (vec![1, 2], 3));
    assert_eq!(page(2, 2).await, (vec![3], 3));
    assert_eq!(page(3, 2).await, (vec![], 3));
    assert_eq!(page(u64::MAX, 2).await, (vec![], 3));
    store.write.delete_service(service).await.unwrap();
    assert_eq!(store.read.list_log(service, 0, 2).await, Ok(None));
}

async fn refused_commands_leave_no_trace(store: Store) {
    let service = service(&store).await;
    let ana = create(&store, service, "ana@example.org").await;
    let bo = create(&store, service, "bo@example.org").await;

    let taken = store.write.change_contact(service, create_of("ANA@Example.org"), None).await;
    let number = ana.fields.extension().unwrap();
    let extension = edit(&store, service, bo.id, json!({"extensionNumber": number})).await;
    let removed = edit(&store, service, bo.id, json!({"firstName": null})).await;
    let absent = delete(&store, service, ContactId::from_bytes([9; 16])).await;

    assert!(matches!(taken, Err(Error::Conflict(field)) if field.field == "email"));
    assert!(matches!(extension, Err(Error::Conflict(field)) if field.field == "extensionNumber"));
    assert!(matches!(removed, Err(Error::Refused(field)) if field.field == "firstName"));
    assert_eq!(absent, Err(Error::NotFound));
    assert_eq!(head(&store, service).await, 2);
    let list = store.read.list_contacts(service, all()).await.unwrap();
    assert_eq!(list.items, [ana.clone(), bo]);
    delete(&store, service, ana.id).await.unwrap();
    create(&store, service, "ana@example.org").await;
}

async fn extensions_are_the_lowest_free(store: Store) {
    let service = service(&store).await;
    let mut contacts = Vec::new();
    for number in 0..3 {
        contacts.push(create(&store, service, &format!("c{number}@example.org")).await);
    }

    edit(&store, service, contacts[0].id, json!({"extensionNumber": 500})).await.unwrap();
    delete(&store, service, contacts[2].id).await.unwrap();
    let first = create(&store, service, "d@example.org").await;
    let second = create(&store, service, "e@example.org").await;
    let third = create(&store, service, "f@example.org").await;

    let numbers = |contacts: &[&StaffContact]| -> Vec<Option<u32>> {
        contacts.iter().map(|contact| contact.fields.extension()).collect()
    };
    assert_eq!(numbers(&[&first, &second, &third]), [Some(100), Some(102), Some(103)]);
}

async fn versions_are_checked(store: Store) {
    let service = service(&store).await;
    let ana = create(&store, service, "ana@example.org").await;
    let change = |version| ContactChange::Edit {
        id: ana.id,
        patch: patch(json!({"jobTitle": "Porter"})),
        if_match: IfMatch::Versions(vec![version]),
    };

    let wrong = store.write.change_contact(service, change(2), None).await;
    let right = store.write.change_contact(service, change(1), None).await;

    assert_eq!(wrong, Err(Error::VersionMismatch { current: 1 }));
    assert!(matches!(right, Ok(ContactAnswer::Edited(contact)) if contact.version == 2));
}

async fn batches_leave_the_refused_out(store: Store) {
    let service = service(&store).await;
    let ana = create(&store, service, "ana@example.org").await;
    let changes = vec![
        create_of("bo@example.org"),
        create_of("ana@example.org"),
        ContactChange::Delete { id: ana.id, if_match: IfMatch::Any },
        create_of("ana@example.org"),
        ContactChange::Delete { id: ana.id, if_match: IfMatch::Any },
    ];

    let answers = store.write.change_contacts(service, changes).await.unwrap();

    assert!(matches!(&answers[0], Ok(ContactAnswer::Created(_))));
    assert!(matches!(&answers[1], Err(Error::Conflict(_))));
    assert_eq!(answers[2], Ok(ContactAnswer::Deleted(ana.id)));
    assert!(matches!(&answers[3], Ok(ContactAnswer::Created(_))));
    assert_eq!(answers[4], Err(Error::NotFound));
    assert_eq!(head(&store, service).await, 4);
    let unknown = ServiceId::from_bytes([9; 16]);
    assert_eq!(store.write.change_contacts(unknown, Vec::new()).await, Err(Error::NotFound));
}

async fn an_idempotency_key_answers_once(store: Store) {
    let service = service(&store).await;
    let app = app(&store, service, 1).await;
    let key = |hash| Some(IdempotencyKey { app, key: "k".to_owned(), request_hash: [hash; 32] });
    let send = |email, hash| store.write.change_contact(service, create_of(email), key(hash));

    let (first, again) = tokio::join!(send("ana@example.org", 1), send("ana@example.org", 1));
    let other = send("bo@example.org", 2).await;

    let Ok(ContactAnswer::Created(contact)) = first else { panic!("unexpected {first:?}") };
    assert_eq!(again, Ok(ContactAnswer::Repeated(contact.to_json())));
    assert_eq!(other, Err(Error::KeyReused));
    assert_eq!(head(&store, service).await, 1);
}

async fn lists_are_pages_of_one_state(store: Store) {
    let service = service(&store).await;
    let mut made = Vec::new();
    for number in 0..7 {
        made.push(create(&store, service, &format!("c{number}@example.org")).await);
    }
    edit(&store, service, made[3].id, json!({"lastName": "Üçok"})).await.unwrap();
    let query = |offset, limit, name: Option<&str>| ContactQuery {
        offset,
        limit,
        full_name: name.map(str::to_owned),
    };

    let page = store.read.list_contacts(service, query(2, 3, None)).await.unwrap();
    let beyond = store.read.list_contacts(service, query(9, 3, None)).await.unwrap();
    let named = store.read.list_contacts(service, query(0, 3, Some("a üÇ"))).await.unwrap();

    let ids: Vec<ContactId> = page.items.iter().map(|contact| contact.id).collect();
    assert_eq!(ids, made[2..5].iter().map(|contact| contact.id).collect::<Vec<_>>());
    assert_eq!((page.total, page.sequence), (7, 8));
    assert_eq!((beyond.total, beyond.items.len()), (7, 0));
    assert_eq!((named.total, named.items[0].id), (1, made[3].id));
}

async fn tokens_name_their_app_until_they_expire(store: Store) {
    let service = service(&store).await;
    let app = app(&store, service, 1).await;
    let old = Token::from_random(Token::APP_PREFIX, [1; 32]).hash();
    let new = Token::from_random(Token::APP_PREFIX, [2; 32]).hash();
    let find = async |token, now| {
        store.read.find_app_by_token(token, now).await.unwrap().map(|found| found.app.id)
    };

    assert_eq!(find(old, NOW).await, Some(app));
    assert_eq!(find(new, NOW).await, None);
    store.write.rotate_token(service, app, new, Timestamp::from_millis(i64::MAX)).await.unwrap();

    assert_eq!((find(old, NOW).await, find(new, NOW).await), (Some(app), Some(app)));
    let third = Token::from_random(Token::APP_PREFIX, [3; 32]).hash();
    store.write.rotate_token(service, app, third, NOW).await.unwrap();
    assert_eq!(
        (find(old, NOW).await, find(new, NOW).await, find(third, NOW).await),
        (None, None, Some(app))
    );
    store.write.delete_app(service, app).await.unwrap();
    assert_eq!(find(third, NOW).await, None);
    assert_eq!(store.write.delete_app(service, app).await, Err(Error::NotFound));
}

fn secret_of(byte: u8, expires_at: Option<Timestamp>) -> StoredSecret {
    StoredSecret { secret: SigningSecret(vec![byte; 32]), expires_at }
}

/// A rotation with an overlap that no upkeep ends meanwhile.
async fn rotate(store: &Store, service: ServiceId, app: AppId, byte: u8, until: Timestamp) {
    let secret = SigningSecret(vec![byte; 32]);
    store.write.rotate_secret(service, app, secret, until).await.unwrap();
}

async fn secrets_sign_until_they_expire(store: Store) {
    let service = service(&store).await;
    let (app, other) = (self::app(&store, service, 1).await, self::app(&store, service, 9).await);
    let (until, later) = (Timestamp::from_millis(1 << 50), Timestamp::from_millis(1 << 51));
    store.write.set_subscription(service, app, 1, enable("https://one.example/")).await.unwrap();
    let heard: Arc<Mutex<Vec<Vec<StoredSecret>>>> = Arc::default();
    let listening = Arc::clone(&heard);
    store.write.queue().add_listener(Arc::new(move |commit| {
        let of_app = commit.secrets.iter().filter(|it| (it.service, it.app) == (service, app));
        listening.lock().unwrap().extend(of_app.map(|it| it.secrets.to_vec()));
    }));
    let list = async |app, now| store.read.list_signing_secrets(service, app, now).await.unwrap();

    rotate(&store, service, app, 2, until).await;
    rotate(&store, service, app, 3, later).await;

    let all = [secret_of(3, None), secret_of(2, Some(later)), secret_of(1, Some(until))];
    assert_eq!(*heard.lock().unwrap().last().unwrap(), all);
    assert_eq!(heard.lock().unwrap().len(), 2);
    assert_eq!(list(app, NOW).await, all);
    assert_eq!(list(app, until).await, all[..2]);
    assert_eq!(list(app, later).await, all[..1]);
    assert_eq!(list(other, NOW).await, [secret_of(9, None)]);
    assert_eq!(store.read.find_lane(service, app).await.unwrap().unwrap().secrets, all);
    assert_eq!(store.read.list_lanes().await.unwrap()[0].secrets, all);
}

async fn rotations_stop_the_oldest_secret_beyond_the_limit(store: Store) {
    let service = service(&store).await;
    let app = app(&store, service, 1).await;
    let until = Timestamp::from_millis(1 << 50);
    let bytes = async || -> Vec<u8> {
        let listed = store.read.list_signing_secrets(service, app, NOW).await.unwrap();
        listed.iter().map(|stored| stored.secret.0[0]).collect()
    };

    rotate(&store, service, app, 2, until).await;
    rotate(&store, service, app, 3, until).await;
    assert_eq!(bytes().await, [3, 2, 1]);
    rotate(&store, service, app, 4, until).await;
    assert_eq!(bytes().await, [4, 3, 2]);
    rotate(&store, service, app, 5, NOW).await;
    assert_eq!(bytes().await, [5]);

    store.write.delete_app(service, app).await.unwrap();
    let late = store.write.rotate_secret(service, app, SigningSecret(vec![6; 32]), until).await;
    assert_eq!(late, Err(Error::NotFound));
    assert_eq!(bytes().await, [0; 0]);
}

async fn nothing_crosses_services(store: Store) {
    let one = service(&store).await;
    let two = service(&store).await;
    let ana = create(&store, one, "ana@example.org").await;
    create(&store, two, "ana@example.org").await;

    assert_eq!(store.read.find_contact(two, ana.id).await.unwrap(), None);
    assert_eq!(delete(&store, two, ana.id).await, Err(Error::NotFound));
    assert_eq!(store.read.list_contacts(two, all()).await.unwrap().total, 1);
    assert_eq!((head(&store, one).await, head(&store, two).await), (1, 1));
}

async fn a_hidden_service_is_gone_at_once(store: Store) {
    let service = service(&store).await;
    let app = app(&store, service, 1).await;
    create(&store, service, "ana@example.org").await;

    store.write.delete_service(service).await.unwrap();

    let token = Token::from_random(Token::APP_PREFIX, [1; 32]).hash();
    assert_eq!(store.read.find_app_by_token(token, NOW).await.unwrap(), None);
    assert_eq!(store.read.find_service(service).await.unwrap(), None);
    assert_eq!(store.read.list_services(None, 10).await.unwrap().items, []);
    let late = store.write.change_contact(service, create_of("bo@example.org"), None).await;
    assert_eq!(late, Err(Error::NotFound));
    let wish = SubscriptionWish::Disable { url: String::new() };
    assert_eq!(store.write.set_subscription(service, app, 1, wish).await, Err(Error::NotFound));
    assert_eq!(store.write.delete_service(service).await, Err(Error::NotFound));
}

fn enable(url: &str) -> SubscriptionWish {
    SubscriptionWish::Enable { url: url.to_owned(), verified_at: NOW }
}

fn disable() -> SubscriptionWish {
    SubscriptionWish::Disable { url: "https://other.example/".to_owned() }
}

async fn later_tickets_win(store: Store) {
    let service = service(&store).await;
    let app = app(&store, service, 1).await;
    let (first, second) =
        (store.write.take_ticket().await.unwrap(), store.write.take_ticket().await.unwrap());
    let set = |ticket, wish| store.write.set_subscription(service, app, ticket, wish);

    let disabled = set(second, disable()).await.unwrap();
    let late = set(first, enable("https://one.example/")).await;

    assert_eq!(late, Err(Error::Superseded));
    assert_eq!((disabled.enabled, disabled.url.as_str()), (Enabled::No, "https://other.example/"));
    let third = store.write.take_ticket().await.unwrap();
    assert!(third > second);
    assert_eq!(set(third, enable("https://one.example/")).await.unwrap().enabled, Enabled::Yes);
    let again = set(store.write.take_ticket().await.unwrap(), disable()).await.unwrap();
    assert_eq!(again.url, "https://one.example/");
}

async fn progress_follows_the_wish(store: Store) {
    let service = service(&store).await;
    let app = app(&store, service, 1).await;
    let set = async |wish| {
        let ticket = store.write.take_ticket().await.unwrap();
        store.write.set_subscription(service, app, ticket, wish).await
    };
    create(&store, service, "a@example.org").await;
    assert_eq!(store.read.find_lane(service, app).await.unwrap(), None);

    let first = set(enable("https://one.example/")).await.unwrap();
    create(&store, service, "b@example.org").await;
    let second = set(enable("https://two.example/")).await.unwrap();
    let kept = store.read.find_lane(service, app).await.unwrap().unwrap();
    set(disable()).await.unwrap();
    assert_eq!(store.read.find_lane(service, app).await.unwrap(), None);
    set(enable("https://two.example/")).await.unwrap();
    let anew = store.read.find_lane(service, app).await.unwrap().unwrap();

    assert_eq!((first.generation, second.generation), (1, 2));
    assert_eq!((kept.cursor, kept.subscription.url.as_str()), (1, "https://two.example/"));
    assert_eq!((anew.cursor, anew.subscription.generation), (2, 4));
    assert_eq!(anew.secrets, [secret_of(1, None)]);
    assert_eq!(store.read.list_lanes().await.unwrap(), [anew]);
}

fn empty_record(subscription: &Subscription) -> Record {
    Record {
        service: subscription.service,
        app: subscription.app,
        generation: subscription.generation,
        epoch: 0,
        cursor: 0,
        bitmap: Vec::new(),
        failing: None,
        hold: Vec::new(),
        release: Vec::new(),
        exhaust: Vec::new(),
        failed: Vec::new(),
        disable: None,
    }
}

fn held_of(contact: ContactId, sequence: u64, due_at: Timestamp) -> HeldRow {
    HeldRow { sequence, contact, retries_used: 1, attempts: 2, due_at }
}

async fn records_belong_to_a_generation(store: Store) {
    let service = service(&store).await;
    let app = app(&store, service, 1).await;
    let subscription = store
        .write
        .set_subscription(service, app, 1, enable("https://one.example/"))
        .await
        .unwrap();
    let ana = create(&store, service, "a@example.org").await;
    for number in 0..4 {
        create(&store, service, &format!("b{number}@example.org")).await;
    }
    let held = |sequence, due_at| held_of(ana.id, sequence, due_at);
    let base = Record {
        cursor: 1,
        bitmap: vec![0b100],
        failing: Some(Failing { since: NOW, attempts: 2 }),
        hold: vec![held(1, NOW), held(3, NOW)],
        ..empty_record(&subscription)
    };

    record(&store, base.clone()).await.unwrap();
    let exhausted = ExhaustedRow { sequence: 3, contact: ana.id, attempts: 12, at: NOW };
    let next = Record {
        cursor: 2,
        bitmap: Vec::new(),
        failing: None,
        hold: vec![held(1, NOW.plus(std::time::Duration::from_secs(5)))],
        release: vec![3],
        exhaust: vec![exhausted],
        ..base.clone()
    };
    record(&store, next.clone()).await.unwrap();
    let lane = store.read.find_lane(service, app).await.unwrap().unwrap();
    let status = store.read.get_subscription_status(service, app).await.unwrap();
    let stale = record(&store, Record { generation: 7, ..next }).await;

    assert_eq!((lane.cursor, lane.failing, lane.held.len()), (2, None, 1));
    assert_eq!(lane.held[0].due_at, NOW.plus(std::time::Duration::from_secs(5)));
    assert_eq!((status.cursor, status.newest, status.held, status.exhausted), (2, 5, 1, 1));
    let first = store.read.list_events(service, 0, 1).await.unwrap();
    assert_eq!(status.oldest_undelivered, Some(first[0].at));
    assert_eq!(stale, Err(Error::Superseded));
    assert_eq!(store.read.find_lane(service, app).await.unwrap().unwrap().cursor, 2);
}

async fn a_record_can_disable(store: Store) {
    let service = service(&store).await;
    let app = app(&store, service, 1).await;
    let subscription = store
        .write
        .set_subscription(service, app, 1, enable("https://one.example/"))
        .await
        .unwrap();
    create(&store, service, "a@example.org").await;
    let gone = Record { disable: Some("gone".to_owned()), ..empty_record(&subscription) };

    record(&store, gone.clone()).await.unwrap();
    let late = record(&store, gone).await;
    let disabled = store.read.find_subscription(service, app).await.unwrap().unwrap();
    store.write.set_subscription(service, app, 2, enable("https://one.example/")).await.unwrap();
    let resumed = store.read.find_lane(service, app).await.unwrap().unwrap();

    assert_eq!((disabled.enabled, disabled.reason.as_str()), (Enabled::DisabledBySystem, "gone"));
    assert_eq!(late, Err(Error::Superseded));
    assert_eq!((resumed.cursor, resumed.subscription.generation), (0, 3));
}

async fn concurrent_commands_share_groups(store: Store) {
    let service = service(&store).await;
    let heard: Arc<Mutex<Vec<u64>>> = Arc::default();
    let listening = Arc::clone(&heard);
    store.write.queue().add_listener(Arc::new(move |commit| {
        listening.lock().unwrap().extend(commit.events.iter().map(|event| event.sequence));
    }));

    let mut tasks = Vec::new();
    for number in 0..300 {
        let store = store.clone();
        tasks.push(tokio::spawn(async move {
            let email = format!("c{}@example.org", number % 200);
            store.write.change_contact(service, create_of(&email), None).await
        }));
    }
    let mut created = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(ContactAnswer::Created(contact)) => {
                created += 1;
                assert!(!contact.fields.text(Field::Email).is_empty());
            }
            Err(Error::Conflict(_)) => {}
            other => panic!("unexpected {other:?}"),
        }
    }

    assert_eq!(created, 200);
    assert_eq!(*heard.lock().unwrap(), (1..=200).collect::<Vec<u64>>());
    let events = store.read.list_events(service, 0, 500).await.unwrap();
    assert!(events.iter().zip(1..).all(|(event, number)| event.sequence == number));
    assert_eq!(store.read.list_contacts(service, all()).await.unwrap().total, 200);
}
