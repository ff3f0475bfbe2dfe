//! The receiver: as little as can answer a notification, so that the machine's time goes to what is measured.

use std::convert::Infallible;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderValue};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::contact;
use crate::ledger::Ledger;

/// The longest body that is looked at.
const MAX_BODY: usize = 16 * 1024;

/// Connections that wait for their thread.
const HANDOVER: usize = 1024;

static ACCEPTED: Bytes = Bytes::from_static(br#"{"code":200}"#);

/// Listens on a free port; its threads end with the process.
pub(crate) fn start(threads: usize, ledger: &Arc<Ledger>) -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    let mut workers = Vec::new();
    for _ in 0..threads {
        let (sender, connections) = channel(HANDOVER);
        let ledger = ledger.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::spawn(move || runtime.block_on(serve(connections, ledger)));
        workers.push(sender);
    }
    std::thread::spawn(move || accept(&listener, &workers));
    Ok(port)
}

/// Hands each connection to the next thread in turn.
fn accept(listener: &TcpListener, workers: &[Sender<TcpStream>]) {
    for worker in workers.iter().cycle() {
        let Ok((stream, _)) = listener.accept() else {
            return;
        };
        if worker.blocking_send(stream).is_err() {
            return;
        }
    }
}

async fn serve(mut connections: Receiver<TcpStream>, ledger: Arc<Ledger>) {
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
    let answer = if body.starts_with(br#"{"challenge""#) {
        echo(&body).unwrap_or_default()
    } else {
        note(&head, &body, ledger);
        ACCEPTED.clone()
    };
    let mut response = Response::new(Full::new(answer));
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

/// Notes what arrived. A request without our headers is the bare measurement: looked at in the same way.
fn note(head: &http::request::Parts, body: &[u8], ledger: &Ledger) {
    let number = |name| {
        let value: &HeaderValue = head.headers.get(name)?;
        contact::decimal(value.as_bytes())
    };
    let contact = contact::number_in(body);
    let subscription = contact::decimal(head.uri.path().as_bytes().get(1..).unwrap_or_default());
    let version = number("rollcall-contact-version").and_then(|v| u8::try_from(v).ok());
    let sequence = number("rollcall-sequence");
    match (subscription, contact, version, sequence) {
        (Some(subscription), Some(contact), Some(version), Some(sequence)) => {
            let subscription = usize::try_from(subscription).unwrap_or(usize::MAX);
            ledger.record(subscription, contact, version, sequence);
        }
        (None, Some(_), None, None) if head.uri.path() == "/bare" => {}
        _ => ledger.record_malformed(),
    }
}
