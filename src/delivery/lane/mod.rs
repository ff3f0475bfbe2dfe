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

mod answers;
mod records;
mod signals;
mod window;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub use self::signals::{Effect, FailingRow, HeldDelivery, Input, LaneState, Plan, Progress};
use super::retry::{Circuit, History};
use crate::domain::clock::Moment;
use crate::domain::id::ContactId;
pub use crate::domain::subscription::HELD_MAX;

/// In flight plus finished but not yet durable, per lane: the most that a crash can repeat. Larger repeats more,
/// smaller limits the rate to this many events for each commit.
pub const UNRECORDED_MAX: usize = 256;
/// Events above the cursor that a lane looks at. Larger costs memory for each lane and a longer bitmap in each
/// record, smaller sets slow attempts aside sooner.
pub const WINDOW_MAX: u64 = 1_024;
/// Events that are set aside at a time when the window is full.
const SET_ASIDE: u64 = WINDOW_MAX / 4;
/// Events that a lane keeps loaded while its circuit is open or it is paused: enough contacts for the probes to go
/// round. Larger costs memory for each receiver that is down, smaller reads the log more often.
const KEPT_WHILE_PROBING: usize = 16;
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
    /// Successes of the lane when the last attempt ended, if it was no success itself.
    tried_at: Option<u64>,
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
    /// Not when its event may have been wanted again since it began.
    counts: bool,
}

