//! One lane with all that carries out its effects: attempts, loads, records, timer, slots.
//!
//! The lock around the lane is held for a step and its effects, none of which waits. Attempts run in tasks
//! (`attempts.rs`) and end by stepping their lane.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::attempts::{self, Starting};
use super::budget::Loaded;
use super::engine::{Key, Shared};
use super::lane::{
    Effect, FailingRow, HELD_MAX, HeldDelivery, Input, Lane, LaneState, Plan, Progress,
};
use super::outcome::Outcome;
use super::retry::longest_wait;
use super::sender::Line;
use super::slots::Report;
use crate::domain::clock::{Moment, Timestamp};
use crate::domain::event::Event;
use crate::domain::id::ContactId;
use crate::domain::subscription::StoredSecret;
use crate::store::Error;
use crate::store::queue::WaitingRecord;
use crate::store::rows::{
    ExhaustedRow, FailedAttempt, Failing, HeldRow, LaneRow, Record, bitmap_of, done_of,
};

/// An attempt older than this makes its lane doubtful.
const DOUBTFUL_AGE: Duration = Duration::from_secs(1);
/// Failed attempts that wait for the next record of a lane. More can end before it only while the store is away; then
/// the oldest are forgotten.
const FAILED_WAITING_MAX: usize = 64;
/// Events owed beyond which a lane is far behind: about a second of what is delivered to one receiver at full speed. Fewer
/// would slow down a lane that only lost its place in the recent events.
const FAR_BEHIND: u64 = 10_000;
/// Events that a lane far behind gets at a time, one page each [`PACE`]: 10,000 a second, as fast as new events are
/// delivered. Only a receiver that answers within a few milliseconds meets it. More drains a backlog sooner at the cost of
/// everybody else's latency, fewer drains it later.
const PACED_EVENTS: u32 = 40;
/// Time between two such pages. Longer, with more events each, keeps the cores busy for milliseconds at a stretch, and
/// others wait that long; shorter reads the log more often, and timers go by whole milliseconds.
const PACE: Duration = Duration::from_millis(4);
/// Wait before the store is asked again.
const STORE_RETRY: Duration = Duration::from_millis(200);

#[derive(Debug)]
struct State {
    lane: Lane,
    url: String,
    line: Option<Arc<Line>>,
    secrets: Arc<[StoredSecret]>,
    /// Loaded events that have not been started yet.
    events: Loaded,
    held_max: usize,
    /// Failed attempts to be recorded next, and those of the record that is under way.
    failed: Vec<FailedAttempt>,
    failed_recording: Vec<FailedAttempt>,
    timer: Option<Moment>,
    reported: Report,
    halted: bool,
    /// How often it was halted or got other secrets: a row that was read before must not start it again.
    halts: u64,
    /// The engine wanted to load it while a record was under way.
    load_deferred: bool,
    /// It starts nothing any more, for good: only a new lane may.
    drained: bool,
    /// Its shard is not this node's any more.
    lost: bool,
    /// How often it was lost: attempts that began before that are over.
    losses: u16,
    head: u64,
    /// Under which its row was read; goes back with each record.
    epoch: u64,
    /// What other nodes were told of it under this epoch.
    told: LaneState,
}

/// The lane of one subscription, driven.
pub(super) struct LaneDriver {
    pub(super) id: u64,
    pub(super) key: Key,
    shared: Arc<Shared>,
    state: Mutex<State>,
}

