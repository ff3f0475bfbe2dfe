//! Memory of all lanes together: the bytes of their loaded events, and how many deliveries they hold.
//!
//! A healthy lane never meets these limits. They are for thousands of receivers that are down or slow at once: then
//! lanes that send nothing at the moment give back what they have loaded, and the log is read again when their turn comes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::lane::HELD_MAX;
use crate::domain::event::Event;

/// Bytes of loaded events over all lanes, besides the 6 MiB of recent ones that they share. Lanes without an attempt
/// give theirs back from half of it on; beyond it pages are short. Larger reads the log less often when many lanes
/// are behind, smaller leaves more memory to others.
const WINDOW_BYTES_MAX: usize = 24 * 1024 * 1024;
/// Bytes that a lane needs for a loaded event besides the event itself: its state, and its places in the order of
/// contacts and of sequence.
const OWED_BYTES: usize = 256;
/// Events of a page while the budget is used up.
const SHORT_PAGE: u32 = 16;
/// Held deliveries over all lanes, about 300 bytes of memory each: a receiver with its own 10,000 is nothing, a thousand
/// of them must not be 3 GB. Beyond it a lane holds [`HELD_LEAST`], and its cursor waits.
const HELD_TOTAL_MAX: usize = 200_000;
/// What every lane may hold in any case, twice what it has in flight by default: it must be able to set them aside.
const HELD_LEAST: usize = 64;

/// What all lanes use.
#[derive(Debug, Default)]
pub(super) struct Budget {
    window_bytes: AtomicUsize,
    held: AtomicUsize,
}

impl Budget {
    /// Whether lanes that send nothing are to give back what they have loaded.
    pub(super) fn is_tight(&self) -> bool {
        self.window_bytes.load(Ordering::Relaxed) > WINDOW_BYTES_MAX / 2
    }

    /// Events of a page that a lane would like to have `limit` of.
    pub(super) fn page(&self, limit: u32) -> u32 {
        if self.window_bytes.load(Ordering::Relaxed) > WINDOW_BYTES_MAX {
            limit.min(SHORT_PAGE)
        } else {
            limit
        }
    }

    /// How many deliveries a lane that holds `held` may hold.
    fn held_max(&self, held: usize) -> usize {
        let left = HELD_TOTAL_MAX.saturating_sub(self.held.load(Ordering::Relaxed));
        (held + left).clamp(HELD_LEAST, HELD_MAX)
    }
}

fn change(total: &AtomicUsize, before: usize, after: usize) {
    if after > before {
        total.fetch_add(after - before, Ordering::Relaxed);
    } else if before > after {
        total.fetch_sub(before - after, Ordering::Relaxed);
    }
}

/// The loaded events of one lane and its part of the budget, which is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Loaded {
    budget: Arc<Budget>,
    events: BTreeMap<u64, Arc<Event>>,
    event_bytes: usize,
    counted: usize,
    held: usize,
}

impl Loaded {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self { budget, events: BTreeMap::new(), event_bytes: 0, counted: 0, held: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    pub(super) fn insert(&mut self, event: Arc<Event>) {
        self.event_bytes += event.size();
        if let Some(before) = self.events.insert(event.sequence, event) {
            self.event_bytes -= before.size();
        }
    }

    /// Takes out an event that is being started.
    pub(super) fn take(&mut self, sequence: u64) -> Option<Arc<Event>> {
        let event = self.events.remove(&sequence)?;
        self.event_bytes -= event.size();
        Some(event)
    }

    /// Drops every event after this number; the lane has unloaded them.
    pub(super) fn drop_after(&mut self, last: u64) {
        while let Some(entry) = self.events.last_entry()
            && *entry.key() > last
        {
            self.event_bytes -= entry.remove().size();
        }
    }

    pub(super) fn clear(&mut self) {
        self.events.clear();
        self.event_bytes = 0;
    }

    /// Brings the common account up to date: `window_len` events loaded, `held` held. Gives how many may be held.
    pub(super) fn settle(&mut self, window_len: usize, held: usize) -> usize {
        let bytes = self.event_bytes + window_len * OWED_BYTES;
        change(&self.budget.window_bytes, self.counted, bytes);
        change(&self.budget.held, self.held, held);
        self.counted = bytes;
        self.held = held;
        self.budget.held_max(held)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.clear();
        self.settle(0, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Budget, HELD_LEAST, HELD_TOTAL_MAX, Loaded, SHORT_PAGE};
    use crate::delivery::lane::HELD_MAX;

    #[test]
    fn one_lane_may_hold_its_own_limit_and_all_together_theirs() {
        let budget = Arc::new(Budget::default());
        let mut lanes: Vec<Loaded> =
            (0..HELD_TOTAL_MAX / HELD_MAX).map(|_| Loaded::new(Arc::clone(&budget))).collect();
        let mut last = Loaded::new(Arc::clone(&budget));
        assert_eq!(last.settle(0, 0), HELD_MAX);

        for lane in &mut lanes {
            assert_eq!(lane.settle(0, HELD_MAX), HELD_MAX);
        }

        assert_eq!(last.settle(0, 0), HELD_LEAST);
        lanes.pop();
        assert_eq!(last.settle(0, 0), HELD_MAX);
    }

    #[test]
    fn what_is_loaded_counts_until_its_lane_is_gone() {
        let budget = Arc::new(Budget::default());
        let mut lane = Loaded::new(Arc::clone(&budget));
        lane.settle(1_000, 0);
        assert!(!budget.is_tight());

        lane.settle(100_000, 0);
        assert!(budget.is_tight());
        assert_eq!(budget.page(512), SHORT_PAGE);

        drop(lane);
        assert!(!budget.is_tight());
        assert_eq!(budget.page(512), 512);
    }
}
