//! Eras: a time in which the database loses nothing that it has committed.
//!
//! An asynchronous standby that takes over may lack the last commits. So may a server that crashed with
//! `synchronous_commit = off`, and a restored backup. Then numbers of events, epochs and tickets that were given out are
//! given out again, for other things, and whoever remembers them goes wrong without a trace. The number of a timeline
//! does not tell: two standbys may choose the same one, and a crash or a snapshot keeps it. What tells is a row that is not
//! logged: PostgreSQL itself empties its table in each of these cases. Whoever finds it empty begins an era, with an
//! identifier that was never there before.
//!
//! A connection is of one server that has not crashed, so of one era: it is looked at once, when it is made.
//! In the transaction that begins an era every shard becomes free, under an epoch beyond all that can have been given out.
//! Nodes of before may still send until their leases are over, each of which was renewed before the era began. So
//! whoever claims a shard has known the era for longer than that, or reads that somebody has: it is settled.
//!
//! Progress beyond the end of a log cannot be left behind: what is there is a state that the database once had.

use tokio_postgres::{Client, SimpleQueryMessage};
use uuid::Uuid;

use super::ownership::Ownership;
use super::{migrate, unavailable};
use crate::store::Error;
use crate::store::queue::Queue;

/// What the row says. Read with every heartbeat.
pub(super) const FIND: &str = "SELECT era, settled FROM eras";
/// Every lease of before is over.
pub(super) const SETTLE: &str = "UPDATE eras SET settled = true WHERE NOT settled";

/// Nothing of before holds any more: no node, no epoch, no ticket. A million of them are not given out within the part of
/// its history that a database may lose.
const BEGIN: &str = "DELETE FROM nodes; \
     UPDATE shards SET node = NULL, epoch = epoch + 1000000; \
     SELECT setval('subscription_tickets', (SELECT last_value + 1000000 FROM subscription_tickets))";

/// Looks where a new connection leads, and enters the era; begins one where there is none. One round trip.
///
/// # Errors
///
/// The tables are those of another version of the program, or the database failed.
pub(super) async fn enter(
    client: &mut Client,
    ownership: &Ownership,
    queue: &Queue,
) -> Result<Uuid, Error> {
    let version = client.simple_query("SELECT max(version) FROM schema_version");
    let row = client.simple_query(FIND);
    let (version, row) = futures_util::join!(version, row);
    let version = version.map_err(|error| unavailable(&error))?;
    let version = text_at(&version).and_then(|text| text.parse().ok()).unwrap_or_default();
    ownership.set_outdated(migrate::is_newer(version));
    migrate::check(version)?;
    // Only now: without its table it fails, and the version says why.
    let row = row.map_err(|error| unavailable(&error))?;
    let era = match text_at(&row).and_then(|text| text.parse().ok()) {
        Some(era) => era,
        None => begin(client).await.map_err(|error| unavailable(&error))?,
    };
    ownership.enter(era, queue);
    Ok(era)
}

/// The era that this connection is in, if there is one.
pub(super) async fn find(client: &Client) -> Result<Option<Uuid>, tokio_postgres::Error> {
    let row = client.simple_query(FIND).await?;
    Ok(text_at(&row).and_then(|text| text.parse().ok()))
}

/// The first column of the first row.
fn text_at(messages: &[SimpleQueryMessage]) -> Option<&str> {
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    })
}

/// Begins an era, unless somebody else has.
async fn begin(client: &mut Client) -> Result<Uuid, tokio_postgres::Error> {
    let tx = client.transaction().await?;
    // Waits for whoever is doing it.
    let insert = "INSERT INTO eras (era, settled) VALUES ($1, false) ON CONFLICT DO NOTHING";
    if tx.execute(insert, &[&Uuid::now_v7()]).await? == 1 {
        tracing::warn!("PostgreSQL crashed or took over from another server: an era begins");
        tx.batch_execute(BEGIN).await?;
    }
    let era = tx.query_one(FIND, &[]).await?.get(0);
    tx.commit().await?;
    Ok(era)
}

#[cfg(test)]
#[path = "era_tests.rs"]
mod tests;
