//! The secret with which an app checks what Rollcall sends it.

use crate::delivery::signing::format_secret;
use crate::domain::id::{AppId, ServiceId};
use crate::store::Error;

use super::Subscriptions;

impl Subscriptions {
    /// The newest secret of an app, in text.
    ///
    /// # Errors
    ///
    /// Not found when the app is gone, unavailable.
    pub async fn secret(&self, service: ServiceId, app: AppId) -> Result<String, Error> {
        let secrets = self.read.list_signing_secrets(service, app, self.clock.now()).await?;
        secrets.first().map(format_secret).ok_or(Error::NotFound)
    }
}
