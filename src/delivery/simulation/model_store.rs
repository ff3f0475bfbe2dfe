//! The model of the store: what `store/sqlite` keeps of one subscription, with the same rules in memory.
//!
//! Everything here is durable; what a crash loses is in [`super::world`]. Each method is one command of the writer.

use std::collections::{BTreeMap, BTreeSet};

use crate::delivery::lane::{FailingRow, Plan};
use crate::domain::id::ContactId;
use crate::domain::subscription::Enabled;

/// A held delivery as it is stored: its due time is wall time in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeldRow {
    pub(super) contact: ContactId,
    pub(super) retries_used: u32,
    pub(super) attempts: u32,
    pub(super) due_at: i64,
}

/// What a redelivery did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Redelivered {
    /// Nothing: the event is not there, nothing is sent, or it is on its way already.
    Nothing,
    /// The contact's first held delivery is due now.
    Due,
    /// The event is held again, and so is the newest finished one of its contact.
    Held(u64, Option<u64>),
}

#[derive(Debug)]
pub(super) struct ModelStore {
    log: Vec<ContactId>,
    of_contact: BTreeMap<ContactId, Vec<u64>>,
    /// Events up to it are removed.
    pub(super) floor: u64,
    pub(super) enabled: Enabled,
    pub(super) generation: u64,
    pub(super) cursor: u64,
    pub(super) done: BTreeSet<u64>,
    pub(super) held: BTreeMap<u64, HeldRow>,
    /// Exhausted deliveries with their attempts.
    pub(super) exhausted: BTreeMap<u64, u32>,
    /// The unbroken row of failures: since, in wall time, and how many.
    pub(super) failing: Option<(i64, u32)>,
}

impl ModelStore {
    /// A service without events, and a subscription to it.
    pub(super) fn new() -> Self {
        Self {
            log: Vec::new(),
            of_contact: BTreeMap::new(),
            floor: 0,
            enabled: Enabled::Yes,
            generation: 1,
            cursor: 0,
            done: BTreeSet::new(),
            held: BTreeMap::new(),
            exhausted: BTreeMap::new(),
            failing: None,
        }
    }

    pub(super) fn head(&self) -> u64 {
        self.log.len() as u64
    }

    pub(super) fn commit(&mut self, contact: ContactId) -> u64 {
        self.log.push(contact);
        let sequence = self.head();
        self.of_contact.entry(contact).or_default().push(sequence);
        sequence
    }

    /// The contact of an event that is still in the log.
    pub(super) fn contact(&self, sequence: u64) -> Option<ContactId> {
        if sequence <= self.floor {
            return None;
        }
        self.log.get(usize::try_from(sequence).ok()?.checked_sub(1)?).copied()
    }

    pub(super) fn contacts(&self) -> impl Iterator<Item = (ContactId, &[u64])> {
        self.of_contact.iter().map(|(contact, events)| (*contact, events.as_slice()))
    }

    /// The events of a contact, those that are removed included.
    pub(super) fn events_of(&self, contact: ContactId) -> &[u64] {
        self.of_contact.get(&contact).map_or(&[], Vec::as_slice)
    }

    /// Events after this one, unless the next of them is removed.
    pub(super) fn page(&self, after: u64, limit: usize) -> Vec<(u64, ContactId)> {
        (after + 1..=self.head())
            .map_while(|sequence| Some((sequence, self.contact(sequence)?)))
            .take(limit)
            .collect()
    }

    /// Delivered or exhausted, as far as a crash would leave it.
    pub(super) fn finished(&self, sequence: u64) -> bool {
        (sequence <= self.cursor || self.done.contains(&sequence))
            && !self.held.contains_key(&sequence)
    }

    /// Writes a record; gives whether its generation was the current one. `wall` turns its moments into wall time.
    pub(super) fn record(&mut self, plan: &Plan, wall: impl Fn(i64) -> i64) -> bool {
        if plan.generation != self.generation {
            return false;
        }
        self.cursor = plan.cursor;
        self.done = plan.done.iter().copied().collect();
        self.failing = plan.failing.map(|FailingRow { since, attempts }| (wall(since.0), attempts));
        for held in &plan.hold {
            let row = HeldRow {
                contact: held.contact,
                retries_used: held.retries_used,
                attempts: held.attempts,
                due_at: wall(held.due.0),
            };
            self.held.insert(held.sequence, row);
        }
        for sequence in &plan.release {
            self.held.remove(sequence);
        }
        self.exhausted
            .extend(plan.exhaust.iter().map(|(sequence, _, attempts)| (*sequence, *attempts)));
        if plan.disable.is_some() {
            self.enabled = Enabled::DisabledBySystem;
            self.generation += 1;
        }
        true
    }

