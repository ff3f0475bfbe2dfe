//! Who waits for events, and how a commit wakes them: one level for each service that somebody watches.
//!
//! The commit listener only takes a lock that is never held for longer than a look-up, and raises levels. It knows
//! nothing of requests; each of them compares the level with what it has seen.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::domain::id::ServiceId;
use crate::store::Commit;

/// Requests that wait at a time, over all services. Each holds a connection, and this is a quarter of those that the
/// listener allows: more could keep other requests out, fewer would turn readers away earlier.
pub(super) const WAITING_MAX: usize = 1024;

/// Requests of one service that wait at a time: a quarter, so that no service takes all places.
pub(super) const WAITING_OF_SERVICE_MAX: usize = 256;

/// What is known of the log of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Level {
    /// The highest number that was committed since somebody began to watch.
    head: u64,
    /// Counts what makes every request read again: the service was hidden, or the store opened again.
    again: u64,
}

#[derive(Debug)]
struct Service {
    level: watch::Sender<Level>,
    watches: usize,
    places: usize,
}

#[derive(Debug, Default)]
struct Inner {
    services: HashMap<ServiceId, Service>,
    places: usize,
}

/// The watched services.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<Inner>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears of a commit, on the thread of whoever writes or hears of other nodes.
    pub(super) fn hear(&self, commit: &Commit) {
        let grown = !commit.events.is_empty() || !commit.heads.is_empty();
        if !grown && commit.hidden.is_empty() && !commit.reopened {
            return;
        }
        let inner = self.lock();
        if inner.services.is_empty() {
            return;
        }
        let events = commit.events.iter().map(|event| (event.service, event.sequence));
        for (service, head) in events.chain(commit.heads.iter().copied()) {
            if let Some(service) = inner.services.get(&service) {
                service.level.send_modify(|level| level.head = level.head.max(head));
            }
        }
        let hidden = commit.hidden.iter().filter_map(|service| inner.services.get(service));
        let all = inner.services.values().filter(|_| commit.reopened);
        for service in hidden.chain(all) {
            service.level.send_modify(|level| {
                level.again += 1;
                if commit.went_back {
                    level.head = 0;
                }
            });
        }
    }

    /// Begins to watch a service.
    pub(super) fn watch(self: &Arc<Self>, service: ServiceId) -> Watch {
        let mut inner = self.lock();
        let watched = inner.services.entry(service).or_insert_with(|| Service {
            level: watch::Sender::default(),
            watches: 0,
            places: 0,
        });
        watched.watches += 1;
        let level = watched.level.subscribe();
        drop(inner);
        Watch { waiting: Arc::clone(self), service, level, placed: false }
    }

    /// Requests that wait now.
    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        self.lock().places
    }

    /// Services that are watched now.
    #[cfg(test)]
    pub(super) fn services(&self) -> usize {
        self.lock().services.len()
    }
}

/// One request that watches a service; it ends with the value.
#[derive(Debug)]
pub(super) struct Watch {
    waiting: Arc<Waiting>,
    service: ServiceId,
    level: watch::Receiver<Level>,
    placed: bool,
}

impl Watch {
    /// The level now.
    pub(super) fn look(&mut self) -> Level {
        *self.level.borrow_and_update()
    }

    /// Takes a place among those that wait, unless it has one; `false` when there is none.
    pub(super) fn take_place(&mut self) -> bool {
        if self.placed {
            return true;
        }
        let mut inner = self.waiting.lock();
        let room = inner.places < WAITING_MAX;
        let Some(service) = inner.services.get_mut(&self.service) else {
            return false;
        };
        if !room || service.places >= WAITING_OF_SERVICE_MAX {
            return false;
        }
        service.places += 1;
        inner.places += 1;
        drop(inner);
        self.placed = true;
        tracing::debug!(service.id = %self.service, "feed request waits");
        true
    }

    /// Waits until there is an event after this number that was not committed when the level was seen, or another
    /// reason to read again.
    pub(super) async fn changed(&mut self, seen: Level, after: u64) {
        let after = after.max(seen.head);
        let reached = |level: &Level| level.head > after || level.again != seen.again;
        if self.level.wait_for(reached).await.is_err() {
            // The sender lives as long as this watch is counted.
            std::future::pending().await
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut inner = self.waiting.lock();
        if self.placed {
            inner.places -= 1;
        }
        if let Entry::Occupied(mut service) = inner.services.entry(self.service) {
            service.get_mut().places -= usize::from(self.placed);
            service.get_mut().watches -= 1;
            if service.get().watches == 0 {
                service.remove();
            }
        }
    }
}
