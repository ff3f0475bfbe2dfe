//! Services, apps and tokens.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::events::{time, time_or_none};
use super::secrets;
use super::writer::{Change, Stop};
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, ServiceId};
use crate::domain::page::Page;
use crate::domain::tenancy::{App, Scopes, Service, StoredToken, TokenHash, hour_of};
use crate::store::Error;
use crate::store::command::NewApp;
use crate::store::keyring::SecretPlace;
use crate::store::rows::TokenOfApp;

fn app_of(row: &Row<'_>) -> Result<App, rusqlite::Error> {
    Ok(App {
        service: ServiceId::from_bytes(row.get(0)?),
        id: AppId::from_bytes(row.get(1)?),
        name: row.get(2)?,
        scopes: Scopes::from_bits(row.get(3)?),
        created_at: time(row, 4)?,
    })
}

fn service_of(row: &Row<'_>) -> Result<Service, rusqlite::Error> {
    Ok(Service {
        id: ServiceId::from_bytes(row.get(0)?),
        name: row.get(1)?,
        created_at: time(row, 2)?,
    })
}

pub(super) fn find_app_by_token(
    connection: &Connection,
    token: TokenHash,
    now: Timestamp,
) -> Result<Option<TokenOfApp>, rusqlite::Error> {
    connection
        .prepare_cached(
            "SELECT a.service, a.app, a.name, a.scopes, a.created_at, t.used_at FROM app_tokens t \
             JOIN apps a ON a.service = t.service AND a.app = t.app \
             JOIN services s ON s.service = t.service \
             WHERE t.hash = ?1 AND (t.expires_at IS NULL OR t.expires_at > ?2) AND s.hidden = 0",
        )?
        .query_row(params![token.0, now.millis()], |row| {
            Ok(TokenOfApp { app: app_of(row)?, used_at: time_or_none(row, 5)? })
        })
        .optional()
}

/// The token in a row of hash and times.
fn token_of(row: &Row<'_>) -> Result<StoredToken, rusqlite::Error> {
    Ok(StoredToken {
        hash: TokenHash(row.get(0)?),
        created_at: time_or_none(row, 1)?,
        used_at: time_or_none(row, 2)?,
        expires_at: time_or_none(row, 3)?,
    })
}

/// The one that does not expire comes last.
pub(super) fn list_admin_tokens(
    connection: &Connection,
    now: Timestamp,
) -> Result<Vec<StoredToken>, rusqlite::Error> {
    connection
        .prepare_cached(
            "SELECT hash, created_at, used_at, expires_at FROM admin_tokens \
             WHERE expires_at IS NULL OR expires_at > ?1 ORDER BY expires_at IS NULL, expires_at",
        )?
        .query_map([now.millis()], token_of)?
        .collect()
}

/// The tokens of each of these apps, in the order in which they end.
pub(super) fn list_tokens(
    connection: &Connection,
    service: ServiceId,
    apps: &[AppId],
    now: Timestamp,
) -> Result<Vec<Vec<StoredToken>>, rusqlite::Error> {
    let mut of_app = connection.prepare_cached(
        "SELECT hash, created_at, used_at, expires_at FROM app_tokens WHERE service = ?1 AND app = ?2 \
         AND (expires_at IS NULL OR expires_at > ?3) ORDER BY expires_at IS NULL, expires_at, created_at",
    )?;
    apps.iter()
        .map(|app| {
            of_app
                .query_map(params![service.as_bytes(), app.as_bytes(), now.millis()], token_of)?
                .collect()
        })
        .collect()
}

pub(super) fn find_service(
    connection: &Connection,
    service: ServiceId,
) -> Result<Option<Service>, rusqlite::Error> {
    connection
        .prepare_cached(
            "SELECT service, name, created_at FROM services WHERE service = ?1 AND hidden = 0",
        )?
        .query_row([service.as_bytes()], service_of)
        .optional()
}

