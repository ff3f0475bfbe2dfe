//! The body of an answer: read within limits of size and time, and only partly kept.
//!
//! [`super`] reads one after every answer's headers. What the ending means is for its callers: nothing for an
//! attempt, whose status has decided, and everything for a verification.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::time::Instant;

/// Most bytes of an answer's body that are read. More costs memory and time for bytes that mean nothing here,
/// less closes connections that could be kept.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// Which part of an answer's body is wanted.
#[derive(Clone, Copy, Debug)]
pub(in crate::delivery) struct Reading {
    /// Bytes kept of a 2xx answer.
    pub(in crate::delivery) keep_success: usize,
    /// Bytes kept of any other.
    pub(in crate::delivery) keep_failure: usize,
    /// How long the body is waited for, within the deadline of the whole.
    pub(in crate::delivery) patience: Duration,
}

/// How reading a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::delivery) enum BodyEnd {
    /// All of it was read.
    Complete,
    /// It has more than [`BODY_BYTES_MAX`].
    TooLarge,
    /// The connection broke.
    Broken,
    /// It did not arrive in time.
    TimedOut,
}

/// An answer as received.
#[derive(Debug)]
pub(in crate::delivery) struct Received {
    pub(in crate::delivery) status: StatusCode,
    pub(in crate::delivery) retry_after: Option<HeaderValue>,
    /// As much of the body as was wanted.
    pub(in crate::delivery) body: Bytes,
    pub(in crate::delivery) end: BodyEnd,
}

/// Reads a body to its end or to the limits; keeps its first `keep` bytes.
pub(in crate::delivery) async fn read_body(
    mut body: Incoming,
    keep: usize,
    until: Instant,
) -> (Bytes, BodyEnd) {
    if body.is_end_stream() {
        return (Bytes::new(), BodyEnd::Complete);
    }
    let mut kept = BytesMut::new();
    let reading = async {
        let mut read = 0;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                return BodyEnd::Broken;
            };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            read += data.len();
            kept.extend_from_slice(&data[..data.len().min(keep - kept.len())]);
            if read > BODY_BYTES_MAX {
                return BodyEnd::TooLarge;
            }
        }
        BodyEnd::Complete
    };
    let end = tokio::time::timeout_at(until, reading).await.unwrap_or(BodyEnd::TimedOut);
    (kept.freeze(), end)
}
