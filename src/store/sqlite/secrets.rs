//! Signing secrets: sealed in their rows, opened by those who read them.
//!
//! [`prepare`] brings every row to the newest key before anything else happens to the store, and removes from the file
//! what was readable with less. It can be broken off anywhere and goes on at the next start.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, ffi, params};

use super::audit;
use super::events::{int, time_or_none, uint};
use super::key_file::unusable;
use super::services::Services;
use super::tenancy::app_exists;
use super::unavailable;
use super::writer::{Change, Stop};
use crate::domain::audit::{Action, Origin, SERVER, Subject};
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, ServiceId};
use crate::domain::subscription::{SIGNING_SECRETS_MAX, SigningSecret, StoredSecret};
use crate::store::audit_rows::Audit;
use crate::store::keyring::{KeyId, Keyring, SecretPlace};
use crate::store::{ChangedSecrets, Error, random_secret};

/// In `meta` while bytes of what was sealed anew may be left in the file.
const SCRUB: &str = "secrets_scrub";

/// The columns that [`secret_of`] reads, as the first ones of a query.
pub(super) const COLUMNS: &str = "service, app, number, key, secret, expires_at";

/// The secret in a row that begins with [`COLUMNS`].
pub(super) fn secret_of(keys: &Keyring, row: &Row<'_>) -> Result<StoredSecret, rusqlite::Error> {
    let place = place_of(row)?;
    let sealed: Vec<u8> = row.get(4)?;
    let secret = keys.open(place, KeyId::from_bytes(row.get(3)?), &sealed).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(4, Type::Blob, Box::new(error))
    })?;
    Ok(StoredSecret { secret: SigningSecret(secret), expires_at: time_or_none(row, 5)? })
}

fn place_of(row: &Row<'_>) -> Result<SecretPlace, rusqlite::Error> {
    Ok(SecretPlace {
        service: ServiceId::from_bytes(row.get(0)?),
        app: AppId::from_bytes(row.get(1)?),
        number: uint(row, 2)?,
    })
}

pub(super) fn list_signing_secrets(
    connection: &Connection,
    keys: &Keyring,
    service: ServiceId,
    app: AppId,
    now: Timestamp,
) -> Result<Vec<StoredSecret>, rusqlite::Error> {
    connection
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM app_secrets WHERE service = ?1 AND app = ?2 \
             AND (expires_at IS NULL OR expires_at > ?3) ORDER BY number DESC"
        ))?
        .query_map(params![service.as_bytes(), app.as_bytes(), now.millis()], |row| {
            secret_of(keys, row)
        })?
        .collect()
}

/// Stores the secret under this number.
pub(super) fn insert(
    connection: &Connection,
    keys: &Keyring,
    place: SecretPlace,
    secret: &SigningSecret,
) -> Result<(), Stop> {
    let sealed = keys.seal(place, &secret.0).map_err(unusable)?;
    connection
        .prepare_cached(
            "INSERT INTO app_secrets (service, app, number, key, secret) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            place.service.as_bytes(),
            place.app.as_bytes(),
            int(place.number),
            keys.newest().as_bytes(),
            sealed
        ])?;
    Ok(())
}

pub(super) fn rotate_secret(
    change: &mut Change<'_>,
    service: ServiceId,
    app: AppId,
    secret: &SigningSecret,
    earlier_until: Timestamp,
) -> Result<(), Stop> {
    change.services.get_mut(change.connection, service)?;
    if !app_exists(change.connection, service, app)? {
        return Err(Error::NotFound.into());
    }
    let keys = change.keys()?;
    let key = (service.as_bytes(), app.as_bytes());
    let newest = change
        .connection
        .prepare_cached(
            "SELECT coalesce(max(number), 0) FROM app_secrets WHERE service = ?1 AND app = ?2",
        )?
        .query_row(params![key.0, key.1], |row| uint(row, 0))?;
    let number = newest + 1;
    if earlier_until > change.now {
        check_earlier(change, keys, service, app, number.saturating_sub(SIGNING_SECRETS_MAX))?;
    }
    // Never lengthens the life of a secret that a rotation before this one already limits.
    change
        .connection
        .prepare_cached(
            "UPDATE app_secrets SET expires_at = ?3 WHERE service = ?1 AND app = ?2 \
             AND (expires_at IS NULL OR expires_at > ?3)",
        )?
        .execute(params![key.0, key.1, earlier_until.millis()])?;
    change
        .connection
        .prepare_cached("DELETE FROM app_secrets WHERE service = ?1 AND app = ?2 AND number <= ?3")?
        .execute(params![key.0, key.1, int(number.saturating_sub(SIGNING_SECRETS_MAX))])?;
    insert(change.connection, keys, SecretPlace { service, app, number }, secret)?;
    let secrets = list_signing_secrets(change.connection, keys, service, app, change.now)?.into();
    change.commit.secrets.push(ChangedSecrets { service, app, secrets });
    Ok(())
}

