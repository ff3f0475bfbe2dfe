//! The administrator's use cases: services, their apps, and tokens.

use std::time::Duration;

use crate::domain::audit::Origin;
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, ServiceId};
use crate::domain::subscription::SigningSecret;
use crate::domain::tenancy::{App, Scopes, Service, Token};
use crate::store::Error;
use crate::store::command::NewApp;

use super::Directory;

/// How long earlier tokens work after a rotation, unless asked otherwise: a day to change them everywhere.
pub const TOKEN_OVERLAP_DEFAULT: Duration = Duration::from_secs(24 * 60 * 60);

impl Directory {
    /// Creates a service.
    ///
    /// # Errors
    ///
    /// Unavailable.
    pub async fn create_service(&self, origin: Origin, name: String) -> Result<Service, Error> {
        self.write.by(origin).create_service(name).await
    }

    /// Hides a service at once.
    ///
    /// # Errors
    ///
    /// Not found, unavailable.
    pub async fn delete_service(&self, origin: Origin, service: ServiceId) -> Result<(), Error> {
        self.write.by(origin).delete_service(service).await
    }

    /// Creates an app with its token, which is shown only here, and its signing secret.
    ///
    /// # Errors
    ///
    /// Not found when the service is not there, unavailable.
    pub async fn create_app(
        &self,
        origin: Origin,
        service: ServiceId,
        name: String,
        scopes: Scopes,
    ) -> Result<(App, Token), Error> {
        let token = Token::from_random(Token::APP_PREFIX, random()?);
        let secret = SigningSecret(random()?.to_vec());
        let app = NewApp { service, name, scopes, token: token.hash(), secret };
        Ok((self.write.by(origin).create_app(app).await?, token))
    }

    /// Removes an app.
    ///
    /// # Errors
    ///
    /// Not found, unavailable.
    pub async fn delete_app(
        &self,
        origin: Origin,
        service: ServiceId,
        app: AppId,
    ) -> Result<(), Error> {
        self.write.by(origin).delete_app(service, app).await
    }

    /// Gives an app a new token; the earlier ones work until `earlier_until`.
    ///
    /// # Errors
    ///
    /// Not found, unavailable.
    pub async fn rotate_token(
        &self,
        origin: Origin,
        service: ServiceId,
        app: AppId,
        earlier_until: Timestamp,
    ) -> Result<Token, Error> {
        let token = Token::from_random(Token::APP_PREFIX, random()?);
        self.write.by(origin).rotate_token(service, app, token.hash(), earlier_until).await?;
        Ok(token)
    }

    /// Makes a new admin token; the earlier ones work until `earlier_until`.
    ///
    /// # Errors
    ///
    /// Unavailable.
    pub async fn rotate_admin_token(
        &self,
        origin: Origin,
        earlier_until: Timestamp,
    ) -> Result<Token, Error> {
        let token = Token::from_random(Token::ADMIN_PREFIX, random()?);
        self.write.by(origin).rotate_admin_token(token.hash(), earlier_until).await?;
        Ok(token)
    }
}

fn random() -> Result<[u8; 32], Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::Internal(format!("no random numbers: {error}")))?;
    Ok(bytes)
}
