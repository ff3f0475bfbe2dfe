//! The HTTP client of one line: hyper-util's, made when it is needed and bound to what the target guard has judged.
//!
//! A line has a client while it has connections or opens one; [`super`] sends through it. The client's pool is
//! keyed by host and knows nothing of addresses, so the rule for them is kept from outside: as soon as a live
//! connection's address has left the judged answer, the line gets a new client, and what the old one keeps is
//! closed. The client calls [`Opener`] for connections, which takes addresses and ignores the host.
//!
//! No client has a timer: idle connections close themselves (`stream.rs`), and the last one to close takes the
//! line's client with it.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Extensions, Request, Response, Uri};
use http_body_util::Full;
use hyper_util::client::legacy::{Client, Error, ResponseFuture};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::Step;
use super::connector::Connector;
use super::stream::Connection;
use crate::domain::lease::Lease;

/// Most bytes of an answer's headers. Less refuses receivers behind talkative proxies, more is memory that
/// any receiver can take for each attempt.
pub(in crate::delivery) const HEADER_BYTES_MAX: u32 = 16 * 1024;

/// Idle connections kept by a line, as many as it may have attempts in flight by default. More holds descriptors
/// of receivers, fewer makes a busy line open connections again.
const IDLE_MAX: usize = 32;

/// Connections of one line that may go on being opened after their attempts got another one. The client lets all
/// of them go on, so a receiver that answers fast but accepts slowly would hold thousands of our sockets. Fewer
/// lets a busy line's pool grow more slowly, more is what such a receiver can hold beyond its attempts.
pub(super) const BACKGROUND_MAX: usize = 4;

tokio::task_local! {
    /// When the running attempt's connection must be open. Where it is not set, nobody waits for the connection.
    pub(super) static CONNECT_BY: Instant;
}

/// Why there is no connection; the client hands it back inside its own error.
#[derive(Debug, thiserror::Error)]
#[error("no connection: step {0}")]
pub(super) struct NotOpened(pub(super) Step);

/// Where the connections of a client lead, and which there are.
pub(super) struct Route {
    connector: Arc<Connector>,
    port: u16,
    server_name: Option<ServerName<'static>>,
    /// Under which its connections are opened and written to.
    lease: Lease,
    slot: Weak<Slot>,
    reach: Mutex<Reach>,
    /// Whether the receiver has agreed on HTTP/2.
    http2: AtomicBool,
    background: Semaphore,
}

struct Reach {
    /// The current judged answer.
    addresses: Arc<[IpAddr]>,
    /// The address of each open connection that the client may keep.
    live: Vec<IpAddr>,
    /// Connections that are being opened, or that the client must not keep.
    others: usize,
}

impl Route {
    fn reach(&self) -> MutexGuard<'_, Reach> {
        self.reach.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_unused(&self) -> bool {
        let reach = self.reach();
        reach.live.is_empty() && reach.others == 0
    }

    /// Whether the connection that is being opened should still be: always while its attempt waits for it, and
    /// afterwards only where it is likely to be of use.
    fn wants(&self, in_background: &mut bool) -> bool {
        if *in_background || CONNECT_BY.try_with(|_| ()).is_ok() {
            return true;
        }
        // On HTTP/2 one connection is enough.
        let wanted = !self.http2.load(Ordering::Relaxed)
            && self.background.try_acquire().map(tokio::sync::SemaphorePermit::forget).is_ok();
        *in_background = wanted;
        wanted
    }
}

/// Counts one connection, from the beginning of its opening to its end.
pub(super) struct Hold {
    route: Arc<Route>,
    address: Option<IpAddr>,
    in_background: bool,
}

impl Hold {
    fn new(route: Arc<Route>) -> Self {
        route.reach().others += 1;
        route.connector.open.fetch_add(1, Ordering::Relaxed);
        Self { route, address: None, in_background: false }
    }

