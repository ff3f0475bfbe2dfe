//! Seeded worlds that run a lane, unchanged, against a model store and a model receiver (tests only).
//!
//! The world decides by its seed what happens next: an event is committed, an attempt ends, a record becomes
//! durable, fails or is lost in a crash, the app subscribes anew, time passes. After every step the promises of
//! the engine are checked against what the world knows. At the end all faults stop, and everything owed must be
//! delivered.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use super::lane::{
    Effect, FailingRow, HELD_MAX, HeldDelivery, Input, Lane, Plan, Progress, Settings,
    UNRECORDED_MAX,
};
use super::outcome::Outcome;
use crate::domain::clock::Moment;
use crate::domain::id::ContactId;

/// Random numbers of a world (`SplitMix64`): the same seed, the same story.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.roll(100) < percent
    }
}

/// What the model receiver does, drawn once per world.
struct Receiver {
    fails_percent: u64,
    pauses_percent: u64,
    /// Contacts whose events it refuses: as long as faults last, or for ever.
    refuses: BTreeSet<ContactId>,
    refuses_for_ever: bool,
    /// Between these times it fails everything.
    down: (Moment, Moment),
    slowest_millis: u64,
}

/// What the store would give after a crash.
#[derive(Clone, Default)]
struct Durable {
    generation: u64,
    cursor: u64,
    done: BTreeSet<u64>,
    held: BTreeMap<u64, HeldDelivery>,
    exhausted: BTreeSet<u64>,
    failing: Option<FailingRow>,
    enabled: bool,
}

impl Durable {
    fn finished(&self, sequence: u64) -> bool {
        self.done.contains(&sequence)
            || (sequence <= self.cursor && !self.held.contains_key(&sequence))
    }
}

struct InFlight {
    generation: u64,
    sequence: u64,
    contact: ContactId,
    ends: Moment,
}

pub(super) struct World {
    dice: Dice,
    now: Moment,
    log: Vec<ContactId>,
    durable: Durable,
    /// Events up to it were dropped by an unsubscribe.
    dropped_to: u64,
    lane: Lane,
    record: Option<Plan>,
    loads: Vec<(u64, u32)>,
    flights: Vec<InFlight>,
    receiver: Receiver,
    contacts: u64,
    faults: bool,
    delivered: BTreeSet<u64>,
    /// The newest event of a contact that was started, with the generation.
    started: BTreeMap<ContactId, (u64, u64)>,
    due: BTreeMap<u64, Moment>,
    /// What the lane may repeat once after a crash.
    may_repeat: BTreeSet<u64>,
    pub(super) attempts: u64,
    pub(super) crashes: u64,
    pub(super) trace: String,
    tracing: bool,
}

fn contact(number: u64) -> ContactId {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    ContactId::from_bytes(bytes)
}

fn new_lane() -> Lane {
    let settings = Settings {
        retry_schedule: vec![
            Duration::from_secs(5),
            Duration::from_secs(30),
            Duration::from_mins(2),
        ],
        max_in_flight: 8,
    };
    Lane::new(Arc::new(settings), 42)
}

impl World {
    pub(super) fn new(seed: u64, tracing: bool) -> Self {
        let mut dice = Dice(seed);
        let contacts = 1 + dice.roll(12);
        let mut refuses = BTreeSet::new();
        if dice.chance(40) {
            refuses.extend((0..contacts).filter(|_| dice.chance(30)).map(contact));
        }
        let from = Moment(dice_time(&mut dice, 60_000));
        let down = if dice.chance(40) {
            (from, Moment(from.0 + dice_time(&mut dice, 600_000)))
        } else {
            (Moment(0), Moment(0))
        };
        let receiver = Receiver {
            fails_percent: [0, 0, 5, 30, 70][pick(&mut dice, 5)],
            pauses_percent: [0, 0, 0, 5][pick(&mut dice, 4)],
            refuses_for_ever: dice.chance(30),
            refuses,
            down,
            slowest_millis: [5, 50, 3_000][pick(&mut dice, 3)],
        };
        let mut world = Self {
            dice,
            now: Moment(0),
            log: Vec::new(),
            durable: Durable { generation: 1, enabled: true, ..Durable::default() },
            dropped_to: 0,
            lane: new_lane(),
            record: None,
            loads: Vec::new(),
            flights: Vec::new(),
            receiver,
            contacts,
            faults: true,
            delivered: BTreeSet::new(),
            started: BTreeMap::new(),
            due: BTreeMap::new(),
            may_repeat: BTreeSet::new(),
            attempts: 0,
            crashes: 0,
            trace: String::new(),
            tracing,
        };
        world.restart();
        world
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if self.tracing {
            let line = text();
            writeln!(self.trace, "{:>9} {line}", self.now.0)
                .expect("writing to a string cannot fail");
        }
    }

