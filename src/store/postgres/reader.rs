//! The reading side: each read takes a connection of the pool for as long as it lasts.
//!
//! A read is one statement, which sees one state, or a transaction on REPEATABLE READ, which does. A transaction that is
//! given up, with its request, is rolled back before its connection is used again.

use std::sync::{Arc, Mutex, PoisonError};

use deadpool_postgres::{Object, Transaction};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_postgres::IsolationLevel;

use super::connect::{READERS_MAX, Readers};
use super::ownership::Ownership;
use super::{
    audit, contacts, deliveries, events, node_list, progress, secrets, subscriptions, tenancy,
    unavailable,
};
use crate::domain::clock::Timestamp;
use crate::domain::contact::StaffContact;
use crate::domain::event::Event;
use crate::domain::id::{AppId, ContactId, ServiceId};
use crate::domain::page::Page;
use crate::domain::shard::shard_of;
use crate::domain::subscription::{StoredSecret, Subscription};
use crate::domain::tenancy::{App, Service, StoredToken, TokenHash};
use crate::store::keyring::Keyring;
use crate::store::rows::{
    AuditPage, AuditQuery, ContactList, ContactQuery, DeliveryQuery, DeliveryRow, LaneRow,
    LaterEvents, LogPage, NodeRow, SubscriptionStatus, TokenOfApp,
};
use crate::store::{Answer, Error, Read};

/// Reads at once that may look at every row of a service, or that many callers make at the same moment: the other
/// connections stay free for look-ups and for the engine.
const SCANS: usize = READERS_MAX / 2;

/// Why the last group failed; `None` when it went well. The writer sets it.
pub(super) type Broken = Arc<Mutex<Option<String>>>;

/// Reads of one node.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) readers: Readers,
    pub(super) keys: Keyring,
    pub(super) ownership: Arc<Ownership>,
    pub(super) broken: Broken,
    scans: Semaphore,
}

/// A connection, or a transaction of one state when it is asked for.
struct Connected<'a> {
    connection: Object,
    _place: Option<SemaphorePermit<'a>>,
}

impl Connected<'_> {
    async fn snapshot(&mut self) -> Result<Transaction<'_>, Error> {
        self.connection
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .read_only(true)
            .start()
            .await
            .map_err(|error| unavailable(&error))
    }
}

impl Reader {
    pub(super) fn new(
        readers: Readers,
        keys: Keyring,
        ownership: Arc<Ownership>,
        broken: Broken,
    ) -> Self {
        Self { readers, keys, ownership, broken, scans: Semaphore::new(SCANS) }
    }

    /// For a read of few rows.
    async fn connect(&self) -> Result<Connected<'_>, Error> {
        Ok(Connected { connection: self.readers.get().await?, _place: None })
    }

    /// For a read of many rows; at most [`SCANS`] run at once.
    async fn connect_scan(&self) -> Result<Connected<'_>, Error> {
        let stopping = |_| Error::Unavailable("the server is stopping".to_owned());
        let place = self.scans.acquire().await.map_err(stopping)?;
        Ok(Connected { connection: self.readers.get().await?, _place: Some(place) })
    }
}

