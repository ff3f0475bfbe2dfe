//! The rows of the roll as they are at one point of a group: read once after the locks, changed in memory by one
//! command after the other, written once at the end.
//!
//! Whoever changes the roll of a service holds the lock of its row, so nothing that was read here can change before the
//! commit. That is why each command of a group is decided on what the earlier ones made, and why any number of them may
//! concern one contact, e-mail or extension number. Pure: no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::domain::audit::Origin;
use crate::domain::clock::Timestamp;
use crate::domain::contact::{
    ContactPatch, Field, FieldError, FieldValue, StaffContact, check_create, decide_create,
    decide_edit,
};
use crate::domain::contact_rules::fold_email;
use crate::domain::event::{Event, EventKind};
use crate::domain::id::{AppId, ContactId, EventId, IdMaker, ServiceId};
use crate::store::Error;
use crate::store::audit_rows::Audit;
use crate::store::command::{ContactAnswer, ContactChange, IdempotencyKey, IfMatch};
use crate::store::extension_map::ExtensionMap;

/// What a group must read before it can be decided.
#[derive(Debug, Default)]
pub(super) struct Needs {
    pub(super) contacts: BTreeSet<(ServiceId, ContactId)>,
    pub(super) emails: BTreeSet<(ServiceId, String)>,
    pub(super) keys: BTreeSet<(ServiceId, AppId, String)>,
    /// Services in which an extension number may be taken.
    pub(super) numbers: BTreeSet<ServiceId>,
    pub(super) services: BTreeSet<ServiceId>,
}

impl Needs {
    /// Adds what a change needs.
    pub(super) fn add(
        &mut self,
        service: ServiceId,
        change: &ContactChange,
        key: Option<&IdempotencyKey>,
    ) {
        self.services.insert(service);
        if let Some(key) = key {
            self.keys.insert((service, key.app, key.key.clone()));
        }
        match change {
            ContactChange::Create(wish) => {
                if let Some(Some(FieldValue::Text(email))) = wish.get(Field::Email) {
                    self.emails.insert((service, fold_email(email)));
                }
                self.numbers.insert(service);
            }
            ContactChange::Edit { id, patch, .. } => {
                self.contacts.insert((service, *id));
                if wanted_extension(patch).is_some() {
                    self.numbers.insert(service);
                }
            }
            ContactChange::Delete { id, .. } => {
                self.contacts.insert((service, *id));
            }
        }
    }
}

fn wanted_extension(wish: &ContactPatch) -> Option<u32> {
    match wish.get(Field::ExtensionNumber) {
        Some(Some(FieldValue::Number(number))) => u32::try_from(*number).ok(),
        _ => None,
    }
}

/// The row of a service, and that of its roll.
#[derive(Debug, Default)]
pub(super) struct ServiceState {
    pub(super) floor: u64,
    pub(super) version: u64,
    pub(super) head: u64,
    pub(super) last_event_at: Timestamp,
    pub(super) contacts: u64,
    pub(super) audit_head: u64,
    pub(super) audit_at: Timestamp,
    /// Which extension numbers are taken, where the group may take one.
    pub(super) numbers: Option<ExtensionMap>,
    pub(super) changed: bool,
}

/// A stored answer to an idempotency key.
#[derive(Clone, Debug)]
pub(super) struct KeptAnswer {
    pub(super) request_hash: Vec<u8>,
    pub(super) answer: String,
}

/// An answer that the group keeps.
#[derive(Debug)]
pub(super) struct NewAnswer {
    pub(super) service: ServiceId,
    pub(super) key: IdempotencyKey,
    pub(super) answer: String,
}

/// A contact as it was read and as it is now.
#[derive(Debug)]
pub(super) struct ContactState {
    pub(super) stored: Option<StaffContact>,
    pub(super) now: Option<StaffContact>,
    /// As it was folded when it was stored.
    pub(super) email: String,
}

/// The extension number of a contact before and after a change, where it is another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) freed: Option<u32>,
    pub(super) taken: Option<u32>,
}

