//! Which shards this node has, and until when: read by its readers and its writer, changed only by `nodes.rs`.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::domain::shard::Shard;

/// The shards of this node with their epochs.
#[derive(Debug, Default)]
pub(super) struct Ownership(Mutex<BTreeMap<Shard, u64>>);

impl Ownership {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Shard, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The epoch under which this node has a shard; `None` when it has not.
    pub(super) fn epoch(&self, shard: Shard) -> Option<u64> {
        self.lock().get(&shard).copied()
    }

    /// All shards of this node with their epochs.
    pub(super) fn all(&self) -> BTreeMap<Shard, u64> {
        self.lock().clone()
    }

    /// Has a shard from now on; only after its epoch was committed.
    pub(super) fn gain(&self, shard: Shard, epoch: u64) {
        self.lock().insert(shard, epoch);
    }

    /// Has it no more.
    pub(super) fn lose(&self, shard: Shard) {
        self.lock().remove(&shard);
    }
}
