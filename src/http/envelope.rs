//! The envelope of every answer: `{"code":…,"result":…}` and `{"code":…,"message":…}`, and the table of errors.
//!
//! Handlers return [`ApiError`]; [`render`] writes it when the request id is known. Results arrive as JSON text
//! and are never parsed again.

use std::borrow::Cow;

use ::http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use ::http::{HeaderValue, StatusCode};
use axum::body::Body;
use axum::response::Response;

use crate::domain::contact::FieldError;
use crate::domain::subscription::SigningSecret;
use crate::domain::tenancy::Token;
use crate::store;

/// The request is wrong: malformed, out of limits, or in conflict.
pub const CODE_INVALID: u32 = 6_451_000;
/// The fault is ours.
pub const CODE_SERVICE: u32 = 6_451_001;
/// Over a rate.
pub const CODE_RATE: u32 = 6_451_010;
/// A well-formed id that is not there.
pub const CODE_NOT_FOUND: u32 = 6_451_011;
/// No good token.
pub const CODE_TOKEN: u32 = 6_452_000;
/// The token is not for this app.
pub const CODE_APP_ID: u32 = 6_452_001;
/// The token lacks the scope.
pub const CODE_SCOPE: u32 = 6_452_002;
/// Unknown path, or the path has not this method.
pub const CODE_METHOD: u32 = 6_450_001;

/// Seconds after which a caller may ask again when the store is away: it opens again within about that time.
const UNAVAILABLE_RETRY_SECONDS: u64 = 1;

/// An answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// The code in the body.
    pub code: u32,
    /// What is wrong, for the caller.
    pub message: Cow<'static, str>,
    /// The header that belongs to the error.
    pub extra: Extra,
    /// The cause, for the log only.
    pub cause: Option<String>,
}

/// A header that belongs to an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extra {
    /// No header.
    None,
    /// `WWW-Authenticate`.
    Authenticate,
    /// `Retry-After` in whole seconds.
    RetryAfter(u64),
    /// `Allow`.
    Allow(String),
}

impl ApiError {
    /// An error of this status and code.
    #[must_use]
    pub fn new(status: StatusCode, code: u32, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code, message: message.into(), extra: Extra::None, cause: None }
    }

    /// 400: the request breaks a rule; the message names field, rule and limit.
    #[must_use]
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, CODE_INVALID, message)
    }

    /// 408, 413, 414 or 431: over a limit of HTTP, which the message names.
    #[must_use]
    pub fn over_limit(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(status, CODE_INVALID, message)
    }

    /// 401: no, malformed or unknown token.
    #[must_use]
    pub fn invalid_token() -> Self {
        let error = Self::new(StatusCode::UNAUTHORIZED, CODE_TOKEN, "Invalid token");
        Self { extra: Extra::Authenticate, ..error }
    }

    /// 403: the token is not for this app, or there is no such app.
    #[must_use]
    pub fn invalid_app_id() -> Self {
        Self::new(StatusCode::FORBIDDEN, CODE_APP_ID, "Invalid appID")
    }

    /// 403: the token lacks this scope.
    #[must_use]
    pub fn missing_scope(scope: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, CODE_SCOPE, format!("the token lacks the scope {scope}"))
    }

    /// 404: a well-formed id that is not there.
    #[must_use]
    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, CODE_NOT_FOUND, "No records found")
    }

    /// 404: unknown path.
    #[must_use]
    pub fn unknown_path(method: &str, path: &str) -> Self {
        let (method, path) = (shown_method(method), shown_path(path));
        let message = format!("method not found, method: {method} url: {path}");
        Self::new(StatusCode::NOT_FOUND, CODE_METHOD, message)
    }

    /// 405: the path has other methods.
    #[must_use]
    pub fn unknown_method(method: &str, path: &str, allow: String) -> Self {
        let error = Self::unknown_path(method, path);
        Self { status: StatusCode::METHOD_NOT_ALLOWED, extra: Extra::Allow(allow), ..error }
    }

    /// 429: over a rate; it has room again after this many seconds.
    #[must_use]
    pub fn too_many_requests(retry_after_seconds: u64) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, CODE_RATE, "Too many requests");
        Self { extra: Extra::RetryAfter(retry_after_seconds.max(1)), ..error }
    }

    /// 500: our fault. The caller sees only the request id.
    #[must_use]
    pub fn internal(cause: impl Into<String>) -> Self {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        let error = Self::new(status, CODE_SERVICE, "Bad response from the service");
        Self { cause: Some(cause.into()), ..error }
    }

    /// 503: the store is away; the outcome is unknown. The caller sees only the request id.
    #[must_use]
    pub fn unavailable(cause: impl Into<String>) -> Self {
        let error = Self::internal(cause);
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            extra: Extra::RetryAfter(UNAVAILABLE_RETRY_SECONDS),
            ..error
        }
    }

    /// The error as one JSON object; with the request id where the caller learns nothing else.
    #[must_use]
    pub fn to_json(&self, request_id: &str) -> String {
        let shown: Cow<'_, str> = if self.code == CODE_SERVICE {
            format!("{}, request id: {request_id}", self.message).into()
        } else {
            self.message.as_ref().into()
        };
        format!(r#"{{"code":{},"message":{}}}"#, self.code, json_text(&shown))
    }
}

