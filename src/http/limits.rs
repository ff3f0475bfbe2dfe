//! The limits of HTTP, each with a name, and the rate of tokens that fail.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use ::http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use ::http::request::Parts;
use ::http::{HeaderMap, StatusCode, Version};
use axum::BoxError;
use axum::body::{Body, HttpBody as _};
use bytes::{Bytes, BytesMut};
use governor::clock::Clock as _;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::domain::id::ServiceId;
use crate::domain::network::network_of;

use super::envelope::{ApiError, CODE_RATE};

/// Longest body in bytes: the largest sensible body of one resource is a hundredth of it.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Longest body of a batch in bytes: 500 contacts with every field full.
pub const BATCH_BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bodies beyond this size wait for one of the places for large ones.
const SMALL_BODY_BYTES: usize = 64 * 1024;
/// Large bodies that are read at a time: 128 MiB together at most. More takes memory, fewer lets slow senders keep
/// others waiting.
const LARGE_BODIES_MAX: usize = 32;
/// Those of one service among them, and of the administrator: more lets one keep the others waiting, fewer makes one that
/// sends many batches at once wait for itself.
const LARGE_BODIES_PER_CALLER_MAX: usize = 8;
/// Longest request target in bytes; RFC 9112, section 3 recommends at least 8,000.
pub const URI_BYTES_MAX: usize = 8 * 1024;
/// Longest header section in bytes, names and values. Common proxies stop at 8 to 16 KiB.
pub const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Most header lines of a request.
pub const HEADERS_MAX: usize = 100;
/// Longest time for the head of a request, from its first byte. Slow senders hold a connection that long.
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time for the body of a request.
pub const BODY_READ_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest time that a connection may wait for its next request: above the 60 s that common proxies keep theirs,
/// so that the proxy closes first and never sends into a closing connection.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// Longest time that a caller may take no byte of an answer.
pub const WRITE_STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Most connections at a time; each may hold a few tens of KiB while it is read.
pub const CONNECTIONS_MAX: usize = 4096;
/// Addresses that are remembered for their failed tokens: a few megabytes. With fewer, an attacker with many
/// addresses makes earlier ones forgotten sooner.
const ADDRESSES_MAX: usize = 65_536;

/// Judges what can be judged from the head of a request alone.
///
/// # Errors
///
/// 400 for the headers `Host` and `Transfer-Encoding`, 414, 431, and 413 for an announced body over `body_bytes_max`.
pub fn check_head(head: &Parts, body_bytes_max: usize) -> Result<(), ApiError> {
    let uri_bytes = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if uri_bytes > URI_BYTES_MAX {
        return Err(uri_too_long());
    }
    let headers = &head.headers;
    if header_bytes(headers) > HEADER_BYTES_MAX {
        return Err(headers_too_large());
    }
    let hosts = headers.get_all(HOST).iter().count();
    if hosts > 1 || (hosts == 0 && head.version == Version::HTTP_11) {
        return Err(ApiError::invalid("Host: exactly one header is required"));
    }
    check_encoding(headers)?;
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > body_bytes_max as u64) {
        return Err(body_too_large(body_bytes_max));
    }
    Ok(())
}

/// Chunks, once, are the only coding: of any other, or of two, somebody on the way may read another body.
fn check_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let known = codings.next().is_none_or(|coding| {
        coding.as_bytes().eq_ignore_ascii_case(b"chunked") && codings.next().is_none()
    });
    if known {
        return Ok(());
    }
    Err(ApiError::invalid("Transfer-Encoding: must be chunked, once and alone"))
}

fn header_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// 414 with its limit.
#[must_use]
pub fn uri_too_long() -> ApiError {
    let message = format!("the request target must have at most {URI_BYTES_MAX} bytes");
    ApiError::over_limit(StatusCode::URI_TOO_LONG, message)
}

/// 431 with its limits.
#[must_use]
pub fn headers_too_large() -> ApiError {
    let message = format!(
        "the headers must have at most {HEADER_BYTES_MAX} bytes in at most {HEADERS_MAX} lines"
    );
    ApiError::over_limit(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message)
}

/// 408 for a head that did not arrive in time.
#[must_use]
pub fn head_too_slow() -> ApiError {
    let message = format!(
        "the request line and headers must arrive within {} s",
        HEADER_READ_TIMEOUT.as_secs()
    );
    ApiError::over_limit(StatusCode::REQUEST_TIMEOUT, message)
}

/// 429 for a connection from an address that has as many as it may have.
#[must_use]
pub fn too_many_connections() -> ApiError {
    let message = "too many connections from this address";
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, CODE_RATE, message)
}

fn body_too_large(body_bytes_max: usize) -> ApiError {
    let message = format!("the body must have at most {body_bytes_max} bytes");
    ApiError::over_limit(StatusCode::PAYLOAD_TOO_LARGE, message)
}

