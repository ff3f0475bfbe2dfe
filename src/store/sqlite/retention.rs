//! Removes events and failed attempts that are older than their retention, in slices, as [`super::upkeep`] asks for them.
//!
//! The newest event of a service always stays. What was removed before it was delivered is never hidden: it becomes the
//! gap of each subscription that still owed it, and begins a generation of it.

use rusqlite::{Connection, OptionalExtension, params};

use super::deliveries::extend_gap;
use super::events::{int, time, uint};
use super::progress;
use super::subscriptions::enabled_of;
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, ServiceId};
pub use crate::store::retention::Retention;
use crate::store::rows::done_of;
use crate::store::standing::{Standing, joined};

/// Services whose oldest event is looked at in one slice.
const SLICE_SERVICES: i64 = 100;

/// Removes old failed attempts; gives how many.
pub(super) fn remove_attempts(
    connection: &Connection,
    before: Timestamp,
    limit: i64,
) -> Result<usize, rusqlite::Error> {
    connection
        .prepare_cached(
            "DELETE FROM failed_attempts WHERE (service, app, number) IN \
             (SELECT service, app, number FROM failed_attempts WHERE at < ?1 ORDER BY at LIMIT ?2)",
        )?
        .execute(params![before.millis(), limit])
}

/// What one slice over the event logs did.
#[derive(Debug, Default)]
pub(super) struct Pruned {
    /// Events removed.
    pub(super) events: usize,
    /// The last service that was looked at; `None` at the end of all.
    pub(super) position: Option<ServiceId>,
    /// Subscriptions that began a generation.
    pub(super) subscriptions: Vec<(ServiceId, AppId)>,
}

/// Removes old events of some services after `position`, at most `limit`.
pub(super) fn remove_events(
    connection: &Connection,
    position: Option<ServiceId>,
    before: Timestamp,
    limit: i64,
) -> Result<Pruned, rusqlite::Error> {
    let services: Vec<(ServiceId, u64, u64)> = connection
        .prepare_cached(
            "SELECT service, floor, head FROM services WHERE service > ?1 AND hidden = 0 \
             ORDER BY service LIMIT ?2",
        )?
        .query_map(
            params![position.map_or(Vec::new(), |id| id.as_bytes().to_vec()), SLICE_SERVICES],
            |row| Ok((ServiceId::from_bytes(row.get(0)?), uint(row, 1)?, uint(row, 2)?)),
        )?
        .collect::<Result<_, _>>()?;
    let last_slice = i64::try_from(services.len()).unwrap_or(i64::MAX) < SLICE_SERVICES;
    let mut pruned = Pruned { position, ..Pruned::default() };
    for (service, floor, head) in services {
        let left = limit - i64::try_from(pruned.events).unwrap_or(i64::MAX);
        let last = last_to_remove(connection, service, floor, head, before, left)?;
        if last > floor {
            pruned.events += connection
                .prepare_cached("DELETE FROM events WHERE service = ?1 AND sequence <= ?2")?
                .execute(params![service.as_bytes(), int(last)])?;
            connection
                .prepare_cached("UPDATE services SET floor = ?2 WHERE service = ?1")?
                .execute(params![service.as_bytes(), int(last)])?;
            move_progress(connection, service, last, &mut pruned.subscriptions)?;
        }
        if i64::try_from(pruned.events).unwrap_or(i64::MAX) >= limit {
            // There may be more of this service: the position stays before it.
            return Ok(pruned);
        }
        pruned.position = Some(service);
    }
    if last_slice {
        pruned.position = None;
    }
    Ok(pruned)
}

/// The last number to remove; the floor when nothing is old enough.
fn last_to_remove(
    connection: &Connection,
    service: ServiceId,
    floor: u64,
    head: u64,
    before: Timestamp,
    limit: i64,
) -> Result<u64, rusqlite::Error> {
    let mut last = floor;
    let mut oldest = connection.prepare_cached(
        "SELECT sequence, at FROM events WHERE service = ?1 AND sequence > ?2 AND sequence < ?3 \
         ORDER BY sequence LIMIT ?4",
    )?;
    let mut rows = oldest.query(params![service.as_bytes(), int(floor), int(head), limit])?;
    while let Some(row) = rows.next()? {
        // Times never go back within a log: the first that is young enough ends it.
        if time(row, 1)? >= before {
            break;
        }
        last = uint(row, 0)?;
    }
    Ok(last)
}

/// Moves every subscription of a service beyond what was removed, and stores what it never got. One that its app turned
/// off owes nothing, and starts at the head when it is enabled.
fn move_progress(
    connection: &Connection,
    service: ServiceId,
    floor: u64,
    moved: &mut Vec<(ServiceId, AppId)>,
) -> Result<(), rusqlite::Error> {
    let rows: Vec<(AppId, Standing)> = connection
        .prepare_cached(
            "SELECT p.app, p.cursor, p.bitmap, s.enabled, p.since FROM progress p \
             JOIN subscriptions s ON s.service = p.service AND s.app = p.app \
             WHERE p.service = ?1 AND s.enabled <> 0",
        )?
        .query_map([service.as_bytes()], |row| {
            let (cursor, bitmap) = (uint(row, 1)?, row.get::<_, Vec<u8>>(2)?);
            let enabled = enabled_of(row, 3)?;
            let (done, since) = (done_of(cursor, &bitmap), uint(row, 4)?);
            let standing = Standing { enabled, cursor, done, since };
            Ok((AppId::from_bytes(row.get(0)?), standing))
        })?
        .collect::<Result<_, _>>()?;
    for (app, standing) in rows {
        let key = params![service.as_bytes(), app.as_bytes(), int(floor)];
        let mut kept = None;
        for table in ["held", "exhausted"] {
            let range: Option<(u64, u64)> = connection
                .prepare_cached(&format!(
                    "SELECT min(sequence), max(sequence) FROM {table} \
                     WHERE service = ?1 AND app = ?2 AND sequence <= ?3 HAVING count(*) > 0"
                ))?
                .query_row(key, |row| Ok((uint(row, 0)?, uint(row, 1)?)))
                .optional()?;
            if range.is_some() {
                kept = joined(kept, range);
                connection
                    .prepare_cached(&format!(
                        "DELETE FROM {table} WHERE service = ?1 AND app = ?2 AND sequence <= ?3"
                    ))?
                    .execute(key)?;
            }
        }
        let Some(beyond) = standing.moved_beyond(floor, kept) else { continue };
        if let Some((from, to)) = beyond.missing {
            extend_gap(connection, service, app, from, to)?;
        }
        progress::set(connection, service, app, beyond.cursor, &beyond.done)?;
        moved.push((service, app));
    }
    Ok(())
}
