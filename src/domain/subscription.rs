//! The subscription: one app's wish to be told, its state, and its signing secrets.

use std::fmt;

use super::clock::Timestamp;
use super::id::{AppId, ServiceId};

/// Longest URL of a receiver, in bytes. Common clients and proxies stop at about this length.
pub const URL_BYTES_MAX: usize = 2048;

/// Held deliveries of a subscription. Beyond it the cursor stops and the state is failing: a receiver that refuses this
/// many contacts needs its owner, not more memory.
pub const HELD_MAX: usize = 10_000;

/// Whether notifications are sent, and if not, by whose wish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enabled {
    /// The app wants them.
    Yes,
    /// Never subscribed, or unsubscribed by the app: what was pending is dropped.
    No,
    /// Disabled by Rollcall; progress is kept, enabling resumes there.
    DisabledBySystem,
}

impl Enabled {
    /// The number that is stored.
    #[must_use]
    pub const fn code(self) -> i64 {
        match self {
            Self::No => 0,
            Self::Yes => 1,
            Self::DisabledBySystem => 2,
        }
    }

    /// The value with this stored number.
    #[must_use]
    pub const fn from_code(code: i64) -> Option<Self> {
        match code {
            0 => Some(Self::No),
            1 => Some(Self::Yes),
            2 => Some(Self::DisabledBySystem),
            _ => None,
        }
    }
}

/// The stored wish of one app. The row is made by the first PATCH that stores something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The tenant.
    pub service: ServiceId,
    /// The app; it has at most one subscription.
    pub app: AppId,
    /// Where notifications go, byte for byte as the app sent it.
    pub url: String,
    /// Whether they go there.
    pub enabled: Enabled,
    /// Why Rollcall disabled it; empty otherwise.
    pub reason: String,
    /// Counts the stored changes; every attempt belongs to one generation.
    pub generation: u64,
    /// When the URL last echoed a challenge.
    pub verified_at: Option<Timestamp>,
    /// When the last change was stored.
    pub updated_at: Timestamp,
}

/// Most secrets of an app that sign at a time: the newest, the one before it, and one more.
///
/// With fewer a rotation that is made twice by mistake cuts receivers off; each more is one more signature on every
/// request.
pub const SIGNING_SECRETS_MAX: u64 = 3;

/// Random bytes of a secret that is made here: 256 bits, as much as its HMAC gives.
pub const SIGNING_SECRET_BYTES: usize = 32;

/// The key that signs notifications of one app: 24 to 64 random bytes, `whsec_` and base64 in text.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningSecret(pub Vec<u8>);

impl SigningSecret {
    /// What its text starts with.
    pub const PREFIX: &'static str = "whsec_";
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret(hidden)")
    }
}

/// A signing secret as it is stored: with the time at which it stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSecret {
    /// The key.
    pub secret: SigningSecret,
    /// When it stops signing; `None` for the newest of an app.
    pub expires_at: Option<Timestamp>,
}

impl StoredSecret {
    /// Whether it signs at this time.
    #[must_use]
    pub fn signs_at(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|end| now < end)
    }
}