/// Places for large bodies: those of one caller, and with them one of all.
struct LargeBodies {
    all: Semaphore,
    callers: Mutex<Option<HashMap<Option<ServiceId>, Arc<Semaphore>>>>,
}

impl LargeBodies {
    /// Waits for a place, not for ever.
    async fn enter(
        &'static self,
        caller: Option<ServiceId>,
    ) -> Option<(OwnedSemaphorePermit, SemaphorePermit<'static>)> {
        let own = {
            let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
            let callers = callers.get_or_insert_default();
            callers.retain(|_, own| Arc::strong_count(own) > 1);
            let new = || Arc::new(Semaphore::new(LARGE_BODIES_PER_CALLER_MAX));
            Arc::clone(callers.entry(caller).or_insert_with(new))
        };
        let both =
            async { Some((own.acquire_owned().await.ok()?, self.all.acquire().await.ok()?)) };
        tokio::time::timeout(BODY_READ_TIMEOUT, both).await.ok().flatten()
    }
}

static LARGE_BODIES: LargeBodies =
    LargeBodies { all: Semaphore::const_new(LARGE_BODIES_MAX), callers: Mutex::new(None) };

/// Reads a whole body of a service, or of the administrator, within its limits of bytes and time. It needs a place once
/// more of it has come than of a small one: what is only announced holds nothing.
///
/// # Errors
///
/// 413, 408, 400 when the caller stops in the middle of it, or 503 when too many large ones are being read.
pub async fn read_body(
    body: Body,
    body_bytes_max: usize,
    caller: Option<ServiceId>,
) -> Result<Bytes, ApiError> {
    let small = body.size_hint().upper().is_some_and(|bytes| bytes <= SMALL_BODY_BYTES as u64);
    let mut body = Limited::new(body, body_bytes_max);
    if small {
        let collected = within_time(body.collect(), body_bytes_max).await?;
        return Ok(collected.to_bytes());
    }
    let mut read = BytesMut::new();
    let whole = read_until(&mut body, &mut read, SMALL_BODY_BYTES);
    if !within_time(whole, body_bytes_max).await? {
        let busy = || ApiError::unavailable("too many large bodies are being read");
        let _place = LARGE_BODIES.enter(caller).await.ok_or_else(busy)?;
        within_time(read_until(&mut body, &mut read, usize::MAX), body_bytes_max).await?;
    }
    Ok(read.freeze())
}

/// Reads until the end, or until more than so many bytes are there; whether it was the end.
async fn read_until(
    body: &mut Limited<Body>,
    read: &mut BytesMut,
    bytes: usize,
) -> Result<bool, BoxError> {
    while read.len() <= bytes {
        match body.frame().await.transpose()? {
            None => return Ok(true),
            Some(frame) => {
                if let Ok(data) = frame.into_data() {
                    read.extend_from_slice(&data);
                }
            }
        }
    }
    Ok(false)
}

/// What reads a part of a body, within the time for it.
async fn within_time<T>(
    reading: impl Future<Output = Result<T, BoxError>>,
    body_bytes_max: usize,
) -> Result<T, ApiError> {
    match tokio::time::timeout(BODY_READ_TIMEOUT, reading).await {
        Ok(Ok(read)) => Ok(read),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(body_too_large(body_bytes_max)),
        Ok(Err(_)) => Err(ApiError::invalid("the body is malformed or ended early")),
        Err(_) => {
            let seconds = BODY_READ_TIMEOUT.as_secs();
            let message = format!("the body must arrive within {seconds} s");
            Err(ApiError::over_limit(StatusCode::REQUEST_TIMEOUT, message))
        }
    }
}

/// How many requests without a good token each address may make.
pub struct FailedTokens {
    limit: Option<AddressLimit>,
}

struct AddressLimit {
    quota: Quota,
    limiter: RwLock<DefaultKeyedRateLimiter<IpAddr>>,
}

impl fmt::Debug for FailedTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FailedTokens")
    }
}

impl FailedTokens {
    /// This many in a minute from each address; 0 is off.
    #[must_use]
    pub fn new(failed_tokens_per_minute: u32) -> Self {
        let limit = |rate| {
            let quota = Quota::per_minute(rate);
            AddressLimit { quota, limiter: RwLock::new(RateLimiter::dashmap(quota)) }
        };
        Self { limit: NonZeroU32::new(failed_tokens_per_minute).map(limit) }
    }

    /// Counts one request without a good token.
    ///
    /// # Errors
    ///
    /// 429: the address is over its rate.
    pub fn check(&self, address: IpAddr) -> Result<(), ApiError> {
        let Some(limit) = &self.limit else {
            return Ok(());
        };
        limit.make_room();
        let limiter = limit.limiter.read().unwrap_or_else(PoisonError::into_inner);
        check_rate(&limiter, &network_of(address))
    }
}