    /// Runs the story, then the calm after it.
    pub(super) fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            self.one_step();
        }
        self.calm_down();
    }

    fn one_step(&mut self) {
        match self.dice.roll(100) {
            0..=24 => self.commit_event(),
            25..=49 => self.end_attempt(),
            50..=69 => self.finish_record(),
            70..=79 => self.answer_load(),
            80..=91 => self.pass_time(),
            92 => self.step(Input::Unload),
            93 => self.limit_held(),
            94..=95 => self.lose_record(),
            96 => self.crash(),
            97 => self.subscribe_again(),
            98 => self.unsubscribe(),
            _ => self.file_opened_again(),
        }
    }

    fn step(&mut self, input: Input<'_>) {
        let mut effects = Vec::new();
        self.lane.step(self.now, input, &mut effects);
        self.apply(effects);
        let wanted = self.lane.wanted(self.now);
        let grant = if self.dice.chance(70) { wanted } else { wanted.min(1) };
        let mut effects = Vec::new();
        self.lane.take_surplus();
        if grant > 0 {
            self.lane.step(self.now, Input::Granted(grant), &mut effects);
        }
        self.apply(effects);
        self.lane.take_surplus();
    }

    fn apply(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Start { sequence, contact, attempt } => {
                    self.check_start(sequence, contact, attempt);
                }
                Effect::Load { after, limit } => self.loads.push((after, limit)),
                Effect::Record(plan) => {
                    self.check_plan(&plan);
                    assert!(self.record.is_none(), "two records of one lane at a time");
                    self.record = Some(plan);
                }
            }
        }
    }

    fn check_start(&mut self, sequence: u64, contact: ContactId, attempt: u32) {
        self.note(|| format!("start {sequence} of {contact} attempt {attempt}"));
        self.attempts += 1;
        assert!(self.durable.enabled, "started {sequence} after an unsubscribe");
        assert!(
            self.flights.iter().all(|flight| flight.contact != contact),
            "two attempts of one contact in flight"
        );
        let index = usize::try_from(sequence - 1).expect("small");
        assert_eq!(self.log.get(index), Some(&contact), "started an event that is not in the log");
        for (earlier, owner) in (1..sequence).zip(&self.log) {
            let settled = earlier <= self.dropped_to || self.durable.finished(earlier);
            assert!(
                *owner != contact || settled,
                "{sequence} started before {earlier} was durable"
            );
        }
        if let Some((generation, newest)) = self.started.get(&contact)
            && *generation == self.durable.generation
        {
            assert!(sequence >= *newest, "contact went back from {newest} to {sequence}");
        }
        assert!(!self.durable.finished(sequence), "{sequence} started although durably finished");
        if self.delivered.contains(&sequence) {
            assert!(self.may_repeat.contains(&sequence), "{sequence} repeated without a crash");
        }
        if let Some(due) = self.due.get(&sequence) {
            assert!(*due <= self.now, "{sequence} started {} ms early", due.0 - self.now.0);
        }
        self.started.insert(contact, (self.durable.generation, sequence));
        let lasts = 1 + self.dice.roll(self.receiver.slowest_millis);
        let ends = self.now.plus(Duration::from_millis(lasts));
        let generation = self.durable.generation;
        self.flights.push(InFlight { generation, sequence, contact, ends });
        let unrecorded = self.lane.in_flight();
        assert!(unrecorded <= UNRECORDED_MAX, "{unrecorded} in flight");
    }

    fn check_plan(&self, plan: &Plan) {
        assert_eq!(plan.generation, self.durable.generation, "record of another generation");
        assert!(plan.cursor >= self.durable.cursor, "cursor went back");
        assert!(plan.cursor <= self.log.len() as u64, "cursor beyond the log");
        let held: BTreeSet<u64> = plan.hold.iter().map(|held| held.sequence).collect();
        let mut after = self.durable.clone();
        store(&mut after, plan);
        assert!(after.held.len() <= HELD_MAX, "too many held");
        for sequence in self.durable.cursor + 1..=plan.cursor {
            let settled = after.held.contains_key(&sequence)
                || self.delivered.contains(&sequence)
                || after.exhausted.contains(&sequence);
            assert!(settled, "cursor passed {sequence}, neither finished nor held");
        }
        for sequence in plan.done.iter().chain(&plan.release) {
            let finished = self.delivered.contains(sequence) || after.exhausted.contains(sequence);
            assert!(finished, "{sequence} recorded as finished");
            assert!(!held.contains(sequence), "{sequence} both held and finished");
        }
    }

    fn commit_event(&mut self) {
        let number = self.dice.roll(self.contacts);
        self.log.push(contact(number));
        let head = self.log.len() as u64;
        self.note(|| format!("event {head} of {}", contact(number)));
        self.step(Input::Head(head));
    }

    fn end_attempt(&mut self) {
        let Some(next) = (0..self.flights.len()).min_by_key(|at| self.flights[*at].ends) else {
            return;
        };
        if self.flights[next].ends > self.now {
            self.now = self.flights[next].ends;
        }
        let flight = self.flights.swap_remove(next);
        let outcome = self.judge(&flight);
        self.note(|| format!("ended {} {outcome:?}", flight.sequence));
        if outcome == Outcome::Delivered {
            self.delivered.insert(flight.sequence);
            self.may_repeat.remove(&flight.sequence);
            if flight.generation != self.durable.generation {
                // An old 2xx counts only if its event is owed; else the new generation may send it again.
                self.may_repeat.insert(flight.sequence);
            }
        }
        let keep_permit = self.dice.chance(80);
        self.due.remove(&flight.sequence);
        self.step(Input::Ended { contact: flight.contact, outcome, keep_permit });
    }

    fn judge(&mut self, flight: &InFlight) -> Outcome {
        let receiver = &self.receiver;
        if !self.faults {
            let refused = receiver.refuses_for_ever && receiver.refuses.contains(&flight.contact);
            return if refused { Outcome::Failed } else { Outcome::Delivered };
        }
        let down = receiver.down.0 <= self.now && self.now < receiver.down.1;
        if down
            || receiver.refuses.contains(&flight.contact)
            || self.dice.chance(receiver.fails_percent)
        {
            return Outcome::Failed;
        }
        if self.dice.chance(self.receiver.pauses_percent) {
            let after = self.dice.chance(50).then_some(Duration::from_secs(2));
            return Outcome::Pause { after };
        }
        Outcome::Delivered
    }

    fn finish_record(&mut self) {
        let Some(plan) = self.record.take() else {
            return;
        };
        let number = plan.number;
        if plan.generation != self.durable.generation || !self.durable.enabled {
            self.step(Input::NotRecorded { number, superseded: true });
            return;
        }
        self.note(|| format!("recorded cursor {} held {}", plan.cursor, plan.hold.len()));
        store(&mut self.durable, &plan);
        for held in &plan.hold {
            self.due.insert(held.sequence, held.due);
        }
        self.step(Input::Recorded { number });
    }

    /// The store failed: the transaction may have happened or not, the lane is told that nobody knows.
    fn lose_record(&mut self) {
        let Some(plan) = self.record.take() else {
            return;
        };
        if plan.generation == self.durable.generation && self.dice.chance(50) {
            store(&mut self.durable, &plan);
        }
        self.note(|| "record failed".to_owned());
        self.step(Input::NotRecorded { number: plan.number, superseded: false });
    }

    fn answer_load(&mut self) {
        if self.loads.is_empty() {
            return;
        }
        let (after, limit) = self.loads.remove(0);
        let skip = usize::try_from(after).expect("small");
        let limit = usize::try_from(limit).expect("small");
        let events: Vec<(u64, ContactId)> =
            (after + 1..).zip(self.log.iter().skip(skip).take(limit).copied()).collect();
        self.step(Input::Loaded { after, events: &events });
    }

    fn pass_time(&mut self) {
        let wake = self.lane.next_wake(self.now);
        self.now = match wake {
            Some(at) if self.dice.chance(70) => at,
            _ => Moment(self.now.0 + dice_time(&mut self.dice, 3_000)),
        };
        if let Some(first) = self.flights.iter().map(|flight| flight.ends).min() {
            self.now = self.now.min(first);
        }
        self.step(Input::Tick);
    }

    fn restart(&mut self) {
        let progress = Progress {
            generation: self.durable.generation,
            head: self.log.len() as u64,
            cursor: self.durable.cursor,
            done: self.durable.done.iter().copied().collect(),
            held: self.durable.held.values().copied().collect(),
            failing: self.durable.failing,
        };
        self.loads.clear();
        if let Some(plan) = self.record.take() {
            // The engine reads progress only when no record is under way; one of an old generation was refused.
            self.step(Input::NotRecorded { number: plan.number, superseded: true });
        }
        self.step(Input::Restart(progress));
    }

    /// Everything in memory is gone, and so are the attempts in flight and the record that was under way.
    fn crash(&mut self) {
        self.note(|| "crash".to_owned());
        self.crashes += 1;
        if let Some(plan) = self.record.take()
            && plan.generation == self.durable.generation
            && self.dice.chance(50)
        {
            store(&mut self.durable, &plan);
        }
        let lost: Vec<InFlight> = self.flights.drain(..).collect();
        for flight in lost {
            // The receiver may have got it; nobody will know.
            if self.dice.chance(50) {
                self.delivered.insert(flight.sequence);
            }
        }
        self.permit_repeats();
        self.lane = new_lane();
        if self.durable.enabled {
            self.restart();
        }
    }

    /// What was delivered and is not durably finished may come once more: at most [`UNRECORDED_MAX`] events.
    fn permit_repeats(&mut self) {
        let unrecorded: BTreeSet<u64> = self
            .delivered
            .iter()
            .copied()
            .filter(|sequence| *sequence > self.dropped_to && !self.durable.finished(*sequence))
            .collect();
        assert!(unrecorded.len() <= UNRECORDED_MAX, "{} can be repeated", unrecorded.len());
        self.may_repeat.extend(unrecorded);
    }

    /// The app enables again: a new generation, progress kept, every wait cleared.
    fn subscribe_again(&mut self) {
        self.note(|| "subscribe again".to_owned());
        if !self.durable.enabled {
            self.durable.cursor = self.log.len() as u64;
            self.dropped_to = self.durable.cursor;
            self.durable.enabled = true;
        }
        self.durable.generation += 1;
        self.durable.failing = None;
        for held in self.durable.held.values_mut() {
            held.due = self.now;
        }
        self.due.clear();
        self.step(Input::Halt);
        self.restart();
    }

    /// Other lanes hold much, or little again.
    fn limit_held(&mut self) {
        let most = if self.dice.chance(50) { 3 } else { HELD_MAX };
        self.step(Input::HeldMax(most));
    }

    fn unsubscribe(&mut self) {
        self.note(|| "unsubscribe".to_owned());
        self.durable.generation += 1;
        self.durable.enabled = false;
        self.durable.held.clear();
        self.durable.exhausted.clear();
        self.durable.done.clear();
        self.durable.cursor = self.log.len() as u64;
        self.dropped_to = self.durable.cursor;
        self.due.clear();
        self.step(Input::Halt);
    }

    /// The store recovered from a failure: the same generation, read anew.
    fn file_opened_again(&mut self) {
        if !self.durable.enabled || self.record.is_some() {
            return;
        }
        self.note(|| "file opened again".to_owned());
        self.due.clear();
        for held in self.durable.held.values_mut() {
            held.due = held.due.min(self.now.plus(Duration::from_secs(180)));
        }
        self.step(Input::Halt);
        self.restart();
        let held: Vec<(u64, Moment)> =
            self.durable.held.values().map(|h| (h.sequence, h.due)).collect();
        self.due.extend(held);
    }

    /// Faults stop; within a bound everything owed is delivered and the cursor is at the head.
    fn calm_down(&mut self) {
        self.faults = false;
        self.note(|| "calm".to_owned());
        self.step(Input::HeldMax(HELD_MAX));
        if !self.durable.enabled {
            self.subscribe_again();
        }
        let bound = 60 + 12 * self.log.len();
        for _ in 0..bound {
            while !self.flights.is_empty() {
                self.end_attempt();
            }
            while !self.loads.is_empty() {
                self.answer_load();
            }
            self.finish_record();
            if self.settled() {
                return;
            }
            if self.flights.is_empty() && self.loads.is_empty() && self.record.is_none() {
                if let Some(at) = self.lane.next_wake(self.now) {
                    self.now = at;
                }
                self.step(Input::Tick);
            }
        }
        panic!(
            "not settled: head {}, cursor {}, held {:?}, lane {:?}",
            self.log.len(),
            self.durable.cursor,
            self.durable.held.keys(),
            self.lane
        );
    }

    /// Whether everything is delivered that can be: the contacts that are refused for ever keep nobody else back.
    fn settled(&self) -> bool {
        if self.record.is_some() {
            return false;
        }
        if self.receiver.refuses_for_ever && !self.receiver.refuses.is_empty() {
            return (1..).zip(&self.log).all(|(sequence, contact)| {
                self.receiver.refuses.contains(contact)
                    || sequence <= self.dropped_to
                    || self.durable.finished(sequence)
            });
        }
        let settled = self.durable.cursor == self.log.len() as u64 && self.durable.held.is_empty();
        if settled {
            self.check_end();
        }
        settled
    }

    fn check_end(&self) {
        for sequence in self.dropped_to + 1..=self.log.len() as u64 {
            assert!(
                self.delivered.contains(&sequence) || self.durable.exhausted.contains(&sequence),
                "{sequence} is neither delivered nor exhausted"
            );
        }
        assert_eq!(self.lane.in_flight(), 0);
        assert!(!self.lane.unrecorded());
    }
}

