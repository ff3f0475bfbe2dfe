//! The HTTP server of `rollcall listen`: reads a bounded request, answers, hands on what it saw.
//!
//! Connections and bodies are limited, since the port may be open to others than Rollcall.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};

use super::listen_answer::{Received, Verified, Wish, echo, find_challenge};
use super::ordered::Ordered;
use crate::delivery::signing;
use crate::domain::clock::{Clock, SystemClock, Timestamp};
use crate::domain::subscription::SigningSecret;

/// Largest request body, in bytes; notifications have some hundred.
const BODY_BYTES_MAX: usize = 1 << 20;

/// Most connections at once; the others wait to be accepted. Rollcall sends at most 256 attempts to one
/// subscription at once.
const CONNECTIONS_MAX: usize = 512;

/// How long a client may take for the head of a request.
const HEAD_TIME: Duration = Duration::from_secs(10);

/// How long a client may take for its body.
const BODY_TIME: Duration = Duration::from_secs(10);

/// Requests that wait to be printed before answers wait for the printing.
pub(super) const PRINT_QUEUE: usize = 1024;

/// What every connection shares.
#[derive(Debug)]
pub(super) struct Receiver {
    /// The only path that is answered.
    pub(super) path: String,
    /// How notifications are answered.
    pub(super) wish: Wish,
    /// How long they wait for that answer.
    pub(super) delay: Duration,
    /// The secret, once it is known.
    pub(super) secret: Mutex<Option<SigningSecret>>,
    /// Where requests go to be printed.
    pub(super) seen: mpsc::Sender<Received>,
    /// For `receivedAt` and the age of signatures.
    pub(super) clock: SystemClock,
}

/// Accepts connections until the task is aborted.
pub(super) async fn accept(listener: TcpListener, receiver: Arc<Receiver>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: accepting again at once would spin.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let receiver = Arc::clone(&receiver);
        tokio::spawn(async move {
            serve(stream, receiver).await;
            drop(permit);
        });
    }
}

async fn serve(stream: TcpStream, receiver: Arc<Receiver>) {
    let answer = service_fn(move |request| {
        let receiver = Arc::clone(&receiver);
        async move { Ok::<_, Infallible>(receiver.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .serve_connection(TokioIo::new(stream), answer);
    // A client that breaks off is its own affair.
    drop(connection.await);
}

impl Receiver {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != self.path {
            return reply(404, "no receiver here\n".to_owned(), "text/plain");
        }
        if request.method() != Method::POST {
            return reply(405, "this receiver takes POST\n".to_owned(), "text/plain");
        }
        let (head, body) = request.into_parts();
        let body = Limited::new(body, BODY_BYTES_MAX).collect();
        let Ok(Ok(body)) = tokio::time::timeout(BODY_TIME, body).await else {
            return reply(413, "the body is too large or broke off\n".to_owned(), "text/plain");
        };
        self.answer_body(head.headers, &body.to_bytes()).await
    }

    async fn answer_body(&self, headers: HeaderMap, bytes: &[u8]) -> Response<Full<Bytes>> {
        let now = self.clock.now();
        let secret = self.secret.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let verified = judge_signature(secret.as_ref(), &headers, bytes, now);
        let body = read_body(bytes);
        let challenge = find_challenge(&body).map(echo);
        let answered = match challenge {
            Some(_) => 200,
            None => {
                tokio::time::sleep(self.delay).await;
                self.wish.status(chance())
            }
        };
        let seen = Received { at: now.to_string(), verified, answered, headers, body };
        // Closed only while the program ends.
        drop(self.seen.send(seen).await);
        let text = challenge.map(|echo| echo.to_string()).unwrap_or_default();
        reply(answered, text, "application/json")
    }
}

/// A body as it is told: JSON in its order, or text.
pub(super) fn read_body(bytes: &[u8]) -> Ordered {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|_| Ordered::Plain(String::from_utf8_lossy(bytes).into()))
}

/// Whether the request was signed with the secret, as far as there is one.
pub(super) fn judge_signature(
    secret: Option<&SigningSecret>,
    headers: &HeaderMap,
    body: &[u8],
    now: Timestamp,
) -> Verified {
    let Some(secret) = secret else {
        return Verified::Unchecked;
    };
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let (Some(id), Some(timestamp), Some(signature)) =
        (header("webhook-id"), header("webhook-timestamp"), header("webhook-signature"))
    else {
        return Verified::No;
    };
    match signing::verify(secret, id, timestamp, signature, body, now) {
        Ok(()) => Verified::Yes,
        Err(_) => Verified::No,
    }
}

fn reply(status: u16, text: String, kind: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

/// Even over 0 to 1 without the 1. Without random numbers nothing fails, which is the usual case.
fn chance() -> f64 {
    let mut random = [0; 4];
    match getrandom::fill(&mut random) {
        Ok(()) => f64::from(u32::from_ne_bytes(random)) / (f64::from(u32::MAX) + 1.0),
        Err(_) => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::mpsc;

    use super::{Receiver, accept, signing};
    use crate::cli::listen_answer::{Received, Verified, Wish};
    use crate::domain::clock::SystemClock;

    async fn post(receiver: Receiver, head: &str, body: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = tokio::spawn(accept(listener, Arc::new(receiver)));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!(
            "POST {head}\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        accepting.abort();
        answer
    }

    fn receiver(secret: Option<&str>) -> (Receiver, mpsc::Receiver<Received>) {
        let (seen, printed) = mpsc::channel(8);
        let receiver = Receiver {
            path: "/hook".to_owned(),
            wish: Wish { status: Some(503), fail_rate: None },
            delay: Duration::ZERO,
            secret: Mutex::new(secret.map(|text| signing::parse_secret(text).unwrap())),
            seen,
            clock: SystemClock::new(),
        };
        (receiver, printed)
    }

    #[tokio::test]
    async fn challenge_is_answered_although_notifications_fail() {
        let (receiver, mut printed) = receiver(None);

        let answer = post(receiver, "/hook HTTP/1.1", r#"{"challenge":"abc"}"#).await;

        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with(r#"{"code":200,"result":{"challenge":"abc"}}"#), "{answer}");
        assert_eq!(printed.recv().await.unwrap().verified, Verified::Unchecked);
    }

    #[tokio::test]
    async fn unsigned_notification_gets_the_wished_status_and_is_not_verified() {
        let (receiver, mut printed) = receiver(Some("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"));

        let answer = post(receiver, "/hook HTTP/1.1", r#"{"type":"message"}"#).await;

        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        let seen = printed.recv().await.unwrap();
        assert_eq!((seen.verified, seen.answered), (Verified::No, 503));
    }

    #[tokio::test]
    async fn other_paths_and_larger_bodies_are_refused() {
        let (other, _printed) = receiver(None);
        assert!(post(other, "/ HTTP/1.1", "{}").await.starts_with("HTTP/1.1 404 "));

        let (small, mut printed) = receiver(None);
        let body = "x".repeat(super::BODY_BYTES_MAX);
        assert!(post(small, "/hook HTTP/1.1", &body).await.starts_with("HTTP/1.1 503 "));
        assert!(printed.recv().await.is_some());
    }
}
