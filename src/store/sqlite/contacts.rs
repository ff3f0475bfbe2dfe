//! Staff contacts: read by id or in slices, changed by the writer together with their event.

use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};

use super::events::{append, int, time, uint};
use super::writer::{Change, Stop};
use crate::domain::contact::{
    ContactPatch, Field, FieldError, StaffContact, check_create, decide_create, decide_edit,
};
use crate::domain::contact_rules::fold_email;
use crate::domain::event::EventKind;
use crate::domain::id::{ContactId, ServiceId};
use crate::store::Error;
use crate::store::command::{ContactAnswer, ContactChange, IdempotencyKey, IfMatch};
use crate::store::retention::IDEMPOTENCY_AGE;
use crate::store::rows::{ContactList, ContactQuery};

/// Applies one change of the roll and appends its event. Everything that can be refused is refused before the
/// first write, or by the first write itself, which then leaves nothing behind.
pub(super) fn apply(
    change: &mut Change<'_>,
    service: ServiceId,
    wish: ContactChange,
    key: Option<IdempotencyKey>,
) -> Result<ContactAnswer, Stop> {
    change.services.get_mut(change.connection, service)?;
    if let Some(key) = &key
        && let Some(answer) = find_answer(change, service, key)?
    {
        return Ok(ContactAnswer::Repeated(answer));
    }
    let answer = match wish {
        ContactChange::Create(wish) => create(change, service, wish)?,
        ContactChange::Edit { id, patch, if_match } => edit(change, service, id, patch, &if_match)?,
        ContactChange::Delete { id, if_match } => delete(change, service, id, &if_match)?,
    };
    if let (Some(key), ContactAnswer::Created(contact)) = (key, &answer) {
        keep_answer(change, service, &key, &contact.to_json())?;
    }
    Ok(answer)
}

fn find_answer(
    change: &Change<'_>,
    service: ServiceId,
    key: &IdempotencyKey,
) -> Result<Option<String>, Stop> {
    let found: Option<(Vec<u8>, String)> = change
        .connection
        .prepare_cached(
            "SELECT request_hash, answer FROM idempotency_keys \
             WHERE service = ?1 AND app = ?2 AND key = ?3 AND at > ?4",
        )?
        .query_row(
            params![
                service.as_bytes(),
                key.app.as_bytes(),
                key.key,
                change.now.minus(IDEMPOTENCY_AGE).millis()
            ],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )
        .optional()?;
    match found {
        None => Ok(None),
        Some((hash, answer)) if hash == key.request_hash => Ok(Some(answer)),
        Some(_) => Err(Error::KeyReused.into()),
    }
}

fn keep_answer(
    change: &Change<'_>,
    service: ServiceId,
    key: &IdempotencyKey,
    answer: &str,
) -> Result<(), Stop> {
    change
        .connection
        .prepare_cached(
            "INSERT OR REPLACE INTO idempotency_keys (service, app, key, request_hash, answer, at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            service.as_bytes(),
            key.app.as_bytes(),
            key.key,
            key.request_hash,
            answer,
            change.now.millis()
        ])?;
    Ok(())
}

