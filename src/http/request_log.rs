//! What happens around every request: its id, the limits of its head, CORS, and one line in the log.
//!
//! The line names the route's template and never the path, the query, a body, a name or a token. Errors are
//! written here, because here the request id is known. A handler that panics is answered 500.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ::http::header::{CONNECTION, HeaderName};
use ::http::request::Parts;
use ::http::{HeaderValue, Method, StatusCode};
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;

use super::Http;
use super::caller::Caller;
use super::connection::{Arrival, HeadNote};
use super::cors::CorsRequest;
use super::envelope::{self, ApiError};
use super::limits;

/// Names the request in answers and in the log.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The last part of the path whose body may be a batch.
const BATCH_ROUTE_END: &str = "/staff-batch";

/// Makes the id of the next request: unique across restarts, and never taken from a caller.
#[must_use]
pub fn next_request_id() -> String {
    static START: LazyLock<u64> = LazyLock::new(|| getrandom::u64().unwrap_or(0));
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("req_{:016x}{:08x}", *START, COUNT.fetch_add(1, Ordering::Relaxed))
}

/// The middleware around every route and the fallback.
pub async fn around(State(http): State<Arc<Http>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = next_request_id();
    let (head, body) = request.into_parts();
    let method = head.method.clone();
    let route = head.extensions.get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    let note = head.extensions.get::<Arrival>().map(|arrival| arrival.note).unwrap_or_default();
    let cors = http.cors.judge(&head);
    let mut response = match judge_head(&head, route, note) {
        Err(error) => error.into_response(),
        Ok(()) if matches!(cors, CorsRequest::Preflight(_)) => {
            StatusCode::NO_CONTENT.into_response()
        }
        Ok(()) => without_panic(next.run(Request::from_parts(head, body))).await,
    };
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        log_cause(&error, &id);
        response = with_caller_of(&mut response, envelope::render(&error, &id));
    }
    if note != HeadNote::Clear || response.status() == StatusCode::REQUEST_TIMEOUT {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    cors.add_headers(response.headers_mut());
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(X_REQUEST_ID, value);
    }
    let caller = response.extensions().get::<Caller>();
    log_request(&method, route, response.status(), started.elapsed(), &id, caller);
    response
}

fn judge_head(head: &Parts, route: &str, note: HeadNote) -> Result<(), ApiError> {
    if note == HeadNote::TwoLengths {
        return Err(ApiError::invalid("Content-Length: must not stand beside Transfer-Encoding"));
    }
    let batch = route.ends_with(BATCH_ROUTE_END);
    let body_bytes_max = if batch { limits::BATCH_BODY_BYTES_MAX } else { limits::BODY_BYTES_MAX };
    limits::check_head(head, body_bytes_max)
}

/// Keeps the caller, which the log names, when an error replaces the response that carried it.
fn with_caller_of(carrier: &mut Response, mut rendered: Response) -> Response {
    if let Some(caller) = carrier.extensions_mut().remove::<Caller>() {
        rendered.extensions_mut().insert(caller);
    }
    rendered
}

async fn without_panic(answer: impl Future<Output = Response>) -> Response {
    let mut answer = pin!(answer);
    let caught = std::future::poll_fn(|context| {
        // A poll that panicked is never polled again, so nothing sees a half-changed state.
        match std::panic::catch_unwind(AssertUnwindSafe(|| answer.as_mut().poll(context))) {
            Ok(poll) => poll.map(Some),
            Err(_) => std::task::Poll::Ready(None),
        }
    })
    .await;
    caught.unwrap_or_else(|| ApiError::internal("a handler panicked").into_response())
}

fn log_cause(error: &ApiError, id: &str) {
    let Some(cause) = &error.cause else {
        return;
    };
    if error.status == StatusCode::SERVICE_UNAVAILABLE {
        tracing::warn!(request.id = id, cause, "request unavailable");
    } else {
        tracing::error!(request.id = id, cause, "request failed");
    }
}

/// Writes the line of one request.
pub fn log_request(
    method: &Method,
    route: &str,
    status: StatusCode,
    took: Duration,
    id: &str,
    caller: Option<&Caller>,
) {
    let known = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
    ];
    let method = if known.contains(method) { method.as_str() } else { "other" };
    let service_id = caller.map(|caller| tracing::field::display(caller.service()));
    let app_id = caller.map(|caller| tracing::field::display(caller.app()));
    tracing::info!(
        method,
        route,
        status = status.as_u16(),
        duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        request.id = id,
        service.id = service_id,
        app.id = app_id,
        "request finished"
    );
}

/// An error as the bytes of a whole HTTP response that ends its connection, for faults found before a request is one.
#[must_use]
pub fn raw_error(error: &ApiError) -> Vec<u8> {
    let id = next_request_id();
    log_request(&Method::CONNECT, "none", error.status, Duration::ZERO, &id, None);
    let body = error.to_json(&id);
    let reason = error.status.canonical_reason().unwrap_or("Error");
    let status = error.status.as_str();
    let length = body.len();
    format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         connection: close\r\nx-request-id: {id}\r\n\r\n{body}"
    )
    .into_bytes()
}