/// Everything that was read, and what became of it.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    pub(super) services: BTreeMap<ServiceId, ServiceState>,
    pub(super) contacts: BTreeMap<(ServiceId, ContactId), ContactState>,
    /// Who has an e-mail; `None` when nobody has.
    pub(super) emails: HashMap<(ServiceId, String), Option<ContactId>>,
    pub(super) answers: HashMap<(ServiceId, AppId, String), KeptAnswer>,
    pub(super) new_answers: Vec<NewAnswer>,
    pub(super) events: Vec<Arc<Event>>,
    /// For each event, the extension numbers that it gave up and took.
    pub(super) moves: Vec<Move>,
    pub(super) audit: Audit,
}

/// With what each change is decided.
#[derive(Clone, Copy, Debug)]
pub(super) struct Making<'a> {
    pub(super) ids: &'a IdMaker,
    pub(super) now: Timestamp,
    pub(super) origin: Origin,
}

impl Overlay {
    /// Decides one change of the roll and appends its event. A refused one changes nothing.
    pub(super) fn apply(
        &mut self,
        making: Making<'_>,
        service: ServiceId,
        change: &ContactChange,
        key: Option<&IdempotencyKey>,
    ) -> Result<ContactAnswer, Error> {
        if !self.services.contains_key(&service) {
            return Err(Error::NotFound);
        }
        if let Some(key) = key
            && let Some(kept) = self.answers.get(&(service, key.app, key.key.clone()))
        {
            return if kept.request_hash == key.request_hash {
                Ok(ContactAnswer::Repeated(kept.answer.clone()))
            } else {
                Err(Error::KeyReused)
            };
        }
        let answer = match change {
            ContactChange::Create(wish) => self.create(making, service, wish.clone())?,
            ContactChange::Edit { id, patch, if_match } => {
                self.edit(making, service, *id, patch.clone(), if_match)?
            }
            ContactChange::Delete { id, if_match } => {
                self.delete(making, service, *id, if_match)?
            }
        };
        if let (Some(key), ContactAnswer::Created(contact)) = (key, &answer) {
            let answer = contact.to_json();
            let kept =
                KeptAnswer { request_hash: key.request_hash.to_vec(), answer: answer.clone() };
            self.answers.insert((service, key.app, key.key.clone()), kept);
            self.new_answers.push(NewAnswer { service, key: key.clone(), answer });
        }
        Ok(answer)
    }

    fn create(
        &mut self,
        making: Making<'_>,
        service: ServiceId,
        wish: ContactPatch,
    ) -> Result<ContactAnswer, Error> {
        check_create(&wish).map_err(Error::Refused)?;
        let free = match wanted_extension(&wish) {
            Some(_) => None,
            None => self.numbers(service)?.lowest_free(),
        };
        let id = ContactId::make(making.ids, making.now);
        let contact = decide_create(wish, id, free, making.now).map_err(Error::Refused)?;
        let email = fold_email(contact.fields.text(Field::Email));
        let place = (service, email);
        if self.emails.get(&place).copied().flatten().is_some() {
            let taken = FieldError::new("email", "is taken by another contact of this service");
            return Err(Error::Conflict(taken));
        }
        self.check_extension(service, &contact, None)?;
        self.emails.insert(place.clone(), Some(id));
        let moved = self.move_extension(service, None, contact.fields.extension());
        let state = ContactState { stored: None, now: Some(contact.clone()), email: place.1 };
        self.contacts.insert((service, id), state);
        if let Some(row) = self.services.get_mut(&service) {
            row.contacts += 1;
        }
        self.append(making, service, &contact, EventKind::Create, moved);
        Ok(ContactAnswer::Created(Box::new(contact)))
    }

