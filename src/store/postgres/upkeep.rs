//! Removes what is no longer needed, in slices small enough that no group waits long behind one. One node does it. It also
//! tells the planner when a table has grown out of what was known of it.
//!
//! Each step is a transaction of its own. Most remove rows that nobody else locks at the moment and wait for nobody, so
//! they need no place in the order of locks; those that touch a service lock it first.

use deadpool_postgres::ClientWrapper;
use tokio_postgres::types::ToSql;

use super::audit;
use super::change::{Stop, column};
use super::retention::{self, Pruned};
use super::session::{Session, execute, query, query_opt};
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, ServiceId};
use crate::store::retention::{IDEMPOTENCY_AGE, Retention};

/// Rows removed in one slice: some milliseconds of writing.
const SLICE_ROWS: u64 = 500;
/// Rows of the audit log removed in one slice. Each may tell of as many changes as a group had.
const SLICE_AUDIT_ROWS: u64 = 200;
/// Ids of transactions that are this old on the database's clock.
const OLD_GROUPS: &str = "at < (extract(epoch FROM now()) * 1000)::bigint - $2";
/// How long the id of a transaction is kept. Who does not know its end finds out within seconds.
const GROUP_AGE_MILLIS: i64 = 3_600_000;

/// Rows by which a table may grow before the planner is told for the first time; afterwards when it is three times as
/// long. Autovacuum looks once a minute. Until then a plan made for an empty table stays in use, and of two indexes that
/// begin with the service such a plan may take the one that then reads the whole roll for each look-up: measured, 2,800
/// creates per second in place of 9,000.
const GROWN_ROWS: i64 = 500;
/// Tables of which more than one index begins with the service.
const GROWING: &str = "SELECT s.relname::text FROM pg_stat_user_tables s JOIN pg_class c ON c.oid = s.relid \
     JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = current_schema() \
     AND s.relname IN ('contacts', 'failed_attempts') AND s.n_live_tup > $1 + 2 * greatest(c.reltuples, 0)::bigint";

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
    /// Whether there may be more to remove.
    pub(super) removed: bool,
    /// Subscriptions that began a generation, because events were removed that they still owed.
    pub(super) subscriptions: Vec<(ServiceId, AppId)>,
}

impl Upkeep {
    pub(super) fn new(retention: Retention) -> Self {
        Self { retention, position: None, audit_position: None }
    }

    /// Runs one slice: the first kind of thing of which there is much to remove. The connection must be in no
    /// transaction, and is in none afterwards. Where a step leaves little it goes on, so that what falls due all the
    /// time holds up nothing else.
    pub(super) async fn run_slice(
        &mut self,
        client: &ClientWrapper,
        now: Timestamp,
    ) -> Result<Slice, Stop> {
        let full = Slice { removed: true, ..Slice::default() };
        tell_planner(client).await?;
        if remove_hidden(client).await? {
            return Ok(full);
        }
        let old = now.minus(IDEMPOTENCY_AGE);
        let keys = remove(client, "idempotency_keys", "at <= $2", SLICE_ROWS, old.millis()).await?;
        let mut rows = keys;
        for table in ["app_tokens", "app_secrets", "admin_tokens"] {
            rows = rows
                .max(remove(client, table, "expires_at <= $2", SLICE_ROWS, now.millis()).await?);
        }
        rows = rows.max(remove(client, "groups", OLD_GROUPS, SLICE_ROWS, GROUP_AGE_MILLIS).await?);
        let before = now.minus(self.retention.attempts);
        rows = rows.max(retention::remove_attempts(client, before, SLICE_ROWS).await?);
        if rows >= SLICE_ROWS {
            return Ok(full);
        }
        let before = now.minus(self.retention.events);
        let found = retention::find_old(client, self.position, before).await?;
        self.position = found.position;
        if let Some(service) = found.service {
            client.batch_execute("BEGIN").await?;
            let pruned = retention::remove_events(client, service, before, SLICE_ROWS).await;
            let Pruned { events, subscriptions } = end(client, pruned).await?;
            if events < SLICE_ROWS {
                self.position = Some(service);
            }
            return Ok(Slice { removed: true, subscriptions });
        }
        let before = now.minus(self.retention.audit);
        let removed =
            audit::remove_old(client, self.audit_position, before, SLICE_AUDIT_ROWS).await?;
        self.audit_position = removed.position;
        Ok(Slice { removed: removed.rows > 0, ..Slice::default() })
    }
}

