//! The yardstick: a queue that workers claim from with `FOR UPDATE SKIP LOCKED`, in order for each key.
//!
//! This is how most senders of webhooks on PostgreSQL share their work. A row may be claimed when no earlier row of its
//! key is left, so that a key's rows go out one after the other. A worker claims one row, would send it, and removes it,
//! in one transaction: the claim lasts as long as the sending.

use std::time::{Duration, Instant};

use anyhow::Context;
use tokio_postgres::{Client, NoTls};

/// Workers, each with a connection.
pub(crate) const WORKERS: usize = 4;
/// Keys that are busy at once: contacts in a batch of changes.
const KEYS: i32 = 200;
/// Rows that wait at the start: more than are claimed in the time.
const ROWS: i32 = 100_000;

const CLAIM: &str = "SELECT id FROM claims c WHERE NOT EXISTS \
     (SELECT FROM claims e WHERE e.key = c.key AND e.id < c.id) \
     ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED";

pub(crate) async fn connect(url: &str) -> anyhow::Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

/// Rows per second that all workers together claim and finish.
pub(crate) async fn measure(url: &str, time: Duration) -> anyhow::Result<f64> {
    let client = connect(url).await?;
    client
        .batch_execute(
            "CREATE TABLE claims (id BIGINT PRIMARY KEY, key INTEGER NOT NULL, body TEXT NOT NULL); \
             CREATE INDEX claims_by_key ON claims (key, id)",
        )
        .await?;
    client
        .execute(
            "INSERT INTO claims SELECT n, n % $1, repeat('x', 200) FROM generate_series(1, $2::int) n",
            &[&KEYS, &ROWS],
        )
        .await?;
    client.batch_execute("VACUUM ANALYZE claims").await?;
    let began = Instant::now();
    let workers = (0..WORKERS).map(|_| {
        let url = url.to_owned();
        tokio::spawn(async move { work(&url, began, time).await })
    });
    let mut claimed = 0;
    for worker in workers.collect::<Vec<_>>() {
        claimed += worker.await.context("a worker failed")??;
    }
    let per_second = f64::from(claimed) / began.elapsed().as_secs_f64();
    client.batch_execute("DROP TABLE claims").await?;
    Ok(per_second)
}

async fn work(url: &str, began: Instant, time: Duration) -> anyhow::Result<u32> {
    let client = connect(url).await?;
    let claim = client.prepare(CLAIM).await?;
    let finish = client.prepare("DELETE FROM claims WHERE id = $1").await?;
    let mut claimed = 0;
    while began.elapsed() < time {
        client.batch_execute("BEGIN").await?;
        if let Some(row) = client.query_opt(&claim, &[]).await? {
            client.execute(&finish, &[&row.get::<_, i64>(0)]).await?;
            claimed += 1;
        }
        client.batch_execute("COMMIT").await?;
    }
    Ok(claimed)
}