impl AddressLimit {
    /// Forgets addresses that have gone quiet. When that frees too little, forgets all, so that the next search is
    /// far off: whoever has so many addresses is held up by no limit for each.
    fn make_room(&self) {
        if self.limiter.read().unwrap_or_else(PoisonError::into_inner).len() < ADDRESSES_MAX {
            return;
        }
        let mut limiter = self.limiter.write().unwrap_or_else(PoisonError::into_inner);
        if limiter.len() < ADDRESSES_MAX {
            return;
        }
        limiter.retain_recent();
        if limiter.len() > ADDRESSES_MAX / 2 {
            *limiter = RateLimiter::dashmap(self.quota);
        }
    }
}

fn check_rate<K: Clone + Eq + Hash>(
    limiter: &DefaultKeyedRateLimiter<K>,
    key: &K,
) -> Result<(), ApiError> {
    limiter.check_key(key).map_err(|refused| {
        let wait = refused.wait_time_from(limiter.clock().now());
        ApiError::too_many_requests(wait.as_secs() + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::{
        ADDRESSES_MAX, BODY_BYTES_MAX, FailedTokens, HEADER_BYTES_MAX, URI_BYTES_MAX, check_head,
    };
    use ::http::Request;
    use std::net::{IpAddr, Ipv4Addr};

    fn check(
        build: impl FnOnce(::http::request::Builder) -> ::http::request::Builder,
        status: u16,
    ) {
        let (head, ()) = build(Request::builder().uri("/")).body(()).unwrap().into_parts();

        let judged = check_head(&head, BODY_BYTES_MAX).map_or_else(|e| e.status.as_u16(), |()| 200);

        assert_eq!(judged, status);
    }

    #[test]
    fn every_limit_of_the_head_accepts_its_value_and_refuses_the_next() {
        let uri = |bytes: usize| format!("/{}", "x".repeat(bytes - 1));
        check(|b| b.header("host", "a").uri(uri(URI_BYTES_MAX)), 200);
        check(|b| b.header("host", "a").uri(uri(URI_BYTES_MAX + 1)), 414);
        // "host" and "a" count 9 bytes with their separators, "x" counts 5 more than its value.
        let fill = |bytes: usize| "v".repeat(bytes - 9 - 5);
        check(|b| b.header("host", "a").header("x", fill(HEADER_BYTES_MAX)), 200);
        check(|b| b.header("host", "a").header("x", fill(HEADER_BYTES_MAX + 1)), 431);
        check(|b| b.header("host", "a").header("content-length", BODY_BYTES_MAX), 200);
        check(|b| b.header("host", "a").header("content-length", BODY_BYTES_MAX + 1), 413);
    }

    #[test]
    fn exactly_one_host_is_required_except_in_http_1_0() {
        check(|b| b, 400);
        check(|b| b.header("host", "a").header("host", "a"), 400);
        check(|b| b.version(::http::Version::HTTP_10), 200);
    }

    #[test]
    fn chunks_are_the_only_coding_of_a_body() {
        let coded = |codings: &[&str], status| {
            check(
                |b| {
                    codings
                        .iter()
                        .fold(b.header("host", "a"), |b, c| b.header("transfer-encoding", *c))
                },
                status,
            );
        };
        coded(&["chunked"], 200);
        coded(&["Chunked"], 200);
        for codings in [
            &["gzip, chunked"][..],
            &["chunked", "chunked"],
            &["chunked, chunked"],
            &["identity"],
            &[""],
        ] {
            coded(codings, 400);
        }
    }

    #[test]
    fn failed_tokens_count_for_an_ipv4_address_or_a_64_of_ipv6() {
        let failed = FailedTokens::new(1);
        let status = |address: &str| {
            let checked = failed.check(address.parse().unwrap());
            checked.map_or_else(|error| error.status.as_u16(), |()| 200)
        };

        assert_eq!(status("192.0.2.1"), 200);
        assert_eq!(status("192.0.2.1"), 429);
        assert_eq!(status("192.0.2.2"), 200);
        assert_eq!(status("2001:db8::1"), 200);
        assert_eq!(status("2001:db8::ffff:0:0:1"), 429);
        assert_eq!(status("2001:db8:0:1::1"), 200);
        let off = FailedTokens::new(0);
        assert!((0..1000).all(|_| off.check(Ipv4Addr::LOCALHOST.into()).is_ok()));
    }

    #[test]
    fn addresses_that_are_remembered_are_limited() {
        let failed = FailedTokens::new(1);
        let remembered =
            || failed.limit.as_ref().map(|limit| limit.limiter.read().unwrap().len()).unwrap();
        let address = |number: usize| -> IpAddr {
            Ipv4Addr::from_bits(u32::try_from(number).unwrap()).into()
        };

        for number in 0..ADDRESSES_MAX {
            assert!(failed.check(address(number)).is_ok());
        }
        assert_eq!(remembered(), ADDRESSES_MAX);
        assert!(failed.check(address(ADDRESSES_MAX)).is_ok());

        assert!(remembered() <= ADDRESSES_MAX / 2, "{}", remembered());
        assert!(failed.check(address(ADDRESSES_MAX)).is_err());
    }
}
