//! The accept loop: connections in, requests to the surface, and an orderly end.
//!
//! `app.rs` binds the socket and hands it in. The number of connections is limited in all and for each address. At the
//! limit of all the loop waits, the system's own queue of connections fills, and idle connections leave; at that of an
//! address its next connection is closed at once. A TLS handshake belongs to its connection and never holds up the loop.

use std::convert::Infallible;
use std::future::Future;
use std::io::{self, Write};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ::http::header::{CONNECTION, TRANSFER_ENCODING};
use ::http::{HeaderValue, Request};
use axum::body::Body;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::Service;

use super::connection::{Arrival, Connection, ConnectionProgress};
use super::limits::{HEADER_BYTES_MAX, HEADERS_MAX, URI_BYTES_MAX, too_many_connections};
use super::places::{Place, Places};
use super::request_log::raw_refusal;
use super::tls::Tls;
use super::write_stall::WriteStall;

/// Wait after the system refused to give a connection, for example without a free descriptor: long enough not to
/// spin, short enough not to be noticed.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// Bytes hyper may hold of what it has not parsed: a longest line, the longest headers, and room for separators.
const BUFFER_BYTES_MAX: usize = URI_BYTES_MAX + HEADER_BYTES_MAX + 8 * 1024;

/// What answers requests, cloned for each connection.
pub trait Surface:
    Service<Request<Body>, Response = Response, Error = Infallible, Future: Send>
    + Clone
    + Send
    + 'static
{
}

impl<S> Surface for S where
    S: Service<Request<Body>, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static
{
}

/// Accepts connections until `stop`, then lets each finish the request it is in. With `tls` it speaks nothing else.
///
/// Returns when it accepts no more. The connections run on `tasks`; whoever awaits that awaits their end.
pub async fn serve<A: Surface>(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    places: Arc<Places>,
    surface: A,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    loop {
        let Some(free) = stop.run_until_cancelled(places.wait()).await else {
            return;
        };
        let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else {
            return;
        };
        match accepted {
            Ok((socket, peer)) => {
                // A socket that listens on IPv6 gives IPv4 addresses in their IPv6 form.
                let peer = peer.ip().to_canonical();
                match places.admit(free, peer, &stop) {
                    Some(place) => {
                        let (tls, surface) = (tls.clone(), surface.clone());
                        tasks.spawn(serve_connection(socket, peer, tls, surface, place));
                    }
                    None => refuse(socket, tls.is_some()),
                }
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(error = %error, "connection not accepted");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// Whether the error concerns only the connection that was next, which its caller gave up.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}

/// Closes a connection at once. Without TLS it is told why, as far as the system takes the bytes without a wait.
fn refuse(socket: TcpStream, encrypted: bool) {
    if let Ok(mut socket) = socket.into_std()
        && !encrypted
    {
        drop(socket.write(&raw_refusal(&too_many_connections())));
    }
}

async fn serve_connection<A: Surface>(
    socket: TcpStream,
    peer: IpAddr,
    tls: Option<Arc<Tls>>,
    surface: A,
    place: Place,
) {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(error = %error, "connection option not set");
    }
    let socket = WriteStall::new(socket);
    match tls {
        None => {
            let socket = Connection::new(socket);
            place.watch(socket.progress());
            serve_http(socket, peer, surface, place.leave()).await;
        }
        // In a box, so that a connection without TLS has no room for it.
        Some(tls) => Box::pin(serve_https(&tls, socket, peer, surface, &place)).await,
    }
}

async fn serve_https<A: Surface>(
    tls: &Tls,
    socket: WriteStall<TcpStream>,
    peer: IpAddr,
    surface: A,
    place: &Place,
) {
    match place.leave().run_until_cancelled(tls.accept(socket)).await {
        Some(Ok(socket)) => {
            let socket = Connection::new(socket);
            place.watch(socket.progress());
            serve_http(socket, peer, surface, place.leave()).await;
        }
        Some(Err(error)) => tracing::debug!(error = %error, "handshake failed"),
        None => {}
    }
}

/// Answers the requests of one connection until it ends.
pub(super) async fn serve_http<S, A>(
    socket: Connection<S>,
    peer: IpAddr,
    surface: A,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    A: Surface,
{
    let progress = socket.progress();
    let service =
        service_fn(move |request| answer(surface.clone(), peer, progress.clone(), request));
    let mut http = http1::Builder::new();
    http.max_buf_size(BUFFER_BYTES_MAX).max_headers(HEADERS_MAX).header_read_timeout(None);
    let mut connection = pin!(http.serve_connection(socket, service));
    let ended = match stop.run_until_cancelled(connection.as_mut()).await {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = %error, "connection ended");
    }
}

/// Hands one request to the surface.
fn answer<A: Surface>(
    mut surface: A,
    peer: IpAddr,
    progress: ConnectionProgress,
    mut request: Request<Incoming>,
) -> impl Future<Output = Result<Response, Infallible>> {
    let note = progress.begin_request(request.headers().contains_key(TRANSFER_ENCODING));
    request.extensions_mut().insert(Arrival { peer, note });
    let answer = surface.call(request.map(Body::new));
    async move {
        let mut response = answer.await;
        if progress.end_request()
            && let Ok(response) = &mut response
        {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
