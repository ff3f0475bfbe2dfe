//! Reading one value: from text to type, with the reason when it is refused.
//!
//! Pure functions, one per form; called by `load.rs`. A reason names the entry of a list that is wrong and is never
//! given for secrets.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use tracing_subscriber::EnvFilter;
use url::Url;

use super::duration::parse_within;
use super::load::{CorsOrigins, LogFormat};
use crate::domain::tenancy::Token;
use crate::store::keyring::Keyring;
use crate::store::postgres::Target;

/// A value, or why it is refused; the reason may be empty where the rule says it all.
pub type Parsed<T> = Result<T, String>;

/// Fewest and most characters of an admin token. Fewer can be guessed; more does not fit headers of proxies.
pub const ADMIN_TOKEN_CHARS: RangeInclusive<usize> = 32..=512;

/// Most characters of a node's name: a column of a table on a terminal.
pub const NODE_NAME_CHARS_MAX: usize = 100;

/// Fewest and most waits in a retry schedule; twenty of the longest are 140 days.
pub const RETRY_STEPS: RangeInclusive<usize> = 1..=20;

/// Shortest wait of a retry schedule; shorter would hammer a receiver that is down.
pub const RETRY_WAIT_MIN: Duration = Duration::from_secs(1);

/// Longest wait of a retry schedule: a week.
pub const RETRY_WAIT_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// A value with a standard reading.
pub(super) fn simple<T: FromStr>(text: &str) -> Parsed<T> {
    text.trim().parse().map_err(|_| String::new())
}

/// A number within a range.
pub(super) fn number(text: &str, range: &RangeInclusive<u32>) -> Parsed<u32> {
    simple::<u32>(text).and_then(|n| if range.contains(&n) { Ok(n) } else { Err(String::new()) })
}

/// A path that must be there.
pub(super) fn path(text: &str) -> Parsed<PathBuf> {
    optional_path(text)?.ok_or_else(String::new)
}

/// A path, or none when the text is empty.
pub(super) fn optional_path(text: &str) -> Parsed<Option<PathBuf>> {
    if text.contains('\0') {
        return Err("a NUL in a path".to_owned());
    }
    Ok((!text.is_empty()).then(|| PathBuf::from(text)))
}

/// The PostgreSQL to keep everything in, or none for the embedded store.
pub(super) fn store(text: &str) -> Parsed<Option<Target>> {
    let text = text.trim();
    if text.is_empty() || text == "embedded" {
        return Ok(None);
    }
    if !Target::is_url(text) {
        return Err(String::new());
    }
    Target::parse(text).map(Some).map_err(|why| format!("it {why}"))
}

/// The name of a node, or none when the text is empty.
pub(super) fn node_name(text: &str) -> Parsed<Option<String>> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    if text.chars().any(char::is_control) {
        return Err("it has a control character".to_owned());
    }
    match text.chars().count() {
        count if count > NODE_NAME_CHARS_MAX => Err(format!("it has {count} characters")),
        _ => Ok(Some(text.to_owned())),
    }
}

/// An admin token, or none when the text is empty.
pub(super) fn admin_token(text: &str) -> Parsed<Option<Token>> {
    if text.is_empty() {
        return Ok(None);
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("it has a character that is not accepted".to_owned());
    }
    if !ADMIN_TOKEN_CHARS.contains(&text.len()) {
        return Err(format!("it has {} characters", text.len()));
    }
    Ok(Some(Token::from_text(text)))
}

/// The keys of signing secrets, or none when the text is empty.
pub(super) fn secret_key(text: &str) -> Parsed<Option<Keyring>> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    Keyring::parse(text).map(Some).map_err(|error| error.to_string())
}

/// The entries of a list; an empty text is an empty list.
pub(super) fn list<T>(text: &str, entry: impl Fn(&str) -> Option<T>) -> Parsed<Vec<T>> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    text.split(',')
        .map(str::trim)
        .map(|part| entry(part).ok_or_else(|| format!("entry \"{}\"", part.escape_debug())))
        .collect()
}

/// A network or a single address. Bits behind the prefix are refused, because they show a slip.
pub(super) fn network(text: &str) -> Option<IpNet> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(IpNet::from(address));
    }
    let network: IpNet = text.parse().ok()?;
    (network.trunc() == network).then_some(network)
}

/// A host name in lower case.
pub(super) fn host(text: &str) -> Option<String> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    (text.len() <= 253 && text.split('.').all(label)).then(|| text.to_ascii_lowercase())
}

/// The URL of a proxy that opens tunnels, or none when the text is empty. The same rules as where it is used, and
/// besides nothing that would be ignored there.
pub(super) fn proxy(text: &str) -> Parsed<Option<String>> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    // No reasons: the parser's could name a part of the password.
    let url = Url::parse(text).map_err(|_| String::new())?;
    let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    let user = url.username();
    let password = url.password().unwrap_or_default();
    let named = !user.is_empty() || password.is_empty();
    let decodes = is_percent_encoded(user) && is_percent_encoded(password);
    let good = url.scheme() == "http" && url.host().is_some() && bare && named && decodes;
    if good { Ok(Some(text.to_owned())) } else { Err(String::new()) }
}

/// Whether two hexadecimal digits follow every percent sign.
fn is_percent_encoded(text: &str) -> bool {
    let digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_hexdigit);
    text.split('%')
        .skip(1)
        .all(|rest| digit(rest.as_bytes().first()) && digit(rest.as_bytes().get(1)))
}

/// Web origins or `*`.
pub(super) fn cors_origins(text: &str) -> Parsed<CorsOrigins> {
    if text.trim() == "*" {
        return Ok(CorsOrigins::Any);
    }
    list(text, origin).map(CorsOrigins::List)
}

/// An origin exactly as browsers send it, so that comparing bytes is enough later.
fn origin(text: &str) -> Option<String> {
    let url = Url::parse(text).ok()?;
    let web = matches!(url.scheme(), "http" | "https");
    (web && url.origin().ascii_serialization() == text).then(|| text.to_owned())
}

/// A duration from ten milliseconds to `most` seconds.
pub(super) fn timeout(text: &str, most: u64) -> Parsed<Duration> {
    parse_within(text.trim(), Duration::from_millis(10), Duration::from_secs(most))
}

/// How long something is kept: an hour to ten years.
pub(super) fn retention(text: &str) -> Parsed<Duration> {
    parse_within(text.trim(), Duration::from_hours(1), Duration::from_hours(10 * 365 * 24))
}

/// The waits between attempts.
pub(super) fn retry_schedule(text: &str) -> Parsed<Vec<Duration>> {
    let steps = list(text, |part| parse_within(part, RETRY_WAIT_MIN, RETRY_WAIT_MAX).ok())?;
    if RETRY_STEPS.contains(&steps.len()) {
        return Ok(steps);
    }
    Err(format!("it has {} entries", steps.len()))
}

/// A log filter that the subscriber will accept.
pub(super) fn log_filter(text: &str) -> Parsed<String> {
    let why = |error: tracing_subscriber::filter::ParseError| error.to_string();
    EnvFilter::builder().parse(text).map_err(why)?;
    if text.trim().is_empty() { Err(String::new()) } else { Ok(text.trim().to_owned()) }
}

/// The form of log lines.
pub(super) fn log_format(text: &str) -> Parsed<LogFormat> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(String::new()),
    }
}
