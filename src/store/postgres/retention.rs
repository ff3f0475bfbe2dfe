//! Removes events and failed attempts that are older than their retention, in slices, as [`super::upkeep`] asks for them.
//!
//! The newest event of a service always stays. What was removed before it was delivered is never hidden: it becomes the
//! gap of each subscription that still owed it, and begins a generation of it.

use std::collections::{BTreeMap, BTreeSet};

use super::change::{Stop, column, count, int, lock_service, time_or_none, uint};
use super::deliveries::extend_gap;
use super::progress;
use super::session::{Session, execute, query, query_opt};
use super::subscriptions::{JOINED, enabled_of};
use super::upkeep::remove;
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, ServiceId};
use crate::domain::shard::{Shard, shard_of};
use crate::store::rows::done_of;
use crate::store::standing::{Range, Standing, joined};

/// Services whose oldest event is looked at in one slice.
const SLICE_SERVICES: i64 = 100;

/// Removes old failed attempts; gives how many.
pub(super) async fn remove_attempts<S: Session>(
    session: &S,
    before: Timestamp,
    limit: u64,
) -> Result<u64, tokio_postgres::Error> {
    remove(session, "failed_attempts", "at < $2 ORDER BY at", limit, before.millis()).await
}

/// A service with events to remove, as it looked without a lock.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// It; `None` when none of those that were looked at has any.
    pub(super) service: Option<ServiceId>,
    /// The service before it, or the last that was looked at; `None` at the end of all.
    pub(super) position: Option<ServiceId>,
}

/// Looks for old events of some services after `position`.
pub(super) async fn find_old<S: Session>(
    session: &S,
    position: Option<ServiceId>,
    before: Timestamp,
) -> Result<Found, Stop> {
    let sql = "SELECT s.service, (SELECT e.at FROM events e WHERE e.service = s.service \
         AND e.sequence > s.floor AND e.sequence < s.head ORDER BY e.sequence LIMIT 1) \
         FROM service_states s WHERE s.service > $1 AND NOT s.hidden ORDER BY s.service LIMIT $2";
    // No service has this number.
    let from = position.unwrap_or(crate::domain::audit::SERVER);
    let services = query(session, sql, &[&from.uuid(), &SLICE_SERVICES]).await?;
    let mut found = Found { service: None, position };
    for row in &services {
        let service = ServiceId::from_uuid(column(row, 0)?);
        if time_or_none(row, 1)?.is_some_and(|oldest| oldest < before) {
            found.service = Some(service);
            return Ok(found);
        }
        found.position = Some(service);
    }
    if i64::try_from(services.len()).unwrap_or(i64::MAX) < SLICE_SERVICES {
        found.position = None;
    }
    Ok(found)
}

/// What the removal from one log did.
#[derive(Debug, Default)]
pub(super) struct Pruned {
    /// Events removed.
    pub(super) events: u64,
    /// Subscriptions that began a generation.
    pub(super) subscriptions: Vec<(ServiceId, AppId)>,
}

/// Removes old events of one service, at most `limit`. In a transaction that holds no lock yet: it takes those of the
/// service and of its subscriptions, in the order that all keep.
pub(super) async fn remove_events<S: Session>(
    session: &S,
    service: ServiceId,
    before: Timestamp,
    limit: u64,
) -> Result<Pruned, Stop> {
    let mut pruned = Pruned::default();
    let key = service.uuid();
    let Some(locked) = lock_service(session, service).await? else {
        return Ok(pruned);
    };
    // Times never go back within a log.
    let sql = "SELECT max(sequence) FROM (SELECT sequence, at FROM events WHERE service = $1 \
         AND sequence > $2 AND sequence < $3 ORDER BY sequence LIMIT $4) e WHERE at < $5";
    let (from, to, most) = (int(locked.floor), int(locked.head), int(limit));
    let found = query_opt(session, sql, &[&key, &from, &to, &most, &before.millis()]).await?;
    let last: Option<i64> = found.map_or(Ok(None), |row| column(&row, 0))?;
    let Some(last) = last else { return Ok(pruned) };
    let sql = "DELETE FROM events WHERE service = $1 AND sequence <= $2";
    pruned.events = execute(session, sql, &[&key, &last]).await?;
    execute(session, "UPDATE services SET floor = $2 WHERE service = $1", &[&key, &last]).await?;
    move_progress(session, service, last, &mut pruned.subscriptions).await?;
    let shards: BTreeSet<Shard> =
        pruned.subscriptions.iter().map(|(_, app)| shard_of(*app)).collect();
    count(session, &shards, false).await?;
    Ok(pruned)
}

/// Moves every subscription of a service beyond what was removed, and stores what it never got. One that its app turned
/// off owes nothing, and starts at the head when it is enabled.
async fn move_progress<S: Session>(
    session: &S,
    service: ServiceId,
    last: i64,
    moved: &mut Vec<(ServiceId, AppId)>,
) -> Result<(), Stop> {
    let key = service.uuid();
    let floor = u64::try_from(last).unwrap_or_default();
    let lock = "SELECT 1 FROM progress WHERE service = $1 ORDER BY app FOR UPDATE";
    query(session, lock, &[&key]).await?;
    let mut kept: BTreeMap<AppId, Option<Range>> = BTreeMap::new();
    for table in ["held", "exhausted"] {
        let sql = format!(
            "SELECT app, min(sequence), max(sequence) FROM {table} \
             WHERE service = $1 AND sequence <= $2 GROUP BY app"
        );
        for row in query(session, &sql, &[&key, &last]).await? {
            let range = kept.entry(AppId::from_uuid(column(&row, 0)?)).or_default();
            *range = joined(*range, Some((uint(&row, 1)?, uint(&row, 2)?)));
        }
        let sql = format!("DELETE FROM {table} WHERE service = $1 AND sequence <= $2");
        execute(session, &sql, &[&key, &last]).await?;
    }
    let sql = format!(
        "SELECT p.app, p.cursor, p.bitmap, s.enabled, p.since FROM {JOINED} \
         WHERE p.service = $1 AND s.enabled <> 0 ORDER BY p.app"
    );
    for row in query(session, &sql, &[&key]).await? {
        let (app, cursor) = (AppId::from_uuid(column(&row, 0)?), uint(&row, 1)?);
        let bitmap: &[u8] = column(&row, 2)?;
        let (enabled, since) = (enabled_of(&row, 3)?, uint(&row, 4)?);
        let standing = Standing { enabled, cursor, done: done_of(cursor, bitmap), since };
        let of_app = kept.get(&app).copied().flatten();
        let Some(beyond) = standing.moved_beyond(floor, of_app) else { continue };
        if let Some((from, to)) = beyond.missing {
            extend_gap(session, service, app, from, to).await?;
        }
        progress::set(session, service, app, beyond.cursor, &beyond.done).await?;
        moved.push((service, app));
    }
    Ok(())
}