/// Refuses a rotation when a secret above this number, which would sign on beside the new one, does not open: before
/// anything is written, so that the neighbours in the group go on.
fn check_earlier(
    change: &Change<'_>,
    keys: &Keyring,
    service: ServiceId,
    app: AppId,
    above: u64,
) -> Result<(), Stop> {
    let mut statement = change.connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM app_secrets WHERE service = ?1 AND app = ?2 AND number > ?3 \
         AND (expires_at IS NULL OR expires_at > ?4)"
    ))?;
    let mut rows = statement.query(params![
        service.as_bytes(),
        app.as_bytes(),
        int(above),
        change.now.millis()
    ])?;
    while let Some(row) = rows.next()? {
        match secret_of(keys, row) {
            Ok(_) => {}
            Err(rusqlite::Error::FromSqlConversionFailure(_, _, error)) => {
                return Err(Error::Unavailable(error.to_string()).into());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether anything was ever sealed here.
pub(super) fn any_sealed(connection: &Connection) -> Result<bool, Error> {
    connection
        .prepare("SELECT 1 FROM app_secrets WHERE key IS NOT NULL LIMIT 1")
        .and_then(|mut statement| statement.exists([]))
        .map_err(|error| unavailable(&error))
}

/// The keys that are needed and are not in the ring.
fn missing(connection: &Connection, keys: Option<&Keyring>) -> Result<Vec<KeyId>, Error> {
    let read = || -> Result<Vec<KeyId>, rusqlite::Error> {
        connection
            .prepare("SELECT DISTINCT key FROM app_secrets WHERE key IS NOT NULL ORDER BY key")?
            .query_map([], |row| row.get(0).map(KeyId::from_bytes))?
            .collect()
    };
    let mut needed = read().map_err(|error| unavailable(&error))?;
    needed.retain(|id| keys.is_none_or(|keys| keys.ids().all(|known| known != *id)));
    Ok(needed)
}

fn listed(ids: impl Iterator<Item = KeyId>) -> String {
    ids.map(|id| id.to_string()).collect::<Vec<_>>().join(", ")
}

/// What to do when keys are missing.
pub(super) fn lacks_keys(connection: &Connection, keys: Option<&Keyring>) -> Result<(), Error> {
    let missing = missing(connection, keys)?;
    if missing.is_empty() {
        return Ok(());
    }
    let given = keys.map_or_else(|| "none".to_owned(), |keys| listed(keys.ids()));
    Err(Error::Internal(format!(
        "the signing secrets are sealed with key {}, and the keys at hand are: {given}. Put secret.key back into the \
         data directory, or set secret_key or secret_key_file to the key; if it is lost for good, \
         `rollcall key reset` gives every app a new secret",
        listed(missing.into_iter())
    )))
}

/// Brings every secret to the newest key, and tells how many were not. What was readable with less than that key is
/// then gone from the file too.
///
/// # Errors
///
/// A key is missing, a secret does not open, or the file cannot be written.
pub(super) fn prepare(connection: &mut Connection, keys: &Keyring) -> Result<u64, Error> {
    lacks_keys(connection, Some(keys))?;
    let sealed = seal_all(connection, keys)?;
    if sealed > 0 {
        tracing::info!(secrets = sealed, key = %keys.newest(), "signing secrets sealed");
    }
    if let Err(error) = scrub(connection) {
        tracing::warn!(
            error = %error,
            "what was readable with less than the newest key may be left in unused parts of the database, \
             the next start tries again to remove it"
        );
    }
    Ok(sealed)
}

fn seal_all(connection: &mut Connection, keys: &Keyring) -> Result<u64, Error> {
    let failed = |error: rusqlite::Error| unavailable(&error);
    let tx = connection.transaction().map_err(failed)?;
    let rows = {
        let mut statement = tx
            .prepare(&format!("SELECT {COLUMNS} FROM app_secrets WHERE key IS NULL OR key <> ?1"))
            .map_err(failed)?;
        let read = |row: &Row<'_>| {
            let plain = row.get::<_, Option<[u8; 4]>>(3)?.is_none();
            let secret = if plain { row.get(4)? } else { secret_of(keys, row)?.secret.0 };
            Ok((place_of(row)?, secret))
        };
        statement
            .query_map([keys.newest().as_bytes()], read)
            .and_then(Iterator::collect::<Result<Vec<(SecretPlace, Vec<u8>)>, _>>)
            .map_err(failed)?
    };
    if rows.is_empty() {
        return Ok(0);
    }
    for (place, secret) in &rows {
        let sealed = keys.seal(*place, secret).map_err(unusable)?;
        tx.prepare_cached(
            "UPDATE app_secrets SET key = ?4, secret = ?5 WHERE service = ?1 AND app = ?2 AND number = ?3",
        )
        .and_then(|mut update| {
            update.execute(params![
                place.service.as_bytes(),
                place.app.as_bytes(),
                int(place.number),
                keys.newest().as_bytes(),
                sealed
            ])
        })
        .map_err(failed)?;
    }
    tx.execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, x'')", [SCRUB])
        .map_err(failed)?;
    tx.commit().map_err(failed)?;
    Ok(rows.len() as u64)
}

/// Writes the whole file anew when bytes of earlier rows may be left in it, and empties the log.
fn scrub(connection: &Connection) -> Result<(), rusqlite::Error> {
    let wanted: Option<Vec<u8>> = connection
        .query_row("SELECT value FROM meta WHERE name = ?1", [SCRUB], |row| row.get(0))
        .optional()?;
    if wanted.is_none() {
        return Ok(());
    }
    tracing::info!("database written anew, so that nothing is left of what was sealed");
    vacuum(connection)?;
    // Only behind the checkpoint is the earlier content gone from the file: then the mark may go.
    empty_log(connection)?;
    connection.execute("DELETE FROM meta WHERE name = ?1", [SCRUB])?;
    empty_log(connection)
}

/// Writes the file anew by way of a copy, which stands without a name in the directory of the file: in memory it could be
/// more than there is, and the system's temporary directory may be small, and is not made for what is in it.
fn vacuum(connection: &Connection) -> Result<(), rusqlite::Error> {
    // SQLite has one such directory for the whole process.
    static DIRECTORY: Mutex<()> = Mutex::new(());
    let _one = DIRECTORY.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = connection.path().and_then(|path| Path::new(path).parent()?.to_str());
    connection.pragma_update(None, "temp_store_directory", directory.unwrap_or_default())?;
    connection.pragma_update(None, "temp_store", "FILE")?;
    let written = connection.execute_batch("VACUUM");
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "temp_store_directory", "")?;
    written
}

