//! The audit log: gathered while a group runs, written with it, read by number.
//!
//! A group has one row for all changes of contacts that one caller made to one service, and one row for each other
//! change. Numbers are given at the end of the group, when it is known how many entries each row has. Rows are never
//! changed; only [`remove_old`] removes them.

use std::net::IpAddr;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::events::{int, time, uint};
use super::services::Services;
use crate::domain::audit::{Action, Entry, Origin, SERVER, Subject, Who};
use crate::domain::clock::Timestamp;
use crate::domain::event::EventKind;
use crate::domain::id::{AppId, ContactId, ServiceId};
use crate::domain::tenancy::TokenId;
use crate::store::rows::{AuditPage, AuditQuery};

/// The action of a row that has changes of contacts.
const CONTACTS: &str = "contacts";
/// Bytes of one change of a contact: one with the kind of its event (lowest two bits) and how far its number is from
/// the one before it, and the contact.
const CHANGE_BYTES: usize = 17;
/// How far the number of a change may be from the one before it in its row: what six bits hold.
const DISTANCE_MAX: u64 = 63;
/// Most changes of contacts in one row: 17 KB, which a reader of one entry reads whole.
const ROW_CHANGES_MAX: usize = 1_000;
/// Changes for which a row has room at first: a usual group under load.
const ROW_CHANGES_USUAL: usize = 32;
/// Rows of contacts that one page looks at. With a filter that seldom fits a page comes back short instead of late.
const PAGE_ROWS_MAX: usize = 5_000;
/// Services whose oldest row is looked at in one slice of upkeep.
const SLICE_SERVICES: usize = 100;
/// Where the last number of the server's entries stands in `meta`.
const SERVER_HEAD: &str = "audit_head";

/// A row that is to be written.
#[derive(Debug)]
struct Pending {
    service: ServiceId,
    origin: Origin,
    /// `None`: changes of contacts, which stand in `changes`.
    action: Option<Action>,
    subject: Subject,
    /// The event of the newest change.
    last: u64,
    changes: Vec<u8>,
}

/// The entries of the group that is being run.
#[derive(Debug, Default)]
pub(super) struct Audit(Vec<Pending>);

impl Audit {
    /// Notes a change of a contact. Allocates for the first of a row and when a row grows beyond what is usual.
    pub(super) fn note_contact(
        &mut self,
        service: ServiceId,
        origin: Origin,
        kind: EventKind,
        contact: ContactId,
        sequence: u64,
    ) {
        let kind = u8::try_from(kind.code()).unwrap_or_default();
        // Not past another kind of entry of the service, nor with a gap that does not fit: then a new row begins.
        let newest = self
            .0
            .iter_mut()
            .rev()
            .take_while(|row| row.action.is_none() || row.service != service)
            .find(|row| row.service == service && row.origin == origin);
        let fitting = newest.and_then(|row| {
            let distance = sequence - row.last;
            let fits =
                distance <= DISTANCE_MAX && row.changes.len() < ROW_CHANGES_MAX * CHANGE_BYTES;
            let distance = u8::try_from(distance).ok().filter(|_| fits)?;
            Some((row, distance))
        });
        if let Some((row, distance)) = fitting {
            row.last = sequence;
            row.changes.push((distance << 2) | kind);
            row.changes.extend_from_slice(contact.as_bytes());
            return;
        }
        let mut changes = Vec::with_capacity(ROW_CHANGES_USUAL * CHANGE_BYTES);
        changes.push(kind);
        changes.extend_from_slice(contact.as_bytes());
        let subject = Subject { sequence: Some(sequence), ..Subject::default() };
        self.0.push(Pending { service, origin, action: None, subject, last: sequence, changes });
    }

    /// Notes any other change.
    pub(super) fn note(
        &mut self,
        service: ServiceId,
        origin: Origin,
        action: Action,
        subject: Subject,
    ) {
        let changes = Vec::new();
        self.0.push(Pending { service, origin, action: Some(action), subject, last: 0, changes });
    }

    /// Numbers and writes what was noted.
    pub(super) fn write(
        self,
        connection: &Connection,
        services: &mut Services,
        now: Timestamp,
    ) -> Result<(), rusqlite::Error> {
        for row in self.0 {
            let entries =
                if row.action.is_some() { 1 } else { row.changes.len() / CHANGE_BYTES } as u64;
            let (first, at) = take_numbers(connection, services, row.service, entries, now)?;
            row.insert(connection, first, entries, at)?;
        }
        Ok(())
    }
}

