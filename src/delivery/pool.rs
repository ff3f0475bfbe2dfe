//! The connections of one line: kept for reuse, handed out to one attempt at a time, closed when idle.
//!
//! [`super`] asks for a connection to one of the addresses that the target guard has just judged, and opens a
//! new one when there is none. Written here rather than taken from a client library because three rules need it:
//! a connection is used only while its address is in the current answer, a repeat must go on a fresh connection,
//! and it must be known whether any byte of an answer arrived.
//!
//! HTTP/1.1 connections are handed out exclusively and come back only after a whole answer; dropping a
//! [`Lease`] closes them. One HTTP/2 connection is shared by all attempts.

use std::future::Future;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Idle connections kept by a line, as many as it may have attempts in flight by default. More holds descriptors
/// of receivers, fewer makes a busy line open connections again.
pub(super) const IDLE_MAX: usize = 32;

/// How often an unused connection is looked at; it is closed when it was unused for all that time, so after 15
/// to 30 s. Longer meets more receivers that closed it first, shorter opens more connections.
const IDLE_CHECK: Duration = Duration::from_secs(15);

/// Wait for a connection that has just given its answer to take the next request. It takes microseconds unless
/// the receiver did not read all of the request; longer would delay the next attempt for such a receiver.
const READY_WAIT: Duration = Duration::from_millis(50);

/// Marks a connection that is being closed for idleness; no attempt may take it any more.
const CLOSING: u32 = u32::MAX;

/// What a connection and the task that drives it know of each other.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Bytes of answers received, after decryption.
    received: AtomicU64,
    /// Attempts that hold the connection, or [`CLOSING`].
    users: AtomicU32,
    /// Whether it was taken since the last check for idleness.
    touched: AtomicBool,
}

