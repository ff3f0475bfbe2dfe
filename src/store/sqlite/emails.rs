//! Which e-mails are taken, and by whom. Exact, though a new contact writes no random page of a large index.
//!
//! A change is appended to the table of the layer that is filling, and remembered. A full layer is moved
//! into the sorted table `emails` in the order of its keys, a slice at a time, while the other one fills. A newer
//! answer hides an older one: filling, then merging, then `emails`.
//!
//! All of it happens in the transaction of the group. What is remembered is what the tables say, and is read from
//! them again after a group that failed and after a start. How far a merge came is not stored: what was moved and
//! is still in its small table is moved once more, which changes nothing, because a newer change of the same e-mail
//! stands in the filling layer and is merged later.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};

use super::events::int;
use crate::domain::id::{ContactId, ServiceId};

/// Changes in a layer. Two are remembered at most, with about 150 bytes for a change of an e-mail of 30 bytes and
/// 400 for the longest: 2.5 MiB, at worst 6.5 MiB. Larger takes memory and lengthens the first write after a start;
/// smaller moves fewer neighbours at a time, so that more pages are written for each change of a large roll.
const RECENT_MAX: usize = 8_192;
/// Changes merged at a time, as neighbours on as few pages as possible: below a millisecond. Larger makes one group in
/// many slower, smaller writes the pages between two slices more often.
const MERGE_ROWS: usize = 256;
/// Changes merged for each one that is appended, so that a layer is merged when the next is half full. Larger
/// bunches the work, one or less would leave some of it to the group that fills the next layer.
const MERGED_FOR_EACH: usize = 2;

const APPEND: [&str; 2] = [
    "INSERT INTO recent_emails_0 (number, service, email, contact) VALUES (?1, ?2, ?3, ?4)",
    "INSERT INTO recent_emails_1 (number, service, email, contact) VALUES (?1, ?2, ?3, ?4)",
];
/// Without a WHERE, because SQLite then drops the pages and does not look at them.
const EMPTY: [&str; 2] = ["DELETE FROM recent_emails_0", "DELETE FROM recent_emails_1"];
/// Rows of a service that is hidden or gone are counted and not remembered: nothing may bring them back.
const LOAD: [&str; 2] = [
    "SELECT r.number, r.service, r.email, r.contact, s.service IS NOT NULL FROM recent_emails_0 r \
     LEFT JOIN services s ON s.service = r.service AND s.hidden = 0 ORDER BY r.number",
    "SELECT r.number, r.service, r.email, r.contact, s.service IS NOT NULL FROM recent_emails_1 r \
     LEFT JOIN services s ON s.service = r.service AND s.hidden = 0 ORDER BY r.number",
];

/// A service and a folded e-mail. Sorts as the key of `emails` does.
pub(super) type EmailKey = (ServiceId, String);

/// How much is remembered and merged; smaller in tests.
#[derive(Debug, Clone, Copy)]
struct Limits {
    recent: usize,
    merge: usize,
}

/// The e-mails of all services.
#[derive(Debug)]
pub(super) struct Emails {
    limits: Limits,
    /// `None` until it is needed.
    recent: Option<Recent>,
}

impl Default for Emails {
    fn default() -> Self {
        Self { limits: Limits { recent: RECENT_MAX, merge: MERGE_ROWS }, recent: None }
    }
}

impl Emails {
    /// The contact of the service that has this e-mail at this point of the transaction.
    pub(super) fn find(
        &mut self,
        connection: &Connection,
        key: &EmailKey,
    ) -> Result<Option<ContactId>, rusqlite::Error> {
        let recent = self.load(connection)?;
        let newest = recent.filling.changes.get(key).or_else(|| recent.merging.changes.get(key));
        if let Some(contact) = newest {
            return Ok(*contact);
        }
        find_merged(connection, key)
    }

    /// Gives a free e-mail to a contact.
    pub(super) fn take(
        &mut self,
        connection: &Connection,
        key: EmailKey,
        contact: ContactId,
    ) -> Result<(), rusqlite::Error> {
        self.append(connection, key, Some(contact))
    }

    /// Gives up the e-mail of a contact that is deleted.
    pub(super) fn free(
        &mut self,
        connection: &Connection,
        key: EmailKey,
    ) -> Result<(), rusqlite::Error> {
        self.append(connection, key, None)
    }

    fn append(
        &mut self,
        connection: &Connection,
        key: EmailKey,
        contact: Option<ContactId>,
    ) -> Result<(), rusqlite::Error> {
        let limits = self.limits;
        let recent = self.load(connection)?;
        if recent.filling.rows >= limits.recent {
            recent.switch(connection)?;
        }
        recent.append(connection, key, contact)
    }

    /// Merges what the changes since the last time are worth: once per group, before its commit.
    pub(super) fn merge(&mut self, connection: &Connection) -> Result<(), rusqlite::Error> {
        let slice = self.limits.merge;
        match &mut self.recent {
            Some(recent) if recent.owed >= slice => recent.merge(connection, recent.owed),
            _ => Ok(()),
        }
    }