impl LaneDriver {
    pub(super) fn new(id: u64, key: Key, shared: Arc<Shared>) -> Arc<Self> {
        let mut seed = [0; 8];
        seed.copy_from_slice(&key.1.as_bytes()[8..]);
        let lane = Lane::new(Arc::clone(&shared.settings), u64::from_le_bytes(seed));
        let state = State {
            lane,
            url: String::new(),
            line: None,
            secrets: Arc::new([]),
            events: Loaded::new(Arc::clone(&shared.budget)),
            held_max: HELD_MAX,
            failed: Vec::new(),
            failed_recording: Vec::new(),
            timer: None,
            reported: Report { permits: 0, doubtful: false, wanted: 0 },
            halted: true,
            halts: 0,
            load_deferred: false,
            drained: false,
            lost: false,
            losses: 0,
            head: 0,
            epoch: 0,
            told: LaneState::Active,
        };
        Arc::new(Self { id, key, shared, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands one input to the lane and carries out what follows.
    pub(super) fn step(self: &Arc<Self>, input: Input<'_>) {
        let mut state = self.lock();
        self.step_locked(&mut state, input);
    }

    fn step_locked(self: &Arc<Self>, state: &mut State, input: Input<'_>) {
        let starting = self.step_only(state, input);
        self.launch(starting);
    }

    /// Steps the lane and gives the attempts that start.
    fn step_only(self: &Arc<Self>, state: &mut State, input: Input<'_>) -> Vec<Starting> {
        let mut starting = Vec::new();
        let now = self.shared.clock.moment();
        match &input {
            Input::Head(head) => state.head = state.head.max(*head),
            Input::Halt | Input::WentBack => {
                state.halted = true;
                state.halts += 1;
                self.shared.note_halted(self.key);
            }
            Input::Drain => state.drained = true,
            _ => {}
        }
        // Whether an attempt hangs is looked at where it matters: when more are to start, and in the tick that the engine
        // gives each second to whoever has attempts. Most steps under load are neither.
        let look = state.reported.doubtful || matches!(input, Input::Tick);
        self.step_alone(state, now, input, &mut starting);
        loop {
            let wanted = state.lane.wanted(now);
            let surplus = state.lane.take_surplus();
            let doubtful = state.lane.last_failed()
                || ((look || wanted > 0) && state.lane.hangs(now, DOUBTFUL_AGE));
            let report = Report { permits: state.lane.in_flight(), doubtful, wanted };
            if report == state.reported && surplus == 0 && wanted == 0 {
                break;
            }
            let (granted, called) = self.shared.slots.settle(self.id, self, report);
            if !called.is_empty() {
                self.shared.hear_called(called);
            }
            state.reported = Report { permits: report.permits + granted, wanted: 0, ..report };
            if granted == 0 {
                break;
            }
            self.step_alone(state, now, Input::Granted(granted), &mut starting);
        }
        self.settle_memory(state, now, &mut starting);
        self.tell_condition(state, now);
        let wake = state.lane.next_wake(now);
        if wake != state.timer {
            self.shared.set_timer(self, state.timer, wake);
            state.timer = wake;
        }
        starting
    }

    /// Has other nodes told how it is doing, when that changed.
    fn tell_condition(&self, state: &mut State, now: Moment) {
        if self.shared.store.conditions.is_some() && !state.halted {
            let is = state.lane.state(now);
            if std::mem::replace(&mut state.told, is) != is {
                self.shared.note_condition(self.key, state.epoch, is);
            }
        }
    }

    /// A lane that sends nothing keeps what it has loaded only while memory is plenty.
    fn settle_memory(
        self: &Arc<Self>,
        state: &mut State,
        now: Moment,
        starting: &mut Vec<Starting>,
    ) {
        if state.lane.in_flight() == 0 && !state.events.is_empty() && self.shared.budget.is_tight()
        {
            self.step_alone(state, now, Input::Unload, starting);
        }
        state.events.drop_after(state.lane.loaded_to());
        let held_max = state.events.settle(state.lane.window_len(), state.lane.held());
        if held_max != state.held_max {
            state.held_max = held_max;
            self.step_alone(state, now, Input::HeldMax(held_max), starting);
        }
    }

    fn step_alone(
        self: &Arc<Self>,
        state: &mut State,
        now: Moment,
        input: Input<'_>,
        starting: &mut Vec<Starting>,
    ) {
        let mut effects = Vec::new();
        state.lane.step(now, input, &mut effects);
        self.carry_out(state, now, effects, starting);
    }

    fn carry_out(
        self: &Arc<Self>,
        state: &mut State,
        now: Moment,
        effects: Vec<Effect>,
        starting: &mut Vec<Starting>,
    ) {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Start { sequence, contact, attempt } => {
                    starting.push(self.prepare_attempt(state, sequence, contact, attempt));
                }
                Effect::Record(plan) => self.record(state, now, plan),
                Effect::Load { after, limit } => {
                    let limit = self.shared.budget.page(limit);
                    let limit_here = usize::try_from(limit).unwrap_or(usize::MAX);
                    let events = self.shared.recent.after(self.key.0, after, limit_here);
                    if events.is_empty() {
                        let lane = Arc::clone(self);
                        self.shared.tasks.spawn(async move { lane.load(after, limit).await });
                        continue;
                    }
                    let mut more = Vec::new();
                    feed(state, now, after, events, &mut more);
                    effects.extend(more);
                }
            }
        }
    }

    /// Reads a page of the log; a lane that no longer wants it passes it over.
    async fn load(self: Arc<Self>, after: u64, limit: u32) {
        let (far_behind, losses) = {
            let state = self.lock();
            (state.head.saturating_sub(after) > FAR_BEHIND, state.losses)
        };
        let limit = if far_behind { limit.min(PACED_EVENTS) } else { limit };
        let fed_at = far_behind.then(|| self.next_beat());
        loop {
            match self.shared.store.read.list_events(self.key.0, after, limit).await {
                Ok(events) if contiguous(after, &events) => {
                    // What was loaded before is sent meanwhile.
                    if let Some(fed_at) = fed_at {
                        tokio::time::sleep_until(fed_at).await;
                    }
                    let now = self.shared.clock.moment();
                    let mut state = self.lock();
                    if state.losses != losses {
                        // It began anew, in a log that may be another one.
                        return;
                    }
                    let mut effects = Vec::new();
                    let events = events.into_iter().map(Arc::new).collect();
                    feed(&mut state, now, after, events, &mut effects);
                    let mut starting = Vec::new();
                    self.carry_out(&mut state, now, effects, &mut starting);
                    starting.extend(self.step_only(&mut state, Input::Tick));
                    self.launch(starting);
                    return;
                }
                Ok(_) if !self.wants(after) => return,
                Ok(_) => tracing::error!(
                    service.id = %self.key.0, event.sequence = after + 1, "event log has a gap"
                ),
                Err(error) => tracing::warn!(error = %error, "events not loaded, trying again"),
            }
            if self.wait_or_stop().await {
                return;
            }
        }
    }

    /// When a lane far behind gets its next page: a fixed beat, so that a timer that goes off late does not slow it down,
    /// and another one for each lane, so that they do not all go at once.
    fn next_beat(&self) -> tokio::time::Instant {
        let pace = u64::try_from(PACE.as_millis()).unwrap_or(1);
        let began = self.shared.began + Duration::from_millis(self.id % pace);
        let past = tokio::time::Instant::now().saturating_duration_since(began).as_millis();
        let past = u64::try_from(past).unwrap_or(u64::MAX);
        began + Duration::from_millis(past / pace * pace) + PACE
    }

    /// Whether the page after this number is still to be loaded. Without this question a page that was asked for
    /// before its events were removed would be read again for ever.
    fn wants(&self, after: u64) -> bool {
        let state = self.lock();
        !state.halted && state.lane.loaded_to() == after
    }

    /// Whether there is nothing to wait for: the server stops, or the lane was halted meanwhile.
    pub(super) async fn wait_or_stop(&self) -> bool {
        tokio::select! {
            () = self.shared.stopping.cancelled() => true,
            () = tokio::time::sleep(STORE_RETRY) => self.halted(),
        }
    }

    /// Takes what an attempt needs.
    fn prepare_attempt(
        &self,
        state: &mut State,
        sequence: u64,
        contact: ContactId,
        number: u32,
    ) -> Starting {
        if state.line.is_none() {
            state.line = self.shared.sender.line_under_lease(&state.url).ok().map(Arc::new);
        }
        Starting {
            contact,
            sequence,
            number,
            event: state.events.take(sequence),
            line: state.line.clone(),
            secrets: Arc::clone(&state.secrets),
            term: self.shared.sender.term(),
            losses: state.losses,
        }
    }

    /// Gives each attempt a task of its own.
    pub(super) fn launch(self: &Arc<Self>, starting: impl IntoIterator<Item = Starting>) {
        for starting in starting {
            self.shared.tasks.spawn(attempts::run(Arc::clone(self), starting));
        }
    }

    /// Steps the lane at the end of an attempt. Gives the attempt that follows, which needs no task of its own.
    pub(super) fn end_attempt(
        self: &Arc<Self>,
        contact: ContactId,
        outcome: Outcome,
        failed: Option<FailedAttempt>,
    ) -> Option<Starting> {
        let mut state = self.lock();
        if let Some(failed) = failed {
            state.failed.push(failed);
            state.keep_failed(Vec::new());
        }
        let doubtful = state.reported.doubtful || outcome != Outcome::Delivered;
        let keep_permit = self.shared.slots.keeps(state.lane.in_flight(), doubtful);
        let mut starting =
            self.step_only(&mut state, Input::Ended { contact, outcome, keep_permit }).into_iter();
        drop(state);
        let next = starting.next();
        self.launch(starting);
        next
    }

    /// Ends an attempt that the node had no right to finish: nothing is known of it, and its lane goes on from its row,
    /// should the node have the right again.
    pub(super) fn abort_attempt(self: &Arc<Self>, contact: ContactId) {
        let mut state = self.lock();
        if !state.halted {
            self.step_locked(&mut state, Input::Halt);
        }
        // What a halted lane is told of attempts is forgotten with the next start, except for a success. A pause is no
        // failure of anybody.
        let outcome = Outcome::Pause { after: None };
        self.step_locked(&mut state, Input::Ended { contact, outcome, keep_permit: false });
    }

    /// Stops at once: its shard is not this node's any more.
    pub(super) fn lose(self: &Arc<Self>) {
        let mut state = self.lock();
        state.lost = true;
        state.losses = state.losses.wrapping_add(1);
        self.step_locked(&mut state, Input::Halt);
    }

    /// Whether its shard was lost, and it was not started since.
    pub(super) fn is_lost(&self) -> bool {
        self.lock().lost
    }

    /// Its shard is this node's again, but it cannot be started.
    pub(super) fn regain(&self) {
        self.lock().lost = false;
    }

    /// How often it was lost.
    pub(super) fn losses(&self) -> u16 {
        self.lock().losses
    }

    /// Whether it starts nothing any more, for good.
    pub(super) fn is_drained(&self) -> bool {
        self.lock().drained
    }

    pub(super) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn record(self: &Arc<Self>, state: &mut State, now: Moment, plan: Plan) {
        if let Some(reason) = plan.disable {
            tracing::warn!(
                service.id = %self.key.0, app.id = %self.key.1, reason, "subscription disabled"
            );
        }
        let wall = self.shared.clock.now();
        let number = plan.number;
        let mut record = self.record_of(now, wall, state.epoch, plan);
        record.failed = state.failed.drain(..).collect();
        state.failed_recording.clone_from(&record.failed);
        let lane = Arc::clone(self);
        let listener = Box::new(move |result| {
            let shared = Arc::clone(&lane.shared);
            shared.hear_recorded(lane, number, result);
        });
        self.shared.store.write.queue().push_record(WaitingRecord { record, listener });
    }

    fn record_of(&self, now: Moment, wall: Timestamp, epoch: u64, plan: Plan) -> Record {
        let at = |moment: Moment| {
            if moment >= now { wall.plus(moment.since(now)) } else { wall.minus(now.since(moment)) }
        };
        let held = |held: &HeldDelivery| HeldRow {
            sequence: held.sequence,
            contact: held.contact,
            retries_used: held.retries_used,
            attempts: held.attempts,
            due_at: at(held.due),
        };
        let exhausted = |&(sequence, contact, attempts): &(u64, ContactId, u32)| ExhaustedRow {
            sequence,
            contact,
            attempts,
            at: wall,
        };
        Record {
            service: self.key.0,
            app: self.key.1,
            generation: plan.generation,
            epoch,
            cursor: plan.cursor,
            bitmap: bitmap_of(plan.cursor, &plan.done),
            failing: plan
                .failing
                .map(|row| Failing { since: at(row.since), attempts: row.attempts }),
            hold: plan.hold.iter().map(held).collect(),
            release: plan.release,
            exhaust: plan.exhaust.iter().map(exhausted).collect(),
            disable: plan.disable.map(str::to_owned),
            failed: Vec::new(),
        }
    }

    pub(super) fn take_record_result(self: &Arc<Self>, number: u64, result: Result<(), Error>) {
        let failed = std::mem::take(&mut self.lock().failed_recording);
        match result {
            Ok(()) => self.step(Input::Recorded { number }),
            Err(error) => {
                let superseded = error == Error::Superseded;
                if !superseded {
                    self.lock().keep_failed(failed);
                }
                if !superseded {
                    tracing::debug!(error = %error, "results not recorded, trying again");
                }
                self.step(Input::NotRecorded { number, superseded });
                // A change of the subscription has halted it before. Else another node has the shard, or changed the
                // subscription, and that is yet to be heard: the comparison loads it anew.
                if superseded && !self.halted() {
                    self.step(Input::Halt);
                }
            }
        }
        if std::mem::take(&mut self.lock().load_deferred) {
            self.shared.hear_changed(self.key);
        }
    }

    pub(super) fn take_timer(self: &Arc<Self>) {
        let mut state = self.lock();
        state.timer = None;
        self.step_locked(&mut state, Input::Tick);
    }

    /// Signs with other secrets from the next attempt on.
    pub(super) fn set_secrets(&self, secrets: Arc<[StoredSecret]>) {
        let mut state = self.lock();
        state.secrets = secrets;
        state.halts += 1;
    }

    /// How often it was halted or got other secrets, to be asked before its row is read.
    pub(super) fn halts(&self) -> u64 {
        self.lock().halts
    }

    /// Begins anew from a row of the store, unless it was halted since the row was read: then it is read again.
    pub(super) fn restart(self: &Arc<Self>, row: LaneRow, halts: u64) {
        let now = self.shared.clock.moment();
        let wall = self.shared.clock.now();
        let mut state = self.lock();
        if state.halts != halts {
            self.shared.hear_changed(self.key);
            return;
        }
        let head = self.shared.head(self.key.0);
        state.head = head;
        state.events.clear();
        state.failed.clear();
        state.secrets = row.secrets.into();
        if std::mem::replace(&mut state.epoch, row.epoch) != row.epoch {
            // What was told under an earlier epoch counts no more.
            state.told = LaneState::Active;
        }
        if state.url != row.subscription.url {
            state.url = row.subscription.url;
            state.line = None;
        }
        state.halted = false;
        state.lost = false;
        if self.shared.is_draining(self.key.1) {
            self.step_locked(&mut state, Input::Drain);
        }
        let moment = |at: Timestamp| now.minus(wall.since(at));
        let schedule = &self.shared.settings.retry_schedule;
        let held = row.held.iter().map(|held| HeldDelivery {
            sequence: held.sequence,
            contact: held.contact,
            retries_used: held.retries_used,
            attempts: held.attempts,
            due: now.plus(held.due_at.since(wall).min(longest_wait(schedule, held.retries_used))),
        });
        let progress = Progress {
            generation: row.subscription.generation,
            head,
            cursor: row.cursor,
            done: done_of(row.cursor, &row.bitmap),
            held: held.collect(),
            failing: row
                .failing
                .map(|row| FailingRow { since: moment(row.since), attempts: row.attempts }),
        };
        self.step_locked(&mut state, Input::Restart(progress));
    }

    /// Takes the lane off every list that holds it; it is not used again.
    pub(super) fn close(self: &Arc<Self>) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.told, LaneState::Active) != LaneState::Active {
            self.shared.note_condition(self.key, state.epoch, LaneState::Active);
        }
        if let Some(timer) = state.timer.take() {
            self.shared.set_timer(self, Some(timer), None);
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.lock().lane.in_flight()
    }