/// Lets plans be made anew for tables that have grown.
async fn tell_planner(client: &ClientWrapper) -> Result<(), Stop> {
    for row in query(client, GROWING, &[&GROWN_ROWS]).await? {
        let table: &str = column(&row, 0)?;
        // Whoever has it locked does the same, or the next slice does.
        client.batch_execute(&format!("ANALYZE (SKIP_LOCKED) {table}")).await?;
    }
    Ok(())
}

/// Ends the transaction of a step.
async fn end<T>(client: &ClientWrapper, done: Result<T, Stop>) -> Result<T, Stop> {
    if done.is_ok() {
        client.batch_execute("COMMIT").await?;
    } else if let Err(error) = client.batch_execute("ROLLBACK").await {
        // What went wrong before says more, and the connection is not used again.
        tracing::debug!(error = super::why(&error), "upkeep not rolled back");
    }
    done
}

/// Removes rows of a table that `filter` names by a time or an age, `$2` in milliseconds, and that nobody has locked, at most `limit`.
pub(super) async fn remove<S: Session>(
    session: &S,
    table: &str,
    filter: &str,
    limit: u64,
    millis: i64,
) -> Result<u64, tokio_postgres::Error> {
    let sql = format!(
        "DELETE FROM {table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {table} WHERE {filter} \
         LIMIT $1 FOR UPDATE SKIP LOCKED))"
    );
    execute(session, &sql, &[&super::change::int(limit), &millis]).await
}

/// Removes rows of a hidden service, the service itself last, so that a crash in between goes on here. Gives whether
/// there was one.
async fn remove_hidden(client: &ClientWrapper) -> Result<bool, Stop> {
    let sql = "SELECT service FROM services WHERE hidden LIMIT 1";
    let Some(row) = query_opt(client, sql, &[]).await? else {
        return Ok(false);
    };
    let service = ServiceId::from_uuid(column(&row, 0)?);
    client.batch_execute("BEGIN").await?;
    let done = remove_some_of(client, service).await;
    end(client, done.map_err(Stop::from)).await?;
    Ok(true)
}

async fn remove_some_of<S: Session>(
    session: &S,
    service: ServiceId,
) -> Result<(), tokio_postgres::Error> {
    let key = service.uuid();
    let of_service: [&(dyn ToSql + Sync); 1] = [&key];
    // The locks of those who work on what they found before it was hidden, in their order.
    let lock = "SELECT 1 FROM services WHERE service = $1 FOR UPDATE";
    query(session, lock, &of_service).await?;
    let lock = "SELECT 1 FROM progress WHERE service = $1 ORDER BY app FOR UPDATE";
    query(session, lock, &of_service).await?;
    let lock = "SELECT 1 FROM app_tokens WHERE service = $1 ORDER BY hash FOR UPDATE";
    query(session, lock, &of_service).await?;
    let mut removed =
        execute(session, "DELETE FROM app_tokens WHERE service = $1", &of_service).await?;
    for table in [
        "apps",
        "app_secrets",
        "contacts",
        "events",
        "subscriptions",
        "progress",
        "held",
        "exhausted",
        "failed_attempts",
        "idempotency_keys",
    ] {
        if removed >= SLICE_ROWS {
            return Ok(());
        }
        let sql = format!(
            "DELETE FROM {table} WHERE ctid = ANY(ARRAY(SELECT ctid FROM {table} \
             WHERE service = $1 LIMIT $2))"
        );
        let left = super::change::int(SLICE_ROWS - removed);
        removed += execute(session, &sql, &[&key, &left]).await?;
    }
    if removed < SLICE_ROWS {
        execute(session, "DELETE FROM rolls WHERE service = $1", &of_service).await?;
        execute(session, "DELETE FROM services WHERE service = $1", &of_service).await?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "upkeep_tests.rs"]
mod tests;