#[derive(Debug)]
struct Recording {
    number: u64,
    finished: Vec<u64>,
    held: Vec<u64>,
    /// It says that the subscription is disabled. A reason found while it was under way stands in the next one.
    disables: bool,
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
    /// Delivered under an earlier generation, not loaded in this one yet. What starts in this one ends that: the receiver
    /// would be left with an older event.
    carried: BTreeMap<ContactId, BTreeSet<u64>>,
    /// Whether the next restart carries nothing: events are to be sent again.
    sends_again: bool,
    held: usize,
    held_max: usize,
    /// Boxed, because there is none most of the time, and lanes are many.
    recording: Option<Box<Recording>>,
    records: u64,
    record_again_at: Option<Moment>,
    permits: usize,
    yielded: usize,
    slots: usize,
    successes: u64,
    /// Whether the last attempt that ended was a failure.
    last_failed: bool,
    circuit: Circuit,
    history: History,
    /// Whether the next start, if there is a choice, is of an event that failed before.
    again_next: bool,
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
            carried: BTreeMap::new(),
            sends_again: false,
            held: 0,
            held_max: HELD_MAX,
            recording: None,
            records: 0,
            record_again_at: None,
            permits: 0,
            yielded: 0,
            slots: 1,
            successes: 0,
            last_failed: false,
            circuit: Circuit::Closed { failures: 0 },
            history: History::default(),
            again_next: true,
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
        let page_arrived = matches!(input, Input::Loaded { .. });
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
            Input::HeldMax(most) => self.held_max = most.min(HELD_MAX),
            // Successes of an earlier generation are being matched with what is loaded, and that ends by itself.
            Input::Unload if !self.carried.is_empty() => {}
            Input::Unload => self.unload(None),
            Input::Tick => {}
            Input::Halt => self.running = false,
            Input::WentBack => self.go_back(),
            Input::SendAgain => self.forget_successes(),
            Input::Drain => self.draining = true,
            Input::Restart(progress) => self.restart(progress),
        }
        if self.running {
            if self.only_probes(now) && self.carried.is_empty() {
                self.unload(Some(KEPT_WHILE_PROBING));
            }
            self.start_attempts(now, effects);
            self.load_more(now, page_arrived, effects);
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

    /// The last event that it has looked at; what follows must be loaded.
    #[must_use]
    pub fn loaded_to(&self) -> u64 {
        self.loaded_to
    }

    /// Loaded events that are not held: what can be unloaded, or is about to be finished.
    #[must_use]
    pub fn window_len(&self) -> usize {
        self.owed.len() - self.held
    }

    /// Held deliveries, all of them in memory.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// How it is doing.
    #[must_use]
    pub fn state(&self, now: Moment) -> LaneState {
        if matches!(self.circuit, Circuit::Open { .. }) || self.held >= self.held_max {
            LaneState::Failing
        } else if self.paused_until.is_some_and(|until| until > now) {
            LaneState::Paused
        } else {
            LaneState::Active
        }
    }

    /// Whether its last attempt failed. A lane that has not tried yet may show itself.
    #[must_use]
    pub fn last_failed(&self) -> bool {
        self.last_failed
    }

    /// Whether one of its attempts is older than `patience`.
    #[must_use]
    pub fn hangs(&self, now: Moment, patience: Duration) -> bool {
        self.flights.values().any(|flight| now.since(flight.started) > patience)
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
        let mut startable = self.ready.len() + due;
        if startable == 0 && self.may_load() {
            // Nothing is loaded without a permit, so that a lane in line for one keeps only its cursor.
            startable = 1;
        }
        startable.min(room).saturating_sub(self.permits - self.flights.len())
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
        let first = if self.ready.is_empty() && !self.may_load() {
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

    /// Whether it sends nothing but a probe: the circuit is open, or the receiver asked for a pause.
    fn only_probes(&self, now: Moment) -> bool {
        matches!(self.circuit, Circuit::Open { .. })
            || self.paused_until.is_some_and(|until| until > now)
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
        let recording = self.recording.as_ref().map_or(0, |record| record.finished.len());
        let carried: usize = self.carried.values().map(BTreeSet::len).sum();
        self.finished.len() + recording + carried
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

    /// What is due again and what was not tried yet take turns: neither may a receiver that refuses much keep the
    /// others waiting, nor a stream of new events those that failed.
    fn pick_next(&mut self, now: Moment) -> Option<u64> {
        let due =
            self.waiting.first().filter(|(due, _)| *due <= now).map(|(_, sequence)| *sequence);
        let ready = self.ready.first().copied();
        let (Some(due), Some(ready)) = (due, ready) else { return due.or(ready) };
        self.again_next = !self.again_next;
        Some(if self.again_next { ready } else { due })
    }

    /// The oldest owed event of the next contact, round robin: one poisoned event must not keep the circuit open.
    /// Contacts whose event has not failed yet come first, because they are the likelier to get through.
    fn pick_probe(&self, now: Moment) -> Option<u64> {
        self.next_head(|owed| owed.phase == Phase::Ready)
            .or_else(|| self.next_head(|owed| owed.phase == Phase::Waiting && owed.due <= now))
    }

    /// The first owed event of the next contact after the one that was probed last, if it is such a one.
    fn next_head(&self, wanted: impl Fn(&Owed) -> bool) -> Option<u64> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let head = |(_, chain): (&ContactId, &VecDeque<u64>)| {
            let sequence = *chain.front()?;
            self.owed.get(&sequence).is_some_and(&wanted).then_some(sequence)
        };
        let Some(last) = self.probed else { return self.chains.iter().find_map(head) };
        self.chains
            .range((Excluded(last), Unbounded))
            .chain(self.chains.range((Unbounded, Included(last))))
            .find_map(head)
    }

    fn start(&mut self, now: Moment, sequence: u64, effects: &mut Vec<Effect>) {
        let Some(owed) = self.owed.get_mut(&sequence) else {
            return;
        };
        self.ready.remove(&sequence);
        self.waiting.remove(&(owed.due, sequence));
        owed.phase = Phase::InFlight;
        owed.attempts += 1;
        let flight = Flight { generation: self.generation, sequence, started: now, counts: true };
        self.flights.insert(owed.contact, flight);
        self.carried.remove(&owed.contact);
        if matches!(self.circuit, Circuit::Open { .. }) {
            self.probed = Some(owed.contact);
        }
        effects.push(Effect::Start { sequence, contact: owed.contact, attempt: owed.attempts });
    }
}

#[cfg(test)]
#[path = "lane_tests.rs"]
mod tests;
