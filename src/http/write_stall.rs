//! The end of waiting for a caller that takes no bytes.
//!
//! Stands right at the socket, below TLS: there each byte that the caller takes is seen. Above TLS a flush or the
//! farewell of a connection would wait for records that nobody takes, and no timer would run.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::limits::WRITE_STALL_TIMEOUT;

/// A socket whose writes fail when no byte was taken for [`WRITE_STALL_TIMEOUT`].
#[derive(Debug)]
pub struct WriteStall<S> {
    socket: S,
    timeout: Duration,
    wait: Option<Pin<Box<Sleep>>>,
}

impl<S> WriteStall<S> {
    /// Watches this socket.
    #[must_use]
    pub fn new(socket: S) -> Self {
        Self { socket, timeout: WRITE_STALL_TIMEOUT, wait: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteStall<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteStall<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = Pin::new(&mut self.socket).poll_write(context, bytes) {
            self.wait = None;
            return Poll::Ready(written);
        }
        let timeout = self.timeout;
        let wait = self.wait.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(wait.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
#[path = "write_stall_tests.rs"]
mod tests;
