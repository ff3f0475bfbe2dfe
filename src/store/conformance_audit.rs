//! The audit log of every back end: each acknowledged change has one entry, refused ones have none; and the records of
//! tokens.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::json;

use super::{NOW, Store, app, create_of, enable, patch, record, service};
use crate::domain::audit::{Action, Entry, Origin, SERVER, Who};
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, ContactId, ServiceId};
use crate::domain::subscription::SigningSecret;
use crate::domain::tenancy::{Token, TokenHash};
use crate::store::Error;
use crate::store::command::{
    ContactAnswer, ContactChange, IdempotencyKey, IfMatch, SubscriptionWish,
};
use crate::store::rows::{AuditQuery, Record, ReplayFrom};

/// Runs every case, each on a store that `open` makes.
pub(super) async fn run(open: impl AsyncFn() -> Store) {
    every_change_of_a_contact_has_an_entry_and_what_is_refused_has_none(open().await).await;
    what_is_done_to_an_app_has_an_entry_and_what_is_refused_has_none(open().await).await;
    entries_say_who_and_from_where(open().await).await;
    concurrent_changes_are_numbered_without_gaps(open().await).await;
    pages_and_filters_give_the_same_entries(open().await).await;
    a_deleted_service_can_be_looked_up(open().await).await;
    what_rollcall_does_by_itself_is_its_own(open().await).await;
    uses_of_tokens_are_recorded_by_the_hour(open().await).await;
    admin_tokens_overlap(open().await).await;
    only_one_admin_token_is_the_first(open().await).await;
}

fn hash(byte: u8) -> TokenHash {
    Token::from_random(Token::APP_PREFIX, [byte; 32]).hash()
}

fn caller(byte: u8) -> Origin {
    Origin::of_token(hash(byte).id(), IpAddr::from([192, 0, 2, byte]))
}

fn query(after: u64, limit: u32) -> AuditQuery {
    AuditQuery { after, limit, ..AuditQuery::default() }
}

async fn entries(store: &Store, service: ServiceId) -> Vec<Entry> {
    let page = store.read.list_audit(service, query(0, 500)).await.unwrap().unwrap();
    assert_eq!(page.next, None);
    page.entries
}

fn actions(entries: &[Entry]) -> Vec<Action> {
    assert!(entries.iter().zip(1..).all(|(entry, number)| entry.number == number), "{entries:?}");
    assert!(entries.windows(2).all(|pair| pair[0].at <= pair[1].at), "{entries:?}");
    entries.iter().map(|entry| entry.action).collect()
}

fn disable() -> SubscriptionWish {
    SubscriptionWish::Disable { url: "https://one.example/hook".to_owned() }
}

async fn every_change_of_a_contact_has_an_entry_and_what_is_refused_has_none(store: Store) {
    let service = service(&store).await;
    let app = app(&store, service, 1).await;
    let write = &store.write;
    let nobody = ContactId::from_bytes([9; 16]);
    let key = || Some(IdempotencyKey { app, key: "k".to_owned(), request_hash: [1; 32] });

    let made = write.change_contact(service, create_of("ana@example.org"), key()).await.unwrap();
    let ContactAnswer::Created(ana) = made else { panic!("unexpected {made:?}") };
    // Repeated, taken, not there, unchanged, of another version.
    write.change_contact(service, create_of("ana@example.org"), key()).await.unwrap();
    assert!(write.change_contact(service, create_of("ana@example.org"), None).await.is_err());
    let delete = |id| ContactChange::Delete { id, if_match: IfMatch::Any };
    assert!(write.change_contact(service, delete(nobody), None).await.is_err());
    let edit = |body, if_match| ContactChange::Edit { id: ana.id, patch: patch(body), if_match };
    let same = edit(json!({"firstName": "Ana"}), IfMatch::Any);
    write.change_contact(service, same, None).await.unwrap();
    let stale = edit(json!({"firstName": "Bea"}), IfMatch::Versions(vec![7]));
    assert!(write.change_contact(service, stale, None).await.is_err());
    let renamed = edit(json!({"firstName": "Bea"}), IfMatch::Any);
    write.change_contact(service, renamed, None).await.unwrap();
    let batch = vec![create_of("bo@example.org"), delete(nobody), delete(ana.id)];
    write.change_contacts(service, batch).await.unwrap();

    let entries = entries(&store, service).await;
    let [create, edit, delete] =
        [Action::ContactCreate, Action::ContactEdit, Action::ContactDelete];
    assert_eq!(actions(&entries), [Action::AppCreate, create, edit, create, delete]);
    assert!(entries.iter().all(|entry| entry.origin == Origin::LOCAL));
    assert_eq!(entries[0].subject.token, Some(hash(1).id()));
    let events: Vec<_> = entries[1..].iter().map(|it| it.subject.sequence).collect();
    assert_eq!(events, [Some(1), Some(2), Some(3), Some(4)]);
    assert_eq!(entries[2].subject.contact, Some(ana.id));
    assert_eq!(entries[4].subject.contact, Some(ana.id));
}

