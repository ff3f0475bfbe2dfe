//! Nodes that hear each other, on the real database: with hints, and by comparing alone.

#![expect(clippy::print_stdout, reason = "one of the tests measures")]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Found, Hints, Known, Settings};
use crate::domain::clock::Timestamp;
use crate::domain::contact::ContactPatch;
use crate::domain::id::{AppId, ServiceId};
use crate::domain::shard::{Shard, shard_of};
use crate::domain::subscription::SigningSecret;
use crate::domain::tenancy::{Scopes, Token};
use crate::store::command::{ContactChange, NewApp, SubscriptionWish};
use crate::store::postgres::test_database::TestDatabase;
use crate::store::postgres::tests::options;
use crate::store::postgres::{Options, Postgres};
use crate::store::rows::ReplayFrom;
use crate::store::{Commit, Store};

/// What a node was told, and when.
#[derive(Debug)]
struct Told {
    at: Instant,
    elsewhere: bool,
    events: Vec<u64>,
    heads: Vec<(ServiceId, u64)>,
    subscriptions: Vec<(ServiceId, AppId)>,
    again: Vec<(ServiceId, AppId)>,
    hidden: Vec<ServiceId>,
    lost: Vec<Shard>,
    gained: Vec<Shard>,
    tenancy: bool,
    went_back: bool,
}

struct Node {
    postgres: Postgres,
    hints: Option<Hints>,
    told: Arc<Mutex<Vec<Told>>>,
}

impl Node {
    async fn start(database: &TestDatabase, options: &Options, hears: bool) -> Self {
        let postgres = Postgres::open(&database.target, options.clone()).await.unwrap();
        Shard::all().for_each(|shard| postgres.ownership.gain(shard, 0));
        let told: Arc<Mutex<Vec<Told>>> = Arc::default();
        let noted = Arc::clone(&told);
        postgres.queue.add_listener(Arc::new(move |commit: &Commit| {
            noted.lock().unwrap().push(Told {
                at: Instant::now(),
                elsewhere: commit.elsewhere,
                events: commit.events.iter().map(|event| event.sequence).collect(),
                heads: commit.heads.clone(),
                subscriptions: commit.subscriptions.clone(),
                again: commit.again.clone(),
                hidden: commit.hidden.clone(),
                lost: commit.lost.clone(),
                gained: commit.gained.clone(),
                tenancy: commit.tenancy,
                went_back: commit.went_back,
            });
        }));
        let mut node = Self { postgres, hints: None, told };
        if hears {
            node.hints = Some(Hints::start(node.settings(database)).unwrap());
        }
        node
    }

    fn settings(&self, database: &TestDatabase) -> Settings {
        Settings {
            target: database.target.clone(),
            queue: Arc::clone(&self.postgres.queue),
            ownership: Arc::clone(&self.postgres.ownership),
        }
    }

    fn store(&self) -> &Store {
        &self.postgres.store
    }

