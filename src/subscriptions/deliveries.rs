//! Single deliveries of an app: what is held or given up, sending one again, sending everything since a point again.

use crate::domain::audit::Origin;
use crate::domain::id::{AppId, ServiceId};
use crate::store::Error;
use crate::store::rows::{DeliveryQuery, DeliveryRow, ReplayFrom, Replayed};

use super::Subscriptions;

impl Subscriptions {
    /// Held and exhausted deliveries by number.
    ///
    /// # Errors
    ///
    /// Unavailable.
    pub async fn list_deliveries(
        &self,
        service: ServiceId,
        app: AppId,
        query: DeliveryQuery,
    ) -> Result<Vec<DeliveryRow>, Error> {
        self.read.list_deliveries(service, app, query).await
    }

    /// One delivery, whatever its state.
    ///
    /// # Errors
    ///
    /// Not found when there is no such event or the app is not subscribed, unavailable.
    pub async fn find_delivery(
        &self,
        service: ServiceId,
        app: AppId,
        sequence: u64,
    ) -> Result<DeliveryRow, Error> {
        self.read.find_delivery(service, app, sequence).await?.ok_or(Error::NotFound)
    }

    /// Sends one event again and gives its delivery as it then is. What was sent again is durably held before this
    /// answers.
    ///
    /// # Errors
    ///
    /// Not found, refused when the subscription is not enabled or holds too much, unavailable.
    pub async fn redeliver(
        &self,
        origin: Origin,
        service: ServiceId,
        app: AppId,
        sequence: u64,
    ) -> Result<DeliveryRow, Error> {
        // The log is looked through outside of the writer; it looks at what came since.
        let later = self.read.list_later_events(service, sequence).await?;
        self.write.by(origin).redeliver(service, app, sequence, later).await?;
        self.find_delivery(service, app, sequence).await
    }

    /// Sends everything after a point again.
    ///
    /// # Errors
    ///
    /// Not found when the app never subscribed, refused when it is not enabled or the point is beyond the log,
    /// unavailable.
    pub async fn replay(
        &self,
        origin: Origin,
        service: ServiceId,
        app: AppId,
        from: ReplayFrom,
    ) -> Result<Replayed, Error> {
        self.write.by(origin).replay(service, app, from).await
    }
}
