//! What is replaced in a PostgreSQL that no node uses, because it was lost: the admin token, and signing secrets that do
//! not open any more.

use std::collections::BTreeSet;

use deadpool_postgres::ClientWrapper;

use super::change::{Change, Stop, count_changes, int};
use super::connect::Target;
use super::secrets::{COLUMNS, FORGET_KEY, insert, place_of, prepare, secret_of};
use super::{audit, copying, tenancy, unavailable};
use crate::domain::audit::{Action, Origin, SERVER, Subject};
use crate::domain::clock::Timestamp;
use crate::domain::id::IdMaker;
use crate::domain::tenancy::TokenHash;
use crate::store::audit_rows::Audit;
use crate::store::keyring::{Key, KeyId, Keyring, SecretPlace};
use crate::store::{Commit, Error, random_secret};

/// A PostgreSQL that no node uses, until [`Self::close`].
pub struct Unused {
    client: ClientWrapper,
}

impl std::fmt::Debug for Unused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unused")
    }
}

impl Unused {
    /// Keeps every node away from this database.
    ///
    /// # Errors
    ///
    /// There is no store in it, a node uses it, it was copied away or is not filled yet, or it cannot be reached.
    pub async fn open(target: &Target) -> Result<Self, Error> {
        let mut client = target.connect(|_| ()).await?;
        let there = client.query_one("SELECT to_regclass('schema_version') IS NOT NULL", &[]).await;
        if !there.map_err(|error| unavailable(&error))?.get::<_, bool>(0) {
            let place = target.place();
            return Err(Error::Unavailable(format!("there is no Rollcall data in {place}")));
        }
        copying::enter_alone(&mut client).await?;
        copying::check_mark(&client).await?;
        Ok(Self { client })
    }

    /// Lets nodes in again.
    pub async fn close(self) {
        copying::leave(&self.client).await;
    }

    /// Replaces the stored admin tokens.
    ///
    /// # Errors
    ///
    /// Unavailable.
    pub async fn set_admin_token(&self, token: TokenHash, now: Timestamp) -> Result<(), Error> {
        // No secret is sealed here.
        let nobodys = Key::random().and_then(|key| Keyring::new(vec![key]));
        let keys = nobodys.map_err(|error| Error::Internal(error.to_string()))?;
        self.transact(&keys, now, async |change| {
            tenancy::set_admin_token(change, token).await?;
            let subject = Subject { token: Some(token.id()), ..Subject::default() };
            change.note(SERVER, Action::AdminTokenSet, subject);
            Ok(())
        })
        .await
    }

    /// How many signing secrets do not open with these keys.
    ///
    /// # Errors
    ///
    /// Unavailable.
    pub async fn count_lost_secrets(&self, keys: &Keyring) -> Result<usize, Error> {
        Ok(lost(&self.client, keys).await?.len())
    }

    /// Gives a new secret to every app that has one which does not open with these keys, and seals everything with the
    /// first of them. Tells its number, and how many apps there were.
    ///
    /// # Errors
    ///
    /// Unavailable.
    pub async fn replace_lost_secrets(
        &mut self,
        keys: &Keyring,
        now: Timestamp,
    ) -> Result<(KeyId, u64), Error> {
        let replaced = self.transact(keys, now, async |change| replace_lost(change).await).await?;
        prepare(&mut self.client, keys).await?;
        Ok((keys.newest(), replaced))
    }

    /// Does something in one transaction, in the name of whoever is at this machine.
    async fn transact<T>(
        &self,
        keys: &Keyring,
        now: Timestamp,
        work: impl AsyncFnOnce(&mut Change<'_>) -> Result<T, Stop>,
    ) -> Result<T, Error> {
        let failed = |error: tokio_postgres::Error| unavailable(&error);
        let (client, ids) = (&self.client, IdMaker::new());
        let mut change = Change {
            client,
            ids: &ids,
            keys,
            now,
            origin: Origin::LOCAL,
            audit: Audit::default(),
            commit: Commit::default(),
            shards: BTreeSet::new(),
        };
        client.batch_execute("BEGIN").await.map_err(failed)?;
        let done = async {
            let done = work(&mut change).await?;
            audit::write_all(&mut change).await?;
            count_changes(&mut change).await?;
            Ok::<_, Stop>(done)
        };
        match done.await {
            Ok(done) => client.batch_execute("COMMIT").await.map(|()| done).map_err(failed),
            Err(stop) => {
                // Its own failure, of a connection that is gone, would say less.
                drop(client.batch_execute("ROLLBACK").await);
                Err(stop.into())
            }
        }
    }
}

/// Where secrets are that do not open: another key sealed them, or they are damaged.
async fn lost(client: &ClientWrapper, keys: &Keyring) -> Result<Vec<SecretPlace>, Error> {
    let sql = format!("SELECT {COLUMNS} FROM app_secrets ORDER BY service, app, number DESC");
    let rows = client.query(&sql, &[]).await.map_err(|error| unavailable(&error))?;
    rows.iter().filter(|row| secret_of(keys, row).is_err()).map(place_of).collect()
}

async fn replace_lost(change: &mut Change<'_>) -> Result<u64, Stop> {
    change.execute(FORGET_KEY, &[]).await?;
    let mut replaced = 0;
    let places = lost(change.client, change.keys).await?;
    for SecretPlace { service, app, number } in &places {
        let sql = "DELETE FROM app_secrets WHERE service = $1 AND app = $2 AND number = $3";
        change.execute(sql, &[&service.uuid(), &app.uuid(), &int(*number)]).await?;
    }
    for mut place in places {
        let sql =
            "SELECT 1 FROM app_secrets WHERE service = $1 AND app = $2 AND expires_at IS NULL";
        let there = change.query_opt(sql, &[&place.service.uuid(), &place.app.uuid()]).await?;
        if there.is_some() {
            continue;
        }
        place.number += 1;
        insert(change, place, &random_secret()?).await?;
        replaced += 1;
        let subject = Subject { app: Some(place.app), ..Subject::default() };
        change.note(place.service, Action::SecretRotate, subject);
    }
    Ok(replaced)
}

#[cfg(test)]
#[path = "resetting_tests.rs"]
mod tests;
