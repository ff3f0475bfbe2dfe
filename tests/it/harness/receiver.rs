//! A receiver on loopback: answers as the test wants, and keeps the bytes, headers and order of all that came.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::PATIENCE;

/// One request that came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) at: Instant,
    /// Where it came from.
    pub(crate) peer: SocketAddr,
    /// On which connection of the receiver, counted from 1.
    pub(crate) connection: usize,
    /// The status that was given, once it was.
    pub(crate) status: Option<u16>,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {self:?}"));
        value.to_str().unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn is_challenge(&self) -> bool {
        self.header("webhook-id").starts_with("chal_")
    }

    pub(crate) fn challenge(&self) -> String {
        self.json()["challenge"].as_str().unwrap().to_owned()
    }

    /// The contact that a notification is about.
    pub(crate) fn contact(&self) -> String {
        self.json()["message"]["id"].as_str().unwrap().to_owned()
    }

    /// `staffCreate`, `staffEdit` or `staffDelete`.
    pub(crate) fn kind(&self) -> String {
        self.json()["message"]["status"].as_str().unwrap().to_owned()
    }

    pub(crate) fn full_name(&self) -> String {
        self.json()["message"]["fullName"].as_str().unwrap().to_owned()
    }

    pub(crate) fn event_id(&self) -> &str {
        self.header("webhook-id")
    }

    pub(crate) fn sequence(&self) -> u64 {
        self.header("rollcall-sequence").parse().unwrap()
    }

    pub(crate) fn version(&self) -> u64 {
        self.header("rollcall-contact-version").parse().unwrap()
    }

    /// Fails unless somebody else's implementation of Standard Webhooks accepts it.
    pub(crate) fn assert_signed_with(&self, secret: &str) {
        let verifier = standardwebhooks::Webhook::new(secret).unwrap();
        verifier
            .verify(&self.body, &self.headers)
            .unwrap_or_else(|error| panic!("{error}: {self:?}"));
    }
}

/// What is answered.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// A whole answer.
    Answer { status: u16, headers: Vec<(&'static str, String)>, body: Bytes },
    /// 200, and then a byte every so often without end.
    Trickle(Duration),
    /// Nothing, for as long as the connection is kept.
    Hang,
    /// The connection ends.
    Close,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self::Answer { status, headers: Vec::new(), body: Bytes::new() }
    }

    pub(crate) fn header(status: u16, name: &'static str, value: &str) -> Self {
        Self::Answer { status, headers: vec![(name, value.to_owned())], body: Bytes::new() }
    }

    pub(crate) fn body(status: u16, body: impl Into<Bytes>) -> Self {
        Self::Answer { status, headers: Vec::new(), body: body.into() }
    }

    /// Consent to this challenge.
    pub(crate) fn consent(challenge: &str) -> Self {
        Self::body(200, json!({"code": 200, "result": {"challenge": challenge}}).to_string())
    }
}

type Replying = Pin<Box<dyn Future<Output = Reply> + Send>>;
type Handler = Arc<dyn Fn(Seen) -> Replying + Send + Sync>;

struct State {
    seen: Mutex<Vec<Seen>>,
    changed: Notify,
    on_challenge: Mutex<Handler>,
    on_notification: Mutex<Handler>,
    open: AtomicUsize,
    last_peer: Mutex<Option<SocketAddr>>,
}

