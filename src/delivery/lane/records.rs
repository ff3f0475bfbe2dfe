//! What a lane has recorded: plans of records, their results, and the start from what was recorded.

use std::sync::Arc;

use super::{
    Effect, Finish, HeldDelivery, Lane, Owed, Phase, Plan, Progress, RECORD_RETRY, Recording,
};
use crate::domain::clock::Moment;

impl Lane {
    pub(super) fn plan_record(&mut self, now: Moment, effects: &mut Vec<Effect>) {
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
        let disables = plan.disable.is_some();
        let recording = Recording { number: plan.number, finished, held, disables };
        self.recording = Some(Box::new(recording));
        effects.push(Effect::Record(plan));
    }

    pub(super) fn advance_cursor(&mut self) {
        while self.cursor < self.loaded_to {
            let next = self.cursor + 1;
            let held = self.owed.get(&next).is_some_and(|owed| owed.held);
            if !self.done.remove(&next) && !held {
                return;
            }
            self.cursor = next;
        }
    }

    pub(super) fn take_recorded(&mut self, number: u64) {
        let Some(recording) = self.recording.take_if(|record| record.number == number) else {
            return;
        };
        if recording.disables {
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
    pub(super) fn take_not_recorded(&mut self, now: Moment, number: u64, superseded: bool) {
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

    /// What was sent before a replay or a redelivery does not stand in for what is sent after it.
    pub(super) fn forget_successes(&mut self) {
        self.sends_again = true;
        self.carried.clear();
        for flight in self.flights.values_mut() {
            flight.counts = false;
        }
    }

    /// What bears these numbers may be something else by now.
    pub(super) fn go_back(&mut self) {
        self.running = false;
        self.head = 0;
        self.forget_successes();
    }

    /// Begins anew from durable progress. Deliveries that no commit has recorded are not forgotten: a success
    /// stays a success if its event is still owed.
    pub(super) fn restart(&mut self, progress: Progress) {
        let recording = self.recording.take().map(|record| record.finished).unwrap_or_default();
        let mut carried = std::mem::take(&mut self.carried);
        for sequence in recording.iter().chain(&self.finished) {
            if let Some(owed) = self.owed.get(sequence)
                && owed.phase == Phase::Finished(Finish::Delivered)
                && !self.sends_again
            {
                carried.entry(owed.contact).or_default().insert(*sequence);
            }
        }
        let fresh = Self::new(Arc::clone(&self.settings), self.seed);
        let before = std::mem::replace(self, fresh);
        self.flights = before.flights;
        self.permits = before.permits;
        self.yielded = before.yielded;
        self.draining = before.draining;
        self.held_max = before.held_max;
        self.last_failed = before.last_failed;
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
                tried_at: None,
                paused_at: None,
                due: held.due,
                held: true,
                stored: true,
            };
            self.owe(held.sequence, owed);
        }
        // What is neither held nor above the cursor any more is finished, or was dropped; so is what is done. Were it
        // kept, a replay asked for later would take it for delivered.
        let (cursor, done) = (self.cursor, &self.done);
        self.carried.retain(|_, carried| {
            carried.retain(|sequence| *sequence > cursor && !done.contains(sequence));
            !carried.is_empty()
        });
    }
}
