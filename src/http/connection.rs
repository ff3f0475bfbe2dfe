//! One connection's bytes, between socket or TLS and hyper: timeouts, and our own body on errors that hyper answers.
//!
//! hyper answers a head that it cannot parse with an empty body, and a head that does not arrive with nothing. Here such
//! an answer is replaced before it is sent, so that every answer has the envelope and a request id. The end of a
//! connection is awaited for a moment, because closing with unread bytes would take the answer away from the caller.

use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::http::StatusCode;
use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::envelope::ApiError;
use super::head_scan::{HeadScan, Verdict};
use super::limits::{
    HEADER_READ_TIMEOUT, IDLE_TIMEOUT, URI_BYTES_MAX, head_too_slow, headers_too_large,
    uri_too_long,
};
use super::request_log::raw_error;

/// Longest wait for the caller to close after us.
const LINGER: Duration = Duration::from_millis(500);
/// Bytes that are read at a time while waiting for that.
const LINGER_BUFFER_BYTES: usize = 4096;

/// What the listener knows of a request besides its bytes; stands in the request's extensions.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Who holds the connection; an IPv4 address is never in its IPv6 form.
    pub peer: IpAddr,
    /// What the head said.
    pub note: HeadNote,
}

/// What the connection knows of a request that its headers do not show any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadNote {
    /// Nothing.
    #[default]
    Clear,
    /// It came with more than one length: `Content-Length` twice, or beside `Transfer-Encoding`.
    TwoLengths,
    /// It may have; the connection must end after the answer.
    Unsure,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waiting for a head, or reading it, since then.
    Waiting(Instant),
    /// A request is being worked on.
    Busy,
}

/// How long a connection waits for bytes.
#[derive(Clone, Copy, Debug)]
struct Waits {
    /// For the rest of a head.
    head: Duration,
    /// For the next request.
    idle: Duration,
}

/// What the end of a wait means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WaitEnd {
    /// The connection is closed.
    Idle,
    /// The caller is told, and the connection is closed.
    HeadTooSlow,
}

#[derive(Debug)]
struct Progress {
    waits: Waits,
    phase: Phase,
    head_since: Option<Instant>,
    scan: HeadScan,
}

/// What the socket side and the request side of a connection tell each other.
#[derive(Clone, Debug)]
pub struct ConnectionProgress(Arc<Mutex<Progress>>);

impl ConnectionProgress {
    fn new(waits: Waits) -> Self {
        let phase = Phase::Waiting(Instant::now());
        let scan = HeadScan::default();
        Self(Arc::new(Mutex::new(Progress { waits, phase, head_since: None, scan })))
    }

    /// That of a connection on which nothing has come yet.
    #[cfg(test)]
    pub(super) fn of_new_connection() -> Self {
        Self::new(Waits { head: HEADER_READ_TIMEOUT, idle: IDLE_TIMEOUT })
    }

