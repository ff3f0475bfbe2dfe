//! The only place that opens outgoing connections: sends one request and judges the answer.
//!
//! The lane's attempts come in through [`Sender::attempt`], verifications through [`super::challenge`], which
//! shares the sending and reading. Before every request the target guard is asked for the receiver's addresses, and only
//! a connection to one of them is used, fresh or kept. Nothing here waits for a later try: retries, pauses and
//! the circuit are the lane's. Redirects are not followed, answers not decompressed, and no answer takes more
//! time, header or body than the limits below.
//!
//! Where several nodes share the sending, notifications go out only under this node's lease: `stream.rs` refuses every
//! write after its end, and attempts are aborted. Challenges are not bound to it; any node may verify a URL.
//!
//! A request that dies on a kept connection before any byte of an answer is repeated once on a fresh one: the
//! receiver closed an idle connection under us, and says nothing about the event by that.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use hyper::body::Incoming;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::outcome::{Outcome, PAUSE_MIN, judge_answer};
use super::signing;
use super::target_guard::{Refusal, Step, TargetGuard};
use crate::domain::clock::Clock;
use crate::domain::lease::{Lease, Term};
use crate::domain::subscription::StoredSecret;

// Private parts of the sender, in files of their own.
#[path = "body.rs"]
mod body;
#[path = "client.rs"]
mod client;
#[path = "connector.rs"]
mod connector;
#[path = "line.rs"]
mod line;
#[path = "stream.rs"]
mod stream;
#[path = "timer.rs"]
mod timer;

pub use body::BODY_BYTES_MAX;
pub(super) use body::{BodyEnd, Reading, Received, read_body};
#[cfg(any(test, feature = "fuzzing"))]
pub(super) use client::HEADER_BYTES_MAX;
pub use line::Line;
pub use timer::AttemptTimer;

use client::{CONNECT_BY, Failure, State};
use connector::{ADDRESSES_TRIED_MAX, Connector, Proxy, platform_tls};
use stream::{IDLE_CHECK, Patience};

/// Time to resolve, connect and agree on TLS; `connect_timeout`. Longer holds slots for dead receivers, shorter
/// fails distant ones.
pub const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);

/// Time for a whole attempt; `request_timeout`. The lower end of what Standard Webhooks recommends.
pub const REQUEST_TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);

/// Bytes kept of a failed answer: enough for a receiver's owner to recognise his error page.
pub const ANSWER_START_BYTES: usize = 1024;

/// Wait for the body of an attempt's answer, which decides nothing any more once the status is known. Longer
/// lets a receiver that dawdles hold its slot, shorter closes connections that could be kept.
const BODY_PATIENCE: Duration = Duration::from_secs(1);

/// Open connections over all lines beyond which none is kept, unless descriptors are fewer.
///
/// About 35 KiB each without TLS, so 140 MiB at worst. More lets more receivers be called without a new handshake, fewer
/// takes less memory when tens of thousands of receivers are called now and then.
pub const KEPT_MAX_DEFAULT: usize = 4_096;

const AGENT: &str = concat!("Rollcall/", env!("CARGO_PKG_VERSION"));

static WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
static WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
static WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
static SEQUENCE: HeaderName = HeaderName::from_static("rollcall-sequence");
static CONTACT_VERSION: HeaderName = HeaderName::from_static("rollcall-contact-version");
static ATTEMPT: HeaderName = HeaderName::from_static("rollcall-attempt");

