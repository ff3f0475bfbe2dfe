//! A world: the lane, unchanged, between a model store and a model receiver, moved by the steps of a story.
//!
//! It does what `driver.rs` and `engine.rs` do with the lane, in any order that can happen, and asks the oracle in
//! [`super::checks`] after everything. At the end of the story all faults stop.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use super::checks::{Check, Checked, Flight, HELD_LIMIT, Oracle, SCHEDULE, ensure};
use super::model_store::{HeldRow, ModelStore, Redelivered};
use super::steps::{Answer, Fate, Step};
use crate::delivery::lane::{
    Effect, FailingRow, HeldDelivery, Input, Lane, LaneState, Plan, Progress, REASON_FAILING,
    Settings,
};
use crate::delivery::outcome::Outcome;
use crate::delivery::retry::longest_wait;
use crate::domain::clock::Moment;
use crate::domain::id::ContactId;
use crate::domain::subscription::Enabled;

/// How long the sender waits for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// Permits of a lane once faults have stopped.
const CALM_PERMITS: usize = 8;
/// Simulated time in which everything owed must be delivered once faults have stopped: a pause that was asked for
/// lasts at most an hour, and probes of a dozen poisoned contacts come at most 6 min apart.
const CALM_TIME: Duration = Duration::from_hours(3);
/// Permits that a lane may get in one step without using them, before it is said to ask in vain.
const GRANTS_MAX: usize = 1_000;
/// Failures in a row that are no sign of a circuit that stays open: those in flight when faults stop, and three for each
/// poisoned contact.
const IN_VAIN_MAX: usize = 20;

/// What a world did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) attempts: u64,
    pub(super) successes: u64,
    pub(super) old_results: u64,
    pub(super) timeouts: u64,
    pub(super) pauses: u64,
    pub(super) circuits: u64,
    pub(super) exhausted: u64,
    pub(super) records: u64,
    pub(super) refused_records: u64,
    pub(super) failed_records: u64,
    pub(super) crashes: u64,
    pub(super) subscribes: u64,
    pub(super) unsubscribes: u64,
    pub(super) redelivers: u64,
    pub(super) replays: u64,
    pub(super) prunes: u64,
    pub(super) disabled: u64,
    pub(super) given_up: u64,
    pub(super) clock_jumps: u64,
    pub(super) unloads: u64,
    /// Worlds in which the limit of 256 was reached.
    pub(super) full: u64,
}

/// A record on its way, and what became of it as far as the lane must be told.
struct Pending {
    plan: Plan,
    /// Wall time less monotonic time when it was handed in.
    offset: i64,
    told: Option<Told>,
    /// What it has made durable.
    covered: Vec<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Told {
    Recorded,
    Superseded,
    Unknown,
}

/// What the receiver has got, and refuses.
#[derive(Default)]
struct Receiver {
    refuses: BTreeSet<ContactId>,
    poisoned: BTreeSet<ContactId>,
    /// The last event of each contact that reached it.
    last: BTreeMap<ContactId, u64>,
}

pub(super) struct World {
    now: Moment,
    offset: i64,
    lane: Lane,
    in_flight_max: usize,
    store: ModelStore,
    receiver: Receiver,
    oracle: Oracle,
    pending: Option<Pending>,
    loads: VecDeque<(u64, u32)>,
    flights: Vec<Flight>,
    /// Permits that the lane has, those it may have, and what it may hold.
    permits: usize,
    slots: usize,
    held_max: usize,
    halted: bool,
    /// The engine wanted to read the row while a record was under way.
    deferred: bool,
    draining: bool,
    calm: bool,
    pub(super) counts: Counts,
    pub(super) trace: Option<String>,
}

fn contact(number: u64) -> ContactId {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    ContactId::from_bytes(bytes)
}

fn new_lane(in_flight_max: usize) -> Lane {
    let settings = Settings { retry_schedule: SCHEDULE.to_vec(), max_in_flight: in_flight_max };
    Lane::new(Arc::new(settings), 42)
}

impl World {
    pub(super) fn new(tracing: bool) -> Self {
        let in_flight_max = 8;
        Self {
            now: Moment(0),
            offset: 1_000_000_000_000,
            lane: new_lane(in_flight_max),
            in_flight_max,
            store: ModelStore::new(),
            receiver: Receiver::default(),
            oracle: Oracle::default(),
            pending: None,
            loads: VecDeque::new(),
            flights: Vec::new(),
            permits: 0,
            slots: in_flight_max,
            held_max: HELD_LIMIT,
            halted: true,
            deferred: false,
            draining: false,
            calm: false,
            counts: Counts::default(),
            trace: tracing.then(String::new),
        }
    }

