//! Services, their apps, the scopes of an app, and tokens.

use std::fmt;

use sha2::{Digest, Sha256};

use super::clock::Timestamp;
use super::id::{AppId, ServiceId};

/// Longest name of a service or app, in Unicode scalar values; the reference's limit for apps.
pub const NAME_CHARS_MAX: usize = 50;

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its identifier.
    pub id: ServiceId,
    /// What its operator calls it.
    pub name: String,
    /// When it was created.
    pub created_at: Timestamp,
}

/// An API client of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct App {
    /// The tenant it belongs to.
    pub service: ServiceId,
    /// Its identifier.
    pub id: AppId,
    /// What its operator calls it.
    pub name: String,
    /// What its token may do.
    pub scopes: Scopes,
    /// When it was created.
    pub created_at: Timestamp,
}

/// One thing that a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Subscribe, read the feed and deliveries.
    Events,
    /// Read staff contacts.
    DirectoryRead,
    /// Create, edit and delete staff contacts.
    DirectoryWrite,
}

impl Scope {
    /// All scopes, in the order they are listed.
    pub const ALL: [Self; 3] = [Self::Events, Self::DirectoryRead, Self::DirectoryWrite];

    /// The name in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::DirectoryRead => "directory:read",
            Self::DirectoryWrite => "directory:write",
        }
    }

    const fn bit(self) -> u8 {
        match self {
            Self::Events => 1,
            Self::DirectoryRead => 2,
            Self::DirectoryWrite => 4,
        }
    }

    /// The scope of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.name() == name)
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// Every scope there is.
    #[must_use]
    pub fn all() -> Self {
        Scope::ALL.into_iter().collect()
    }

    /// Whether the scope is in the set.
    #[must_use]
    pub const fn contains(self, scope: Scope) -> bool {
        self.0 & scope.bit() != 0
    }

    /// Whether no scope is in the set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The names in the set, in listing order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Scope::ALL.into_iter().filter(move |scope| self.contains(*scope)).map(Scope::name)
    }

    /// The bits that are stored.
    #[must_use]
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The set with these stored bits; unknown bits are dropped.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & 7)
    }
}

impl FromIterator<Scope> for Scopes {
    fn from_iter<I: IntoIterator<Item = Scope>>(scopes: I) -> Self {
        Self(scopes.into_iter().fold(0, |bits, scope| bits | scope.bit()))
    }
}

/// A bearer token in the clear: 256 random bits behind a prefix. Shown once, never stored, never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// What an AppToken starts with.
    pub const APP_PREFIX: &'static str = "rct_";
    /// What an admin token that Rollcall made starts with.
    pub const ADMIN_PREFIX: &'static str = "rca_";

    /// A token of these random bytes.
    #[must_use]
    pub fn from_random(prefix: &str, random: [u8; 32]) -> Self {
        let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        Self(format!("{prefix}{digits}"))
    }

    /// A token as a caller sent it or an operator chose it.
    #[must_use]
    pub fn from_text(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one answer that shows it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The hash that is stored and looked up.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0.as_bytes()).into())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

/// SHA-256 of a token. A token has 256 random bits, so a slow password hash would add nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenHash(pub [u8; 32]);

impl TokenHash {
    /// What tells this token from others and opens nothing.
    #[must_use]
    pub fn id(&self) -> TokenId {
        let digest = Sha256::new().chain_update(TokenId::LABEL).chain_update(self.0).finalize();
        let mut id = [0; TokenId::BYTES];
        id.copy_from_slice(&digest[..TokenId::BYTES]);
        TokenId(id)
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(hidden)")
    }
}

/// The public name of a token: made from its hash, so that nothing more is stored, and cut short, so that neither can
/// be found from it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenId([u8; TokenId::BYTES]);

impl TokenId {
    /// Bytes of an id. Two tokens of one server share an id about once in 280 million million.
    pub const BYTES: usize = 6;
    /// What a text form starts with.
    const PREFIX: &'static str = "tok_";
    /// Goes into the hash before the token's own, so that this is no other hash of it.
    const LABEL: &'static [u8] = b"rollcall token id";

    /// Reads the text form; nothing but exactly that form is accepted.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(Self::PREFIX)?.as_bytes();
        if digits.len() != 2 * Self::BYTES {
            return None;
        }
        let mut id = [0; Self::BYTES];
        for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = (digit(pair[0])? << 4) | digit(pair[1])?;
        }
        Some(Self(id))
    }

    /// The bytes that are stored.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; TokenId::BYTES] {
        &self.0
    }

    /// The id with these stored bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; TokenId::BYTES]) -> Self {
        Self(bytes)
    }
}

/// The value of one lower-case hexadecimal digit.
const fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A token as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredToken {
    /// Its hash.
    pub hash: TokenHash,
    /// When it was made; `None` for one that is older than this record.
    pub created_at: Option<Timestamp>,
    /// The hour in which it was last used, as far as that is recorded.
    pub used_at: Option<Timestamp>,
    /// When it stops working; `None` for the newest.
    pub expires_at: Option<Timestamp>,
}

/// Which hour a use is recorded as: so coarse that a token in use costs one write an hour.
#[must_use]
pub fn hour_of(now: Timestamp) -> Timestamp {
    const HOUR_MILLIS: i64 = 60 * 60 * 1000;
    Timestamp::from_millis(now.millis() - now.millis().rem_euclid(HOUR_MILLIS))
}

/// Whether a use at `now` is to be recorded of a token with this record.
#[must_use]
pub fn is_use_new(used_at: Option<Timestamp>, now: Timestamp) -> bool {
    used_at.is_none_or(|used_at| used_at < hour_of(now))
}

#[cfg(test)]
mod tests {
    use super::{Token, TokenId, hour_of, is_use_new};
    use crate::domain::clock::Timestamp;

    #[test]
    fn the_id_of_a_token_is_read_back_and_is_no_part_of_its_hash() {
        let hash = Token::from_text("rct_1").hash();
        let id = hash.id();

        assert_eq!(TokenId::parse(&id.to_string()), Some(id));
        assert_eq!(id.to_string().len(), 16);
        assert_ne!(id, Token::from_text("rct_2").hash().id());
        assert!(!hash.0.windows(TokenId::BYTES).any(|part| part == id.as_bytes()));
        for text in ["", "tok_", "tok_0123456789aB", "tok_0123456789abc", "key_0123456789ab"] {
            assert_eq!(TokenId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_use_is_recorded_once_an_hour() {
        let (noon, hour) = (Timestamp::from_millis(1_763_899_200_000), 3_600_000);
        let later = |millis: i64| Timestamp::from_millis(noon.millis() + millis);

        assert_eq!(hour_of(later(hour - 1)), noon);
        assert!(is_use_new(None, noon));
        assert!(!is_use_new(Some(noon), later(hour - 1)));
        assert!(is_use_new(Some(noon), later(hour)));
        assert!(!is_use_new(Some(noon), later(-hour)));
    }
}