/// A receiver that runs; it ends with the value.
pub(crate) struct Receiver {
    address: SocketAddr,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

impl Receiver {
    /// Consents to challenges and answers 200 to notifications.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            seen: Mutex::default(),
            changed: Notify::new(),
            on_challenge: Mutex::new(handler(|seen| Reply::consent(&seen.challenge()))),
            on_notification: Mutex::new(handler(|_| Reply::status(200))),
            open: AtomicUsize::new(0),
            last_peer: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&state)));
        Self { address, state, accepting }
    }

    pub(crate) fn url(&self) -> String {
        self.url_of("/hook")
    }

    pub(crate) fn url_of(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Answers challenges like this from now on.
    pub(crate) fn answer_challenges(&self, reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static) {
        *self.state.on_challenge.lock().unwrap() = handler(reply);
    }

    /// Works on challenges like this from now on.
    pub(crate) fn work_on_challenges<F: Future<Output = Reply> + Send + 'static>(
        &self,
        work: impl Fn(Seen) -> F + Send + Sync + 'static,
    ) {
        *self.state.on_challenge.lock().unwrap() = Arc::new(move |seen| Box::pin(work(seen)));
    }

    /// Answers notifications like this from now on.
    pub(crate) fn answer(&self, reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static) {
        *self.state.on_notification.lock().unwrap() = handler(reply);
    }

    /// Works on notifications like this from now on.
    pub(crate) fn work<F: Future<Output = Reply> + Send + 'static>(
        &self,
        work: impl Fn(Seen) -> F + Send + Sync + 'static,
    ) {
        *self.state.on_notification.lock().unwrap() = Arc::new(move |seen| Box::pin(work(seen)));
    }

    /// All notifications that came, in order of arrival.
    pub(crate) fn notifications(&self) -> Vec<Seen> {
        let seen = self.state.seen.lock().unwrap();
        seen.iter().filter(|seen| !seen.is_challenge()).cloned().collect()
    }

    /// The notifications that were answered 2xx, in order of arrival.
    pub(crate) fn delivered(&self) -> Vec<Seen> {
        let good = |seen: &Seen| seen.status.is_some_and(|status| (200..300).contains(&status));
        self.notifications().into_iter().filter(good).collect()
    }

    pub(crate) fn challenges(&self) -> Vec<Seen> {
        let seen = self.state.seen.lock().unwrap();
        seen.iter().filter(|seen| seen.is_challenge()).cloned().collect()
    }

    /// The kinds of the delivered events of one contact, in order.
    pub(crate) fn kinds_of(&self, contact: &str) -> Vec<String> {
        self.delivered().iter().filter(|seen| seen.contact() == contact).map(Seen::kind).collect()
    }

    /// Connections that are open now.
    pub(crate) fn open_connections(&self) -> usize {
        self.state.open.load(Ordering::SeqCst)
    }

    /// Waits until the requests so far fulfil a condition; fails with `what` when they do not in time.
    pub(crate) async fn wait_until(&self, what: &str, is_met: impl Fn(&Self) -> bool) {
        let wait = async {
            loop {
                let changed = self.state.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if is_met(self) {
                    return;
                }
                changed.await;
            }
        };
        let met = tokio::time::timeout(PATIENCE, wait).await;
        assert!(met.is_ok(), "this did not happen within {PATIENCE:?}: {what}\n{}", self.summary());
    }

    /// Waits for so many delivered notifications.
    pub(crate) async fn wait_for_delivered(&self, count: usize) -> Vec<Seen> {
        let what = format!("{count} delivered");
        self.wait_until(&what, |receiver| receiver.delivered().len() >= count).await;
        self.delivered()
    }

    /// Waits for so many notifications, however they were answered.
    pub(crate) async fn wait_for_notifications(&self, count: usize) -> Vec<Seen> {
        let what = format!("{count} notifications");
        self.wait_until(&what, |receiver| receiver.notifications().len() >= count).await;
        self.notifications()
    }

    /// Waits until all that a killed server has sent is read: afterwards nothing more of it can come.
    pub(crate) async fn wait_until_quiet(&self) {
        // Connections are accepted in order, so behind this one none of that server is left.
        let last = TcpStream::connect(self.address).await.unwrap();
        let own = last.local_addr().unwrap();
        super::eventually("the last connection is accepted", || async {
            (*self.state.last_peer.lock().unwrap() == Some(own)).then_some(())
        })
        .await;
        drop(last);
        super::eventually("every connection ended", || async {
            (self.open_connections() == 0).then_some(())
        })
        .await;
    }

    /// Gives what came so far and forgets it; only while the receiver is quiet.
    pub(crate) fn take_notifications(&self) -> Vec<Seen> {
        assert_eq!(self.open_connections(), 0, "a request may be under way");
        let mut seen = std::mem::take(&mut *self.state.seen.lock().unwrap());
        seen.retain(|seen| !seen.is_challenge());
        seen
    }

    /// Fails when an older event of a contact came after a newer one.
    pub(crate) fn assert_contacts_in_order(&self) {
        let mut newest: HashMap<String, u64> = HashMap::new();
        for seen in self.notifications() {
            let last = newest.entry(seen.contact()).or_default();
            assert!(
                seen.version() >= *last,
                "went back to {} after {last}: {seen:?}",
                seen.version()
            );
            *last = seen.version();
        }
    }

    fn summary(&self) -> String {
        let all = self.notifications();
        let last: Vec<String> = all
            .iter()
            .rev()
            .take(20)
            .rev()
            .map(|n| format!("  {} {} {} -> {:?}", n.sequence(), n.kind(), n.full_name(), n.status))
            .collect();
        format!("{} notifications, the last:\n{}", all.len(), last.join("\n"))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn handler(reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Handler {
    Arc::new(move |seen| Box::pin(std::future::ready(reply(&seen))))
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = tokio::task::JoinSet::new();
    for connection in 1.. {
        let (stream, peer) = listener.accept().await.unwrap();
        let state = Arc::clone(&state);
        state.open.fetch_add(1, Ordering::SeqCst);
        *state.last_peer.lock().unwrap() = Some(peer);
        connections.spawn(async move {
            let answering = Arc::clone(&state);
            let service = service_fn(move |request| {
                answer(Arc::clone(&answering), (peer, connection), request)
            });
            // A caller that breaks off is part of many tests.
            drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
            state.open.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

async fn answer(
    state: Arc<State>,
    (peer, connection): (SocketAddr, usize),
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, &'static str> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| "the request broke off")?.to_bytes();
    let seen = Seen {
        method: head.method,
        path: head.uri.path().to_owned(),
        headers: head.headers,
        body,
        at: Instant::now(),
        peer,
        connection,
        status: None,
    };
    let handlers = if seen.is_challenge() { &state.on_challenge } else { &state.on_notification };
    let handler = Arc::clone(&handlers.lock().unwrap());
    let place = {
        let mut all = state.seen.lock().unwrap();
        all.push(seen.clone());
        all.len() - 1
    };
    state.changed.notify_waiters();
    let reply = handler(seen).await;
    let given = match &reply {
        Reply::Answer { status, .. } => Some(*status),
        Reply::Trickle(_) | Reply::Hang | Reply::Close => None,
    };
    state.seen.lock().unwrap()[place].status = given;
    state.changed.notify_waiters();
    match reply {
        Reply::Answer { status, headers, body } => {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            Ok(response.body(Full::new(body).boxed()).unwrap())
        }
        Reply::Trickle(every) => Ok(Response::new(Drops::new(every).boxed())),
        Reply::Hang => std::future::pending().await,
        Reply::Close => Err("closed on purpose"),
    }
}

/// A body of blanks, one at a time, without end.
struct Drops {
    every: Duration,
    next: Pin<Box<tokio::time::Sleep>>,
}

impl Drops {
    fn new(every: Duration) -> Self {
        Self { every, next: Box::pin(tokio::time::sleep(every)) }
    }
}

impl Body for Drops {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::task::ready!(self.next.as_mut().poll(context));
        self.next = Box::pin(tokio::time::sleep(self.every));
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b" ")))))
    }
}
