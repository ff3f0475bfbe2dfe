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
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash(pub [u8; 32]);

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(hidden)")
    }
}
