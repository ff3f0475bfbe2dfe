//! The promises that are checked, each with its name, and what the world knows to judge them by.
//!
//! The oracle counts for itself: attempts, retries used up, failures in a row, what the receiver has answered. It
//! shares no code with the lane, and its limits are written down here once more on purpose.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::model_store::ModelStore;
use crate::delivery::lane::{FailingRow, HeldDelivery, Plan, REASON_FAILING, REASON_GONE};
use crate::delivery::outcome::Outcome;
use crate::domain::clock::Moment;
use crate::domain::id::ContactId;

/// The most that a crash may repeat.
pub(super) const UNRECORDED_LIMIT: usize = 256;
/// The most that a lane may hold.
pub(super) const HELD_LIMIT: usize = 10_000;
/// Failures in a row, by the receiver's fault, after which only probes may start, when everything else was taken lately.
const CIRCUIT_LIMIT: u32 = 5;
/// The most of them.
const CIRCUIT_LIMIT_MAX: u32 = 50;
/// Completions before a row of failures that say how often the receiver fails.
const LATELY: usize = 32;
/// Age and length of the row of failures that ends a subscription.
const GIVE_UP: (Duration, u32) = (Duration::from_hours(120), 100);
/// The waits of the lanes in the worlds.
pub(super) const SCHEDULE: [Duration; 3] =
    [Duration::from_secs(5), Duration::from_secs(30), Duration::from_mins(2)];
/// Wait after a failure that is the receiver's fault.
const UNCOUNTED: Duration = Duration::from_secs(1);

/// A promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Check {
    NothingLost,
    CursorPassesOnlySettled,
    RecordFits,
    OneInFlightPerContact,
    NeverBack,
    AfterDurableOnly,
    StartsOnlyOwed,
    RepeatsOnlyAfterCrash,
    NoStartWhenDisabled,
    NoStartWhileStopping,
    OldResultChangesNothing,
    NotBeforeItsTime,
    WaitIsClamped,
    RetryOnlyForFault,
    FaultUsesRetry,
    AttemptsCounted,
    FailingRowCounted,
    GivesUpInTime,
    OpenCircuitProbes,
    CircuitCloses,
    CircuitTriesOthers,
    UnrecordedLimit,
    HeldLimit,
    InFlightLimit,
    PermitForEachAttempt,
    EndsOnNewest,
    Liveness,
    NoPanic,
}

impl Check {
    /// Every one, with the words that a failure prints.
    pub(super) const ALL: [(Self, &str); 28] = [
        (Self::NothingLost, "nothing acknowledged is gone"),
        (Self::CursorPassesOnlySettled, "the cursor passes only what is finished or held"),
        (Self::RecordFits, "a record fits what is stored"),
        (Self::OneInFlightPerContact, "one attempt in flight per contact"),
        (Self::NeverBack, "starts of a contact never go back within a generation"),
        (Self::AfterDurableOnly, "an event starts after its contact's earlier ones are durable"),
        (Self::StartsOnlyOwed, "only what is owed starts"),
        (Self::RepeatsOnlyAfterCrash, "a success is repeated only after a crash"),
        (Self::NoStartWhenDisabled, "no start after an unsubscribe or a disable"),
        (Self::NoStartWhileStopping, "no start while stopping"),
        (Self::OldResultChangesNothing, "an old result changes nothing but an old 2xx"),
        (Self::NotBeforeItsTime, "no attempt before its time"),
        (Self::WaitIsClamped, "a loaded wait is clamped"),
        (Self::RetryOnlyForFault, "a retry is used up only by the event's fault"),
        (Self::FaultUsesRetry, "the event's fault uses up a retry"),
        (Self::AttemptsCounted, "attempts are counted"),
        (Self::FailingRowCounted, "the row of failures is counted"),
        (Self::GivesUpInTime, "gives up in time, not before"),
        (Self::OpenCircuitProbes, "an open circuit only probes"),
        (Self::CircuitCloses, "the circuit closes when the receiver answers"),
        (Self::CircuitTriesOthers, "no single event keeps the circuit open"),
        (Self::UnrecordedLimit, "at most 256 in flight or not durable"),
        (Self::HeldLimit, "no more is held than allowed"),
        (Self::InFlightLimit, "no more in flight than set"),
        (Self::PermitForEachAttempt, "a permit for each attempt"),
        (Self::EndsOnNewest, "a receiver ends on the newest of a contact"),
        (Self::Liveness, "everything owed is delivered within a bound"),
        (Self::NoPanic, "the lane does not panic"),
    ];

