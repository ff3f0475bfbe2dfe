//! Which node sent a notification, and when it came.
//!
//! Nodes on one machine look alike to a receiver. The kernel knows whose socket is at the other end of a connection: that
//! is asked once for each connection, while its sender waits for an answer.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Instant;

use super::receiver::Seen;

/// One notification that came.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) at: Instant,
    /// Which subscription.
    pub(crate) to: usize,
    /// The name of the node; `None` when it had closed the connection before it could be asked for.
    pub(crate) from: Option<&'static str>,
    pub(crate) sequence: u64,
}

/// The processes of all nodes, and everything that they sent.
#[derive(Debug, Default)]
pub(crate) struct Senders {
    processes: Mutex<Vec<(u32, &'static str)>>,
    connections: Mutex<HashMap<(usize, usize), Option<&'static str>>>,
    arrivals: Mutex<Vec<Arrival>>,
}

impl Senders {
    /// A process of this node runs from now on; an earlier one of the same name does not any more.
    pub(crate) fn runs(&self, process: u32, name: &'static str) {
        let mut processes = self.processes.lock().unwrap();
        processes.retain(|(_, other)| *other != name);
        processes.push((process, name));
    }

    /// Notes a notification to this subscription, before it is answered; its receiver listens on this port.
    pub(crate) fn note(&self, to: usize, port: u16, seen: &Seen) {
        let connection = (to, seen.connection);
        let known = self.connections.lock().unwrap().get(&connection).copied();
        let from = known.unwrap_or_else(|| {
            let found = self.find(seen.peer, port);
            self.connections.lock().unwrap().insert(connection, found);
            found
        });
        let arrival = Arrival { at: seen.at, to, from, sequence: seen.sequence() };
        self.arrivals.lock().unwrap().push(arrival);
    }

    /// Everything that came so far.
    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.arrivals.lock().unwrap().clone()
    }

    /// When the first notification to a subscription came after this moment, from somebody else than this node.
    pub(crate) fn first_after(&self, since: Instant, to: usize, not: &str) -> Option<Instant> {
        let arrivals = self.arrivals.lock().unwrap();
        let by_others = |it: &&Arrival| it.at > since && it.to == to;
        let mut others = arrivals.iter().filter(by_others);
        others.find(|it| it.from.is_some_and(|from| from != not)).map(|it| it.at)
    }

    fn find(&self, address: SocketAddr, port: u16) -> Option<&'static str> {
        let socket = format!("socket:[{}]", socket_between(address, port)?);
        let processes = self.processes.lock().unwrap().clone();
        processes.into_iter().find(|(id, _)| has_open(*id, &socket)).map(|(_, name)| name)
    }
}

/// The number of the socket that has this local address of 127.0.0.1 and is connected to this port of it. The local one
/// alone is not enough: it may be that of several connections.
fn socket_between(address: SocketAddr, port: u16) -> Option<String> {
    // The kernel shows an address as the number that its bytes are in memory.
    let end = |port: u16| format!("0100007F:{port:04X}");
    let (local, remote) = (end(address.port()), end(port));
    let sockets = fs::read_to_string("/proc/net/tcp").ok()?;
    sockets.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let found =
            fields.get(1) == Some(&local.as_str()) && fields.get(2) == Some(&remote.as_str());
        found.then(|| fields.get(9).map(|inode| (*inode).to_owned()))?
    })
}

fn has_open(process: u32, file: &str) -> bool {
    let Ok(open) = fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    open.filter_map(Result::ok)
        .any(|entry| fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == file))
}