impl Pending {
    fn insert(
        self,
        connection: &Connection,
        first: u64,
        entries: u64,
        at: Timestamp,
    ) -> Result<(), rusqlite::Error> {
        let subject: Option<&[u8]> = match (&self.action, &self.subject) {
            (None, _) => Some(&self.changes),
            (_, Subject { service: Some(id), .. }) => Some(id.as_bytes()),
            (_, Subject { token: Some(id), .. }) => Some(id.as_bytes()),
            _ => None,
        };
        connection
            .prepare_cached(
                "INSERT INTO audit (service, first, entries, at, who, address, action, sequence, app, \
                 subject, target, reason) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
            )?
            .execute(params![
                self.service.as_bytes(),
                int(first),
                int(entries),
                at.millis(),
                self.origin.who.to_string(),
                self.origin.from.map(|from| from.to_string()),
                self.action.map_or(CONTACTS, Action::name),
                self.subject.sequence.map(int),
                self.subject.app.as_ref().map(|app| &app.as_bytes()[..]),
                subject,
                self.subject.target,
                self.subject.reason,
            ])?;
        Ok(())
    }
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
        "SELECT first, at, who, address, action, sequence, app, subject, target, reason FROM audit \
         WHERE service = ?1 AND first >= ?2 AND {filter} ORDER BY first"
    ))?;
    let mut rows = statement.query(params![service.as_bytes(), int(from), name])?;
    let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
    let mut page = AuditPage::default();
    let mut looked_at = 0;
    while let Some(row) = rows.next()? {
        let last = push_entries(row, after, query.action, limit, &mut page.entries)?;
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

/// Adds the entries of a row that are wanted, as far as there is room; gives the number of the last one looked at.
fn push_entries(
    row: &Row<'_>,
    after: u64,
    wanted: Option<Action>,
    limit: usize,
    entries: &mut Vec<Entry>,
) -> Result<u64, rusqlite::Error> {
    let first = uint(row, 0)?;
    let who = parsed(row, 2, Who::parse)?;
    let from = match row.get_ref(3)?.as_str_or_null()? {
        None => None,
        Some(_) => Some(parsed(row, 3, |text| text.parse::<IpAddr>().ok())?),
    };
    let (at, origin) = (time(row, 1)?, Origin { who, from });
    let sequence = match row.get::<_, Option<i64>>(5)? {
        None => None,
        Some(_) => Some(uint(row, 5)?),
    };
    let subject = row.get_ref(7)?.as_blob_or_null()?.unwrap_or_default();
    if row.get_ref(4)?.as_str()? != CONTACTS {
        if first > after {
            entries.push(Entry {
                number: first,
                at,
                origin,
                action: parsed(row, 4, Action::parse)?,
                subject: Subject {
                    service: subject.try_into().ok().map(ServiceId::from_bytes),
                    token: subject.try_into().ok().map(TokenId::from_bytes),
                    app: row.get::<_, Option<[u8; 16]>>(6)?.map(AppId::from_bytes),
                    contact: None,
                    sequence,
                    target: row.get(8)?,
                    reason: row.get(9)?,
                },
            });
        }
        return Ok(first);
    }
    let mut sequence = sequence.unwrap_or_default();
    let mut number = first;
    for (at_place, change) in subject.chunks_exact(CHANGE_BYTES).enumerate() {
        number = first + at_place as u64;
        sequence += u64::from(change[0] >> 2);
        let code = i64::from(change[0] & 3);
        let action = EventKind::from_code(code)
            .map(Action::from)
            .ok_or(rusqlite::Error::IntegralValueOutOfRange(7, code))?;
        if number <= after || wanted.is_some_and(|wanted| wanted != action) {
            continue;
        }
        let contact = change[1..].try_into().ok().map(ContactId::from_bytes);
        let subject = Subject { contact, sequence: Some(sequence), ..Subject::default() };
        entries.push(Entry { number, at, origin, action, subject });
        if entries.len() == limit {
            break;
        }
    }
    Ok(number)
}

/// A text that is read by one of our own readers.
fn parsed<T>(
    row: &Row<'_>,
    column: usize,
    read: impl Fn(&str) -> Option<T>,
) -> Result<T, rusqlite::Error> {
    let text = row.get_ref(column)?.as_str()?;
    read(text).ok_or_else(|| {
        rusqlite::Error::InvalidColumnType(
            column,
            "a text of the audit log".to_owned(),
            rusqlite::types::Type::Text,
        )
    })
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