/// Moves the whole log into the file.
fn empty_log(connection: &Connection) -> Result<(), rusqlite::Error> {
    let busy: bool =
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    if busy {
        Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_BUSY), None))
    } else {
        Ok(())
    }
}

/// Where secrets are that do not open: another key sealed them, or they are damaged.
pub(super) fn lost(connection: &Connection, keys: &Keyring) -> Result<Vec<SecretPlace>, Error> {
    let read = || -> Result<Vec<SecretPlace>, rusqlite::Error> {
        let mut statement = connection.prepare(&format!(
            "SELECT {COLUMNS} FROM app_secrets WHERE key IS NOT NULL ORDER BY service, app, number DESC"
        ))?;
        let mut rows = statement.query([])?;
        let mut lost = Vec::new();
        while let Some(row) = rows.next()? {
            if secret_of(keys, row).is_err() {
                lost.push(place_of(row)?);
            }
        }
        Ok(lost)
    };
    read().map_err(|error| unavailable(&error))
}

/// Gives a new secret to every app that has one which does not open any more; tells how many apps.
///
/// # Errors
///
/// The file cannot be written.
pub(super) fn replace_lost(
    connection: &mut Connection,
    keys: &Keyring,
    now: Timestamp,
) -> Result<u64, Error> {
    let failed = |error: rusqlite::Error| unavailable(&error);
    let tx = connection.transaction().map_err(failed)?;
    let apps = lost(&tx, keys)?;
    for place in &apps {
        let key = params![place.service.as_bytes(), place.app.as_bytes(), int(place.number)];
        tx.execute("DELETE FROM app_secrets WHERE service = ?1 AND app = ?2 AND number = ?3", key)
            .map_err(failed)?;
    }
    let mut replaced = 0;
    let mut noted = Audit::default();
    for mut place in apps {
        let key = params![place.service.as_bytes(), place.app.as_bytes()];
        let there = tx
            .prepare_cached(
                "SELECT 1 FROM app_secrets WHERE service = ?1 AND app = ?2 AND expires_at IS NULL",
            )
            .and_then(|mut statement| statement.exists(key))
            .map_err(failed)?;
        if there {
            continue;
        }
        place.number += 1;
        match insert(&tx, keys, place, &random_secret()?) {
            Ok(()) => {
                replaced += 1;
                let subject = Subject { app: Some(place.app), ..Subject::default() };
                noted.note(place.service, Origin::LOCAL, Action::SecretRotate, subject);
            }
            Err(Stop::Refused(error)) => return Err(error),
            Err(Stop::Failed(error)) => return Err(failed(error)),
        }
    }
    audit::write(noted, &tx, &mut Services::default(), now).map_err(failed)?;
    tx.commit().map_err(failed)?;
    Ok(replaced)
}

/// Writes into the audit log that the key was replaced.
///
/// # Errors
///
/// The file cannot be written.
pub(super) fn note_rotation(connection: &mut Connection, now: Timestamp) -> Result<(), Error> {
    let mut noted = Audit::default();
    noted.note(SERVER, Origin::LOCAL, Action::KeyRotate, Subject::default());
    let written = connection.transaction().and_then(|tx| {
        audit::write(noted, &tx, &mut Services::default(), now)?;
        tx.commit()
    });
    written.map_err(|error| unavailable(&error))
}

#[cfg(test)]
#[path = "secrets_tests.rs"]
mod tests;
