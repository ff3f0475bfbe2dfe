//! The keys that seal signing secrets for the store.
//!
//! **Threat.** Somebody reads a copy of the database, a backup of it or a disk that was thrown away, and could then
//! sign notifications in our name. **Defence.** A secret is stored sealed with AES-256-GCM; the key is kept somewhere
//! else, or at least in another file. What is sealed for one app does not open for another, or at another number.
//! Whoever can read the memory or all files of the server is not kept out. `docs/decisions/0011-secrets-at-rest.md`
//! has the alternatives.
//!
//! A keyring holds the newest key, which seals, and earlier ones, which only open: that is how a key is replaced
//! without a moment in which one of them is missing.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use crate::domain::id::{AppId, ServiceId};

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Most keys of a keyring: the newest, and those that a rotation which did not end has left.
pub const KEYS_MAX: usize = 8;
/// What stands before a key in a file, so that a file of another kind is told apart.
const LINE_PREFIX: &str = "rollcall-key-1 ";
/// Goes into the tag before the place of the secret, so that what is sealed for another use later does not open here.
const PURPOSE: &[u8] = b"rollcall signing secret 1\0";

/// What goes wrong with keys and with what they sealed. Holds no byte of either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text of a key.
    #[error("a key is {KEY_BYTES} random bytes in base64, 44 characters")]
    Malformed,
    /// None, or too many.
    #[error("1 to {KEYS_MAX} keys are accepted, the newest first")]
    Count,
    /// The same key twice.
    #[error("a key is given twice")]
    Repeated,
    /// No key of this number is at hand.
    #[error("sealed with key {0}, which is not at hand")]
    Unknown(KeyId),
    /// The bytes do not open with their key: damaged, or moved here from another place.
    #[error(
        "a signing secret does not open with its key {0}: `rollcall key reset` gives its app a new one"
    )]
    Damaged(KeyId),
    /// The system gives no random numbers, or the cipher none of its bytes.
    #[error("cannot seal")]
    Unsealed,
}

/// Tells keys apart, and nothing about them: a part of a hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 4]);

impl KeyId {
    /// From the bytes that are stored.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 4]) -> Self {
        Self(bytes)
    }

    /// The bytes that are stored.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 4] {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", u32::from_be_bytes(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// One key.
pub struct Key {
    id: KeyId,
    bytes: [u8; KEY_BYTES],
    cipher: RandomizedNonceKey,
}

impl Key {
    /// A new one.
    ///
    /// # Errors
    ///
    /// [`KeyError::Unsealed`]: the system gives no random numbers.
    pub fn random() -> Result<Self, KeyError> {
        let mut bytes = [0; KEY_BYTES];
        getrandom::fill(&mut bytes).map_err(|_| KeyError::Unsealed)?;
        Self::from_bytes(bytes)
    }

    fn from_bytes(bytes: [u8; KEY_BYTES]) -> Result<Self, KeyError> {
        let cipher =
            RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(|_| KeyError::Malformed)?;
        let hash =
            Sha256::new().chain_update(b"rollcall key id 1\0").chain_update(bytes).finalize();
        let id = KeyId([hash[0], hash[1], hash[2], hash[3]]);
        Ok(Self { id, bytes, cipher })
    }

    /// From its text, with or without what stands before it in a file.
    ///
    /// # Errors
    ///
    /// [`KeyError::Malformed`].
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let text = text.strip_prefix(LINE_PREFIX).unwrap_or(text).trim();
        let bytes = STANDARD.decode(text).map_err(|_| KeyError::Malformed)?;
        Self::from_bytes(bytes.try_into().map_err(|_| KeyError::Malformed)?)
    }

    /// Its text for the one place where it is kept.
    #[must_use]
    pub fn reveal(&self) -> String {
        STANDARD.encode(self.bytes)
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

/// Where a secret is stored; it opens nowhere else.
#[derive(Clone, Copy, Debug)]
pub struct SecretPlace {
    /// The tenant.
    pub service: ServiceId,
    /// The app.
    pub app: AppId,
    /// The number of the secret among those of its app.
    pub number: u64,
}

impl SecretPlace {
    fn bytes(&self) -> Vec<u8> {
        let (service, app) = (self.service.as_bytes(), self.app.as_bytes());
        [PURPOSE, service, app, &self.number.to_be_bytes()].concat()
    }
}

/// The newest key and those before it. Cheap to clone.
#[derive(Clone)]
pub struct Keyring(Arc<[Key]>);

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter()).finish()
    }
}

