//! Deliveries one by one: what has failed or was given up, and sending again.
//!
//! A redelivery and a replay begin a generation: a result that is not recorded yet belongs to the one before and
//! changes nothing, so what was to be sent again is sent again whatever was on its way at that moment.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::events::{event_of, int, time, uint};
use super::progress;
use super::subscriptions::{select_one, subscription_of};
use super::writer::{Change, Stop};
use crate::domain::clock::Timestamp;
use crate::domain::event::Event;
use crate::domain::id::{AppId, ContactId, ServiceId};
use crate::domain::subscription::Enabled;
use crate::store::Error;
use crate::store::rows::{
    DeliveryQuery, DeliveryRow, DeliveryState, FAILED_PER_DELIVERY_MAX,
    FAILED_PER_SUBSCRIPTION_MAX, FailedAttempt, LATER_EVENTS_MAX, LaterEvents, Record, ReplayFrom,
    Replayed, done_of,
};
use crate::store::standing::{Standing, check_in_log, check_room};

/// Writes down attempts that failed, and forgets the oldest beyond the limits.
pub(super) fn insert_failed(change: &Change<'_>, record: &Record) -> Result<(), Stop> {
    let key = (record.service.as_bytes(), record.app.as_bytes());
    let count = u64::try_from(record.failed.len()).unwrap_or(u64::MAX);
    let last: u64 = change
        .connection
        .prepare_cached(
            "UPDATE progress SET failed_attempts = failed_attempts + ?3 \
             WHERE service = ?1 AND app = ?2 RETURNING failed_attempts",
        )?
        .query_row(params![key.0, key.1, int(count)], |row| uint(row, 0))?;
    for (number, failed) in (last - count + 1..).zip(&record.failed) {
        change
            .connection
            .prepare_cached(
                "INSERT INTO failed_attempts \
                 (service, app, number, sequence, attempt, at, status, step, answer) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                key.0,
                key.1,
                int(number),
                int(failed.sequence),
                failed.attempt,
                failed.at.millis(),
                failed.status,
                failed.step,
                failed.answer,
            ])?;
        change
            .connection
            .prepare_cached(
                "DELETE FROM failed_attempts WHERE service = ?1 AND app = ?2 AND number IN \
                 (SELECT number FROM failed_attempts WHERE service = ?1 AND app = ?2 AND sequence = ?3 \
                 ORDER BY number DESC LIMIT -1 OFFSET ?4)",
            )?
            .execute(params![key.0, key.1, int(failed.sequence), int(FAILED_PER_DELIVERY_MAX)])?;
    }
    change
        .connection
        .prepare_cached(
            "DELETE FROM failed_attempts WHERE service = ?1 AND app = ?2 AND number <= ?3",
        )?
        .execute(params![key.0, key.1, int(last.saturating_sub(FAILED_PER_SUBSCRIPTION_MAX))])?;
    Ok(())
}

fn find_standing(
    connection: &Connection,
    service: ServiceId,
    app: AppId,
) -> Result<Option<Standing>, rusqlite::Error> {
    connection
        .prepare_cached(&select_one())?
        .query_row(params![service.as_bytes(), app.as_bytes()], |row| {
            let (cursor, bitmap) = (uint(row, 8)?, row.get::<_, Vec<u8>>(9)?);
            let enabled = subscription_of(row)?.enabled;
            let since = uint(row, 15)?;
            Ok(Standing { enabled, cursor, done: done_of(cursor, &bitmap), since })
        })
        .optional()
}

fn failed_of(
    connection: &Connection,
    service: ServiceId,
    app: AppId,
    sequence: u64,
) -> Result<Vec<FailedAttempt>, rusqlite::Error> {
    connection
        .prepare_cached(
            "SELECT attempt, at, status, step, answer FROM failed_attempts \
             WHERE service = ?1 AND app = ?2 AND sequence = ?3 ORDER BY number",
        )?
        .query_map(params![service.as_bytes(), app.as_bytes(), int(sequence)], |row| {
            Ok(FailedAttempt {
                sequence,
                attempt: row.get(0)?,
                at: time(row, 1)?,
                status: row.get(2)?,
                step: row.get(3)?,
                answer: row.get(4)?,
            })
        })?
        .collect()
}