    /// Whether an attempt is in flight or a result is not recorded yet.
    pub(super) fn busy(&self) -> bool {
        let state = self.lock();
        state.lane.in_flight() > 0 || (!state.halted && state.lane.unrecorded())
    }

    pub(super) fn behind(&self, head: u64) -> bool {
        self.lock().head < head
    }

    /// Whether a record is under way.
    pub(super) fn records(&self) -> bool {
        self.lock().lane.recording()
    }

    /// Whether a record is under way; then it asks to be loaded once the result is known.
    pub(super) fn defers_load(&self) -> bool {
        let mut state = self.lock();
        state.load_deferred = state.lane.recording();
        state.load_deferred
    }

    pub(super) fn halted(&self) -> bool {
        self.lock().halted
    }

    pub(super) fn lane_state(&self) -> LaneState {
        self.lock().lane.state(self.shared.clock.moment())
    }
}

impl State {
    /// Keeps failed attempts for the next record; they ended before those that wait for it.
    fn keep_failed(&mut self, failed: Vec<FailedAttempt>) {
        self.failed.splice(0..0, failed);
        let surplus = self.failed.len().saturating_sub(FAILED_WAITING_MAX);
        self.failed.drain(..surplus);
    }
}

fn feed(
    state: &mut State,
    now: Moment,
    after: u64,
    events: Vec<Arc<Event>>,
    effects: &mut Vec<Effect>,
) {
    let heads: Vec<(u64, ContactId)> = events.iter().map(|e| (e.sequence, e.contact)).collect();
    state.lane.step(now, Input::Loaded { after, events: &heads }, effects);
    for event in events {
        if state.lane.owes(event.sequence) {
            state.events.insert(event);
        }
    }
}

/// Whether these are events, and directly follow `after`.
fn contiguous(after: u64, events: &[Event]) -> bool {
    !events.is_empty()
        && (after + 1..).zip(events).all(|(sequence, event)| event.sequence == sequence)
}

#[cfg(test)]
mod tests {
    use super::LaneDriver;

    /// With the two counters of its `Arc` it fills one of the allocator's size classes; the next has 896 bytes.
    const SIZE_CLASS: usize = 768;

    #[test]
    fn a_hundred_thousand_idle_lanes_have_room() {
        let size = size_of::<LaneDriver>() + 2 * size_of::<usize>();
        assert!(size <= SIZE_CLASS, "{size}");
    }
}
