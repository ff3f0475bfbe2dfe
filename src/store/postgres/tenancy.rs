//! Services, apps and tokens.

use tokio_postgres::Row;
use uuid::Uuid;

use super::change::{Change, Stop, column, time, time_or_none};
use super::secrets;
use super::session::{Session, execute, query, query_opt};
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, ServiceId};
use crate::domain::page::Page;
use crate::domain::tenancy::{App, Scopes, Service, StoredToken, TokenHash, hour_of};
use crate::store::Error;
use crate::store::command::NewApp;
use crate::store::keyring::SecretPlace;
use crate::store::rows::TokenOfApp;

fn app_of(row: &Row) -> Result<App, Error> {
    let scopes: i64 = column(row, 3)?;
    Ok(App {
        service: ServiceId::from_uuid(column(row, 0)?),
        id: AppId::from_uuid(column(row, 1)?),
        name: column(row, 2)?,
        scopes: Scopes::from_bits(u8::try_from(scopes & 0xff).unwrap_or_default()),
        created_at: time(row, 4)?,
    })
}

fn service_of(row: &Row) -> Result<Service, Error> {
    Ok(Service {
        id: ServiceId::from_uuid(column(row, 0)?),
        name: column(row, 1)?,
        created_at: time(row, 2)?,
    })
}

/// The token in a row of hash and times.
fn token_of(row: &Row) -> Result<StoredToken, Error> {
    let hash: &[u8] = column(row, 0)?;
    let hash = hash
        .try_into()
        .map_err(|_| Error::Internal("a stored hash of a token has not 32 bytes".to_owned()))?;
    Ok(StoredToken {
        hash: TokenHash(hash),
        created_at: time_or_none(row, 1)?,
        used_at: time_or_none(row, 2)?,
        expires_at: time_or_none(row, 3)?,
    })
}

pub(super) async fn find_app_by_token<S: Session>(
    session: &S,
    token: TokenHash,
    now: Timestamp,
) -> Result<Option<TokenOfApp>, Stop> {
    let sql = "SELECT a.service, a.app, a.name, a.scopes, a.created_at, t.used_at FROM app_tokens t \
         JOIN apps a ON a.service = t.service AND a.app = t.app \
         JOIN services s ON s.service = t.service \
         WHERE t.hash = $1 AND (t.expires_at IS NULL OR t.expires_at > $2) AND NOT s.hidden";
    let row = query_opt(session, sql, &[&&token.0[..], &now.millis()]).await?;
    let found = row.map(|row| -> Result<_, Error> {
        Ok(TokenOfApp { app: app_of(&row)?, used_at: time_or_none(&row, 5)? })
    });
    Ok(found.transpose()?)
}

/// The one that does not expire comes last.
pub(super) async fn list_admin_tokens<S: Session>(
    session: &S,
    now: Timestamp,
) -> Result<Vec<StoredToken>, Stop> {
    let sql = "SELECT hash, created_at, used_at, expires_at FROM admin_tokens \
         WHERE expires_at IS NULL OR expires_at > $1 ORDER BY expires_at NULLS LAST, created_at";
    let rows = query(session, sql, &[&now.millis()]).await?;
    Ok(rows.iter().map(token_of).collect::<Result<_, _>>()?)
}

/// The tokens of each of these apps, in the order in which they end.
pub(super) async fn list_tokens<S: Session>(
    session: &S,
    service: ServiceId,
    apps: &[AppId],
    now: Timestamp,
) -> Result<Vec<Vec<StoredToken>>, Stop> {
    let ids: Vec<Uuid> = apps.iter().map(|app| app.uuid()).collect();
    let sql = "SELECT hash, created_at, used_at, expires_at, app FROM app_tokens \
         WHERE service = $1 AND app = ANY($2) AND (expires_at IS NULL OR expires_at > $3) \
         ORDER BY expires_at NULLS LAST, created_at";
    let rows = query(session, sql, &[&service.uuid(), &ids, &now.millis()]).await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        found.push((column::<Uuid>(row, 4)?, token_of(row)?));
    }
    let of_app = |id| found.iter().filter(|(app, _)| *app == id).map(|(_, token)| *token).collect();
    Ok(ids.into_iter().map(of_app).collect())
}

pub(super) async fn find_service<S: Session>(
    session: &S,
    service: ServiceId,
) -> Result<Option<Service>, Stop> {
    let sql = "SELECT service, name, created_at FROM services WHERE service = $1 AND NOT hidden";
    let row = query_opt(session, sql, &[&service.uuid()]).await?;
    Ok(row.map(|row| service_of(&row)).transpose()?)
}

