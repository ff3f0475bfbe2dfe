//! The HTTP client of the command line: one request, one connection, one answer in the envelope.
//!
//! Calls only the server that the operator names; never a receiver. A command makes a handful of requests, so
//! connections are not kept. Refusals become errors that say what to do next.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, IF_MATCH, USER_AGENT};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_platform_verifier::BuilderVerifierExt;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use url::{Host, Url};

use super::Usage;
use super::ordered::Ordered;
use crate::domain::tenancy::Token;

/// How long one request may take. A subscribing request waits for the receiver's answer to a challenge, 10 s at
/// most, so this leaves room for it.
const REQUEST_TIME: Duration = Duration::from_secs(30);

/// Largest answer, in bytes. A page of 500 contacts is well below it.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Most pages of one list; a server that never ends its list is stopped there.
const PAGES_MAX: usize = 1000;

/// One server and the token to show it.
#[derive(Clone, Debug)]
pub(super) struct Client {
    base: Url,
    token: Token,
}

/// The server's own error answer.
#[derive(Debug, thiserror::Error)]
pub(super) struct Refused {
    /// The HTTP status.
    pub(super) status: StatusCode,
    code: i64,
    message: String,
}

#[cfg(test)]
impl Refused {
    pub(super) fn new(status: StatusCode, code: i64, message: String) -> Self {
        Self { status, code, message }
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let message = super::output::plain(&self.message);
        write!(f, "the server refused: {message} (HTTP {}, code {})", self.status, self.code)?;
        f.write_str(match self.status.as_u16() {
            401 => "; check --token or ROLLCALL_TOKEN",
            403 => "; check that --app and the token belong together and the token has the scope",
            429 => "; wait a minute and try again",
            500..=599 => "; see the server's log for this request",
            _ => "",
        })
    }
}

/// What every answer is wrapped in.
#[derive(Deserialize)]
struct Envelope {
    code: Option<i64>,
    message: Option<String>,
    result: Option<Ordered>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Client {
    /// A client of the server at this base URL.
    pub(super) fn new(base: &str, token: Token) -> anyhow::Result<Self> {
        let refused = || Usage(format!("\"{base}\" is no URL such as http://127.0.0.1:8080"));
        let base = Url::parse(base).map_err(|_| refused())?;
        if !matches!(base.scheme(), "http" | "https") || base.host().is_none() {
            return Err(refused().into());
        }
        Ok(Self { base, token })
    }

    /// Sends a request without a body and gives the answer's `result`.
    pub(super) async fn ask(&self, method: Method, path: &[&str]) -> anyhow::Result<Ordered> {
        self.send(method, path, &[], None, None).await
    }

    /// Reads with a query.
    pub(super) async fn query(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> anyhow::Result<Ordered> {
        self.send(Method::GET, path, query, None, None).await
    }

    /// Reads a list to its end, page by page.
    pub(super) async fn list(&self, path: &[&str]) -> anyhow::Result<Ordered> {
        let mut page = self.query(path, &[]).await?;
        let mut items = super::connection::items(&page).to_vec();
        for _ in 1..PAGES_MAX {
            let Some(next) = position(&page["next"]) else {
                let fields =
                    [("items", Ordered::List(items)), ("next", Ordered::Plain(Value::Null))];
                return Ok(Ordered::Object(
                    fields.map(|(name, value)| (name.to_owned(), value)).into(),
                ));
            };
            page = self.query(path, &[("after", next)]).await?;
            items.extend_from_slice(super::connection::items(&page));
        }
        bail!("the list has more than {PAGES_MAX} pages")
    }

    /// Sends a JSON body, if given on condition that the version is still this one.
    pub(super) async fn tell(
        &self,
        method: Method,
        path: &[&str],
        body: &Value,
        version: Option<u64>,
    ) -> anyhow::Result<Ordered> {
        self.send(method, path, &[], Some(body), version).await
    }

    /// Sends a request without a body on condition that the version is still this one.
    pub(super) async fn ask_if(
        &self,
        method: Method,
        path: &[&str],
        version: Option<u64>,
    ) -> anyhow::Result<Ordered> {
        self.send(method, path, &[], None, version).await
    }

    async fn send(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, String)],
        body: Option<&Value>,
        version: Option<u64>,
    ) -> anyhow::Result<Ordered> {
        let url = self.url(path, query)?;
        let request = self.request(method, &url, body, version)?;
        match tokio::time::timeout(REQUEST_TIME, Box::pin(exchange(&url, request))).await {
            Ok(answer) => answer,
            Err(_) => bail!("no answer from {} within {REQUEST_TIME:?}", self.base),
        }
    }

    fn url(&self, path: &[&str], query: &[(&str, String)]) -> anyhow::Result<Url> {
        let mut url = self.base.clone();
        // The parser drops segments of dots, which would turn the path into another one.
        if path.iter().any(|segment| segment.is_empty() || *segment == "." || *segment == "..") {
            return Err(Usage("an identifier must not be empty or dots".to_owned()).into());
        }
        url.path_segments_mut()
            .map_err(|()| anyhow!("{} has no path", self.base))?
            .pop_if_empty()
            .extend(path);
        url.set_query(None);
        url.set_fragment(None);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(url)
    }