fn create(
    change: &mut Change<'_>,
    service: ServiceId,
    wish: ContactPatch,
) -> Result<ContactAnswer, Stop> {
    check_create(&wish).map_err(Error::Refused)?;
    let wanted = wish.get(Field::ExtensionNumber).flatten().is_some();
    let free =
        if wanted { None } else { change.services.free_extension(change.connection, service)? };
    let id = ContactId::make(change.ids, change.now);
    let contact = decide_create(wish, id, free, change.now).map_err(Error::Refused)?;
    let email = (service, fold_email(contact.fields.text(Field::Email)));
    if change.emails.find(change.connection, &email)?.is_some() {
        let taken = FieldError::new("email", "is taken by another contact of this service");
        return Err(Error::Conflict(taken).into());
    }
    let inserted = change
        .connection
        .prepare_cached(
            "INSERT INTO contacts (service, contact, version, created_at, updated_at, email, extension, \
             search_name, fields) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?
        .execute(params![
            service.as_bytes(),
            id.as_bytes(),
            int(contact.version),
            contact.created_at.millis(),
            contact.updated_at.millis(),
            email.1,
            contact.fields.extension(),
            contact.full_name().to_lowercase(),
            contact.fields.to_json(),
        ]);
    refuse_taken(inserted, &contact)?;
    change.emails.take(change.connection, email, id)?;
    change.services.use_extension(service, None, contact.fields.extension());
    change.services.count_contacts(service, 1);
    append(change, service, &contact, EventKind::Create)?;
    Ok(ContactAnswer::Created(Box::new(contact)))
}

fn edit(
    change: &mut Change<'_>,
    service: ServiceId,
    id: ContactId,
    patch: ContactPatch,
    if_match: &IfMatch,
) -> Result<ContactAnswer, Stop> {
    let current = get_for_change(change, service, id, if_match)?;
    let Some(contact) = decide_edit(&current, patch, change.now).map_err(Error::Refused)? else {
        return Ok(ContactAnswer::Edited(Box::new(current)));
    };
    let (before, after) = (current.fields.extension(), contact.fields.extension());
    // Two statements, so that an edit of other fields does not touch the index of extensions.
    let statement = if before == after {
        "UPDATE contacts SET version = ?3, updated_at = ?4, search_name = ?5, fields = ?6 \
         WHERE service = ?1 AND contact = ?2 AND ?7 IS extension"
    } else {
        "UPDATE contacts SET version = ?3, updated_at = ?4, search_name = ?5, fields = ?6, extension = ?7 \
         WHERE service = ?1 AND contact = ?2"
    };
    let updated = change.connection.prepare_cached(statement)?.execute(params![
        service.as_bytes(),
        id.as_bytes(),
        int(contact.version),
        contact.updated_at.millis(),
        contact.full_name().to_lowercase(),
        contact.fields.to_json(),
        after,
    ]);
    refuse_taken(updated, &contact)?;
    if before != after {
        change.services.use_extension(service, before, after);
    }
    append(change, service, &contact, EventKind::Edit)?;
    Ok(ContactAnswer::Edited(Box::new(contact)))
}

fn delete(
    change: &mut Change<'_>,
    service: ServiceId,
    id: ContactId,
    if_match: &IfMatch,
) -> Result<ContactAnswer, Stop> {
    let mut contact = get_for_change(change, service, id, if_match)?;
    // As it was stored, should the way to fold it ever change.
    let email: String = change
        .connection
        .prepare_cached("DELETE FROM contacts WHERE service = ?1 AND contact = ?2 RETURNING email")?
        .query_row(params![service.as_bytes(), id.as_bytes()], |row| row.get(0))?;
    change.emails.free(change.connection, (service, email))?;
    change.services.use_extension(service, contact.fields.extension(), None);
    change.services.count_contacts(service, -1);
    contact.version += 1;
    append(change, service, &contact, EventKind::Delete)?;
    Ok(ContactAnswer::Deleted(id))
}

fn get_for_change(
    change: &Change<'_>,
    service: ServiceId,
    id: ContactId,
    if_match: &IfMatch,
) -> Result<StaffContact, Stop> {
    let current = find_contact(change.connection, service, id)?.ok_or(Error::NotFound)?;
    if if_match.allows(current.version) {
        Ok(current)
    } else {
        Err(Error::VersionMismatch { current: current.version }.into())
    }
}

/// Turns a violated index of extension numbers into a conflict on that field. SQLite undoes the one statement, not the group.
fn refuse_taken(
    result: Result<usize, rusqlite::Error>,
    contact: &StaffContact,
) -> Result<(), Stop> {
    match result {
        Ok(1) => Ok(()),
        Ok(rows) => {
            Err(Error::Internal(format!("a write of one contact changed {rows} rows")).into())
        }
        Err(rusqlite::Error::SqliteFailure(failure, Some(text)))
            if failure.code == ErrorCode::ConstraintViolation =>
        {
            if !text.contains("extension") {
                return Err(Error::Internal(text).into());
            }
            let number = contact.fields.extension().unwrap_or_default();
            let taken = format!("{number} is taken by another contact of this service");
            Err(Error::Conflict(FieldError::new("extensionNumber", taken)).into())
        }
        Err(error) => Err(error.into()),
    }
}

const COLUMNS: &str = "contact, version, created_at, updated_at, fields";

fn contact_of(row: &Row<'_>) -> Result<StaffContact, rusqlite::Error> {
    let text = row.get_ref(4)?.as_str()?;
    let fields = serde_json::from_str(text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(4, rusqlite::types::Type::Text, Box::new(error))
    })?;
    Ok(StaffContact {
        id: ContactId::from_bytes(row.get(0)?),
        version: uint(row, 1)?,
        created_at: time(row, 2)?,
        updated_at: time(row, 3)?,
        fields,
    })
}

pub(super) fn find_contact(
    connection: &Connection,
    service: ServiceId,
    id: ContactId,
) -> Result<Option<StaffContact>, rusqlite::Error> {
    connection
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM contacts WHERE service = ?1 AND contact = ?2"
        ))?
        .query_row(params![service.as_bytes(), id.as_bytes()], contact_of)
        .optional()
}

/// Identifiers sort in the order they were made, so the key gives the oldest first.
pub(super) fn list_contacts(
    connection: &Connection,
    service: ServiceId,
    query: &ContactQuery,
) -> Result<ContactList, rusqlite::Error> {
    let tx = connection.unchecked_transaction()?;
    let (sequence, contacts) = tx
        .prepare_cached("SELECT head, contacts FROM services WHERE service = ?1")?
        .query_row([service.as_bytes()], |row| Ok((uint(row, 0)?, uint(row, 1)?)))
        .optional()?
        .unwrap_or_default();
    let name = query.full_name.as_ref().map(|name| name.to_lowercase());
    let total = match &name {
        None => contacts,
        Some(name) => tx
            .prepare_cached(
                "SELECT count(*) FROM contacts WHERE service = ?1 AND instr(search_name, ?2) > 0",
            )?
            .query_row(params![service.as_bytes(), name], |row| uint(row, 0))?,
    };
    let filter = if name.is_some() { "AND instr(search_name, ?2) > 0" } else { "AND ?2 IS NULL" };
    let items = tx
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM contacts WHERE service = ?1 {filter} ORDER BY contact LIMIT ?3 OFFSET ?4"
        ))?
        .query_map(params![service.as_bytes(), name, query.limit, int(query.offset)], contact_of)?
        .collect::<Result<_, _>>()?;
    Ok(ContactList { total, items, sequence })
}