    /// Runs a story, and the calm after it.
    pub(super) fn run(&mut self, story: &[Step]) -> Checked {
        self.restart()?;
        for step in story {
            self.note(|| format!("{step:?}"));
            self.take(*step)?;
        }
        self.note(|| "calm".to_owned());
        self.calm_down()
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            writeln!(trace, "{:>9} {}", self.now.0, text()).expect("a string takes everything");
        }
    }

    fn wall(&self) -> i64 {
        self.now.0 + self.offset
    }

    fn take(&mut self, step: Step) -> Checked {
        match step {
            Step::Commit(number) => self.commit(number, true),
            Step::CommitUnheard(number) => self.commit(number, false),
            Step::Burst { contacts, events } => {
                (0..events).try_for_each(|event| self.commit(event % contacts.max(1), false))?;
                self.input(Input::Head(self.store.head()))
            }
            Step::Ends { nth, answer, keep } => self.end_attempt(nth, answer, keep),
            Step::EndsMany { count, answer } => {
                (0..count).try_for_each(|_| self.end_attempt(0, answer, true))
            }
            Step::Page(most) => self.answer_load(most),
            Step::Write(fate) => self.write_record(fate),
            Step::Tell => self.tell_record(),
            Step::Recorded => {
                self.write_record(Fate::Written)?;
                self.tell_record()
            }
            Step::Wait(millis) => self.wait(Duration::from_millis(millis)),
            Step::Wake => self.wake(),
            Step::Outage { tries, minutes } => self.outage(tries, Duration::from_mins(minutes)),
            Step::Permits(most) => {
                self.slots = most;
                self.input(Input::Tick)
            }
            Step::HeldMax(most) => {
                self.held_max = most.min(HELD_LIMIT);
                self.input(Input::HeldMax(most))
            }
            Step::Unload => {
                self.counts.unloads += 1;
                self.input(Input::Unload)
            }
            Step::Drain => {
                self.draining = true;
                self.input(Input::Drain)
            }
            Step::InFlightMax(most) => {
                self.in_flight_max = most.max(1);
                // Before anything has happened it is the setting of the first process.
                if self.store.head() == 0 { self.crash(false, 0) } else { Ok(()) }
            }
            Step::Crash { written, received } => self.crash(written, received),
            Step::Reload => self.reload(),
            Step::Reopen => self.halt(),
            _ => self.change(step),
        }
    }

