//! One subscription's outgoing side: where it calls, prepared once, and the connections it keeps.
//!
//! Made by [`super::Sender::line`], used by its attempts. It decides nothing; what is constant for all requests of
//! a subscription is built here so that an attempt only copies references.

use std::fmt;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version};
use http_body_util::Full;
use rustls::pki_types::ServerName;

use super::pool::Pool;
use crate::delivery::target_guard::{Target, TargetHost};

/// One subscription's outgoing side: its receiver and the connections to it.
///
/// Shared by all attempts of the subscription. Without connections it is a few hundred bytes, no timer, no task.
pub struct Line {
    pub(super) target: Target,
    pub(super) server_name: Option<ServerName<'static>>,
    /// Path and query, for HTTP/1.1.
    origin: Uri,
    /// Scheme, authority, path and query, for HTTP/2.
    absolute: Uri,
    host: HeaderValue,
    pub(super) pool: Pool,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Path and query may carry the receiver's secrets.
        f.debug_struct("Line").field("authority", &self.target.authority).finish_non_exhaustive()
    }
}

impl Line {
    /// The host that is called, by which challenges are limited.
    #[must_use]
    pub fn host(&self) -> &TargetHost {
        &self.target.host
    }

    /// `None` when the HTTP or TLS library cannot express the target.
    pub(super) fn new(target: Target) -> Option<Self> {
        let server_name = match (&target.host, target.tls) {
            (_, false) => None,
            (TargetHost::Name(name), true) => Some(ServerName::try_from(name.clone()).ok()?),
            (TargetHost::Address(address), true) => Some(ServerName::from(*address)),
        };
        let absolute = Uri::builder()
            .scheme(if target.tls { "https" } else { "http" })
            .authority(target.authority.as_str())
            .path_and_query(target.path_and_query.as_str())
            .build()
            .ok()?;
        Some(Self {
            server_name,
            origin: Uri::try_from(target.path_and_query.as_str()).ok()?,
            absolute,
            host: HeaderValue::from_str(&target.authority).ok()?,
            pool: Pool::new(),
            target,
        })
    }

    /// The request in the form of the connection's protocol.
    pub(super) fn request(
        &self,
        http2: bool,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        if http2 {
            *request.version_mut() = Version::HTTP_2;
            *request.uri_mut() = self.absolute.clone();
        } else {
            *request.uri_mut() = self.origin.clone();
            headers.insert(HOST, self.host.clone());
        }
        *request.headers_mut() = headers;
        request
    }
}
