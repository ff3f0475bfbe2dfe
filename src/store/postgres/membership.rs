//! What a node decides from what it sees in the tables of nodes and shards: who is dead, what it has, how many shards it
//! claims and which it gives away. Pure: moments come in, orders go out; `nodes.rs` carries them out.
//!
//! A node may do its work on a shard until its deadline: the moment before it sent its last renewal that went well, and
//! [`LEASE`]. Another one may take over when it has itself seen the same number of renewals for [`OBSERVATION`]: from
//! after the answer in which it saw the number first to before the question whose answer still had it. Both count by their
//! own clocks, which must only go at the same speed. So the deadline is over when the shard changes hands, whatever was
//! late: question, commit, answer, or the node itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use uuid::Uuid;

use crate::domain::clock::Moment;
use crate::domain::shard::{SHARDS, Shard};

/// How long a node may work after a renewal. Longer leaves the shards of a dead node alone for longer, shorter makes nodes
/// stop because the database or the network was slow for a moment.
pub(super) const LEASE: Duration = Duration::from_secs(4);
/// Time between two renewals: three may fail before the lease is over. More often costs the database a commit each.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a node must have been seen without a renewal before its shards are taken: the lease, and a tenth for clocks
/// that do not go at the same speed (quartz differs by less than a thousandth).
pub(super) const OBSERVATION: Duration = Duration::from_millis(4_400);

/// What the tables said in one transaction, in which this node was renewed.
#[derive(Clone, Debug, Default)]
pub(super) struct Picture {
    /// Every node with its renewals.
    pub(super) nodes: BTreeMap<Uuid, u64>,
    /// Every shard with its node and its epoch.
    pub(super) shards: BTreeMap<Shard, (Option<Uuid>, u64)>,
}

/// A node that may be taken over, if its renewals are still these; `None` when it has shards but no row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dead {
    pub(super) node: Uuid,
    pub(super) renewals: Option<u64>,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Orders {
    /// Shards that this node has no more, from now on.
    pub(super) lost: Vec<Shard>,
    /// Until when it may work.
    pub(super) deadline: Option<Moment>,
    /// Shards that it has from now on.
    pub(super) gained: Vec<(Shard, u64)>,
    /// Nodes to take over.
    pub(super) dead: Vec<Dead>,
    /// Free shards to claim at most.
    pub(super) claim: usize,
    /// Shards to be drained and given away, each with the number that names the drain.
    pub(super) drain: Vec<(Shard, u64)>,
}

/// One node, as far as it knows.
#[derive(Debug)]
pub(super) struct Member {
    node: Uuid,
    deadline: Moment,
    owned: BTreeMap<Shard, u64>,
    draining: BTreeMap<Shard, u64>,
    drains: u64,
    leaving: bool,
    /// The renewals of others as first seen, and when.
    seen: BTreeMap<Uuid, (Option<u64>, Moment)>,
}

impl Member {
    /// A node that has not been renewed yet.
    pub(super) const fn new(node: Uuid) -> Self {
        Self {
            node,
            deadline: Moment(i64::MIN),
            owned: BTreeMap::new(),
            draining: BTreeMap::new(),
            drains: 0,
            leaving: false,
            seen: BTreeMap::new(),
        }
    }

    pub(super) const fn node(&self) -> Uuid {
        self.node
    }

    pub(super) const fn deadline(&self) -> Moment {
        self.deadline
    }

    pub(super) fn owns_any(&self) -> bool {
        !self.owned.is_empty()
    }

    /// Claims and takes nothing any more, and gives everything away.
    pub(super) fn leave(&mut self) -> Vec<(Shard, u64)> {
        self.leaving = true;
        let all: Vec<Shard> = self.owned.keys().copied().collect();
        self.begin_drains(all)
    }

    /// Its row is gone: it goes on as another node, which has nothing.
    pub(super) fn begin_anew(&mut self, node: Uuid) -> Vec<Shard> {
        let lost = self.lose_all();
        self.node = node;
        self.deadline = Moment(i64::MIN);
        lost
    }

    /// Looks whether the deadline has passed; gives what is lost by that.
    pub(super) fn lapse(&mut self, now: Moment) -> Vec<Shard> {
        if now < self.deadline { Vec::new() } else { self.lose_all() }
    }

    fn lose_all(&mut self) -> Vec<Shard> {
        self.draining.clear();
        std::mem::take(&mut self.owned).into_keys().collect()
    }

