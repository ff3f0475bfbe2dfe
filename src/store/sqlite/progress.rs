//! Progress of subscriptions: recorded by the engine in every group, read back at start.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::events::{int, time, uint};
use super::subscriptions::{failing_of, select_enabled, select_one, subscription_of};
use super::writer::{Change, Stop};
use super::{deliveries, secrets};
use crate::domain::audit::{Action, Subject};
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, ContactId, ServiceId};
use crate::domain::subscription::Enabled;
use crate::store::Error;
use crate::store::keyring::Keyring;
use crate::store::rows::{HeldRow, LaneRow, Record, bitmap_of};

/// Writes what a lane wants recorded; refused as a whole when its generation is over.
pub(super) fn record(change: &mut Change<'_>, record: &Record) -> Result<(), Stop> {
    let key = (record.service.as_bytes(), record.app.as_bytes());
    // The first statement checks and writes at once: when the generation is over it matches no row.
    let current = change
        .connection
        .prepare_cached(
            "UPDATE progress SET cursor = ?4, bitmap = ?5, failing_since = ?6, failing_attempts = ?7 \
             WHERE service = ?1 AND app = ?2 AND generation = ?3",
        )?
        .execute(params![
            key.0,
            key.1,
            int(record.generation),
            int(record.cursor),
            record.bitmap,
            record.failing.map(|failing| failing.since.millis()),
            record.failing.map_or(0, |failing| failing.attempts),
        ])?;
    if current == 0 {
        return Err(Error::Superseded.into());
    }
    for held in &record.hold {
        change
            .connection
            .prepare_cached(
                "INSERT OR REPLACE INTO held \
                 (service, app, sequence, contact, retries_used, attempts, due_at) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                key.0,
                key.1,
                int(held.sequence),
                held.contact.as_bytes(),
                held.retries_used,
                held.attempts,
                held.due_at.millis(),
            ])?;
    }
    for sequence in &record.release {
        change
            .connection
            .prepare_cached("DELETE FROM held WHERE service = ?1 AND app = ?2 AND sequence = ?3")?
            .execute(params![key.0, key.1, int(*sequence)])?;
    }
    for row in &record.exhaust {
        change
            .connection
            .prepare_cached(
                "INSERT OR REPLACE INTO exhausted (service, app, sequence, contact, attempts, at) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                key.0,
                key.1,
                int(row.sequence),
                row.contact.as_bytes(),
                row.attempts,
                row.at.millis()
            ])?;
    }
    if !record.failed.is_empty() {
        deliveries::insert_failed(change, record)?;
    }
    if let Some(reason) = &record.disable {
        disable(change, record, reason)?;
    }
    Ok(())
}

/// Moves a subscription to this place and begins a generation of it.
pub(super) fn set(
    connection: &Connection,
    service: ServiceId,
    app: AppId,
    cursor: u64,
    done: &[u64],
) -> Result<(), rusqlite::Error> {
    connection
        .prepare_cached(
            "UPDATE progress SET generation = generation + 1, cursor = ?3, bitmap = ?4 \
             WHERE service = ?1 AND app = ?2",
        )?
        .execute(params![
            service.as_bytes(),
            app.as_bytes(),
            int(cursor),
            bitmap_of(cursor, done)
        ])?;
    Ok(())
}

fn disable(change: &mut Change<'_>, record: &Record, reason: &str) -> Result<(), Stop> {
    let key = (record.service.as_bytes(), record.app.as_bytes());
    change
        .connection
        .prepare_cached(
            "UPDATE subscriptions SET enabled = ?3, reason = ?4, updated_at = ?5 \
             WHERE service = ?1 AND app = ?2",
        )?
        .execute(params![
            key.0,
            key.1,
            Enabled::DisabledBySystem.code(),
            reason,
            change.now.millis()
        ])?;
    change
        .connection
        .prepare_cached(
            "UPDATE progress SET generation = generation + 1 WHERE service = ?1 AND app = ?2",
        )?
        .execute(params![key.0, key.1])?;
    change.commit.subscriptions.push((record.service, record.app));
    let (app, reason) = (Some(record.app), Some(reason.to_owned()));
    let subject = Subject { app, reason, ..Subject::default() };
    change.note(record.service, Action::SubscriptionDisable, subject);
    Ok(())
}