/// The rows of held and exhausted deliveries with their events; the parameters are service, app, number.
fn select_kept(filter: &str) -> String {
    format!(
        "SELECT e.sequence, e.event, e.contact, e.kind, e.contact_version, e.full_name, e.at, \
         k.exhausted, k.attempts, k.at FROM \
         (SELECT sequence, 0 AS exhausted, attempts, due_at AS at FROM held \
         WHERE service = ?1 AND app = ?2 AND sequence {filter} \
         UNION ALL SELECT sequence, 1, attempts, at FROM exhausted \
         WHERE service = ?1 AND app = ?2 AND sequence {filter}) k \
         JOIN events e ON e.service = ?1 AND e.sequence = k.sequence"
    )
}

fn kept_of(service: ServiceId, row: &Row<'_>) -> Result<DeliveryRow, rusqlite::Error> {
    let exhausted: bool = row.get(7)?;
    Ok(DeliveryRow {
        event: event_of(service, row)?,
        state: if exhausted { DeliveryState::Exhausted } else { DeliveryState::Held },
        attempts: row.get(8)?,
        at: Some(time(row, 9)?),
        failed: Vec::new(),
    })
}

pub(super) fn list_deliveries(
    connection: &Connection,
    service: ServiceId,
    app: AppId,
    query: DeliveryQuery,
) -> Result<Vec<DeliveryRow>, rusqlite::Error> {
    let tx = connection.unchecked_transaction()?;
    let kept = select_kept("> ?3");
    let wanted = match query.state {
        Some(DeliveryState::Held) => "WHERE k.exhausted = 0",
        Some(DeliveryState::Exhausted) => "WHERE k.exhausted = 1",
        _ => "",
    };
    let mut rows: Vec<DeliveryRow> = tx
        .prepare_cached(&format!("{kept} {wanted} ORDER BY k.sequence LIMIT ?4"))?
        .query_map(
            params![service.as_bytes(), app.as_bytes(), int(query.after), query.limit],
            |row| kept_of(service, row),
        )?
        .collect::<Result<_, _>>()?;
    for row in &mut rows {
        row.failed = failed_of(&tx, service, app, row.event.sequence)?;
    }
    Ok(rows)
}

pub(super) fn find_delivery(
    connection: &Connection,
    service: ServiceId,
    app: AppId,
    sequence: u64,
) -> Result<Option<DeliveryRow>, rusqlite::Error> {
    let tx = connection.unchecked_transaction()?;
    let Some(standing) = find_standing(&tx, service, app)? else { return Ok(None) };
    if standing.enabled == Enabled::No {
        return Ok(None);
    }
    let key = params![service.as_bytes(), app.as_bytes(), int(sequence)];
    let kept = tx
        .prepare_cached(&select_kept("= ?3"))?
        .query_row(key, |row| kept_of(service, row))
        .optional()?;
    let mut row = match kept {
        Some(row) => row,
        None => {
            let Some(event) = find_event(&tx, service, sequence)? else { return Ok(None) };
            let state = standing.state_of(sequence);
            DeliveryRow { event, state, attempts: 0, at: None, failed: Vec::new() }
        }
    };
    row.failed = failed_of(&tx, service, app, sequence)?;
    Ok(Some(row))
}

fn find_event(
    connection: &Connection,
    service: ServiceId,
    sequence: u64,
) -> Result<Option<Event>, rusqlite::Error> {
    connection
        .prepare_cached(
            "SELECT sequence, event, contact, kind, contact_version, full_name, at FROM events \
             WHERE service = ?1 AND sequence = ?2",
        )?
        .query_row(params![service.as_bytes(), int(sequence)], |row| event_of(service, row))
        .optional()
}