fn store(durable: &mut Durable, plan: &Plan) {
    durable.cursor = plan.cursor;
    durable.done = plan.done.iter().copied().collect();
    durable.failing = plan.failing;
    durable.held.extend(plan.hold.iter().map(|held| (held.sequence, *held)));
    for sequence in &plan.release {
        durable.held.remove(sequence);
    }
    durable.exhausted.extend(plan.exhaust.iter().map(|(sequence, _, _)| *sequence));
}

fn pick(dice: &mut Dice, sides: u64) -> usize {
    usize::try_from(dice.roll(sides)).expect("small")
}

fn dice_time(dice: &mut Dice, longest: u64) -> i64 {
    i64::try_from(dice.roll(longest)).expect("small")
}

/// Worlds that `make test` runs; a million takes a few minutes in a release build.
const SEEDS: u64 = 3_000;
/// Steps of a story.
const STEPS: u64 = 400;

#[test]
fn no_seed_breaks_a_promise() {
    let (mut attempts, mut crashes) = (0, 0);
    for seed in 0..SEEDS {
        let outcome = std::panic::catch_unwind(|| {
            let mut world = World::new(seed, false);
            world.run(STEPS);
            (world.attempts, world.crashes)
        });
        match outcome {
            Ok((made, crashed)) => {
                attempts += made;
                crashes += crashed;
            }
            Err(_) => panic!("seed {seed} breaks a promise: see the message above"),
        }
    }
    assert!(
        attempts > SEEDS * 20 && crashes > SEEDS,
        "the worlds are too quiet: {attempts}, {crashes}"
    );
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [1, 7, 23] {
        let trace = |seed| {
            let mut world = World::new(seed, true);
            world.run(STEPS);
            world.trace
        };
        assert_eq!(trace(seed), trace(seed));
    }
}
