//! A small HTTP client, and raw bytes for what no client would send.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest wait for an answer: above every timeout that the server itself has.
const ANSWER_WITHIN: Duration = Duration::from_secs(40);

/// A caller of one server with one token.
#[derive(Clone)]
pub(crate) struct Api {
    connections: Arc<Mutex<Vec<SendRequest<Full<Bytes>>>>>,
    authority: String,
    prefix: String,
    token: Option<String>,
    headers: HeaderMap,
    tls: Option<Arc<ClientConfig>>,
}

type Fault = Box<dyn std::error::Error + Send + Sync>;

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Api {
    /// Paths are appended to `base`.
    pub(crate) fn new(base: &str, token: Option<&str>) -> Self {
        let (_, rest) = base.split_once("://").unwrap();
        let (authority, prefix) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Self {
            connections: Arc::default(),
            authority: authority.to_owned(),
            prefix: prefix.to_owned(),
            token: token.map(str::to_owned),
            headers: HeaderMap::new(),
            tls: None,
        }
    }

    /// The same caller over TLS, if there is a configuration for it.
    pub(crate) fn over(self, tls: Option<Arc<ClientConfig>>) -> Self {
        Self { tls, ..self }
    }

    /// The same caller with another token.
    pub(crate) fn with_token(&self, token: Option<&str>) -> Self {
        Self { token: token.map(str::to_owned), ..self.clone() }
    }

    /// The same caller with this path in front of its own.
    pub(crate) fn below(&self, path: &str) -> Self {
        Self { prefix: format!("{}{path}", self.prefix), ..self.clone() }
    }

    /// The same caller with one more header on every request.
    pub(crate) fn with_header(&self, name: &'static str, value: &str) -> Self {
        let mut other = self.clone();
        other.headers.append(name, value.parse().unwrap());
        other
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, Bytes::new()).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, body.to_string()).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PATCH, path, body.to_string()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, Bytes::new()).await
    }

    /// Sends one request; fails the test when there is no answer.
    pub(crate) async fn send(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Answer {
        let asked = format!("{method} {path}");
        self.try_send(method, path, body).await.unwrap_or_else(|error| panic!("{asked}: {error}"))
    }

    /// Sends one request; without an answer its outcome is unknown.
    pub(crate) async fn try_send(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.prefix));
        request = request.header("host", &self.authority);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut request = request.body(Full::new(body.into())).unwrap();
        request.headers_mut().extend(self.headers.clone());
        let answer = self.exchange(request);
        let answer = tokio::time::timeout(ANSWER_WITHIN, answer)
            .await
            .map_err(|_| format!("no answer within {ANSWER_WITHIN:?}"))?
            .map_err(|error| format!("{error:?}"))?;
        assert!(answer.header("x-request-id").is_some(), "no X-Request-Id on {answer:?}");
        Ok(answer)
    }

    /// Sends on a connection that is open, else on a new one.
    async fn exchange(&self, mut request: Request<Full<Bytes>>) -> Result<Answer, Fault> {
        loop {
            let open = self.connections.lock().unwrap().pop();
            let is_new = open.is_none();
            let mut sender = match open {
                Some(sender) => sender,
                None => self.connect().await?,
            };
            let response = match sender.try_send_request(request).await {
                Ok(response) => response,
                Err(mut error) => match error.take_message() {
                    // It was closed before the request was written.
                    Some(unsent) if !is_new => {
                        request = unsent;
                        continue;
                    }
                    _ => return Err(error.into_error().into()),
                },
            };
            let (head, body) = response.into_parts();
            let body = body.collect().await?.to_bytes();
            if sender.ready().await.is_ok() {
                self.connections.lock().unwrap().push(sender);
            }
            return Ok(Answer { status: head.status.as_u16(), headers: head.headers, body });
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Fault> {
        // The end of the connection is seen by the sender.
        if let Some(config) = &self.tls {
            let address = self.authority.parse()?;
            let stream = super::certificates::connect(address, Arc::clone(config)).await?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            return Ok(sender);
        }
        let stream = TcpStream::connect(&self.authority).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }

    /// Creates a contact with this name and gives its id; the e-mail address is made from the last name.
    pub(crate) async fn create_contact(&self, first: &str, last: &str) -> String {
        let email = format!("{}@example.com", last.to_lowercase().replace(' ', "."));
        let contact = json!({"firstName": first, "lastName": last, "email": email});
        let created = self.post("/contacts/staff", contact).await.expect(201);
        created["id"].as_str().unwrap().to_owned()
    }

    /// The ids of all contacts on the roll.
    pub(crate) async fn list_contact_ids(&self) -> BTreeSet<String> {
        let mut ids = BTreeSet::new();
        loop {
            let path = format!("/contacts/staffcontact-list?limit=500&offset={}", ids.len());
            let page = self.get(&path).await.expect(200);
            let items = page["items"].as_array().unwrap();
            if items.is_empty() {
                return ids;
            }
            ids.extend(items.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
        }
    }

    /// Subscribes a URL, or unsubscribes.
    pub(crate) async fn subscribe(&self, enabled: bool, url: &str) -> Answer {
        self.patch(SUBSCRIPTION, json!({"enabled": enabled, "url": url})).await
    }

    /// Where the subscription stands.
    pub(crate) async fn subscription(&self) -> Value {
        self.get(SUBSCRIPTION).await.expect(200)
    }

    /// Waits until everything is finished: the cursor is at the newest event and nothing is held.
    pub(crate) async fn wait_until_idle(&self) -> Value {
        super::eventually("everything is finished", || async {
            let status = self.subscription().await;
            (status["cursor"] == status["newest"] && status["held"] == 0).then_some(status)
        })
        .await
    }

    /// Waits for a state of the subscription.
    pub(crate) async fn wait_for_state(&self, state: &str) -> Value {
        super::eventually(&format!("the subscription is {state}"), || async {
            let status = self.subscription().await;
            (status["state"] == state).then_some(status)
        })
        .await
    }
}

/// The path of the subscription below an app.
pub(crate) const SUBSCRIPTION: &str = "/staff-contact-event-sub";

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The `result` of a success with this status.
    #[track_caller]
    pub(crate) fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        let mut body = self.json();
        assert_eq!(body["code"], status, "{self:?}");
        assert_eq!(body.as_object().map(|fields| fields.len()), Some(2), "{self:?}");
        body["result"].take()
    }

    /// The message of an error with this status and code.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: u32) -> String {
        assert_eq!(self.status, status, "{self:?}");
        let body = self.json();
        assert_eq!(body["code"], code, "{self:?}");
        assert_eq!(body.as_object().map(|fields| fields.len()), Some(2), "{self:?}");
        body["message"].as_str().unwrap_or_else(|| panic!("no message: {self:?}")).to_owned()
    }
}

