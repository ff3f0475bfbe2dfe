//! Several nodes on the real database: they share the shards, take over from one that is cut off, and hand over in peace.

#![expect(clippy::print_stdout, reason = "a story with its times")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use super::{CLAIM, Keeper, Keeping, OBSERVATION};
use crate::domain::clock::{Clock, SystemClock};
use crate::domain::lease::Lease;
use crate::domain::shard::{SHARDS, Shard};
use crate::store::Commit;
use crate::store::postgres::connect::Target;
use crate::store::postgres::node_list;
use crate::store::postgres::ownership::Ownership;
use crate::store::postgres::test_database::TestDatabase;
use crate::store::queue::Queue;

/// What is promised for a node that is gone.
const TAKEN_OVER: Duration = Duration::from_secs(20);
/// A rebalance: heartbeats of both sides and a drain.
const REBALANCED: Duration = Duration::from_secs(20);
/// How long a drain takes here.
const DRAIN: Duration = Duration::from_millis(100);

struct Node {
    keeper: Keeper,
    seen: Arc<Seen>,
}

/// What can be seen of a node from outside.
struct Seen {
    ownership: Arc<Ownership>,
    lease: Lease,
    clock: Arc<dyn Clock>,
    /// As it was told through the queue.
    told: Mutex<BTreeSet<Shard>>,
    drains: AtomicUsize,
}

impl Seen {
    /// Shards that this node may work on now.
    fn live(&self) -> BTreeSet<Shard> {
        let over = || self.lease.is_over(self.clock.moment());
        let owned: BTreeSet<Shard> = self.ownership.all().into_keys().collect();
        // After the look at the shards: a lease that has ended since ends them too.
        if over() { BTreeSet::new() } else { owned }
    }
}

fn start(target: Target, name: &str) -> Node {
    let lease = Lease::not_yet();
    let (queue, ownership) = (Arc::<Queue>::default(), Arc::new(Ownership::new(lease.clone())));
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let seen = Arc::new(Seen {
        ownership: Arc::clone(&ownership),
        lease: lease.clone(),
        clock: Arc::clone(&clock),
        told: Mutex::default(),
        drains: AtomicUsize::new(0),
    });
    let told = Arc::clone(&seen);
    queue.add_listener(Arc::new(move |commit: &Commit| {
        let mut shards = told.told.lock().unwrap();
        shards.retain(|shard| !commit.lost.contains(shard));
        shards.extend(&commit.gained);
    }));
    let draining = Arc::clone(&seen);
    let drain = Arc::new(move |_: Vec<Shard>| {
        draining.drains.fetch_add(1, Ordering::SeqCst);
        Box::pin(tokio::time::sleep(DRAIN)) as _
    });
    let name = name.to_owned();
    let keeper =
        Keeper::start(Keeping { target, name, queue, clock, ownership, entered: None, drain })
            .unwrap();
    Node { keeper, seen }
}

/// A way to the database that can be cut in silence: nothing is refused, nothing arrives.
async fn silent_proxy(upstream: String, silent: Arc<AtomicBool>) -> u16 {
    async fn pass(
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        silent: Arc<AtomicBool>,
    ) {
        let mut buffer = vec![0; 65_536];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            while silent.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if to.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&upstream).await.unwrap();
            let ((from_client, to_client), (from_server, to_server)) =
                (client.into_split(), server.into_split());
            tokio::spawn(pass(from_client, to_server, Arc::clone(&silent)));
            tokio::spawn(pass(from_server, to_client, Arc::clone(&silent)));
        }
    });
    port
}