    /// The app subscribes; gives whether progress was kept.
    pub(super) fn subscribe(&mut self, wall: i64) -> bool {
        let keeps = self.enabled != Enabled::No;
        self.enabled = Enabled::Yes;
        self.generation += 1;
        self.failing = None;
        if !keeps {
            self.start_at_head();
        }
        for held in self.held.values_mut() {
            held.due_at = held.due_at.min(wall);
        }
        keeps
    }

    pub(super) fn unsubscribe(&mut self) {
        self.enabled = Enabled::No;
        self.generation += 1;
        self.failing = None;
        self.start_at_head();
    }

    fn start_at_head(&mut self) {
        self.cursor = self.head();
        self.done.clear();
        self.held.clear();
        self.exhausted.clear();
    }

    pub(super) fn redeliver(&mut self, sequence: u64, wall: i64) -> Redelivered {
        let Some(contact) = self.contact(sequence).filter(|_| self.enabled == Enabled::Yes) else {
            return Redelivered::Nothing;
        };
        if !self.finished(sequence) {
            let first = self.held.values_mut().find(|held| held.contact == contact);
            return match first {
                Some(held) if held.due_at > wall => {
                    held.due_at = wall;
                    self.generation += 1;
                    Redelivered::Due
                }
                _ => Redelivered::Nothing,
            };
        }
        let later = self.events_of(contact).iter().rev().take_while(|later| **later > sequence);
        let newest = later.copied().find(|later| self.finished(*later));
        for again in [Some(sequence), newest].into_iter().flatten() {
            let attempts = self.exhausted.remove(&again).unwrap_or(0);
            let row = HeldRow { contact, retries_used: 0, attempts, due_at: wall };
            self.held.insert(again, row);
            self.done.remove(&again);
        }
        self.generation += 1;
        Redelivered::Held(sequence, newest)
    }

    /// Sends everything after this event again; gives the point that it begins after.
    pub(super) fn replay(&mut self, after: u64) -> Option<u64> {
        if self.enabled != Enabled::Yes {
            return None;
        }
        let from = after.max(self.floor);
        self.held.retain(|sequence, _| *sequence <= from);
        self.exhausted.retain(|sequence, _| *sequence <= from);
        self.done.retain(|sequence| *sequence <= from);
        if from < self.cursor {
            self.cursor = from;
            self.done.clear();
        }
        self.generation += 1;
        Some(from)
    }

    /// Removes events up to this one, never the newest. Gives the events that the subscription owed, or had given
    /// up, and whether a generation began.
    pub(super) fn prune(&mut self, to: u64) -> (Vec<u64>, bool) {
        let to = to.min(self.head().saturating_sub(1));
        if to <= self.floor {
            return (Vec::new(), false);
        }
        self.floor = to;
        if self.enabled == Enabled::No {
            return (Vec::new(), false);
        }
        let mut missing: BTreeSet<u64> = self.held.range(..=to).map(|(held, _)| *held).collect();
        missing.extend(self.exhausted.range(..=to).map(|(exhausted, _)| *exhausted));
        missing.extend((self.cursor + 1..=to).filter(|sequence| !self.done.contains(sequence)));
        self.held.retain(|sequence, _| *sequence > to);
        self.exhausted.retain(|sequence, _| *sequence > to);
        let moves = self.cursor < to;
        if moves {
            self.cursor = to;
            while self.done.contains(&(self.cursor + 1)) {
                self.cursor += 1;
            }
            let cursor = self.cursor;
            self.done.retain(|sequence| *sequence > cursor);
        }
        let begins = moves || !missing.is_empty();
        self.generation += u64::from(begins);
        (missing.into_iter().collect(), begins)
    }
}
