//! Signatures of outgoing requests, in the form of Standard Webhooks 1.0.
//!
//! The signed content is three parts joined by full stops: the value of `webhook-id`, the value of
//! `webhook-timestamp` (whole seconds since 1970, decimal), and the body byte for byte. Its HMAC-SHA256
//! under the secret's bytes, in standard base64 with padding, stands behind the version and a comma:
//!
//! ```text
//! content              evt_1.1649367553.{"type":"message"}
//! webhook-signature    v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw= v1,…
//! secret in text       whsec_<standard base64 of 24 to 64 bytes>
//! ```
//!
//! With several valid secrets the header carries one signature for each, separated by a space: a receiver takes
//! the request when any of them fits. [`super::sender`] signs, `rollcall listen` verifies. An id never
//! contains a full stop, or two different contents could have the same bytes; [`sign`] is only called with
//! ids that Rollcall made.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::domain::clock::Timestamp;
use crate::domain::subscription::SigningSecret;

/// Fewest bytes of a secret: 192 bits, the least that Standard Webhooks recommends.
pub const SECRET_BYTES_MIN: usize = 24;

/// Most bytes of a secret: one block of SHA-256; a longer key would be hashed down and gain nothing.
pub const SECRET_BYTES_MAX: usize = 64;

/// How far a timestamp may be from the verifier's clock, before or after.
///
/// The tolerance of the Standard Webhooks libraries. More lets a captured request be replayed longer, less refuses receivers whose clock is off.
pub const TIMESTAMP_TOLERANCE: Duration = Duration::from_secs(5 * 60);

const SECRET_PREFIX: &str = SigningSecret::PREFIX;
const SIGNATURE_PREFIX: &str = "v1,";

/// Length of `v1,` and 44 characters of base64: saves growing the header's text.
const SIGNATURE_TEXT_BYTES: usize = 47;

/// Why a request is not taken as genuine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The header is not a decimal number.
    #[error("webhook-timestamp is not a whole number of seconds")]
    TimestampMalformed,
    /// The time is too far from now.
    #[error("webhook-timestamp is more than 5 minutes from now")]
    TimestampOutOfTolerance,
    /// No signature of a version that is understood fits.
    #[error("no v1 signature in webhook-signature fits")]
    NoSignatureFits,
}

/// Signs a request: one `v1` signature for each secret, in their order, separated by spaces.
///
/// Without secrets the text is empty.
#[must_use]
pub fn sign<'a>(
    secrets: impl IntoIterator<Item = &'a SigningSecret>,
    id: &str,
    timestamp_seconds: i64,
    body: &[u8],
) -> String {
    let timestamp = timestamp_seconds.to_string();
    let secrets = secrets.into_iter();
    let most = secrets.size_hint().1.unwrap_or(1);
    let mut text = String::with_capacity(most * (SIGNATURE_TEXT_BYTES + 1));
    for secret in secrets {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(SIGNATURE_PREFIX);
        let tag = authenticate(secret, id, &timestamp, body).finalize().into_bytes();
        STANDARD.encode_string(tag, &mut text);
    }
    text
}

/// Judges a received request; the headers are given as received.
///
/// # Errors
///
/// [`VerifyError`] when the timestamp is malformed or out of tolerance, or no signature fits.
pub fn verify(
    secret: &SigningSecret,
    id: &str,
    timestamp: &str,
    signature: &str,
    body: &[u8],
    now: Timestamp,
) -> Result<(), VerifyError> {
    // `parse` would take a plus sign, which no sender writes and other libraries refuse.
    if timestamp.starts_with('+') {
        return Err(VerifyError::TimestampMalformed);
    }
    let seconds: i64 = timestamp.parse().map_err(|_| VerifyError::TimestampMalformed)?;
    if seconds.abs_diff(now.seconds()) > TIMESTAMP_TOLERANCE.as_secs() {
        return Err(VerifyError::TimestampOutOfTolerance);
    }

    let expected = authenticate(secret, id, timestamp, body);
    let fits = signature
        .split(' ')
        .filter_map(|part| part.strip_prefix(SIGNATURE_PREFIX))
        .filter_map(|text| STANDARD.decode(text).ok())
        // `verify_slice` compares in constant time.
        .any(|tag| expected.clone().verify_slice(&tag).is_ok());
    if fits { Ok(()) } else { Err(VerifyError::NoSignatureFits) }
}

/// Reads a secret in text; nothing but exactly that form and length is accepted.
#[must_use]
pub fn parse_secret(text: &str) -> Option<SigningSecret> {
    let key = STANDARD.decode(text.strip_prefix(SECRET_PREFIX)?).ok()?;
    (SECRET_BYTES_MIN..=SECRET_BYTES_MAX).contains(&key.len()).then_some(SigningSecret(key))
}

/// Writes a secret in text, for the one answer that shows it.
#[must_use]
pub fn format_secret(secret: &SigningSecret) -> String {
    let mut text = SECRET_PREFIX.to_owned();
    STANDARD.encode_string(&secret.0, &mut text);
    text
}

fn authenticate(secret: &SigningSecret, id: &str, timestamp: &str, body: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&secret.0).expect("HMAC takes keys of any length");
    mac.update(id.as_bytes());
    mac.update(b".");
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(body);
    mac
}

#[cfg(test)]
#[path = "signing_tests.rs"]
mod tests;
