//! The database goes back under running nodes: what was committed last is gone, and its numbers come again.
//!
//! What is gone is lost, as documented. Judged is the rest, by the log that is left: every event in it that was committed
//! after the loss reaches every receiver, in order for its contact, and nobody sends for what somebody else has.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use uuid::Uuid;

use crate::harness::PATIENCE;
use crate::harness::cluster::{Cluster, NAMES};
use crate::harness::postgres::Postgres;
use crate::harness::proxy::Proxy;
use crate::harness::say;
use crate::harness::writers::Acknowledged;

/// Time under load before and after something fails.
const LOAD: Duration = Duration::from_secs(1);
/// Events that were committed and are in no file yet.
const UNWRITTEN: usize = 10;
/// Crashes until one of them loses something: a heartbeat may come just before.
const CRASHES_MAX: usize = 3;
/// A notification that was sent in time may be read by its receiver so much later, on a busy machine.
const GRACE: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_after_a_failover_that_lost_commits_is_delivered_in_order() {
    let mut primary = Postgres::start().await;
    let way = Proxy::start(primary.address()).await;
    let standby = primary.standby(way.address()).await;
    let both = primary.url_or(&standby);
    let mut cluster = Cluster::start([&both; 3], &both, Duration::ZERO).await;
    let lost_at = start_writing(&mut cluster);
    cluster.write_for(LOAD * 2).await;
    way.cut();
    cluster.write_for(LOAD * 2).await;

    let reached = head(&primary.connect().await).await;
    let failed = Instant::now();
    primary.kill();
    let left = head(&standby.connect().await).await;
    standby.promote().await;
    let away = failed.elapsed();
    lost_at.store(1, Ordering::SeqCst);
    assert!(left + 20 < reached, "the standby had {left} of {reached}");
    cluster.write_for(LOAD * 8).await;

    cluster.end().await;
    let verdict = judge(&cluster, &standby.connect().await, left, failed).await;
    say(&format!(
        "failover to a standby without the last {} events, promoted after {:.1} s: {verdict}",
        reached - left,
        away.as_secs_f64()
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_after_a_crash_that_lost_commits_is_delivered_in_order() {
    let mut postgres = Postgres::start().await;
    postgres.restart_with(&["synchronous_commit=off"]).await;
    let mut cluster = Cluster::start_on(&postgres.url()).await;
    let lost_at = start_writing(&mut cluster);

    let mut crashes = 0;
    let (lost, left, failed) = loop {
        crashes += 1;
        cluster.write_for(LOAD * 2).await;
        postgres.stop_wal_writer();
        let unwritten = wait_for_unwritten(&postgres.connect().await).await;
        let failed = Instant::now();
        postgres.kill();
        postgres.restart().await;
        let log = read_log(&postgres.connect().await).await;
        let mut lost = unwritten.iter().filter(|(_, id)| !log.contains_key(id));
        if let Some((first, _)) = lost.next() {
            break (lost.count() + 1, first - 1, failed);
        }
        assert!(crashes < CRASHES_MAX, "{crashes} crashes lost nothing");
        cluster.wait_until_balanced().await;
    };
    lost_at.store(1, Ordering::SeqCst);
    cluster.write_for(LOAD * 8).await;

    cluster.end().await;
    let verdict = judge(&cluster, &postgres.connect().await, left, failed).await;
    say(&format!("crash with synchronous_commit=off, which lost {lost} events or more: {verdict}"));
}

/// Starts callers on every node; what is acknowledged while the number is 1 was committed after the loss.
fn start_writing(cluster: &mut Cluster) -> Arc<AtomicU64> {
    let lost_at = Arc::new(AtomicU64::new(0));
    let position = Arc::clone(&lost_at);
    cluster.acknowledged = Arc::new(Acknowledged::at(move || position.load(Ordering::SeqCst)));
    for node in 0..NAMES.len() {
        cluster.write_what_may_be_lost(node);
    }
    lost_at
}

/// The last number of the log of the service that the callers change.
async fn head(client: &Client) -> i64 {
    client.query_one("SELECT max(head) FROM rolls", &[]).await.unwrap().get(0)
}

/// Waits until a crash would lose events. What nodes write durably, several times a second, saves what was committed before
/// it. Gives the numbers and identifiers of those events.
async fn wait_for_unwritten(client: &Client) -> Vec<(i64, String)> {
    let sql = "SELECT pg_current_wal_lsn()::text, (SELECT max(head) FROM rolls), \
         ARRAY(SELECT event FROM events WHERE sequence > $1 ORDER BY sequence)";
    let (mut written, mut saved, since) = (String::new(), 0_i64, Instant::now());
    while since.elapsed() < PATIENCE {
        let row = client.query_one(sql, &[&saved]).await.unwrap();
        let (now, reached, events): (String, i64, Vec<Uuid>) = (row.get(0), row.get(1), row.get(2));
        if now != written {
            (written, saved) = (now, reached);
        } else if events.len() >= UNWRITTEN {
            let ids = events.iter().map(|id| format!("evt_{}", id.simple()));
            return (saved + 1..).zip(ids).collect();
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("everything is written at once");
}

/// An event of the log that is left.
struct Left {
    sequence: i64,
    contact: String,
    version: u64,
}

/// Judges when every node has ended. The log had this head when it went back.
async fn judge(cluster: &Cluster, client: &Client, left: i64, failed: Instant) -> String {
    let log = read_log(client).await;
    let new: Vec<&String> =
        log.iter().filter(|(_, event)| event.sequence > left).map(|(id, _)| id).collect();
    let acknowledged = assert_log_has_what_was_acknowledged(cluster, &log);
    let beyond =
        "SELECT p.app FROM progress p JOIN rolls s USING (service) WHERE p.cursor > s.head";
    assert!(client.query(beyond, &[]).await.unwrap().is_empty(), "progress beyond the log");
    let mut repeated = 0;
    for (number, subscription) in cluster.subscriptions.iter().enumerate() {
        subscription.receiver.wait_until_quiet().await;
        let mut newest: HashMap<&str, i64> = HashMap::new();
        let mut delivered = HashSet::new();
        for seen in subscription.receiver.take_notifications() {
            let Some((id, event)) = log.get_key_value(seen.event_id()) else { continue };
            let before = newest.get(event.contact.as_str()).copied().unwrap_or_default();
            // What was delivered before is delivered again, from where the record of it was left.
            if before > left {
                assert!(
                    event.sequence >= before,
                    "subscription {number}: {} came after {before}: {seen:?}",
                    event.sequence
                );
            }
            newest.insert(&event.contact, event.sequence);
            if seen.status == Some(200) && !delivered.insert(id) {
                repeated += 1;
            }
        }
        let missing: Vec<_> = new.iter().filter(|id| !delivered.contains(**id)).collect();
        assert!(missing.is_empty(), "subscription {number}: never delivered: {missing:?}");
    }
    let sent = assert_sent_by_owners(cluster, failed);
    format!(
        "{acknowledged} changes acknowledged after it, {} answers of 503; {} new events delivered to each of {} \
         subscriptions in order, {repeated} deliveries repeated in all; {sent} notifications from whoever had the shard",
        cluster.acknowledged.unavailable(),
        new.len(),
        cluster.subscriptions.len()
    )
}

/// The log by the identifiers of its events.
async fn read_log(client: &Client) -> HashMap<String, Left> {
    let sql = "SELECT event, sequence, contact, contact_version FROM events";
    let rows = client.query(sql, &[]).await.unwrap();
    let event = |row: &tokio_postgres::Row| {
        let (id, contact): (Uuid, Uuid) = (row.get(0), row.get(2));
        let version: i64 = row.get(3);
        let event = Left {
            sequence: row.get(1),
            contact: format!("sc_{}", contact.simple()),
            version: u64::try_from(version).unwrap(),
        };
        (format!("evt_{}", id.simple()), event)
    };
    rows.iter().map(event).collect()
}

/// Gives how many changes were acknowledged after the loss.
fn assert_log_has_what_was_acknowledged(cluster: &Cluster, log: &HashMap<String, Left>) -> usize {
    let there: HashSet<(&str, u64)> =
        log.values().map(|event| (event.contact.as_str(), event.version)).collect();
    let changes = cluster.acknowledged.changes.lock().unwrap();
    let after: Vec<_> = changes.iter().filter(|(_, told)| told.position == 1).collect();
    for ((contact, version), _) in &after {
        assert!(there.contains(&(contact.as_str(), *version)), "{contact} {version} is not there");
    }
    assert!(after.len() > 50, "{} changes after the loss", after.len());
    after.len()
}

/// While somebody has a shard by the database, nobody else sends for it. Gives how many notifications that was said of.
fn assert_sent_by_owners(cluster: &Cluster, failed: Instant) -> usize {
    let mut judged = 0;
    for arrival in cluster.senders.arrivals() {
        let Some(from) = arrival.from.filter(|_| arrival.at > failed) else { continue };
        let shard = cluster.subscriptions[arrival.to].shard;
        let tenures = cluster.watcher.tenures_of(shard);
        let surely = tenures.iter().rev().find(|it| {
            it.from + GRACE <= arrival.at && it.until.is_none_or(|end| arrival.at + GRACE <= end)
        });
        if let Some(owner) = surely.and_then(|it| it.node.as_deref()) {
            assert_eq!(from, owner, "shard {shard}: {arrival:?}, {tenures:#?}");
            judged += 1;
        }
    }
    assert!(judged > 0, "nobody knows who sent");
    judged
}