    /// Opens the connection.
    async fn open(mut self, by: Instant) -> Result<TokioIo<Connection>, NotOpened> {
        let route = Arc::clone(&self.route);
        let addresses = Arc::clone(&route.reach().addresses);
        let server_name = route.server_name.as_ref();
        let term = route.lease.term(&route.connector.clock);
        let mut opening = pin!(route.connector.open(&addresses, route.port, server_name, by));
        let opened = poll_fn(|cx| {
            if term.is_over() {
                Poll::Ready(Err(Step::Local))
            } else if route.wants(&mut self.in_background) {
                opening.as_mut().poll(cx)
            } else {
                Poll::Ready(Err(Step::Connect))
            }
        });
        let (stream, address, http2) = opened.await.map_err(NotOpened)?;
        self.end_background();
        if http2 {
            route.http2.store(true, Ordering::Relaxed);
        }
        // Beyond the limit of all lines it serves the attempt that opened it, and is closed.
        let room = route.connector.open.load(Ordering::Relaxed) <= route.connector.kept_max;
        let keep = room && self.is_judged(address);
        let state = Arc::new(State::new(Arc::clone(&route), http2));
        let connection =
            Connection::new(stream, state, self, keep, term, &route.connector.patience);
        Ok(TokioIo::new(connection))
    }

    /// Whether the address is still in the judged answer, which may have changed while it was connected to. Then
    /// the connection serves the attempt that opened it, and no other.
    fn is_judged(&mut self, address: IpAddr) -> bool {
        let mut reach = self.route.reach();
        if !reach.addresses.contains(&address) {
            return false;
        }
        reach.others -= 1;
        reach.live.push(address);
        self.address = Some(address);
        true
    }

    fn end_background(&mut self) {
        if std::mem::take(&mut self.in_background) {
            self.route.background.add_permits(1);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.end_background();
        self.route.connector.open.fetch_sub(1, Ordering::Relaxed);
        let mut reach = self.route.reach();
        match self.address.and_then(|address| reach.live.iter().position(|it| *it == address)) {
            Some(at) => drop(reach.live.swap_remove(at)),
            None => reach.others -= 1,
        }
        drop(reach);
        if self.route.is_unused()
            && let Some(slot) = self.route.slot.upgrade()
        {
            let route = &self.route;
            slot.forget_if(|client| Arc::ptr_eq(&client.route, route) && route.is_unused());
        }
    }
}

/// What is known of a connection's requests; goes along with every answer and error of the client.
///
/// The marks are set around an answer, not around a request, because only with its answer or error one learns
/// which connection a request took. Another request may take the connection an instant before the marks are set;
/// if it then dies, a repeat may be left out, or made although a byte had arrived. Both are within the promise of
/// at least once.
pub(super) struct State {
    route: Arc<Route>,
    http2: bool,
    opened: Instant,
    /// A request on it was answered.
    answered: AtomicBool,
    /// The latest request has its answer's headers: what is written next is another request. Not for HTTP/2.
    settled: AtomicBool,
    /// Nothing was received since the latest request began.
    silent: AtomicBool,
}

impl State {
    fn new(route: Arc<Route>, http2: bool) -> Self {
        Self {
            route,
            http2,
            opened: Instant::now(),
            answered: AtomicBool::new(false),
            settled: AtomicBool::new(!http2),
            silent: AtomicBool::new(true),
        }
    }

    pub(super) const fn is_http2(&self) -> bool {
        self.http2
    }

    pub(super) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    /// Notes that bytes are written.
    pub(super) fn note_written(&self) {
        if self.is_settled() {
            self.settled.store(false, Ordering::Relaxed);
            self.silent.store(true, Ordering::Relaxed);
        }
    }

    /// Notes that bytes have arrived.
    pub(super) fn note_received(&self) {
        if self.silent.load(Ordering::Relaxed) {
            self.silent.store(false, Ordering::Relaxed);
        }
    }