pub(super) fn list_later_events(
    connection: &Connection,
    service: ServiceId,
    sequence: u64,
) -> Result<LaterEvents, rusqlite::Error> {
    let tx = connection.unchecked_transaction()?;
    let head = tx
        .prepare_cached("SELECT head FROM services WHERE service = ?1 AND hidden = 0")?
        .query_row([service.as_bytes()], |row| uint(row, 0))
        .optional()?
        .unwrap_or(0);
    let Some(event) = find_event(&tx, service, sequence)? else {
        return Ok(LaterEvents { sequences: Vec::new(), head });
    };
    let sequences = later_of(&tx, service, event.contact, sequence)?;
    Ok(LaterEvents { sequences, head })
}

/// The events of a contact after a number, newest first.
fn later_of(
    connection: &Connection,
    service: ServiceId,
    contact: ContactId,
    after: u64,
) -> Result<Vec<u64>, rusqlite::Error> {
    let most = i64::try_from(LATER_EVENTS_MAX).unwrap_or(i64::MAX);
    connection
        .prepare_cached(
            "SELECT sequence FROM events WHERE service = ?1 AND sequence > ?2 AND contact = ?3 \
             ORDER BY sequence DESC LIMIT ?4",
        )?
        .query_map(params![service.as_bytes(), int(after), contact.as_bytes(), most], |row| {
            uint(row, 0)
        })?
        .collect()
}

/// The subscription's standing, if it sends at all, and the head of the log.
fn standing(
    change: &mut Change<'_>,
    service: ServiceId,
    app: AppId,
) -> Result<(Standing, u64), Stop> {
    // The row of this group, which no reader can see yet.
    let head = change.services.get_mut(change.connection, service)?.head;
    let standing = find_standing(change.connection, service, app)?.ok_or(Error::NotFound)?;
    standing.check_sends()?;
    Ok((standing, head))
}

pub(super) fn redeliver(
    change: &mut Change<'_>,
    service: ServiceId,
    app: AppId,
    sequence: u64,
    later: &LaterEvents,
) -> Result<(), Stop> {
    let (mut standing, _) = standing(change, service, app)?;
    let connection = change.connection;
    let event = find_event(connection, service, sequence)?.ok_or(Error::NotFound)?;
    let key = (service.as_bytes(), app.as_bytes());
    let is_held = |sequence: u64| {
        connection
            .prepare_cached("SELECT 1 FROM held WHERE service = ?1 AND app = ?2 AND sequence = ?3")?
            .exists(params![key.0, key.1, int(sequence)])
    };

    if is_held(sequence)? || !standing.finished(sequence) {
        // Owed: its contact's first owed event becomes due. One that is not held is on its way already.
        let due = connection
            .prepare_cached(
                "UPDATE held SET due_at = ?4 WHERE service = ?1 AND app = ?2 AND due_at > ?4 AND sequence = \
                 (SELECT min(sequence) FROM held WHERE service = ?1 AND app = ?2 AND contact = ?3)",
            )?
            .execute(params![key.0, key.1, event.contact.as_bytes(), change.now.millis()])?;
        if due > 0 {
            begin_generation(change, service, app, &standing)?;
        }
        return Ok(());
    }

    let held: u64 = connection
        .prepare_cached("SELECT count(*) FROM held WHERE service = ?1 AND app = ?2")?
        .query_row(params![key.0, key.1], |row| uint(row, 0))?;
    check_room(held)?;
    // What came after the reader looked is little, and at the front.
    let mut candidates = later_of(connection, service, event.contact, later.head.max(sequence))?;
    candidates.extend(&later.sequences);
    let mut newest = None;
    for candidate in candidates {
        if standing.finished(candidate) && !is_held(candidate)? {
            newest = Some(candidate);
            break;
        }
    }
    for again in [Some(sequence), newest].into_iter().flatten() {
        let attempts: Option<u32> = connection
            .prepare_cached(
                "DELETE FROM exhausted WHERE service = ?1 AND app = ?2 AND sequence = ?3 RETURNING attempts",
            )?
            .query_row(params![key.0, key.1, int(again)], |row| row.get(0))
            .optional()?;
        connection
            .prepare_cached(
                "INSERT INTO held (service, app, sequence, contact, retries_used, attempts, due_at) \
                 VALUES (?1, ?2, ?3, ?4, 0, ?5, ?6)",
            )?
            .execute(params![
                key.0,
                key.1,
                int(again),
                event.contact.as_bytes(),
                attempts.unwrap_or(0),
                change.now.millis()
            ])?;
        standing.done.retain(|done| *done != again);
    }
    begin_generation(change, service, app, &standing)?;
    change.commit.again.push((service, app));
    Ok(())
}