/// What the operator decides, and the lease of this node.
#[derive(Clone)]
pub struct Settings {
    /// Time to resolve, connect and agree on TLS; `connect_timeout`, default [`CONNECT_TIMEOUT_DEFAULT`].
    pub connect_timeout: Duration,
    /// Time for a whole attempt; `request_timeout`, default [`REQUEST_TIMEOUT_DEFAULT`].
    pub request_timeout: Duration,
    /// `http://[user:password@]host:port` of a proxy that opens tunnels (CONNECT); `proxy`, default none. Only
    /// https receivers can be called through it, and addresses are judged here before it is asked.
    pub proxy: Option<String>,
    /// Open connections over all lines beyond which none is kept for reuse, default [`KEPT_MAX_DEFAULT`].
    pub kept_max: usize,
    /// Under which notifications are sent; for ever unless several nodes share the sending.
    pub lease: Lease,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The proxy's URL may carry a password.
        f.debug_struct("Settings")
            .field("connect_timeout", &self.connect_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("proxy", &self.proxy.as_ref().map(|_| "..."))
            .field("kept_max", &self.kept_max)
            .finish_non_exhaustive()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connect_timeout: CONNECT_TIMEOUT_DEFAULT,
            request_timeout: REQUEST_TIMEOUT_DEFAULT,
            proxy: None,
            kept_max: KEPT_MAX_DEFAULT,
            lease: Lease::forever(),
        }
    }
}

/// Why there is no sender.
#[derive(Debug, thiserror::Error)]
pub enum SenderError {
    /// The proxy's URL has another form, or another scheme than `http`.
    #[error("proxy must have the form http://[user:password@]host:port")]
    Proxy,
    /// The cryptographic library lacks what is needed.
    #[error("tls cannot be set up")]
    Tls(#[source] rustls::Error),
}

/// One notification to send.
#[derive(Clone, Debug)]
pub struct Attempt<'a> {
    /// `webhook-id`: visible ASCII without full stop.
    pub id: &'a str,
    /// The body, signed and sent byte for byte.
    pub body: Bytes,
    /// The secrets, newest first; those sign that are valid at the time of the request.
    pub secrets: &'a [StoredSecret],
    /// `rollcall-sequence`, left out when `None`.
    pub sequence: Option<u64>,
    /// `rollcall-contact-version`, left out when `None`.
    pub contact_version: Option<u64>,
    /// `rollcall-attempt`, left out when `None`.
    pub number: Option<u32>,
}

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What it means.
    pub outcome: Outcome,
    /// The status, when there was one.
    pub status: Option<u16>,
    /// The step that decided: [`Step::Status`] for every answer with a status.
    pub step: Step,
    /// The first [`ANSWER_START_BYTES`] of a failed answer's body as far as it arrived; empty when delivered.
    pub answer_start: Bytes,
}

/// Why a request brought no usable answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PostFailure {
    /// How far it came.
    pub(super) step: Step,
    /// The status, when it arrived.
    pub(super) status: Option<u16>,
}

impl From<Step> for PostFailure {
    fn from(step: Step) -> Self {
        Self { step, status: None }
    }
}

