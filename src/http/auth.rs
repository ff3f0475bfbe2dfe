//! Tokens: from the `Authorization` header to the app that calls, or to the administrator.
//!
//! Apps are remembered by the hash of their token for a second, so that the hot path does not ask the store each
//! time. A commit that touches tenancy counts the epoch up, which ends everything remembered: a revoked token does
//! not work for that second either. Unknown tokens are not remembered.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ::http::HeaderMap;
use ::http::header::AUTHORIZATION;
use subtle::ConstantTimeEq;

use crate::domain::clock::{Clock, Moment};
use crate::domain::tenancy::{App, Token, TokenHash};
use crate::store::Read;

use super::envelope::ApiError;

/// Most tokens that are remembered: a few megabytes. More than that in use at once only cost reads of the store.
const REMEMBERED_MAX: usize = 10_000;
/// How long a token is remembered. It bounds how long a token outlives its own expiry; longer saves few reads.
const REMEMBERED_FOR: Duration = Duration::from_secs(1);

/// Finds out who calls.
pub struct Auth {
    read: Arc<dyn Read>,
    clock: Arc<dyn Clock>,
    epoch: Arc<AtomicU64>,
    admin: Option<TokenHash>,
    remembered: RwLock<HashMap<TokenHash, Remembered>>,
}

struct Remembered {
    app: Arc<App>,
    epoch: u64,
    until: Moment,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Auth")
    }
}

impl Auth {
    /// Reads tokens from the store; `admin` overrides the stored admin token.
    #[must_use]
    pub fn new(
        read: Arc<dyn Read>,
        clock: Arc<dyn Clock>,
        epoch: Arc<AtomicU64>,
        admin: Option<&Token>,
    ) -> Self {
        Self { read, clock, epoch, admin: admin.map(Token::hash), remembered: RwLock::default() }
    }

    /// The app whose token the request carries.
    ///
    /// # Errors
    ///
    /// 401 for no, a malformed or an unknown token; 503 when the store is away.
    pub async fn find_app(&self, headers: &HeaderMap) -> Result<Arc<App>, ApiError> {
        let token = bearer(headers).ok_or_else(ApiError::invalid_token)?;
        let hash = Token::from_text(token).hash();
        // Taken before the store is read: a change while it is read makes what was read old.
        let epoch = self.epoch.load(Ordering::Acquire);
        let now = self.clock.moment();
        if let Some(app) = self.remembered(&hash, epoch, now) {
            return Ok(app);
        }
        let found = self.read.find_app_by_token(hash, self.clock.now()).await?;
        let app = Arc::new(found.ok_or_else(ApiError::invalid_token)?);
        self.remember(hash, Arc::clone(&app), epoch, now);
        Ok(app)
    }

    /// Whether the request carries the admin token.
    ///
    /// # Errors
    ///
    /// 401 when it does not; 503 when the store is away.
    pub async fn check_admin(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let token = bearer(headers).ok_or_else(ApiError::invalid_token)?;
        let expected = match self.admin {
            Some(hash) => Some(hash),
            None => self.read.find_admin_token().await?,
        };
        let sent = Token::from_text(token).hash();
        match expected {
            Some(hash) if bool::from(hash.0.ct_eq(&sent.0)) => Ok(()),
            _ => Err(ApiError::invalid_token()),
        }
    }

    fn remembered(&self, hash: &TokenHash, epoch: u64, now: Moment) -> Option<Arc<App>> {
        let remembered = self.remembered.read().unwrap_or_else(PoisonError::into_inner);
        let entry = remembered.get(hash)?;
        (entry.epoch == epoch && now < entry.until).then(|| Arc::clone(&entry.app))
    }

    fn remember(&self, hash: TokenHash, app: Arc<App>, epoch: u64, now: Moment) {
        let mut remembered = self.remembered.write().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED_MAX {
            remembered.retain(|_, entry| entry.epoch == epoch && now < entry.until);
        }
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(hash, Remembered { app, epoch, until: now.plus(REMEMBERED_FOR) });
    }
}

/// The token of the only `Authorization` header; RFC 6750, section 2.1, the scheme in any case.
#[must_use]
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() {
        return None;
    }
    let (scheme, rest) = value.split_once(' ')?;
    let token = rest.trim_matches(' ');
    let well_formed = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
    (scheme.eq_ignore_ascii_case("bearer") && well_formed).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::bearer;
    use ::http::HeaderMap;
    use ::http::header::AUTHORIZATION;

    fn check(values: &[&str], token: Option<&str>) {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, value.parse().unwrap());
        }

        assert_eq!(bearer(&headers), token, "{values:?}");
    }

    #[test]
    fn exactly_one_bearer_token_is_read() {
        check(&["Bearer rct_1"], Some("rct_1"));
        check(&["bearer rct_1"], Some("rct_1"));
        check(&["BEARER  rct_1 "], Some("rct_1"));
        check(&[], None);
        check(&["rct_1"], None);
        check(&["Bearer"], None);
        check(&["Bearer "], None);
        check(&["Bearer a b"], None);
        check(&["Basic rct_1"], None);
        check(&["Bearer rct_1", "Bearer rct_1"], None);
    }
}
