//! What must hold of requests that `rollcall listen` receives, and of JSON in its order. Run by `src/fuzzing.rs` only.

use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use super::listen_answer::Verified;
use super::listen_answer::{Received, find_challenge};
use super::listen_receiver::{judge_signature, read_body};
use super::ordered::Ordered;
use crate::delivery::signing;
use crate::domain::clock::Timestamp;
use crate::domain::subscription::SigningSecret;

/// The time of the receiver: that of the seeds' signatures.
const NOW: Timestamp = Timestamp::from_millis(1_763_900_000_123);
/// The secret of the seeds' signatures.
const SECRET: [u8; 32] = [7; 32];

/// JSON in its order holds what JSON without an order holds, and is written as it was read.
pub(crate) fn check_order(bytes: &[u8]) {
    let ordered = serde_json::from_slice::<Ordered>(bytes);
    let value = serde_json::from_slice::<Value>(bytes);
    assert_eq!(ordered.is_ok(), value.is_ok());
    let Ok(ordered) = ordered else { return };
    // The fields that are there are those of the value; of a name that is given twice the last one counts there.
    if let (Ordered::Object(fields), Ok(Value::Object(object))) = (&ordered, &value) {
        assert!(fields.iter().all(|(name, _)| object.contains_key(name)));
        assert!(object.keys().all(|name| ordered.get(name).is_some()));
    }
    let text = ordered.to_string();
    let again = serde_json::from_str::<Ordered>(&text).expect("what was written can be read");
    // The last digit of a fraction may change.
    assert!(holds_fraction(&ordered) || again == ordered, "{text}");
}

fn holds_fraction(value: &Ordered) -> bool {
    match value {
        Ordered::Plain(value) => value.is_f64(),
        Ordered::List(items) => items.iter().any(holds_fraction),
        Ordered::Object(fields) => fields.iter().any(|(_, value)| holds_fraction(value)),
    }
}

/// Lines of headers, an empty line, a body: what is told of it is harmless, and verified is only what was signed.
pub(crate) fn check_notification(bytes: &[u8]) {
    let at = bytes.windows(2).position(|pair| pair == b"\n\n").unwrap_or(bytes.len());
    let (head, body) = bytes.split_at(at);
    let body = body.get(2..).unwrap_or_default();
    let mut headers = HeaderMap::new();
    for line in head.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let secret = SigningSecret(SECRET.to_vec());
    let verified = judge_signature(Some(&secret), &headers, body, NOW);
    if verified == Verified::Yes {
        check_genuine(&secret, &headers, body);
    }
    check_secret(&headers);
    let body = read_body(body);
    if let Some(challenge) = find_challenge(&body) {
        assert_eq!(body["challenge"].as_str(), Some(challenge));
    }
    check_told(&Received { at: NOW.to_string(), verified, answered: 200, headers, body });
}

fn check_genuine(secret: &SigningSecret, headers: &HeaderMap, body: &[u8]) {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let (id, time) = (text("webhook-id"), text("webhook-timestamp"));
    let (Some(id), Some(time)) = (id, time) else { panic!("verified without id and time") };
    let seconds: i64 = time.parse().expect("a verified time is a number");
    assert!((seconds - NOW.seconds()).abs() <= 300, "{seconds} is not now");
    if seconds.to_string() == time {
        let ours = signing::sign([secret], id, seconds, body);
        let sent = text("webhook-signature").unwrap_or_default();
        assert!(sent.split(' ').any(|one| one == ours), "{sent} holds no signature of ours");
    }
}

fn check_secret(headers: &HeaderMap) {
    let text = headers.get("x-secret").and_then(|value| value.to_str().ok());
    if let Some(secret) = text.and_then(signing::parse_secret) {
        assert_eq!(Some(&signing::format_secret(&secret)[..]), text);
        assert!((24..=64).contains(&secret.0.len()));
    }
}

fn check_told(received: &Received) {
    let line = received.line();
    let steers = |c: char| c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c);
    assert!(!line.chars().any(steers), "{line:?}");
    let json = serde_json::to_string(&received.json());
    let json = json.expect("what was received can be written");
    assert!(!json.bytes().any(|byte| byte < b' '), "{json}");
    assert!(serde_json::from_str::<Value>(&json).is_ok(), "{json}");
}