/// Sends requests to receivers. Shared by all lines.
pub struct Sender {
    guard: Arc<TargetGuard>,
    clock: Arc<dyn Clock>,
    connector: Arc<Connector>,
    request_timeout: Duration,
    lease: Lease,
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl Sender {
    /// A sender that trusts the platform's root certificates.
    ///
    /// # Errors
    ///
    /// [`SenderError`] when the proxy's URL or the cryptographic library is of no use.
    pub fn new(
        settings: &Settings,
        guard: Arc<TargetGuard>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, SenderError> {
        Self::with_tls(settings, guard, clock, platform_tls()?)
    }

    fn with_tls(
        settings: &Settings,
        guard: Arc<TargetGuard>,
        clock: Arc<dyn Clock>,
        tls: rustls::ClientConfig,
    ) -> Result<Self, SenderError> {
        let patience = Patience { check: IDLE_CHECK, answer: settings.request_timeout };
        let connector = Connector {
            connect_timeout: settings.connect_timeout,
            patience,
            tls: TlsConnector::from(Arc::new(tls)),
            proxy: settings.proxy.as_deref().map(Proxy::parse).transpose()?,
            open: AtomicUsize::new(0),
            kept_max: settings.kept_max,
            clock: Arc::clone(&clock),
        };
        let connector = Arc::new(connector);
        let request_timeout = settings.request_timeout;
        Ok(Self { guard, clock, connector, request_timeout, lease: settings.lease.clone() })
    }

    /// The outgoing side for challenges to a URL; nothing is connected or resolved yet.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when the target guard refuses the text of the URL.
    pub fn line(&self, url: &str) -> Result<Line, Refusal> {
        self.make_line(url, Lease::forever())
    }

    /// The outgoing side of a lane: it sends only under the node's lease.
    ///
    /// # Errors
    ///
    /// As [`Self::line`].
    pub(super) fn line_under_lease(&self, url: &str) -> Result<Line, Refusal> {
        self.make_line(url, self.lease.clone())
    }

    /// The term of the node's lease in which an attempt begins.
    pub(super) fn term(&self) -> Term {
        self.lease.term(&self.clock)
    }

    fn make_line(&self, url: &str, lease: Lease) -> Result<Line, Refusal> {
        let target = self.guard.check_url(url)?;
        if !target.tls && self.connector.proxy.is_some() {
            let message = "only https receivers can be called through the proxy".into();
            return Err(Refusal { step: Step::Url, message });
        }
        Line::new(target, lease)
            .ok_or(Refusal { step: Step::Url, message: "url cannot be called".into() })
    }

    /// The addresses that the next attempt will try to connect to, within the connect timeout. They are judged, and the
    /// answer is kept for a second at least, so an attempt made at once calls the same.
    ///
    /// # Errors
    ///
    /// [`Step::Name`] when there is no answer, [`Step::Address`] when one of them may not be called.
    pub async fn addresses_to_try(&self, line: &Line) -> Result<Vec<IpAddr>, Step> {
        let by = Instant::now() + self.connector.connect_timeout;
        let addresses = self.resolve(line, by).await?;
        Ok(addresses.iter().copied().take(ADDRESSES_TRIED_MAX).collect())
    }

    /// Sends a notification once and judges the answer.
    ///
    /// It ends within the request timeout, and `Delivered` is certain as soon as the headers of a 2xx have
    /// arrived. Dropping the future aborts the attempt; the receiver may have got it nevertheless.
    pub async fn attempt(
        &self,
        line: &Line,
        attempt: Attempt<'_>,
        timer: &mut AttemptTimer,
    ) -> Answer {
        let reading =
            Reading { keep_success: 0, keep_failure: ANSWER_START_BYTES, patience: BODY_PATIENCE };
        match self.post(line, &attempt, self.request_timeout, reading, timer).await {
            Ok(received) => {
                let retry_after = received.retry_after.as_ref().map(|value| {
                    // Bytes outside ASCII are no usable value, but the header is there.
                    value.to_str().unwrap_or("")
                });
                let status = received.status.as_u16();
                Answer {
                    outcome: judge_answer(status, retry_after, self.clock.now()),
                    status: Some(status),
                    step: Step::Status,
                    answer_start: received.body,
                }
            }
            Err(failure) => Answer {
                // Not the receiver's fault: nothing is counted against it, and the machine gets a moment.
                outcome: match failure.step {
                    Step::Local => Outcome::Pause { after: Some(PAUSE_MIN) },
                    _ => Outcome::Failed,
                },
                status: failure.status,
                step: failure.step,
                answer_start: Bytes::new(),
            },
        }
    }

    /// Sends a signed request and reads the answer, all within `timeout`.
    ///
    /// # Errors
    ///
    /// [`PostFailure`] when no status arrived. An answer with a status is given back however its body ended.
    pub(super) async fn post(
        &self,
        line: &Line,
        attempt: &Attempt<'_>,
        timeout: Duration,
        reading: Reading,
        timer: &mut AttemptTimer,
    ) -> Result<Received, PostFailure> {
        let began = Instant::now();
        let deadline = began + timeout;
        let Some(sent) = timer.within(deadline, self.send(line, attempt, began)).await else {
            // A connection that swallows requests would take all later ones too.
            line.slot.forget_any_http2();
            return Err(Step::Timeout.into());
        };
        let response = sent?;

        let (parts, body) = response.into_parts();
        let keep =
            if parts.status.is_success() { reading.keep_success } else { reading.keep_failure };
        let until = deadline.min(Instant::now() + reading.patience);
        let (body, end) = read_body(body, keep, until).await;
        let retry_after = parts.headers.get(RETRY_AFTER).cloned();
        Ok(Received { status: parts.status, retry_after, body, end })
    }

    /// The headers of a signed request; its time is now.
    fn headers(&self, attempt: &Attempt<'_>) -> HeaderMap {
        let now = self.clock.now();
        let seconds = now.seconds();
        let valid = attempt.secrets.iter().filter(|stored| stored.signs_at(now));
        let valid = valid.map(|stored| &stored.secret);
        let signature = signing::sign(valid, attempt.id, seconds, &attempt.body);
        // Ten headers and `Host`; growing would copy them all.
        let mut headers = HeaderMap::with_capacity(12);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        headers.insert(&WEBHOOK_TIMESTAMP, HeaderValue::from(seconds));
        for (name, text) in [
            (&WEBHOOK_ID, HeaderValue::from_str(attempt.id)),
            (&WEBHOOK_SIGNATURE, HeaderValue::try_from(signature)),
        ] {
            // Ids and signatures are ours and visible ASCII. A request without one of them is refused by the
            // receiver, which is better than a panic in the middle of the engine.
            if let Ok(value) = text {
                headers.insert(name, value);
            }
        }
        if let Some(sequence) = attempt.sequence {
            headers.insert(&SEQUENCE, HeaderValue::from(sequence));
        }
        if let Some(version) = attempt.contact_version {
            headers.insert(&CONTACT_VERSION, HeaderValue::from(version));
        }
        if let Some(number) = attempt.number {
            headers.insert(&ATTEMPT, HeaderValue::from(number));
        }
        headers
    }

    /// Sends on a connection to a judged address, and again on a fresh one when a kept one turns out to be dead.
    async fn send(
        &self,
        line: &Line,
        attempt: &Attempt<'_>,
        began: Instant,
    ) -> Result<Response<Incoming>, Step> {
        let connect_by = began + self.connector.connect_timeout;
        let addresses = self.resolve(line, connect_by).await?;

        let request = line.request(self.headers(attempt), attempt.body.clone());
        let sending = line.send(&self.connector, &addresses, request);
        match CONNECT_BY.scope(connect_by, sending).await {
            Ok(response) => {
                State::note_answer(&response);
                Ok(response)
            }
            Err(error) => match Failure::of(&error, began) {
                Failure::Unanswered(dead) => {
                    if let Some(dead) = dead {
                        line.slot.forget_http2(&dead);
                    }
                    Box::pin(self.send_again(line, attempt, &addresses)).await
                }
                Failure::At(step) => Err(step),
            },
        }
    }

    /// The judged addresses of a receiver.
    async fn resolve(&self, line: &Line, by: Instant) -> Result<Arc<[IpAddr]>, Step> {
        tokio::time::timeout_at(by, self.guard.resolve(&line.target))
            .await
            .map_err(|_| Step::Name)?
            .map_err(|refusal| refusal.step)
    }

    async fn send_again(
        &self,
        line: &Line,
        attempt: &Attempt<'_>,
        addresses: &Arc<[IpAddr]>,
    ) -> Result<Response<Incoming>, Step> {
        let began = Instant::now();
        let connect_by = began + self.connector.connect_timeout;
        let client = line.client(&self.connector, addresses);
        let request = line.request(self.headers(attempt), attempt.body.clone());
        let sent = CONNECT_BY.scope(connect_by, client.request(request)).await;
        let response = sent.map_err(|error| Failure::of(&error, began).step())?;
        State::note_answer(&response);
        line.slot.adopt(client);
        Ok(response)
    }
}

#[cfg(test)]
#[path = "sender_tests.rs"]
mod tests;
