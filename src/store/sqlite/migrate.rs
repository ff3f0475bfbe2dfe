//! Brings a file's schema forward, one numbered script after the other, each in a transaction of its own.
//!
//! The number of the last script stands in the file's `user_version`. A file from a newer version is refused:
//! an older program would write rows that the newer one no longer expects.

use rusqlite::Connection;

use crate::store::Error;

/// The scripts in order; script `n` brings the schema from version `n` to `n + 1`.
const SCRIPTS: [&str; 5] = [
    include_str!("../../../migrations/sqlite/0001_roll.sql"),
    include_str!("../../../migrations/sqlite/0002_deliveries.sql"),
    include_str!("../../../migrations/sqlite/0003_emails.sql"),
    include_str!("../../../migrations/sqlite/0004_audit.sql"),
    include_str!("../../../migrations/sqlite/0005_sealed_secrets.sql"),
];

/// Applies what is missing.
///
/// # Errors
///
/// The file is of a newer version, or a script failed; then the file is as before that script.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), Error> {
    let found: usize = connection
        .query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))
        .map(|version| usize::try_from(version).unwrap_or(usize::MAX))
        .map_err(|error| Error::Unavailable(format!("cannot read the schema version: {error}")))?;
    let known = SCRIPTS.len();
    if found > known {
        return Err(Error::Internal(format!(
            "the data directory has schema version {found}, this program knows versions up to {known}: \
             start it with the newer program that wrote it"
        )));
    }
    for (number, script) in SCRIPTS.iter().enumerate().skip(found) {
        let failed = |error: rusqlite::Error| {
            Error::Internal(format!("migration {} failed: {error}", number + 1))
        };
        let tx = connection.transaction().map_err(failed)?;
        tx.execute_batch(script).map_err(failed)?;
        let version = i64::try_from(number + 1).unwrap_or(i64::MAX);
        tx.pragma_update(None, "user_version", version).map_err(failed)?;
        tx.commit().map_err(failed)?;
    }
    Ok(())
}
