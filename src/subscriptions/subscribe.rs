//! Subscribe, unsubscribe and verify: check the URL, have it echo a challenge, store the wish if there is one.

use std::time::Duration;

use tokio::time::Instant;

use crate::delivery::challenge::{self, CHALLENGE_TIMEOUT, Nonce, VerificationFailure};
use crate::delivery::target_guard::{Step, TargetHost};
use crate::domain::audit::Origin;
use crate::domain::clock::Timestamp;
use crate::domain::contact::FieldError;
use crate::domain::id::{AppId, ServiceId};
use crate::domain::subscription::{Subscription, URL_BYTES_MAX};
use crate::store::Error;
use crate::store::command::SubscriptionWish;

use super::Subscriptions;

/// Why a wish was not stored; the earlier subscription stays as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// The URL breaks a rule, or its receiver did not consent: which step, for the caller.
    #[error("{0}")]
    Refused(String),
    /// Too many challenges lately.
    #[error("too many challenges")]
    TooMany {
        /// When there is room again.
        retry_after: Duration,
    },
    /// The store refused it or is away.
    #[error(transparent)]
    Store(#[from] Error),
}

/// A request's place in the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// A URL that has echoed a challenge for an app.
#[derive(Debug)]
pub struct Consent {
    service: ServiceId,
    app: AppId,
    url: String,
    verified_at: Timestamp,
}

impl Subscriptions {
    /// The place of a request that has just arrived.
    ///
    /// # Errors
    ///
    /// Unavailable.
    pub async fn take_ticket(&self) -> Result<Ticket, SubscribeError> {
        Ok(Ticket(self.write.take_ticket().await?))
    }

    /// Has a URL echo a challenge, so that the app can be subscribed to it. Dropping the future aborts the challenge. It
    /// may take long: whoever asked is to be judged again before [`Self::subscribe`].
    ///
    /// # Errors
    ///
    /// Refused with the step, too many challenges, unavailable.
    pub async fn ask_consent(
        &self,
        service: ServiceId,
        app: AppId,
        url: String,
    ) -> Result<Consent, SubscribeError> {
        self.challenge(service, app, &url).await?;
        Ok(Consent { service, app, url, verified_at: self.clock.now() })
    }

    /// Subscribes an app to the URL that has consented.
    ///
    /// # Errors
    ///
    /// Superseded by a later ticket, unavailable.
    pub async fn subscribe(
        &self,
        origin: Origin,
        ticket: Ticket,
        consent: Consent,
    ) -> Result<Subscription, SubscribeError> {
        let Consent { service, app, url, verified_at } = consent;
        let wish = SubscriptionWish::Enable { url, verified_at };
        Ok(self.write.by(origin).set_subscription(service, app, ticket.0, wish).await?)
    }

    /// Has the stored URL of an app echo a challenge and changes nothing, whether it is enabled or not: the app's
    /// own test of its receiver. Gives the URL.
    ///
    /// # Errors
    ///
    /// Not found when no URL is stored, refused with the step, too many challenges, unavailable.
    pub async fn verify(&self, service: ServiceId, app: AppId) -> Result<String, SubscribeError> {
        let stored = self.read.find_subscription(service, app).await?;
        let stored = stored.filter(|it| !it.url.is_empty()).ok_or(Error::NotFound)?;
        self.challenge(service, app, &stored.url).await?;
        Ok(stored.url)
    }

    async fn challenge(
        &self,
        service: ServiceId,
        app: AppId,
        url: &str,
    ) -> Result<(), SubscribeError> {
        let line = self.sender.line(url).map_err(|refusal| {
            SubscribeError::Refused(format!("url: refused at step {}: {refusal}", refusal.step))
        })?;
        self.limits
            .check(app, line.host(), self.clock.moment())
            .map_err(|retry_after| SubscribeError::TooMany { retry_after })?;
        let deadline = Instant::now() + CHALLENGE_TIMEOUT;
        let failed =
            |step| SubscribeError::Refused(VerificationFailure { step, status: None }.to_string());
        if matches!(line.host(), TargetHost::Name(_)) {
            let addresses = self.sender.addresses_to_try(&line).await.map_err(failed)?;
            self.limits
                .check_addresses(&addresses, self.clock.moment())
                .map_err(|retry_after| SubscribeError::TooMany { retry_after })?;
        }
        let secrets = self.read.list_signing_secrets(service, app, self.clock.now()).await?;
        let nonce = Nonce::random()
            .map_err(|error| Error::Internal(format!("no random numbers: {error}")))?;
        let verifying = challenge::verify(&self.sender, &line, &secrets, &nonce);
        tokio::time::timeout_at(deadline, verifying)
            .await
            .map_err(|_| failed(Step::Timeout))?
            .map_err(|failure| SubscribeError::Refused(failure.to_string()))
    }

    /// Unsubscribes: sending stops at once, and what is pending is dropped.
    ///
    /// # Errors
    ///
    /// Refused when the URL is too long, superseded by a later ticket, unavailable.
    pub async fn unsubscribe(
        &self,
        origin: Origin,
        service: ServiceId,
        app: AppId,
        ticket: Ticket,
        url: String,
    ) -> Result<Subscription, SubscribeError> {
        if url.len() > URL_BYTES_MAX {
            let rule = format!("must have at most {URL_BYTES_MAX} bytes, has {}", url.len());
            return Err(Error::Refused(FieldError::new("url", rule)).into());
        }
        let wish = SubscriptionWish::Disable { url };
        Ok(self.write.by(origin).set_subscription(service, app, ticket.0, wish).await?)
    }
}
