//! Which events a lane looks at: loaded from the log, in chains by contact, set aside when the window is full.

use super::{Effect, Finish, KEPT_WHILE_PROBING, Lane, Owed, Phase, SET_ASIDE, WINDOW_MAX};
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
                tried_at: None,
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
        let delivered = self.take_carried(contact, sequence);
        if place != 0 {
            // Behind an event that is owed again, an earlier success counts no more.
            return;
        }
        if delivered {
            self.finish(sequence, Finish::Delivered);
        } else {
            self.offer_head(contact);
        }
    }

    /// Whether this event was delivered under an earlier generation; it is known only once.
    fn take_carried(&mut self, contact: ContactId, sequence: u64) -> bool {
        let Some(carried) = self.carried.get_mut(&contact) else { return false };
        let found = carried.remove(&sequence);
        if carried.is_empty() {
            self.carried.remove(&contact);
        }
        found
    }

    /// Events that may be loaded besides those that are. Successes of an earlier generation may stand further ahead than
    /// the window reaches from a cursor that a lost record left behind.
    fn window_room(&self) -> u64 {
        let most = if self.carried.is_empty() { WINDOW_MAX } else { 2 * WINDOW_MAX };
        most.saturating_sub(self.loaded_to - self.cursor)
    }

    /// Whether there is more to load and room for it.
    pub(super) fn may_load(&self) -> bool {
        self.loaded_to < self.head && self.window_room() > 0 && !self.loading && !self.draining
    }

    pub(super) fn load_more(&mut self, now: Moment, page_arrived: bool, effects: &mut Vec<Effect>) {
        let probing = self.only_probes(now);
        let ahead = if probing {
            KEPT_WHILE_PROBING
        } else {
            (self.slots * 8).clamp(KEPT_WHILE_PROBING, 512)
        };
        // Until they are matched and recorded, successes of an earlier generation take the places of new attempts.
        let matching = !self.carried.is_empty();
        if self.loading || self.draining || (self.ready.len() > ahead / 2 && !matching) {
            return;
        }
        // While the circuit is open, more is loaded only when every contact at hand has been tried: one of those
        // that are not loaded yet may be the one that closes it.
        if probing && !self.ready.is_empty() && !matching {
            return;
        }
        let room = self.window_room();
        if room == 0 {
            // Only a replay goes back so far, and sends them again.
            self.carried.clear();
        }
        if room == 0 && self.ready.is_empty() {
            // The record of what is set aside moves the cursor; the step that hears of it loads.
            self.set_aside();
        }
        // A page without another contact does not end the search for one, though the probe may be over by now: one
        // page for each probe would take hours to get past a contact that is refused.
        let searching = probing && page_arrived;
        if (self.permits == 0 && !searching && !matching) || !self.may_load() {
            return;
        }
        self.loading = true;
        let limit = u64::try_from(ahead).unwrap_or(u64::MAX).min(room);
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        effects.push(Effect::Load { after: self.loaded_to, limit });
    }

    /// Forgets loaded events from the end of the window, all of them or until at most so many are ready. What was
    /// started, has failed or is finished stays, as it would after a restart.
    pub(super) fn unload(&mut self, keep_ready: Option<usize>) {
        let mut above = self.loaded_to + 1;
        while keep_ready.is_none_or(|keep| self.ready.len() > keep)
            && let Some((&sequence, owed)) = self.owed.range(self.cursor + 1..above).next_back()
        {
            above = sequence;
            let untouched = matches!(owed.phase, Phase::Queued | Phase::Ready)
                && owed.attempts == 0
                && !owed.held;
            if !untouched {
                continue;
            }
            let contact = owed.contact;
            // An event is never forgotten from before another of its contact: that one would start first.
            let Some(chain) = self.chains.get_mut(&contact) else { return };
            if chain.pop_back_if(|last| *last == sequence).is_none() {
                return;
            }
            if chain.is_empty() {
                self.chains.remove(&contact);
            }
            self.owed.remove(&sequence);
            self.ready.remove(&sequence);
            self.loaded_to = sequence - 1;
            // A page that is on its way does not fit any more.
            self.loading = false;
        }
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
