//! Signing secrets: sealed in their rows, opened by those who read them.

use tokio_postgres::Row;

use super::change::{Stop, column, time_or_none, uint};
use super::session::{Session, query};
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, ServiceId};
use crate::domain::subscription::{SigningSecret, StoredSecret};
use crate::store::Error;
use crate::store::keyring::{KeyId, Keyring, SecretPlace};

/// The columns that [`secret_of`] reads, as the first ones of a query.
pub(super) const COLUMNS: &str = "service, app, number, key, secret, expires_at";

/// The secret in a row that begins with [`COLUMNS`].
pub(super) fn secret_of(keys: &Keyring, row: &Row) -> Result<StoredSecret, Error> {
    let place = place_of(row)?;
    let secret = keys
        .open(place, key_of(row, 3)?, column(row, 4)?)
        .map_err(|error| Error::Unavailable(error.to_string()))?;
    Ok(StoredSecret { secret: SigningSecret(secret), expires_at: time_or_none(row, 5)? })
}

/// The number of a key.
fn key_of(row: &Row, at: usize) -> Result<KeyId, Error> {
    let bytes: &[u8] = column(row, at)?;
    let bytes = bytes
        .try_into()
        .map_err(|_| Error::Internal("the stored number of a key has not 4 bytes".to_owned()))?;
    Ok(KeyId::from_bytes(bytes))
}

fn place_of(row: &Row) -> Result<SecretPlace, Error> {
    Ok(SecretPlace {
        service: ServiceId::from_uuid(column(row, 0)?),
        app: AppId::from_uuid(column(row, 1)?),
        number: uint(row, 2)?,
    })
}

pub(super) async fn list_signing_secrets<S: Session>(
    session: &S,
    keys: &Keyring,
    service: ServiceId,
    app: AppId,
    now: Timestamp,
) -> Result<Vec<StoredSecret>, Stop> {
    let sql = format!(
        "SELECT {COLUMNS} FROM app_secrets WHERE service = $1 AND app = $2 \
         AND (expires_at IS NULL OR expires_at > $3) ORDER BY number DESC"
    );
    let rows = query(session, &sql, &[&service.uuid(), &app.uuid(), &now.millis()]).await?;
    Ok(rows.iter().map(|row| secret_of(keys, row)).collect::<Result<_, _>>()?)
}
