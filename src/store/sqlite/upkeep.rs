//! Removes what is no longer needed, in slices small enough that no group waits long behind one.

use rusqlite::{Connection, params};

use super::audit;
use super::retention::{self, Retention};
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, ServiceId};
use crate::store::retention::IDEMPOTENCY_AGE;

/// Rows removed in one slice: about a millisecond of writing.
const SLICE_ROWS: i64 = 500;
/// Rows of the audit log removed in one slice. Each may tell of as many changes as a group had.
const SLICE_AUDIT_ROWS: usize = 200;

/// Where upkeep stands between two slices.
#[derive(Debug)]
pub(super) struct Upkeep {
    retention: Retention,
    /// The service whose events were looked at last; `None` before the first.
    position: Option<ServiceId>,
    /// The service whose audit log was looked at last; `None` before the first.
    audit_position: Option<ServiceId>,
}

/// What a slice did.
#[derive(Debug, Default)]
pub(super) struct Slice {
    /// Whether there was anything to remove: then there may be more.
    pub(super) removed: bool,
    /// Subscriptions that began a generation, because events were removed that they still owed.
    pub(super) subscriptions: Vec<(ServiceId, AppId)>,
}

impl Upkeep {
    pub(super) fn new(retention: Retention) -> Self {
        Self { retention, position: None, audit_position: None }
    }

    /// Runs one slice in a transaction of its own.
    pub(super) fn run_slice(
        &mut self,
        connection: &mut Connection,
        now: Timestamp,
    ) -> Result<Slice, rusqlite::Error> {
        let tx = connection.transaction()?;
        let mut slice = Slice { removed: remove_kept_long(&tx, now)?, ..Slice::default() };
        if !slice.removed {
            let before = now.minus(self.retention.attempts);
            slice.removed = retention::remove_attempts(&tx, before, SLICE_ROWS)? > 0;
        }
        let mut position = self.position;
        if !slice.removed {
            let before = now.minus(self.retention.events);
            let pruned = retention::remove_events(&tx, position, before, SLICE_ROWS)?;
            position = pruned.position;
            slice.removed = pruned.events > 0;
            slice.subscriptions = pruned.subscriptions;
        }
        let mut audit_position = self.audit_position;
        if !slice.removed {
            let before = now.minus(self.retention.audit);
            let removed = audit::remove_old(&tx, audit_position, before, SLICE_AUDIT_ROWS)?;
            audit_position = removed.position;
            slice.removed = removed.rows > 0;
        }
        if slice.removed {
            tx.commit()?
        } else {
            tx.rollback()?
        }
        self.position = position;
        self.audit_position = audit_position;
        Ok(slice)
    }
}

/// Removes what is over for good: hidden services, idempotency keys, tokens and secrets.
fn remove_kept_long(tx: &Connection, now: Timestamp) -> Result<bool, rusqlite::Error> {
    let mut removed = remove_hidden(tx)?;
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
        for table in ["app_tokens", "app_secrets", "admin_tokens"] {
            removed += tx
                .prepare_cached(&format!("DELETE FROM {table} WHERE expires_at <= ?1"))?
                .execute([now.millis()])
                .map(count)?;
        }
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
        ("failed_attempts", "service, app, number"),
        ("idempotency_keys", "service, app, key"),
        ("emails", "service, email"),
        // Small, and without an index by service.
        ("recent_emails_0", "number"),
        ("recent_emails_1", "number"),
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