impl From<FieldError> for ApiError {
    fn from(error: FieldError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<store::Error> for ApiError {
    /// The one place where an error of the store becomes a status.
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::NotFound => Self::not_found(),
            store::Error::Refused(field) => field.into(),
            store::Error::Conflict(field) => {
                Self::new(StatusCode::CONFLICT, CODE_INVALID, field.to_string())
            }
            store::Error::VersionMismatch { current } => Self::new(
                StatusCode::PRECONDITION_FAILED,
                CODE_INVALID,
                format!("If-Match: the current version is {current}"),
            ),
            store::Error::KeyReused => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                CODE_INVALID,
                "Idempotency-Key: was used before with another request",
            ),
            store::Error::Superseded => Self::invalid("superseded by a later request"),
            store::Error::Unavailable(cause) => Self::unavailable(cause),
            store::Error::Internal(cause) => Self::internal(cause),
        }
    }
}

/// A success with this result, which is JSON text.
#[must_use]
pub fn success(status: StatusCode, result: &str) -> Response {
    json_response(status, success_json(status, result))
}

/// The envelope of a success as text.
#[must_use]
pub fn success_json(status: StatusCode, result: &str) -> String {
    let mut body = String::with_capacity(result.len() + 24);
    body.push_str(r#"{"code":"#);
    body.push_str(status.as_str());
    body.push_str(r#","result":"#);
    body.push_str(result);
    body.push('}');
    body
}

/// Writes an error with its headers.
#[must_use]
pub fn render(error: &ApiError, request_id: &str) -> Response {
    let mut response = json_response(error.status, error.to_json(request_id));
    let headers = response.headers_mut();
    match &error.extra {
        Extra::None => {}
        Extra::Authenticate => {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        Extra::RetryAfter(seconds) => {
            headers.insert(RETRY_AFTER, HeaderValue::from(*seconds));
        }
        Extra::Allow(methods) => {
            if let Ok(value) = HeaderValue::from_str(methods) {
                headers.insert(ALLOW, value);
            }
        }
    }
    response
}

/// A text as a JSON string, quotes included.
#[must_use]
pub fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn json_response(status: StatusCode, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A method as it may be shown: one that is in use, else `other`, because anything may stand in its place.
#[must_use]
pub fn shown_method(method: &str) -> &str {
    const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    if KNOWN.contains(&method) { method } else { "other" }
}

/// A path that leads nowhere, unless a token or signing secret was put into it by mistake: answers end in the logs of
/// callers.
fn shown_path(path: &str) -> &str {
    let secrets = [Token::APP_PREFIX, Token::ADMIN_PREFIX, SigningSecret::PREFIX];
    if secrets.iter().any(|secret| path.contains(secret)) { "(hidden)" } else { path }
}

#[cfg(test)]
mod tests {
    use super::{ApiError, success_json};
    use crate::domain::contact::FieldError;
    use crate::store;
    use ::http::StatusCode;

    fn check(error: store::Error, status: u16, json: &str) {
        let error = ApiError::from(error);

        assert_eq!(error.status.as_u16(), status);
        assert_eq!(error.to_json("req_1"), json);
    }

    #[test]
    fn every_error_of_the_store_has_its_row_in_the_table() {
        let taken = FieldError::new("email", "is taken");
        check(store::Error::NotFound, 404, r#"{"code":6451011,"message":"No records found"}"#);
        check(
            store::Error::Refused(taken.clone()),
            400,
            r#"{"code":6451000,"message":"email: is taken"}"#,
        );
        check(
            store::Error::Conflict(taken),
            409,
            r#"{"code":6451000,"message":"email: is taken"}"#,
        );
        check(
            store::Error::VersionMismatch { current: 4 },
            412,
            r#"{"code":6451000,"message":"If-Match: the current version is 4"}"#,
        );
        check(
            store::Error::KeyReused,
            422,
            r#"{"code":6451000,"message":"Idempotency-Key: was used before with another request"}"#,
        );
        check(
            store::Error::Superseded,
            400,
            r#"{"code":6451000,"message":"superseded by a later request"}"#,
        );
    }

    #[test]
    fn our_own_faults_show_the_request_id_and_never_the_cause() {
        let shown =
            r#"{"code":6451001,"message":"Bad response from the service, request id: req_1"}"#;
        check(store::Error::Unavailable("disk full".to_owned()), 503, shown);
        check(store::Error::Internal("no such table".to_owned()), 500, shown);
    }

    #[test]
    fn a_result_is_put_into_the_envelope_as_it_is() {
        assert_eq!(
            success_json(StatusCode::CREATED, r#"{"a":1}"#),
            r#"{"code":201,"result":{"a":1}}"#
        );
    }
}
