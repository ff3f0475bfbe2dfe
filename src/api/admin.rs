//! Administration: services, their apps, and the tokens of apps.

use std::sync::Arc;
use std::time::Duration;

use ::http::StatusCode;
use serde_json::{Value, json};

use crate::directory::tenancy::TOKEN_OVERLAP_DEFAULT;
use crate::domain::clock::Timestamp;
use crate::domain::contact_rules::is_refused_char;
use crate::domain::id::{AppId, ServiceId};
use crate::domain::page::Page;
use crate::domain::tenancy::{App, NAME_CHARS_MAX, Scope, Scopes, Service, StoredToken};
use crate::http::envelope::{ApiError, success};
use crate::http::json::JsonObject;
use crate::store;

use super::State;
use super::query::Query;
use super::router::{Answer, Call};

/// Place of `{serviceId}` among the parts of a path; the part before the first slash is empty.
const SERVICE_ID_PART: usize = 4;
/// Place of `{appID}` among the parts of a path.
const APP_ID_PART: usize = 6;

pub(super) async fn create_service(state: Arc<State>, mut call: Call) -> Answer {
    let mut body = JsonObject::parse(&call.body().await?)?;
    let name = take_name(&mut body)?;
    body.refuse_unknown()?;
    let service = state.directory.create_service(call.origin, name).await?;
    Ok(success(StatusCode::CREATED, &service_json(&service).to_string()))
}

pub(super) async fn list_services(state: Arc<State>, call: Call) -> Answer {
    let query = Query::parse(call.head.uri.query());
    let after = match query.get("after")? {
        Some(text) => Some(parse_service("after", text)?),
        None => None,
    };
    let page = state.read.list_services(after, query.cursor_limit()?).await?;
    Ok(success(StatusCode::OK, &page_json(&page, service_json)))
}

