//! The audit log in its table: written with the group, read by number. Rows are never changed; only [`remove_old`]
//! removes them.

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::events::{int, time, uint};
use super::services::Services;
use crate::domain::audit::SERVER;
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, ServiceId};
use crate::store::audit_rows::{Audit, AuditRow, CONTACTS};
use crate::store::rows::{AuditPage, AuditQuery};

/// Rows of contacts that one page looks at. With a filter that seldom fits a page comes back short instead of late.
const PAGE_ROWS_MAX: usize = 5_000;
/// Services whose oldest row is looked at in one slice of upkeep.
const SLICE_SERVICES: usize = 100;
/// Where the last number of the server's entries stands in `meta`.
const SERVER_HEAD: &str = "audit_head";

/// Numbers and writes what was noted.
pub(super) fn write(
    audit: Audit,
    connection: &Connection,
    services: &mut Services,
    now: Timestamp,
) -> Result<(), rusqlite::Error> {
    for pending in audit.into_pending() {
        let (service, entries) = (pending.service(), pending.entries());
        let (first, at) = take_numbers(connection, services, service, entries, now)?;
        insert(connection, &pending.into_row(first, at))?;
    }
    Ok(())
}

fn insert(connection: &Connection, row: &AuditRow) -> Result<(), rusqlite::Error> {
    connection
        .prepare_cached(
            "INSERT INTO audit (service, first, entries, at, who, address, action, sequence, app, \
             subject, target, reason) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?
        .execute(params![
            row.service.as_bytes(),
            int(row.first),
            int(row.entries),
            row.at.millis(),
            row.who,
            row.address,
            row.action,
            row.sequence.map(int),
            row.app.as_ref().map(|app| &app.as_bytes()[..]),
            row.subject,
            row.target,
            row.reason,
        ])?;
    Ok(())
}

fn row_of(service: ServiceId, row: &Row<'_>) -> Result<AuditRow, rusqlite::Error> {
    let sequence = match row.get::<_, Option<i64>>(5)? {
        None => None,
        Some(_) => Some(uint(row, 5)?),
    };
    Ok(AuditRow {
        service,
        first: uint(row, 0)?,
        entries: uint(row, 10)?,
        at: time(row, 1)?,
        who: row.get(2)?,
        address: row.get(3)?,
        action: row.get(4)?,
        sequence,
        app: row.get::<_, Option<[u8; 16]>>(6)?.map(AppId::from_bytes),
        subject: row.get(7)?,
        target: row.get(8)?,
        reason: row.get(9)?,
    })
}

/// The first of so many numbers of a service, and the time of its entries: never earlier than the entry before.
fn take_numbers(
    connection: &Connection,
    services: &mut Services,
    service: ServiceId,
    entries: u64,
    now: Timestamp,
) -> Result<(u64, Timestamp), rusqlite::Error> {
    if let Some(taken) = services.take_audit_numbers(service, entries, now) {
        return Ok(taken);
    }
    let last_at = connection
        .prepare_cached("SELECT at FROM audit WHERE service = ?1 ORDER BY first DESC LIMIT 1")?
        .query_row([service.as_bytes()], |row| time(row, 0))
        .optional()?
        .unwrap_or_default();
    let head = if service == SERVER {
        connection
            .prepare_cached("SELECT value FROM meta WHERE name = ?1")?
            .query_row([SERVER_HEAD], |row| uint(row, 0))
            .optional()?
            .unwrap_or(0)
    } else {
        // Also when it was hidden by this group.
        connection
            .prepare_cached("SELECT audit_head FROM services WHERE service = ?1")?
            .query_row([service.as_bytes()], |row| uint(row, 0))?
    };
    if service == SERVER {
        connection
            .prepare_cached("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)")?
            .execute(params![SERVER_HEAD, int(head + entries)])?;
    } else {
        connection
            .prepare_cached("UPDATE services SET audit_head = ?2 WHERE service = ?1")?
            .execute(params![service.as_bytes(), int(head + entries)])?;
    }
    Ok((head + 1, now.max(last_at)))
}

fn is_known(connection: &Connection, service: ServiceId) -> Result<bool, rusqlite::Error> {
    if service == SERVER {
        return Ok(true);
    }
    connection
        .prepare_cached(
            "SELECT 1 FROM services WHERE service = ?1 AND hidden = 0 \
             UNION ALL SELECT 1 FROM audit WHERE service = ?1 LIMIT 1",
        )?
        .exists([service.as_bytes()])
}

/// A page of the entries of a service; `None` when there is no such service and nothing is kept of one.
pub(super) fn list(
    connection: &Connection,
    service: ServiceId,
    query: AuditQuery,
) -> Result<Option<AuditPage>, rusqlite::Error> {
    let tx = connection.unchecked_transaction()?;
    if !is_known(&tx, service)? {
        return Ok(None);
    }
    let mut after = query.after;
    if let Some(since) = query.since {
        after = after.max(before_time(&tx, service, since)?);
    }
    // The row that has the next number may begin before it.
    let from = tx
        .prepare_cached(
            "SELECT first FROM audit WHERE service = ?1 AND first <= ?2 ORDER BY first DESC LIMIT 1",
        )?
        .query_row(params![service.as_bytes(), int(after.saturating_add(1))], |row| uint(row, 0))
        .optional()?
        .unwrap_or(0);
    let (filter, name) = match query.action {
        None => ("?3 IS NULL", None),
        Some(action) if action.event_kind().is_some() => ("action = ?3", Some(CONTACTS)),
        // The second half makes the partial index fit.
        Some(action) => ("action = ?3 AND action <> 'contacts'", Some(action.name())),
    };
    let mut statement = tx.prepare_cached(&format!(
        "SELECT first, at, who, address, action, sequence, app, subject, target, reason, entries FROM audit \
         WHERE service = ?1 AND first >= ?2 AND {filter} ORDER BY first"
    ))?;
    let mut rows = statement.query(params![service.as_bytes(), int(from), name])?;
    let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
    let mut page = AuditPage::default();
    let mut looked_at = 0;
    while let Some(row) = rows.next()? {
        let last = row_of(service, row)?
            .push_entries(after, query.action, limit, &mut page.entries)
            .map_err(|error| {
                rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error))
            })?;
        looked_at += 1;
        if page.entries.len() == limit || looked_at == PAGE_ROWS_MAX {
            page.next = Some(last);
            break;
        }
    }
    Ok(Some(page))
}

