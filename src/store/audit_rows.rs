//! The audit log as every back end keeps it: gathered while a group runs, written as rows, read as entries.
//!
//! A group has one row for all changes of contacts that one caller made to one service, and one row for each other
//! change. Numbers are given at the end of the group, when it is known how many entries each row has.

use std::net::IpAddr;

use crate::domain::audit::{Action, Entry, Origin, Subject, Who};
use crate::domain::clock::Timestamp;
use crate::domain::event::EventKind;
use crate::domain::id::{AppId, ContactId, ServiceId};
use crate::domain::tenancy::TokenId;

/// The action of a row that has changes of contacts.
pub(super) const CONTACTS: &str = "contacts";
/// Bytes of one change of a contact: one with the kind of its event (lowest two bits) and how far its number is from
/// the one before it, and the contact.
const CHANGE_BYTES: usize = 17;
/// How far the number of a change may be from the one before it in its row: what six bits hold.
const DISTANCE_MAX: u64 = 63;
/// Most changes of contacts in one row: 17 KB, which a reader of one entry reads whole.
const ROW_CHANGES_MAX: usize = 1_000;
/// Changes for which a row has room at first: a usual group under load.
const ROW_CHANGES_USUAL: usize = 32;

/// A row that is to be written.
#[derive(Debug)]
pub(super) struct Pending {
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

    /// What was noted, in order.
    pub(super) fn into_pending(self) -> Vec<Pending> {
        self.0
    }
}

impl Pending {
    /// Whose log it goes into.
    pub(super) fn service(&self) -> ServiceId {
        self.service
    }

    /// How many numbers it needs.
    pub(super) fn entries(&self) -> u64 {
        if self.action.is_some() { 1 } else { (self.changes.len() / CHANGE_BYTES) as u64 }
    }

    /// The row, once its first number and its time are known.
    pub(super) fn into_row(self, first: u64, at: Timestamp) -> AuditRow {
        let entries = self.entries();
        let subject = match (&self.action, &self.subject) {
            (None, _) => Some(self.changes),
            (_, Subject { service: Some(id), .. }) => Some(id.as_bytes().to_vec()),
            (_, Subject { token: Some(id), .. }) => Some(id.as_bytes().to_vec()),
            _ => None,
        };
        AuditRow {
            service: self.service,
            first,
            entries,
            at,
            who: self.origin.who.to_string(),
            address: self.origin.from.map(|from| from.to_string()),
            action: self.action.map_or(CONTACTS, Action::name).to_owned(),
            sequence: self.subject.sequence,
            app: self.subject.app,
            subject,
            target: self.subject.target,
            reason: self.subject.reason,
        }
    }
}

/// A row as it is stored.
#[derive(Debug)]
pub(super) struct AuditRow {
    pub(super) service: ServiceId,
    pub(super) first: u64,
    pub(super) entries: u64,
    pub(super) at: Timestamp,
    pub(super) who: String,
    pub(super) address: Option<String>,
    pub(super) action: String,
    pub(super) sequence: Option<u64>,
    pub(super) app: Option<AppId>,
    pub(super) subject: Option<Vec<u8>>,
    pub(super) target: Option<String>,
    pub(super) reason: Option<String>,
}

/// A stored row that none of our writers wrote.
#[derive(Debug, thiserror::Error)]
#[error("entry {0} of the audit log cannot be read")]
pub(super) struct UnreadableEntry(u64);

impl AuditRow {
    /// Adds the entries of the row that are wanted, as far as there is room; gives the number of the last one looked at.
    pub(super) fn push_entries(
        self,
        after: u64,
        wanted: Option<Action>,
        limit: usize,
        entries: &mut Vec<Entry>,
    ) -> Result<u64, UnreadableEntry> {
        let unreadable = || UnreadableEntry(self.first);
        let who = Who::parse(&self.who).ok_or_else(unreadable)?;
        let from = match &self.address {
            None => None,
            Some(text) => Some(text.parse::<IpAddr>().map_err(|_| unreadable())?),
        };
        let origin = Origin { who, from };
        let subject = self.subject.as_deref().unwrap_or_default();
        if self.action != CONTACTS {
            if self.first > after {
                entries.push(Entry {
                    number: self.first,
                    at: self.at,
                    origin,
                    action: Action::parse(&self.action).ok_or_else(unreadable)?,
                    subject: Subject {
                        service: subject.try_into().ok().map(ServiceId::from_bytes),
                        token: subject.try_into().ok().map(TokenId::from_bytes),
                        app: self.app,
                        contact: None,
                        sequence: self.sequence,
                        target: self.target,
                        reason: self.reason,
                    },
                });
            }
            return Ok(self.first);
        }
        let mut sequence = self.sequence.unwrap_or_default();
        let mut number = self.first;
        for (place, change) in (0_u64..).zip(subject.chunks_exact(CHANGE_BYTES)) {
            number = self.first + place;
            sequence += u64::from(change[0] >> 2);
            let action = EventKind::from_code(i64::from(change[0] & 3))
                .map(Action::from)
                .ok_or_else(unreadable)?;
            if number <= after || wanted.is_some_and(|wanted| wanted != action) {
                continue;
            }
            let contact = change[1..].try_into().ok().map(ContactId::from_bytes);
            let subject = Subject { contact, sequence: Some(sequence), ..Subject::default() };
            entries.push(Entry { number, at: self.at, origin, action, subject });
            if entries.len() == limit {
                break;
            }
        }
        Ok(number)
    }
}
