//! Services, apps and tokens.

use tokio_postgres::Row;
use uuid::Uuid;

use super::change::{Stop, column, time, time_or_none};
use super::session::{Session, query, query_opt};
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, ServiceId};
use crate::domain::page::Page;
use crate::domain::tenancy::{App, Scopes, Service, StoredToken, TokenHash};
use crate::store::Error;
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
