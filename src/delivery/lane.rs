//! One subscription as a pure state machine: `step(now, input)` changes it and says what to do.
//!
//! No I/O, no clock, no random numbers of its own, no order that depends on hashing: the same inputs give the same
//! effects. The engine feeds it and carries the effects out.
//!
//! Two rules decide nearly everything here. An event starts only after every earlier event of its contact is
//! durably finished: finished (delivered or exhausted) *and* recorded by a commit. And the cursor passes an event
//! only in a record that also says that the event is finished, or holds it.
//!
//! | Where an owed event is | `Phase` |
//! |---|---|
//! | behind an earlier event of its contact, or behind an attempt of an earlier generation | `Queued` |
//! | may start now | `Ready` |
//! | on its way | `InFlight` |
//! | failed, may start again at a time | `Waiting` |
//! | finished, not yet durable | `Finished` |
//!
//! Events above the cursor that are durably finished stand in `done` until the cursor passes them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::outcome::Outcome;
use super::retry::{Circuit, GIVE_UP_AGE, GIVE_UP_ATTEMPTS, UNCOUNTED_WAIT, pause, spread};
use crate::domain::clock::Moment;
use crate::domain::id::ContactId;

/// In flight plus finished but not yet durable, per lane: the most that a crash can repeat. Larger repeats more,
/// smaller limits the rate to this many events for each commit.
pub const UNRECORDED_MAX: usize = 256;
/// Held deliveries per lane. Beyond it the cursor stops and the state is failing: a receiver that refuses this
/// many contacts needs its owner, not more memory.
pub const HELD_MAX: usize = 10_000;
/// Events above the cursor that a lane looks at. Larger costs memory for each lane and a longer bitmap in each
/// record, smaller sets slow attempts aside sooner.
pub const WINDOW_MAX: u64 = 1_024;
/// Events that are set aside at a time when the window is full.
const SET_ASIDE: u64 = WINDOW_MAX / 4;
/// Wait before a record is handed in again after the store failed.
const RECORD_RETRY: Duration = Duration::from_millis(200);
/// The reason shown when a receiver answered 410.
pub const REASON_GONE: &str = "the receiver answered 410 Gone";
/// The reason shown when a receiver failed for too long.
pub const REASON_FAILING: &str = "the receiver has failed every attempt for 5 days";

/// What an operator may set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Waits between the attempts of an event that fails by its own fault; after the last it is exhausted.
    pub retry_schedule: Vec<Duration>,
    /// Attempts in flight per lane at most.
    pub max_in_flight: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { retry_schedule: super::retry::SCHEDULE_DEFAULT.to_vec(), max_in_flight: 32 }
    }
}

/// An unbroken row of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailingRow {
    /// When the first of them ended.
    pub since: Moment,
    /// How many there are.
    pub attempts: u32,
}

/// A held delivery, as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldDelivery {
    /// Its event.
    pub sequence: u64,
    /// The event's contact.
    pub contact: ContactId,
    /// Steps of the schedule used up.
    pub retries_used: u32,
    /// Attempts made.
    pub attempts: u32,
    /// When it may start.
    pub due: Moment,
}

/// Durable progress that a lane starts from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The generation of the subscription.
    pub generation: u64,
    /// The head of the service's log as far as known.
    pub head: u64,
    /// Everything up to it is finished or held.
    pub cursor: u64,
    /// Finished events above the cursor.
    pub done: Vec<u64>,
    /// Held deliveries by sequence.
    pub held: Vec<HeldDelivery>,
    /// The unbroken row of failures it is in.
    pub failing: Option<FailingRow>,
}

/// What happened to a lane.
#[derive(Debug)]
pub enum Input<'a> {
    /// The service's log has grown to here.
    Head(u64),
    /// Events that directly follow `after`, in order.
    Loaded {
        /// The number that the load was asked after.
        after: u64,
        /// Sequence and contact of each.
        events: &'a [(u64, ContactId)],
    },
    /// An attempt ended.
    Ended {
        /// The contact, which has no other attempt in flight.
        contact: ContactId,
        /// What the answer means.
        outcome: Outcome,
        /// Whether the lane keeps the permit; not when other lanes wait for one.
        keep_permit: bool,
    },
    /// A record is durable.
    Recorded {
        /// Which.
        number: u64,
    },
    /// A record was not stored.
    NotRecorded {
        /// Which.
        number: u64,
        /// Whether the generation is over; else the store failed and the outcome is unknown.
        superseded: bool,
    },
    /// Permits for this many more attempts.
    Granted(usize),
    /// Time passed.
    Tick,
    /// The stored subscription changed: start nothing until [`Input::Restart`].
    Halt,
    /// The server stops: start nothing any more, but record what ends.
    Drain,
    /// Go on from here; only after the result of a record that was under way. Attempts in flight go on as attempts of their generation.
    Restart(Progress),
}

