//! The event log: appended by the writer, read in order.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::writer::{Change, Stop};
use crate::domain::clock::Timestamp;
use crate::domain::contact::StaffContact;
use crate::domain::event::{Event, EventKind};
use crate::domain::id::{ContactId, EventId, ServiceId};
use crate::store::rows::LogPage;

/// A number as SQLite keeps it; ours never reach the sign bit.
pub(super) fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A stored number that is never negative.
pub(super) fn uint(row: &Row<'_>, column: usize) -> Result<u64, rusqlite::Error> {
    let number: i64 = row.get(column)?;
    u64::try_from(number).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, number))
}

/// A stored time.
pub(super) fn time(row: &Row<'_>, column: usize) -> Result<Timestamp, rusqlite::Error> {
    row.get(column).map(Timestamp::from_millis)
}

/// A stored time that may be absent.
pub(super) fn time_or_none(
    row: &Row<'_>,
    column: usize,
) -> Result<Option<Timestamp>, rusqlite::Error> {
    Ok(row.get::<_, Option<i64>>(column)?.map(Timestamp::from_millis))
}

/// Appends the event of a change that was just written, notes it for the audit log, and counts it in the service's row
/// in memory.
pub(super) fn append(
    change: &mut Change<'_>,
    service: ServiceId,
    contact: &StaffContact,
    kind: EventKind,
) -> Result<(), Stop> {
    let now = change.now;
    let row = change.services.get_mut(change.connection, service)?;
    // A clock that was set back must not make an event older than the one before it.
    let at = now.max(row.last_event_at);
    let event = Event {
        service,
        sequence: row.head + 1,
        id: EventId::make(change.ids, now),
        contact: contact.id,
        kind,
        contact_version: contact.version,
        full_name: contact.full_name(),
        at,
    };
    change
        .connection
        .prepare_cached(
            "INSERT INTO events (service, sequence, event, contact, kind, contact_version, full_name, at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            service.as_bytes(),
            int(event.sequence),
            event.id.as_bytes(),
            event.contact.as_bytes(),
            kind.code(),
            int(event.contact_version),
            event.full_name,
            at.millis(),
        ])?;
    row.head = event.sequence;
    row.last_event_at = at;
    row.changed = true;
    change.audit.note_contact(service, change.origin, kind, contact.id, event.sequence);
    change.commit.events.push(Arc::new(event));
    Ok(())
}

pub(super) fn list_heads(
    connection: &Connection,
) -> Result<Vec<(ServiceId, u64)>, rusqlite::Error> {
    connection
        .prepare_cached("SELECT service, head FROM services WHERE hidden = 0 ORDER BY service")?
        .query_map([], |row| Ok((ServiceId::from_bytes(row.get(0)?), uint(row, 1)?)))?
        .collect()
}

pub(super) fn list_events(
    connection: &Connection,
    service: ServiceId,
    after: u64,
    limit: u32,
) -> Result<Vec<Event>, rusqlite::Error> {
    connection
        .prepare_cached(
            "SELECT sequence, event, contact, kind, contact_version, full_name, at FROM events \
             WHERE service = ?1 AND sequence > ?2 ORDER BY sequence LIMIT ?3",
        )?
        .query_map(params![service.as_bytes(), int(after), limit], |row| event_of(service, row))?
        .collect()
}

/// The event in a row of number, id, contact, kind, version, name and time.
pub(super) fn event_of(service: ServiceId, row: &Row<'_>) -> Result<Event, rusqlite::Error> {
    let code: i64 = row.get(3)?;
    Ok(Event {
        service,
        sequence: uint(row, 0)?,
        id: EventId::from_bytes(row.get(1)?),
        contact: ContactId::from_bytes(row.get(2)?),
        kind: EventKind::from_code(code)
            .ok_or(rusqlite::Error::IntegralValueOutOfRange(3, code))?,
        contact_version: uint(row, 4)?,
        full_name: row.get(5)?,
        at: time(row, 6)?,
    })
}

/// Head and events of one state. A service that is being removed is not there.
pub(super) fn list_log(
    connection: &Connection,
    service: ServiceId,
    after: u64,
    limit: u32,
) -> Result<Option<LogPage>, rusqlite::Error> {
    let tx = connection.unchecked_transaction()?;
    let newest = tx
        .prepare_cached("SELECT head FROM services WHERE service = ?1 AND hidden = 0")?
        .query_row([service.as_bytes()], |row| uint(row, 0))
        .optional()?;
    let Some(newest) = newest else {
        return Ok(None);
    };
    Ok(Some(LogPage { events: list_events(&tx, service, after, limit)?, newest }))
}