pub(super) fn list_services(
    connection: &Connection,
    after: Option<ServiceId>,
    limit: u32,
) -> Result<Page<Service>, rusqlite::Error> {
    let items = connection
        .prepare_cached(
            "SELECT service, name, created_at FROM services WHERE hidden = 0 AND service > ?1 \
             ORDER BY service LIMIT ?2",
        )?
        .query_map(
            params![position(after.as_ref().map(ServiceId::as_bytes)), limit + 1],
            service_of,
        )?
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Page::cut(items, limit, |service| service.id.to_string()))
}

pub(super) fn list_apps(
    connection: &Connection,
    service: ServiceId,
    after: Option<AppId>,
    limit: u32,
) -> Result<Page<App>, rusqlite::Error> {
    let items = connection
        .prepare_cached(
            "SELECT service, app, name, scopes, created_at FROM apps WHERE service = ?1 AND app > ?2 \
             ORDER BY app LIMIT ?3",
        )?
        .query_map(
            params![service.as_bytes(), position(after.as_ref().map(AppId::as_bytes)), limit + 1],
            app_of,
        )?
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Page::cut(items, limit, |app| app.id.to_string()))
}

fn position(after: Option<&[u8; 16]>) -> &[u8] {
    after.map_or(&[], |bytes| &bytes[..])
}

pub(super) fn app_exists(
    connection: &Connection,
    service: ServiceId,
    app: AppId,
) -> Result<bool, rusqlite::Error> {
    connection
        .prepare_cached("SELECT 1 FROM apps WHERE service = ?1 AND app = ?2")?
        .exists(params![service.as_bytes(), app.as_bytes()])
}

pub(super) fn create_service(change: &mut Change<'_>, name: String) -> Result<Service, Stop> {
    let id = ServiceId::make(change.ids, change.now);
    change
        .connection
        .prepare_cached("INSERT INTO services (service, name, created_at) VALUES (?1, ?2, ?3)")?
        .execute(params![id.as_bytes(), name, change.now.millis()])?;
    change.commit.tenancy = true;
    Ok(Service { id, name, created_at: change.now })
}

/// Hides the service; [`upkeep`](super::upkeep) removes its rows.
pub(super) fn delete_service(change: &mut Change<'_>, service: ServiceId) -> Result<(), Stop> {
    change.services.get_mut(change.connection, service)?;
    change
        .connection
        .prepare_cached("UPDATE services SET hidden = 1 WHERE service = ?1")?
        .execute([service.as_bytes()])?;
    change.services.hide(service);
    change.emails.hide(service);
    change.commit.hidden.push(service);
    change.commit.tenancy = true;
    Ok(())
}

const INSERT_TOKEN: &str =
    "INSERT INTO app_tokens (hash, service, app, created_at) VALUES (?1, ?2, ?3, ?4)";