    /// What the app, the receiver's owner or time change.
    fn change(&mut self, step: Step) -> Checked {
        match step {
            Step::Subscribe => self.subscribe(),
            Step::Unsubscribe => {
                self.counts.unsubscribes += 1;
                self.store.unsubscribe();
                self.oracle.dropped();
                self.halt()
            }
            Step::Redeliver(number) => self.redeliver(number),
            Step::Replay(number) => self.replay(number),
            Step::ReplayFailed(number) => self.replay_failed(number),
            Step::Prune(number) => self.prune(number),
            Step::ClockJump(hours) => {
                self.counts.clock_jumps += 1;
                self.offset += hours * 3_600_000;
                Ok(())
            }
            Step::Refuse(number) => {
                self.receiver.refuses.insert(contact(number));
                Ok(())
            }
            Step::Accept(number) => {
                self.receiver.refuses.remove(&contact(number));
                Ok(())
            }
            Step::Poison(number) => {
                self.receiver.poisoned.insert(contact(number));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// One input with all that follows from it, permits included, as `driver.rs` does it.
    fn input(&mut self, input: Input<'_>) -> Checked {
        self.input_alone(input)?;
        for _ in 0..GRANTS_MAX {
            let wanted = self.lane.wanted(self.now);
            self.permits -= self.lane.take_surplus();
            let granted = wanted.min(self.slots.saturating_sub(self.lane.in_flight()));
            if granted == 0 {
                return Ok(());
            }
            self.permits += granted;
            self.input_alone(Input::Granted(granted))?;
        }
        ensure(false, Check::Liveness, || "permits are asked for and not used".to_owned())
    }

    fn input_alone(&mut self, input: Input<'_>) -> Checked {
        let given = if let Input::Restart(progress) = &input {
            progress.held.len()
        } else {
            self.lane.held()
        };
        let mut effects = Vec::new();
        self.lane.step(self.now, input, &mut effects);
        for effect in effects {
            self.note(|| format!("  {effect:?}"));
            match effect {
                Effect::Start { sequence, contact, attempt } => {
                    self.start(sequence, contact, attempt)?;
                }
                Effect::Load { after, limit } => self.loads.push_back((after, limit)),
                Effect::Record(plan) => {
                    ensure(self.pending.is_none(), Check::RecordFits, || {
                        "two records at a time".to_owned()
                    })?;
                    self.oracle.plans(&self.store, &plan)?;
                    let offset = self.offset;
                    self.pending = Some(Pending { plan, offset, told: None, covered: Vec::new() });
                }
            }
        }
        let held = self.lane.held();
        ensure(held <= self.held_max.max(given), Check::HeldLimit, || format!("{held} are held"))
    }

    fn start(&mut self, sequence: u64, contact: ContactId, attempt: u32) -> Checked {
        self.counts.attempts += 1;
        let enabled = self.store.enabled == Enabled::Yes && !self.halted;
        ensure(enabled, Check::NoStartWhenDisabled, || format!("{sequence} started"))?;
        ensure(!self.draining, Check::NoStartWhileStopping, || format!("{sequence} started"))?;
        let others = &self.flights;
        self.oracle.starts(self.now, &self.store, others, (sequence, contact, attempt))?;
        let life = self.oracle.life;
        let times_out = self.now.plus(ANSWER_LIMIT);
        self.flights.push(Flight {
            life,
            sequence,
            contact,
            times_out,
            began: self.now,
            counts: true,
        });
        let count = self.flights.len();
        ensure(count <= self.in_flight_max, Check::InFlightLimit, || format!("{count} in flight"))?;
        ensure(count <= self.permits, Check::PermitForEachAttempt, || {
            format!("{count} in flight with {} permits", self.permits)
        })
    }

    fn commit(&mut self, number: u64, heard: bool) -> Checked {
        let sequence = self.store.commit(contact(number));
        if self.store.enabled == Enabled::No {
            // It owes nothing, and starts at the head.
            return Ok(());
        }
        self.oracle.committed(sequence);
        if heard { self.input(Input::Head(sequence)) } else { Ok(()) }
    }

    fn end_attempt(&mut self, nth: usize, answer: Answer, keep: bool) -> Checked {
        if self.flights.is_empty() {
            return Ok(());
        }
        let flight = self.flights.remove(nth % self.flights.len());
        let refused = self.receiver.poisoned.contains(&flight.contact)
            || self.receiver.refuses.contains(&flight.contact);
        let (received, outcome) = match answer {
            Answer::Good if !refused => (true, Outcome::Delivered),
            Answer::Good | Answer::Fails => (false, Outcome::Failed),
            Answer::Lost => (!refused, Outcome::Failed),
            Answer::Pause(0) => (false, Outcome::Pause { after: None }),
            Answer::Pause(seconds) => {
                (false, Outcome::Pause { after: Some(Duration::from_secs(seconds)) })
            }
            Answer::Gone => (false, Outcome::Gone),
        };
        if received {
            self.receiver.last.insert(flight.contact, flight.sequence);
        }
        self.note(|| format!("  {} ends: {outcome:?}", flight.sequence));
        self.hear_end(flight, outcome, keep)
    }

    fn hear_end(&mut self, flight: Flight, outcome: Outcome, keep_permit: bool) -> Checked {
        let current = flight.life == self.oracle.life && flight.counts;
        let before = (self.lane.state(self.now), self.lane.held());
        self.counts.successes += u64::from(outcome == Outcome::Delivered);
        self.counts.old_results += u64::from(!current);
        self.counts.pauses += u64::from(matches!(outcome, Outcome::Pause { .. }));
        self.oracle.ended(self.now, &flight, outcome);
        self.input(Input::Ended { contact: flight.contact, outcome, keep_permit })?;

        let after = (self.lane.state(self.now), self.lane.held());
        let fails = |state: &LaneState| *state == LaneState::Failing;
        if !current {
            return ensure(before == after, Check::OldResultChangesNothing, || {
                format!("{outcome:?} of {} turned {before:?} into {after:?}", flight.sequence)
            });
        }
        if outcome == Outcome::Delivered {
            let closed = !fails(&after.0) || after.1 >= self.held_max;
            return ensure(closed, Check::CircuitCloses, || {
                format!("open after {} was delivered", flight.sequence)
            });
        }
        if fails(&after.0) && !fails(&before.0) && after.1 < self.held_max {
            self.counts.circuits += 1;
        }
        if self.calm && outcome == Outcome::Failed {
            let could_start = self.could_start();
            let bound = IN_VAIN_MAX + 3 * self.receiver.poisoned.len();
            self.oracle.failed_in_vain(could_start, bound)?;
        }
        Ok(())
    }

    /// Whether there is an event that the receiver would take, and that nothing but the lane keeps from starting.
    fn could_start(&self) -> bool {
        self.store.contacts().any(|(contact, events)| {
            let first = events
                .iter()
                .find(|sequence| **sequence > self.store.floor && !self.store.finished(**sequence));
            first.is_some_and(|first| self.oracle.due(self.now, *first))
                && !self.receiver.poisoned.contains(&contact)
                && self.flights.iter().all(|flight| flight.contact != contact)
        })
    }

    fn answer_load(&mut self, most: usize) -> Checked {
        let Some((after, limit)) = self.loads.pop_front() else { return Ok(()) };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(most.max(1));
        let events = self.store.page(after, limit);
        if events.is_empty() {
            // The driver reads again until it is there, or the lane does not want it any more.
            if !self.halted && self.lane.loaded_to() == after {
                self.loads.push_back((after, u32::try_from(limit).unwrap_or(u32::MAX)));
            }
            return Ok(());
        }
        self.input(Input::Loaded { after, events: &events })
    }

    /// Lets time pass; what is in flight for too long times out.
    fn wait(&mut self, wait: Duration) -> Checked {
        let until = self.now.plus(wait);
        while let Some(first) = self.flights.iter().map(|flight| flight.times_out).min()
            && first <= until
        {
            self.now = self.now.max(first);
            let nth = self.flights.iter().position(|flight| flight.times_out == first);
            self.counts.timeouts += 1;
            self.end_attempt(nth.unwrap_or(0), Answer::Fails, true)?;
        }
        self.now = until;
        if wait >= Duration::from_secs(1) {
            // Once a second heads are compared and halted lanes looked at.
            self.input(Input::Head(self.store.head()))?;
            if self.flights.is_empty() {
                self.reload()?;
            }
        }
        self.input(Input::Tick)
    }

    fn wake(&mut self) -> Checked {
        match self.lane.next_wake(self.now) {
            Some(at) => self.wait(at.since(self.now)),
            None => self.input(Input::Tick),
        }
    }

    fn outage(&mut self, tries: u64, apart: Duration) -> Checked {
        for _ in 0..tries {
            self.wait(apart)?;
            while !self.flights.is_empty() {
                self.end_attempt(0, Answer::Fails, true)?;
            }
            self.answer_load(512)?;
            self.write_record(Fate::Written)?;
            self.tell_record()?;
        }
        Ok(())
    }

    /// The writer takes the record under way, if it has not yet.
    fn write_record(&mut self, fate: Fate) -> Checked {
        let Some(mut pending) = self.pending.take_if(|pending| pending.told.is_none()) else {
            return Ok(());
        };
        let current = pending.plan.generation == self.store.generation;
        self.counts.records += 1;
        self.counts.refused_records += u64::from(!current);
        self.counts.failed_records += u64::from(fate != Fate::Written);
        pending.told = Some(match fate {
            Fate::Written if current => Told::Recorded,
            Fate::Written => Told::Superseded,
            Fate::FailedWritten | Fate::FailedUnwritten => Told::Unknown,
        });
        let written = current && fate != Fate::FailedUnwritten;
        let disables = written && pending.plan.disable.is_some();
        if written {
            self.store_record(&pending)?;
            pending.covered = self.oracle.covered(&self.store);
        }
        self.pending = Some(pending);
        if disables { self.halt() } else { Ok(()) }
    }

    fn store_record(&mut self, pending: &Pending) -> Checked {
        let plan = &pending.plan;
        self.oracle.records(&self.store, plan)?;
        self.counts.exhausted += plan.exhaust.len() as u64;
        self.counts.disabled += u64::from(plan.disable.is_some());
        self.counts.given_up += u64::from(plan.disable == Some(REASON_FAILING));
        self.store.record(plan, |moment| moment + pending.offset);
        Ok(())
    }

    fn tell_record(&mut self) -> Checked {
        let Some(pending) = self.pending.take_if(|pending| pending.told.is_some()) else {
            return Ok(());
        };
        let number = pending.plan.number;
        match pending.told {
            Some(Told::Recorded) => {
                self.oracle.recorded(&pending.covered);
                self.input(Input::Recorded { number })?;
            }
            told => {
                let superseded = told == Some(Told::Superseded);
                self.input(Input::NotRecorded { number, superseded })?;
            }
        }
        if std::mem::take(&mut self.deferred) { self.reload() } else { Ok(()) }
    }

    /// The commit listener's part of a change: nothing starts any more.
    fn halt(&mut self) -> Checked {
        self.halted = true;
        self.input(Input::Halt)
    }

    /// The engine's part of a change.
    fn reload(&mut self) -> Checked {
        if !self.halted {
            return Ok(());
        }
        if self.pending.is_some() {
            self.deferred = true;
            return Ok(());
        }
        if self.store.enabled == Enabled::Yes {
            return self.restart();
        }
        if self.flights.is_empty() {
            self.oracle.forgotten(&self.store, &[])?;
            self.replace_lane();
        }
        Ok(())
    }

    fn replace_lane(&mut self) {
        self.lane = new_lane(self.in_flight_max);
        self.permits = 0;
        self.loads.clear();
        self.halted = true;
        self.draining = false;
        self.held_max = HELD_LIMIT;
    }

    fn restart(&mut self) -> Checked {
        let wall = self.wall();
        let now = self.now;
        let held = |(sequence, row): (&u64, &HeldRow)| {
            let left = Duration::from_millis(u64::try_from(row.due_at - wall).unwrap_or(0));
            HeldDelivery {
                sequence: *sequence,
                contact: row.contact,
                retries_used: row.retries_used,
                attempts: row.attempts,
                due: now.plus(left.min(longest_wait(&SCHEDULE, row.retries_used))),
            }
        };
        let failing = self.store.failing.map(|(since, attempts)| {
            let age = Duration::from_millis(u64::try_from(wall - since).unwrap_or(0));
            FailingRow { since: now.minus(age), attempts }
        });
        let progress = Progress {
            generation: self.store.generation,
            head: self.store.head(),
            cursor: self.store.cursor,
            done: self.store.done.iter().copied().collect(),
            held: self.store.held.iter().map(held).collect(),
            failing,
        };
        self.oracle.restarted(now, &self.store, &progress.held, failing)?;
        self.halted = false;
        self.input(Input::Restart(progress))
    }

    /// Everything in memory is gone, and a new process starts.
    fn crash(&mut self, written: bool, received: u8) -> Checked {
        self.counts.crashes += 1;
        if let Some(pending) = self.pending.take()
            && pending.told.is_none()
            && pending.plan.generation == self.store.generation
            && written
        {
            self.store_record(&pending)?;
        }
        let flights = std::mem::take(&mut self.flights);
        for (at, flight) in flights.iter().enumerate() {
            let refused = self.receiver.poisoned.contains(&flight.contact);
            if received >> (at % 8) & 1 == 1 && !refused {
                self.receiver.last.insert(flight.contact, flight.sequence);
            }
        }
        self.oracle.forgotten(&self.store, &flights)?;
        self.replace_lane();
        self.deferred = false;
        if self.store.enabled == Enabled::Yes { self.restart() } else { Ok(()) }
    }

    fn subscribe(&mut self) -> Checked {
        self.counts.subscribes += 1;
        let wall = self.wall();
        if !self.store.subscribe(wall) {
            self.oracle.dropped();
        }
        self.halt()
    }

    fn redeliver(&mut self, number: u64) -> Checked {
        let head = self.store.head();
        let sequence = head.saturating_sub(number % head.max(1));
        match self.store.redeliver(sequence, self.now.0 + self.offset) {
            Redelivered::Nothing => return Ok(()),
            Redelivered::Due => {}
            Redelivered::Held(event, newest) => {
                self.counts.redelivers += 1;
                let owner = self.store.contact(event);
                let events = owner.map_or(&[][..], |owner| self.store.events_of(owner));
                let later = events.iter().filter(|later| **later > event);
                later.for_each(|later| self.oracle.may_come_again(*later));
                for again in [Some(event), newest].into_iter().flatten() {
                    self.oracle.owed_again(again);
                }
                return self.send_again();
            }
        }
        self.halt()
    }

    fn replay(&mut self, number: u64) -> Checked {
        let head = self.store.head();
        let Some(from) = self.store.replay(head - number % (head + 1)) else { return Ok(()) };
        self.counts.replays += 1;
        (from + 1..=head).for_each(|sequence| self.oracle.owed_again(sequence));
        self.send_again()
    }

    fn replay_failed(&mut self, number: u64) -> Checked {
        let head = self.store.head();
        let Some(from) = self.store.replay(head - number % (head + 1)) else { return Ok(()) };
        (from + 1..=head).for_each(|sequence| self.oracle.may_be_owed_again(sequence));
        self.halt()
    }

    /// The commit listener's part of a redelivery or a replay.
    fn send_again(&mut self) -> Checked {
        self.oracle.sends_again(&self.store);
        self.flights.iter_mut().for_each(|flight| flight.counts = false);
        self.halt()?;
        self.input(Input::SendAgain)
    }

    fn prune(&mut self, number: u64) -> Checked {
        let head = self.store.head();
        let (missing, begins) = self.store.prune(head - number % (head + 1));
        self.counts.prunes += u64::from(!missing.is_empty());
        self.oracle.removed(missing);
        if begins { self.halt() } else { Ok(()) }
    }

    /// Faults stop; within a bound everything owed is delivered.
    fn calm_down(&mut self) -> Checked {
        self.counts.full +=
            u64::from(self.oracle.unrecorded_most == super::checks::UNRECORDED_LIMIT);
        self.calm = true;
        self.receiver.refuses.clear();
        self.slots = CALM_PERMITS;
        if self.draining {
            self.crash(true, 255)?;
        }
        self.held_max = HELD_LIMIT;
        self.input(Input::HeldMax(HELD_LIMIT))?;
        let until = self.now.plus(CALM_TIME);
        let rounds = 100 + 12 * self.store.head();
        for _ in 0..rounds {
            if self.store.enabled != Enabled::Yes {
                self.subscribe()?;
            }
            self.input(Input::Head(self.store.head()))?;
            while !self.flights.is_empty() {
                self.end_attempt(0, Answer::Good, true)?;
            }
            for _ in 0..self.loads.len() {
                self.answer_load(usize::MAX)?;
            }
            self.write_record(Fate::Written)?;
            self.tell_record()?;
            self.reload()?;
            if self.is_settled() {
                let poisoned = &self.receiver.poisoned;
                return self.oracle.settled(&self.store, &self.receiver.last, poisoned);
            }
            if self.flights.is_empty() && self.loads.is_empty() && self.pending.is_none() {
                self.wake()?;
            }
            if self.now > until {
                break;
            }
        }
        ensure(false, Check::Liveness, || {
            format!(
                "head {}, cursor {}, held {:?}, {:?}, woken at {:?}",
                self.store.head(),
                self.store.cursor,
                self.store.held.keys(),
                self.lane.state(self.now),
                self.lane.next_wake(self.now),
            )
        })
    }

    /// Whether everything is durably finished, but for the contacts that the receiver refuses for ever.
    fn is_settled(&self) -> bool {
        self.pending.is_none()
            && !self.halted
            && self.store.contacts().all(|(contact, events)| {
                self.receiver.poisoned.contains(&contact)
                    || events.iter().rev().all(|sequence| {
                        *sequence <= self.store.floor || self.store.finished(*sequence)
                    })
            })
    }
}
