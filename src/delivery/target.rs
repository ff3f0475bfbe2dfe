//! A receiver's URL, taken apart once, when its text has exactly one reading.
//!
//! The target guard calls [`Target::parse`] and then judges host, addresses and port. The text is read twice, by
//! simple rules of our own and by the WHATWG parser, and refused unless both agree.

use std::cell::Cell;
use std::net::IpAddr;

use super::refusal::{Refusal, Step};
use crate::domain::subscription::URL_BYTES_MAX;

/// Longest host name and label of the domain name system (RFC 1035, section 2.3.4), without the trailing dot.
const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// The host of a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetHost {
    /// A name, in lower case.
    Name(String),
    /// A literal address.
    Address(IpAddr),
}

/// A URL whose text has passed [`super::TargetGuard::check_url`], taken apart once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// Who is called.
    pub host: TargetHost,
    /// Which port, the scheme's own when none was written.
    pub port: u16,
    /// Host as it was written, with the port unless it is the scheme's own: the `Host` header.
    pub authority: String,
    /// Path and query byte for byte as written; `/` stands in for a missing path.
    pub path_and_query: String,
}

impl Target {
    /// Reads the text of a URL that must have exactly one reading.
    ///
    /// # Errors
    ///
    /// [`Refusal`] at step url.
    pub(super) fn parse(text: &str, allow_http: bool) -> Result<Self, Refusal> {
        check_text(text)?;
        let (tls, rest) = split_scheme(text, allow_http)?;
        let authority_end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(authority_end);
        if authority.contains('@') {
            return Err(Refusal::url("url must not contain user info"));
        }
        let understood = parse_strictly(text)?;
        let (host_text, port_text) = split_authority(authority);
        let default_port = if tls { 443 } else { 80 };
        let port = check_port(port_text, understood.port(), default_port)?;
        let host = check_host(host_text, &understood)?;

        let authority = if port == default_port { host_text } else { authority };
        let slash = if path.starts_with('/') { "" } else { "/" };
        let path_and_query = format!("{slash}{path}");
        // What is called must be what was checked: the HTTP library's own reading has the last word.
        let callable = http::Uri::try_from(path_and_query.as_str())
            .is_ok_and(|uri| uri.to_string() == path_and_query)
            && http::uri::Authority::try_from(authority).is_ok();
        if !callable {
            return Err(Refusal::url("url contains characters that must be percent-encoded"));
        }
        Ok(Self { tls, host, port, authority: authority.to_owned(), path_and_query })
    }
}

/// Rules for the text as a whole, before any parser sees it.
fn check_text(text: &str) -> Result<(), Refusal> {
    if text.len() > URL_BYTES_MAX {
        let message = format!("url must have at most {URL_BYTES_MAX} bytes");
        return Err(Refusal { step: Step::Url, message: message.into() });
    }
    if text.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Err(Refusal::url("url must not contain blanks or control characters"));
    }
    // Other characters could not be called byte for byte: a request line is ASCII.
    if !text.is_ascii() {
        return Err(Refusal::url("url must be written in ASCII"));
    }
    if text.contains('#') {
        return Err(Refusal::url("url must not contain a fragment"));
    }
    if text.contains('\\') {
        return Err(Refusal::url("url must not contain a backslash"));
    }
    Ok(())
}

fn split_scheme(text: &str, allow_http: bool) -> Result<(bool, &str), Refusal> {
    match text.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => Ok((true, rest)),
        Some((scheme, rest)) if allow_http && scheme.eq_ignore_ascii_case("http") => {
            Ok((false, rest))
        }
        _ if allow_http => Err(Refusal::url("url must begin with https:// or http://")),
        _ => Err(Refusal::url("url must begin with https://")),
    }
}

fn parse_strictly(text: &str) -> Result<url::Url, Refusal> {
    let violated = Cell::new(false);
    let note = |_| violated.set(true);
    let parsed = url::Url::options().syntax_violation_callback(Some(&note)).parse(text);
    match parsed {
        Ok(_) if violated.get() => Err(Refusal::url("url breaks the syntax of urls")),
        Ok(url) => Ok(url),
        Err(_) => Err(Refusal::url("url or its host cannot be read")),
    }
}

/// Host and port as written; a colon inside brackets belongs to the address.
fn split_authority(authority: &str) -> (&str, Option<&str>) {
    match authority.rfind(':') {
        Some(colon) if !authority[colon..].contains(']') => {
            (&authority[..colon], Some(&authority[colon + 1..]))
        }
        _ => (authority, None),
    }
}

fn check_port(text: Option<&str>, parsed: Option<u16>, default: u16) -> Result<u16, Refusal> {
    let port = parsed.unwrap_or(default);
    match text {
        Some(text) if text != port.to_string() => {
            Err(Refusal::url("the port of the url must be a plain number"))
        }
        _ => Ok(port),
    }
}

/// The host, when it was written as the parser understood it.
fn check_host(text: &str, understood: &url::Url) -> Result<TargetHost, Refusal> {
    if text.ends_with('.') {
        return Err(Refusal::url("the host of the url must not end in a dot"));
    }
    let same = understood.host_str().is_some_and(|host| host.eq_ignore_ascii_case(text));
    if !same {
        return Err(Refusal::url("the host of the url must be written in its plain form"));
    }
    match understood.host() {
        Some(url::Host::Domain(name)) if is_plain_name(name) => {
            Ok(TargetHost::Name(name.to_ascii_lowercase()))
        }
        Some(url::Host::Ipv4(address)) => Ok(TargetHost::Address(address.into())),
        Some(url::Host::Ipv6(address)) => Ok(TargetHost::Address(address.into())),
        _ => Err(Refusal::url("the host of the url is not a valid host name")),
    }
}

/// Whether name servers and certificates can carry the name. WHATWG takes more characters.
fn is_plain_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    name.len() <= NAME_BYTES_MAX
        && name.split('.').all(|label| {
            (1..=LABEL_BYTES_MAX).contains(&label.len())
                && label.bytes().all(plain)
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;