    fn request(
        &self,
        method: Method,
        url: &Url,
        body: Option<&Value>,
        version: Option<u64>,
    ) -> anyhow::Result<Request<Full<Bytes>>> {
        let bad_token = || Usage("the token has characters that no token has".to_owned());
        let mut token = HeaderValue::from_str(&format!("Bearer {}", self.token.reveal()))
            .map_err(|_| bad_token())?;
        token.set_sensitive(true);
        let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{query}", url.path()))
            .header(HOST, authority(url)?)
            .header(USER_AGENT, concat!("rollcall/", env!("CARGO_PKG_VERSION")))
            .header(AUTHORIZATION, token);
        if let Some(version) = version {
            request = request.header(IF_MATCH, format!("\"{version}\""));
        }
        let bytes = match body {
            Some(body) => {
                request = request.header(CONTENT_TYPE, "application/json");
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        Ok(request.body(Full::new(bytes))?)
    }
}

/// A position in a list, as text or number; none at its end.
fn position(next: &Ordered) -> Option<String> {
    match next {
        Ordered::Plain(Value::String(text)) => Some(text.clone()),
        Ordered::Plain(Value::Number(number)) => Some(number.to_string()),
        Ordered::Plain(_) | Ordered::List(_) | Ordered::Object(_) => None,
    }
}

fn authority(url: &Url) -> anyhow::Result<String> {
    let host = url.host_str().context("the URL has no host")?;
    Ok(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

async fn exchange(url: &Url, request: Request<Full<Bytes>>) -> anyhow::Result<Ordered> {
    let stream = connect(url).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let answer = async {
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let bytes = body.map_err(|error| anyhow!("the answer broke off: {error}"))?.to_bytes();
        judge(url, status, &bytes)
    };
    let answer = answer.await;
    connection.abort();
    answer
}

async fn connect(url: &Url) -> anyhow::Result<Box<dyn Stream>> {
    let host = url.host().context("the URL has no host")?;
    let port = url.port_or_known_default().context("the URL has no port")?;
    let stream = match &host {
        Host::Domain(name) => TcpStream::connect((*name, port)).await,
        Host::Ipv4(ip) => TcpStream::connect((*ip, port)).await,
        Host::Ipv6(ip) => TcpStream::connect((*ip, port)).await,
    };
    let stream = stream.with_context(|| {
        format!(
            "cannot reach the server; is `rollcall serve` or `rollcall dev` running at {host}:{port}?"
        )
    })?;
    if url.scheme() == "http" {
        return Ok(Box::new(stream));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_platform_verifier()?
        .with_no_client_auth();
    let name = match host {
        Host::Domain(name) => rustls::pki_types::ServerName::try_from(name.to_owned())?,
        Host::Ipv4(ip) => std::net::IpAddr::from(ip).into(),
        Host::Ipv6(ip) => std::net::IpAddr::from(ip).into(),
    };
    let stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream).await;
    Ok(Box::new(stream.with_context(|| format!("no TLS connection to {url}"))?))
}

fn judge(url: &Url, status: StatusCode, bytes: &[u8]) -> anyhow::Result<Ordered> {
    let foreign = || {
        format!(
            "{} answered HTTP {status} but is no Rollcall server",
            url.origin().ascii_serialization()
        )
    };
    let answer: Envelope = serde_json::from_slice(bytes).with_context(foreign)?;
    if status.is_success() {
        return answer.result.with_context(foreign);
    }
    let code = answer.code.with_context(foreign)?;
    let message = answer.message.unwrap_or_default();
    Err(Refused { status, code, message }.into())
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use url::Url;

    use super::{Client, judge};
    use crate::domain::tenancy::Token;

    fn client(base: &str) -> anyhow::Result<Client> {
        Client::new(base, Token::from_text("t"))
    }

    #[test]
    fn identifiers_stay_one_segment_of_the_path() {
        let client = client("https://h.example/base/?x#y").unwrap();

        let url = client.url(&["v1", "a/b?c"], &[("fullName", "a&b c".to_owned())]).unwrap();

        assert_eq!(url.as_str(), "https://h.example/base/v1/a%2Fb%3Fc?fullName=a%26b+c");
        assert!(client.url(&["v1", ".."], &[]).is_err());
        assert!(client.url(&["v1", ""], &[]).is_err());
    }

    #[test]
    fn only_web_urls_are_servers() {
        for base in ["", "h.example", "ftp://h.example", "localhost:8080", "http://"] {
            assert!(client(base).is_err(), "{base}");
        }
    }

    #[test]
    fn refusals_say_what_to_do_and_strange_answers_are_named() {
        let url = Url::parse("http://h.example/v1").unwrap();
        let message = |status: u16, body: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            format!("{:#}", judge(&url, status, body.as_bytes()).unwrap_err())
        };

        assert_eq!(
            message(401, r#"{"code":6452000,"message":"Invalid token"}"#),
            "the server refused: Invalid token (HTTP 401 Unauthorized, code 6452000); \
             check --token or ROLLCALL_TOKEN"
        );
        assert!(message(200, "{}").contains("http://h.example answered HTTP 200 OK but is no"));
        assert!(message(502, "<html>").contains("is no Rollcall server"));
    }
}