/// What a lane wants recorded in one group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Names the record in [`Input::Recorded`].
    pub number: u64,
    /// The generation it belongs to.
    pub generation: u64,
    /// The new cursor.
    pub cursor: u64,
    /// Finished events above it.
    pub done: Vec<u64>,
    /// Held deliveries to write.
    pub hold: Vec<HeldDelivery>,
    /// Held deliveries to remove: they are finished.
    pub release: Vec<u64>,
    /// Exhausted deliveries: sequence, contact, attempts.
    pub exhaust: Vec<(u64, ContactId, u32)>,
    /// The unbroken row of failures.
    pub failing: Option<FailingRow>,
    /// Disables the subscription with this reason.
    pub disable: Option<&'static str>,
}

/// What the engine is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Start this attempt.
    Start {
        /// The event.
        sequence: u64,
        /// Its contact.
        contact: ContactId,
        /// Which attempt of the event it is, from 1.
        attempt: u32,
    },
    /// Load at most `limit` events after this number.
    Load {
        /// The last number already loaded.
        after: u64,
        /// How many at most.
        limit: u32,
    },
    /// Record this.
    Record(Plan),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finish {
    Delivered,
    Exhausted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Queued,
    Ready,
    InFlight,
    Waiting,
    Finished(Finish),
}

#[derive(Clone, Copy, Debug)]
struct Owed {
    contact: ContactId,
    phase: Phase,
    attempts: u32,
    retries_used: u32,
    /// Successes of the lane when the last attempt failed.
    failed_at: Option<u64>,
    /// Successes of the lane when the receiver last answered this event with a pause.
    paused_at: Option<u64>,
    due: Moment,
    /// Held: the cursor may pass it.
    held: bool,
    /// A row of it may be in the store.
    stored: bool,
}

#[derive(Clone, Copy, Debug)]
struct Flight {
    generation: u64,
    sequence: u64,
    started: Moment,
}

#[derive(Debug)]
struct Recording {
    number: u64,
    finished: Vec<u64>,
    held: Vec<u64>,
}

/// How a lane is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneState {
    /// Sending, or nothing to send.
    Active,
    /// The receiver asked for a pause.
    Paused,
    /// The circuit is open, or too many deliveries are held.
    Failing,
}

/// The lane of one subscription.
#[derive(Debug)]
pub struct Lane {
    settings: Arc<Settings>,
    seed: u64,
    generation: u64,
    running: bool,
    draining: bool,
    head: u64,
    cursor: u64,
    loaded_to: u64,
    loading: bool,
    owed: BTreeMap<u64, Owed>,
    done: BTreeSet<u64>,
    chains: BTreeMap<ContactId, VecDeque<u64>>,
    ready: BTreeSet<u64>,
    waiting: BTreeSet<(Moment, u64)>,
    flights: BTreeMap<ContactId, Flight>,
    finished: BTreeSet<u64>,
    dirty: BTreeSet<u64>,
    /// Delivered under an earlier generation, not loaded in this one yet.
    carried: BTreeSet<u64>,
    held: usize,
    recording: Option<Recording>,
    records: u64,
    record_again_at: Option<Moment>,
    permits: usize,
    yielded: usize,
    slots: usize,
    successes: u64,
    last_failed: bool,
    circuit: Circuit,
    probed: Option<ContactId>,
    paused_until: Option<Moment>,
    pauses: u32,
    failing: Option<FailingRow>,
    failing_changed: bool,
    disable: Option<&'static str>,
}