/// A connection of bare bytes.
pub(crate) struct RawConnection(TcpStream);

impl RawConnection {
    pub(crate) async fn open(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    /// Sends bytes; a server that has already closed is not this function's affair.
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.0.write_all(bytes.as_ref()).await.is_ok()
    }

    /// Reads one answer with a `Content-Length`.
    pub(crate) async fn read_answer(&mut self) -> Answer {
        let read = self.try_read_answer();
        tokio::time::timeout(ANSWER_WITHIN, read).await.expect("no answer in time")
    }

    /// Reads exactly so many bytes.
    pub(crate) async fn read_text(&mut self, bytes: usize) -> String {
        let mut space = vec![0; bytes];
        let read = tokio::time::timeout(ANSWER_WITHIN, self.0.read_exact(&mut space)).await;
        read.expect("no answer in time").expect("the connection ended");
        String::from_utf8(space).unwrap()
    }

    /// Whether the server closes the connection without another byte.
    pub(crate) async fn is_closed(&mut self) -> bool {
        let read = tokio::time::timeout(super::PATIENCE, self.0.read(&mut [0; 1])).await;
        matches!(read, Ok(Ok(0) | Err(_)))
    }

    async fn try_read_answer(&mut self) -> Answer {
        let mut seen = Vec::new();
        loop {
            if let Some(answer) = parse_answer(&seen) {
                return answer;
            }
            let mut space = [0; 4096];
            let count = self.0.read(&mut space).await.unwrap_or(0);
            let text = String::from_utf8_lossy(&seen).into_owned();
            assert!(count > 0, "the connection ended before a whole answer: {text:?}");
            seen.extend_from_slice(&space[..count]);
        }
    }
}

/// Sends these bytes on a connection of their own and gives the answer.
pub(crate) async fn raw(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Answer {
    let mut connection = RawConnection::open(address).await;
    connection.write(bytes).await;
    connection.read_answer().await
}

/// Our own reading of an answer, so that a malformed one is not smoothed over.
fn parse_answer(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    if status == 100 {
        return parse_answer(&bytes[end + 4..]);
    }
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(':').unwrap();
        let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
        headers.append(name, value.trim().parse().unwrap());
    }
    let length: usize = headers.get("content-length")?.to_str().ok()?.parse().ok()?;
    let body = bytes.get(end + 4..end + 4 + length)?;
    Some(Answer { status, headers, body: Bytes::copy_from_slice(body) })
}
