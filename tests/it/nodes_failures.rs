//! Nodes that are killed or stopped under load: others take over, nothing is lost, nothing comes out of order.
//!
//! Judged at the receivers and by what callers were told. `make nodes-failures` is the long form.

use std::time::{Duration, Instant};

use crate::harness::chance::number_from;
use crate::harness::cluster::{Cluster, NAMES};
use crate::harness::postgres::Database;
use crate::harness::say;

/// The variable that says how often a node is killed, and how often one is stopped.
const KILLS: &str = "ROLLCALL_TEST_NODE_KILLS";
/// The same in the short form.
const KILLS_SHORT: u64 = 2;
/// Others have taken over within: the promise.
const TAKEOVER_WITHIN: Duration = Duration::from_secs(20);
/// Time under load before something fails.
const LOAD: Duration = Duration::from_secs(1);
/// Twice the lease.
const STOPPED_FOR: Duration = Duration::from_secs(8);

/// The shortest and the longest, in seconds.
fn range(times: &[Duration]) -> String {
    let shortest = times.iter().min().copied().unwrap_or_default();
    let longest = times.iter().max().copied().unwrap_or_default();
    format!("{:.1} to {:.1} s", shortest.as_secs_f64(), longest.as_secs_f64())
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_node_is_taken_over_by_the_others() {
    let kills = usize::try_from(number_from(KILLS).unwrap_or(KILLS_SHORT)).unwrap();
    let database = Database::create().await;
    let mut cluster = Cluster::start_on(&database.url()).await;
    let mut takeovers = Vec::new();
    for node in 0..NAMES.len() {
        cluster.write_while_it_lives(node);
    }

    for _ in 0..kills {
        cluster.write_for(LOAD).await;
        let dead = cluster.busiest();
        let orphans = cluster.subscriptions_of(NAMES[dead]);
        let killed = cluster.kill(dead);
        let waits = cluster.wait_for_takeover(&orphans, NAMES[dead], killed).await;
        assert!(waits.iter().all(|wait| *wait < TAKEOVER_WITHIN), "{waits:?}");
        takeovers.extend(waits);
        cluster.restart(dead).await;
        cluster.write_while_it_lives(dead);
        cluster.wait_until_balanced().await;
    }

    let verdict = cluster.finish(kills).await;
    let subscriptions = takeovers.len();
    say(&format!(
        "SIGKILL of a node, {kills} times: {subscriptions} subscriptions taken over after {}; {verdict}",
        range(&takeovers)
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_node_does_not_go_on_where_another_one_took_over() {
    let stops = usize::try_from(number_from(KILLS).unwrap_or(1)).unwrap();
    let database = Database::create().await;
    let mut cluster = Cluster::start_on(&database.url()).await;
    let mut takeovers = Vec::new();
    for node in 0..NAMES.len() {
        cluster.write(node);
    }

    for _ in 0..stops {
        cluster.write_for(LOAD).await;
        let stopped = cluster.busiest();
        let orphans = cluster.subscriptions_of(NAMES[stopped]);
        cluster.nodes[stopped].pause();
        let since = Instant::now();
        let waits = cluster.wait_for_takeover(&orphans, NAMES[stopped], since).await;
        assert!(waits.iter().all(|wait| *wait < TAKEOVER_WITHIN), "{waits:?}");
        takeovers.extend(waits);
        tokio::time::sleep(STOPPED_FOR.saturating_sub(since.elapsed())).await;
        cluster.nodes[stopped].resume();
        cluster.wait_until_balanced().await;
    }

    // That nobody sent for a shard of somebody else, and that no progress went back, is judged there.
    let verdict = cluster.finish(stops).await;
    say(&format!(
        "SIGSTOP of a node for 8 s, {stops} times: {} subscriptions taken over after {}; {verdict}",
        takeovers.len(),
        range(&takeovers)
    ));
}