pub(super) fn replay(
    change: &mut Change<'_>,
    service: ServiceId,
    app: AppId,
    from: ReplayFrom,
) -> Result<Replayed, Stop> {
    let (mut standing, head) = standing(change, service, app)?;
    let after = match from {
        ReplayFrom::After(after) => check_in_log(after, head)?,
        ReplayFrom::Since(time) => before_time(change.connection, service, time, head)?,
    };
    let floor: u64 = change
        .connection
        .prepare_cached("SELECT floor FROM services WHERE service = ?1")?
        .query_row([service.as_bytes()], |row| uint(row, 0))?;
    let from = after.max(floor);
    let key = (service.as_bytes(), app.as_bytes());
    for table in ["held", "exhausted"] {
        change
            .connection
            .prepare_cached(&format!(
                "DELETE FROM {table} WHERE service = ?1 AND app = ?2 AND sequence > ?3"
            ))?
            .execute(params![key.0, key.1, int(from)])?;
    }
    standing.set_back(from);
    change
        .connection
        .prepare_cached(
            "UPDATE progress SET since = min(since, ?3) WHERE service = ?1 AND app = ?2",
        )?
        .execute(params![key.0, key.1, int(from)])?;
    if after < floor {
        extend_gap(change.connection, service, app, after + 1, floor)?;
    }
    begin_generation(change, service, app, &standing)?;
    change.commit.again.push((service, app));
    Ok(Replayed { after: from, newest: head })
}

/// The number before the first event of this time or later. Times never go back within a log, so it is found by halving.
fn before_time(
    connection: &Connection,
    service: ServiceId,
    wanted: Timestamp,
    head: u64,
) -> Result<u64, rusqlite::Error> {
    let (mut low, mut high) = (0, head);
    while low < high {
        let middle = low + (high - low) / 2 + 1;
        // A number that was removed is older than everything that is there.
        let earlier = connection
            .prepare_cached("SELECT at FROM events WHERE service = ?1 AND sequence = ?2")?
            .query_row(params![service.as_bytes(), int(middle)], |row| time(row, 0))
            .optional()?
            .is_none_or(|at| at < wanted);
        if earlier {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    Ok(low)
}

/// Adds to the stored gap of a subscription.
pub(super) fn extend_gap(
    connection: &Connection,
    service: ServiceId,
    app: AppId,
    from: u64,
    to: u64,
) -> Result<(), rusqlite::Error> {
    connection
        .prepare_cached(
            "UPDATE progress SET gap_from = min(coalesce(gap_from, ?3), ?3), \
             gap_to = max(coalesce(gap_to, ?4), ?4) WHERE service = ?1 AND app = ?2",
        )?
        .execute(params![service.as_bytes(), app.as_bytes(), int(from), int(to)])?;
    Ok(())
}

fn begin_generation(
    change: &mut Change<'_>,
    service: ServiceId,
    app: AppId,
    standing: &Standing,
) -> Result<(), Stop> {
    progress::set(change.connection, service, app, standing.cursor, &standing.done)?;
    change.commit.subscriptions.push((service, app));
    Ok(())
}
