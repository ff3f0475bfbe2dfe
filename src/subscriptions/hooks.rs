//! The subscriptions of an app as a list. There is at most one.

use crate::domain::id::{AppId, ServiceId};
use crate::domain::subscription::Subscription;
use crate::store::Error;

use super::Subscriptions;

impl Subscriptions {
    /// The stored subscription of an app.
    ///
    /// # Errors
    ///
    /// Unavailable.
    pub async fn find_hook(
        &self,
        service: ServiceId,
        app: AppId,
    ) -> Result<Option<Subscription>, Error> {
        self.read.find_subscription(service, app).await
    }
}