impl Read for Reader {
    fn find_app_by_token(
        &self,
        token: TokenHash,
        now: Timestamp,
    ) -> Answer<'_, Option<TokenOfApp>> {
        Box::pin(async move {
            let client = self.connect().await?.connection;
            Ok(tenancy::find_app_by_token(&client, token, now).await?)
        })
    }

    fn list_admin_tokens(&self, now: Timestamp) -> Answer<'_, Vec<StoredToken>> {
        Box::pin(async move {
            let client = self.connect().await?.connection;
            Ok(tenancy::list_admin_tokens(&client, now).await?)
        })
    }

    fn list_tokens(
        &self,
        service: ServiceId,
        apps: Vec<AppId>,
        now: Timestamp,
    ) -> Answer<'_, Vec<Vec<StoredToken>>> {
        Box::pin(async move {
            let client = self.connect().await?.connection;
            Ok(tenancy::list_tokens(&client, service, &apps, now).await?)
        })
    }

    fn list_audit(&self, service: ServiceId, query: AuditQuery) -> Answer<'_, Option<AuditPage>> {
        Box::pin(async move {
            let mut client = self.connect_scan().await?;
            Ok(audit::list(&client.snapshot().await?, service, query).await?)
        })
    }

    fn find_service(&self, service: ServiceId) -> Answer<'_, Option<Service>> {
        Box::pin(async move {
            let client = self.connect().await?.connection;
            Ok(tenancy::find_service(&client, service).await?)
        })
    }

    fn list_services(&self, after: Option<ServiceId>, limit: u32) -> Answer<'_, Page<Service>> {
        Box::pin(async move {
            let client = self.connect().await?.connection;
            Ok(tenancy::list_services(&client, after, limit).await?)
        })
    }

    fn list_apps(
        &self,
        service: ServiceId,
        after: Option<AppId>,
        limit: u32,
    ) -> Answer<'_, Page<App>> {
        Box::pin(async move {
            let client = self.connect().await?.connection;
            Ok(tenancy::list_apps(&client, service, after, limit).await?)
        })
    }

    fn find_contact(&self, service: ServiceId, id: ContactId) -> Answer<'_, Option<StaffContact>> {
        Box::pin(async move {
            let client = self.connect().await?.connection;
            Ok(contacts::find_contact(&client, service, id).await?)
        })
    }

    fn list_contacts(&self, service: ServiceId, query: ContactQuery) -> Answer<'_, ContactList> {
        Box::pin(async move {
            let client = self.connect_scan().await?;
            Ok(contacts::list_contacts(&client.connection, service, &query).await?)
        })
    }

    fn find_subscription(
        &self,
        service: ServiceId,
        app: AppId,
    ) -> Answer<'_, Option<Subscription>> {
        Box::pin(async move {
            let client = self.connect().await?.connection;
            Ok(subscriptions::find_subscription(&client, service, app).await?)
        })
    }

    fn get_subscription_status(
        &self,
        service: ServiceId,
        app: AppId,
    ) -> Answer<'_, SubscriptionStatus> {
        Box::pin(async move {
            let client = self.connect().await?.connection;
            Ok(subscriptions::get_status(&client, service, app).await?)
        })
    }

    fn list_signing_secrets(
        &self,
        service: ServiceId,
        app: AppId,
        now: Timestamp,
    ) -> Answer<'_, Vec<StoredSecret>> {
        Box::pin(async move {
            let client = self.connect().await?.connection;
            Ok(secrets::list_signing_secrets(&client, &self.keys, service, app, now).await?)
        })
    }

    fn list_heads(&self) -> Answer<'_, Vec<(ServiceId, u64)>> {
        Box::pin(async move {
            let client = self.connect().await?.connection;
            Ok(events::list_heads(&client).await?)
        })
    }

    /// Only of the shards that this node has. The epochs are asked before the rows are read: a shard that comes back
    /// meanwhile has another one by then, under which nothing of what was read here can be recorded.
    fn list_lanes(&self) -> Answer<'_, Vec<LaneRow>> {
        Box::pin(async move {
            let mut client = self.connect_scan().await?;
            let epochs = self.ownership.all();
            let tx = client.snapshot().await?;
            Ok(progress::list_lanes(&tx, &self.keys, &epochs).await?)
        })
    }

    /// As [`Self::list_lanes`]; `None` also when another node has the shard.
    fn find_lane(&self, service: ServiceId, app: AppId) -> Answer<'_, Option<LaneRow>> {
        Box::pin(async move {
            let mut client = self.connect().await?;
            let Some(epoch) = self.ownership.epoch(shard_of(app)) else {
                return Ok(None);
            };
            let tx = client.snapshot().await?;
            Ok(progress::find_lane(&tx, &self.keys, service, app, epoch).await?)
        })
    }

    fn list_events(&self, service: ServiceId, after: u64, limit: u32) -> Answer<'_, Vec<Event>> {
        Box::pin(async move {
            let client = self.connect().await?.connection;
            Ok(events::list_events(&client, service, after, limit).await?)
        })
    }

    fn list_deliveries(
        &self,
        service: ServiceId,
        app: AppId,
        query: DeliveryQuery,
    ) -> Answer<'_, Vec<DeliveryRow>> {
        Box::pin(async move {
            let mut client = self.connect().await?;
            let tx = client.snapshot().await?;
            Ok(deliveries::list_deliveries(&tx, service, app, query).await?)
        })
    }

    fn find_delivery(
        &self,
        service: ServiceId,
        app: AppId,
        sequence: u64,
    ) -> Answer<'_, Option<DeliveryRow>> {
        Box::pin(async move {
            let mut client = self.connect().await?;
            let tx = client.snapshot().await?;
            Ok(deliveries::find_delivery(&tx, service, app, sequence).await?)
        })
    }

    fn list_later_events(&self, service: ServiceId, sequence: u64) -> Answer<'_, LaterEvents> {
        Box::pin(async move {
            let client = self.connect_scan().await?;
            Ok(deliveries::list_later_events(&client.connection, service, sequence).await?)
        })
    }

    fn list_log(&self, service: ServiceId, after: u64, limit: u32) -> Answer<'_, Option<LogPage>> {
        Box::pin(async move {
            let client = self.connect_scan().await?;
            Ok(events::list_log(&client.connection, service, after, limit).await?)
        })
    }

    fn list_nodes(&self) -> Answer<'_, Vec<NodeRow>> {
        Box::pin(async move {
            let client = self.connect().await?.connection;
            Ok(node_list::list_nodes(&client).await?)
        })
    }

    fn check(&self) -> Answer<'_, ()> {
        Box::pin(async move {
            let broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(reason) = broken {
                return Err(Error::Unavailable(reason));
            }
            let client = self.connect().await?.connection;
            client.batch_execute("SELECT 1").await.map_err(|error| unavailable(&error))
        })
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