async fn until(what: &str, patience: Duration, reached: impl Fn() -> bool) -> Duration {
    let began = Instant::now();
    while !reached() {
        assert!(began.elapsed() < patience, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    began.elapsed()
}

/// A way to this database through a [`silent_proxy`], and what silences it.
async fn way_to(database: &TestDatabase) -> (Target, Arc<AtomicBool>) {
    let silent = Arc::new(AtomicBool::new(false));
    let host = database.url.split('@').nth(1).unwrap().split('/').next().unwrap().to_owned();
    let port = silent_proxy(host.clone(), Arc::clone(&silent)).await;
    let through = database.url.replace(&host, &format!("127.0.0.1:{port}"));
    (Target::parse(&through).unwrap(), silent)
}

/// All shards are had, each once, and the numbers differ by one at most.
fn shared_evenly(nodes: &[&Seen]) -> bool {
    let live: Vec<BTreeSet<Shard>> = nodes.iter().map(|node| node.live()).collect();
    let all: BTreeSet<Shard> = live.iter().flatten().copied().collect();
    let counts: Vec<usize> = live.iter().map(BTreeSet::len).collect();
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    all.len() == usize::from(SHARDS)
        && counts.iter().sum::<usize>() == all.len()
        && most - least < 2
}

/// Watches until the end that no shard is had by two at once.
fn watch(nodes: Vec<Arc<Seen>>, end: Arc<AtomicBool>) -> std::thread::JoinHandle<Vec<String>> {
    std::thread::spawn(move || {
        let mut faults = Vec::new();
        while !end.load(Ordering::SeqCst) {
            // One after the other, so a shard that changes hands in between may be seen twice: looked at again.
            let both = |first: &Seen, second: &Seen| -> BTreeSet<Shard> {
                first.live().intersection(&second.live()).copied().collect()
            };
            for (at, first) in nodes.iter().enumerate() {
                for second in &nodes[at + 1..] {
                    let twice = both(first, second);
                    let again = both(first, second);
                    faults.extend(twice.intersection(&again).map(|shard| format!("shard {shard}")));
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        faults
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_share_the_shards_take_over_from_one_that_is_cut_off_and_hand_over_in_peace() {
    let database = TestDatabase::new().await;
    let (through, silent) = way_to(&database).await;

    let first = start(database.target.clone(), "first");
    let alone = [&*first.seen];
    let had = until("one has all", REBALANCED, || shared_evenly(&alone)).await;
    let second = start(database.target.clone(), "second");
    let third = start(through, "third");
    let (a, b, c) = (&*first.seen, &*second.seen, &*third.seen);
    let end = Arc::new(AtomicBool::new(false));
    let all = [&first, &second, &third].map(|node| Arc::clone(&node.seen));
    let watching = watch(all.to_vec(), Arc::clone(&end));
    let joined = until("three share", REBALANCED, || shared_evenly(&[a, b, c])).await;
    // Each shard that changed hands was drained.
    assert!(a.drains.load(Ordering::SeqCst) >= 42, "{:?}", a.drains);

    silent.store(true, Ordering::SeqCst);
    let taken = until("two share", TAKEN_OVER, || shared_evenly(&[a, b])).await;
    // It gave up by itself, without hearing anything, and told those who send.
    assert!(c.lease.is_over(c.clock.moment()));
    assert_eq!((c.live().len(), c.told.lock().unwrap().len()), (0, 0));

    silent.store(false, Ordering::SeqCst);
    let back = until("three share again", REBALANCED, || shared_evenly(&[a, b, c])).await;

    let began = Instant::now();
    tokio::task::spawn_blocking(move || first.keeper.stop()).await.unwrap();
    let stopped = began.elapsed();
    let left = until("the others have all", REBALANCED, || shared_evenly(&[b, c])).await;
    for node in [b, c] {
        assert_eq!(*node.told.lock().unwrap(), node.live());
    }
    let client = database.target.connect(|_| ()).await.unwrap();
    let listed = node_list::list_nodes(&client).await.unwrap();
    let names: Vec<&str> = listed.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["second", "third"]);
    assert_eq!(listed.iter().map(|node| node.shards.len()).sum::<usize>(), usize::from(SHARDS));
    drop(client);
    end.store(true, Ordering::SeqCst);
    assert_eq!(watching.join().unwrap(), [""; 0]);
    println!(
        "one has all after {had:?}, three share after {joined:?}, taken over after {taken:?}, shared again after {back:?}, \
         stopped in {stopped:?}, all handed over after {left:?}"
    );
    for node in [second, third] {
        tokio::task::spawn_blocking(move || node.keeper.stop()).await.unwrap();
    }
}

/// As PostgreSQL leaves it after a crash: sessions are ended, and what is not logged is gone.
async fn crash(database: &TestDatabase) {
    let client = database.target.connect_plain().await.unwrap();
    let sql = "TRUNCATE eras; SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid()";
    client.batch_execute(sql).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_new_era_nobody_has_a_shard_until_every_lease_of_before_is_over() {
    let database = TestDatabase::new().await;
    let (through, silent) = way_to(&database).await;
    let first = start(database.target.clone(), "first");
    let second = start(database.target.clone(), "second");
    let cut_off = start(through, "cut off");
    let (a, b, c) = (&*first.seen, &*second.seen, &*cut_off.seen);
    until("three share", REBALANCED, || shared_evenly(&[a, b, c])).await;
    let before = a.ownership.all();
    let end = Arc::new(AtomicBool::new(false));
    let all = [&first, &second, &cut_off].map(|node| Arc::clone(&node.seen));
    let watching = watch(all.to_vec(), Arc::clone(&end));

    // It hears of nothing, and goes on for as long as its lease lasts.
    silent.store(true, Ordering::SeqCst);
    crash(&database).await;
    let began = Instant::now();
    let stopped =
        until("both have none", REBALANCED, || a.live().is_empty() && b.live().is_empty()).await;
    assert!(!c.live().is_empty(), "the one that is cut off has stopped already");
    let shared = until("two share", TAKEN_OVER, || shared_evenly(&[a, b])).await;

    assert!(began.elapsed() >= OBSERVATION, "{shared:?}");
    assert!(c.live().is_empty());
    let after = a.ownership.all();
    assert!(after.values().all(|epoch| *epoch >= 1_000_000), "{before:?} {after:?}");
    assert_eq!(*a.told.lock().unwrap(), a.live());
    // Who comes now need not wait, also not the one from before.
    let came = Instant::now();
    let late = start(database.target.clone(), "late");
    silent.store(false, Ordering::SeqCst);
    let d = &*late.seen;
    until("four share", REBALANCED, || shared_evenly(&[a, b, c, d])).await;
    let back = came.elapsed();
    end.store(true, Ordering::SeqCst);
    assert_eq!(watching.join().unwrap(), [""; 0]);
    println!("stopped after {stopped:?}, shared after {shared:?} more, by four after {back:?}");
    for node in [first, second, cut_off, late] {
        tokio::task::spawn_blocking(move || node.keeper.stop()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_outdated_gives_everything_back() {
    let database = TestDatabase::new().await;
    let old = start(database.target.clone(), "old");
    until("it has all", REBALANCED, || shared_evenly(&[&old.seen])).await;

    old.seen.ownership.set_outdated(true);
    let client = database.target.connect_plain().await.unwrap();
    let sql = "SELECT (SELECT count(*) FROM nodes) + (SELECT count(*) FROM shards WHERE node IS NOT NULL)";
    let end = Instant::now() + REBALANCED;
    while client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) > 0 {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    assert!(old.seen.live().is_empty() && old.seen.told.lock().unwrap().is_empty());
    tokio::task::spawn_blocking(move || old.keeper.stop()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_another_node_claims_at_the_same_moment_stays_with_it() {
    let database = TestDatabase::new().await;
    let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let first = database.target.connect(|_| ()).await.unwrap();
    let second = database.target.connect(|_| ()).await.unwrap();
    let register = "INSERT INTO nodes (node, name, version) VALUES ($1, 'n', '1')";
    second.execute(register, &[&two]).await.unwrap();
    let (shards, epochs) = (vec![0_i16, 1, 2, 3], vec![0_i64; 4]);
    // Between what the statement sees and its first lock.
    let slow = CLAIM.replace(
        "NOT EXISTS",
        "CASE WHEN s.shard = 0 THEN pg_sleep(1) IS NOT NULL ELSE true END AND NOT EXISTS",
    );
    let claiming = tokio::spawn({
        let (shards, epochs) = (shards.clone(), epochs.clone());
        async move { second.query(&slow, &[&two, &shards, &epochs, &3_i64]).await.unwrap().len() }
    });
    tokio::time::sleep(Duration::from_millis(400)).await;
    first.execute(register, &[&one]).await.unwrap();
    let claimed = first.query(CLAIM, &[&one, &shards, &epochs, &2_i64]).await.unwrap();
    assert_eq!(claimed.len(), 2);

    assert_eq!(claiming.await.unwrap(), 2);
    let sql = "SELECT node FROM shards WHERE shard < 4 ORDER BY shard";
    let nodes: Vec<Uuid> =
        first.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(nodes, [one, one, two, two]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_that_come_back_after_the_lease_was_over_have_a_new_epoch() {
    let database = TestDatabase::new().await;
    let (through, silent) = way_to(&database).await;
    let node = start(through, "alone");
    until("it has all", REBALANCED, || shared_evenly(&[&node.seen])).await;
    let before = node.seen.ownership.all();

    silent.store(true, Ordering::SeqCst);
    until("it has none", TAKEN_OVER, || node.seen.ownership.all().is_empty()).await;
    silent.store(false, Ordering::SeqCst);

    // Nobody else had them, but a record of before may still be under way.
    until("it has all again", REBALANCED, || shared_evenly(&[&node.seen])).await;
    let after = node.seen.ownership.all();
    assert!(before.iter().all(|(shard, epoch)| after[shard] > *epoch), "{before:?} {after:?}");
    tokio::task::spawn_blocking(move || node.keeper.stop()).await.unwrap();
}
