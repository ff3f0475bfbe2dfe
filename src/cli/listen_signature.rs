//! STAND-IN, to be deleted: verification of a received signature, in the shape of `crate::delivery::signing`.
//!
//! When that module is there, replace `use super::listen_signature as signing;` by `use crate::delivery::signing;`
//! in `listen_receiver.rs` and `listen.rs`, and delete this file and its line in `mod.rs`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::domain::clock::Timestamp;
use crate::domain::subscription::SigningSecret;

/// Largest difference between the sender's clock and ours, in seconds, as Standard Webhooks recommends.
const TOLERANCE_SECONDS: u64 = 300;

/// The signature does not fit, or its time does not.
#[derive(Debug)]
pub(super) struct NotVerified;

/// Reads `whsec_…`.
pub(super) fn parse_secret(text: &str) -> Option<SigningSecret> {
    let key = STANDARD.decode(text.strip_prefix("whsec_")?).ok()?;
    (24..=64).contains(&key.len()).then_some(SigningSecret(key))
}

/// Judges a received request; the headers are given as received.
pub(super) fn verify(
    secret: &SigningSecret,
    id: &str,
    timestamp: &str,
    signature: &str,
    body: &[u8],
    now: Timestamp,
) -> Result<(), NotVerified> {
    let seconds: i64 = timestamp.parse().map_err(|_| NotVerified)?;
    if seconds.abs_diff(now.seconds()) > TOLERANCE_SECONDS {
        return Err(NotVerified);
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(&secret.0).map_err(|_| NotVerified)?;
    mac.update(format!("{id}.{timestamp}.").as_bytes());
    mac.update(body);
    let fits = signature
        .split(' ')
        .filter_map(|part| STANDARD.decode(part.strip_prefix("v1,")?).ok())
        .any(|tag| mac.clone().verify_slice(&tag).is_ok());
    if fits { Ok(()) } else { Err(NotVerified) }
}
