//! What happens around every request: its id, the limits of its head, CORS, and one line in the log.
//!
//! The line names the route's template and never the path, the query, a body, a name or a token. Errors are
//! written here, because here the request id is known. A handler that panics is answered 500.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::http::header::{CONNECTION, CONTENT_LENGTH, HeaderName};
use ::http::request::Parts;
use ::http::{HeaderValue, Method, Request, StatusCode};
use axum::body::{Body, HttpBody as _};
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
/// Fewest digits of a request's number, so that ids are equally long until four thousand million requests.
const COUNT_DIGITS_MIN: u32 = 8;
const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";

/// What a surface makes of a request.
#[derive(Debug)]
pub struct Answered {
    /// The answer; an error is written when the request id is known.
    pub answer: Result<Response, ApiError>,
    /// Who asked, for the log, once it is known.
    pub caller: Option<Caller>,
}

impl From<Result<Response, ApiError>> for Answered {
    fn from(answer: Result<Response, ApiError>) -> Self {
        Self { answer, caller: None }
    }
}

/// Makes the id of the next request: unique across restarts, and never taken from a caller.
#[must_use]
pub fn next_request_id() -> String {
    static START: LazyLock<String> =
        LazyLock::new(|| format!("req_{:016x}", getrandom::u64().unwrap_or(0)));
    static COUNT: AtomicU64 = AtomicU64::new(0);
    request_id(&START, COUNT.fetch_add(1, Ordering::Relaxed))
}

/// The start and at least eight hexadecimal digits, written by hand: every request has an id.
fn request_id(start: &str, count: u64) -> String {
    let digits = (u64::BITS - count.leading_zeros()).div_ceil(4).max(COUNT_DIGITS_MIN);
    let mut id = String::with_capacity(start.len() + digits as usize);
    id.push_str(start);
    for place in (0..digits).rev() {
        let digit = (count >> (4 * place)) & 0xF;
        id.push(char::from(HEX_DIGITS[usize::try_from(digit).unwrap_or_default()]));
    }
    id
}

/// What stands around every request, with or without a route. `next` makes what the surface does.
pub async fn around<N, F>(
    http: &Http,
    route: &'static str,
    request: Request<Body>,
    next: N,
) -> Response
where
    N: FnOnce(Parts, Body) -> F,
    F: Future<Output = Answered>,
{
    let started = Instant::now();
    let id = next_request_id();
    let (head, body) = request.into_parts();
    let method = head.method.clone();
    let note = head.extensions.get::<Arrival>().map(|arrival| arrival.note).unwrap_or_default();
    let cors = http.cors.judge(&head);
    let Answered { answer, caller } = match judge_head(&head, route, note) {
        Err(error) => Err(error).into(),
        Ok(()) if matches!(cors, CorsRequest::Preflight(_)) => {
            Ok(StatusCode::NO_CONTENT.into_response()).into()
        }
        Ok(()) => without_panic(next(head, body)).await,
    };
    let mut response = answer.unwrap_or_else(|error| {
        log_cause(&error, &id);
        envelope::render(&error, &id)
    });
    if note != HeadNote::Clear || response.status() == StatusCode::REQUEST_TIMEOUT {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    cors.add_headers(response.headers_mut());
    log_request(&method, route, response.status(), started.elapsed(), &id, caller.as_ref());
    if let Ok(value) = HeaderValue::try_from(id) {
        response.headers_mut().insert(X_REQUEST_ID, value);
    }
    set_length(&mut response);
    if method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    response
}

/// The last of our headers. hyper would set it as well, but behind its own `Connection`.
fn set_length(response: &mut Response) {
    if let Some(bytes) = response.body().size_hint().exact() {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(bytes));
    }
}

pub(super) fn judge_head(head: &Parts, route: &str, note: HeadNote) -> Result<(), ApiError> {
    if note == HeadNote::TwoLengths {
        return Err(ApiError::invalid(
            "Content-Length: must stand once, and not beside Transfer-Encoding",
        ));
    }
    let batch = route.ends_with(BATCH_ROUTE_END);
    let body_bytes_max = if batch { limits::BATCH_BODY_BYTES_MAX } else { limits::BODY_BYTES_MAX };
    limits::check_head(head, body_bytes_max)
}

async fn without_panic(answer: impl Future<Output = Answered>) -> Answered {
    let mut answer = pin!(answer);
    let caught = std::future::poll_fn(|context| {
        // A poll that panicked is never polled again, so nothing sees a half-changed state.
        match std::panic::catch_unwind(AssertUnwindSafe(|| answer.as_mut().poll(context))) {
            Ok(poll) => poll.map(Some),
            Err(_) => std::task::Poll::Ready(None),
        }
    })
    .await;
    caught.unwrap_or_else(|| Err(ApiError::internal("a handler panicked")).into())
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
    let method = envelope::shown_method(method.as_str());
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
    write_raw(error, &id)
}

/// The same for a connection that is refused, which is counted and not logged one by one.
#[must_use]
pub fn raw_refusal(error: &ApiError) -> Vec<u8> {
    write_raw(error, &next_request_id())
}

fn write_raw(error: &ApiError, id: &str) -> Vec<u8> {
    let body = error.to_json(id);
    let reason = error.status.canonical_reason().unwrap_or("Error");
    let status = error.status.as_str();
    let length = body.len();
    format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         connection: close\r\nx-request-id: {id}\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::{Answered, request_id, without_panic};

    #[tokio::test]
    async fn handler_that_panics_is_a_fault_of_ours() {
        let answered = without_panic(async {
            tokio::task::yield_now().await;
            assert!(std::hint::black_box(false), "a handler that panics");
            Answered { answer: Ok(super::Response::default()), caller: None }
        });

        assert_eq!(answered.await.answer.unwrap_err().status.as_u16(), 500);
    }

    #[test]
    fn number_of_a_request_has_at_least_eight_digits() {
        for count in [0, 1, 0xF, 0x10, 0x1234_ABCD, u64::from(u32::MAX), 1 << 32, u64::MAX] {
            assert_eq!(request_id("req_0", count), format!("req_0{count:08x}"));
        }
    }
}
