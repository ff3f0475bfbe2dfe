//! The database fails, or the way to it, or somebody holds it back: nodes go on by themselves, nothing is lost, nothing
//! comes out of order.
//!
//! Judged as in `nodes_failures.rs`. `make nodes-failures` is the long form.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::harness::chance::number_from;
use crate::harness::cluster::{Cluster, NAMES};
use crate::harness::postgres::{Database, Postgres};
use crate::harness::proxy::Proxy;
use crate::harness::{eventually, say};

/// The variable that says for how many seconds sessions are ended.
const SECONDS: &str = "ROLLCALL_TEST_TERMINATE_SECONDS";
/// The same in the short form.
const SECONDS_SHORT: u64 = 6;
/// Time between two such moments.
const TERMINATE_EVERY: Duration = Duration::from_millis(200);
/// Others have taken over within: the promise.
const TAKEOVER_WITHIN: Duration = Duration::from_secs(20);
/// Time under load before and after something fails.
const LOAD: Duration = Duration::from_secs(1);
/// Longest transaction of a node that may be seen while receivers take [`SLOW`] to answer.
const TRANSACTION_MAX: Duration = Duration::from_millis(500);
const SLOW: Duration = Duration::from_secs(2);
/// How long a transaction is held open, in so many parts, in each of which work must go on. `make bench-postgres` does it
/// for minutes, and measures the throughput.
const HELD_OPEN: Duration = Duration::from_secs(8);
const HELD_PARTS: u32 = 4;