pub(super) async fn list_services<S: Session>(
    session: &S,
    after: Option<ServiceId>,
    limit: u32,
) -> Result<Page<Service>, Stop> {
    let sql = "SELECT service, name, created_at FROM services WHERE NOT hidden AND service > $1 \
         ORDER BY service LIMIT $2";
    let after = after.map_or_else(Uuid::nil, ServiceId::uuid);
    let rows = query(session, sql, &[&after, &(i64::from(limit) + 1)]).await?;
    let items = rows.iter().map(service_of).collect::<Result<_, _>>()?;
    Ok(Page::cut(items, limit, |service| service.id.to_string()))
}

pub(super) async fn list_apps<S: Session>(
    session: &S,
    service: ServiceId,
    after: Option<AppId>,
    limit: u32,
) -> Result<Page<App>, Stop> {
    let sql = "SELECT service, app, name, scopes, created_at FROM apps \
         WHERE service = $1 AND app > $2 ORDER BY app LIMIT $3";
    let after = after.map_or_else(Uuid::nil, AppId::uuid);
    let rows = query(session, sql, &[&service.uuid(), &after, &(i64::from(limit) + 1)]).await?;
    let items = rows.iter().map(app_of).collect::<Result<_, _>>()?;
    Ok(Page::cut(items, limit, |app| app.id.to_string()))
}

/// Refuses what is about an app that is not there.
pub(super) async fn check_app(
    change: &Change<'_>,
    service: ServiceId,
    app: AppId,
) -> Result<(), Stop> {
    let sql = "SELECT 1 FROM apps WHERE service = $1 AND app = $2";
    let found = change.query_opt(sql, &[&service.uuid(), &app.uuid()]).await?;
    found.map(drop).ok_or_else(|| Error::NotFound.into())
}

pub(super) async fn create_service(change: &mut Change<'_>, name: &str) -> Result<Service, Stop> {
    let id = ServiceId::make(change.ids, change.now);
    let sql = "INSERT INTO services (service, name, created_at) VALUES ($1, $2, $3)";
    change.execute(sql, &[&id.uuid(), &name, &change.now.millis()]).await?;
    change.execute("INSERT INTO rolls (service) VALUES ($1)", &[&id.uuid()]).await?;
    change.commit.tenancy = true;
    Ok(Service { id, name: name.to_owned(), created_at: change.now })
}

/// Hides the service; [`upkeep`](super::upkeep) removes its rows.
pub(super) async fn delete_service(
    change: &mut Change<'_>,
    service: ServiceId,
) -> Result<(), Stop> {
    change.lock_service(service).await?;
    let sql = "UPDATE services SET hidden = true WHERE service = $1";
    change.execute(sql, &[&service.uuid()]).await?;
    change.commit.hidden.push(service);
    change.commit.tenancy = true;
    Ok(())
}

async fn insert_token(
    change: &Change<'_>,
    service: ServiceId,
    app: AppId,
    token: TokenHash,
) -> Result<(), Stop> {
    let sql = "INSERT INTO app_tokens (hash, service, app, created_at) VALUES ($1, $2, $3, $4)";
    let at = change.now.millis();
    change.execute(sql, &[&&token.0[..], &service.uuid(), &app.uuid(), &at]).await?;
    Ok(())
}

pub(super) async fn create_app(change: &mut Change<'_>, new: &NewApp) -> Result<App, Stop> {
    change.lock_service(new.service).await?;
    let id = AppId::make(change.ids, change.now);
    let scopes = i64::from(new.scopes.bits());
    let sql =
        "INSERT INTO apps (service, app, name, scopes, created_at) VALUES ($1, $2, $3, $4, $5)";
    let at = change.now.millis();
    change.execute(sql, &[&new.service.uuid(), &id.uuid(), &new.name, &scopes, &at]).await?;
    insert_token(change, new.service, id, new.token).await?;
    let place = SecretPlace { service: new.service, app: id, number: 1 };
    secrets::insert(change, place, &new.secret).await?;
    change.commit.tenancy = true;
    let (name, created_at) = (new.name.clone(), change.now);
    Ok(App { service: new.service, id, name, scopes: new.scopes, created_at })
}

pub(super) async fn delete_app(
    change: &mut Change<'_>,
    service: ServiceId,
    app: AppId,
) -> Result<(), Stop> {
    change.lock_service(service).await?;
    check_app(change, service, app).await?;
    lock_tokens(change, service, app).await?;
    // Progress first: whoever has its row writes the others.
    for table in [
        "progress",
        "apps",
        "app_tokens",
        "app_secrets",
        "subscriptions",
        "held",
        "exhausted",
        "failed_attempts",
        "idempotency_keys",
    ] {
        let sql = format!("DELETE FROM {table} WHERE service = $1 AND app = $2");
        change.execute(&sql, &[&service.uuid(), &app.uuid()]).await?;
    }
    change.commit.tenancy = true;
    change.subscription_changed(service, app);
    Ok(())
}