    /// Its words.
    pub(super) fn words(self) -> &'static str {
        Self::ALL.iter().find(|(check, _)| *check == self).map_or("", |(_, words)| words)
    }
}

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub(super) check: Check,
    pub(super) detail: String,
}

pub(super) type Checked = Result<(), Broken>;

pub(super) fn ensure(kept: bool, check: Check, detail: impl FnOnce() -> String) -> Checked {
    if kept { Ok(()) } else { Err(Broken { check, detail: detail() }) }
}

/// An attempt in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    /// The start of the lane that it belongs to.
    pub(super) life: u64,
    pub(super) sequence: u64,
    pub(super) contact: ContactId,
    pub(super) times_out: Moment,
    pub(super) began: Moment,
    /// Not when events were wanted again after it began.
    pub(super) counts: bool,
}

/// What the lane should remember of an event, until its next restart.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    attempts: u32,
    retries_used: u32,
    /// Successes of the lane when the previous attempt ended, if it failed or was put off.
    tried_at: Option<u64>,
    /// The same for the previous answer that asked for a pause.
    paused_at: Option<u64>,
    not_before: Moment,
}

/// What the world knows.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    /// Starts of the lane from durable progress.
    pub(super) life: u64,
    known: BTreeMap<u64, Known>,
    successes: u64,
    row: Option<FailingRow>,
    failures: u32,
    /// Whether each of the last completions failed, the newest last.
    lately: VecDeque<bool>,
    opened: Option<Moment>,
    failed_last: Moment,
    paused_until: Option<Moment>,
    /// The receiver answered 410, or has failed for too long.
    gives_up: Option<&'static str>,
    /// What the app is to get: committed while subscribed, or wanted again.
    required: BTreeSet<u64>,
    /// Removed for its age before it was delivered.
    gap: BTreeSet<u64>,
    exhausted: BTreeSet<u64>,
    /// Answered with 2xx since it was owed last.
    delivered: BTreeSet<u64>,
    /// Of these, what no commit has recorded yet as far as the lane knows.
    remembered: BTreeSet<u64>,
    /// Finished in this life of the lane and not known to be durable.
    unrecorded: BTreeSet<u64>,
    may_repeat: BTreeSet<u64>,
    /// The newest event of a contact that was started, with the generation.
    started: BTreeMap<ContactId, (u64, u64)>,
    /// Failures since a success while another event could have started.
    in_vain: usize,
    /// The most that was in flight or not durable.
    pub(super) unrecorded_most: usize,
}

impl Oracle {
    pub(super) fn committed(&mut self, sequence: u64) {
        self.required.insert(sequence);
    }

    /// The app wants these again; whatever of the contact comes after may come once more.
    pub(super) fn owed_again(&mut self, sequence: u64) {
        self.required.insert(sequence);
        self.may_repeat.insert(sequence);
        self.delivered.remove(&sequence);
    }

    /// The same by a group that failed: what is not durable as far as the lane knows may stand in for it.
    pub(super) fn may_be_owed_again(&mut self, sequence: u64) {
        let stands_in = self.delivered.contains(&sequence) && self.remembered.contains(&sequence);
        self.owed_again(sequence);
        if stands_in {
            self.delivered.insert(sequence);
        }
    }

