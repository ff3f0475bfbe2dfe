//! What an answer's status means for the delivery: a pure table.
//!
//! [`super::sender`] asks for every answer; the lane acts on it. Everything that brings no status
//! (timeouts, broken connections, refused targets) is [`Outcome::Failed`] without asking here.

use std::time::Duration;

use jiff::civil::DateTime;

use crate::domain::clock::Timestamp;

/// Shortest pause that a receiver can ask for; zero or a date in the past would be a request to be hammered.
pub const PAUSE_MIN: Duration = Duration::from_secs(1);

/// Longest pause that a receiver can ask for. Longer would let one careless header hold a backlog for days;
/// shorter would call a receiver that is down for maintenance too often.
pub const PAUSE_MAX: Duration = Duration::from_secs(60 * 60);

/// The forms of an HTTP date that a recipient must accept, the preferred one first (RFC 9110, section 5.6.7).
const HTTP_DATE_FORMS: [&str; 3] =
    ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];

const EPOCH: DateTime = jiff::civil::datetime(1970, 1, 1, 0, 0, 0, 0);

/// What one attempt means for its delivery and its subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver has it.
    Delivered,
    /// The receiver is gone for good: the subscription is disabled.
    Gone,
    /// The receiver asks for a pause.
    Pause {
        /// How long, [`PAUSE_MIN`] to [`PAUSE_MAX`]; `None` when the answer names no usable time.
        after: Option<Duration>,
    },
    /// Anything else; whose fault it is, the lane decides.
    Failed,
}

/// Judges an answer by its status, and by `Retry-After` where the status gives it a meaning.
///
/// A 503 without `Retry-After` is a failure: it is what a broken proxy says, not a receiver that asks for time.
#[must_use]
pub fn judge_answer(status: u16, retry_after: Option<&str>, now: Timestamp) -> Outcome {
    match (status, retry_after) {
        (200..=299, _) => Outcome::Delivered,
        (410, _) => Outcome::Gone,
        (429, None) => Outcome::Pause { after: None },
        (429 | 503, Some(text)) => Outcome::Pause { after: parse_retry_after(text, now) },
        _ => Outcome::Failed,
    }
}

/// Reads seconds or an HTTP date, clamped; `None` when it is neither.
fn parse_retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim_matches([' ', '\t']);
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // Digits that do not fit are a very long time, not an unusable value.
        let seconds = text.parse().unwrap_or(u64::MAX);
        return Some(Duration::from_secs(seconds).clamp(PAUSE_MIN, PAUSE_MAX));
    }
    let date = HTTP_DATE_FORMS.iter().find_map(|form| DateTime::strptime(form, text).ok())?;
    // Counted in civil time, which in UTC is the same: a zoned time ends a day before the year 9999 does.
    let millis = date.duration_since(EPOCH).as_millis();
    let at = Timestamp::from_millis(i64::try_from(millis).ok()?);
    Some(at.since(now).clamp(PAUSE_MIN, PAUSE_MAX))
}

#[cfg(test)]
#[path = "outcome_tests.rs"]
mod tests;