    /// Notes that the headers of an answer have arrived.
    pub(super) fn note_answer<B>(answer: &Response<B>) {
        if let Some(state) = answer.extensions().get::<Arc<Self>>() {
            state.answered.store(true, Ordering::Relaxed);
            state.settled.store(!state.http2, Ordering::Relaxed);
        }
    }

    /// Whether the connection was reused by the attempt that began then, and gave it no byte of an answer.
    fn died_unanswered(&self, began: Instant) -> bool {
        // Connections that were opened in the background wait unused for their first request; they are old too.
        let reused = self.opened < began || self.answered.load(Ordering::Relaxed);
        // On HTTP/2 other answers share the connection, and a failure before the headers of ours is all there is.
        // A settled connection has not even been sent our request.
        let unanswered = self.http2 || self.is_settled() || self.silent.load(Ordering::Relaxed);
        reused && unanswered
    }
}

/// What a failed request means.
pub(super) enum Failure {
    /// It died with a reused connection, or never got one: to be repeated on a fresh one.
    Unanswered(Option<Arc<State>>),
    /// It failed at this step.
    At(Step),
}

impl Failure {
    /// Reads the client's error for an attempt that began then.
    pub(super) fn of(error: &Error, began: Instant) -> Self {
        let source = std::error::Error::source(error);
        if let Some(NotOpened(step)) = source.and_then(|it| it.downcast_ref()) {
            return Self::At(*step);
        }
        let mut extras = Extensions::new();
        if let Some(connected) = error.connect_info() {
            connected.get_extras(&mut extras);
        }
        match extras.remove::<Arc<State>>() {
            Some(state) if state.died_unanswered(began) => return Self::Unanswered(Some(state)),
            // It waited for a connection that another request was opening, and that request went away.
            None if error.is_connect() => return Self::Unanswered(None),
            _ => (),
        }
        match source.and_then(|it| it.downcast_ref::<hyper::Error>()) {
            Some(error) if error.is_parse_too_large() => Self::At(Step::Size),
            Some(error) if error.is_parse() => Self::At(Step::Status),
            _ => Self::At(Step::Connect),
        }
    }

    /// The step, when nothing is repeated any more.
    pub(super) const fn step(&self) -> Step {
        match self {
            Self::Unanswered(_) => Step::Connect,
            Self::At(step) => *step,
        }
    }
}

/// Opens the connections of one client.
#[derive(Clone)]
pub(super) struct Opener(Arc<Route>);

impl tower::Service<Uri> for Opener {
    type Response = TokioIo<Connection>;
    type Error = NotOpened;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, NotOpened>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NotOpened>> {
        Poll::Ready(Ok(()))
    }

    /// The host of the URL is ignored: it was resolved and judged before.
    fn call(&mut self, _: Uri) -> Self::Future {
        // The client calls this while the attempt is polled; without an attempt, nothing is to be opened.
        let by = CONNECT_BY.try_with(|by| *by).unwrap_or_else(|_| Instant::now());
        Box::pin(Hold::new(Arc::clone(&self.0)).open(by))
    }
}

/// Where a client's connections lead to, apart from the addresses, and under which lease.
pub(super) struct Destination<'a> {
    pub(super) port: u16,
    pub(super) server_name: Option<&'a ServerName<'static>>,
    pub(super) lease: &'a Lease,
}

/// A client with what it is bound to.
pub(super) struct LineClient {
    http: Client<Opener, Full<Bytes>>,
    /// The same as in its [`Reach`], to be compared without its lock.
    addresses: Arc<[IpAddr]>,
    route: Arc<Route>,
}

