//! What the writer remembers of services between groups: the ends of both logs, number of contacts, and which
//! extension numbers are taken. Forgotten whenever a group failed, then read from the file again.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use rusqlite::{Connection, OptionalExtension, params};

use super::events::{int, time, uint};
use super::writer::Stop;
use crate::domain::clock::Timestamp;
use crate::domain::id::ServiceId;
use crate::store::Error;
use crate::store::extension_map::ExtensionMap;

/// Services remembered at most; beyond it all are forgotten. A row is about 100 bytes, the map of extension
/// numbers at most 122 KiB, in practice one bit for each contact.
const SERVICES_MAX: usize = 10_000;

/// The row of a service as it is at this point of the transaction.
#[derive(Debug, Default)]
pub(super) struct ServiceRow {
    pub(super) head: u64,
    pub(super) last_event_at: Timestamp,
    pub(super) contacts: u64,
    /// The last number of the audit log, and the time of its entry.
    audit: (u64, Timestamp),
    /// Whether it differs from what the transaction has written.
    pub(super) changed: bool,
    extensions: Option<ExtensionMap>,
}

/// The remembered services.
#[derive(Debug, Default)]
pub(super) struct Services {
    rows: HashMap<ServiceId, ServiceRow>,
    changed: Vec<ServiceId>,
}

impl Services {
    /// The service's row, to be changed.
    pub(super) fn get_mut(
        &mut self,
        connection: &Connection,
        service: ServiceId,
    ) -> Result<&mut ServiceRow, Stop> {
        self.changed.push(service);
        if let Entry::Vacant(place) = self.rows.entry(service) {
            let row = connection
                .prepare_cached(
                    "SELECT head, last_event_at, contacts, audit_head, coalesce((SELECT at FROM audit \
                     WHERE service = ?1 ORDER BY first DESC LIMIT 1), 0) \
                     FROM services WHERE service = ?1 AND hidden = 0",
                )?
                .query_row([service.as_bytes()], |row| {
                    Ok(ServiceRow {
                        head: uint(row, 0)?,
                        last_event_at: time(row, 1)?,
                        contacts: uint(row, 2)?,
                        audit: (uint(row, 3)?, time(row, 4)?),
                        ..ServiceRow::default()
                    })
                })
                .optional()?
                .ok_or(Error::NotFound)?;
            place.insert(row);
        }
        self.rows.get_mut(&service).ok_or_else(|| Error::NotFound.into())
    }

    /// The lowest extension number that no contact of the service has.
    pub(super) fn free_extension(
        &mut self,
        connection: &Connection,
        service: ServiceId,
    ) -> Result<Option<u32>, Stop> {
        let row = self.get_mut(connection, service)?;
        if row.extensions.is_none() {
            let mut map = ExtensionMap::default();
            let mut taken = connection.prepare_cached(
                "SELECT extension FROM contacts WHERE service = ?1 AND extension IS NOT NULL",
            )?;
            let mut rows = taken.query([service.as_bytes()])?;
            while let Some(found) = rows.next()? {
                map.set(found.get(0)?, true);
            }
            row.extensions = Some(map);
        }
        Ok(row.extensions.as_ref().and_then(ExtensionMap::lowest_free))
    }

    /// Notes that a contact gave up one extension number and took another.
    pub(super) fn use_extension(
        &mut self,
        service: ServiceId,
        before: Option<u32>,
        after: Option<u32>,
    ) {
        if let Some(map) = self.rows.get_mut(&service).and_then(|row| row.extensions.as_mut()) {
            if let Some(number) = before {
                map.set(number, false);
            }
            if let Some(number) = after {
                map.set(number, true);
            }
        }
    }

    /// Counts a contact in or out.
    pub(super) fn count_contacts(&mut self, service: ServiceId, difference: i64) {
        if let Some(row) = self.rows.get_mut(&service) {
            row.contacts = row.contacts.saturating_add_signed(difference);
            row.changed = true;
        }
    }

    /// The first of so many numbers of the audit log and the time of its entries, if the service is remembered. They
    /// are written with the rest of the row.
    pub(super) fn take_audit_numbers(
        &mut self,
        service: ServiceId,
        entries: u64,
        now: Timestamp,
    ) -> Option<(u64, Timestamp)> {
        let row = self.rows.get_mut(&service)?;
        let (head, last_at) = row.audit;
        row.audit = (head + entries, now.max(last_at));
        row.changed = true;
        self.changed.push(service);
        Some((head + 1, row.audit.1))
    }

    /// Forgets a service that was hidden.
    pub(super) fn hide(&mut self, service: ServiceId) {
        self.rows.remove(&service);
    }

    /// Forgets everything: the group failed, or too much is remembered.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }

    /// Writes the rows that changed: once per group, however many events it appended.
    pub(super) fn write(&mut self, connection: &Connection) -> Result<(), rusqlite::Error> {
        for service in std::mem::take(&mut self.changed) {
            let Some(row) = self.rows.get_mut(&service).filter(|row| row.changed) else {
                continue;
            };
            connection
                .prepare_cached(
                    "UPDATE services SET head = ?2, last_event_at = ?3, contacts = ?4, audit_head = ?5 \
                     WHERE service = ?1",
                )?
                .execute(params![
                    service.as_bytes(),
                    int(row.head),
                    row.last_event_at.millis(),
                    int(row.contacts),
                    int(row.audit.0)
                ])?;
            row.changed = false;
        }
        Ok(())
    }

    /// Keeps what is remembered bounded; between groups only.
    pub(super) fn trim(&mut self) {
        if self.rows.len() > SERVICES_MAX {
            self.forget();
        }
    }
}
