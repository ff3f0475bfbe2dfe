//! Who is there, who is dead, and what this node should have: decisions from what was seen, and the moments at which.
//!
//! No clock of another machine is asked. A node counts its row's `renewals` up; whoever sees the same number for a whole
//! lease on its own clock knows that the lease of that node is over: it lasts from before the renewal was sent, and that
//! was before this node first saw the number. Pure: no I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use uuid::Uuid;

use crate::domain::clock::Moment;
use crate::domain::shard::{SHARDS, Shard};

/// How long a node may send after it began to renew. With the longest attempt (15 s) it stays below the 20 s within which
/// others take over. Longer takes over later, shorter gives up sending when the database is slow for a moment.
pub(super) const LEASE: Duration = Duration::from_secs(4);
/// Time between two renewals: three may fail.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a node must be seen unchanged before it is dead: a lease, and a tenth for clocks that do not run alike.
pub(super) const OBSERVATION: Duration = Duration::from_millis(4_400);

/// What the tables said at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// The nodes with their renewals.
    pub(super) nodes: BTreeMap<Uuid, i64>,
    /// Who has each shard, and its epoch.
    pub(super) shards: BTreeMap<Shard, (Option<Uuid>, u64)>,
}

impl Seen {
    /// The shards of this node with their epochs.
    pub(super) fn shards_of(&self, node: Uuid) -> BTreeMap<Shard, u64> {
        let of = |(shard, (holder, epoch)): (&Shard, &(Option<Uuid>, u64))| {
            (*holder == Some(node)).then_some((*shard, *epoch))
        };
        self.shards.iter().filter_map(of).collect()
    }

    /// The shards that nobody has, or somebody whose row is gone, with their epochs.
    pub(super) fn free(&self) -> BTreeMap<Shard, u64> {
        let free = |(shard, (holder, epoch)): (&Shard, &(Option<Uuid>, u64))| {
            let held = holder.is_some_and(|it| self.nodes.contains_key(&it));
            (!held).then_some((*shard, *epoch))
        };
        self.shards.iter().filter_map(free).collect()
    }

    /// How many shards this node should have: all nodes have the same number, or one more.
    pub(super) fn quota_of(&self, node: Uuid) -> usize {
        let Some(rank) = self.nodes.keys().position(|other| *other == node) else { return 0 };
        let (shards, nodes) = (usize::from(SHARDS), self.nodes.len());
        shards / nodes + usize::from(rank < shards % nodes)
    }
}

/// A node whose lease is over, with the renewals at which it stood still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dead {
    pub(super) node: Uuid,
    pub(super) renewals: i64,
}

/// Since when each other node has been seen with the same number of renewals.
#[derive(Debug, Default)]
pub(super) struct Observations(BTreeMap<Uuid, (i64, Moment)>);

impl Observations {
    /// Takes in what was asked for at `asked` and known at `known`. Gives who is dead.
    pub(super) fn observe(
        &mut self,
        me: Uuid,
        seen: &Seen,
        asked: Moment,
        known: Moment,
    ) -> Vec<Dead> {
        self.0.retain(|node, _| seen.nodes.contains_key(node));
        let mut dead = Vec::new();
        for (&node, &renewals) in seen.nodes.iter().filter(|(node, _)| **node != me) {
            match self.0.get(&node) {
                Some((before, since)) if *before == renewals => {
                    // From when it was known to when it was asked again: the shortest that it can have been.
                    if asked.since(*since) >= OBSERVATION {
                        dead.push(Dead { node, renewals });
                    }
                }
                _ => {
                    self.0.insert(node, (renewals, known));
                }
            }
        }
        dead
    }
}

/// Whether this node may claim shards in an era that it knows since `since`: not while nodes of before may send. Their
/// leases were renewed before the era began, so they are over once it has been known for that long, by this node or by
/// whoever settled it.
pub(super) fn may_claim(settled: bool, since: Moment, now: Moment) -> bool {
    settled || now.since(since) >= OBSERVATION
}

/// How many free shards to claim, as far as there are any.
pub(super) fn to_claim(me: Uuid, seen: &Seen) -> usize {
    seen.quota_of(me).saturating_sub(seen.shards_of(me).len()).min(seen.free().len())
}

/// Which shards to hand over: the last ones beyond the quota. Those that are being handed over already count as gone.
pub(super) fn to_release(me: Uuid, seen: &Seen, leaving: &BTreeSet<Shard>) -> Vec<Shard> {
    let staying: Vec<Shard> =
        seen.shards_of(me).into_keys().filter(|shard| !leaving.contains(shard)).collect();
    staying.into_iter().skip(seen.quota_of(me)).collect()
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
