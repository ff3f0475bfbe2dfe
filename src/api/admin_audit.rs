//! Administration: the audit log of a service, and that of the server.

use std::sync::Arc;

use ::http::StatusCode;
use serde::Serialize;

use crate::domain::audit::{Action, Entry, SERVER};
use crate::domain::clock::Timestamp;
use crate::domain::id::ServiceId;
use crate::http::envelope::{ApiError, success};
use crate::store;
use crate::store::rows::{AuditPage, AuditQuery};

use super::State;
use super::admin::service_of;
use super::query::Query;
use super::router::{Answer, Call};

/// An entry; what does not belong to its action is left out.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EntryBody<'a> {
    number: u64,
    time: String,
    by: String,
    from: Option<String>,
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_id: Option<String>,
    #[serde(rename = "appID", skip_serializing_if = "Option::is_none")]
    app: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    contact: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

pub(super) async fn list_audit_of_service(state: Arc<State>, call: Call) -> Answer {
    list(&state, service_of(&call)?, audit_query(call.head.uri.query())?).await
}

pub(super) async fn list_audit_of_server(state: Arc<State>, call: Call) -> Answer {
    list(&state, SERVER, audit_query(call.head.uri.query())?).await
}

async fn list(state: &State, service: ServiceId, query: AuditQuery) -> Answer {
    let page = state.read.list_audit(service, query).await?.ok_or(store::Error::NotFound)?;
    Ok(success(StatusCode::OK, &page_json(&page)?))
}

fn audit_query(query: Option<&str>) -> Result<AuditQuery, ApiError> {
    let query = Query::parse(query);
    let action = match query.get("action")? {
        None => None,
        Some(name) => Some(Action::parse(name).ok_or_else(|| {
            let known: Vec<&str> = Action::ALL.iter().map(|action| action.name()).collect();
            ApiError::invalid(format!("action: must be one of: {}", known.join(", ")))
        })?),
    };
    let since = match query.get("since")? {
        None => None,
        Some(text) => Some(Timestamp::parse(text).ok_or_else(|| {
            ApiError::invalid("since: must be a time such as 2026-11-23T12:00:00Z")
        })?),
    };
    let after = query.number("after")?.unwrap_or(0).min(i64::MAX.unsigned_abs());
    Ok(AuditQuery { after, limit: query.cursor_limit()?, action, since })
}

fn entry_body(entry: &Entry) -> EntryBody<'_> {
    let subject = &entry.subject;
    EntryBody {
        number: entry.number,
        time: entry.at.to_string(),
        by: entry.origin.who.to_string(),
        from: entry.origin.from.map(|from| from.to_string()),
        action: entry.action.name(),
        service_id: subject.service.map(|id| id.to_string()),
        app: subject.app.map(|id| id.to_string()),
        contact: subject.contact.map(|id| id.to_string()),
        sequence: subject.sequence,
        token: subject.token.map(|id| id.to_string()),
        target: subject.target.as_deref(),
        reason: subject.reason.as_deref(),
    }
}

fn page_json(page: &AuditPage) -> Result<String, ApiError> {
    #[derive(Serialize)]
    struct Body<'a> {
        items: Vec<EntryBody<'a>>,
        next: Option<u64>,
    }
    let items = page.entries.iter().map(entry_body).collect();
    serde_json::to_string(&Body { items, next: page.next })
        .map_err(|error| ApiError::internal(format!("audit log not written: {error}")))
}

#[cfg(test)]
mod tests {
    use super::{audit_query, page_json};
    use crate::domain::audit::{Action, Entry, Origin, Subject};
    use crate::domain::clock::Timestamp;
    use crate::domain::id::ContactId;
    use crate::domain::tenancy::Token;
    use crate::store::rows::{AuditPage, AuditQuery};

    #[test]
    fn an_audit_log_is_asked_for_strictly() {
        let judged = |query| audit_query(Some(query)).map_err(|error| error.message.into_owned());
        let expected = AuditQuery {
            after: 7,
            limit: 500,
            action: Some(Action::TokenRotate),
            since: Some(Timestamp::from_millis(1_000)),
        };

        assert_eq!(
            judged("after=7&limit=500&action=tokenRotate&since=1970-01-01T00:00:01Z"),
            Ok(expected)
        );
        for (query, start) in [
            ("limit=501", "exceed maximum limit 500"),
            ("limit=0", "limit: must be from 1 to 500"),
            ("after=x", "after: must be a whole number"),
            ("since=today", "since: must be a time such as"),
            ("action=contacts", "action: must be one of: contactCreate, contactEdit, "),
        ] {
            let message = judged(query).unwrap_err();
            assert!(message.starts_with(start), "{query}: {message}");
        }
    }

    #[test]
    fn an_entry_has_what_belongs_to_its_action() {
        let token = Token::from_text("rct_1").hash().id();
        let contact = Some(ContactId::from_bytes([3; 16]));
        let by_token = Entry {
            number: 4,
            at: Timestamp::from_millis(0),
            origin: Origin::of_token(token, "192.0.2.7".parse().unwrap()),
            action: Action::ContactEdit,
            subject: Subject { contact, sequence: Some(9), ..Subject::default() },
        };
        let by_rule = Entry {
            number: 5,
            origin: Origin::SYSTEM,
            action: Action::SubscriptionDisable,
            subject: Subject { reason: Some("gone".to_owned()), ..Subject::default() },
            ..by_token.clone()
        };

        let text =
            page_json(&AuditPage { entries: vec![by_token, by_rule], next: Some(5) }).unwrap();

        let expected = format!(
            concat!(
                r#"{{"items":[{{"number":4,"time":"1970-01-01T00:00:00.000Z","by":"{token}","from":"192.0.2.7","#,
                r#""action":"contactEdit","contact":"sc_03030303030303030303030303030303","sequence":9}},"#,
                r#"{{"number":5,"time":"1970-01-01T00:00:00.000Z","by":"system","from":null,"#,
                r#""action":"subscriptionDisable","reason":"gone"}}],"next":5}}"#
            ),
            token = token
        );
        assert_eq!(text, expected);
    }
}