    /// Events are wanted again: what is not durable by now was sent before, and does not count.
    pub(super) fn sends_again(&mut self, store: &ModelStore) {
        for sequence in std::mem::take(&mut self.remembered) {
            if !store.finished(sequence) {
                self.delivered.remove(&sequence);
            }
        }
    }

    pub(super) fn may_come_again(&mut self, sequence: u64) {
        self.may_repeat.insert(sequence);
    }

    /// Nothing that was committed before is owed any more.
    pub(super) fn dropped(&mut self) {
        self.required.clear();
    }

    pub(super) fn removed(&mut self, missing: Vec<u64>) {
        self.gap.extend(missing);
    }

    /// The lane begins anew from what is stored; these are the held deliveries that it is given.
    pub(super) fn restarted(
        &mut self,
        now: Moment,
        store: &ModelStore,
        held: &[HeldDelivery],
        row: Option<FailingRow>,
    ) -> Checked {
        self.life += 1;
        self.known.clear();
        self.successes = 0;
        self.failures = 0;
        self.lately.clear();
        self.opened = None;
        self.in_vain = 0;
        self.paused_until = None;
        self.gives_up = None;
        self.row = row;
        self.exhausted = store.exhausted.keys().copied().collect();
        self.unrecorded.clear();
        // What is finished or dropped by what is stored cannot be owed as far as the lane knows.
        self.remembered.retain(|sequence| !store.finished(*sequence));
        for held in held {
            let longest = step_before(held.retries_used).mul_f64(1.2);
            ensure(held.due.since(now) <= longest, Check::WaitIsClamped, || {
                format!("{} waits for {:?}", held.sequence, held.due.since(now))
            })?;
            let known = Known {
                attempts: held.attempts,
                retries_used: held.retries_used,
                not_before: held.due,
                ..Known::default()
            };
            self.known.insert(held.sequence, known);
        }
        Ok(())
    }

    /// What the lane had in memory is gone: what was delivered and is not durably finished may come once more.
    pub(super) fn forgotten(&mut self, store: &ModelStore, in_flight: &[Flight]) -> Checked {
        let mut lost: BTreeSet<u64> = self
            .delivered
            .iter()
            .copied()
            .filter(|sequence| self.required.contains(sequence) && !store.finished(*sequence))
            .filter(|sequence| *sequence > store.floor)
            .collect();
        self.may_repeat.extend(lost.iter().copied());
        lost.extend(in_flight.iter().map(|flight| flight.sequence));
        self.remembered.clear();
        self.unrecorded.clear();
        ensure(lost.len() <= UNRECORDED_LIMIT, Check::UnrecordedLimit, || {
            format!("a crash repeats {}", lost.len())
        })
    }

    /// Judges the start of an attempt; `in_flight` are the others.
    pub(super) fn starts(
        &mut self,
        now: Moment,
        store: &ModelStore,
        in_flight: &[Flight],
        (sequence, contact, attempt): (u64, ContactId, u32),
    ) -> Checked {
        ensure(self.gives_up.is_none(), Check::NoStartWhenDisabled, || {
            format!("{sequence} started although {}", self.gives_up.unwrap_or_default())
        })?;
        ensure(
            in_flight.iter().all(|flight| flight.contact != contact),
            Check::OneInFlightPerContact,
            || format!("{sequence} started beside another"),
        )?;
        ensure(store.contact(sequence) == Some(contact), Check::StartsOnlyOwed, || {
            format!("{sequence} is not in the log")
        })?;
        let earlier = store.events_of(contact).iter().take_while(|earlier| **earlier < sequence);
        for earlier in earlier {
            ensure(store.finished(*earlier), Check::AfterDurableOnly, || {
                format!("{sequence} started before {earlier} was durable")
            })?;
        }
        ensure(!store.finished(sequence), Check::StartsOnlyOwed, || {
            format!("{sequence} is durably finished")
        })?;
        if let Some((generation, newest)) = self.started.get(&contact)
            && *generation == store.generation
        {
            ensure(sequence >= *newest, Check::NeverBack, || {
                format!("back from {newest} to {sequence}")
            })?;
        }
        let repeats = self.delivered.remove(&sequence) && !self.may_repeat.contains(&sequence);
        self.may_repeat.remove(&sequence);
        self.remembered.remove(&sequence);
        ensure(!repeats, Check::RepeatsOnlyAfterCrash, || format!("{sequence} is repeated"))?;
        self.started.insert(contact, (store.generation, sequence));
        self.starts_in_time(now, in_flight, sequence)?;

        let known = self.known.entry(sequence).or_default();
        known.attempts += 1;
        ensure(known.attempts == attempt, Check::AttemptsCounted, || {
            format!("attempt {attempt} of {sequence} is number {}", known.attempts)
        })?;
        let unrecorded = in_flight.len() + 1 + self.unrecorded.len();
        self.unrecorded_most = self.unrecorded_most.max(unrecorded);
        ensure(unrecorded <= UNRECORDED_LIMIT, Check::UnrecordedLimit, || {
            format!("{unrecorded} in flight or not durable")
        })
    }