impl Lane {
    /// A lane that waits for its first [`Input::Restart`]. The seed spreads its waits.
    #[must_use]
    pub fn new(settings: Arc<Settings>, seed: u64) -> Self {
        Self {
            settings,
            seed,
            generation: 0,
            running: false,
            draining: false,
            head: 0,
            cursor: 0,
            loaded_to: 0,
            loading: false,
            owed: BTreeMap::new(),
            done: BTreeSet::new(),
            chains: BTreeMap::new(),
            ready: BTreeSet::new(),
            waiting: BTreeSet::new(),
            flights: BTreeMap::new(),
            finished: BTreeSet::new(),
            dirty: BTreeSet::new(),
            carried: BTreeSet::new(),
            held: 0,
            recording: None,
            records: 0,
            record_again_at: None,
            permits: 0,
            yielded: 0,
            slots: 1,
            successes: 0,
            last_failed: false,
            circuit: Circuit::Closed { failures: 0 },
            probed: None,
            paused_until: None,
            pauses: 0,
            failing: None,
            failing_changed: false,
            disable: None,
        }
    }

    /// Takes one input and appends what is to be done.
    pub fn step(&mut self, now: Moment, input: Input<'_>, effects: &mut Vec<Effect>) {
        match input {
            Input::Head(head) => self.head = self.head.max(head),
            Input::Loaded { after, events } => self.take_loaded(after, events),
            Input::Ended { contact, outcome, keep_permit } => {
                self.take_outcome(now, contact, outcome);
                self.yielded = usize::from(!keep_permit && self.permits > self.flights.len());
                self.permits -= self.yielded;
            }
            Input::Recorded { number } => self.take_recorded(number),
            Input::NotRecorded { number, superseded } => {
                self.take_not_recorded(now, number, superseded);
            }
            Input::Granted(permits) => self.permits += permits,
            Input::Tick => {}
            Input::Halt => self.running = false,
            Input::Drain => self.draining = true,
            Input::Restart(progress) => self.restart(progress),
        }
        if self.running {
            self.start_attempts(now, effects);
            self.load_more(now, effects);
            self.plan_record(now, effects);
        }
    }

    /// The generation that it works in.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Attempts in flight, those of earlier generations included.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Whether this event is loaded or held, and not durably finished.
    #[must_use]
    pub fn owes(&self, sequence: u64) -> bool {
        self.owed.contains_key(&sequence)
    }

    /// How it is doing.
    #[must_use]
    pub fn state(&self, now: Moment) -> LaneState {
        if matches!(self.circuit, Circuit::Open { .. }) || self.held >= HELD_MAX {
            LaneState::Failing
        } else if self.paused_until.is_some_and(|until| until > now) {
            LaneState::Paused
        } else {
            LaneState::Active
        }
    }

    /// Whether its attempts must not take more than the share of slots that doubtful lanes have together: its last
    /// attempt failed, or one is older than `patience`.
    #[must_use]
    pub fn doubtful(&self, now: Moment, patience: Duration) -> bool {
        self.last_failed || self.flights.values().any(|flight| now.since(flight.started) > patience)
    }

    /// Whether something is finished or changed that no commit has recorded yet.
    #[must_use]
    pub fn unrecorded(&self) -> bool {
        self.recording.is_some() || !self.finished.is_empty() || !self.dirty.is_empty()
    }

    /// Whether a record is under way. Progress must not be read from the store until its result is known.
    #[must_use]
    pub fn recording(&self) -> bool {
        self.recording.is_some()
    }

    /// How many more attempts it could start now, had it the permits.
    #[must_use]
    pub fn wanted(&self, now: Moment) -> usize {
        let room = self.room(now);
        if room == 0 {
            return 0;
        }
        let due = self.waiting.range(..=(now, u64::MAX)).take(room).count();
        (self.ready.len() + due).min(room).saturating_sub(self.permits - self.flights.len())
    }

    /// Gives back the permits that no attempt uses.
    pub fn take_surplus(&mut self) -> usize {
        let surplus = self.permits - self.flights.len();
        self.permits -= surplus;
        surplus + std::mem::take(&mut self.yielded)
    }

    /// When it must get a [`Input::Tick`], should nothing else happen before.
    #[must_use]
    pub fn next_wake(&self, now: Moment) -> Option<Moment> {
        if !self.running {
            return None;
        }
        let first = if self.ready.is_empty() {
            self.waiting.first().map(|(due, _)| *due)
        } else {
            Some(now)
        };
        let probe_at = match self.circuit {
            Circuit::Open { probe_at, .. } => Some(probe_at),
            Circuit::Closed { .. } => None,
        };
        let start =
            first.map(|at| at.max(probe_at.unwrap_or(at)).max(self.paused_until.unwrap_or(at)));
        [start, self.record_again_at].into_iter().flatten().filter(|at| *at > now).min()
    }

