//! Removes what is no longer needed, in slices small enough that no group waits long behind one.

use std::time::Duration;

use rusqlite::{Connection, params};

use crate::domain::clock::Timestamp;

/// How long an idempotency key is kept; the contract's 24 hours.
pub(super) const IDEMPOTENCY_AGE: Duration = Duration::from_hours(24);
/// Rows removed in one slice: about a millisecond of writing.
const SLICE_ROWS: i64 = 500;

/// Runs one slice in a transaction of its own. Gives whether there was anything to remove.
pub(super) fn run_slice(
    connection: &mut Connection,
    now: Timestamp,
) -> Result<bool, rusqlite::Error> {
    let tx = connection.transaction()?;
    let mut removed = remove_hidden(&tx)?;
    if removed == 0 {
        removed = tx
            .prepare_cached(
                "DELETE FROM idempotency_keys WHERE (service, app, key) IN \
                 (SELECT service, app, key FROM idempotency_keys WHERE at <= ?1 LIMIT ?2)",
            )?
            .execute(params![now.minus(IDEMPOTENCY_AGE).millis(), SLICE_ROWS])
            .map(count)?;
    }
    if removed == 0 {
        // A handful of rows per app at most: expired tokens and secrets need no slices.
        for table in ["app_tokens", "app_secrets"] {
            removed += tx
                .prepare_cached(&format!("DELETE FROM {table} WHERE expires_at <= ?1"))?
                .execute([now.millis()])
                .map(count)?;
        }
    }
    if removed > 0 {
        tx.commit()?
    } else {
        tx.rollback()?
    }
    Ok(removed > 0)
}

/// Removes rows of a hidden service, the service itself last, so that a crash in between goes on here.
fn remove_hidden(connection: &Connection) -> Result<i64, rusqlite::Error> {
    let hidden: Vec<[u8; 16]> = connection
        .prepare_cached("SELECT service FROM services WHERE hidden = 1 LIMIT 1")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let Some(service) = hidden.first() else {
        return Ok(0);
    };
    let keyed = [
        ("apps", "service, app"),
        ("app_secrets", "service, app, number"),
        ("contacts", "service, contact"),
        ("events", "service, sequence"),
        ("subscriptions", "service, app"),
        ("progress", "service, app"),
        ("held", "service, app, sequence"),
        ("exhausted", "service, app, sequence"),
        ("idempotency_keys", "service, app, key"),
    ];
    let mut removed = connection
        .prepare_cached("DELETE FROM app_tokens WHERE service = ?1")?
        .execute([service])
        .map(count)?;
    for (table, key) in keyed {
        if removed >= SLICE_ROWS {
            return Ok(removed);
        }
        removed += connection
            .prepare_cached(&format!(
                "DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE service = ?1 LIMIT ?2)"
            ))?
            .execute(params![service, SLICE_ROWS - removed])
            .map(count)?;
    }
    if removed < SLICE_ROWS {
        removed += connection
            .prepare_cached("DELETE FROM services WHERE service = ?1")?
            .execute([service])
            .map(count)?;
    }
    Ok(removed)
}

fn count(rows: usize) -> i64 {
    i64::try_from(rows).unwrap_or(i64::MAX)
}