/// The number before the first entry of this time or later. Times never go back within a log, so it is found by halving.
fn before_time(
    connection: &Connection,
    service: ServiceId,
    wanted: Timestamp,
) -> Result<u64, rusqlite::Error> {
    let end = |order: &str| {
        connection
            .prepare_cached(&format!(
                "SELECT first FROM audit WHERE service = ?1 ORDER BY first {order} LIMIT 1"
            ))?
            .query_row([service.as_bytes()], |row| uint(row, 0))
            .optional()
    };
    let (Some(mut low), Some(newest)) = (end("ASC")?, end("DESC")?) else { return Ok(0) };
    let mut high = newest + 1;
    while low < high {
        let middle = low + (high - low) / 2;
        let (first, at) = connection
            .prepare_cached(
                "SELECT first, at FROM audit WHERE service = ?1 AND first <= ?2 \
                 ORDER BY first DESC LIMIT 1",
            )?
            .query_row(params![service.as_bytes(), int(middle)], |row| {
                Ok((uint(row, 0)?, time(row, 1)?))
            })?;
        if at < wanted {
            low = middle + 1;
        } else {
            high = first;
        }
    }
    // Entries of the newest row have its time; if that is too old, so are they.
    let is_beyond = low > newest;
    Ok(if is_beyond { u64::MAX >> 1 } else { low - 1 })
}

/// What one slice over the audit logs did.
#[derive(Debug, Default)]
pub(super) struct Removed {
    /// Rows removed.
    pub(super) rows: usize,
    /// The last service that was looked at; `None` at the end of all.
    pub(super) position: Option<ServiceId>,
}

/// Removes old rows of some services after `position`, at most `limit`. Those of deleted services are among them.
pub(super) fn remove_old(
    connection: &Connection,
    position: Option<ServiceId>,
    before: Timestamp,
    limit: usize,
) -> Result<Removed, rusqlite::Error> {
    let mut removed = Removed { position, ..Removed::default() };
    for _ in 0..SLICE_SERVICES {
        let next: Option<[u8; 16]> = connection
            .prepare_cached(
                "SELECT service FROM audit WHERE service > ?1 ORDER BY service LIMIT 1",
            )?
            .query_row([removed.position.map_or(Vec::new(), |id| id.as_bytes().to_vec())], |row| {
                row.get(0)
            })
            .optional()?;
        let Some(service) = next else {
            removed.position = None;
            return Ok(removed);
        };
        if let Some(last) = last_to_remove(connection, service, before, limit - removed.rows)? {
            removed.rows += connection
                .prepare_cached("DELETE FROM audit WHERE service = ?1 AND first <= ?2")?
                .execute(params![service, int(last)])?;
        }
        if removed.rows >= limit {
            // There may be more of this service: the position stays before it.
            return Ok(removed);
        }
        removed.position = Some(ServiceId::from_bytes(service));
    }
    Ok(removed)
}

fn last_to_remove(
    connection: &Connection,
    service: [u8; 16],
    before: Timestamp,
    limit: usize,
) -> Result<Option<u64>, rusqlite::Error> {
    let mut oldest = connection
        .prepare_cached("SELECT first, at FROM audit WHERE service = ?1 ORDER BY first LIMIT ?2")?;
    let mut rows = oldest.query(params![service, i64::try_from(limit).unwrap_or(i64::MAX)])?;
    let mut last = None;
    while let Some(row) = rows.next()? {
        // Times never go back within a log: the first that is young enough ends it.
        if time(row, 1)? >= before {
            break;
        }
        last = Some(uint(row, 0)?);
    }
    Ok(last)
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
