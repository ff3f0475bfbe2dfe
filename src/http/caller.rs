//! The caller of an app's route: judged in one place and in one order, so that no handler can forget a step.

use std::sync::Arc;

use ::http::HeaderMap;

use crate::domain::id::{AppId, ServiceId};
use crate::domain::tenancy::{App, Scope};

use super::Http;
use super::envelope::ApiError;

/// An app that may do what it asks for.
#[derive(Clone, Debug)]
pub struct Caller {
    app: Arc<App>,
}

impl Caller {
    /// The tenant.
    #[must_use]
    pub fn service(&self) -> ServiceId {
        self.app.service
    }

    /// The app.
    #[must_use]
    pub fn app(&self) -> AppId {
        self.app.id
    }
}

impl Http {
    /// Judges token, appID, rate and scope, in this order. The caller comes with the refusal once its token is
    /// known, for the log.
    ///
    /// # Errors
    ///
    /// 401, 403, 429, or 503 when the store is away.
    pub async fn enter(
        &self,
        headers: &HeaderMap,
        app_id: &str,
        scope: Scope,
    ) -> Result<Caller, (Option<Caller>, ApiError)> {
        let app = self.auth.find_app(headers).await.map_err(|error| (None, error))?;
        let caller = Caller { app };
        let judged = if AppId::parse(app_id) == Some(caller.app()) {
            self.rates.check(caller.service()).and_then(|()| {
                if caller.app.scopes.contains(scope) {
                    Ok(())
                } else {
                    Err(ApiError::missing_scope(scope.name()))
                }
            })
        } else {
            Err(ApiError::invalid_app_id())
        };
        match judged {
            Ok(()) => Ok(caller),
            Err(error) => Err((Some(caller), error)),
        }
    }
}