    fn starts_in_time(&self, now: Moment, in_flight: &[Flight], sequence: u64) -> Checked {
        let not_before = self.known.get(&sequence).map_or(Moment(i64::MIN), |k| k.not_before);
        ensure(not_before <= now, Check::NotBeforeItsTime, || {
            format!("{sequence} started {} ms early", not_before.0 - now.0)
        })?;
        let paused = self.paused_until.filter(|until| *until > now);
        ensure(paused.is_none(), Check::NotBeforeItsTime, || {
            format!("{sequence} started in a pause until {paused:?}")
        })?;
        if self.opened.is_some() {
            let since = now.since(self.failed_last);
            let probe = in_flight.is_empty() && since >= Duration::from_millis(800);
            ensure(probe, Check::OpenCircuitProbes, || {
                format!("{sequence} started {since:?} after {} failures", self.failures)
            })?;
        }
        Ok(())
    }

    /// Takes the end of an attempt, before the lane hears of it.
    pub(super) fn ended(&mut self, now: Moment, flight: &Flight, outcome: Outcome) {
        let sequence = flight.sequence;
        if !flight.counts {
            return;
        }
        if outcome == Outcome::Delivered {
            self.delivered.insert(sequence);
            self.remembered.insert(sequence);
        }
        if flight.life != self.life {
            return;
        }
        let successes = self.successes;
        let known = self.known.entry(sequence).or_default();
        let tried_at = known.tried_at.replace(successes);
        match outcome {
            Outcome::Delivered => {
                self.successes += 1;
                self.row = None;
                self.completed(false);
                self.failures = 0;
                self.opened = None;
                self.in_vain = 0;
                self.unrecorded.insert(sequence);
            }
            Outcome::Failed => {
                self.completed(true);
                let row = self.row.get_or_insert(FailingRow { since: now, attempts: 0 });
                row.attempts += 1;
                let given_up = now.since(row.since) >= GIVE_UP.0 && row.attempts >= GIVE_UP.1;
                if given_up {
                    self.gives_up = Some(REASON_FAILING);
                }
                if tried_at.is_some_and(|at| successes > at) {
                    self.uses_retry(now, sequence);
                } else {
                    self.known.entry(sequence).or_default().not_before =
                        now.plus(UNCOUNTED.mul_f64(0.8));
                    self.failed(now, flight.began);
                }
            }
            Outcome::Pause { after } => {
                let paused_at = known.paused_at.replace(successes);
                if paused_at.is_some_and(|at| successes > at) {
                    self.uses_retry(now, sequence);
                } else {
                    let until = now.plus(after.unwrap_or(Duration::from_secs(1)));
                    self.paused_until = self.paused_until.max(Some(until));
                }
            }
            Outcome::Gone => self.gives_up = Some(REASON_GONE),
        }
    }

