//! What the value of each contact field may look like.
//!
//! Names and types are those of the public API reference; the limits are ours where it gives none. A value that
//! passes is stored as it was sent.

use serde_json::Value;

use super::contact::{Field, FieldError, FieldValue};
use super::strict_json::shown;

/// The status of a contact that was created without one.
pub const STATUS_DEFAULT: &str = "Activated";
/// Every status that the reference knows.
pub const STATUSES: [&str; 3] = ["Activated", "Not activated", "Suspended"];
/// Longest first or last name in Unicode scalar values; the longest documented human names fit.
pub const NAME_CHARS_MAX: usize = 100;
/// Longest other text in Unicode scalar values; longer ones are documents, not fields of a roll.
pub const TEXT_CHARS_MAX: usize = 255;
/// Shortest e-mail address in bytes: `a@b`.
pub const EMAIL_BYTES_MIN: usize = 3;
/// Longest e-mail address in bytes; RFC 5321, section 4.5.3.1.3 less the angle brackets.
pub const EMAIL_BYTES_MAX: usize = 254;
/// Longest part before the `@` in bytes; RFC 5321, section 4.5.3.1.1.
pub const EMAIL_LOCAL_BYTES_MAX: usize = 64;
/// Largest E.164 number: 15 digits.
pub const PHONE_MAX: u64 = 999_999_999_999_999;
/// Lowest extension number; below it numbers are kept for services such as emergency calls.
pub const EXTENSION_MIN: u32 = 100;
/// Highest extension number: six digits.
pub const EXTENSION_MAX: u32 = 999_999;

/// The data scope that follows a role when none is given; `None` for a custom role.
#[must_use]
pub fn data_scope_of(role: &str) -> Option<&'static str> {
    match role {
        "Administrator" => Some("Full"),
        "Supervisor" => Some("Department"),
        "Agent" => Some("Restricted"),
        _ => None,
    }
}

/// The error for a name that is no field a caller may set.
pub(super) fn not_a_field(name: &str) -> FieldError {
    match name {
        "id" | "version" | "createdAt" | "updatedAt" => {
            FieldError::new(name, "is read-only: it is made by the server")
        }
        _ => FieldError::new(shown(name), "is not a field of a staff contact"),
    }
}

/// Judges one value from JSON; `null` gives `None`.
pub(super) fn parse_value(field: Field, value: Value) -> Result<Option<FieldValue>, FieldError> {
    if value.is_null() {
        return Ok(None);
    }
    let parsed = match field {
        Field::Phone => phone(value),
        Field::ExtensionNumber => extension(&value),
        Field::DirectStaffEnquiry
        | Field::TwoFactorAuthentication
        | Field::MicrosoftActiveDirectory => match value {
            Value::Bool(flag) => Ok(FieldValue::Flag(flag)),
            _ => Err("must be true or false".to_owned()),
        },
        _ => match value {
            Value::String(text) => check_text(field, &text).map(|()| FieldValue::Text(text)),
            _ => Err("must be a string".to_owned()),
        },
    };
    parsed.map(Some).map_err(|rule| FieldError::new(field.name(), rule))
}

fn check_text(field: Field, text: &str) -> Result<(), String> {
    // Most texts are short and plain: they are judged by their bytes, without taking characters apart.
    let plain = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    let count_chars = || if plain { text.len() } else { text.chars().count() };
    if !plain && let Some(bad) = text.chars().find(|c| is_refused_char(*c)) {
        return Err(format!(
            "must not contain control characters, line separators or bidirectional controls (found U+{:04X})",
            u32::from(bad)
        ));
    }
    match field {
        Field::FirstName | Field::LastName => {
            let chars = count_chars();
            if chars == 0 || chars > NAME_CHARS_MAX {
                return Err(format!("must have 1 to {NAME_CHARS_MAX} characters, has {chars}"));
            }
            if text.chars().all(char::is_whitespace) {
                return Err("must not be only blanks".to_owned());
            }
            Ok(())
        }
        Field::Email => check_email(text),
        Field::Status if !STATUSES.contains(&text) => {
            Err(format!("must be one of: {}", STATUSES.join(", ")))
        }
        Field::Timezone if !is_timezone(text) => {
            Err("must be an IANA time zone name such as Europe/Berlin".to_owned())
        }
        _ => {
            let chars = count_chars();
            if chars > TEXT_CHARS_MAX {
                return Err(format!("must have at most {TEXT_CHARS_MAX} characters, has {chars}"));
            }
            Ok(())
        }
    }
}

/// Characters that make a text show other than it is, or break a line of a log or a CSV file.
#[must_use]
pub fn is_refused_char(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}')
}

fn check_email(text: &str) -> Result<(), String> {
    if text.len() < EMAIL_BYTES_MIN || text.len() > EMAIL_BYTES_MAX {
        return Err(format!(
            "must have {EMAIL_BYTES_MIN} to {EMAIL_BYTES_MAX} bytes, has {}",
            text.len()
        ));
    }
    let Some((local, domain)) = text.split_once('@') else {
        return Err("must contain one @".to_owned());
    };
    if domain.contains('@') {
        return Err("must contain one @".to_owned());
    }
    if local.is_empty() || domain.is_empty() {
        return Err("must have a part before and a part after the @".to_owned());
    }
    if local.len() > EMAIL_LOCAL_BYTES_MAX {
        return Err(format!(
            "must have at most {EMAIL_LOCAL_BYTES_MAX} bytes before the @, has {}",
            local.len()
        ));
    }
    if text.chars().any(char::is_whitespace) {
        return Err("must not contain blanks".to_owned());
    }
    Ok(())
}

/// The form in which e-mail addresses are compared.
#[must_use]
pub fn fold_email(email: &str) -> String {
    email.to_lowercase()
}

fn phone(value: Value) -> Result<FieldValue, String> {
    let rule = || "must be an E.164 number: text as +493012345, or the digits as a number, at most 15 digits";
    let digits = match value {
        Value::String(text) => {
            let digits = text.strip_prefix('+').ok_or_else(rule)?;
            let well_formed = !digits.is_empty()
                && digits.len() <= 15
                && digits.bytes().all(|b| b.is_ascii_digit())
                && !digits.starts_with('0');
            if !well_formed {
                return Err(rule().to_owned());
            }
            digits.parse().ok()
        }
        Value::Number(number) => number.as_u64(),
        _ => None,
    };
    match digits {
        Some(number @ 1..=PHONE_MAX) => Ok(FieldValue::Number(number)),
        _ => Err(rule().to_owned()),
    }
}

fn extension(value: &Value) -> Result<FieldValue, String> {
    match value.as_u64() {
        Some(number) if (u64::from(EXTENSION_MIN)..=u64::from(EXTENSION_MAX)).contains(&number) => {
            Ok(FieldValue::Number(number))
        }
        _ => Err(format!("must be a whole number from {EXTENSION_MIN} to {EXTENSION_MAX}")),
    }
}

/// Whether this is an IANA name, spelled as the database spells it.
fn is_timezone(name: &str) -> bool {
    // The bundled database looks names up without regard to case; other systems that get the name do not.
    static ZONES: std::sync::LazyLock<jiff::tz::TimeZoneDatabase> =
        std::sync::LazyLock::new(jiff::tz::TimeZoneDatabase::bundled);
    name.len() <= 64 && ZONES.get(name).is_ok_and(|zone| zone.iana_name() == Some(name))
}