async fn what_is_done_to_an_app_has_an_entry_and_what_is_refused_has_none(store: Store) {
    let service = service(&store).await;
    let app = app(&store, service, 1).await;
    let write = &store.write;
    let no_app = AppId::from_bytes([9; 16]);
    for email in ["ana@example.org", "bo@example.org"] {
        super::create(&store, service, email).await;
    }

    let set = |ticket, wish| write.set_subscription(service, app, ticket, wish);
    set(2, enable("https://one.example/hook?key=s3cret")).await.unwrap();
    assert_eq!(set(1, disable()).await, Err(Error::Superseded));
    set(3, enable("https://u:p@two.example:8443/s3cret")).await.unwrap();
    set(4, enable("https://u:p@two.example:8443/s3cret")).await.unwrap();
    let later = store.read.list_later_events(service, 1).await.unwrap();
    write.redeliver(service, app, 1, later.clone()).await.unwrap();
    assert!(write.redeliver(service, app, 99, later).await.is_err());
    write.replay(service, app, ReplayFrom::After(2)).await.unwrap();
    assert!(write.replay(service, app, ReplayFrom::After(99)).await.is_err());
    set(5, disable()).await.unwrap();
    set(6, disable()).await.unwrap();
    write.rotate_secret(service, app, SigningSecret(vec![2; 32]), NOW).await.unwrap();
    write.rotate_token(service, app, hash(2), NOW).await.unwrap();
    assert!(write.rotate_token(service, no_app, hash(3), NOW).await.is_err());
    write.delete_app(service, app).await.unwrap();
    assert!(write.delete_app(service, app).await.is_err());

    let entries = entries(&store, service).await;
    let entries = &entries[3..];
    assert_eq!(
        entries.iter().map(|entry| entry.action).collect::<Vec<_>>(),
        [
            Action::SubscriptionEnable,
            Action::SubscriptionUrl,
            Action::SubscriptionEnable,
            Action::Redeliver,
            Action::Replay,
            Action::SubscriptionDisable,
            Action::SecretRotate,
            Action::TokenRotate,
            Action::AppDelete,
        ]
    );
    let target = |at: usize| entries[at].subject.target.as_deref();
    let (one, two) = (Some("https://one.example"), Some("https://two.example:8443"));
    assert_eq!((target(0), target(1), target(5)), (one, two, two));
    assert_eq!((entries[3].subject.sequence, entries[4].subject.sequence), (Some(1), Some(2)));
    assert_eq!(entries[7].subject.token, Some(hash(2).id()));
    assert!(entries.iter().all(|entry| entry.subject.app == Some(app)));
}

async fn entries_say_who_and_from_where(store: Store) {
    let created = store.write.by(caller(7)).create_service("One".to_owned()).await.unwrap();
    let there = created.id;
    let six = Origin { from: Some("2001:db8::6".parse().unwrap()), ..caller(6) };
    let of_six = store.write.by(six);
    of_six.change_contact(there, create_of("ana@example.org"), None).await.unwrap();
    store.write.change_contact(there, create_of("bo@example.org"), None).await.unwrap();
    store.write.by(caller(7)).delete_service(there).await.unwrap();
    assert!(store.write.by(caller(7)).delete_service(there).await.is_err());

    let of_service = entries(&store, there).await;
    let of_server = entries(&store, SERVER).await;

    assert_eq!(actions(&of_service), [Action::ContactCreate; 2]);
    assert_eq!((of_service[0].origin, of_service[1].origin), (six, Origin::LOCAL));
    assert_eq!(actions(&of_server), [Action::ServiceCreate, Action::ServiceDelete]);
    let about = |entry: &Entry| (entry.origin, entry.subject.service);
    assert!(of_server.iter().all(|entry| about(entry) == (caller(7), Some(there))));
}

async fn concurrent_changes_are_numbered_without_gaps(store: Store) {
    let services = [service(&store).await, service(&store).await];
    let next = AtomicUsize::new(0);
    // Two services, three callers, so that groups hold changes of all of them.
    let one = |number: usize| {
        let (store, next) = (&store, &next);
        async move {
            let write = store.write.by(caller(u8::try_from(number % 3).unwrap()));
            for _ in 0..20 {
                let email = format!("c{}@example.org", next.fetch_add(1, Ordering::Relaxed));
                let answer = write.change_contact(services[number % 2], create_of(&email), None);
                assert!(matches!(answer.await, Ok(ContactAnswer::Created(_))));
            }
        }
    };
    tokio::join!(one(0), one(1), one(2), one(3), one(4), one(5));

    for service in services {
        let entries = entries(&store, service).await;
        assert_eq!(actions(&entries), [Action::ContactCreate; 60]);
        let events = store.read.list_events(service, 0, 500).await.unwrap();
        for event in events {
            let of_event: Vec<&Entry> = entries
                .iter()
                .filter(|entry| entry.subject.sequence == Some(event.sequence))
                .collect();
            assert_eq!(of_event.len(), 1, "{event:?}");
            assert_eq!(of_event[0].subject.contact, Some(event.contact));
        }
        for byte in 0..3 {
            let own = entries.iter().filter(|entry| entry.origin == caller(byte)).count();
            assert_eq!(own, 20);
        }
    }
}

