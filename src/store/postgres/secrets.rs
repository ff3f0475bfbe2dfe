//! Signing secrets: sealed in their rows, opened by those who read them.
//!
//! [`prepare`] brings every row to the newest key before anything else happens to the store. Two nodes that start at the
//! same moment take turns.

use tokio_postgres::{Client, Row};

use super::change::{Change, Stop, column, int, time_or_none, uint};
use super::session::{Session, query};
use super::{tenancy, unavailable};
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, ServiceId};
use crate::domain::shard::shard_of;
use crate::domain::subscription::{SIGNING_SECRETS_MAX, SigningSecret, StoredSecret};
use crate::store::keyring::{KeyError, KeyId, Keyring, SecretPlace};
use crate::store::{ChangedSecrets, Error};

/// Who seals all rows holds this advisory lock.
const LOCK: i64 = 0x726f_6c6c_7365_616c;

/// The number of the key that nodes seal with.
const NOTED_KEY: &str = "SELECT value FROM meta WHERE name = 'key'";
const NOTE_KEY: &str = "INSERT INTO meta (name, value) VALUES ('key', $1) \
     ON CONFLICT (name) DO UPDATE SET value = excluded.value";
/// Nodes may come with any key again, as far as no secret needs another one.
pub(super) const FORGET_KEY: &str = "DELETE FROM meta WHERE name = 'key'";

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

pub(super) fn place_of(row: &Row) -> Result<SecretPlace, Error> {
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

/// A fault of keys as a fault of the store.
fn unusable(error: KeyError) -> Error {
    Error::Internal(error.to_string())
}

/// Stores the secret under this number.
pub(super) async fn insert(
    change: &Change<'_>,
    place: SecretPlace,
    secret: &SigningSecret,
) -> Result<(), Stop> {
    let sealed = change.keys.seal(place, &secret.0).map_err(unusable)?;
    let newest = change.keys.newest();
    let (service, app, number) = (place.service.uuid(), place.app.uuid(), int(place.number));
    let sql =
        "INSERT INTO app_secrets (service, app, number, key, secret) VALUES ($1, $2, $3, $4, $5)";
    change.execute(sql, &[&service, &app, &number, &&newest.as_bytes()[..], &sealed]).await?;
    Ok(())
}

pub(super) async fn rotate_secret(
    change: &mut Change<'_>,
    service: ServiceId,
    app: AppId,
    secret: &SigningSecret,
    earlier_until: Timestamp,
) -> Result<(), Stop> {
    change.lock_service(service).await?;
    tenancy::check_app(change, service, app).await?;
    let (of_service, of_app) = (service.uuid(), app.uuid());
    let sql = "SELECT coalesce(max(number), 0) FROM app_secrets WHERE service = $1 AND app = $2";
    let newest = change.query_opt(sql, &[&of_service, &of_app]).await?;
    let number = newest.map_or(Ok(0), |row| uint(&row, 0))? + 1;
    // Never lengthens the life of a secret that a rotation before this one already limits.
    let sql = "UPDATE app_secrets SET expires_at = $3 WHERE service = $1 AND app = $2 \
         AND (expires_at IS NULL OR expires_at > $3)";
    change.execute(sql, &[&of_service, &of_app, &earlier_until.millis()]).await?;
    let sql = "DELETE FROM app_secrets WHERE service = $1 AND app = $2 AND number <= $3";
    let last = int(number.saturating_sub(SIGNING_SECRETS_MAX));
    change.execute(sql, &[&of_service, &of_app, &last]).await?;
    insert(change, SecretPlace { service, app, number }, secret).await?;
    // An earlier one that does not open refuses the rotation, and what was written goes with it.
    let secrets =
        list_signing_secrets(change.client, change.keys, service, app, change.now).await?.into();
    change.commit.secrets.push(ChangedSecrets { service, app, secrets });
    change.shards.insert(shard_of(app));
    Ok(())
}

/// Brings every secret to the newest key, and tells how many were not.
///
/// # Errors
///
/// A key is missing, a secret does not open, or the store is away.
pub(super) async fn prepare(client: &mut Client, keys: &Keyring) -> Result<u64, Error> {
    let failed = |error: tokio_postgres::Error| unavailable(&error);
    let tx = client.transaction().await.map_err(failed)?;
    tx.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await.map_err(failed)?;
    let rows =
        tx.query("SELECT DISTINCT key FROM app_secrets ORDER BY key", &[]).await.map_err(failed)?;
    let mut needed = rows.iter().map(|row| key_of(row, 0)).collect::<Result<Vec<_>, _>>()?;
    // Also where nothing was sealed yet: a node with another key would seal what the first one cannot open.
    let noted = tx.query_opt(NOTED_KEY, &[]).await.map_err(failed)?;
    let noted = noted.map(|row| key_of(&row, 0)).transpose()?;
    needed.extend(noted.filter(|noted| !needed.contains(noted)));
    lacks_keys(&needed, keys)?;
    let newest = keys.newest();
    if noted != Some(newest) {
        tx.execute(NOTE_KEY, &[&&newest.as_bytes()[..]]).await.map_err(failed)?;
    }
    if needed.iter().all(|key| *key == newest) {
        tx.commit().await.map_err(failed)?;
        return Ok(0);
    }
    // A rotation meanwhile would lock some of these rows in another order.
    tx.batch_execute("LOCK TABLE app_secrets IN SHARE ROW EXCLUSIVE MODE").await.map_err(failed)?;
    let sql = format!("SELECT {COLUMNS} FROM app_secrets WHERE key <> $1");
    let rows = tx.query(&sql, &[&&newest.as_bytes()[..]]).await.map_err(failed)?;
    let (mut services, mut apps, mut numbers, mut sealed) = (vec![], vec![], vec![], vec![]);
    for row in &rows {
        let place = place_of(row)?;
        let secret = secret_of(keys, row)?.secret.0;
        services.push(place.service.uuid());
        apps.push(place.app.uuid());
        numbers.push(int(place.number));
        sealed.push(keys.seal(place, &secret).map_err(unusable)?);
    }
    let sql = "UPDATE app_secrets s SET key = $1, secret = n.secret FROM \
         unnest($2::uuid[], $3::uuid[], $4::bigint[], $5::bytea[]) AS n (service, app, number, secret) \
         WHERE s.service = n.service AND s.app = n.app AND s.number = n.number";
    let done = tx
        .execute(sql, &[&&newest.as_bytes()[..], &services, &apps, &numbers, &sealed])
        .await
        .map_err(failed)?;
    tx.commit().await.map_err(failed)?;
    tracing::info!(secrets = done, key = %newest, "signing secrets sealed");
    Ok(done)
}

/// What to do when keys are missing.
fn lacks_keys(needed: &[KeyId], keys: &Keyring) -> Result<(), Error> {
    let listed = |ids: &mut dyn Iterator<Item = KeyId>| {
        ids.map(|id| id.to_string()).collect::<Vec<_>>().join(", ")
    };
    let is_missing = |id: &KeyId| keys.ids().all(|known| known != *id);
    let missing = listed(&mut needed.iter().copied().filter(is_missing));
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Internal(format!(
        "the signing secrets are sealed with key {missing}, and the keys at hand are: {}. Set secret_key or \
         secret_key_file to both, the one that is to seal first; if it is lost for good, `rollcall key reset` gives every \
         app a new secret",
        listed(&mut keys.ids())
    )))
}