    /// Failures in a row that are no chance at the share of failures before them.
    fn limit(&self) -> u32 {
        let row = self.lately.iter().rev().take_while(|failed| **failed).count();
        if row >= LATELY {
            return CIRCUIT_LIMIT;
        }
        let before = self.lately.iter().rev().skip(row).take(LATELY);
        let failed = before.filter(|failed| **failed).count();
        let chance = |row: u32| (failed as f64 / LATELY as f64).powi(row.cast_signed());
        (CIRCUIT_LIMIT..CIRCUIT_LIMIT_MAX)
            .find(|row| chance(*row) <= 1e-7)
            .unwrap_or(CIRCUIT_LIMIT_MAX)
    }

    fn completed(&mut self, failed: bool) {
        self.lately.push_back(failed);
        if self.lately.len() > 2 * LATELY {
            self.lately.pop_front();
        }
    }

    /// A failure that is the receiver's fault.
    fn failed(&mut self, now: Moment, began: Moment) {
        self.failures += 1;
        let limit = self.limit();
        if self.opened.is_none() && self.failures >= limit {
            self.opened = Some(now);
            self.failed_last = now;
        }
        // What was on its way when the circuit opened is no probe.
        if self.opened.is_some_and(|opened| began > opened) {
            self.failed_last = now;
        }
    }

    fn uses_retry(&mut self, now: Moment, sequence: u64) {
        let known = self.known.entry(sequence).or_default();
        match usize::try_from(known.retries_used).ok().and_then(|step| SCHEDULE.get(step)) {
            Some(wait) => {
                known.retries_used += 1;
                known.not_before = now.plus(wait.mul_f64(0.8));
            }
            None => {
                self.exhausted.insert(sequence);
                self.unrecorded.insert(sequence);
            }
        }
    }

    /// Counts failures that come while the circuit is open and an event could start that the receiver would take.
    pub(super) fn failed_in_vain(&mut self, could_start: bool, bound: usize) -> Checked {
        self.in_vain += usize::from(could_start && self.opened.is_some());
        ensure(self.in_vain <= bound, Check::CircuitTriesOthers, || {
            format!("{} failures while others would be taken", self.in_vain)
        })
    }

    /// Judges what the lane wants recorded.
    pub(super) fn plans(&self, store: &ModelStore, plan: &Plan) -> Checked {
        for held in &plan.hold {
            let known = self.known.get(&held.sequence).copied().unwrap_or_default();
            let detail = || {
                format!(
                    "{} has used {} retries of {}",
                    held.sequence, held.retries_used, known.retries_used
                )
            };
            let wasted = held.retries_used > known.retries_used;
            ensure(!wasted, Check::RetryOnlyForFault, detail)?;
            let spared =
                held.retries_used < known.retries_used || self.exhausted.contains(&held.sequence);
            ensure(!spared, Check::FaultUsesRetry, detail)?;
            ensure(held.attempts == known.attempts, Check::AttemptsCounted, || {
                format!("{} held after {} of {}", held.sequence, held.attempts, known.attempts)
            })?;
            let in_time = known.not_before <= held.due || known.not_before == Moment::default();
            ensure(in_time, Check::NotBeforeItsTime, || format!("{} due early", held.sequence))?;
        }
        for (sequence, _, attempts) in &plan.exhaust {
            ensure(self.exhausted.contains(sequence), Check::RetryOnlyForFault, || {
                format!("{sequence} given up too early")
            })?;
            let known = self.known.get(sequence).copied().unwrap_or_default();
            ensure(known.attempts == *attempts, Check::AttemptsCounted, || {
                format!("{sequence} exhausted after {attempts}")
            })?;
        }
        if plan.generation != store.generation {
            return Ok(());
        }
        ensure(plan.failing == self.row, Check::FailingRowCounted, || {
            format!("{:?} is {:?}", plan.failing, self.row)
        })?;
        ensure(plan.disable.is_some() == self.gives_up.is_some(), Check::GivesUpInTime, || {
            format!("{:?} is {:?}", plan.disable, self.gives_up)
        })?;
        let fits = plan.cursor >= store.cursor && plan.cursor <= store.head();
        ensure(fits, Check::RecordFits, || format!("cursor {} to {}", store.cursor, plan.cursor))
    }

