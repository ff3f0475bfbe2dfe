//! Membership by itself, and stories of several nodes of which some sleep or die.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::{ProptestConfig, any, proptest};
use uuid::Uuid;

use super::{HEARTBEAT, LEASE, OBSERVATION, Observations, Seen, may_claim, to_claim, to_release};
use crate::domain::clock::Moment;
use crate::domain::shard::{SHARDS, Shard};

fn node(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn seen(nodes: &[(u128, i64)]) -> Seen {
    Seen {
        nodes: nodes.iter().map(|(number, renewals)| (node(*number), *renewals)).collect(),
        shards: Shard::all().map(|shard| (shard, (None, 0))).collect(),
    }
}

#[test]
fn a_node_is_dead_once_it_was_seen_unchanged_for_a_whole_lease() {
    let mut observations = Observations::default();
    let mut observe = |renewals, asked: i64| {
        let found = seen(&[(1, 5), (2, renewals)]);
        let dead = observations.observe(node(1), &found, Moment(asked), Moment(asked + 100));
        dead.into_iter().map(|dead| (dead.node, dead.renewals)).collect::<Vec<_>>()
    };

    assert_eq!(observe(7, 0), []);
    assert_eq!(observe(7, 4_400), [], "known at 100 only");
    assert_eq!(observe(8, 4_490), [], "it has renewed");
    assert_eq!(observe(8, 8_900), []);
    assert_eq!(observe(8, 8_990), [(node(2), 8)]);
}

#[test]
fn nothing_is_claimed_in_a_new_era_before_the_leases_of_the_one_before_are_over() {
    let since = Moment(1_000);

    assert!(!may_claim(false, since, since.plus(LEASE)));
    assert!(!may_claim(false, since, Moment(5_399)));
    assert!(may_claim(false, since, Moment(5_400)));
    assert!(may_claim(true, since, since));
}

#[test]
fn shards_of_a_node_whose_row_is_gone_are_free() {
    let mut found = seen(&[(1, 0)]);
    for (holder, _) in found.shards.values_mut() {
        *holder = Some(node(9));
    }

    assert_eq!(to_claim(node(1), &found), usize::from(SHARDS));
}

#[test]
fn all_nodes_have_the_same_number_of_shards_or_one_more() {
    for count in 1..80_u128 {
        let nodes: Vec<(u128, i64)> = (1..=count).map(|number| (number, 0)).collect();
        let found = seen(&nodes);
        let quotas: Vec<usize> = (1..=count).map(|number| found.quota_of(node(number))).collect();
        assert_eq!(quotas.iter().sum::<usize>(), usize::from(SHARDS));
        assert!(quotas.iter().max().unwrap() - quotas.iter().min().unwrap() <= 1);
    }
    assert_eq!(seen(&[(1, 0)]).quota_of(node(9)), 0);
}

/// The database and the nodes of one story.
struct World {
    now: i64,
    seen: Seen,
    nodes: BTreeMap<u128, Member>,
    /// Which shards a node believes it may send for, and until when.
    next: u128,
}

#[derive(Default)]
struct Member {
    observations: Observations,
    deadline: i64,
    mine: BTreeMap<Shard, u64>,
    /// Asleep until then: it neither renews nor hears that its lease is over.
    asleep_until: i64,
}

impl World {
    fn add(&mut self) {
        self.next += 1;
        self.seen.nodes.insert(node(self.next), 0);
        self.nodes.insert(self.next, Member::default());
    }

    /// One heartbeat of a node, as `nodes.rs` does it.
    fn beat(&mut self, number: u128, latency: i64) {
        let me = node(number);
        let (asked, known) = (self.now, self.now + latency);
        let Some(member) = self.nodes.get_mut(&number) else { return };
        if asked < member.asleep_until {
            return;
        }
        if asked >= member.deadline {
            member.mine.clear();
        }
        let Some(renewals) = self.seen.nodes.get_mut(&me) else {
            // Somebody has taken everything: it begins anew under another id.
            self.nodes.remove(&number);
            self.add();
            return;
        };
        *renewals += 1;
        member.deadline = asked + i64::try_from(LEASE.as_millis()).unwrap();
        member.mine = self.seen.shards_of(me);
        for dead in member.observations.observe(me, &self.seen, Moment(asked), Moment(known)) {
            if self.seen.nodes.get(&dead.node) == Some(&dead.renewals) {
                self.seen.nodes.remove(&dead.node);
                for (holder, epoch) in self.seen.shards.values_mut() {
                    if *holder == Some(dead.node) {
                        (*holder, *epoch) = (None, *epoch + 1);
                    }
                }
            }
        }
        let claim = to_claim(me, &self.seen);
        let free = self.seen.shards.values_mut().filter(|(holder, _)| holder.is_none());
        for place in free.take(claim) {
            *place = (Some(me), place.1 + 1);
        }
        for shard in to_release(me, &self.seen, &BTreeSet::new()) {
            member.mine.remove(&shard);
            let epoch = self.seen.shards[&shard].1;
            self.seen.shards.insert(shard, (None, epoch + 1));
        }
        member.mine = self.seen.shards_of(me);
    }

    /// Nobody may send for a shard that another may send for too.
    fn check(&self) {
        let mut holders = BTreeMap::new();
        for (number, member) in &self.nodes {
            // Asleep or not: what it does when it wakes up before the deadline counts.
            if self.now < member.deadline {
                for shard in member.mine.keys() {
                    let other = holders.insert(*shard, *number);
                    assert_eq!(other, None, "two nodes have shard {shard} at {}", self.now);
                }
            }
        }
    }
}

#[test]
fn whatever_sleeps_or_dies_no_shard_has_two_nodes_and_each_has_one_soon() {
    let steps = proptest::collection::vec((0_u8..10, any::<u8>(), 0_i64..9_000), 1..60);
    proptest!(ProptestConfig::with_cases(300), |(steps in steps)| {
        let mut world = World { now: 0, seen: seen(&[]), nodes: BTreeMap::new(), next: 0 };
        world.add();
        for (kind, which, time) in steps {
            let numbers: Vec<u128> = world.nodes.keys().copied().collect();
            let chosen = numbers.get(usize::from(which) % numbers.len().max(1)).copied();
            match (kind, chosen) {
                (0, _) if numbers.len() < 5 => world.add(),
                (1, Some(number)) => drop(world.nodes.remove(&number)),
                (2, Some(number)) => {
                    world.nodes.get_mut(&number).unwrap().asleep_until = world.now + time;
                }
                _ => {}
            }
            // A little more than a second, in slices in which all that are awake beat, each with another latency.
            for slice in 0..6_i64 {
                world.now += 250;
                let numbers: Vec<u128> = world.nodes.keys().copied().collect();
                for (at, number) in (0_i64..).zip(numbers) {
                    if (slice + at) % 4 == 0 {
                        world.beat(number, time % 200);
                    }
                    world.check();
                }
            }
        }
        if world.nodes.is_empty() {
            world.add();
        }
        let enough = (OBSERVATION + HEARTBEAT * 6 + Duration::from_secs(9)).as_millis();
        for _ in 0..enough / 250 {
            world.now += 250;
            for number in world.nodes.keys().copied().collect::<Vec<_>>() {
                world.beat(number, 1);
                world.check();
            }
        }
        let counts: Vec<usize> =
            world.nodes.keys().map(|number| world.seen.shards_of(node(*number)).len()).collect();
        assert_eq!(counts.iter().sum::<usize>(), usize::from(SHARDS));
        assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
    });
}