impl Keyring {
    /// Of these keys, the newest first.
    ///
    /// # Errors
    ///
    /// None, more than [`KEYS_MAX`], or one twice.
    pub fn new(keys: Vec<Key>) -> Result<Self, KeyError> {
        if keys.is_empty() || keys.len() > KEYS_MAX {
            return Err(KeyError::Count);
        }
        let repeated = |(at, key): (usize, &Key)| keys[..at].iter().any(|k| k.id == key.id);
        if keys.iter().enumerate().any(repeated) {
            return Err(KeyError::Repeated);
        }
        Ok(Self(keys.into()))
    }

    /// From text: keys with commas or line ends between them, the newest first. Lines that begin with `#` are notes.
    ///
    /// # Errors
    ///
    /// As [`Self::new`] and [`Key::parse`].
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let noted = |line: &&str| !line.starts_with('#');
        let parts = text.lines().map(str::trim).filter(noted).flat_map(|line| line.split(','));
        let parts = parts.map(str::trim).filter(|part| !part.is_empty());
        Self::new(parts.map(Key::parse).collect::<Result<_, _>>()?)
    }

    /// With a new key in front.
    ///
    /// # Errors
    ///
    /// There are [`KEYS_MAX`] already, or no random numbers.
    pub fn with_new(&self) -> Result<Self, KeyError> {
        let copies = self.0.iter().map(|key| Key::from_bytes(key.bytes));
        Self::new(std::iter::once(Key::random()).chain(copies).collect::<Result<_, _>>()?)
    }

    /// The text of a key file.
    #[must_use]
    pub fn reveal(&self) -> String {
        self.0.iter().map(|key| format!("{LINE_PREFIX}{}\n", key.reveal())).collect()
    }

    /// The key that seals.
    #[must_use]
    pub fn newest(&self) -> KeyId {
        self.0[0].id
    }

    /// The numbers of all keys, the newest first.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.0.iter().map(|key| key.id)
    }

    /// Only the key that seals.
    ///
    /// # Errors
    ///
    /// None that was not met before: the key has been used.
    pub fn only_newest(&self) -> Result<Self, KeyError> {
        Self::new(vec![Key::from_bytes(self.0[0].bytes)?])
    }

    /// Seals a secret for its place: nonce, ciphertext and tag.
    ///
    /// # Errors
    ///
    /// [`KeyError::Unsealed`].
    pub fn seal(&self, place: SecretPlace, secret: &[u8]) -> Result<Vec<u8>, KeyError> {
        let mut text = secret.to_vec();
        let aad = Aad::from(place.bytes());
        let nonce = self.0[0]
            .cipher
            .seal_in_place_append_tag(aad, &mut text)
            .map_err(|_| KeyError::Unsealed)?;
        Ok([nonce.as_ref().as_slice(), &text].concat())
    }

    /// Opens what was sealed for this place.
    ///
    /// # Errors
    ///
    /// The key is not in the ring, or the bytes were not sealed with it for this place.
    pub fn open(&self, place: SecretPlace, id: KeyId, sealed: &[u8]) -> Result<Vec<u8>, KeyError> {
        let key = self.0.iter().find(|key| key.id == id).ok_or(KeyError::Unknown(id))?;
        let damaged = KeyError::Damaged(id);
        let (nonce, text) = sealed.split_at_checked(NONCE_LEN).ok_or(damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged)?;
        let mut text = text.to_vec();
        let opened = key.cipher.open_in_place(nonce, Aad::from(place.bytes()), &mut text);
        let length = opened.map_err(|_| damaged)?.len();
        text.truncate(length);
        Ok(text)
    }
}

#[cfg(test)]
#[path = "keyring_tests.rs"]
mod tests;