async fn pages_and_filters_give_the_same_entries(store: Store) {
    let service = service(&store).await;
    let other = super::service(&store).await;
    let app = app(&store, service, 1).await;
    for round in 0..4 {
        let mut changes: Vec<ContactChange> =
            (0..10).map(|number| create_of(&format!("c{round}-{number}@example.org"))).collect();
        changes.extend((0..round).map(|_| create_of("c0-1@example.org")));
        let answers = store.write.change_contacts(service, changes).await.unwrap();
        let Ok(ContactAnswer::Created(first)) = &answers[0] else { panic!("{answers:?}") };
        super::delete(&store, service, first.id).await.unwrap();
        store.write.rotate_token(service, app, hash(10 + round), NOW).await.unwrap();
    }
    let all = entries(&store, service).await;
    assert_eq!(all.len(), 1 + 4 * (10 + 1 + 1));
    let ask = async |query| store.read.list_audit(service, query).await.unwrap().unwrap();

    for limit in [1, 2, 3, 7, 48] {
        let (mut paged, mut after) = (Vec::new(), 0);
        loop {
            let page = ask(query(after, limit)).await;
            assert!(page.entries.len() <= limit as usize);
            paged.extend(page.entries);
            let Some(next) = page.next else { break };
            assert!(next > after);
            after = next;
        }
        assert_eq!(paged, all, "{limit}");
    }
    for action in
        [Action::ContactCreate, Action::ContactDelete, Action::TokenRotate, Action::Replay]
    {
        let page = ask(AuditQuery { action: Some(action), ..query(0, 500) }).await;
        let expected: Vec<Entry> =
            all.iter().filter(|entry| entry.action == action).cloned().collect();
        assert_eq!(page.entries, expected, "{action:?}");
        let page = ask(AuditQuery { action: Some(action), ..query(20, 2) }).await;
        let expected: Vec<Entry> =
            expected.into_iter().filter(|it| it.number > 20).take(2).collect();
        assert_eq!(page.entries, expected, "{action:?}");
    }
    let times: Vec<Timestamp> = all.iter().map(|entry| entry.at).collect();
    let later = Timestamp::from_millis(times[48].millis() + 1);
    for since in [Timestamp::default(), times[0], times[20], times[30], times[48], later] {
        let page = ask(AuditQuery { since: Some(since), ..query(0, 500) }).await;
        let expected: Vec<Entry> = all.iter().filter(|entry| entry.at >= since).cloned().collect();
        assert_eq!(page.entries, expected, "{since}");
    }
    assert_eq!(entries(&store, other).await, []);
    let nowhere = ServiceId::from_bytes([9; 16]);
    assert_eq!(store.read.list_audit(nowhere, query(0, 1)).await.unwrap(), None);
}

async fn a_deleted_service_can_be_looked_up(store: Store) {
    let service = service(&store).await;
    let (deleting, creating) = (store.write.by(caller(1)), store.write.by(caller(2)));
    // In one group or in two: what was acknowledged has its entry.
    let (created, deleted) = tokio::join!(
        creating.change_contact(service, create_of("ana@example.org"), None),
        deleting.delete_service(service)
    );
    created.unwrap();
    deleted.unwrap();

    let entries = entries(&store, service).await;

    assert_eq!(actions(&entries), [Action::ContactCreate]);
    assert_eq!(entries[0].origin.who, Who::Token(hash(2).id()));
}

async fn what_rollcall_does_by_itself_is_its_own(store: Store) {
    let service = service(&store).await;
    let app = app(&store, service, 1).await;
    let write = store.write.by(caller(1));
    let wish = enable("https://one.example/");
    let subscription = write.set_subscription(service, app, 1, wish).await.unwrap();
    let of = |generation| Record {
        service,
        app,
        generation,
        epoch: 0,
        cursor: 0,
        bitmap: Vec::new(),
        failing: None,
        hold: Vec::new(),
        release: Vec::new(),
        exhaust: Vec::new(),
        failed: Vec::new(),
        disable: Some("the receiver answered 410 Gone".to_owned()),
    };

    record(&store, of(subscription.generation)).await.unwrap();
    assert!(record(&store, of(subscription.generation)).await.is_err());

    let entries = entries(&store, service).await;
    let last = &entries[entries.len() - 1];
    assert_eq!(actions(&entries)[1..], [Action::SubscriptionEnable, Action::SubscriptionDisable]);
    assert_eq!(last.origin, Origin::SYSTEM);
    assert_eq!(last.subject.app, Some(app));
    assert_eq!(last.subject.reason.as_deref(), Some("the receiver answered 410 Gone"));
}