    /// Since when it waits for its next request, if it does.
    #[must_use]
    pub fn idle_since(&self) -> Option<Instant> {
        let progress = self.lock();
        match (progress.phase, progress.head_since) {
            (Phase::Waiting(since), None) => Some(since),
            _ => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request was parsed; whether it is chunked.
    #[must_use]
    pub fn begin_request(&self, chunked: bool) -> HeadNote {
        let mut progress = self.lock();
        progress.phase = Phase::Busy;
        progress.head_since = None;
        match progress.scan.take() {
            Verdict::TwoLengths => HeadNote::TwoLengths,
            Verdict::Unsure if chunked => HeadNote::Unsure,
            Verdict::Unsure | Verdict::Clear => HeadNote::Clear,
        }
    }

    /// Its answer is known. Gives whether the connection must end with it, because something came behind the request:
    /// nobody may send the next one before he has the answer.
    #[must_use]
    pub fn end_request(&self) -> bool {
        let mut progress = self.lock();
        let now = Instant::now();
        progress.phase = Phase::Waiting(now);
        // A head that began behind this request has its time from here on: until now nobody would have read it.
        progress.head_since = progress.scan.in_open_head().then_some(now);
        progress.scan.has_more()
    }
}

impl Progress {
    fn note_read(&mut self, bytes: &[u8]) {
        self.scan.feed(bytes);
        if self.phase == Phase::Busy || self.head_since.is_some() {
            return;
        }
        // Some clients end a body with a stray line break: that is not yet a request.
        if bytes.iter().any(|byte| !matches!(byte, b'\r' | b'\n')) {
            self.head_since = Some(Instant::now());
        }
    }

    /// Bytes of the answer were taken: a caller that takes a long answer slowly is not idle.
    fn note_written(&mut self) {
        if let Phase::Waiting(since) = &mut self.phase {
            let now = Instant::now();
            *since = now;
            self.head_since = self.head_since.map(|_| now);
        }
    }

    /// When the wait for bytes ends if nothing comes, and what that means; `None` while a request is worked on, which
    /// has limits of its own.
    fn wait_end(&self) -> Option<(Instant, WaitEnd)> {
        match (self.phase, self.head_since) {
            (Phase::Busy, _) => None,
            (Phase::Waiting(_), Some(since)) => {
                Some((since + self.waits.head, WaitEnd::HeadTooSlow))
            }
            (Phase::Waiting(since), None) => Some((since + self.waits.idle, WaitEnd::Idle)),
        }
    }

    /// The replacement for an answer that hyper makes by itself, when these bytes are one.
    fn replacement(&self, bytes: &[u8]) -> Option<ApiError> {
        if self.phase == Phase::Busy || !bytes.starts_with(b"HTTP/1.1 4") {
            return None;
        }
        let head = std::str::from_utf8(bytes).ok()?;
        if !head.ends_with("\r\n\r\n") || head.contains("x-request-id") {
            return None;
        }
        let line_too_long =
            self.scan.open_request_line().is_some_and(|bytes| bytes > URI_BYTES_MAX);
        let status = if line_too_long { "414" } else { head.get(9..12)? };
        Some(match status {
            "414" => uri_too_long(),
            "431" => headers_too_large(),
            _ => ApiError::new(
                StatusCode::BAD_REQUEST,
                super::envelope::CODE_INVALID,
                "the request line or a header is malformed",
            ),
        })
    }
}

/// The socket of a connection as hyper sees it.
#[derive(Debug)]
pub struct Connection<S> {
    socket: S,
    progress: ConnectionProgress,
    /// Never ends later than the wait for bytes; earlier ends are looked at and lengthened.
    wait: Pin<Box<Sleep>>,
    replaced: Vec<u8>,
    ended: bool,
    linger: Option<Pin<Box<Sleep>>>,
    shut: bool,
}

impl<S> Connection<S> {
    /// Wraps a socket that was just accepted.
    #[must_use]
    pub fn new(socket: S) -> Self {
        Self::with_waits(socket, Waits { head: HEADER_READ_TIMEOUT, idle: IDLE_TIMEOUT })
    }

    fn with_waits(socket: S, waits: Waits) -> Self {
        Self {
            socket,
            progress: ConnectionProgress::new(waits),
            wait: Box::pin(sleep_until(Instant::now() + waits.idle)),
            replaced: Vec::new(),
            ended: false,
            linger: None,
            shut: false,
        }
    }

    /// The request side's handle.
    #[must_use]
    pub fn progress(&self) -> ConnectionProgress {
        self.progress.clone()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Polls the timer of the read that is pending, in every phase: hyper does not read again when a request ends
    /// after it found nothing to read, so whoever armed it only then would never be called. A head that is late is
    /// told so.
    fn poll_deadline(&mut self, context: &mut Context<'_>) -> Poll<WaitEnd> {
        loop {
            let (end, idle) = {
                let progress = self.progress.lock();
                (progress.wait_end(), progress.waits.idle)
            };
            if let Some((deadline, _)) = end
                && deadline < self.wait.deadline()
            {
                self.wait.as_mut().reset(deadline);
            }
            // The clock is read only behind the timer, which hardly ever ends: each request comes here several times.
            ready!(self.wait.as_mut().poll(context));
            let now = Instant::now();
            let end = match end {
                // The request may end without another read, so the timer of the wait behind it must run already.
                None => {
                    self.wait.as_mut().reset(now + idle);
                    continue;
                }
                Some((deadline, _)) if now < deadline => {
                    self.wait.as_mut().reset(deadline);
                    continue;
                }
                Some((_, end)) => end,
            };
            self.ended = end == WaitEnd::Idle;
            if end == WaitEnd::HeadTooSlow {
                // Nothing is on its way out, so the socket takes these few bytes at once; if not, nobody is there.
                let answer = raw_error(&head_too_slow());
                drop(Pin::new(&mut self.socket).poll_write(context, &answer));
            }
            return Poll::Ready(end);
        }
    }

    fn poll_replaced(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.replaced.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_write(context, &self.replaced))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => drop(self.replaced.drain(..count)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads and drops what still comes until the caller closes, for a moment.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let linger =
            self.linger.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + LINGER)));
        if linger.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let mut space = [MaybeUninit::uninit(); LINGER_BUFFER_BYTES];
        loop {
            let mut buffer = ReadBuf::uninit(&mut space);
            match ready!(Pin::new(&mut self.socket).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Read for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // The crate forbids unsafe code, so the bytes go through a buffer of our own. It is not filled with zeros first:
        // most reads find nothing, and that would be the dearest part of them.
        let mut space = [MaybeUninit::uninit(); READ_BYTES];
        let room = cursor.remaining().min(READ_BYTES);
        let mut buffer = ReadBuf::uninit(&mut space[..room]);
        match Pin::new(&mut this.socket).poll_read(context, &mut buffer) {
            Poll::Ready(Ok(())) => {
                let bytes = buffer.filled();
                if bytes.is_empty() {
                    this.ended = true;
                } else {
                    this.progress.lock().note_read(bytes);
                    cursor.put_slice(bytes);
                }
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => {
                this.ended = true;
                Poll::Ready(Err(error))
            }
            Poll::Pending => match ready!(this.poll_deadline(context)) {
                WaitEnd::HeadTooSlow => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                // To hyper an idle connection that ends looks as if the caller had closed it.
                WaitEnd::Idle => Poll::Ready(Ok(())),
            },
        }
    }
}

/// Bytes that are read from the socket at a time: most requests fit whole.
const READ_BYTES: usize = 4 * 1024;

impl<S: AsyncRead + AsyncWrite + Unpin> Write for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let replacement = self.progress.lock().replacement(bytes);
        if let Some(error) = replacement {
            self.replaced = raw_error(&error);
            return Poll::Ready(Ok(bytes.len()));
        }
        ready!(self.poll_replaced(context))?;
        let written = ready!(Pin::new(&mut self.socket).poll_write(context, bytes))?;
        self.progress.lock().note_written();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_replaced(context))?;
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_replaced(context))?;
        if !self.shut {
            ready!(Pin::new(&mut self.socket).poll_shutdown(context))?;
            self.shut = true;
        }
        if !self.ended {
            ready!(self.poll_linger(context));
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
