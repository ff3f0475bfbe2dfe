//! The feed on a real store: order, gaps, and everything that ends a wait.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::waiting::{WAITING_MAX, WAITING_OF_SERVICE_MAX};
use super::{Feed, FeedError, FeedPage, FeedQuery, Gap, WAIT_MAX, page_of};
use crate::domain::clock::SystemClock;
use crate::domain::contact::ContactPatch;
use crate::domain::id::ServiceId;
use crate::store::command::ContactChange;
use crate::store::rows::LogPage;
use crate::store::sqlite::Embedded;
use crate::store::sqlite::retention::Retention;
use crate::store::{Commit, Error};

struct World {
    directory: PathBuf,
    embedded: Embedded,
    feed: Arc<Feed>,
    stop: CancellationToken,
    service: ServiceId,
}

impl Drop for World {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

async fn world(name: &str) -> World {
    let directory =
        std::env::temp_dir().join(format!("rollcall-feed-{}-{name}", std::process::id()));
    let embedded =
        Embedded::open(&directory, Arc::new(SystemClock::new()), Retention::default()).unwrap();
    let stop = CancellationToken::new();
    let feed = Feed::new(Arc::clone(&embedded.store.read), stop.clone());
    embedded.store.write.queue().add_listener(feed.listener());
    let service = embedded.store.write.create_service("S".to_owned()).await.unwrap().id;
    World { directory, embedded, feed: Arc::new(feed), stop, service }
}

const fn query(after: u64, limit: u32, wait: Duration) -> FeedQuery {
    FeedQuery { after, limit, wait }
}

fn numbers(page: &FeedPage) -> Vec<u64> {
    page.items.iter().map(|event| event.sequence).collect()
}

/// Fails the test when it does not happen soon.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(WAIT_MAX / 2, what).await.expect("this must happen at once")
}

type Asked = JoinHandle<Result<FeedPage, FeedError>>;

impl World {
    async fn create(&self, numbers: std::ops::Range<u32>) {
        self.create_in(self.service, numbers).await;
    }

    async fn create_in(&self, service: ServiceId, numbers: std::ops::Range<u32>) {
        for number in numbers {
            let email = format!("c{number}@example.org");
            let body = json!({"firstName": "Ana", "lastName": "Ng", "email": email});
            let serde_json::Value::Object(body) = body else { unreachable!() };
            let change = ContactChange::Create(ContactPatch::from_json(body).unwrap());
            self.embedded.store.write.change_contact(service, change, None).await.unwrap();
        }
    }

    fn ask(&self, service: ServiceId, after: u64) -> Asked {
        let feed = Arc::clone(&self.feed);
        tokio::spawn(async move { feed.list(service, query(after, 50, WAIT_MAX)).await })
    }

