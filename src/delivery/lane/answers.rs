//! What the end of an attempt does to its event, to the circuit and to the pace of the lane.

use std::time::Duration;

use super::{FailingRow, Finish, Lane, Phase, REASON_FAILING, REASON_GONE};
use crate::delivery::outcome::Outcome;
use crate::delivery::retry::{
    CIRCUIT_FAILURES_LONE, Circuit, GIVE_UP_AGE, GIVE_UP_ATTEMPTS, UNCOUNTED_WAIT, pause, spread,
};
use crate::domain::clock::Moment;
use crate::domain::id::ContactId;

impl Lane {
    pub(super) fn take_outcome(&mut self, now: Moment, contact: ContactId, outcome: Outcome) {
        let Some(flight) = self.flights.remove(&contact) else {
            return;
        };
        let sequence = flight.sequence;
        if !flight.counts {
            self.offer_head(contact);
            return;
        }
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
            Outcome::Failed => self.fail(now, flight.started, sequence),
            Outcome::Pause { after } => self.pause(now, sequence, after),
            Outcome::Gone => {
                self.disable = Some(REASON_GONE);
                self.put_back(sequence);
            }
        }
    }

    /// An attempt that began before a restart: a success counts if the event is still owed; nothing else does.
    pub(super) fn take_old_outcome(&mut self, contact: ContactId, sequence: u64, outcome: Outcome) {
        let delivered = outcome == Outcome::Delivered;
        let head = self.chains.get(&contact).and_then(|chain| chain.front().copied());
        if delivered && head == Some(sequence) {
            self.finish(sequence, Finish::Delivered);
            return;
        }
        if delivered && sequence > self.loaded_to {
            self.carried.entry(contact).or_default().insert(sequence);
        }
        self.offer_head(contact);
    }

    pub(super) fn succeed(&mut self) {
        self.successes += 1;
        self.history = self.history.after(false);
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

    pub(super) fn finish(&mut self, sequence: u64, how: Finish) {
        let Some(owed) = self.owed.get_mut(&sequence) else {
            return;
        };
        self.ready.remove(&sequence);
        self.waiting.remove(&(owed.due, sequence));
        self.dirty.remove(&sequence);
        owed.phase = Phase::Finished(how);
        self.finished.insert(sequence);
    }

    pub(super) fn fail(&mut self, now: Moment, started: Moment, sequence: u64) {
        let lone = self.chains.len() == 1;
        let Some(owed) = self.owed.get_mut(&sequence) else {
            return;
        };
        let others_succeeded = owed.tried_at.is_some_and(|at| self.successes > at);
        owed.tried_at = Some(self.successes);
        self.last_failed = true;
        self.history = self.history.after(true);
        let row = self.failing.get_or_insert(FailingRow { since: now, attempts: 0 });
        row.attempts = row.attempts.saturating_add(1);
        self.failing_changed = true;
        if row.attempts >= GIVE_UP_ATTEMPTS && now.since(row.since) >= GIVE_UP_AGE {
            self.disable = Some(REASON_FAILING);
        }
        // A probe that fails puts off the next one, whoever's fault it is.
        if !others_succeeded || matches!(self.circuit, Circuit::Open { .. }) {
            let limit = if lone { CIRCUIT_FAILURES_LONE } else { self.history.patience() };
            self.circuit = self.circuit.after_failure(now, started, limit, self.seed);
        }
        if others_succeeded {
            self.back_off(now, sequence);
        } else {
            self.wait(now, sequence, UNCOUNTED_WAIT);
        }
    }

    /// A failure that is the event's fault: it uses up a step of the schedule.
    pub(super) fn back_off(&mut self, now: Moment, sequence: u64) {
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

    pub(super) fn wait(&mut self, now: Moment, sequence: u64, wait: Duration) {
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
    pub(super) fn hold(&mut self, sequence: u64) -> bool {
        let Some(owed) = self.owed.get_mut(&sequence) else {
            return false;
        };
        if !owed.held {
            if self.held >= self.held_max {
                return false;
            }
            owed.held = true;
            self.held += 1;
        }
        self.dirty.insert(sequence);
        true
    }

    pub(super) fn pause(&mut self, now: Moment, sequence: u64, after: Option<Duration>) {
        let Some(owed) = self.owed.get_mut(&sequence) else {
            return;
        };
        owed.tried_at = Some(self.successes);
        let others_succeeded = owed.paused_at.is_some_and(|at| self.successes > at);
        owed.paused_at = Some(self.successes);
        if others_succeeded {
            // Others got through since it was last answered so: this event is what the receiver does not want.
            self.back_off(now, sequence);
            return;
        }
        let until = now.plus(pause(after, self.pauses));
        // The answers of one volley are one wish, not a reason to double for each.
        if after.is_none() && self.paused_until.is_none_or(|before| before <= now) {
            self.pauses = self.pauses.saturating_add(1);
        }
        self.paused_until = self.paused_until.max(Some(until));
        self.slots = 1;
        self.put_back(sequence);
    }

    pub(super) fn put_back(&mut self, sequence: u64) {
        if let Some(owed) = self.owed.get_mut(&sequence) {
            owed.phase = Phase::Ready;
            self.ready.insert(sequence);
        }
    }
}