async fn uses_of_tokens_are_recorded_by_the_hour(store: Store) {
    let service = service(&store).await;
    let apps = vec![app(&store, service, 1).await, app(&store, service, 2).await];
    let told = Arc::new(AtomicBool::new(false));
    let telling = Arc::clone(&told);
    store.write.queue().add_listener(Arc::new(move |commit| {
        telling.fetch_or(commit.tenancy, Ordering::SeqCst);
    }));
    let list = async || {
        let found = store.read.list_tokens(service, apps.clone(), NOW).await.unwrap();
        assert!(found.iter().all(|of_app| of_app.len() == 1), "{found:?}");
        (found[0][0], found[1][0])
    };
    let (before, _) = list().await;
    assert_eq!((before.hash, before.used_at, before.expires_at), (hash(1), None, None));
    assert!(before.created_at.is_some());

    store.write.note_token_use(hash(1));
    store.write.note_token_use(hash(9));
    // The queue has an order: when this is done, so are those.
    store.write.change_contact(service, create_of("ana@example.org"), None).await.unwrap();

    let (used, unused) = list().await;
    let hour = used.used_at.unwrap();
    assert_eq!(hour.millis() % 3_600_000, 0);
    assert!(used.created_at.unwrap().since(hour) < std::time::Duration::from_hours(2));
    assert_eq!(unused.used_at, None);
    let found = store.read.find_app_by_token(hash(1), NOW).await.unwrap().unwrap();
    assert_eq!((found.app.id, found.used_at), (apps[0], Some(hour)));
    assert!(!told.load(Ordering::SeqCst), "a use must not end what is remembered of tokens");
    assert_eq!(entries(&store, service).await.len(), 3);
}

async fn only_one_admin_token_is_the_first(store: Store) {
    let hashes: Vec<TokenHash> = (1..=8).map(hash).collect();
    let tries = hashes.iter().map(|hash| {
        let write = store.write.clone();
        async move { write.set_first_admin_token(*hash).await.unwrap() }
    });

    let stored = futures_util::future::join_all(tries).await;

    let first: Vec<TokenHash> =
        hashes.iter().zip(&stored).filter(|(_, is_first)| **is_first).map(|(it, _)| *it).collect();
    assert_eq!(first.len(), 1, "{stored:?}");
    let list = async || {
        let found = store.read.list_admin_tokens(NOW).await.unwrap();
        found.iter().map(|token| token.hash).collect::<Vec<_>>()
    };
    assert_eq!(list().await, first);
    assert_eq!(actions(&entries(&store, SERVER).await), [Action::AdminTokenSet]);
    // One that has ended does not count, and does not come back.
    store.write.rotate_admin_token(hash(9), NOW).await.unwrap();
    assert!(!store.write.set_first_admin_token(hash(10)).await.unwrap());
    assert_eq!(list().await, [hash(9)]);
}

async fn admin_tokens_overlap(store: Store) {
    let list = async |now| {
        let found = store.read.list_admin_tokens(now).await.unwrap();
        found.iter().map(|token| token.hash).collect::<Vec<_>>()
    };
    // Later than now, so that upkeep removes none meanwhile.
    let until = Timestamp::from_millis(1 << 50);
    let (sooner, later) = (until.minus(std::time::Duration::from_secs(1)), until);
    assert_eq!(list(NOW).await, []);

    store.write.set_admin_token(hash(1)).await.unwrap();
    store.write.by(caller(1)).rotate_admin_token(hash(2), later).await.unwrap();
    assert_eq!(list(sooner).await, [hash(1), hash(2)]);
    assert_eq!(list(later).await, [hash(2)]);
    store.write.rotate_admin_token(hash(3), sooner).await.unwrap();
    assert_eq!(list(sooner).await, [hash(3)]);
    store.write.set_admin_token(hash(4)).await.unwrap();
    assert_eq!(list(NOW).await, [hash(4)]);

    let entries = entries(&store, SERVER).await;
    let [set, rotate] = [Action::AdminTokenSet, Action::AdminTokenRotate];
    assert_eq!(actions(&entries), [set, rotate, rotate, set]);
    assert_eq!(entries[1].origin, caller(1));
    assert_eq!(entries[1].subject.token, Some(hash(2).id()));
}
