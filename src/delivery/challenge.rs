//! Verification of a URL: the receiver must show that it wants our notifications.
//!
//! `subscriptions` calls [`verify`] before it stores a URL, and for the app's own test of its receiver. The
//! request is `{"challenge":"<random>"}`, signed like a notification. Consent is a 2xx answer whose body says
//! `{"code":200,"result":{"challenge":"<the same>"}}`; `result` may be a JSON string that contains this
//! object, and `code` may be 0. Unknown members are tolerated, duplicate keys and trailing bytes are not: two
//! parsers could read such a body differently. An answer that echoes the request is not consent, because there
//! are servers that echo everything.
//!
//! Of the answer nothing is ever given on but its status: whoever subscribes must not read our network through it.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use subtle::ConstantTimeEq;

use super::sender::{
    Attempt, AttemptTimer, BODY_BYTES_MAX, BodyEnd, Line, PostFailure, Reading, Received, Sender,
};
use super::target_guard::{Refusal, Step};
use crate::domain::strict_json;
use crate::domain::subscription::StoredSecret;

/// Time for the whole verification. A caller of the API waits for it, so longer outlasts his own timeout;
/// shorter fails receivers that start on demand.
pub const CHALLENGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Random bytes of a challenge: 256 bits, twice what cannot be guessed.
const CHALLENGE_BYTES: usize = 32;

/// Random bytes of a `webhook-id`: 128 bits never repeat.
const ID_BYTES: usize = 16;

/// The random part of one verification, used once.
#[derive(Clone)]
pub struct Nonce {
    id: String,
    challenge: String,
}

impl Nonce {
    /// A nonce from the system's random numbers.
    ///
    /// # Errors
    ///
    /// [`getrandom::Error`] when the system has none to give.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut id = [0; ID_BYTES];
        let mut challenge = [0; CHALLENGE_BYTES];
        getrandom::fill(&mut id)?;
        getrandom::fill(&mut challenge)?;
        Ok(Self::from_bytes(id, challenge))
    }

    /// The nonce of these random bytes.
    #[must_use]
    pub fn from_bytes(id: [u8; ID_BYTES], challenge: [u8; CHALLENGE_BYTES]) -> Self {
        Self { id: format!("chal_{}", hex(&id)), challenge: hex(&challenge) }
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whoever knows the challenge can consent in the receiver's place.
        f.debug_struct("Nonce").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Why a URL was not verified, as much as the caller may learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub struct VerificationFailure {
    /// The step at which it failed.
    pub step: Step,
    /// The status, when the receiver answered with one.
    pub status: Option<u16>,
}

impl fmt::Display for VerificationFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "url verification failed at step {}: ", self.step)?;
        match (self.step, self.status) {
            (Step::Status, Some(status)) => write!(f, "the receiver answered {status}"),
            (step, _) => f.write_str(explain(step)),
        }
    }
}

impl From<PostFailure> for VerificationFailure {
    fn from(failure: PostFailure) -> Self {
        Self { step: failure.step, status: failure.status }
    }
}

impl From<&Refusal> for VerificationFailure {
    fn from(refusal: &Refusal) -> Self {
        Self { step: refusal.step, status: None }
    }
}

/// Sends a challenge and judges the answer, within [`CHALLENGE_TIMEOUT`].
///
/// Nothing is stored, and dropping the future aborts the request.
///
/// # Errors
///
/// [`VerificationFailure`] unless the receiver consents.
pub async fn verify(
    sender: &Sender,
    line: &Line,
    secrets: &[StoredSecret],
    nonce: &Nonce,
) -> Result<(), VerificationFailure> {
    // Hexadecimal digits need no escaping.
    let body = Bytes::from(format!(r#"{{"challenge":"{}"}}"#, nonce.challenge));
    let attempt = Attempt {
        id: &nonce.id,
        body,
        secrets,
        sequence: None,
        contact_version: None,
        number: None,
    };
    let reading =
        Reading { keep_success: BODY_BYTES_MAX, keep_failure: 0, patience: CHALLENGE_TIMEOUT };
    let mut timer = AttemptTimer::default();
    let received = sender.post(line, &attempt, CHALLENGE_TIMEOUT, reading, &mut timer).await?;
    judge_received(&received, &nonce.challenge)
        .map_err(|step| VerificationFailure { step, status: Some(received.status.as_u16()) })
}

fn judge_received(received: &Received, challenge: &str) -> Result<(), Step> {
    if !received.status.is_success() {
        return Err(Step::Status);
    }
    match received.end {
        BodyEnd::Complete => judge_answer(&received.body, challenge),
        BodyEnd::TooLarge => Err(Step::Size),
        BodyEnd::Broken => Err(Step::Connect),
        BodyEnd::TimedOut => Err(Step::Timeout),
    }
}

/// Judges the body of a 2xx answer.
///
/// # Errors
///
/// [`Step::Json`] when it is not one JSON object without duplicate keys, [`Step::Code`] when `code` is not 200 or
/// 0, [`Step::Challenge`] when `result` does not hold the challenge.
pub fn judge_answer(body: &[u8], challenge: &str) -> Result<(), Step> {
    let Ok(Value::Object(answer)) = strict_json::parse(body) else {
        return Err(Step::Json);
    };
    if !matches!(answer.get("code").and_then(Value::as_u64), Some(200 | 0)) {
        return Err(Step::Code);
    }
    let inner;
    let result = match answer.get("result") {
        Some(Value::Object(result)) => result,
        Some(Value::String(text)) => match strict_json::parse(text.as_bytes()) {
            Ok(Value::Object(result)) => {
                inner = result;
                &inner
            }
            _ => return Err(Step::Challenge),
        },
        _ => return Err(Step::Challenge),
    };
    match result.get("challenge") {
        Some(Value::String(echo)) if bool::from(echo.as_bytes().ct_eq(challenge.as_bytes())) => {
            Ok(())
        }
        _ => Err(Step::Challenge),
    }
}

const fn explain(step: Step) -> &'static str {
    match step {
        Step::Url => "the url is not allowed",
        Step::Name => "the host name is not allowed or has no address",
        Step::Address => "the host name stands for an address that is not allowed",
        Step::Connect => {
            "no connection to the receiver, or it closed the connection without an answer"
        }
        Step::Tls => "no encrypted connection with a trusted certificate",
        Step::Timeout => "the receiver did not answer in time",
        Step::Status => "the receiver's answer is not HTTP",
        Step::Size => "the receiver's answer is too large",
        Step::Json => "the answer is not a JSON object without duplicate keys",
        Step::Code => "the answer's code must be 200",
        Step::Challenge => "the answer's result does not hold the challenge",
        Step::Local => "this server has no free connection; try again",
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing into a string cannot fail.
        let _written: fmt::Result = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
#[path = "challenge_tests.rs"]
mod tests;
