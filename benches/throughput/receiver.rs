//! The receiver: as little as can answer a notification, so that the machine's time goes to what is measured.

use std::convert::Infallible;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc::{self, Sender, channel};

use crate::contact;
use crate::ledger::{Arrived, Ledger};

/// The longest body that is looked at.
const MAX_BODY: usize = 16 * 1024;

/// Connections that wait for their thread.
const HANDOVER: usize = 1024;

static ACCEPTED: Bytes = Bytes::from_static(br#"{"code":200}"#);

/// What a path asks for besides noting what arrives, while the ledger says that receivers misbehave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Good,
    /// Never answers.
    Hang,
    /// Answers 500.
    Fail,
    /// Answers 500 for three contacts in ten.
    Refuse,
}

/// A listening receiver.
pub(crate) struct Receiver {
    pub(crate) port: u16,
    closing: Arc<AtomicBool>,
    accepting: JoinHandle<()>,
}

impl Receiver {
    /// Listens on this port of 127.0.0.1, or on a free one for 0; ends with the process.
    pub(crate) fn start(port: u16, threads: usize, ledger: &Arc<Ledger>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let port = listener.local_addr()?.port();
        let mut workers = Vec::new();
        for _ in 0..threads {
            let (sender, connections) = channel(HANDOVER);
            let ledger = ledger.clone();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            std::thread::spawn(move || runtime.block_on(serve(connections, ledger)));
            workers.push(sender);
        }
        let closing = Arc::new(AtomicBool::new(false));
        let closes = closing.clone();
        let accepting = std::thread::spawn(move || accept(&listener, &workers, &closes));
        Ok(Self { port, closing, accepting })
    }

    /// Closes the port and every connection to it.
    pub(crate) fn close(self) -> anyhow::Result<()> {
        self.closing.store(true, Ordering::Release);
        // The thread waits for a connection and looks only then.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?);
        self.accepting.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))
    }
}

/// Hands each connection to the next thread in turn.
fn accept(listener: &TcpListener, workers: &[Sender<TcpStream>], closing: &AtomicBool) {
    for worker in workers.iter().cycle() {
        let Ok((stream, _)) = listener.accept() else {
            return;
        };
        if closing.load(Ordering::Acquire) || worker.blocking_send(stream).is_err() {
            return;
        }
    }
}

async fn serve(mut connections: mpsc::Receiver<TcpStream>, ledger: Arc<Ledger>) {
    while let Some(stream) = connections.recv().await {
        if let Ok(stream) = prepared(stream) {
            tokio::spawn(connection(stream, ledger.clone()));
        }
    }
}

fn prepared(stream: TcpStream) -> std::io::Result<tokio::net::TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(stream)
}

async fn connection(stream: tokio::net::TcpStream, ledger: Arc<Ledger>) {
    let service = service_fn(|request| answer(request, &ledger));
    let serving = http1::Builder::new()
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    // A peer that goes away ends its connection; what it did not deliver is missed by the ledger.
    drop(serving.await);
}

async fn answer(
    request: Request<Incoming>,
    ledger: &Ledger,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = match read(body).await {
        Ok(body) => body,
        Err(_) => Bytes::new(),
    };
    let mut status = StatusCode::OK;
    let answer = if body.starts_with(br#"{"challenge""#) {
        echo(&body).unwrap_or_default()
    } else if note(&head, &body, ledger).await {
        ACCEPTED.clone()
    } else {
        status = StatusCode::INTERNAL_SERVER_ERROR;
        Bytes::new()
    };
    let mut response = Response::new(Full::new(answer));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    Ok(response)
}

/// The whole body; a body in one piece is not copied.
async fn read(mut body: Incoming) -> anyhow::Result<Bytes> {
    let mut first = Bytes::new();
    let mut more = BytesMut::new();
    while !body.is_end_stream() {
        let Some(frame) = body.frame().await else { break };
        let Ok(data) = frame?.into_data() else { continue };
        if first.is_empty() {
            first = data;
        } else {
            more.extend_from_slice(&data);
        }
        anyhow::ensure!(first.len() + more.len() <= MAX_BODY, "the body is too long");
    }
    if more.is_empty() {
        return Ok(first);
    }
    let mut whole = BytesMut::from(&first[..]);
    whole.unsplit(more);
    Ok(whole.freeze())
}

fn echo(body: &[u8]) -> anyhow::Result<Bytes> {
    let request: serde_json::Value = serde_json::from_slice(body)?;
    let challenge = request.get("challenge").context("no challenge")?;
    let answer = serde_json::json!({"code": 200, "result": {"challenge": challenge}});
    Ok(answer.to_string().into())
}

/// Notes what arrived; whether it is accepted. A request without our headers is the bare measurement: looked at in
/// the same way.
async fn note(head: &http::request::Parts, body: &[u8], ledger: &Ledger) -> bool {
    let number = |name| {
        let value: &HeaderValue = head.headers.get(name)?;
        contact::decimal(value.as_bytes())
    };
    let contact = contact::number_in(body);
    let place = place(head.uri.path());
    let version = number("rollcall-contact-version").and_then(|v| u8::try_from(v).ok());
    let sequence = number("rollcall-sequence");
    match (place, contact, version, sequence) {
        (Some((subscription, group, manner)), Some(contact), Some(version), Some(sequence)) => {
            if ledger.misbehaves() {
                match manner {
                    Manner::Hang => std::future::pending().await,
                    Manner::Fail => return false,
                    Manner::Refuse if contact::is_refused(contact) => return false,
                    Manner::Good | Manner::Refuse => {}
                }
            }
            ledger.record(&Arrived { subscription, group, contact, version, sequence });
        }
        (None, Some(_), None, None) if head.uri.path() == "/bare" => {}
        _ => ledger.record_malformed(),
    }
    true
}

/// Subscription, group and manner of a path such as `/3`, `/3/1` or `/3/1/hang`.
fn place(path: &str) -> Option<(usize, usize, Manner)> {
    let mut parts = path.strip_prefix('/')?.split('/');
    let number = |text: &str| contact::decimal(text.as_bytes())?.try_into().ok();
    let subscription = number(parts.next()?)?;
    let group = parts.next().map_or(Some(0), number)?;
    let manner = match parts.next() {
        None => Manner::Good,
        Some("hang") => Manner::Hang,
        Some("fail") => Manner::Fail,
        Some("refuse") => Manner::Refuse,
        Some(_) => return None,
    };
    Some((subscription, group, manner))
}