    /// Forgets the e-mails of a service that was hidden: [`upkeep`](super::upkeep) removes its rows, and a merge must
    /// not bring them back.
    pub(super) fn hide(&mut self, service: ServiceId) {
        if let Some(recent) = &mut self.recent {
            for layer in [&mut recent.filling, &mut recent.merging] {
                layer.changes.retain(|(of, _), _| *of != service);
            }
        }
    }

    /// Forgets everything: the group failed.
    pub(super) fn forget(&mut self) {
        self.recent = None;
    }

    fn load(&mut self, connection: &Connection) -> Result<&mut Recent, rusqlite::Error> {
        match &mut self.recent {
            Some(recent) => Ok(recent),
            empty => Ok(empty.insert(Recent::load(connection)?)),
        }
    }
}

fn find_merged(
    connection: &Connection,
    (service, email): &EmailKey,
) -> Result<Option<ContactId>, rusqlite::Error> {
    let mut statement = connection
        .prepare_cached("SELECT contact FROM emails WHERE service = ?1 AND email = ?2")?;
    let mut rows = statement.query(params![service.as_bytes(), email])?;
    rows.next()?.map(|row| row.get(0).map(ContactId::from_bytes)).transpose()
}

/// What is not in `emails` yet.
#[derive(Debug)]
struct Recent {
    filling: Layer,
    merging: Layer,
    /// The number of the next change.
    next: u64,
    /// Changes that should be merged by now.
    owed: usize,
}

impl Recent {
    fn load(connection: &Connection) -> Result<Self, rusqlite::Error> {
        let (zero, last_zero) = Layer::load(connection, 0)?;
        let (one, last_one) = Layer::load(connection, 1)?;
        let (filling, merging) = if last_one > last_zero { (one, zero) } else { (zero, one) };
        Ok(Self { filling, merging, next: last_zero.max(last_one) + 1, owed: 0 })
    }

    fn append(
        &mut self,
        connection: &Connection,
        key: EmailKey,
        contact: Option<ContactId>,
    ) -> Result<(), rusqlite::Error> {
        connection.prepare_cached(APPEND[self.filling.table])?.execute(params![
            int(self.next),
            key.0.as_bytes(),
            key.1,
            contact.as_ref().map(ContactId::as_bytes),
        ])?;
        self.next += 1;
        self.filling.rows += 1;
        self.filling.changes.insert(key, contact);
        if self.merging.rows > 0 {
            self.owed += MERGED_FOR_EACH;
        }
        Ok(())
    }

    /// Lets the full layer be merged and the other one fill. What is left of that one is merged at once: little
    /// or nothing, but for a group larger than half a layer or a start in the middle of a merge.
    fn switch(&mut self, connection: &Connection) -> Result<(), rusqlite::Error> {
        self.merge(connection, usize::MAX)?;
        std::mem::swap(&mut self.filling, &mut self.merging);
        Ok(())
    }

    /// Moves the next changes into `emails` in the order of their keys.
    fn merge(&mut self, connection: &Connection, count: usize) -> Result<(), rusqlite::Error> {
        self.owed = 0;
        if self.merging.rows == 0 {
            return Ok(());
        }
        // An e-mail that was given up and taken again has a row of its former contact.
        let mut take = connection.prepare_cached(
            "INSERT OR REPLACE INTO emails (service, email, contact) VALUES (?1, ?2, ?3)",
        )?;
        let mut free =
            connection.prepare_cached("DELETE FROM emails WHERE service = ?1 AND email = ?2")?;
        for _ in 0..count {
            let Some(((service, email), contact)) = self.merging.changes.pop_first() else {
                break;
            };
            match contact {
                Some(id) => take.execute(params![service.as_bytes(), email, id.as_bytes()])?,
                None => free.execute(params![service.as_bytes(), email])?,
            };
        }
        if self.merging.changes.is_empty() {
            connection.prepare_cached(EMPTY[self.merging.table])?.execute([])?;
            self.merging.rows = 0;
        }
        Ok(())
    }
}

/// The changes in one of the two small tables.
#[derive(Debug)]
struct Layer {
    table: usize,
    /// Rows of the table, or more: upkeep may have removed some.
    rows: usize,
    /// The last change of each e-mail, without those that this process has merged.
    changes: BTreeMap<EmailKey, Option<ContactId>>,
}

impl Layer {
    /// Reads a table, and its highest number.
    fn load(connection: &Connection, table: usize) -> Result<(Self, u64), rusqlite::Error> {
        let mut layer = Self { table, rows: 0, changes: BTreeMap::new() };
        let mut last = 0;
        let mut statement = connection.prepare_cached(LOAD[table])?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            last = super::events::uint(row, 0)?;
            layer.rows += 1;
            if row.get(4)? {
                let key = (ServiceId::from_bytes(row.get(1)?), row.get(2)?);
                let contact = row.get::<_, Option<_>>(3)?.map(ContactId::from_bytes);
                layer.changes.insert(key, contact);
            }
        }
        Ok((layer, last))
    }
}

#[cfg(test)]
#[path = "emails_tests.rs"]
mod tests;
