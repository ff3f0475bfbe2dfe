//! An open connection as the HTTP client sees it: bytes in and out, watched for answers and for idleness.
//!
//! `client.rs` makes one of what the connector has opened. An idle connection ends by itself, by telling its
//! reader that the stream has ended: hyper then closes it in order, and a request that was on its way to it comes
//! back unsent. One that takes no bytes ends with an error of its writer. All this happens in the one task that drives
//! the connection, so that no request can slip in between the look and the end.
//!
//! A connection of a lane serves one term of the node's lease. When that is over it refuses every write and ends, and
//! what the system still had to send of it is thrown away.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::client::legacy::connect::{self, Connected};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::client::{Hold, State};
use crate::domain::lease::Term;

/// How often a quiet connection is looked at; it is closed when it was quiet for all that time, so after 15 to
/// 30 s. Longer meets more receivers that closed it first, shorter opens more connections.
pub(super) const IDLE_CHECK: Duration = Duration::from_secs(15);

/// When a connection without traffic ends.
pub(super) struct Patience {
    /// [`IDLE_CHECK`], less in tests.
    pub(super) check: Duration,
    /// How long an answer may take: before, a quiet connection may be waiting for one.
    pub(super) answer: Duration,
}

/// TCP, with or without TLS.
pub(super) enum Stream {
    /// To a receiver that is called with http.
    Plain(TcpStream),
    /// To a receiver that is called with https.
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

/// A connection of a line's client.
pub(super) struct Connection {
    stream: Stream,
    state: Arc<State>,
    keep: bool,
    idle: Idle,
    term: Term,
    /// Wakes the connection at the end of the term, where there is one.
    over: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// Ends with the connection.
    _hold: Hold,
}

struct Idle {
    timer: Pin<Box<Sleep>>,
    check: Duration,
    answer: Duration,
    /// Whether there was traffic since the last look.
    touched: bool,
    /// For how long there was none, at least.
    quiet: Duration,
    ended: bool,
}

impl Connection {
    /// `keep` says whether other requests than the first may use it.
    pub(super) fn new(
        stream: Stream,
        state: Arc<State>,
        hold: Hold,
        keep: bool,
        term: Term,
        patience: &Patience,
    ) -> Self {
        let Patience { check, answer } = *patience;
        let timer = Box::pin(tokio::time::sleep(check));
        let quiet = Duration::ZERO;
        let idle = Idle { timer, check, answer, touched: true, quiet, ended: false };
        let over = (!term.is_forever()).then(|| Box::pin(term.clone().over()) as _);
        Self { stream, state, keep, idle, term, over, _hold: hold }
    }

    /// Nothing is written after the end of the term, not even by a connection that has not noticed it.
    fn refuse_if_over(&self) -> io::Result<()> {
        if self.term.is_over() { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    /// Looks whether the term is over, and asks to be polled when it is.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(over) = &mut self.over else { return false };
        if over.as_mut().poll(cx).is_ready() {
            self.over = None;
        }
        self.term.is_over()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.term.is_over() {
            let socket = match &self.stream {
                Stream::Plain(socket) => socket,
                Stream::Tls(stream) => stream.get_ref().0,
            };
            // The system would go on sending what it has of it, and again if it got lost. Nobody is told when it fails.
            drop(socket.set_zero_linger());
        }
    }
}

impl Idle {
    /// Looks whether it is time to end, and asks to be polled when it may be.
    fn poll_end(&mut self, state: &State, cx: &mut Context<'_>) -> bool {
        while !self.ended && self.timer.as_mut().poll(cx).is_ready() {
            self.timer.as_mut().reset(Instant::now() + self.check);
            if std::mem::take(&mut self.touched) {
                self.quiet = Duration::ZERO;
                continue;
            }
            self.quiet += self.check;
            self.ended = state.is_settled() || self.quiet >= self.answer;
        }
        self.ended
    }
}

impl connect::Connection for Connection {
    fn connected(&self) -> Connected {
        let connected = Connected::new().extra(Arc::clone(&self.state));
        if !self.keep {
            connected.poison();
        }
        if self.state.is_http2() { connected.negotiated_h2() } else { connected }
    }
}

/// Calls a method on whichever stream there is.
macro_rules! with_stream {
    ($connection:expr, $stream:ident => $call:expr) => {
        match &mut $connection.stream {
            Stream::Plain(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
            Stream::Tls(stream) => {
                let $stream = Pin::new(stream);
                $call
            }
        }
    };
}

impl Connection {
    /// A write that waits ends with the connection too: a receiver that takes no bytes while it sends such as must be
    /// answered would otherwise hold the connection for ever, since nothing is read meanwhile.
    fn or_end<T>(
        &mut self,
        polled: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if polled.is_pending() && self.poll_over(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if polled.is_pending() && self.idle.poll_end(&self.state, cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = with_stream!(this, stream => stream.poll_read(cx, buffer));
        if buffer.filled().len() > before {
            this.idle.touched = true;
            this.state.note_received();
        }
        if polled.is_pending() && this.poll_over(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if polled.is_pending() && this.idle.poll_end(&this.state, cx) {
            return Poll::Ready(Ok(()));
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.refuse_if_over()?;
        this.state.note_written();
        let polled = with_stream!(this, stream => stream.poll_write(cx, bytes));
        this.idle.touched |= polled.is_ready();
        this.or_end(polled, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.refuse_if_over()?;
        this.state.note_written();
        let polled = with_stream!(this, stream => stream.poll_write_vectored(cx, parts));
        this.idle.touched |= polled.is_ready();
        this.or_end(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.refuse_if_over()?;
        let polled = with_stream!(this, stream => stream.poll_flush(cx));
        this.or_end(polled, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.refuse_if_over()?;
        let polled = with_stream!(this, stream => stream.poll_shutdown(cx));
        this.or_end(polled, cx)
    }
}