    fn edit(
        &mut self,
        making: Making<'_>,
        service: ServiceId,
        id: ContactId,
        patch: ContactPatch,
        if_match: &IfMatch,
    ) -> Result<ContactAnswer, Error> {
        let current = self.current(service, id, if_match)?;
        let Some(contact) = decide_edit(&current, patch, making.now).map_err(Error::Refused)?
        else {
            return Ok(ContactAnswer::Edited(Box::new(current)));
        };
        let before = current.fields.extension();
        self.check_extension(service, &contact, before)?;
        let moved = self.move_extension(service, before, contact.fields.extension());
        if let Some(state) = self.contacts.get_mut(&(service, id)) {
            state.now = Some(contact.clone());
        }
        self.append(making, service, &contact, EventKind::Edit, moved);
        Ok(ContactAnswer::Edited(Box::new(contact)))
    }

    fn delete(
        &mut self,
        making: Making<'_>,
        service: ServiceId,
        id: ContactId,
        if_match: &IfMatch,
    ) -> Result<ContactAnswer, Error> {
        let mut contact = self.current(service, id, if_match)?;
        if let Some(state) = self.contacts.get_mut(&(service, id)) {
            state.now = None;
            self.emails.insert((service, state.email.clone()), None);
        }
        let moved = self.move_extension(service, contact.fields.extension(), None);
        if let Some(row) = self.services.get_mut(&service) {
            row.contacts = row.contacts.saturating_sub(1);
        }
        contact.version += 1;
        self.append(making, service, &contact, EventKind::Delete, moved);
        Ok(ContactAnswer::Deleted(id))
    }

    fn current(
        &self,
        service: ServiceId,
        id: ContactId,
        if_match: &IfMatch,
    ) -> Result<StaffContact, Error> {
        let state = self.contacts.get(&(service, id));
        let current = state.and_then(|state| state.now.clone()).ok_or(Error::NotFound)?;
        if if_match.allows(current.version) {
            Ok(current)
        } else {
            Err(Error::VersionMismatch { current: current.version })
        }
    }

    fn numbers(&self, service: ServiceId) -> Result<&ExtensionMap, Error> {
        let numbers = self.services.get(&service).and_then(|row| row.numbers.as_ref());
        numbers.ok_or_else(|| Error::Internal("extension numbers were not read".to_owned()))
    }

    /// Refuses a number that another contact has.
    fn check_extension(
        &self,
        service: ServiceId,
        contact: &StaffContact,
        before: Option<u32>,
    ) -> Result<(), Error> {
        let Some(number) = contact.fields.extension() else { return Ok(()) };
        if before != Some(number) && self.numbers(service)?.is_taken(number) {
            let taken = format!("{number} is taken by another contact of this service");
            return Err(Error::Conflict(FieldError::new("extensionNumber", taken)));
        }
        Ok(())
    }

    fn move_extension(
        &mut self,
        service: ServiceId,
        before: Option<u32>,
        after: Option<u32>,
    ) -> Move {
        if before == after {
            return Move::default();
        }
        let numbers = self.services.get_mut(&service).and_then(|row| row.numbers.as_mut());
        // Whoever remembers them without having read them now brings them forward from the events.
        if let Some(numbers) = numbers {
            for (number, taken) in [(before, false), (after, true)] {
                if let Some(number) = number {
                    numbers.set(number, taken);
                }
            }
        }
        Move { freed: before, taken: after }
    }

    fn append(
        &mut self,
        making: Making<'_>,
        service: ServiceId,
        contact: &StaffContact,
        kind: EventKind,
        moved: Move,
    ) {
        let Some(row) = self.services.get_mut(&service) else { return };
        // A clock that was set back, or that of another node, must not make an event older than the one before it.
        let at = making.now.max(row.last_event_at);
        row.head += 1;
        row.last_event_at = at;
        row.changed = true;
        let event = Event {
            service,
            sequence: row.head,
            id: EventId::make(making.ids, making.now),
            contact: contact.id,
            kind,
            contact_version: contact.version,
            full_name: contact.full_name(),
            at,
        };
        self.audit.note_contact(service, making.origin, kind, contact.id, event.sequence);
        self.events.push(Arc::new(event));
        self.moves.push(moved);
    }
}
