//! Places for connections: so many in all, so many for each address, and who leaves when all are taken.
//!
//! `listener.rs` takes a place before it accepts and gives it to the connection, whatever that does: also a handshake
//! that hangs holds one. What is kept of an address goes with its last connection, so it is never more than there are
//! connections. When all places are taken, connections that wait for their next request make room, the longest idle
//! first; whoever is in a request has limits of time of its own.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connection::ConnectionProgress;
use super::limits::CONNECTIONS_MAX;
use crate::domain::network::network_of;

/// Wait for a place before idle connections are asked to leave, again and again. Longer keeps callers waiting, shorter
/// looks at all connections more often while none can leave.
const CROWDED_WAIT: Duration = Duration::from_millis(100);
/// Least time for which a connection must have been idle to be asked to leave. Shorter meets callers that are just about
/// to send, longer lets those in front hold the places.
const IDLE_MIN: Duration = Duration::from_secs(1);
/// Connections that are asked to leave at a time. More closes connections that would be used again, fewer admits
/// callers more slowly.
const LEAVING_MAX: usize = 64;
/// Least time between two lines of the log about refused connections.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The places of one listener.
#[derive(Debug)]
pub struct Places {
    all: Arc<Semaphore>,
    /// For each address; 0 is off.
    per_address: u32,
    /// Their connections are not counted: everybody comes through them.
    proxies: Vec<IpNet>,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    by_address: HashMap<IpAddr, u32>,
    seats: HashMap<u64, Seat>,
    next: u64,
    refused: u64,
    logged: Option<Instant>,
}

/// One connection, seen from the listener.
#[derive(Debug)]
struct Seat {
    leave: CancellationToken,
    /// Once its requests are read.
    progress: Option<ConnectionProgress>,
}

/// The place of one connection, until it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    number: u64,
    /// `None` where it is not counted.
    address: Option<IpAddr>,
    leave: CancellationToken,
    _free: OwnedSemaphorePermit,
}

impl Places {
    /// All places, of which one address may take so many (0: as many as it likes), but for these proxies.
    #[must_use]
    pub fn new(per_address: u32, proxies: Vec<IpNet>) -> Self {
        Self::with_total(CONNECTIONS_MAX, per_address, proxies)
    }

    fn with_total(total: usize, per_address: u32, proxies: Vec<IpNet>) -> Self {
        let all = Arc::new(Semaphore::new(total));
        Self { all, per_address, proxies, taken: Mutex::default() }
    }

    /// Waits until there is a place, and asks idle connections to leave meanwhile.
    pub async fn wait(&self) -> OwnedSemaphorePermit {
        loop {
            let waiting = Arc::clone(&self.all).acquire_owned();
            match tokio::time::timeout(CROWDED_WAIT, waiting).await {
                Ok(Ok(free)) => return free,
                Err(_) => self.make_room(Instant::now()),
                // Nobody closes the semaphore.
                Ok(Err(_)) => std::future::pending().await,
            }
        }
    }

    /// The place of a connection from this address; it ends at `stop`, or when it is asked to leave.
    ///
    /// `None`, without any wait, when the address has as many connections as it may have.
    #[must_use]
    pub fn admit(
        self: &Arc<Self>,
        free: OwnedSemaphorePermit,
        peer: IpAddr,
        stop: &CancellationToken,
    ) -> Option<Place> {
        let counted = self.per_address > 0 && !self.proxies.iter().any(|net| net.contains(&peer));
        let address = counted.then(|| network_of(peer));
        let mut taken = self.lock();
        if let Some(address) = address {
            let count = taken.by_address.entry(address).or_default();
            if *count >= self.per_address {
                taken.note_refused(Instant::now());
                return None;
            }
            *count += 1;
        }
        let number = taken.next;
        taken.next += 1;
        let leave = stop.child_token();
        taken.seats.insert(number, Seat { leave: leave.clone(), progress: None });
        Some(Place { places: Arc::clone(self), number, address, leave, _free: free })
    }

    /// Asks those to leave that have waited longest for their next request.
    fn make_room(&self, now: Instant) {
        let taken = self.lock();
        let mut idle: Vec<(Instant, &CancellationToken)> = taken
            .seats
            .values()
            .filter(|seat| !seat.leave.is_cancelled())
            .filter_map(|seat| Some((seat.progress.as_ref()?.idle_since()?, &seat.leave)))
            .filter(|(since, _)| now.saturating_duration_since(*since) >= IDLE_MIN)
            .collect();
        idle.sort_unstable_by_key(|(since, _)| *since);
        idle.iter().take(LEAVING_MAX).for_each(|(_, leave)| leave.cancel());
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// A line now and then, without the address: whoever floods us must not flood the log.
    fn note_refused(&mut self, now: Instant) {
        self.refused += 1;
        if self.logged.is_some_and(|at| now.saturating_duration_since(at) < LOG_INTERVAL) {
            return;
        }
        tracing::warn!(
            count = self.refused,
            "connections refused, an address has as many as it may have"
        );
        self.refused = 0;
        self.logged = Some(now);
    }
}

impl Place {
    /// Cancelled when the connection must end.
    #[must_use]
    pub fn leave(&self) -> CancellationToken {
        self.leave.clone()
    }

    /// From now on the connection can be idle.
    pub fn watch(&self, progress: ConnectionProgress) {
        if let Some(seat) = self.places.lock().seats.get_mut(&self.number) {
            seat.progress = Some(progress);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.seats.remove(&self.number);
        let Some(address) = self.address else { return };
        if let Some(count) = taken.by_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                taken.by_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
#[path = "places_tests.rs"]
mod tests;
