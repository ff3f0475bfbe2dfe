//! The request rate of a service, over three nodes on one PostgreSQL.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::harness::client::Api;
use crate::harness::postgres::Database;
use crate::harness::server::{Builder, TestServer};
use crate::harness::{eventually, say};

const LIMIT: u32 = 600;
const NODES: u32 = 3;
/// Callers of each node. Each lets a moment pass after a refusal, so that refusals do not take all of the machine.
const CALLERS: usize = 3;
const AFTER_REFUSAL: Duration = Duration::from_millis(5);

fn node(database: &Database, name: &str) -> Builder {
    TestServer::builder()
        .node(&database.url(), name)
        .flag("--requests-per-minute", &LIMIT.to_string())
}

async fn three_nodes(database: &Database) -> [TestServer; 3] {
    let one = node(database, "one").start().await;
    let credentials = one.credentials();
    let two = node(database, "two").start_as(&credentials);
    let three = node(database, "three").start_as(&credentials);
    let client = database.connect().await;
    eventually("all nodes are there", async || {
        let row = client.query_one("SELECT count(*) FROM nodes", &[]).await.unwrap();
        (row.get::<_, i64>(0) == i64::from(NODES)).then_some(())
    })
    .await;
    // And each has heard of it.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    [one, two, three]
}

/// Calls these nodes as much as they bear; tells how many requests were let in during each second.
async fn hammer(nodes: &[Api], seconds: usize) -> Vec<u32> {
    let counts: Arc<Vec<AtomicU32>> = Arc::new((0..seconds).map(|_| AtomicU32::new(0)).collect());
    let over = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let callers: Vec<_> = nodes
        .iter()
        .flat_map(|node| (0..CALLERS).map(|_| node.clone()))
        .map(|api| {
            let (counts, over) = (Arc::clone(&counts), Arc::clone(&over));
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    let answer = api.get("/contacts/staffcontact-list").await;
                    match answer.status {
                        200 => {
                            let second = usize::try_from(began.elapsed().as_secs()).unwrap();
                            counts[second.min(seconds - 1)].fetch_add(1, Ordering::Relaxed);
                        }
                        429 => tokio::time::sleep(AFTER_REFUSAL).await,
                        other => panic!("answered {other}"),
                    }
                }
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(seconds as u64)).await;
    over.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    counts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_together_let_in_what_one_would_and_half_a_minutes_worth_more() {
    const SECONDS: u32 = 20;
    let database = Database::create().await;
    let nodes = three_nodes(&database).await;
    let apis = nodes.each_ref().map(TestServer::app);

    let counts = hammer(&apis, SECONDS as usize).await;

    let sum: u32 = counts.iter().sum();
    say(&format!("let in each second: {counts:?}, together {sum}\n"));
    // The bucket, what time gives back, the bound, and two requests of each node.
    let alone = LIMIT + LIMIT * SECONDS / 60;
    let bound = alone + LIMIT / 2 + 2 * NODES;
    assert!(sum <= bound, "{sum} were let in, the bound is {bound}: {counts:?}");
    assert!(sum >= LIMIT, "only {sum} were let in: {counts:?}");
    // Without hearing of each other each lets in the limit by itself.
    assert!(bound < NODES * LIMIT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caller_of_one_node_gets_the_whole_limit_and_a_new_node_knows_that_it_is_used_up() {
    let database = Database::create().await;
    let nodes = three_nodes(&database).await;

    let counts = hammer(&[nodes[0].app()], 12).await;

    let sum: u32 = counts.iter().sum();
    say(&format!("one of three let in each second: {counts:?}, together {sum}\n"));
    assert!((LIMIT..=LIMIT + LIMIT * 12 / 60).contains(&sum), "{sum}: {counts:?}");
    let late = node(&database, "four").start_as(&nodes[0].credentials());
    let let_in = hammer(&[late.app()], 1).await[0];
    assert!(let_in <= LIMIT / 10, "a new node let in {let_in}");
}
