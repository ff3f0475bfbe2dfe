//! What must hold of queries, conditions and bodies that the API accepts. Run by `src/fuzzing.rs` only.

use std::time::Duration;

use ::http::header::IF_MATCH;
use ::http::{HeaderMap, HeaderValue, Request};
use serde_json::Value;

use super::admin::{parse_overlap, take_name, take_scopes};
use super::conditions::{etag, parse_idempotency_key, parse_if_match};
use super::contact_batch::parse_item;
use super::deliveries::{delivery_query, parse_sequence, replay_from};
use super::query::Query;
use crate::domain::id::{AppId, ContactId};
use crate::http::json::JsonObject;
use crate::store::command::{ContactChange, IfMatch};
use crate::store::rows::ReplayFrom;

const I64_MAX: u64 = i64::MAX.unsigned_abs();

/// The body of a batch.
pub(crate) fn check_batch(bytes: &[u8]) {
    let Ok(mut body) = JsonObject::parse(bytes) else { return };
    let Ok(items) = body.take_array("items") else { return };
    for item in items {
        let named = |name: &str| item.get(name).and_then(Value::as_str).map(str::to_owned);
        let (op, id) = (named("op"), named("id"));
        match parse_item(item) {
            Ok(ContactChange::Create(_)) => assert_eq!(op.as_deref(), Some("create")),
            Ok(ContactChange::Edit { id: read, if_match, .. }) => {
                assert_eq!((op.as_deref(), if_match), (Some("edit"), IfMatch::Any));
                assert_eq!(id, Some(read.to_string()));
            }
            Ok(ContactChange::Delete { id: read, .. }) => {
                assert_eq!(op.as_deref(), Some("delete"));
                assert_eq!(id, Some(read.to_string()));
            }
            Err(error) => check_message(&error.message),
        }
    }
}

/// The other bodies, each reader on the same bytes.
pub(crate) fn check_bodies(bytes: &[u8]) {
    if let Ok(overlap) = parse_overlap(bytes) {
        assert!(overlap <= Duration::from_secs(86_400));
    }
    let mut body = match JsonObject::parse(bytes) {
        Ok(body) => body,
        Err(error) => return check_message(&error.message),
    };
    match replay_from(body.clone()) {
        Ok(ReplayFrom::After(after)) => assert!(after <= I64_MAX),
        Ok(ReplayFrom::Since(_)) => {}
        Err(error) => check_message(&error.message),
    }
    match take_name(&mut body) {
        Ok(name) => {
            assert!((1..=50).contains(&name.chars().count()) && !name.trim().is_empty());
            assert!(!name.chars().any(char::is_control), "{name:?}");
        }
        Err(error) => check_message(&error.message),
    }
    match take_scopes(&mut body) {
        Ok(scopes) => assert!((1..=3).contains(&scopes.names().count())),
        Err(error) => check_message(&error.message),
    }
    match body.refuse_unknown() {
        Ok(()) => {}
        Err(error) => check_message(&error.message),
    }
}

/// A line with path and query, then lines of headers.
pub(crate) fn check_target(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let target = lines.next().and_then(|line| std::str::from_utf8(line).ok()).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    check_query(query);
    if let Ok(sequence) = parse_sequence(path) {
        assert!((1..=I64_MAX).contains(&sequence));
        assert_eq!(sequence.to_string(), path);
    }
    let mut headers = HeaderMap::new();
    for value in lines.filter_map(|line| HeaderValue::from_bytes(line).ok()) {
        check_key(&value);
        headers.append(IF_MATCH, value);
    }
    check_versions(&headers);
}

fn check_query(text: &str) {
    let query = Query::parse(Some(text));
    match query.feed() {
        Ok(feed) => {
            assert!((1..=500).contains(&feed.limit) && feed.wait <= Duration::from_secs(30));
            assert!(feed.after <= I64_MAX);
        }
        Err(error) => check_message(&error.message),
    }
    match query.contacts() {
        Ok(contacts) => {
            assert!(contacts.limit <= 500 && contacts.offset <= I64_MAX);
            assert!(contacts.full_name.is_none_or(|name| !name.is_empty()));
        }
        Err(error) => check_message(&error.message),
    }
    match delivery_query(Some(text)) {
        Ok(deliveries) => assert!((1..=100).contains(&deliveries.limit)),
        Err(error) => check_message(&error.message),
    }
}

fn check_key(value: &HeaderValue) {
    let request = Request::builder().header("idempotency-key", value.clone()).body(());
    let Ok(request) = request else { return };
    let (head, ()) = request.into_parts();
    if let Ok(Some(key)) = parse_idempotency_key(&head, AppId::from_bytes([1; 16]), b"{}") {
        assert_eq!(key.key.as_bytes(), value.as_bytes());
        assert!((1..=255).contains(&key.key.len()));
    }
}

/// A version matches only where its own tag was sent.
fn check_versions(headers: &HeaderMap) {
    let Ok(IfMatch::Versions(versions)) = parse_if_match(headers) else { return };
    for version in versions {
        let tag = etag(version);
        let holds = |value: &HeaderValue| {
            value.as_bytes().windows(tag.len()).any(|part| part == tag.as_bytes())
        };
        assert!(headers.get_all(IF_MATCH).iter().any(holds), "{version} was not sent");
    }
}

/// What a caller reads never steers a terminal nor repeats a long text of his.
fn check_message(message: &str) {
    assert!(!message.chars().any(char::is_control), "{message:?}");
    assert!(message.chars().count() < 400, "{message:?}");
    assert!(ContactId::parse(message).is_none());
}