#[tokio::test(flavor = "multi_thread")]
async fn node_that_is_cut_off_stops_and_takes_part_again() {
    let database = Database::create().await;
    let proxy = Proxy::start(database.server_address()).await;
    let (url, over) = (database.url(), database.url_over(proxy.address()));
    let mut cluster = Cluster::start([&url, &url, &over], &url, Duration::ZERO).await;
    for node in 0..NAMES.len() {
        cluster.write(node);
    }
    let cut_off = NAMES[2];
    let mut takeovers = Vec::new();

    for silently in [true, false] {
        cluster.write_for(LOAD).await;
        let orphans = cluster.subscriptions_of(cut_off);
        assert!(!orphans.is_empty());
        let since = Instant::now();
        if silently {
            proxy.freeze();
        } else {
            proxy.cut();
        }
        let waits = cluster.wait_for_takeover(&orphans, cut_off, since).await;
        assert!(waits.iter().all(|wait| *wait < TAKEOVER_WITHIN), "{waits:?}");
        takeovers.extend(waits);
        proxy.heal();
        cluster.wait_until_balanced().await;
    }

    let verdict = cluster.finish(2).await;
    let longest = takeovers.iter().max().unwrap().as_secs_f64();
    say(&format!(
        "a node cut off from PostgreSQL, in silence and with its connections: {} subscriptions taken over after at most \
         {longest:.1} s; {verdict}",
        takeovers.len()
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn database_that_is_killed_and_starts_again_loses_nothing() {
    let mut postgres = Postgres::start().await;
    let mut cluster = Cluster::start_on(&postgres.url()).await;
    for node in 0..NAMES.len() {
        cluster.write(node);
    }
    cluster.write_for(LOAD).await;

    let killed = Instant::now();
    postgres.kill();
    tokio::time::sleep(LOAD).await;
    postgres.restart().await;
    let away = killed.elapsed();
    cluster.write_for(LOAD * 5).await;

    let verdict = cluster.finish(1).await;
    say(&format!("SIGKILL of PostgreSQL, back after {:.1} s: {verdict}", away.as_secs_f64()));
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_are_ended_all_the_time_lose_nothing() {
    let seconds = number_from(SECONDS).unwrap_or(SECONDS_SHORT);
    let postgres = Postgres::start().await;
    let mut cluster = Cluster::start_on(&postgres.url()).await;
    for node in 0..NAMES.len() {
        cluster.write(node);
    }
    cluster.write_for(LOAD).await;

    let until = Instant::now() + Duration::from_secs(seconds);
    let (mut rounds, mut ended) = (0, 0);
    while Instant::now() < until {
        ended += postgres.terminate_clients().await;
        rounds += 1;
        tokio::time::sleep(TERMINATE_EVERY).await;
    }
    cluster.write_for(LOAD * 3).await;

    let verdict = cluster.finish(rounds).await;
    say(&format!("{ended} sessions ended within {seconds} s, every 200 ms: {verdict}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn failover_to_a_synchronous_standby_loses_nothing() {
    let mut primary = Postgres::start().await;
    let standby = primary.synchronous_standby().await;
    let both = primary.url_or(&standby);
    let mut cluster = Cluster::start([&both; 3], &both, Duration::ZERO).await;
    for node in 0..NAMES.len() {
        cluster.write(node);
    }
    cluster.write_for(LOAD * 2).await;

    let killed = Instant::now();
    primary.kill();
    standby.promote().await;
    let away = killed.elapsed();
    cluster.write_for(LOAD * 5).await;

    let verdict = cluster.finish(1).await;
    say(&format!(
        "failover to a synchronous standby, promoted after {:.1} s: {verdict}",
        away.as_secs_f64()
    ));
}

/// How often the rolls of all services were written, as this session sees it. Each time leaves a dead version behind.
async fn rolls_written(client: &Client) -> i64 {
    let sql = "SELECT sum(version)::bigint FROM rolls";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Dead versions of rolls that VACUUM cannot remove, and those that came while it ran.
async fn dead_after_vacuum(client: &Client) -> i64 {
    client.batch_execute("VACUUM rolls").await.unwrap();
    let sql = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'rolls'";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn transaction_that_is_held_open_loses_nothing() {
    let database = Database::create().await;
    let mut cluster = Cluster::start_on(&database.url()).await;
    for node in 0..NAMES.len() {
        cluster.write(node);
    }
    cluster.write_for(LOAD).await;
    let (holder, client) = (database.connect().await, database.connect().await);

    holder.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    let at_begin = rolls_written(&holder).await;
    let mut sent = cluster.senders.arrivals().len();
    for _ in 0..HELD_PARTS {
        cluster.write_for(HELD_OPEN / HELD_PARTS).await;
        let before = std::mem::replace(&mut sent, cluster.senders.arrivals().len());
        assert!(sent > before, "nothing was sent");
    }
    let written = rolls_written(&client).await - at_begin;
    let kept = dead_after_vacuum(&client).await;

    assert!(written > 0 && kept >= written, "{kept} dead versions kept, {written} written");
    assert_eq!(rolls_written(&holder).await, at_begin, "it sees what was committed later");
    holder.batch_execute("COMMIT").await.unwrap();
    let left = eventually("VACUUM removes them again", async || {
        Some(dead_after_vacuum(&client).await).filter(|left| *left < written / 2)
    })
    .await;
    // Nothing failed, so nothing may come twice.
    let verdict = cluster.finish(0).await;
    say(&format!(
        "a transaction held open for {} s: {kept} dead versions of rolls kept after {written} writes, {left} once it had \
         ended; {verdict}",
        HELD_OPEN.as_secs()
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_transaction_is_open_while_a_receiver_is_called() {
    let database = Database::create().await;
    let url = database.url();
    let mut cluster = Cluster::start([&url; 3], &url, SLOW).await;
    let client = database.connect().await;
    for node in 0..NAMES.len() {
        cluster.write(node);
    }
    let look = client
        .prepare(
            "SELECT (extract(epoch FROM clock_timestamp() - xact_start) * 1000)::bigint, state \
             FROM pg_stat_activity WHERE datname = current_database() \
             AND application_name = 'rollcall' AND xact_start IS NOT NULL",
        )
        .await
        .unwrap();

    let until = Instant::now() + SLOW * 3;
    let (mut looks, mut seen, mut longest) = (0_u32, 0_u32, 0_i64);
    while Instant::now() < until {
        for row in client.query(&look, &[]).await.unwrap() {
            let (age, state): (i64, String) = (row.get(0), row.get(1));
            seen += 1;
            longest = longest.max(age);
            assert!(
                u128::try_from(age).unwrap_or(0) < TRANSACTION_MAX.as_millis(),
                "{state}: {age} ms"
            );
        }
        looks += 1;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }

    let calls = cluster.senders.arrivals().len();
    assert!(calls > 50 && seen > 0, "{calls} calls, {seen} transactions seen");
    let verdict = cluster.finish(1).await;
    say(&format!(
        "{calls} calls of 2 s each, {looks} looks at pg_stat_activity, {seen} open transactions seen, the longest of \
         {longest} ms; {verdict}"
    ));
}
