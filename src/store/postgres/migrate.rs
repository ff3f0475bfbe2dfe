//! Brings a database's schema forward, one numbered script after the other, each in a transaction of its own.
//!
//! The numbers are those of the embedded store's scripts. An advisory lock lets one node migrate at a time. A database
//! from a newer version is refused: an older program would write rows that the newer one no longer expects.

use tokio_postgres::Client;

use super::unavailable;
use crate::store::Error;

/// The scripts in order; script `n` brings the schema from version `n` to `n + 1`.
const SCRIPTS: [&str; 7] = [
    include_str!("../../../migrations/postgres/0001_roll.sql"),
    include_str!("../../../migrations/postgres/0002_deliveries.sql"),
    include_str!("../../../migrations/postgres/0003_emails.sql"),
    include_str!("../../../migrations/postgres/0004_audit.sql"),
    include_str!("../../../migrations/postgres/0005_sealed_secrets.sql"),
    include_str!("../../../migrations/postgres/0006_nodes.sql"),
    include_str!("../../../migrations/postgres/0007_eras.sql"),
];

/// The advisory lock of whoever migrates: any number that nobody else uses in this database.
const LOCK: i64 = 0x526f_6c6c_6361_6c6c;

/// Whether this version of the schema is that of a newer program.
pub(super) const fn is_newer(version: usize) -> bool {
    version > SCRIPTS.len()
}

/// Refuses a version of the schema that is not that of this program.
pub(super) fn check(version: usize) -> Result<(), Error> {
    let known = SCRIPTS.len();
    if is_newer(version) {
        return Err(Error::Internal(format!(
            "the database has schema version {version}, this program knows versions up to {known}: \
             start the newer program that wrote it"
        )));
    }
    if version < known {
        return Err(Error::Internal(format!(
            "the database went back to schema version {version}, this program needs version {known}: \
             start it again, which brings the tables forward"
        )));
    }
    Ok(())
}

/// Applies what is missing.
///
/// # Errors
///
/// The database is of a newer version, or a script failed; then the database is as before that script.
pub(super) async fn migrate(client: &mut Client) -> Result<(), Error> {
    let failed = |error: tokio_postgres::Error| unavailable(&error);
    // Another node may migrate for as long as it takes, and so may this one.
    client
        .batch_execute("SET lock_timeout = 0; SET statement_timeout = 0")
        .await
        .map_err(failed)?;
    client.execute("SELECT pg_advisory_lock($1)", &[&LOCK]).await.map_err(failed)?;
    let done = migrate_locked(client).await;
    let unlocked = client.execute("SELECT pg_advisory_unlock($1)", &[&LOCK]).await;
    done?;
    unlocked.map_err(failed)?;
    client.batch_execute("RESET lock_timeout; RESET statement_timeout").await.map_err(failed)
}

async fn migrate_locked(client: &mut Client) -> Result<(), Error> {
    let failed = |error: tokio_postgres::Error| unavailable(&error);
    let row = client.query_one("SHOW server_encoding", &[]).await.map_err(failed)?;
    let encoding: &str = row.get(0);
    if encoding != "UTF8" {
        return Err(Error::Internal(format!(
            "the database has the encoding {encoding}, and names need UTF8: make one with \
             `createdb --template=template0 --encoding=UTF8`"
        )));
    }
    client
        .batch_execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
        .await
        .map_err(failed)?;
    let row = client
        .query_one("SELECT coalesce(max(version), 0) FROM schema_version", &[])
        .await
        .map_err(failed)?;
    let found = usize::try_from(row.get::<_, i32>(0)).unwrap_or(usize::MAX);
    if is_newer(found) {
        return check(found);
    }
    for (number, script) in SCRIPTS.iter().enumerate().skip(found) {
        let failed = |error: tokio_postgres::Error| {
            Error::Internal(format!("migration {} failed: {}", number + 1, super::why(&error)))
        };
        let version = i32::try_from(number + 1).unwrap_or(i32::MAX);
        let tx = client.transaction().await.map_err(failed)?;
        tx.batch_execute(script).await.map_err(failed)?;
        tx.execute("INSERT INTO schema_version (version) VALUES ($1)", &[&version])
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
    }
    Ok(())
}