    /// A renewal went well that was sent after `asked` and whose answer was there before `answered`.
    pub(super) fn renewed(&mut self, asked: Moment, answered: Moment, picture: &Picture) -> Orders {
        let mut orders = Orders { lost: self.lapse(answered), ..Orders::default() };
        let mine = |shard: &Shard| {
            let (node, epoch) = picture.shards.get(shard)?;
            (*node == Some(self.node)).then_some(*epoch)
        };
        let gone: Vec<Shard> = self
            .owned
            .iter()
            .filter(|(shard, epoch)| mine(shard) != Some(**epoch))
            .map(|(shard, _)| *shard)
            .collect();
        let until = asked.plus(LEASE);
        // An answer that came too late gives nothing.
        let holds = answered < until;
        let held: Vec<(Shard, u64)> = picture
            .shards
            .keys()
            .filter_map(|shard| mine(shard).map(|epoch| (*shard, epoch)))
            .collect();
        for shard in gone {
            self.owned.remove(&shard);
            self.draining.remove(&shard);
            orders.lost.push(shard);
        }
        if !holds {
            return orders;
        }
        self.deadline = until;
        orders.deadline = Some(until);
        orders.gained =
            held.into_iter().filter(|(shard, _)| !self.owned.contains_key(shard)).collect();
        self.owned.extend(orders.gained.iter().copied());
        orders.dead = self.observe(asked, answered, picture);
        if self.leaving {
            let left = self.owned.keys().copied().filter(|it| !self.draining.contains_key(it));
            let left = left.collect();
            orders.drain = self.begin_drains(left);
            orders.dead.clear();
        } else {
            self.balance(picture, &mut orders);
        }
        orders
    }

    /// Notes the renewals of others; gives those who have not moved for long enough.
    fn observe(&mut self, asked: Moment, answered: Moment, picture: &Picture) -> Vec<Dead> {
        let owners = picture.shards.values().filter_map(|(node, _)| *node);
        let mut others: BTreeSet<Uuid> = picture.nodes.keys().copied().chain(owners).collect();
        others.remove(&self.node);
        self.seen.retain(|node, _| others.contains(node));
        let mut dead = Vec::new();
        for node in others {
            let renewals = picture.nodes.get(&node).copied();
            match self.seen.get(&node) {
                Some((before, since)) if *before == renewals => {
                    if asked.since(*since) >= OBSERVATION {
                        dead.push(Dead { node, renewals });
                    }
                }
                _ => {
                    self.seen.insert(node, (renewals, answered));
                }
            }
        }
        dead
    }

    /// Claims what is free up to its share, or gives away what is above it.
    fn balance(&mut self, picture: &Picture, orders: &mut Orders) {
        let share = share_of(self.node, picture);
        let held = self.owned.len();
        if held <= share {
            let free = picture.shards.values().filter(|(node, _)| node.is_none()).count();
            orders.claim = free.min(share - held);
            return;
        }
        let surplus = (held - share).saturating_sub(self.draining.len());
        let last = self.owned.keys().rev().copied();
        let given = last.filter(|shard| !self.draining.contains_key(shard)).take(surplus).collect();
        orders.drain = self.begin_drains(given);
    }

    fn begin_drains(&mut self, shards: Vec<Shard>) -> Vec<(Shard, u64)> {
        let mut begun = Vec::with_capacity(shards.len());
        for shard in shards {
            self.drains += 1;
            self.draining.insert(shard, self.drains);
            begun.push((shard, self.drains));
        }
        begun
    }

    /// Claims were committed; gives those that it has from now on. None when the lease is over: then the next renewal says
    /// what it has.
    pub(super) fn claimed(&mut self, claims: &[(Shard, u64)], now: Moment) -> Vec<(Shard, u64)> {
        if now >= self.deadline {
            return Vec::new();
        }
        self.owned.extend(claims.iter().copied());
        claims.to_vec()
    }

    /// A drain has ended: from now on the shard is not its own, and is to be released with this epoch. `None` when it was
    /// lost meanwhile.
    pub(super) fn drained(&mut self, shard: Shard, drain: u64) -> Option<u64> {
        self.draining.get(&shard).filter(|current| **current == drain)?;
        self.draining.remove(&shard);
        self.owned.remove(&shard)
    }
}

/// How many shards a node should have: all of them divided evenly, and what does not go even to those who have most, so
/// that nothing moves for it.
fn share_of(node: Uuid, picture: &Picture) -> usize {
    let nodes = picture.nodes.len().max(1);
    let (base, extra) = (usize::from(SHARDS) / nodes, usize::from(SHARDS) % nodes);
    let held = |node: &Uuid| picture.shards.values().filter(|(it, _)| *it == Some(*node)).count();
    let mut order: Vec<(std::cmp::Reverse<usize>, Uuid)> =
        picture.nodes.keys().map(|node| (std::cmp::Reverse(held(node)), *node)).collect();
    order.sort_unstable();
    let first = order.iter().take(extra).any(|(_, it)| *it == node);
    base + usize::from(first)
}

#[cfg(test)]
#[path = "membership_tests.rs"]
mod tests;