    async fn wait_for_places(&self, places: usize) {
        soon(async {
            while self.feed.waiting.places() != places {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_follow_each_other_to_the_head() {
    let world = world("pages").await;
    world.create(0..5).await;
    let page = async |after| {
        let page = world.feed.list(world.service, query(after, 2, Duration::ZERO)).await.unwrap();
        (numbers(&page), page.next, page.newest, page.gap)
    };

    assert_eq!(page(0).await, (vec![1, 2], 2, 5, None));
    assert_eq!(page(2).await, (vec![3, 4], 4, 5, None));
    assert_eq!(page(4).await, (vec![5], 5, 5, None));
    assert_eq!(page(5).await, (vec![], 5, 5, None));
    assert_eq!(page(9).await, (vec![], 9, 5, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_kept_any_more_is_a_gap() {
    let world = world("gap").await;
    world.create(0..5).await;
    let file = rusqlite::Connection::open(world.directory.join("rollcall.db")).unwrap();
    file.execute("DELETE FROM events WHERE sequence <= 3", []).unwrap();

    let old = world.feed.list(world.service, query(1, 1, WAIT_MAX)).await.unwrap();
    let kept = world.feed.list(world.service, query(3, 1, WAIT_MAX)).await.unwrap();

    assert_eq!((numbers(&old), old.next, old.gap), (vec![4], 4, Some(Gap { from: 2, to: 3 })));
    assert_eq!((numbers(&kept), kept.gap), (vec![4], None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_ends_before_a_gap_so_that_the_next_reports_it() {
    let world = world("hole").await;
    world.create(0..4).await;
    let mut events = world.embedded.store.read.list_events(world.service, 0, 9).await.unwrap();
    events.remove(2);

    let page = page_of(0, LogPage { events: events.clone(), newest: 4 });
    let next = page_of(page.next, LogPage { events: events.split_off(2), newest: 4 });

    assert_eq!((numbers(&page), page.next, page.gap), (vec![1, 2], 2, None));
    assert_eq!((numbers(&next), next.gap), (vec![4], Some(Gap { from: 3, to: 3 })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_ends_the_wait_of_its_service_and_no_other() {
    let world = world("commit").await;
    let other = world.embedded.store.write.create_service("T".to_owned()).await.unwrap().id;
    world.create(0..2).await;
    let here = world.ask(world.service, 2);
    let elsewhere = world.ask(other, 0);
    world.wait_for_places(2).await;

    world.create(2..3).await;

    let page = soon(here).await.unwrap().unwrap();
    assert_eq!((numbers(&page), page.next, page.newest), (vec![3], 3, 3));
    world.wait_for_places(1).await;
    assert!(!elsewhere.is_finished());
    elsewhere.abort();
    world.wait_for_places(0).await;
    assert_eq!(world.feed.waiting.services(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_beyond_the_head_waits_until_the_log_has_passed_it() {
    let world = world("beyond").await;
    let asked = world.ask(world.service, 3);
    world.wait_for_places(1).await;

    world.create(0..3).await;
    assert!(!asked.is_finished());
    world.create(3..4).await;

    assert_eq!(numbers(&soon(asked).await.unwrap().unwrap()), [4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn time_and_the_end_of_the_server_end_a_wait_with_an_empty_page() {
    let world = world("stop").await;
    world.create(0..1).await;
    let short = query(1, 50, Duration::from_millis(20));

    let late = soon(world.feed.list(world.service, short)).await.unwrap();
    let asked = world.ask(world.service, 1);
    world.wait_for_places(1).await;
    world.stop.cancel();
    let stopped = soon(asked).await.unwrap().unwrap();

    assert_eq!((numbers(&late), late.next, late.newest), (vec![], 1, 1));
    assert_eq!(stopped, late);
    assert_eq!(soon(world.ask(world.service, 1)).await.unwrap().unwrap(), late);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_a_service_that_goes_away_are_told() {
    let world = world("hidden").await;
    let asked = world.ask(world.service, 0);
    world.wait_for_places(1).await;

    world.embedded.store.write.delete_service(world.service).await.unwrap();

    assert_eq!(soon(asked).await.unwrap(), Err(FeedError::Store(Error::NotFound)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_opened_again_is_read_again_and_waited_for() {
    let world = world("reopened").await;
    let asked = world.ask(world.service, 0);
    world.wait_for_places(1).await;

    let reopened = Commit { reopened: true, ..Commit::default() };
    world.embedded.store.write.queue().tell(&reopened);
    world.create(0..1).await;

    assert_eq!(numbers(&soon(asked).await.unwrap().unwrap()), [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_log_that_went_back_waits_for_its_new_end() {
    let world = world("back").await;
    let asked = world.ask(world.service, 0);
    world.wait_for_places(1).await;
    let queue = world.embedded.store.write.queue();

    // Another node told of an event that was not there any more when it was read.
    queue.tell(&Commit { heads: vec![(world.service, 5)], ..Commit::default() });
    queue.tell(&Commit { reopened: true, went_back: true, ..Commit::default() });
    world.create(0..1).await;

    assert_eq!(numbers(&soon(asked).await.unwrap().unwrap()), [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn places_are_limited_for_a_service_and_in_total() {
    let world = world("limit").await;
    let mut services = vec![world.service];
    for _ in 0..4 {
        let made = world.embedded.store.write.create_service("T".to_owned()).await.unwrap();
        services.push(made.id);
    }
    let fill = |service| (0..WAITING_OF_SERVICE_MAX).map(move |_| service);
    let ask = |service| world.ask(service, 0);
    let mut asked: Vec<Asked> = fill(services[0]).map(ask).collect();
    world.wait_for_places(WAITING_OF_SERVICE_MAX).await;

    let of_service = soon(world.ask(services[0], 0)).await.unwrap();
    asked.extend(services[1..4].iter().flat_map(|service| fill(*service)).map(ask));
    world.wait_for_places(WAITING_MAX).await;
    let in_total = soon(world.ask(services[4], 0)).await.unwrap();
    world.create_in(services[4], 0..1).await;
    let without_wait = soon(world.ask(services[4], 0)).await.unwrap().unwrap();

    assert_eq!(of_service, Err(FeedError::TooManyWaiting));
    assert_eq!(in_total, Err(FeedError::TooManyWaiting));
    assert_eq!(numbers(&without_wait), [1]);
    world.stop.cancel();
    for asked in asked {
        assert!(soon(asked).await.unwrap().unwrap().items.is_empty());
    }
    assert_eq!((world.feed.waiting.places(), world.feed.waiting.services()), (0, 0));
}