impl LineClient {
    /// A client that nobody else knows: its first connection is fresh for certain.
    pub(super) fn new(
        connector: &Arc<Connector>,
        addresses: &Arc<[IpAddr]>,
        destination: &Destination<'_>,
        slot: &Arc<Slot>,
    ) -> Self {
        let (addresses, live) = (Arc::clone(addresses), Vec::new());
        let route = Arc::new(Route {
            connector: Arc::clone(connector),
            port: destination.port,
            server_name: destination.server_name.cloned(),
            lease: destination.lease.clone(),
            slot: Arc::downgrade(slot),
            reach: Mutex::new(Reach { addresses: Arc::clone(&addresses), live, others: 0 }),
            http2: AtomicBool::new(false),
            background: Semaphore::new(BACKGROUND_MAX),
        });
        let http = Client::builder(TokioExecutor::new())
            .pool_max_idle_per_host(IDLE_MAX)
            // Connections end by themselves when idle. A pool with a timer would have a task for each line.
            .pool_idle_timeout(None)
            // It would repeat on kept connections, and as often as it meets dead ones. Ours is once, and fresh.
            .retry_canceled_requests(false)
            .http1_max_buf_size(HEADER_BYTES_MAX as usize)
            .http2_max_header_list_size(HEADER_BYTES_MAX)
            .build(Opener(Arc::clone(&route)));
        Self { http, addresses, route }
    }

    /// Starts a request; nothing happens before the future is polled.
    pub(super) fn request(&self, request: Request<Full<Bytes>>) -> ResponseFuture {
        self.http.request(request)
    }

    /// Takes over the judged answer, unless a connection leads to an address that is not in it.
    fn accepts(&mut self, addresses: &Arc<[IpAddr]>) -> bool {
        if Arc::ptr_eq(&self.addresses, addresses) || self.addresses == *addresses {
            return true;
        }
        let mut reach = self.route.reach();
        let valid = reach.live.iter().all(|address| addresses.contains(address));
        if valid {
            reach.addresses = Arc::clone(addresses);
            self.addresses = Arc::clone(addresses);
        }
        valid
    }
}

/// A line's place for its client. Empty, it is a few bytes.
#[derive(Default)]
pub(super) struct Slot(Mutex<Option<Box<LineClient>>>);

impl Slot {
    /// Starts a request with the line's client when it suits the judged answer, else with the new one.
    pub(super) fn request(
        &self,
        addresses: &Arc<[IpAddr]>,
        request: Request<Full<Bytes>>,
        new: impl FnOnce() -> LineClient,
    ) -> ResponseFuture {
        let mut kept = self.lock();
        // Dropped after the lock: closing connections comes back to this slot.
        let outdated = kept.take_if(|client| !client.accepts(addresses));
        let sending = kept.get_or_insert_with(|| Box::new(new())).request(request);
        drop(kept);
        drop(outdated);
        sending
    }

    /// Keeps a client for the requests to come, unless there is one, or it has no connection any more.
    pub(super) fn adopt(&self, client: LineClient) {
        let mut kept = self.lock();
        if kept.is_none() && !client.route.is_unused() {
            *kept = Some(Box::new(client));
        }
    }

    /// Lets the next request make a new client where this HTTP/2 connection is shared; those under way go on.
    pub(super) fn forget_http2(&self, dead: &State) {
        self.forget_if(|client| dead.http2 && Arc::ptr_eq(&client.route, &dead.route));
    }

    /// The same for whatever HTTP/2 connection there is.
    pub(super) fn forget_any_http2(&self) {
        self.forget_if(|client| client.route.http2.load(Ordering::Relaxed));
    }

    /// How many connections there are, or `None` without a client.
    #[cfg(test)]
    pub(super) fn connections(&self) -> Option<usize> {
        self.lock().as_ref().map(|client| client.route.reach().live.len())
    }

    /// How many connections are being opened.
    #[cfg(test)]
    pub(super) fn opening(&self) -> usize {
        self.lock().as_ref().map_or(0, |client| client.route.reach().others)
    }

    fn forget_if(&self, condition: impl FnOnce(&LineClient) -> bool) {
        let forgotten = self.lock().take_if(|client| condition(client));
        drop(forgotten);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Box<LineClient>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