    /// Judges a record of the current generation, before it is written.
    pub(super) fn records(&self, store: &ModelStore, plan: &Plan) -> Checked {
        let finished =
            |sequence: &u64| self.delivered.contains(sequence) || self.exhausted.contains(sequence);
        let released: BTreeSet<u64> = plan.release.iter().copied().collect();
        let holds: BTreeSet<u64> = plan.hold.iter().map(|held| held.sequence).collect();
        for sequence in store.cursor + 1..=plan.cursor {
            let held = (store.held.contains_key(&sequence) || holds.contains(&sequence))
                && !released.contains(&sequence);
            let settled = held || store.done.contains(&sequence) || finished(&sequence);
            ensure(settled, Check::CursorPassesOnlySettled, || {
                format!("the cursor passes {sequence}")
            })?;
        }
        let new = plan.done.iter().filter(|sequence| !store.done.contains(*sequence));
        for sequence in new.chain(&released) {
            ensure(finished(sequence), Check::NothingLost, || {
                format!("{sequence} recorded as finished")
            })?;
            let both = holds.contains(sequence) && !released.contains(sequence);
            ensure(!both, Check::RecordFits, || format!("{sequence} both held and finished"))?;
        }
        Ok(())
    }

    /// What a record that was just written has made durable.
    pub(super) fn covered(&self, store: &ModelStore) -> Vec<u64> {
        let both = self.remembered.union(&self.unrecorded);
        both.copied().filter(|sequence| store.finished(*sequence)).collect()
    }

    /// The lane has heard that a record is durable.
    pub(super) fn recorded(&mut self, covered: &[u64]) {
        for sequence in covered {
            self.remembered.remove(sequence);
            self.unrecorded.remove(sequence);
        }
    }

    /// Whether an event is owed to the app, and neither given up nor removed.
    pub(super) fn wanted(&self, store: &ModelStore, sequence: u64) -> bool {
        self.required.contains(&sequence)
            && !self.exhausted.contains(&sequence)
            && !self.gap.contains(&sequence)
            && !store.exhausted.contains_key(&sequence)
    }

    /// Whether its time has come, as far as the event itself is concerned.
    pub(super) fn due(&self, now: Moment, sequence: u64) -> bool {
        self.known.get(&sequence).is_none_or(|known| known.not_before.plus(UNCOUNTED) <= now)
    }

    /// Judges a world in which nothing is owed any more. `excused` are contacts that the receiver refuses for ever.
    pub(super) fn settled(
        &self,
        store: &ModelStore,
        last: &BTreeMap<ContactId, u64>,
        excused: &BTreeSet<ContactId>,
    ) -> Checked {
        for (contact, events) in store.contacts().filter(|(contact, _)| !excused.contains(contact))
        {
            for sequence in events.iter().filter(|sequence| self.wanted(store, **sequence)) {
                ensure(self.delivered.contains(sequence), Check::NothingLost, || {
                    format!("{sequence} was never delivered")
                })?;
            }
            let newest = events.last().copied().unwrap_or(0);
            if self.wanted(store, newest) {
                let at = last.get(&contact).copied().unwrap_or(0);
                ensure(at == newest, Check::EndsOnNewest, || {
                    format!("a receiver ends on {at}, the newest is {newest}")
                })?;
            }
        }
        Ok(())
    }
}

/// The wait that was used up last.
fn step_before(retries_used: u32) -> Duration {
    let step = usize::try_from(retries_used).unwrap_or(usize::MAX).checked_sub(1);
    step.and_then(|step| SCHEDULE.get(step)).copied().unwrap_or(UNCOUNTED)
}