    /// Waits for something that another node did to be told.
    async fn until(
        &self,
        what: &str,
        patience: Duration,
        is_it: impl Fn(&Told) -> bool,
    ) -> Instant {
        let end = Instant::now() + patience;
        let found = || {
            let told = self.told.lock().unwrap();
            told.iter().find(|told| told.elsewhere && is_it(told)).map(|told| told.at)
        };
        loop {
            if let Some(at) = found() {
                return at;
            }
            assert!(Instant::now() < end, "{what}: {:?}", self.told.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn app(&self, service: ServiceId, token: u8) -> AppId {
        let new = NewApp {
            service,
            name: "App".to_owned(),
            scopes: Scopes::all(),
            token: Token::from_random(Token::APP_PREFIX, [token; 32]).hash(),
            secret: SigningSecret(vec![token; 32]),
        };
        self.store().write.create_app(new).await.unwrap().id
    }

    async fn create(&self, service: ServiceId, email: &str) {
        let body = json!({"firstName": "Ana", "lastName": "Ng", "email": email});
        let serde_json::Value::Object(body) = body else { unreachable!() };
        let change = ContactChange::Create(ContactPatch::from_json(body).unwrap());
        self.store().write.change_contact(service, change, None).await.unwrap();
    }

    async fn subscribe(&self, service: ServiceId, app: AppId) {
        let ticket = self.store().write.take_ticket().await.unwrap();
        let url = "https://receiver.example/".to_owned();
        let wish = SubscriptionWish::Enable { url, verified_at: Timestamp::default() };
        self.store().write.set_subscription(service, app, ticket, wish).await.unwrap();
    }

    async fn close(self) {
        if let Some(hints) = self.hints {
            assert!(hints.is_running());
            hints.stop().await;
        }
        self.postgres.close().await;
    }
}

/// What a hint may take, on a machine that is busy with other tests; the last test measures.
const SOON: Duration = Duration::from_secs(10);
/// A lost hint is found by the second comparison at the latest.
const COMPARED: Duration = Duration::from_secs(10);

async fn pair(hints: bool) -> (TestDatabase, Node, Node) {
    let database = TestDatabase::new().await;
    let options = options();
    let here = Node::start(&database, &options, true).await;
    let there = Node::start(&database, &options, hints).await;
    (database, here, there)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hint_tells_everything_that_another_node_committed() {
    let (_database, here, there) = pair(true).await;
    let service = there.store().write.create_service("S".to_owned()).await.unwrap().id;
    let app = there.app(service, 1).await;
    let other = there.app(service, 2).await;
    there.create(service, "a@e.example").await;
    here.until("the first event", SOON, |told| told.heads == [(service, 1)]).await;
    there.create(service, "b@e.example").await;
    // Once the log is known its events come along.
    here.until("the event itself", SOON, |told| told.events == [2]).await;
    here.until("tenancy", SOON, |told| told.tenancy).await;

    let foreign = shard_of(other);
    here.postgres.ownership.lose(foreign);
    there.subscribe(service, other).await;
    there.subscribe(service, app).await;
    let key = (service, app);
    here.until("the subscription", SOON, |told| told.subscriptions == [key]).await;
    let heard =
        |told: &[Told]| told.iter().any(|told| told.subscriptions.contains(&(service, other)));
    assert_eq!(heard(&here.told.lock().unwrap()), foreign == shard_of(app));
    there.store().write.replay(service, app, ReplayFrom::After(0)).await.unwrap();
    here.until("the replay", SOON, |told| told.again == [key]).await;
    there.store().write.delete_service(service).await.unwrap();
    here.until("the end of the service", SOON, |told| told.hidden == [service]).await;

    // Everything was told, so comparing finds nothing. Nor does it on the node that did it.
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    for node in [&here, &there] {
        let told = std::mem::take(&mut *node.told.lock().unwrap());
        assert!(told.iter().all(|told| told.lost.is_empty()), "{told:?}");
        if std::ptr::eq(node, &there) {
            assert!(told.iter().all(|told| !told.elsewhere || !told.tenancy), "{told:?}");
        }
    }
    here.close().await;
    there.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn comparing_finds_what_no_hint_has_told() {
    // The other node tells nobody.
    let (_database, here, there) = pair(false).await;
    let service = there.store().write.create_service("S".to_owned()).await.unwrap().id;
    let app = there.app(service, 1).await;
    here.until("tenancy", COMPARED, |told| told.tenancy).await;
    there.create(service, "a@e.example").await;
    here.until("the head", COMPARED, |told| told.heads == [(service, 1)]).await;
    there.create(service, "b@e.example").await;
    there.create(service, "c@e.example").await;
    here.until("the events", COMPARED, |told| told.events.ends_with(&[3])).await;

    there.subscribe(service, app).await;

    // It does not say which, so the shard is built anew.
    let shard = shard_of(app);
    here.until("the shard", COMPARED, |told| told.lost == [shard] && told.gained == [shard]).await;
    there.store().write.delete_service(service).await.unwrap();
    here.until("the end of the service", COMPARED, |told| told.hidden == [service]).await;
    here.close().await;
    there.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_connections_were_cut_hears_again_and_forgets_tokens_meanwhile() {
    let (database, here, there) = pair(true).await;
    let service = there.store().write.create_service("S".to_owned()).await.unwrap().id;
    there.create(service, "a@e.example").await;
    here.until("the first event", SOON, |told| told.heads == [(service, 1)]).await;
    here.told.lock().unwrap().clear();

    let client = database.target.connect_plain().await.unwrap();
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid()";
    assert!(!client.query(sql, &[]).await.unwrap().is_empty());
    drop(client);

    here.until("remembered tokens are asked for again", SOON, |told| told.tenancy).await;
    there.create(service, "b@e.example").await;
    here.until("the next event", SOON, |told| told.heads == [(service, 2)]).await;
    here.close().await;
    there.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_database_went_back_the_same_numbers_are_heard_again() {
    let (database, here, there) = pair(true).await;
    let service = there.store().write.create_service("S".to_owned()).await.unwrap().id;
    for number in 1..=3 {
        there.create(service, &format!("c{number}@e.example")).await;
    }
    here.until("the log", SOON, |told| told.heads == [(service, 3)]).await;

    let client = database.target.connect_plain().await.unwrap();
    let back = "DELETE FROM events WHERE sequence > 1; UPDATE rolls SET head = 1; \
         DELETE FROM contacts WHERE email <> 'c1@e.example'; TRUNCATE eras; \
         SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid()";
    client.batch_execute(back).await.unwrap();
    let end = Instant::now() + SOON;
    while !here.told.lock().unwrap().iter().any(|told| told.went_back && told.lost.len() == 64) {
        assert!(Instant::now() < end, "{:?}", here.told.lock().unwrap());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    let lower = |told: &Told| told.heads == [(service, 1)];
    here.until("the lower head", SOON, lower).await;
    here.told.lock().unwrap().clear();
    there.create(service, "d2@e.example").await;
    here.until("the second number again", SOON, |told| told.events == [2]).await;
    here.close().await;
    there.close().await;
}

/// A lane on another node hears within 50 ms of a commit: this is the way up to it. Shown with `--nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_is_heard_on_another_node_within_milliseconds() {
    const EVENTS: u64 = 200;
    let (_database, here, there) = pair(true).await;
    let service = there.store().write.create_service("S".to_owned()).await.unwrap().id;
    there.create(service, "first@e.example").await;
    here.until("the first event", SOON, |told| told.heads == [(service, 1)]).await;

    let mut waits = Vec::new();
    for number in 2..=EVENTS {
        there.create(service, &format!("c{number}@e.example")).await;
        let committed = Instant::now();
        let heard = here.until("the event", SOON, |told| told.events.contains(&number)).await;
        waits.push(heard.saturating_duration_since(committed));
    }

    waits.sort_unstable();
    let (median, most) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    println!(
        "heard after {median:?} (median), {:?} (99 %), {most:?} (most)",
        waits[waits.len() * 99 / 100]
    );
    // Without a hint it would be half a second.
    assert!(median < Duration::from_millis(50), "{median:?}");
    here.close().await;
    there.close().await;
}

#[test]
fn a_count_that_is_explained_a_moment_later_is_no_change_and_one_that_is_not_is() {
    let shard = Shard::from_number(5).unwrap();
    let found = |count| Found {
        heads: std::collections::HashMap::new(),
        tenancy: 0,
        shards: [(shard, count)].into(),
    };
    let mut known = Known::default();
    let compare = |known: &mut Known, count: u64| {
        let expected = (known.tenancy, known.shards.clone());
        known.compare_counts(&found(count), &expected).1
    };
    assert_eq!(compare(&mut known, 7), []);
    // Seen in the table before it is told.
    assert_eq!(compare(&mut known, 8), []);
    *known.shards.get_mut(&shard).unwrap() += 1;
    assert_eq!(compare(&mut known, 8), []);
    // Never told.
    assert_eq!(compare(&mut known, 9), []);
    assert_eq!(compare(&mut known, 9), [shard]);
    assert_eq!(compare(&mut known, 9), []);
    // Told although it was not counted: the next one must not be taken for explained.
    *known.shards.get_mut(&shard).unwrap() += 1;
    assert_eq!(compare(&mut known, 9), []);
    assert_eq!(compare(&mut known, 10), []);
    assert_eq!(compare(&mut known, 10), [shard]);
}