pub(super) async fn delete_service(state: Arc<State>, call: Call) -> Answer {
    let service = service_of(&call)?;
    state.directory.delete_service(call.origin, service).await?;
    Ok(success(StatusCode::OK, &format!(r#"{{"serviceId":"{service}"}}"#)))
}

pub(super) async fn create_app(state: Arc<State>, mut call: Call) -> Answer {
    let service = service_of(&call)?;
    let mut body = JsonObject::parse(&call.body().await?)?;
    let name = take_name(&mut body)?;
    let scopes = take_scopes(&mut body)?;
    body.refuse_unknown()?;
    let (app, token) = state.directory.create_app(call.origin, service, name, scopes).await?;
    let mut result = app_json(&app);
    result["appToken"] = token.reveal().into();
    Ok(success(StatusCode::CREATED, &result.to_string()))
}

pub(super) async fn list_apps(state: Arc<State>, call: Call) -> Answer {
    let service = service_of(&call)?;
    let query = Query::parse(call.head.uri.query());
    let after = match query.get("after")? {
        Some(text) => Some(parse_app("after", text)?),
        None => None,
    };
    let limit = query.cursor_limit()?;
    state.read.find_service(service).await?.ok_or(store::Error::NotFound)?;
    let page = state.read.list_apps(service, after, limit).await?;
    let ids = page.items.iter().map(|app| app.id).collect();
    let mut tokens = state.read.list_tokens(service, ids, state.clock.now()).await?.into_iter();
    let with_tokens = |app: &App| {
        let mut item = app_json(app);
        item["tokens"] = tokens.next().unwrap_or_default().iter().map(token_json).collect();
        item
    };
    Ok(success(StatusCode::OK, &page_json(&page, with_tokens)))
}

pub(super) async fn delete_app(state: Arc<State>, call: Call) -> Answer {
    let (service, app) = (service_of(&call)?, parse_app("appID", call.part(APP_ID_PART))?);
    state.directory.delete_app(call.origin, service, app).await?;
    Ok(success(StatusCode::OK, &format!(r#"{{"appID":"{app}"}}"#)))
}

pub(super) async fn rotate_token(state: Arc<State>, mut call: Call) -> Answer {
    let (service, app) = (service_of(&call)?, parse_app("appID", call.part(APP_ID_PART))?);
    let overlap = parse_overlap(&call.body().await?)?;
    let earlier_until = state.clock.now().plus(overlap);
    let token = state.directory.rotate_token(call.origin, service, app, earlier_until).await?;
    let result = format!(r#"{{"appID":"{app}","appToken":"{}"}}"#, token.reveal());
    Ok(success(StatusCode::OK, &result))
}

pub(super) fn service_of(call: &Call) -> Result<ServiceId, ApiError> {
    parse_service("serviceId", call.part(SERVICE_ID_PART))
}

fn parse_service(name: &str, text: &str) -> Result<ServiceId, ApiError> {
    ServiceId::parse(text).ok_or_else(|| malformed_id(name, ServiceId::PREFIX))
}

fn parse_app(name: &str, text: &str) -> Result<AppId, ApiError> {
    AppId::parse(text).ok_or_else(|| malformed_id(name, AppId::PREFIX))
}

fn malformed_id(name: &str, prefix: &str) -> ApiError {
    ApiError::invalid(format!("{name}: must be {prefix}_ and 32 lower-case hexadecimal digits"))
}

pub(super) fn take_name(body: &mut JsonObject) -> Result<String, ApiError> {
    let name = body.take_string("name")?;
    let chars = name.chars().count();
    if chars == 0 || chars > NAME_CHARS_MAX {
        return Err(ApiError::invalid(format!(
            "name: must have 1 to {NAME_CHARS_MAX} characters, has {chars}"
        )));
    }
    if name.chars().all(char::is_whitespace) {
        return Err(ApiError::invalid("name: must not be only blanks"));
    }
    if name.chars().any(is_refused_char) {
        return Err(ApiError::invalid(
            "name: must not contain control characters, line separators or bidirectional controls",
        ));
    }
    Ok(name)
}

pub(super) fn take_scopes(body: &mut JsonObject) -> Result<Scopes, ApiError> {
    let mut scopes: Vec<Scope> = Vec::new();
    for entry in body.take_array("scopes")? {
        let scope = entry.as_str().and_then(Scope::parse).ok_or_else(|| {
            let known = Scope::ALL.map(Scope::name).join(", ");
            ApiError::invalid(format!("scopes: each must be one of: {known}"))
        })?;
        if scopes.contains(&scope) {
            return Err(ApiError::invalid(format!("scopes: {} is given twice", scope.name())));
        }
        scopes.push(scope);
    }
    if scopes.is_empty() {
        return Err(ApiError::invalid("scopes: must have at least one entry"));
    }
    Ok(scopes.into_iter().collect())
}

/// How long earlier tokens still work; a rotation needs no body.
pub(super) fn parse_overlap(body: &[u8]) -> Result<Duration, ApiError> {
    if body.is_empty() {
        return Ok(TOKEN_OVERLAP_DEFAULT);
    }
    let mut body = JsonObject::parse(body)?;
    let overlap = match body.take("overlap") {
        None => TOKEN_OVERLAP_DEFAULT,
        Some(value) => value
            .as_u64()
            .map(Duration::from_secs)
            .filter(|overlap| *overlap <= TOKEN_OVERLAP_DEFAULT)
            .ok_or_else(|| {
                let longest = TOKEN_OVERLAP_DEFAULT.as_secs();
                ApiError::invalid(format!("overlap: must be whole seconds from 0 to {longest}"))
            })?,
    };
    body.refuse_unknown()?;
    Ok(overlap)
}

fn service_json(service: &Service) -> Value {
    json!({"serviceId": service.id.to_string(), "name": service.name})
}

fn app_json(app: &App) -> Value {
    let scopes: Vec<&str> = app.scopes.names().collect();
    json!({"appID": app.id.to_string(), "name": app.name, "scopes": scopes})
}

/// A token by its id. It was shown once, when it was made.
pub(super) fn token_json(token: &StoredToken) -> Value {
    let text = |time: Option<Timestamp>| time.map(|time| time.to_string());
    json!({
        "id": token.hash.id().to_string(),
        "createdAt": text(token.created_at),
        "lastUsedAt": text(token.used_at),
        "expiresAt": text(token.expires_at),
    })
}

fn page_json<T>(page: &Page<T>, write: impl FnMut(&T) -> Value) -> String {
    let items: Vec<Value> = page.items.iter().map(write).collect();
    json!({"items": items, "next": page.next}).to_string()
}

#[cfg(test)]
mod tests {
    use super::{parse_overlap, take_name, take_scopes};
    use crate::http::json::JsonObject;
    use serde_json::{Value, json};

    fn body(value: Value) -> JsonObject {
        JsonObject::from_value(value).unwrap()
    }

    #[test]
    fn names_have_1_to_50_characters_and_no_controls() {
        let accepted = |name: &str| take_name(&mut body(json!({"name": name}))).is_ok();

        assert!(accepted("A"));
        assert!(accepted(&"é".repeat(50)));
        assert!(!accepted(&"é".repeat(51)));
        assert!(!accepted(""));
        assert!(!accepted(" \u{3000}"));
        assert!(!accepted("a\nb"));
        assert!(!accepted("a\u{202E}b"));
    }

    #[test]
    fn scopes_are_known_and_given_once() {
        let accepted = |scopes: Value| take_scopes(&mut body(json!({"scopes": scopes}))).is_ok();

        assert!(accepted(json!(["events"])));
        assert!(accepted(json!(["events", "directory:read", "directory:write"])));
        assert!(!accepted(json!([])));
        assert!(!accepted(json!(["events", "events"])));
        assert!(!accepted(json!(["admin"])));
        assert!(!accepted(json!([1])));
        assert!(!accepted(json!("events")));
    }

    #[test]
    fn earlier_tokens_work_for_a_day_unless_asked_otherwise() {
        let seconds = |body: &str| parse_overlap(body.as_bytes()).ok().map(|o| o.as_secs());

        assert_eq!(seconds(""), Some(86_400));
        assert_eq!(seconds("{}"), Some(86_400));
        assert_eq!(seconds(r#"{"overlap":0}"#), Some(0));
        assert_eq!(seconds(r#"{"overlap":86400}"#), Some(86_400));
        assert_eq!(seconds(r#"{"overlap":86401}"#), None);
        assert_eq!(seconds(r#"{"overlap":-1}"#), None);
        assert_eq!(seconds(r#"{"overlap":0,"x":1}"#), None);
    }
}
