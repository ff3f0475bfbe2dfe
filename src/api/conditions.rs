//! The headers that make a change conditional: `If-Match`, `ETag` and `Idempotency-Key`.

use ::http::header::IF_MATCH;
use ::http::request::Parts;
use ::http::{HeaderMap, HeaderValue};
use sha2::{Digest, Sha256};

use crate::domain::id::AppId;
use crate::http::envelope::ApiError;
use crate::store::command::{IDEMPOTENCY_KEY_BYTES_MAX, IdempotencyKey, IfMatch};

const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The tag of a version.
pub(super) fn etag(version: u64) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{version}\""))
        .expect("digits and quotes are always a valid header value")
}

/// Reads `If-Match`; RFC 9110, section 13.1.1. Weak tags never match, nor do tags that we never gave.
pub(super) fn parse_if_match(headers: &HeaderMap) -> Result<IfMatch, ApiError> {
    let malformed = || ApiError::invalid("If-Match: must be * or a list of entity tags as \"1\"");
    let mut versions = Vec::new();
    let mut lines = 0;
    let mut any = false;
    for line in headers.get_all(IF_MATCH) {
        lines += 1;
        let text = line.to_str().map_err(|_| malformed())?.trim();
        if text == "*" {
            any = true;
        } else {
            read_tags(text, &mut versions).ok_or_else(malformed)?;
        }
    }
    match (any, lines) {
        (false, 0) | (true, 1) => Ok(IfMatch::Any),
        (false, _) => Ok(IfMatch::Versions(versions)),
        (true, _) => Err(malformed()),
    }
}

/// Reads a list of tags; `None` when it is malformed.
fn read_tags(text: &str, versions: &mut Vec<u64>) -> Option<()> {
    let mut rest = text;
    let mut tags = 0;
    loop {
        // RFC 9110, section 5.6.1 lets empty elements stand in a list.
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return (tags > 0).then_some(());
        }
        let (weak, quoted) = match rest.strip_prefix("W/") {
            Some(quoted) => (true, quoted),
            None => (false, rest),
        };
        let (tag, behind) = quoted.strip_prefix('"')?.split_once('"')?;
        if tag.bytes().any(|b| b <= b' ' || b == 0x7F) {
            return None;
        }
        let behind = behind.trim_start_matches([' ', '\t']);
        if !behind.is_empty() && !behind.starts_with(',') {
            return None;
        }
        if !weak && let Some(version) = read_version(tag) {
            versions.push(version);
        }
        tags += 1;
        rest = behind;
    }
}

/// A version exactly as [`etag`] writes it.
fn read_version(tag: &str) -> Option<u64> {
    let exact = tag.bytes().all(|b| b.is_ascii_digit()) && !tag.starts_with('0');
    if exact { tag.parse().ok() } else { None }
}

/// Reads `Idempotency-Key` with the hash of what it stands for.
pub(super) fn parse_idempotency_key(
    head: &Parts,
    app: AppId,
    body: &[u8],
) -> Result<Option<IdempotencyKey>, ApiError> {
    let mut values = head.headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let bytes = value.as_bytes();
    let well_formed = (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&bytes.len())
        && bytes.iter().all(u8::is_ascii_graphic);
    let key = value.to_str().ok().filter(|_| well_formed && values.next().is_none());
    let key = key.ok_or_else(|| {
        ApiError::invalid(format!(
            "Idempotency-Key: must be one header of 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters"
        ))
    })?;
    let request = Sha256::new()
        .chain_update(head.method.as_str())
        .chain_update(b" ")
        .chain_update(head.uri.path())
        .chain_update(b"\n")
        .chain_update(body);
    Ok(Some(IdempotencyKey { app, key: key.to_owned(), request_hash: request.finalize().into() }))
}

#[cfg(test)]
mod tests {
    use super::{etag, parse_idempotency_key, parse_if_match};
    use crate::domain::id::AppId;
    use crate::store::command::IfMatch;
    use ::http::header::IF_MATCH;
    use ::http::{HeaderMap, Request};

    fn check(lines: &[&str], expected: impl Into<Option<IfMatch>>) {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(IF_MATCH, line.parse().unwrap());
        }

        assert_eq!(parse_if_match(&headers).ok(), expected.into(), "{lines:?}");
    }

    #[test]
    fn if_match_is_a_star_or_a_list_of_strong_tags() {
        let versions = |versions: &[u64]| Some(IfMatch::Versions(versions.to_vec()));
        check(&[], Some(IfMatch::Any));
        check(&["*"], Some(IfMatch::Any));
        check(&["\"1\""], versions(&[1]));
        check(&["\"1\", \"22\",\"3\""], versions(&[1, 22, 3]));
        check(&["\"1\"", "\"2\""], versions(&[1, 2]));
        check(&[", \"1\" ,"], versions(&[1]));
        check(&["W/\"1\""], versions(&[]));
        check(&["\"abc\", \"01\", \"\", \"a,b\""], versions(&[]));
        check(&["\"99999999999999999999\""], versions(&[]));
        check(&["1"], None);
        check(&["\"1"], None);
        check(&["\"1\" \"2\""], None);
        check(&["\"1\"x"], None);
        check(&[""], None);
        check(&[","], None);
        check(&["*", "\"1\""], None);
        check(&["*, \"1\""], None);
        check(&["\"1 2\""], None);
    }

    #[test]
    fn the_tag_of_a_version_matches_it() {
        let mut headers = HeaderMap::new();
        headers.insert(IF_MATCH, etag(17));

        assert!(parse_if_match(&headers).unwrap().allows(17));
        assert!(!parse_if_match(&headers).unwrap().allows(18));
    }

    fn key(keys: &[&str], body: &str) -> Result<Option<(String, [u8; 32])>, ()> {
        let mut request = Request::builder().method("POST").uri("/x");
        for key in keys {
            request = request.header("idempotency-key", *key);
        }
        let (head, ()) = request.body(()).unwrap().into_parts();
        parse_idempotency_key(&head, AppId::from_bytes([1; 16]), body.as_bytes())
            .map(|key| key.map(|key| (key.key, key.request_hash)))
            .map_err(|_| ())
    }

    #[test]
    fn a_key_has_1_to_255_visible_characters_and_stands_for_one_body() {
        assert_eq!(key(&[], "{}"), Ok(None));
        assert!(key(&[&"k".repeat(255)], "{}").unwrap().is_some());
        assert_eq!(key(&[&"k".repeat(256)], "{}"), Err(()));
        assert_eq!(key(&[""], "{}"), Err(()));
        assert_eq!(key(&["a b"], "{}"), Err(()));
        assert_eq!(key(&["é"], "{}"), Err(()));
        assert_eq!(key(&["a", "a"], "{}"), Err(()));
        assert_eq!(key(&["a"], "{}"), key(&["a"], "{}"));
        assert_ne!(key(&["a"], "{}"), key(&["a"], "{ }"));
    }
}