impl State {
    /// Counts bytes as they arrive.
    pub(super) fn add_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn acquire(&self) -> bool {
        self.touched.store(true, Ordering::Relaxed);
        let next = |users| {
            if users == CLOSING { None } else { Some(users + 1) }
        };
        self.users.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).is_ok()
    }

    fn release(&self) {
        self.users.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether nobody used it since the last check; from then on nobody can.
    fn retire(&self) -> bool {
        !self.touched.swap(false, Ordering::Relaxed)
            && self.users.compare_exchange(0, CLOSING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// How many connections are open, over all lines.
#[derive(Clone, Debug, Default)]
pub(super) struct OpenCount(Arc<AtomicUsize>);

impl OpenCount {
    /// How many there are at the moment.
    pub(super) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts one more, until what is given is dropped.
    pub(super) fn add(&self) -> Opened {
        self.0.fetch_add(1, Ordering::Relaxed);
        Opened(self.clone())
    }
}

/// One open connection.
#[derive(Debug)]
pub(super) struct Opened(OpenCount);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs a connection until it ends or was idle for too long.
///
/// `connection` is the driver that the handshake gave; dropping it closes the socket.
pub(super) async fn drive<F: Future>(connection: F, state: Arc<State>) {
    let mut connection = pin!(connection);
    loop {
        tokio::select! {
            _ = &mut connection => return,
            () = tokio::time::sleep(IDLE_CHECK) => {
                if state.retire() {
                    return;
                }
            }
        }
    }
}

/// The side of a connection that takes requests.
pub(super) enum Half {
    /// One request at a time.
    Http1(http1::SendRequest<Full<Bytes>>),
    /// Many at a time.
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Half {
    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(half) => half.is_closed(),
            Self::Http2(half) => half.is_closed(),
        }
    }
}

struct Connection {
    half: Half,
    state: Arc<State>,
    address: IpAddr,
}

/// A connection in the hands of one attempt; dropping it closes an HTTP/1.1 connection.
pub(super) struct Lease {
    /// `None` only while it is given back.
    connection: Option<Connection>,
    reused: bool,
}

impl Lease {
    /// A connection that was opened just now.
    pub(super) fn fresh(half: Half, state: Arc<State>, address: IpAddr) -> Self {
        // Nobody else knows the connection yet; at worst its driver has retired it, and sending fails.
        let acquired = state.acquire();
        let connection = acquired.then_some(Connection { half, state, address });
        Self { connection, reused: false }
    }

    /// Whether earlier attempts have used it.
    pub(super) const fn is_reused(&self) -> bool {
        self.reused
    }

    /// Whether requests need the form of HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        matches!(&self.connection, Some(Connection { half: Half::Http2(_), .. }))
    }

    /// Bytes received so far.
    pub(super) fn received(&self) -> u64 {
        self.connection.as_ref().map_or(0, |it| it.state.received.load(Ordering::Relaxed))
    }

    /// Waits until it takes a request; `false` when it is of no use any more.
    pub(super) async fn is_ready(&mut self) -> bool {
        match self.connection.as_mut().map(|it| &mut it.half) {
            Some(Half::Http1(half)) if half.is_ready() => true,
            Some(Half::Http1(half)) => {
                matches!(tokio::time::timeout(READY_WAIT, half.ready()).await, Ok(Ok(())))
            }
            Some(Half::Http2(half)) => half.ready().await.is_ok(),
            None => false,
        }
    }

    /// Sends a request and waits for the answer's headers; `None` when the connection was closed before.
    pub(super) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Option<Result<Response<Incoming>, hyper::Error>> {
        match &mut self.connection.as_mut()?.half {
            Half::Http1(half) => Some(half.send_request(request).await),
            Half::Http2(half) => Some(half.send_request(request).await),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection {
            connection.state.release();
        }
    }
}

/// The connections of one line. Empty, it costs no timer and no task.
pub(super) struct Pool {
    kept: Mutex<Kept>,
    /// Taken while a connection to a receiver that speaks HTTP/2 is opened: the others wait for it.
    opening: Semaphore,
    speaks_http2: AtomicBool,
}

#[derive(Default)]
struct Kept {
    /// The most recently used last, so that those that are not needed grow idle.
    http1: Vec<Connection>,
    http2: Option<Connection>,
}

impl Pool {
    /// A pool without connections.
    pub(super) fn new() -> Self {
        Self {
            kept: Mutex::default(),
            opening: Semaphore::new(1),
            speaks_http2: AtomicBool::new(false),
        }
    }

    /// Takes a connection to one of these addresses. Connections to others are closed, because the receiver's
    /// name does not stand for them any more.
    pub(super) fn take(&self, addresses: &[IpAddr]) -> Option<Lease> {
        let usable = |it: &Connection| {
            addresses.contains(&it.address) && !it.half.is_closed() && it.state.acquire()
        };
        let mut kept = self.kept();
        if let Some(shared) = &kept.http2 {
            if usable(shared)
                && let Half::Http2(half) = &shared.half
            {
                let half = Half::Http2(half.clone());
                let connection =
                    Connection { half, state: Arc::clone(&shared.state), address: shared.address };
                return Some(Lease { connection: Some(connection), reused: true });
            }
            kept.http2 = None;
        }
        while let Some(connection) = kept.http1.pop() {
            if usable(&connection) {
                return Some(Lease { connection: Some(connection), reused: true });
            }
        }
        None
    }

    /// Shares a fresh HTTP/2 connection with the attempts to come; does nothing for HTTP/1.1.
    pub(super) fn share(&self, lease: &Lease) {
        if let Some(Connection { half: Half::Http2(half), state, address }) = &lease.connection {
            let (half, state) = (Half::Http2(half.clone()), Arc::clone(state));
            self.kept().http2 = Some(Connection { half, state, address: *address });
            self.speaks_http2.store(true, Ordering::Relaxed);
        }
    }

    /// Takes back a connection whose answer was read to its end.
    pub(super) fn give_back(&self, mut lease: Lease) {
        let exclusive = !lease.is_http2();
        if !exclusive {
            return;
        }
        if let Some(connection) = lease.connection.take() {
            connection.state.release();
            let mut kept = self.kept();
            if kept.http1.len() < IDLE_MAX && !connection.half.is_closed() {
                kept.http1.push(connection);
            }
        }
    }

    /// Lets the next attempt open a new HTTP/2 connection; those on the old one go on.
    pub(super) fn forget_http2(&self) {
        self.kept().http2 = None;
        self.speaks_http2.store(false, Ordering::Relaxed);
    }

    /// Waits for the turn to open a connection, where one would serve all; `None` where everybody opens his own.
    pub(super) async fn wait_to_open(&self) -> Option<SemaphorePermit<'_>> {
        if !self.speaks_http2.load(Ordering::Relaxed) {
            return None;
        }
        let permit = self.opening.acquire().await.ok();
        // The one before us may have failed, and then queueing up would add its time to ours.
        permit.filter(|_| self.speaks_http2.load(Ordering::Relaxed))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
