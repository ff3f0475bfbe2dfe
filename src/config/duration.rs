//! Durations as text: a whole number and one unit, `500ms`, `5s`, `2m`, `1h`, `3d`.
//!
//! Shared by the settings and by the options of the command line. No fractions and no sums, so that one duration
//! has one reading.

use std::time::Duration;

const UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Reads a duration.
///
/// # Errors
///
/// No number, no unit, another unit, or a number too large; the text says so.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let refused = || format!("\"{text}\" is no duration such as 500ms, 5s, 2m, 1h or 3d");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let (_, millis) = UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(refused)?;
    let number: u64 = number.parse().map_err(|_| refused())?;
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(refused)
}

/// Reads a duration and holds it to a range, both ends included.
///
/// # Errors
///
/// As [`parse_duration`], and outside the range.
pub fn parse_within(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    if duration < least {
        return Err(format!("\"{text}\" is too short"));
    }
    if duration > most {
        return Err(format!("\"{text}\" is too long"));
    }
    Ok(duration)
}