pub(super) fn create_app(change: &mut Change<'_>, new: NewApp) -> Result<App, Stop> {
    change.services.get_mut(change.connection, new.service)?;
    let keys = change.keys()?;
    let id = AppId::make(change.ids, change.now);
    let key = (new.service.as_bytes(), id.as_bytes());
    change
        .connection
        .prepare_cached(
            "INSERT INTO apps (service, app, name, scopes, created_at) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![key.0, key.1, new.name, new.scopes.bits(), change.now.millis()])?;
    change.connection.prepare_cached(INSERT_TOKEN)?.execute(params![
        new.token.0,
        key.0,
        key.1,
        change.now.millis()
    ])?;
    let place = SecretPlace { service: new.service, app: id, number: 1 };
    secrets::insert(change.connection, keys, place, &new.secret)?;
    change.commit.tenancy = true;
    Ok(App { service: new.service, id, name: new.name, scopes: new.scopes, created_at: change.now })
}

pub(super) fn delete_app(
    change: &mut Change<'_>,
    service: ServiceId,
    app: AppId,
) -> Result<(), Stop> {
    change.services.get_mut(change.connection, service)?;
    let deleted = change
        .connection
        .prepare_cached("DELETE FROM apps WHERE service = ?1 AND app = ?2")?
        .execute(params![service.as_bytes(), app.as_bytes()])?;
    if deleted == 0 {
        return Err(Error::NotFound.into());
    }
    for table in [
        "app_tokens",
        "app_secrets",
        "subscriptions",
        "progress",
        "held",
        "exhausted",
        "failed_attempts",
        "idempotency_keys",
    ] {
        change
            .connection
            .prepare_cached(&format!("DELETE FROM {table} WHERE service = ?1 AND app = ?2"))?
            .execute(params![service.as_bytes(), app.as_bytes()])?;
    }
    change.commit.tenancy = true;
    change.commit.subscriptions.push((service, app));
    Ok(())
}

pub(super) fn rotate_token(
    change: &mut Change<'_>,
    service: ServiceId,
    app: AppId,
    token: TokenHash,
    earlier_until: Timestamp,
) -> Result<(), Stop> {
    change.services.get_mut(change.connection, service)?;
    if !app_exists(change.connection, service, app)? {
        return Err(Error::NotFound.into());
    }
    // Never lengthens the life of a token that a rotation before this one already limits.
    change
        .connection
        .prepare_cached(
            "UPDATE app_tokens SET expires_at = ?3 WHERE service = ?1 AND app = ?2 \
             AND (expires_at IS NULL OR expires_at > ?3)",
        )?
        .execute(params![service.as_bytes(), app.as_bytes(), earlier_until.millis()])?;
    change.connection.prepare_cached(INSERT_TOKEN)?.execute(params![
        token.0,
        service.as_bytes(),
        app.as_bytes(),
        change.now.millis()
    ])?;
    change.commit.tenancy = true;
    Ok(())
}

/// Makes this the only admin token.
pub(super) fn set_admin_token(change: &mut Change<'_>, token: TokenHash) -> Result<(), Stop> {
    change.connection.prepare_cached("DELETE FROM admin_tokens")?.execute([])?;
    insert_admin_token(change, token)
}

/// As [`set_admin_token`], unless there is one that works; whether it was set.
pub(super) fn set_first_admin_token(
    change: &mut Change<'_>,
    token: TokenHash,
) -> Result<bool, Stop> {
    let is_first = list_admin_tokens(change.connection, change.now)?.is_empty();
    if is_first {
        set_admin_token(change, token)?;
    }
    Ok(is_first)
}

/// Gives a new admin token; the earlier ones work until `earlier_until`.
pub(super) fn rotate_admin_token(
    change: &mut Change<'_>,
    token: TokenHash,
    earlier_until: Timestamp,
) -> Result<(), Stop> {
    // Never lengthens the life of a token that a rotation before this one already limits.
    change
        .connection
        .prepare_cached(
            "UPDATE admin_tokens SET expires_at = ?1 WHERE expires_at IS NULL OR expires_at > ?1",
        )?
        .execute([earlier_until.millis()])?;
    insert_admin_token(change, token)
}

fn insert_admin_token(change: &mut Change<'_>, token: TokenHash) -> Result<(), Stop> {
    change
        .connection
        .prepare_cached("INSERT INTO admin_tokens (hash, created_at) VALUES (?1, ?2)")?
        .execute(params![token.0, change.now.millis()])?;
    change.commit.tenancy = true;
    Ok(())
}

/// Records the hour in which a token is used. Who may call stays the same, so nothing that is remembered of tokens ends.
pub(super) fn note_token_use(change: &mut Change<'_>, token: TokenHash) -> Result<(), Stop> {
    let hour = hour_of(change.now).millis();
    for table in ["app_tokens", "admin_tokens"] {
        change
            .connection
            .prepare_cached(&format!(
                "UPDATE {table} SET used_at = ?2 WHERE hash = ?1 AND (used_at IS NULL OR used_at < ?2)"
            ))?
            .execute(params![token.0, hour])?;
    }
    Ok(())
}
