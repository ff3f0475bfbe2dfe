//! Which events a lane looks at: loaded from the log, in chains by contact, set aside when the window is full.

use super::{Effect, Finish, Lane, Owed, Phase, SET_ASIDE, WINDOW_MAX};
use crate::delivery::retry::Circuit;
use crate::domain::clock::Moment;
use crate::domain::id::ContactId;

impl Lane {
    /// Makes the first owed event of a contact startable, when nothing of the contact is in the way.
    pub(super) fn offer_head(&mut self, contact: ContactId) {
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

    pub(super) fn take_loaded(&mut self, after: u64, events: &[(u64, ContactId)]) {
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

    pub(super) fn owe(&mut self, sequence: u64, owed: Owed) {
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

    pub(super) fn load_more(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        let ahead = (self.slots * 8).clamp(16, 512);
        let enough = self.loaded_to >= self.head || self.ready.len() > ahead / 2;
        if self.loading || self.draining || enough {
            return;
        }
        let paused = self.paused_until.is_some_and(|until| until > now);
        // While the circuit is open, more is loaded only when every contact at hand has been tried: one of those
        // that are not loaded yet may be the one that closes it.
        let open = matches!(self.circuit, Circuit::Open { .. });
        if (paused && !self.owed.is_empty()) || (open && !self.ready.is_empty()) {
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
    pub(super) fn set_aside(&mut self) {
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
}
