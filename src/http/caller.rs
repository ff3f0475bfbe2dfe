//! The caller of an app's route: judged in one place and in one order, so that no handler can forget a step.

use std::sync::Arc;

use ::http::request::Parts;

use crate::domain::audit::Origin;
use crate::domain::id::{AppId, ServiceId};
use crate::domain::tenancy::{App, Scope};

use super::Http;
use super::auth::{JudgedToken, KnownApp};
use super::envelope::{ApiError, CODE_TOKEN};

/// An app that may do what it asks for.
#[derive(Clone, Debug)]
pub struct Caller {
    app: Arc<App>,
    origin: Origin,
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

    /// Its token and its address.
    #[must_use]
    pub const fn origin(&self) -> Origin {
        self.origin
    }
}

impl Http {
    /// Judges token, appID, rate and scope, in this order. The caller comes with the refusal once its token is
    /// known, for the log.
    ///
    /// # Errors
    ///
    /// 401 (429 from an address with too many of them), 403, 429, or 503 when the store is away.
    pub async fn enter(
        &self,
        head: &Parts,
        app_id: &str,
        scope: Scope,
    ) -> Result<Caller, (Option<Caller>, ApiError)> {
        let found = self.auth.find_app(&head.headers).await;
        let KnownApp { app, token } =
            found.map_err(|error| (None, self.count_failed_token(head, error)))?;
        let origin = Origin::of_token(token, self.addresses.find(head));
        let caller = Caller { app, origin };
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

    /// Judges the token of a request once more, of this app or of the administrator, unless nothing can have changed
    /// since: a body or a challenge may take long, and a token that ended meanwhile must not change anything.
    ///
    /// # Errors
    ///
    /// 401, or 503 when the store is away.
    pub async fn judge_again(
        &self,
        head: &Parts,
        judged: JudgedToken,
        app: Option<AppId>,
    ) -> Result<(), ApiError> {
        if self.auth.holds(judged) {
            return Ok(());
        }
        let Some(app) = app else {
            return self.auth.check_admin(&head.headers).await.map(drop);
        };
        let known = self.auth.find_app(&head.headers).await?;
        if known.app.id == app { Ok(()) } else { Err(ApiError::invalid_token()) }
    }

    /// Judges the token of the administrator; gives it with its address.
    ///
    /// # Errors
    ///
    /// 401 (429 from an address with too many of them), or 503 when the store is away.
    pub async fn enter_admin(&self, head: &Parts) -> Result<Origin, ApiError> {
        let checked = self.auth.check_admin(&head.headers).await;
        let token = checked.map_err(|error| self.count_failed_token(head, error))?;
        Ok(Origin::of_token(token, self.addresses.find(head)))
    }

    /// Counts what would be a 401. The token is judged first, so that a good one from the same address is not
    /// affected, and nothing is looked up for it.
    fn count_failed_token(&self, head: &Parts, error: ApiError) -> ApiError {
        if error.code != CODE_TOKEN {
            return error;
        }
        self.failed_tokens.check(self.addresses.find(head)).err().unwrap_or(error)
    }
}