    /// Attempts that may start now by the rules for the lane as a whole, permits apart.
    fn room(&self, now: Moment) -> usize {
        let paused = self.paused_until.is_some_and(|until| until > now);
        if !self.running || self.draining || paused || self.disable.is_some() {
            return 0;
        }
        let used = self.flights.len();
        match self.circuit {
            Circuit::Open { probe_at, .. } => usize::from(used == 0 && probe_at <= now),
            Circuit::Closed { .. } => {
                let slots = self.slots.min(self.settings.max_in_flight);
                let unrecorded = used + self.unrecorded_count();
                slots.saturating_sub(used).min(UNRECORDED_MAX.saturating_sub(unrecorded))
            }
        }
    }

    fn unrecorded_count(&self) -> usize {
        self.finished.len() + self.recording.as_ref().map_or(0, |record| record.finished.len())
    }

    fn start_attempts(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        while self.permits > self.flights.len() && self.room(now) > 0 {
            let next = if matches!(self.circuit, Circuit::Open { .. }) {
                self.pick_probe(now)
            } else {
                self.pick_next(now)
            };
            let Some(sequence) = next else { return };
            self.start(now, sequence, effects);
        }
    }

    /// What is due again goes first: its contact has waited longest.
    fn pick_next(&self, now: Moment) -> Option<u64> {
        match self.waiting.first() {
            Some((due, sequence)) if *due <= now => Some(*sequence),
            _ => self.ready.first().copied(),
        }
    }

