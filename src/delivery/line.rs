//! One subscription's outgoing side: where it calls, prepared once, and the client that keeps its connections.
//!
//! Made by [`super::Sender::line`], used by its attempts. It decides nothing; what is constant for all requests of
//! a subscription is built here so that an attempt only copies references.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use http_body_util::Full;
use hyper_util::client::legacy::ResponseFuture;
use rustls::pki_types::ServerName;

use super::client::{Destination, LineClient, Slot};
use super::connector::Connector;
use crate::delivery::target_guard::{Target, TargetHost};
use crate::domain::lease::Lease;

/// One subscription's outgoing side: its receiver and the connections to it.
///
/// Shared by all attempts of the subscription. Without connections it is a few hundred bytes, no timer, no task.
pub struct Line {
    pub(super) target: Target,
    server_name: Option<ServerName<'static>>,
    /// Scheme, authority, path and query.
    uri: Uri,
    /// For http. With https the client adds it where the receiver agrees on HTTP/1.1; HTTP/2 has none.
    host: Option<HeaderValue>,
    /// Nothing is sent on it when this is over.
    lease: Lease,
    pub(super) slot: Arc<Slot>,
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
    pub(super) fn new(target: Target, lease: Lease) -> Option<Self> {
        let server_name = match (&target.host, target.tls) {
            (_, false) => None,
            (TargetHost::Name(name), true) => Some(ServerName::try_from(name.clone()).ok()?),
            (TargetHost::Address(address), true) => Some(ServerName::from(*address)),
        };
        let uri = Uri::builder()
            .scheme(if target.tls { "https" } else { "http" })
            .authority(target.authority.as_str())
            .path_and_query(target.path_and_query.as_str())
            .build()
            .ok()?;
        let host = HeaderValue::from_str(&target.authority).ok()?;
        let host = (!target.tls).then_some(host);
        Some(Self { server_name, uri, host, lease, slot: Arc::default(), target })
    }

    /// The request in the form that the client wants, whatever the protocol.
    pub(super) fn request(&self, mut headers: HeaderMap, body: Bytes) -> Request<Full<Bytes>> {
        if let Some(host) = &self.host {
            headers.insert(HOST, host.clone());
        }
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = headers;
        request
    }

    /// Starts a request on any connection to one of these addresses.
    pub(super) fn send(
        &self,
        connector: &Arc<Connector>,
        addresses: &Arc<[IpAddr]>,
        request: Request<Full<Bytes>>,
    ) -> ResponseFuture {
        self.slot.request(addresses, request, || self.client(connector, addresses))
    }

    /// A client without connections, that is not the line's.
    pub(super) fn client(
        &self,
        connector: &Arc<Connector>,
        addresses: &Arc<[IpAddr]>,
    ) -> LineClient {
        let destination = Destination {
            port: self.target.port,
            server_name: self.server_name.as_ref(),
            lease: &self.lease,
        };
        LineClient::new(connector, addresses, &destination, &self.slot)
    }
}
