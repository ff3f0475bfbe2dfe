//! What the engine does when shards come and go, and when the node's lease ends.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use super::{Signed, World, world, world_under};
use crate::delivery::engine::{Engine, Settings};
use crate::delivery::lane;
use crate::delivery::sender::{self, Sender};
use crate::delivery::target_guard::{Settings as GuardSettings, SystemResolver, TargetGuard};
use crate::domain::clock::{Clock, SystemClock, Timestamp};
use crate::domain::event::{Event, EventKind};
use crate::domain::id::{ContactId, EventId};
use crate::domain::lease::Lease;
use crate::domain::shard::{Shard, shard_of};
use crate::store::queue::{Queue, Write};
use crate::store::rows::SubscriptionStatus;
use crate::store::{Commit, Store};

/// Far longer than any of these tests.
const LONG: Duration = Duration::from_hours(1);
const SOON: Duration = Duration::from_secs(10);

fn lease() -> Lease {
    let lease = Lease::not_yet();
    let now = SystemClock::new().moment();
    lease.extend_to(now.plus(LONG), now);
    lease
}

impl World {
    async fn next(&mut self) -> Signed {
        tokio::time::timeout(SOON, self.signed.recv()).await.unwrap().unwrap()
    }

    fn tell(&self, commit: &Commit) {
        self.store.write.queue().tell(commit);
    }

    fn shard(&self) -> Shard {
        shard_of(self.app)
    }

    async fn standing(&self) -> SubscriptionStatus {
        self.store.read.get_subscription_status(self.service, self.app).await.unwrap()
    }

    fn has_lane(&self) -> bool {
        self.engine.lane_state(self.service, self.app).is_some()
    }

