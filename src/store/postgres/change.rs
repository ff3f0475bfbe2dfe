//! The transaction of one command that is not a change of the roll: services, apps, tokens, subscriptions, single
//! deliveries. These are rare, so each has a transaction of its own and statements like those of the embedded store.

use std::collections::BTreeSet;

use deadpool_postgres::ClientWrapper;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::session::{Session, execute, query, query_opt};
use super::unavailable;
use crate::domain::audit::{Action, Origin, Subject};
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, IdMaker, ServiceId};
use crate::domain::shard::{Shard, shard_of};
use crate::store::audit_rows::Audit;
use crate::store::keyring::Keyring;
use crate::store::{Commit, Error};

/// Why a command was not done.
#[derive(Debug)]
pub(super) enum Stop {
    /// It is refused, and its transaction rolled back.
    Refused(Error),
    /// The database failed, or the connection to it.
    Failed(tokio_postgres::Error),
}

impl From<tokio_postgres::Error> for Stop {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<Stop> for Error {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Refused(error) => error,
            Stop::Failed(error) => unavailable(&error),
        }
    }
}

/// The transaction that is being run.
pub(super) struct Change<'a> {
    /// In a transaction on READ COMMITTED: each statement sees what others have committed before it, and the rows that
    /// were locked stay as they are.
    pub(super) client: &'a ClientWrapper,
    pub(super) ids: &'a IdMaker,
    pub(super) keys: &'a Keyring,
    pub(super) now: Timestamp,
    /// Who asked for what is being run now.
    pub(super) origin: Origin,
    pub(super) audit: Audit,
    pub(super) commit: Commit,
    /// Whose lanes other nodes must read anew.
    pub(super) shards: BTreeSet<Shard>,
}

/// What is remembered of a service whose row is locked.
#[derive(Clone, Copy, Debug)]
pub(super) struct LockedService {
    pub(super) head: u64,
    pub(super) floor: u64,
}

impl Change<'_> {
    /// Locks the row of a service until the end of the transaction. The first thing that every command does which
    /// touches rows of a service.
    pub(super) async fn lock_service(&self, service: ServiceId) -> Result<LockedService, Stop> {
        lock_service(self.client, service).await?.ok_or_else(|| Error::NotFound.into())
    }

    /// Notes a change for the audit log.
    pub(super) fn note(&mut self, service: ServiceId, action: Action, subject: Subject) {
        self.audit.note(service, self.origin, action, subject);
    }

    /// The lane of a subscription must be built anew, here and on the node that has it.
    pub(super) fn subscription_changed(&mut self, service: ServiceId, app: AppId) {
        self.commit.subscriptions.push((service, app));
        self.shards.insert(shard_of(app));
    }

    pub(super) async fn execute(
        &self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, tokio_postgres::Error> {
        execute(self.client, sql, params).await
    }

    pub(super) async fn query(
        &self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        query(self.client, sql, params).await
    }

    pub(super) async fn query_opt(
        &self,
        sql: &str,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, tokio_postgres::Error> {
        query_opt(self.client, sql, params).await
    }
}

/// Locks the row of a service that is not hidden, and reads its roll.
pub(super) async fn lock_service<S: Session>(
    session: &S,
    service: ServiceId,
) -> Result<Option<LockedService>, Stop> {
    let sql = "SELECT floor FROM services WHERE service = $1 AND NOT hidden FOR NO KEY UPDATE";
    let Some(locked) = query_opt(session, sql, &[&service.uuid()]).await? else { return Ok(None) };
    // In a later statement, which sees what was committed before the lock was had.
    let sql = "SELECT head FROM rolls WHERE service = $1 ORDER BY version DESC LIMIT 1";
    let missing = || Error::Internal("the roll of a service is missing".to_owned());
    let roll = query_opt(session, sql, &[&service.uuid()]).await?.ok_or_else(missing)?;
    Ok(Some(LockedService { head: uint(&roll, 0)?, floor: uint(&locked, 0)? }))
}

/// Counts up what other nodes look at to hear of changes, in the order of its names: the last statement of a transaction,
/// behind that of the [audit log](super::audit::write_all).
pub(super) async fn count_changes(change: &mut Change<'_>) -> Result<(), Stop> {
    let mut shards = change.shards.clone();
    for service in &change.commit.hidden {
        let sql = "SELECT app FROM subscriptions WHERE service = $1 AND enabled = 1";
        for row in change.query(sql, &[&service.uuid()]).await? {
            shards.insert(shard_of(AppId::from_uuid(column(&row, 0)?)));
        }
    }
    count(change.client, &shards, change.commit.tenancy).await?;
    change.commit.counted = shards.into_iter().collect();
    Ok(())
}

/// As [`count_changes`], for these shards, and for services, apps and tokens.
pub(super) async fn count<S: Session>(
    session: &S,
    shards: &BTreeSet<Shard>,
    tenancy: bool,
) -> Result<(), tokio_postgres::Error> {
    let mut names: Vec<String> = shards.iter().map(|shard| format!("shard/{shard}")).collect();
    if tenancy {
        names.push("tenancy".to_owned());
    }
    if names.len() > 1 {
        let lock = "SELECT 1 FROM counts WHERE name = ANY($1) ORDER BY name FOR NO KEY UPDATE";
        query(session, lock, &[&names]).await?;
    }
    if !names.is_empty() {
        let add = "UPDATE counts SET count = count + 1 WHERE name = ANY($1)";
        execute(session, add, &[&names]).await?;
    }
    Ok(())
}

/// A number as PostgreSQL keeps it; ours never reach the sign bit.
pub(super) fn int(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A stored number that is never negative.
pub(super) fn uint(row: &Row, column: usize) -> Result<u64, Error> {
    let number: i64 = row.try_get(column).map_err(|error| unavailable(&error))?;
    u64::try_from(number).map_err(|_| Error::Internal(format!("a stored number is {number}")))
}

/// A stored number that fits into 32 bits.
pub(super) fn uint32(row: &Row, column: usize) -> Result<u32, Error> {
    let number = uint(row, column)?;
    u32::try_from(number).map_err(|_| Error::Internal(format!("a stored number is {number}")))
}

/// A stored number that may be absent.
pub(super) fn uint_or_none(row: &Row, column: usize) -> Result<Option<u64>, Error> {
    let number: Option<i64> = self::column(row, column)?;
    number.map(|_| uint(row, column)).transpose()
}

/// A stored time.
pub(super) fn time(row: &Row, column: usize) -> Result<Timestamp, Error> {
    row.try_get(column).map(Timestamp::from_millis).map_err(|error| unavailable(&error))
}

/// A stored time that may be absent.
pub(super) fn time_or_none(row: &Row, column: usize) -> Result<Option<Timestamp>, Error> {
    let millis: Option<i64> = row.try_get(column).map_err(|error| unavailable(&error))?;
    Ok(millis.map(Timestamp::from_millis))
}

/// Any other column.
pub(super) fn column<'a, T: tokio_postgres::types::FromSql<'a>>(
    row: &'a Row,
    column: usize,
) -> Result<T, Error> {
    row.try_get(column).map_err(|error| unavailable(&error))
}