fn lane_of(row: &Row<'_>) -> Result<LaneRow, rusqlite::Error> {
    Ok(LaneRow {
        subscription: subscription_of(row)?,
        secrets: Vec::new(),
        cursor: uint(row, 8)?,
        bitmap: row.get(9)?,
        failing: failing_of(row)?,
        held: Vec::new(),
        epoch: 0,
    })
}

fn held_of(row: &Row<'_>) -> Result<HeldRow, rusqlite::Error> {
    Ok(HeldRow {
        sequence: uint(row, 0)?,
        contact: ContactId::from_bytes(row.get(1)?),
        retries_used: row.get(2)?,
        attempts: row.get(3)?,
        due_at: time(row, 4)?,
    })
}

pub(super) fn find_lane(
    connection: &Connection,
    keys: &Keyring,
    service: ServiceId,
    app: AppId,
) -> Result<Option<LaneRow>, rusqlite::Error> {
    let tx = connection.unchecked_transaction()?;
    let key = params![service.as_bytes(), app.as_bytes()];
    let found = tx.prepare_cached(&select_one())?.query_row(key, lane_of).optional()?;
    let Some(mut lane) = found.filter(|lane| lane.subscription.enabled == Enabled::Yes) else {
        return Ok(None);
    };
    let there = tx
        .prepare_cached("SELECT 1 FROM services WHERE service = ?1 AND hidden = 0")?
        .exists([service.as_bytes()])?;
    if !there {
        return Ok(None);
    }
    // With their ends, also those that have expired: the lane knows the time of each attempt.
    lane.secrets = secrets::list_signing_secrets(&tx, keys, service, app, Timestamp::default())?;
    lane.held = tx
        .prepare_cached(
            "SELECT sequence, contact, retries_used, attempts, due_at FROM held \
             WHERE service = ?1 AND app = ?2 ORDER BY sequence",
        )?
        .query_map(key, held_of)?
        .collect::<Result<_, _>>()?;
    Ok(Some(lane))
}

/// All enabled subscriptions in three ordered passes that are merged by key, not a query for each.
pub(super) fn list_lanes(
    connection: &Connection,
    keys: &Keyring,
) -> Result<Vec<LaneRow>, rusqlite::Error> {
    let tx = connection.unchecked_transaction()?;
    let mut lanes: Vec<LaneRow> =
        tx.prepare(&select_enabled())?.query_map([], lane_of)?.collect::<Result<_, _>>()?;
    let find = |lanes: &[LaneRow], row: &Row<'_>, at| -> Result<Option<usize>, rusqlite::Error> {
        let key = (ServiceId::from_bytes(row.get(at)?), AppId::from_bytes(row.get(at + 1)?));
        Ok(lanes.binary_search_by_key(&key, |l| (l.subscription.service, l.subscription.app)).ok())
    };
    let mut held = tx.prepare(
        "SELECT sequence, contact, retries_used, attempts, due_at, service, app FROM held \
         ORDER BY service, app, sequence",
    )?;
    let mut rows = held.query([])?;
    while let Some(row) = rows.next()? {
        if let Some(at) = find(&lanes, row, 5)? {
            lanes[at].held.push(held_of(row)?);
        }
    }
    let mut secrets = tx.prepare(&format!(
        "SELECT {}, service, app FROM app_secrets ORDER BY service, app, number DESC",
        secrets::COLUMNS
    ))?;
    let mut rows = secrets.query([])?;
    while let Some(row) = rows.next()? {
        if let Some(at) = find(&lanes, row, 6)? {
            lanes[at].secrets.push(secrets::secret_of(keys, row)?);
        }
    }
    Ok(lanes)
}