    async fn until(&self, what: &str, reached: impl AsyncFn(&Self) -> bool) {
        let end = Instant::now() + SOON;
        while !reached(self).await {
            assert!(Instant::now() < end, "{what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_shard_stops_at_once_and_what_was_in_flight_is_neither_delivered_nor_failed() {
    let mut world = world_under("lost", lease()).await;
    world.set(true).await;
    world.status.store(0, Ordering::SeqCst);
    world.create("a@e.example").await;
    assert_eq!(world.next().await.attempt, "1");

    world.read.owned.store(false, Ordering::SeqCst);
    let began = Instant::now();
    world.tell(&Commit { lost: vec![world.shard()], ..Commit::default() });

    world.until("the lane is forgotten", async |world| !world.has_lane()).await;
    // Far less than the request may take, although the receiver never answers.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    world.create("b@e.example").await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(world.signed.try_recv().is_err());
    let standing = world.standing().await;
    assert_eq!((standing.cursor, standing.held, standing.failing), (0, 0, None));

    world.status.store(200, Ordering::SeqCst);
    world.read.owned.store(true, Ordering::SeqCst);
    let loads = world.read.lanes_found.load(Ordering::SeqCst);
    world.tell(&Commit { gained: vec![world.shard()], ..Commit::default() });

    // No retry was used up, and one read was enough for all lanes.
    assert_eq!(world.next().await.attempt, "1");
    world.until("both are recorded", async |world| world.standing().await.cursor == 2).await;
    assert_eq!(world.read.lanes_found.load(Ordering::SeqCst), loads);
    world.engine.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_went_back_is_sent_as_it_is_then() {
    let mut world = world_under("back", lease()).await;
    world.set(true).await;
    world.status.store(0, Ordering::SeqCst);
    let gone = |sequence| {
        Arc::new(Event {
            service: world.service,
            sequence,
            id: EventId::from_bytes([9; 16]),
            contact: ContactId::from_bytes([9; 16]),
            kind: EventKind::Create,
            contact_version: sequence,
            full_name: "G".to_owned(),
            at: Timestamp::from_millis(0),
        })
    };
    let events = vec![gone(1), gone(2), gone(3)];
    world.tell(&Commit { events, elsewhere: true, ..Commit::default() });
    let first = world.next().await;
    assert_eq!(first.id, EventId::from_bytes([9; 16]).to_string());

    // Its end is gone before anything of it was recorded.
    let (lost, gained) = (vec![world.shard()], vec![world.shard()]);
    world.tell(&Commit { reopened: true, went_back: true, lost, gained, ..Commit::default() });
    world.status.store(200, Ordering::SeqCst);
    world.create("a@e.example").await;
    world.create("b@e.example").await;

    let log = world.store.read.list_events(world.service, 0, 10).await.unwrap();
    let mut sent = [world.next().await.id, world.next().await.id];
    sent.sort_unstable();
    assert_eq!(sent, [log[0].id.to_string(), log[1].id.to_string()]);
    world.until("both are recorded", async |world| world.standing().await.cursor == 2).await;
    world.engine.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_lease_aborts_attempts_and_nothing_starts_before_it_begins_anew() {
    let lease = lease();
    let mut world = world_under("lease", lease.clone()).await;
    world.set(true).await;
    world.create("a@e.example").await;
    world.next().await;
    world.until("the first is recorded", async |world| world.standing().await.cursor == 1).await;
    world.status.store(0, Ordering::SeqCst);
    world.create("b@e.example").await;
    assert_eq!(world.next().await.attempt, "1");

    lease.end();

    // Told by nobody: the lane finds out by itself, tries once a second, and counts nothing.
    world.status.store(200, Ordering::SeqCst);
    world.create("c@e.example").await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert!(world.signed.try_recv().is_err());
    let standing = world.standing().await;
    assert_eq!((standing.cursor, standing.held, standing.failing), (1, 0, None));

    let now = world.clock.moment();
    lease.extend_to(now.plus(LONG), now);
    assert_eq!(world.next().await.attempt, "1");
    world.until("all are recorded", async |world| world.standing().await.cursor == 3).await;
    world.engine.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_is_drained_before_it_is_handed_over_and_can_come_back() {
    let mut world = world_under("drain", lease()).await;
    world.set(true).await;
    world.status.store(0, Ordering::SeqCst);
    let contact = world.create("a@e.example").await;
    world.next().await;
    let (status, shard) = (Arc::clone(&world.status), world.shard());
    let answering = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        status.store(200, Ordering::SeqCst);
    });

    let began = Instant::now();
    world.engine.drain_shards(&[shard]).await;

    assert!(began.elapsed() >= Duration::from_millis(250));
    answering.await.unwrap();
    assert_eq!(world.standing().await.cursor, 1);
    assert!(!world.has_lane());
    // Whatever is built in it before it is handed over starts nothing either.
    world.edit(contact, "t".to_owned()).await;
    world.set(true).await;
    world.create("b@e.example").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(world.signed.try_recv().is_err());

    world.tell(&Commit { lost: vec![shard], ..Commit::default() });
    world.until("the lane is forgotten", async |world| !world.has_lane()).await;
    world.tell(&Commit { gained: vec![shard], ..Commit::default() });
    world.next().await;
    world.until("all are recorded", async |world| world.standing().await.cursor == 3).await;
    world.engine.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_is_given_up_leaves_lanes_that_a_gain_replaces() {
    let mut world = world_under("undrained", lease()).await;
    world.set(true).await;
    world.status.store(0, Ordering::SeqCst);
    world.create("a@e.example").await;
    world.next().await;
    let shard = world.shard();

    let short = Duration::from_millis(100);
    assert!(tokio::time::timeout(short, world.engine.drain_shards(&[shard])).await.is_err());
    world.status.store(200, Ordering::SeqCst);
    world.tell(&Commit { lost: vec![shard], gained: vec![shard], ..Commit::default() });

    // Answered or aborted, that is a race; then it goes on.
    world.create("b@e.example").await;
    world.until("all are recorded", async |world| world.standing().await.cursor == 2).await;
    world.engine.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_whose_record_is_under_way_is_not_built_from_a_row_that_lacks_it() {
    let mut world = world_under("recording", lease()).await;
    world.set(true).await;
    world.status.store(0, Ordering::SeqCst);
    world.create("a@e.example").await;
    world.next().await;
    // The writer stands still behind this commit, as with a database that hangs.
    let (go_on, waiting) = mpsc::sync_channel::<()>(1);
    let waiting = Mutex::new(waiting);
    let stands = Arc::new(AtomicBool::new(false));
    let standing = Arc::clone(&stands);
    world.store.write.queue().add_listener(Arc::new(move |commit| {
        if commit.tenancy && !standing.swap(true, Ordering::SeqCst) {
            waiting.lock().unwrap().recv().unwrap();
        }
    }));
    let write = world.store.write.clone();
    let blocking = tokio::spawn(async move { write.create_service("T".to_owned()).await });
    world.until("the writer stands", async |_| stands.load(Ordering::SeqCst)).await;
    world.status.store(200, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(200)).await;

    let shard = world.shard();
    world.tell(&Commit { lost: vec![shard], gained: vec![shard], ..Commit::default() });

    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(world.signed.try_recv().is_err(), "sent again although it was delivered");
    go_on.send(()).unwrap();
    blocking.await.unwrap().unwrap();
    world.until("it is recorded", async |world| world.standing().await.cursor == 1).await;
    world.create("b@e.example").await;
    world.next().await;
    world.until("all are recorded", async |world| world.standing().await.cursor == 2).await;
    assert!(world.signed.try_recv().is_err());
    world.engine.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_grew_elsewhere_wakes_its_lanes() {
    let mut world = world("heads").await;
    world.set(true).await;
    world.engine.stop(Duration::ZERO).await;
    // Its own queue: commits of the store's writer are those of another node.
    let queue: Arc<Queue> = Arc::default();
    let store = Store {
        read: Arc::clone(&world.store.read),
        write: Write::new(Arc::clone(&queue), 0),
        conditions: None,
    };
    let guard = GuardSettings {
        allow_targets: vec!["127.0.0.0/8".parse().unwrap()],
        allow_http: true,
        ..GuardSettings::default()
    };
    let guard = Arc::new(TargetGuard::new(guard, SystemResolver::new()));
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let sender = Sender::new(&sender::Settings::default(), guard, Arc::clone(&clock)).unwrap();
    let settings = Settings { lane: lane::Settings::default(), slots: 64 };
    let engine = Engine::start(store, Arc::new(sender), clock, settings).await.unwrap();
    world.create("a@e.example").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(world.signed.try_recv().is_err());

    queue.tell(&Commit { heads: vec![(world.service, 1)], ..Commit::default() });

    world.next().await;
    engine.stop(Duration::ZERO).await;
}
