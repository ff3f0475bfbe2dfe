//! What the receiver of `rollcall listen` makes of a request, and how it tells: pure decisions.
//!
//! A challenge is always answered properly; the wished failures apply to notifications only.

use std::collections::BTreeMap;

use http::HeaderMap;
use serde::Serialize;
use serde_json::{Value, json};

use super::ordered::Ordered;
use super::output::plain;

/// Whether the signature was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verified {
    /// It was.
    Yes,
    /// It was missing, wrong or too old.
    No,
    /// No secret is known.
    Unchecked,
}

impl Verified {
    fn words(self) -> &'static str {
        match self {
            Self::Yes => "verified",
            Self::No => "NOT VERIFIED",
            Self::Unchecked => "unchecked",
        }
    }

    fn json(self) -> Option<bool> {
        match self {
            Self::Yes => Some(true),
            Self::No => Some(false),
            Self::Unchecked => None,
        }
    }
}

/// How notifications are to be answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    /// The status of failing answers; without a rate, of all.
    pub(super) status: Option<u16>,
    /// The share of answers that fail, 0 to 1.
    pub(super) fail_rate: Option<f64>,
}

impl Wish {
    /// The status for one notification; `chance` is even over 0 to 1 without the 1.
    pub(super) fn status(self, chance: f64) -> u16 {
        match self.fail_rate {
            Some(rate) if chance < rate => self.status.unwrap_or(500),
            Some(_) => 200,
            None => self.status.unwrap_or(200),
        }
    }
}

/// One request that was received.
#[derive(Clone, Debug)]
pub(super) struct Received {
    /// RFC 3339 in UTC.
    pub(super) at: String,
    /// Whether the signature was right.
    pub(super) verified: Verified,
    /// The status of our answer.
    pub(super) answered: u16,
    /// Its headers.
    pub(super) headers: HeaderMap,
    /// Its body, fields in the order in which they were signed; text where it is no JSON.
    pub(super) body: Ordered,
}

/// The challenge in a body; none when the body is a notification or something else.
pub(super) fn find_challenge(body: &Ordered) -> Option<&str> {
    match body {
        Ordered::Object(fields) if fields.len() == 1 => body["challenge"].as_str(),
        Ordered::Object(_) | Ordered::List(_) | Ordered::Plain(_) => None,
    }
}

/// One line for programs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Line<'a> {
    received_at: &'a str,
    /// Null when no secret is known.
    verified: Option<bool>,
    sequence: Option<u64>,
    attempt: Option<u64>,
    contact_version: Option<u64>,
    webhook_id: Option<&'a str>,
    answered: u16,
    /// All headers, names in lower case; several of one name with commas between them.
    headers: BTreeMap<&'a str, String>,
    body: &'a Ordered,
}

/// The answer that proves consent.
pub(super) fn echo(challenge: &str) -> Value {
    json!({"code": 200, "result": {"challenge": challenge}})
}

impl Received {
    /// One aligned line for people.
    pub(super) fn line(&self) -> String {
        let time = self.at.get(11..23).unwrap_or(&self.at);
        let verified = self.verified.words();
        if find_challenge(&self.body).is_some() {
            return format!("{time}  challenge    answered  {verified}");
        }
        let message = &self.body["message"];
        let part = |name: &str| plain(message[name].as_str().unwrap_or("?"));
        let sequence = self.header("rollcall-sequence").unwrap_or("?");
        let mut line = format!(
            "{time}  {:<11}  {:<24}  {:<35}  #{:<7}  {verified}",
            part("status"),
            part("fullName"),
            part("id"),
            plain(sequence),
        );
        if let Some(attempt) = self.number("rollcall-attempt").filter(|attempt| *attempt > 1) {
            line.push_str(&format!("  attempt {attempt}"));
        }
        if self.answered != 200 {
            line.push_str(&format!("  answered {}", self.answered));
        }
        line
    }

    /// One object for programs.
    pub(super) fn json(&self) -> Line<'_> {
        Line {
            received_at: &self.at,
            verified: self.verified.json(),
            sequence: self.number("rollcall-sequence"),
            attempt: self.number("rollcall-attempt"),
            contact_version: self.number("rollcall-contact-version"),
            webhook_id: self.header("webhook-id"),
            answered: self.answered,
            headers: self.all_headers(),
            body: &self.body,
        }
    }

    fn all_headers(&self) -> BTreeMap<&str, String> {
        let mut all: BTreeMap<&str, String> = BTreeMap::new();
        for (name, value) in &self.headers {
            let text = String::from_utf8_lossy(value.as_bytes());
            all.entry(name.as_str())
                .and_modify(|earlier| *earlier = format!("{earlier}, {text}"))
                .or_insert_with(|| text.to_string());
        }
        all
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.header(name)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::{Ordered, Received, Verified, Wish, find_challenge};

    fn parse(text: &str) -> Ordered {
        serde_json::from_str(text).unwrap()
    }

    fn received(attempt: &str) -> Received {
        let mut headers = HeaderMap::new();
        headers.insert("rollcall-sequence", "7".parse().unwrap());
        headers.insert("rollcall-attempt", attempt.parse().unwrap());
        Received {
            at: "2026-01-02T03:04:05.678Z".to_owned(),
            verified: Verified::No,
            answered: 500,
            headers,
            body: parse(
                r#"{"message":{"status":"staffEdit","fullName":"Ana\u001b B","id":"sc_1"}}"#,
            ),
        }
    }

    #[test]
    fn line_tells_time_status_name_id_sequence_attempt_and_signature() {
        let line = received("2").line();

        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(
            words.join(" "),
            "03:04:05.678 staffEdit Ana\u{fffd} B sc_1 #7 NOT VERIFIED attempt 2 answered 500"
        );
        assert!(!received("1").line().contains("attempt"));
    }

    #[test]
    fn json_has_null_for_what_is_not_there() {
        let text = serde_json::to_string(&received("1").json()).unwrap();

        assert_eq!(
            text,
            concat!(
                r#"{"receivedAt":"2026-01-02T03:04:05.678Z","verified":false,"sequence":7,"attempt":1,"#,
                r#""contactVersion":null,"webhookId":null,"answered":500,"#,
                r#""headers":{"rollcall-attempt":"1","rollcall-sequence":"7"},"#,
                r#""body":{"message":{"status":"staffEdit","fullName":"Ana\u001b B","id":"sc_1"}}}"#
            )
        );
    }

    #[test]
    fn only_a_lone_challenge_is_a_challenge() {
        assert_eq!(find_challenge(&parse(r#"{"challenge":"abc"}"#)), Some("abc"));
        assert_eq!(find_challenge(&parse(r#"{"challenge":"","type":"message"}"#)), None);
        assert_eq!(find_challenge(&parse(r#"{"challenge":1}"#)), None);
        assert_eq!(find_challenge(&parse(r#""challenge""#)), None);
    }

    #[test]
    fn wished_failures() {
        let wish = |status, fail_rate| Wish { status, fail_rate };

        assert_eq!(wish(None, None).status(0.0), 200);
        assert_eq!(wish(Some(410), None).status(0.9), 410);
        assert_eq!(wish(None, Some(0.5)).status(0.49), 500);
        assert_eq!(wish(Some(503), Some(0.5)).status(0.49), 503);
        assert_eq!(wish(Some(503), Some(0.5)).status(0.5), 200);
        assert_eq!(wish(None, Some(1.0)).status(0.999), 500);
        assert_eq!(wish(None, Some(0.0)).status(0.0), 200);
    }
}
