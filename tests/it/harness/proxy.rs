//! A way to PostgreSQL that a test can cut, freeze and heal: a TCP proxy in the process of the test.
//!
//! A cut is what both sides notice. A freeze is what nobody notices: the network swallows everything and closes nothing.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passes {
    /// Everything.
    Both,
    /// What clients say; answers wait.
    Requests,
    /// Nothing; everything waits.
    Nothing,
    /// Nothing, and new connections are closed at once.
    Refused,
}

#[derive(Clone, Copy, Debug)]
struct State {
    passes: Passes,
    /// How often everything was cut; a connection from before ends, even if all is well again when it looks.
    cuts: u64,
}

/// A proxy that passes everything until it is told otherwise. It goes away with the value, and its connections with it.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// A way to this address, on a free port of 127.0.0.1.
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, seen) = watch::channel(State { passes: Passes::Both, cuts: 0 });
        let accepting = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(carry(client, target, seen.clone()));
            }
        });
        Self { address, state, accepting }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes every connection, and each new one at once.
    pub(crate) fn cut(&self) {
        self.state.send_modify(|state| {
            *state = State { passes: Passes::Refused, cuts: state.cuts + 1 };
        });
    }

    /// Forwards nothing and closes nothing. What is sent meanwhile arrives when it is healed, as TCP would have it.
    pub(crate) fn freeze(&self) {
        self.set(Passes::Nothing);
    }

    /// The same for answers only: the server does what it is asked, and the client does not learn of it.
    pub(crate) fn freeze_answers(&self) {
        self.set(Passes::Requests);
    }

    /// Everything passes again.
    pub(crate) fn heal(&self) {
        self.set(Passes::Both);
    }

    fn set(&self, passes: Passes) {
        self.state.send_modify(|state| state.passes = passes);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// One connection, until one side ends it or it is cut.
async fn carry(client: TcpStream, target: SocketAddr, state: watch::Receiver<State>) {
    let State { passes, cuts } = *state.borrow();
    if passes == Passes::Refused {
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else { return };
    // Both ends wait for each other's answers.
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut watched = state.clone();
    let mut requests = state.clone();
    let mut answers = state;
    let is_request = |passes| matches!(passes, Passes::Both | Passes::Requests);
    let is_answer = |passes| passes == Passes::Both;
    tokio::select! {
        // Cut, or the proxy is gone.
        _ = watched.wait_for(|state| state.cuts != cuts) => {}
        () = pump(from_client, to_server, &mut requests, is_request) => {}
        () = pump(from_server, to_client, &mut answers, is_answer) => {}
    }
}

/// Carries one direction while it may pass, and its end too.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    state: &mut watch::Receiver<State>,
    may_pass: impl Fn(Passes) -> bool,
) {
    let mut space = vec![0; 64 << 10];
    loop {
        // What was read while nothing passes waits here, also an end; the rest waits in the sockets.
        let count = from.read(&mut space).await.unwrap_or(0);
        if state.wait_for(|state| may_pass(state.passes)).await.is_err() || count == 0 {
            return;
        }
        if to.write_all(&space[..count]).await.is_err() {
            return;
        }
    }
}