    /// The oldest owed event of the next contact, round robin: one poisoned event must not keep the circuit open.
    fn pick_probe(&self, now: Moment) -> Option<u64> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let startable = |(_, chain): (&ContactId, &VecDeque<u64>)| {
            let sequence = *chain.front()?;
            let owed = self.owed.get(&sequence)?;
            match owed.phase {
                Phase::Ready => Some(sequence),
                Phase::Waiting if owed.due <= now => Some(sequence),
                _ => None,
            }
        };
        let Some(last) = self.probed else {
            return self.chains.iter().find_map(startable);
        };
        self.chains
            .range((Excluded(last), Unbounded))
            .chain(self.chains.range((Unbounded, Included(last))))
            .find_map(startable)
    }

    fn start(&mut self, now: Moment, sequence: u64, effects: &mut Vec<Effect>) {
        let Some(owed) = self.owed.get_mut(&sequence) else {
            return;
        };
        self.ready.remove(&sequence);
        self.waiting.remove(&(owed.due, sequence));
        owed.phase = Phase::InFlight;
        owed.attempts += 1;
        let flight = Flight { generation: self.generation, sequence, started: now };
        self.flights.insert(owed.contact, flight);
        if matches!(self.circuit, Circuit::Open { .. }) {
            self.probed = Some(owed.contact);
        }
        effects.push(Effect::Start { sequence, contact: owed.contact, attempt: owed.attempts });
    }

    fn take_outcome(&mut self, now: Moment, contact: ContactId, outcome: Outcome) {
        let Some(flight) = self.flights.remove(&contact) else {
            return;
        };
        let sequence = flight.sequence;
        let current = flight.generation == self.generation
            && self.owed.get(&sequence).is_some_and(|owed| owed.phase == Phase::InFlight);
        if !current {
            self.take_old_outcome(contact, sequence, outcome);
            return;
        }
        match outcome {
            Outcome::Delivered => {
                self.succeed();
                self.finish(sequence, Finish::Delivered);
            }
            Outcome::Failed => self.fail(now, sequence),
            Outcome::Pause { after } => self.pause(now, sequence, after),
            Outcome::Gone => {
                self.disable = Some(REASON_GONE);
                self.put_back(sequence);
            }
        }
    }

    /// An attempt that began before a restart: a success counts if the event is still owed; nothing else does.
    fn take_old_outcome(&mut self, contact: ContactId, sequence: u64, outcome: Outcome) {
        let delivered = outcome == Outcome::Delivered;
        let head = self.chains.get(&contact).and_then(|chain| chain.front().copied());
        if delivered && head == Some(sequence) {
            self.finish(sequence, Finish::Delivered);
            return;
        }
        if delivered && sequence > self.loaded_to {
            self.carried.insert(sequence);
        }
        self.offer_head(contact);
    }

    fn succeed(&mut self) {
        self.successes += 1;
        self.last_failed = false;
        self.pauses = 0;
        if self.failing.take().is_some() {
            self.failing_changed = true;
        }
        if matches!(self.circuit, Circuit::Open { .. }) {
            // A slow start, so that a receiver that is just back is not flooded.
            self.slots = 1;
        } else {
            self.slots = (self.slots + 1).min(self.settings.max_in_flight);
        }
        self.circuit = Circuit::Closed { failures: 0 };
    }

    fn finish(&mut self, sequence: u64, how: Finish) {
        let Some(owed) = self.owed.get_mut(&sequence) else {
            return;
        };
        self.ready.remove(&sequence);
        self.waiting.remove(&(owed.due, sequence));
        self.dirty.remove(&sequence);
        owed.phase = Phase::Finished(how);
        self.finished.insert(sequence);
    }

    fn fail(&mut self, now: Moment, sequence: u64) {
        let lone = self.chains.len() == 1;
        let Some(owed) = self.owed.get_mut(&sequence) else {
            return;
        };
        let others_succeeded = owed.failed_at.is_some_and(|at| self.successes > at);
        owed.failed_at = Some(self.successes);
        self.last_failed = true;
        let row = self.failing.get_or_insert(FailingRow { since: now, attempts: 0 });
        row.attempts = row.attempts.saturating_add(1);
        self.failing_changed = true;
        if row.attempts >= GIVE_UP_ATTEMPTS && now.since(row.since) >= GIVE_UP_AGE {
            self.disable = Some(REASON_FAILING);
        }
        // A probe that fails puts off the next one, whoever's fault it is.
        if !others_succeeded || matches!(self.circuit, Circuit::Open { .. }) {
            self.circuit = self.circuit.after_failure(now, lone, self.seed);
        }
        if others_succeeded {
            self.back_off(now, sequence);
        } else {
            self.wait(now, sequence, UNCOUNTED_WAIT);
        }
    }

    /// A failure that is the event's fault: it uses up a step of the schedule.
    fn back_off(&mut self, now: Moment, sequence: u64) {
        let Some(owed) = self.owed.get_mut(&sequence) else {
            return;
        };
        let step = usize::try_from(owed.retries_used).unwrap_or(usize::MAX);
        match self.settings.retry_schedule.get(step).copied() {
            Some(wait) => {
                owed.retries_used += 1;
                self.wait(now, sequence, wait);
            }
            None => self.finish(sequence, Finish::Exhausted),
        }
    }

    fn wait(&mut self, now: Moment, sequence: u64, wait: Duration) {
        let Some(owed) = self.owed.get_mut(&sequence) else {
            return;
        };
        let salt = sequence.rotate_left(32) ^ u64::from(owed.attempts);
        owed.due = now.plus(spread(wait, self.seed, salt));
        owed.phase = Phase::Waiting;
        self.waiting.insert((owed.due, sequence));
        self.hold(sequence);
    }

    /// Holds an event, unless too many are held: then the cursor stops before it.
    fn hold(&mut self, sequence: u64) -> bool {
        let Some(owed) = self.owed.get_mut(&sequence) else {
            return false;
        };
        if !owed.held {
            if self.held >= HELD_MAX {
                return false;
            }
            owed.held = true;
            self.held += 1;
        }
        self.dirty.insert(sequence);
        true
    }

    fn pause(&mut self, now: Moment, sequence: u64, after: Option<Duration>) {
        let Some(owed) = self.owed.get_mut(&sequence) else {
            return;
        };
        if owed.paused_at.is_some_and(|at| self.successes > at) {
            // Others got through since it was last answered so: this event is what the receiver does not want.
            owed.paused_at = Some(self.successes);
            self.back_off(now, sequence);
            return;
        }
        owed.paused_at = Some(self.successes);
        let until = now.plus(pause(after, self.pauses));
        // The answers of one volley are one wish, not a reason to double for each.
        if after.is_none() && self.paused_until.is_none_or(|before| before <= now) {
            self.pauses = self.pauses.saturating_add(1);
        }
        self.paused_until = self.paused_until.max(Some(until));
        self.slots = 1;
        self.put_back(sequence);
    }

    fn put_back(&mut self, sequence: u64) {
        if let Some(owed) = self.owed.get_mut(&sequence) {
            owed.phase = Phase::Ready;
            self.ready.insert(sequence);
        }
    }

    /// Makes the first owed event of a contact startable, when nothing of the contact is in the way.
    fn offer_head(&mut self, contact: ContactId) {
        if self.flights.contains_key(&contact) {
            return;
        }
        let Some(sequence) = self.chains.get(&contact).and_then(|chain| chain.front().copied())
        else {
            return;
        };
        let Some(owed) = self.owed.get_mut(&sequence) else {
            return;
        };
        if owed.phase != Phase::Queued {
            return;
        }
        if owed.stored {
            owed.phase = Phase::Waiting;
            self.waiting.insert((owed.due, sequence));
        } else {
            owed.phase = Phase::Ready;
            self.ready.insert(sequence);
        }
    }

    fn take_loaded(&mut self, after: u64, events: &[(u64, ContactId)]) {
        if after != self.loaded_to {
            return;
        }
        self.loading = false;
        for (sequence, contact) in events {
            if *sequence != self.loaded_to + 1 {
                // A gap: nothing after it may be looked at, or the events in it would be passed over.
                return;
            }
            self.loaded_to = *sequence;
            if self.done.contains(sequence) || self.owed.contains_key(sequence) {
                continue;
            }
            let owed = Owed {
                contact: *contact,
                phase: Phase::Queued,
                attempts: 0,
                retries_used: 0,
                failed_at: None,
                paused_at: None,
                due: Moment::default(),
                held: false,
                stored: false,
            };
            self.owe(*sequence, owed);
        }
    }

    fn owe(&mut self, sequence: u64, owed: Owed) {
        let contact = owed.contact;
        self.owed.insert(sequence, owed);
        let chain = self.chains.entry(contact).or_default();
        let place = chain.partition_point(|earlier| *earlier < sequence);
        chain.insert(place, sequence);
        if place != 0 {
            return;
        }
        if self.carried.remove(&sequence) {
            self.finish(sequence, Finish::Delivered);
        } else {
            self.offer_head(contact);
        }
    }

    fn load_more(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        let ahead = (self.slots * 8).clamp(16, 512);
        let enough = self.loaded_to >= self.head || self.ready.len() > ahead / 2;
        if self.loading || self.draining || enough {
            return;
        }
        let stopped = matches!(self.circuit, Circuit::Open { .. })
            || self.paused_until.is_some_and(|until| until > now);
        if stopped && !self.owed.is_empty() {
            return;
        }
        let room = WINDOW_MAX.saturating_sub(self.loaded_to - self.cursor);
        if room == 0 {
            // The record of what is set aside moves the cursor; the step that hears of it loads.
            if self.ready.is_empty() {
                self.set_aside();
            }
            return;
        }
        self.loading = true;
        let limit = u64::try_from(ahead).unwrap_or(u64::MAX).min(room);
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        effects.push(Effect::Load { after: self.loaded_to, limit });
    }

    /// The window is full and nothing in it can start: what keeps the cursor back becomes held.
    fn set_aside(&mut self) {
        let blocking: Vec<u64> = self
            .owed
            .range(self.cursor + 1..=self.cursor + SET_ASIDE)
            .filter(|(_, owed)| !owed.held && !matches!(owed.phase, Phase::Finished(_)))
            .map(|(sequence, _)| *sequence)
            .collect();
        for sequence in blocking {
            if !self.hold(sequence) {
                return;
            }
        }
    }

    fn plan_record(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        let nothing = self.finished.is_empty()
            && self.dirty.is_empty()
            && !self.failing_changed
            && self.disable.is_none();
        let waits = self.record_again_at.is_some_and(|at| at > now);
        if nothing || waits || self.recording.is_some() {
            return;
        }
        self.record_again_at = None;
        self.records += 1;
        let mut plan = Plan {
            number: self.records,
            generation: self.generation,
            failing: self.failing,
            disable: self.disable,
            ..Plan::default()
        };
        let finished: Vec<u64> = std::mem::take(&mut self.finished).into_iter().collect();
        for sequence in &finished {
            let Some(owed) = self.owed.get(sequence) else {
                continue;
            };
            if *sequence > self.cursor {
                self.done.insert(*sequence);
            }
            if owed.stored {
                plan.release.push(*sequence);
            }
            if owed.phase == Phase::Finished(Finish::Exhausted) {
                plan.exhaust.push((*sequence, owed.contact, owed.attempts));
            }
        }
        let held: Vec<u64> = std::mem::take(&mut self.dirty).into_iter().collect();
        for sequence in &held {
            let Some(owed) = self.owed.get_mut(sequence) else {
                continue;
            };
            owed.stored = true;
            plan.hold.push(HeldDelivery {
                sequence: *sequence,
                contact: owed.contact,
                retries_used: owed.retries_used,
                attempts: owed.attempts,
                due: owed.due,
            });
        }
        self.advance_cursor();
        plan.cursor = self.cursor;
        plan.done = self.done.iter().copied().collect();
        self.failing_changed = false;
        self.recording = Some(Recording { number: plan.number, finished, held });
        effects.push(Effect::Record(plan));
    }

    fn advance_cursor(&mut self) {
        while self.cursor < self.loaded_to {
            let next = self.cursor + 1;
            let held = self.owed.get(&next).is_some_and(|owed| owed.held);
            if !self.done.remove(&next) && !held {
                return;
            }
            self.cursor = next;
        }
    }

    fn take_recorded(&mut self, number: u64) {
        let Some(recording) = self.recording.take_if(|record| record.number == number) else {
            return;
        };
        if self.disable.is_some() {
            // The subscription is disabled: a new generation began with this record.
            self.running = false;
        }
        for sequence in recording.finished {
            let Some(owed) = self.owed.remove(&sequence) else {
                continue;
            };
            if owed.held {
                self.held -= 1;
            }
            if let Some(chain) = self.chains.get_mut(&owed.contact) {
                chain.pop_front_if(|first| *first == sequence);
                if chain.is_empty() {
                    self.chains.remove(&owed.contact);
                }
            }
            self.offer_head(owed.contact);
        }
    }

    /// The results stay; they are handed in again. That some may be stored already does no harm.
    fn take_not_recorded(&mut self, now: Moment, number: u64, superseded: bool) {
        let Some(recording) = self.recording.take_if(|record| record.number == number) else {
            return;
        };
        self.finished.extend(recording.finished);
        self.dirty.extend(recording.held.into_iter().filter(|sequence| {
            let owed = self.owed.get(sequence);
            owed.is_some_and(|owed| !matches!(owed.phase, Phase::Finished(_)))
        }));
        self.failing_changed = true;
        self.record_again_at = Some(now.plus(RECORD_RETRY));
        if superseded {
            self.running = false;
        }
    }

    /// Begins anew from durable progress. Deliveries that no commit has recorded are not forgotten: a success
    /// stays a success if its event is still owed.
    fn restart(&mut self, progress: Progress) {
        let recording = self.recording.take().map(|record| record.finished).unwrap_or_default();
        let delivered = recording.iter().chain(&self.finished).filter(|sequence| {
            let owed = self.owed.get(sequence);
            owed.is_some_and(|owed| owed.phase == Phase::Finished(Finish::Delivered))
        });
        let mut carried: BTreeSet<u64> = delivered.copied().collect();
        carried.append(&mut self.carried);
        let fresh = Self::new(Arc::clone(&self.settings), self.seed);
        let before = std::mem::replace(self, fresh);
        self.flights = before.flights;
        self.permits = before.permits;
        self.yielded = before.yielded;
        self.draining = before.draining;
        self.records = before.records;
        self.carried = carried;
        self.running = true;
        self.generation = progress.generation;
        self.head = progress.head.max(before.head);
        self.cursor = progress.cursor;
        self.loaded_to = progress.cursor;
        self.done = progress.done.into_iter().filter(|sequence| *sequence > self.cursor).collect();
        self.failing = progress.failing;
        for held in progress.held {
            self.held += 1;
            let owed = Owed {
                contact: held.contact,
                phase: Phase::Queued,
                attempts: held.attempts,
                retries_used: held.retries_used,
                failed_at: None,
                paused_at: None,
                due: held.due,
                held: true,
                stored: true,
            };
            self.owe(held.sequence, owed);
        }
        // What is neither held nor above the cursor any more is finished, or was dropped.
        self.carried = self.carried.split_off(&(self.cursor + 1));
    }
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;