/// Locks the tokens of an app in the order in which [`note_token_uses`] does.
async fn lock_tokens(change: &Change<'_>, service: ServiceId, app: AppId) -> Result<(), Stop> {
    let sql = "SELECT 1 FROM app_tokens WHERE service = $1 AND app = $2 ORDER BY hash FOR UPDATE";
    change.query(sql, &[&service.uuid(), &app.uuid()]).await?;
    Ok(())
}

pub(super) async fn rotate_token(
    change: &mut Change<'_>,
    service: ServiceId,
    app: AppId,
    token: TokenHash,
    earlier_until: Timestamp,
) -> Result<(), Stop> {
    change.lock_service(service).await?;
    check_app(change, service, app).await?;
    lock_tokens(change, service, app).await?;
    // Never lengthens the life of a token that a rotation before this one already limits.
    let sql = "UPDATE app_tokens SET expires_at = $3 WHERE service = $1 AND app = $2 \
         AND (expires_at IS NULL OR expires_at > $3)";
    change.execute(sql, &[&service.uuid(), &app.uuid(), &earlier_until.millis()]).await?;
    insert_token(change, service, app, token).await?;
    change.commit.tenancy = true;
    Ok(())
}

/// Makes this the only admin token.
pub(super) async fn set_admin_token(change: &mut Change<'_>, token: TokenHash) -> Result<(), Stop> {
    lock_admin_tokens(change).await?;
    change.execute("DELETE FROM admin_tokens", &[]).await?;
    insert_admin_token(change, token).await
}

/// As [`set_admin_token`], unless there is one that works; whether it was set. Two nodes at once take turns, and the second
/// one sees the token of the first.
pub(super) async fn set_first_admin_token(
    change: &mut Change<'_>,
    token: TokenHash,
) -> Result<bool, Stop> {
    lock_admin_tokens(change).await?;
    let is_first = list_admin_tokens(change.client, change.now).await?.is_empty();
    if is_first {
        set_admin_token(change, token).await?;
    }
    Ok(is_first)
}

/// Gives a new admin token; the earlier ones work until `earlier_until`.
pub(super) async fn rotate_admin_token(
    change: &mut Change<'_>,
    token: TokenHash,
    earlier_until: Timestamp,
) -> Result<(), Stop> {
    lock_admin_tokens(change).await?;
    // Never lengthens the life of a token that a rotation before this one already limits.
    let sql = "UPDATE admin_tokens SET expires_at = $1 WHERE expires_at IS NULL OR expires_at > $1";
    change.execute(sql, &[&earlier_until.millis()]).await?;
    insert_admin_token(change, token).await
}

/// There is no row that stands for all of them: two nodes that replace them at once must not both leave one.
async fn lock_admin_tokens(change: &Change<'_>) -> Result<(), Stop> {
    change.execute("LOCK TABLE admin_tokens IN SHARE ROW EXCLUSIVE MODE", &[]).await?;
    Ok(())
}

async fn insert_admin_token(change: &mut Change<'_>, token: TokenHash) -> Result<(), Stop> {
    let sql = "INSERT INTO admin_tokens (hash, created_at) VALUES ($1, $2)";
    change.execute(sql, &[&&token.0[..], &change.now.millis()]).await?;
    change.commit.tenancy = true;
    Ok(())
}

/// Records the hour in which these tokens are used. Who may call stays the same, so nothing that is remembered of
/// tokens ends.
pub(super) async fn note_token_uses<S: Session>(
    session: &S,
    tokens: &[TokenHash],
    now: Timestamp,
) -> Result<(), tokio_postgres::Error> {
    let hashes: Vec<&[u8]> = tokens.iter().map(|token| &token.0[..]).collect();
    let hour = hour_of(now).millis();
    for table in ["app_tokens", "admin_tokens"] {
        let older = "hash = ANY($1) AND (used_at IS NULL OR used_at < $2)";
        // In the order of their hashes, like everybody who locks several.
        let lock = format!("SELECT hash FROM {table} WHERE {older} ORDER BY hash FOR UPDATE");
        if !query(session, &lock, &[&hashes, &hour]).await?.is_empty() {
            let note = format!("UPDATE {table} SET used_at = $2 WHERE {older}");
            execute(session, &note, &[&hashes, &hour]).await?;
        }
    }
    Ok(())
}
