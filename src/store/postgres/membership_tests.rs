//! Single decisions, and stories of several nodes that are paused, cut off, killed and started at any moment.

use std::collections::BTreeMap;

use proptest::prelude::*;
use uuid::Uuid;

use super::{Dead, HEARTBEAT, LEASE, Member, OBSERVATION, Picture};
use crate::domain::clock::Moment;
use crate::domain::shard::{SHARDS, Shard};

fn node(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn shards(owner: impl Fn(usize) -> Option<u128>) -> BTreeMap<Shard, (Option<Uuid>, u64)> {
    Shard::all().enumerate().map(|(n, shard)| (shard, (owner(n).map(node), 1))).collect()
}

fn picture(nodes: &[(u128, u64)], owner: impl Fn(usize) -> Option<u128>) -> Picture {
    let nodes = nodes.iter().map(|(id, renewals)| (node(*id), *renewals)).collect();
    Picture { nodes, shards: shards(owner) }
}

fn at(millis: i64) -> Moment {
    Moment(millis)
}

#[test]
fn a_node_counts_as_dead_once_it_was_seen_unchanged_for_the_observation_and_not_before() {
    let mut member = Member::new(node(1));
    let still = picture(&[(1, 0), (2, 7)], |_| Some(2));
    assert_eq!(member.renewed(at(0), at(900), &still).dead, []);
    let end = at(900).plus(OBSERVATION);
    // What counts is when the answer came first, and when the question was asked last.
    assert_eq!(member.renewed(at(end.0 - 1), at(end.0 + 500), &still).dead, []);

    let dead = member.renewed(end, at(end.0 + 1), &still).dead;
    assert_eq!(dead, [Dead { node: node(2), renewals: Some(7) }]);

    let moved = picture(&[(1, 0), (2, 8)], |_| Some(2));
    assert_eq!(member.renewed(at(end.0 + 10), at(end.0 + 11), &moved).dead, []);
}

#[test]
fn shards_of_a_node_without_a_row_are_freed_after_the_same_time() {
    let mut member = Member::new(node(1));
    let orphaned = picture(&[(1, 0)], |_| Some(9));
    assert_eq!(member.renewed(at(0), at(0), &orphaned).dead, []);

    let dead = member.renewed(at(0).plus(OBSERVATION), at(5_000), &orphaned).dead;

    assert_eq!(dead, [Dead { node: node(9), renewals: None }]);
}

#[test]
fn the_deadline_counts_from_before_the_renewal_and_a_late_answer_gives_nothing() {
    let mut member = Member::new(node(1));
    let mine = picture(&[(1, 1)], |_| Some(1));
    let end = at(100).plus(LEASE);

    let orders = member.renewed(at(100), at(end.0 - 1), &mine);
    assert_eq!((orders.deadline, orders.gained.len()), (Some(end), usize::from(SHARDS)));
    assert_eq!(member.lapse(at(end.0 - 1)), []);
    assert_eq!(member.lapse(end).len(), usize::from(SHARDS));

    let orders = member.renewed(at(10_000), at(10_000).plus(LEASE), &mine);
    assert_eq!((orders.deadline, orders.gained.len(), orders.claim), (None, 0, 0));
}

#[test]
fn a_deadline_that_nobody_noticed_loses_everything_before_it_is_gained_again() {
    let mut member = Member::new(node(1));
    let mine = picture(&[(1, 1)], |_| Some(1));
    member.renewed(at(0), at(0), &mine);

    let orders = member.renewed(at(9_000), at(9_001), &mine);

    assert_eq!((orders.lost.len(), orders.gained.len()), (64, 64));
}

#[test]
fn a_shard_with_another_epoch_is_lost_before_it_is_gained() {
    let mut member = Member::new(node(1));
    let mut mine = picture(&[(1, 1)], |_| Some(1));
    member.renewed(at(0), at(0), &mine);
    let shard = Shard::from_number(3).unwrap();
    mine.shards.insert(shard, (Some(node(1)), 2));

    let orders = member.renewed(at(1_000), at(1_001), &mine);

    assert_eq!((orders.lost, orders.gained), (vec![shard], vec![(shard, 2)]));
}

#[test]
fn shares_differ_by_one_and_what_does_not_go_even_stays_where_it_is() {
    // 22, 22 and 20: the second one gives one away, the third takes it.
    let uneven = picture(&[(1, 0), (2, 0), (3, 0)], |n| Some([1, 2, 3][(n / 22).min(2)]));
    let orders = |number: u128| Member::new(node(number)).renewed(at(0), at(0), &uneven);
    assert_eq!(orders(1).drain.len(), 0);
    assert_eq!(orders(2).drain.len(), 1);
    assert_eq!(orders(3).drain.len(), 0);
    let free = picture(&[(1, 0), (2, 0), (3, 0)], |n| (n < 60).then_some([1, 2, 3][n % 3]));
    let claims = |number: u128| Member::new(node(number)).renewed(at(0), at(0), &free).claim;
    assert_eq!([claims(1), claims(2), claims(3)], [2, 1, 1]);
}

#[test]
fn what_is_drained_is_given_away_once_and_not_when_it_was_lost_meanwhile() {
    let mut member = Member::new(node(1));
    let both = picture(&[(1, 0), (2, 0)], |_| Some(1));
    let drain = member.renewed(at(0), at(0), &both).drain;
    assert_eq!(drain.len(), 32);
    assert_eq!(member.renewed(at(500), at(501), &both).drain, []);
    let (shard, number) = drain[0];

    assert_eq!(member.drained(shard, number), Some(1));
    assert_eq!(member.drained(shard, number), None);
    let (shard, number) = drain[1];
    member.lapse(at(60_000));
    member.renewed(at(60_000), at(60_001), &both);
    assert_eq!(member.drained(shard, number), None);
}

// Stories.

/// The two tables; each operation is a transaction.
#[derive(Default)]
struct Tables {
    picture: Picture,
}

impl Tables {
    fn new() -> Self {
        Self { picture: picture(&[], |_| None) }
    }

    fn renew(&mut self, node: Uuid) -> Option<Picture> {
        *self.picture.nodes.get_mut(&node)? += 1;
        Some(self.picture.clone())
    }

    fn take_over(&mut self, dead: Dead) {
        if self.picture.nodes.get(&dead.node).copied() == dead.renewals {
            self.picture.nodes.remove(&dead.node);
            self.free(|_, owner, _| owner == Some(dead.node));
        }
    }

    fn claim(&mut self, node: Uuid, most: usize) -> Vec<(Shard, u64)> {
        let mut claims = Vec::new();
        if self.picture.nodes.contains_key(&node) {
            for (shard, (owner, epoch)) in &mut self.picture.shards {
                if owner.is_none() && claims.len() < most {
                    (*owner, *epoch) = (Some(node), *epoch + 1);
                    claims.push((*shard, *epoch));
                }
            }
        }
        claims
    }

    fn release(&mut self, node: Uuid, given: &[(Shard, u64)]) {
        self.free(|shard, owner, epoch| owner == Some(node) && given.contains(&(shard, epoch)));
    }

    fn free(&mut self, which: impl Fn(Shard, Option<Uuid>, u64) -> bool) {
        for (shard, (owner, epoch)) in &mut self.picture.shards {
            if which(*shard, *owner, *epoch) {
                (*owner, *epoch) = (None, *epoch + 1);
            }
        }
    }
}

/// What a node sends to the database, and what comes back.
#[derive(Clone, Debug)]
enum Question {
    Renew,
    TakeOver(Dead),
    Claim(usize),
    Release(Vec<(Shard, u64)>),
}

enum Answer {
    Renewed(Option<Picture>),
    Claimed(Vec<(Shard, u64)>),
    Done,
}

enum Step {
    Ask,
    /// Arrives at the database.
    Arrive {
        question: Question,
        asked: Moment,
    },
    /// The answer arrives; `None` when it got lost.
    Hear {
        answer: Option<Answer>,
        asked: Moment,
    },
}

struct Node {
    member: Member,
    /// Its clock: how fast, in thousandths, and what it shows at the start.
    speed: i64,
    offset: i64,
    at: i64,
    step: Step,
    questions: Vec<Question>,
    next_beat: i64,
    drains: Vec<(i64, Shard, u64)>,
    dead: bool,
}

impl Node {
    fn moment(&self, now: i64) -> Moment {
        Moment(self.offset + now * self.speed / 1_000)
    }

    fn may_work(&self, shard: Shard, now: i64) -> bool {
        !self.dead
            && self.member.owned.contains_key(&shard)
            && self.moment(now) < self.member.deadline()
    }
}

struct Story {
    random: u64,
    tables: Tables,
    nodes: Vec<Node>,
    now: i64,
    made: u128,
    /// Whether nodes are slow, and answers get lost.
    troubled: bool,
}

impl Story {
    fn random(&mut self, below: u64) -> i64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        i64::try_from((z ^ (z >> 31)) % below).unwrap()
    }

    /// How long the next thing takes: mostly little, sometimes as long as a machine that was stopped.
    fn delay(&mut self) -> i64 {
        if !self.troubled {
            return 1 + self.random(20);
        }
        match self.random(100) {
            0..60 => self.random(20),
            60..90 => self.random(1_500),
            90..98 => self.random(6_000),
            _ => self.random(30_000),
        }
    }

    fn start_node(&mut self) {
        self.made += 1;
        let id = node(self.made);
        self.tables.picture.nodes.insert(id, 0);
        let speed = 970 + self.random(61);
        let offset = self.random(1_000_000);
        self.nodes.push(Node {
            member: Member::new(id),
            speed,
            offset,
            at: self.now,
            step: Step::Ask,
            questions: Vec::new(),
            next_beat: self.now,
            drains: Vec::new(),
            dead: false,
        });
    }

    /// Lets the node that is next do its next step.
    fn step(&mut self) {
        let alive = self.nodes.iter().enumerate().filter(|(_, node)| !node.dead);
        let Some((index, at)) = alive.map(|(n, node)| (n, node.at)).min_by_key(|(_, at)| *at)
        else {
            self.now += 1_000;
            return;
        };
        self.now = self.now.max(at);
        let now = self.now;
        let mut node = self.nodes.swap_remove(index);
        let step = std::mem::replace(&mut node.step, Step::Ask);
        match step {
            Step::Ask => self.ask(&mut node, now),
            Step::Arrive { question, asked } => {
                let id = node.member.node();
                let answer = match question {
                    Question::Renew => Answer::Renewed(self.tables.renew(id)),
                    Question::TakeOver(dead) => {
                        self.tables.take_over(dead);
                        Answer::Done
                    }
                    Question::Claim(most) => Answer::Claimed(self.tables.claim(id, most)),
                    Question::Release(given) => {
                        self.tables.release(id, &given);
                        Answer::Done
                    }
                };
                let lost = self.troubled && self.random(20) == 0;
                node.step = Step::Hear { answer: (!lost).then_some(answer), asked };
                node.at = now + self.delay();
            }
            Step::Hear { answer, asked } => self.hear(&mut node, answer, asked, now),
        }
        self.nodes.push(node);
    }

    fn ask(&mut self, node: &mut Node, now: i64) {
        let moment = node.moment(now);
        node.member.lapse(moment);
        let (done, waiting): (Vec<_>, Vec<_>) =
            node.drains.drain(..).partition(|(at, _, _)| *at <= now);
        node.drains = waiting;
        let given: Vec<(Shard, u64)> = done
            .into_iter()
            .filter_map(|(_, shard, drain)| Some((shard, node.member.drained(shard, drain)?)))
            .collect();
        if !given.is_empty() {
            node.questions.push(Question::Release(given));
        }
        let question = node.questions.pop().or_else(|| {
            let due = now >= node.next_beat;
            due.then(|| {
                node.next_beat = now + i64::try_from(HEARTBEAT.as_millis()).unwrap();
                Question::Renew
            })
        });
        match question {
            Some(question) => {
                node.step = Step::Arrive { question, asked: moment };
                node.at = now + self.delay();
            }
            None => node.at = now + 10 + self.random(50),
        }
    }

    fn hear(&mut self, node: &mut Node, answer: Option<Answer>, asked: Moment, now: i64) {
        let answered = node.moment(now);
        match answer {
            Some(Answer::Renewed(Some(picture))) => {
                let orders = node.member.renewed(asked, answered, &picture);
                if orders.claim > 0 {
                    node.questions.push(Question::Claim(orders.claim));
                }
                node.questions.extend(orders.dead.into_iter().map(Question::TakeOver));
                for (shard, drain) in orders.drain {
                    let end = now + self.delay();
                    node.drains.push((end, shard, drain));
                }
            }
            Some(Answer::Renewed(None)) => {
                self.made += 1;
                let id = self::node(self.made);
                node.member.begin_anew(id);
                node.questions.clear();
                self.tables.picture.nodes.insert(id, 0);
            }
            Some(Answer::Claimed(claims)) => drop(node.member.claimed(&claims, answered)),
            Some(Answer::Done) | None => {}
        }
        // It may be stopped here too, between what it has heard and what it does next.
        node.at = now + if self.troubled { self.delay() } else { 0 };
    }

    /// At no moment two nodes may work on a shard.
    fn check(&self) -> Result<(), String> {
        for shard in Shard::all() {
            let working = self.nodes.iter().filter(|node| node.may_work(shard, self.now));
            let working: Vec<Uuid> = working.map(|node| node.member.node()).collect();
            if working.len() > 1 {
                return Err(format!("at {} shard {shard} has {working:?}", self.now));
            }
        }
        Ok(())
    }

    fn run(seed: u64) -> Result<(), String> {
        let mut story = Self {
            random: seed,
            tables: Tables::new(),
            nodes: Vec::new(),
            now: 0,
            made: 0,
            troubled: true,
        };
        for _ in 0..=story.random(4) {
            story.start_node();
        }
        let end = 60_000 + story.random(120_000);
        while story.now < end {
            if story.random(400) == 0 && story.nodes.len() > 1 {
                let victim = usize::try_from(story.random(story.nodes.len() as u64)).unwrap();
                story.nodes[victim].dead = true;
            }
            if story.random(400) == 0 && story.nodes.len() < 6 {
                story.start_node();
            }
            story.step();
            story.check()?;
        }
        story.nodes.retain(|node| !node.dead);
        if story.nodes.is_empty() {
            story.start_node();
        }
        // Whatever was on its way arrives; then all is quiet for as long as a takeover and a few changes of hands take.
        story.troubled = false;
        let last = story.nodes.iter().map(|node| node.at).max().unwrap_or(story.now);
        let last =
            story.nodes.iter().flat_map(|node| &node.drains).map(|it| it.0).fold(last, i64::max);
        let quiet = i64::try_from((OBSERVATION + HEARTBEAT * 12).as_millis()).unwrap();
        while story.now < last + quiet {
            story.step();
            story.check()?;
        }
        let working = |node: &Node| Shard::all().filter(|it| node.may_work(*it, story.now)).count();
        let counts: Vec<usize> = story.nodes.iter().map(working).collect();
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        if counts.iter().sum::<usize>() != usize::from(SHARDS) || most - least > 1 {
            return Err(format!("in the end they have {counts:?}"));
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn no_two_nodes_work_on_a_shard_and_soon_all_are_shared_evenly(seed in any::<u64>()) {
        prop_assert_eq!(Story::run(seed), Ok(()));
    }
}
