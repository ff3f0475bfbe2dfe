//! The secrets with which an app checks what Rollcall sends it: the newest, and a new one.

use std::time::Duration;

use crate::delivery::signing::format_secret;
use crate::domain::audit::Origin;
use crate::domain::id::{AppId, ServiceId};
use crate::store::{Error, random_secret};

use super::Subscriptions;

/// How long earlier secrets still sign after a rotation: a day to change them in every receiver. Longer keeps a secret
/// that leaked in use, shorter breaks receivers that are changed by hand.
pub const SECRET_OVERLAP: Duration = Duration::from_hours(24);

impl Subscriptions {
    /// The newest secret of an app, in text.
    ///
    /// # Errors
    ///
    /// Not found when the app is gone, unavailable.
    pub async fn secret(&self, service: ServiceId, app: AppId) -> Result<String, Error> {
        let secrets = self.read.list_signing_secrets(service, app, self.clock.now()).await?;
        secrets.first().map(|newest| format_secret(&newest.secret)).ok_or(Error::NotFound)
    }

    /// Gives an app a new secret and gives it in text; earlier ones sign for [`SECRET_OVERLAP`] longer. Every attempt
    /// that starts from now on is signed with it.
    ///
    /// # Errors
    ///
    /// Not found when the app is gone, unavailable.
    pub async fn rotate_secret(
        &self,
        origin: Origin,
        service: ServiceId,
        app: AppId,
    ) -> Result<String, Error> {
        let secret = random_secret()?;
        let text = format_secret(&secret);
        let earlier_until = self.clock.now().plus(SECRET_OVERLAP);
        self.write.by(origin).rotate_secret(service, app, secret, earlier_until).await?;
        Ok(text)
    }
}
