//! Tokens: from the `Authorization` header to the app that calls, or to the administrator.
//!
//! Apps are remembered by the hash of their token for a second, so that the hot path does not ask the store each
//! time. A commit that touches tenancy counts the epoch up, which ends everything remembered: a revoked token does
//! not work for that second either. Unknown tokens are not remembered.
//!
//! The hour in which a token is used is recorded when the store is asked anyway, and only if it is a new one. Nobody
//! waits for that.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use ::http::HeaderMap;
use ::http::header::AUTHORIZATION;
use subtle::{Choice, ConstantTimeEq};

use crate::domain::clock::{Clock, Moment};
use crate::domain::tenancy::{App, StoredToken, Token, TokenHash, TokenId, is_use_new};
use crate::store::Read;

use super::envelope::ApiError;

/// Most tokens that are remembered: a few megabytes. More than that in use at once only cost reads of the store.
const REMEMBERED_MAX: usize = 10_000;
/// How long a token is remembered. It bounds how long a token outlives its own expiry; longer saves few reads.
const REMEMBERED_FOR: Duration = Duration::from_secs(1);

/// Has a use of a token recorded. Called within a request: it must not block.
pub type TokenUses = Arc<dyn Fn(TokenHash) + Send + Sync>;

/// An admin token that a setting gives. It overrides the stored ones.
#[derive(Clone, Debug)]
pub struct AdminSetting {
    /// The token.
    pub token: Token,
    /// The name of the setting, for messages.
    pub name: &'static str,
}

impl AdminSetting {
    /// The setting that has the token itself.
    pub const VALUE: &'static str = "admin_token";
    /// The setting that names a file with it.
    pub const FILE: &'static str = "admin_token_file";
}

/// Finds out who calls.
pub struct Auth {
    read: Arc<dyn Read>,
    clock: Arc<dyn Clock>,
    epoch: Arc<AtomicU64>,
    uses: TokenUses,
    admin: RwLock<Option<AdminSetting>>,
    remembered: RwLock<HashMap<TokenHash, Remembered>>,
}

/// An app that calls, and with which of its tokens.
#[derive(Clone, Debug)]
pub struct KnownApp {
    /// The app.
    pub app: Arc<App>,
    /// The token.
    pub token: TokenId,
}

struct Remembered {
    known: KnownApp,
    epoch: u64,
    until: Moment,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Auth")
    }
}

impl Auth {
    /// Reads tokens from the store; `admin` overrides the stored admin tokens.
    #[must_use]
    pub fn new(
        read: Arc<dyn Read>,
        clock: Arc<dyn Clock>,
        epoch: Arc<AtomicU64>,
        uses: TokenUses,
        admin: Option<AdminSetting>,
    ) -> Self {
        let (admin, remembered) = (RwLock::new(admin), RwLock::default());
        Self { read, clock, epoch, uses, admin, remembered }
    }

    /// The app whose token the request carries.
    ///
    /// # Errors
    ///
    /// 401 for no, a malformed or an unknown token; 503 when the store is away.
    pub async fn find_app(&self, headers: &HeaderMap) -> Result<KnownApp, ApiError> {
        let token = bearer(headers).ok_or_else(ApiError::invalid_token)?;
        let hash = Token::from_text(token).hash();
        // Taken before the store is read: a change while it is read makes what was read old.
        let epoch = self.epoch.load(Ordering::Acquire);
        let now = self.clock.moment();
        if let Some(known) = self.remembered(&hash, epoch, now) {
            return Ok(known);
        }
        let time = self.clock.now();
        let found = self.read.find_app_by_token(hash, time).await?;
        let found = found.ok_or_else(ApiError::invalid_token)?;
        if is_use_new(found.used_at, time) {
            (self.uses)(hash);
        }
        let known = KnownApp { app: Arc::new(found.app), token: hash.id() };
        self.remember(hash, known.clone(), epoch, now);
        Ok(known)
    }

    /// The admin token that the request carries.
    ///
    /// # Errors
    ///
    /// 401 when it carries none; 503 when the store is away.
    pub async fn check_admin(&self, headers: &HeaderMap) -> Result<TokenId, ApiError> {
        let token = bearer(headers).ok_or_else(ApiError::invalid_token)?;
        let sent = Token::from_text(token).hash();
        if let Some(setting) = self.admin_setting() {
            let good = is_one_of(&sent, [setting.token.hash()]);
            return if good { Ok(sent.id()) } else { Err(ApiError::invalid_token()) };
        }
        let now = self.clock.now();
        let stored = self.read.list_admin_tokens(now).await?;
        if !is_one_of(&sent, stored.iter().map(|token| token.hash)) {
            return Err(ApiError::invalid_token());
        }
        let is_new = |token: &StoredToken| token.hash == sent && is_use_new(token.used_at, now);
        if stored.iter().any(is_new) {
            (self.uses)(sent);
        }
        Ok(sent.id())
    }

    /// The setting that overrides the stored admin tokens, if there is one.
    #[must_use]
    pub fn admin_setting(&self) -> Option<AdminSetting> {
        self.admin.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on only this admin token opens.
    pub fn replace_admin_setting(&self, setting: AdminSetting) {
        *self.admin.write().unwrap_or_else(PoisonError::into_inner) = Some(setting);
    }

    fn remembered(&self, hash: &TokenHash, epoch: u64, now: Moment) -> Option<KnownApp> {
        let remembered = self.remembered.read().unwrap_or_else(PoisonError::into_inner);
        let entry = remembered.get(hash)?;
        (entry.epoch == epoch && now < entry.until).then(|| entry.known.clone())
    }

    fn remember(&self, hash: TokenHash, known: KnownApp, epoch: u64, now: Moment) {
        let mut remembered = self.remembered.write().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= REMEMBERED_MAX {
            remembered.retain(|_, entry| entry.epoch == epoch && now < entry.until);
        }
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(hash, Remembered { known, epoch, until: now.plus(REMEMBERED_FOR) });
    }
}

/// Whether a token is among these, in a time that does not depend on which, nor on how much of it is right.
fn is_one_of(sent: &TokenHash, good: impl IntoIterator<Item = TokenHash>) -> bool {
    let found = good.into_iter().fold(Choice::from(0), |found, hash| found | hash.0.ct_eq(&sent.0));
    found.into()
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
    use super::{bearer, is_one_of};
    use crate::domain::tenancy::Token;
    use ::http::HeaderMap;
    use ::http::header::AUTHORIZATION;

    #[test]
    fn one_of_several_tokens_is_enough_and_a_part_of_one_is_not() {
        let [one, two, three] = ["1", "2", "3"].map(|text| Token::from_text(text).hash());
        let mut nearly = one;
        nearly.0[31] ^= 1;

        assert!(is_one_of(&one, [one, two]) && is_one_of(&two, [one, two]));
        assert!(!is_one_of(&three, [one, two]) && !is_one_of(&nearly, [one]));
        assert!(!is_one_of(&one, []));
    }

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
