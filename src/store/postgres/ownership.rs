//! What this node goes by: which shards it has, until when, and in which era of the database. One place for all of its
//! threads; shards are gained only by `nodes.rs`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use uuid::Uuid;

use crate::domain::lease::Lease;
use crate::domain::shard::Shard;
use crate::store::queue::Queue;
use crate::store::{Commit, Error};

/// The shards of this node with their epochs, its lease, and the era that it is in.
#[derive(Debug)]
pub(super) struct Ownership {
    lease: Lease,
    shards: Mutex<BTreeMap<Shard, u64>>,
    /// The era, and when it was entered.
    era: Mutex<Option<(Uuid, Instant)>>,
    /// Held while an era is entered, and while somebody relies on it.
    entering: Mutex<()>,
    /// Whether the database was brought forward by a newer program.
    outdated: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ownership {
    /// Nothing, under a lease that ends with the era.
    pub(super) const fn new(lease: Lease) -> Self {
        Self {
            lease,
            shards: Mutex::new(BTreeMap::new()),
            era: Mutex::new(None),
            entering: Mutex::new(()),
            outdated: AtomicBool::new(false),
        }
    }

    /// The lease under which it has them.
    pub(super) const fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The epoch under which this node has a shard; `None` when it has not.
    pub(super) fn epoch(&self, shard: Shard) -> Option<u64> {
        lock(&self.shards).get(&shard).copied()
    }

    /// All shards of this node with their epochs.
    pub(super) fn all(&self) -> BTreeMap<Shard, u64> {
        lock(&self.shards).clone()
    }

    /// Has a shard from now on; only after its epoch was committed.
    pub(super) fn gain(&self, shard: Shard, epoch: u64) {
        lock(&self.shards).insert(shard, epoch);
    }

    /// Has it no more.
    pub(super) fn lose(&self, shard: Shard) {
        lock(&self.shards).remove(&shard);
    }

    /// The era that this node is in; `None` before the first.
    pub(super) fn era(&self) -> Option<Uuid> {
        lock(&self.era).map(|(era, _)| era)
    }

    /// Whether a connection that was made at this time may be from before the era.
    pub(super) fn is_from_before(&self, made: Instant) -> bool {
        lock(&self.era).is_some_and(|(_, entered)| made < entered)
    }

    /// Enters the era that a connection was found to be in. When this node was in another one, all that it had ends there:
    /// the lease, its shards, and what its listeners hold in memory. They have heard of it before anybody goes on. The
    /// listeners must not ask for what this and [`Self::within`] do.
    pub(super) fn enter(&self, era: Uuid, queue: &Queue) {
        let _entering = lock(&self.entering);
        let before = self.era();
        if before == Some(era) {
            return;
        }
        *lock(&self.era) = Some((era, Instant::now()));
        if before.is_none() {
            return;
        }
        self.lease.end();
        let lost: Vec<Shard> = std::mem::take(&mut *lock(&self.shards)).into_keys().collect();
        tracing::warn!(
            shards = lost.len(),
            "PostgreSQL crashed or another server took over: what was committed last may be gone, everything is read anew"
        );
        queue.tell(&Commit {
            reopened: true,
            went_back: true,
            tenancy: true,
            lost,
            ..Commit::default()
        });
    }

    /// Does something that holds only in this era, if this node is in it; nobody enters another one meanwhile.
    ///
    /// # Errors
    ///
    /// It is in another one. Nothing was done.
    pub(super) fn within<T>(&self, era: Uuid, work: impl FnOnce() -> T) -> Result<T, Error> {
        let _entering = lock(&self.entering);
        if self.era() == Some(era) {
            return Ok(work());
        }
        let text = "PostgreSQL crashed or another server took over";
        Err(Error::Unavailable(text.to_owned()))
    }

    /// Notes whether the database is of a newer program.
    pub(super) fn set_outdated(&self, outdated: bool) {
        self.outdated.store(outdated, Ordering::SeqCst);
    }

    /// Whether the database is of a newer program: then this node takes no part any more.
    pub(super) fn is_outdated(&self) -> bool {
        self.outdated.load(Ordering::SeqCst)
    }
}

impl Default for Ownership {
    fn default() -> Self {
        Self::new(Lease::not_yet())
    }
}

#[cfg(test)]
#[path = "ownership_tests.rs"]
mod tests;
