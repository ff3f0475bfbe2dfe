//! The slots of all lanes together: how many attempts may be in flight, shared fairly.
//!
//! Doubtful lanes (their last attempt failed, or one hangs) have at most a quarter of the slots together, so that
//! a thousand hanging receivers cannot starve the healthy.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Part of all slots that doubtful lanes have together: one in this many.
const DOUBTFUL_PART: usize = 4;

#[derive(Debug)]
struct Holder<T> {
    lane: T,
    permits: usize,
    doubtful: bool,
}

#[derive(Debug)]
struct Inner<T> {
    used: usize,
    used_by_doubtful: usize,
    holders: BTreeMap<u64, Holder<T>>,
    /// Lanes that stand in a line, and whether in the one of the doubtful.
    waiting: BTreeMap<u64, bool>,
    healthy: VecDeque<(u64, T)>,
    doubtful: VecDeque<(u64, T)>,
}

/// All slots. `T` is a handle to a lane.
#[derive(Debug)]
pub(super) struct Slots<T> {
    total: usize,
    inner: Mutex<Inner<T>>,
    waiting: AtomicUsize,
    sharing: AtomicUsize,
}

/// What a lane reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Report {
    /// Permits it has.
    pub(super) permits: usize,
    /// Whether it is doubtful: its last attempt failed, or one hangs.
    pub(super) doubtful: bool,
    /// Permits it wants besides.
    pub(super) wanted: usize,
}

impl<T: Clone> Slots<T> {
    pub(super) fn new(total: usize) -> Self {
        Self {
            total,
            inner: Mutex::new(Inner {
                used: 0,
                used_by_doubtful: 0,
                holders: BTreeMap::new(),
                waiting: BTreeMap::new(),
                healthy: VecDeque::new(),
                doubtful: VecDeque::new(),
            }),
            waiting: AtomicUsize::new(0),
            sharing: AtomicUsize::new(0),
        }
    }

    /// Takes a lane's report. Gives the permits it gets now (it waits in line for the rest), and the lanes whose
    /// turn it is.
    pub(super) fn settle(&self, id: u64, lane: &T, report: Report) -> (usize, Vec<T>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.account(id, lane, report.permits, report.doubtful);
        let granted = report.wanted.min(inner.free(self.total, report.doubtful));
        inner.account(id, lane, report.permits + granted, report.doubtful);
        let waits = granted < report.wanted;
        // One that still waits keeps its place in the line; what it wants, or its doubt, may have changed.
        let placed = inner.waiting.get(&id).is_some_and(|line| waits && *line == report.doubtful);
        if !placed {
            inner.leave(id);
        }
        let mut called = Vec::new();
        let free = inner.free(self.total, false);
        inner.call(false, free, &mut called);
        let free = inner.free(self.total, true).min(free.saturating_sub(called.len()));
        inner.call(true, free, &mut called);
        if waits && !placed {
            // Joined last: called by its own report it would only join the line again.
            inner.join(id, lane, report.doubtful);
        }
        self.waiting.store(inner.healthy.len(), Ordering::Relaxed);
        self.sharing.store(inner.holders.len() + inner.healthy.len(), Ordering::Relaxed);
        (granted, called)
    }

    /// Whether a lane with this many permits keeps the one whose attempt just ended. A doubtful lane never does: it
    /// asks again, and gets it unless others wait.
    pub(super) fn keeps(&self, permits: usize, doubtful: bool) -> bool {
        if doubtful {
            return false;
        }
        let fair = self.total / self.sharing.load(Ordering::Relaxed).max(1);
        self.waiting.load(Ordering::Relaxed) == 0 || permits <= fair.max(1)
    }

    /// The lanes that hold permits: any of them may have become doubtful by the passing of time.
    pub(super) fn holders(&self) -> Vec<T> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.holders.values().map(|holder| holder.lane.clone()).collect()
    }
}

impl<T: Clone> Inner<T> {
    fn account(&mut self, id: u64, lane: &T, permits: usize, doubtful: bool) {
        if let Some(before) = self.holders.remove(&id) {
            self.used -= before.permits;
            self.used_by_doubtful -= if before.doubtful { before.permits } else { 0 };
        }
        if permits > 0 {
            self.used += permits;
            self.used_by_doubtful += if doubtful { permits } else { 0 };
            self.holders.insert(id, Holder { lane: lane.clone(), permits, doubtful });
        }
    }

    fn line(&mut self, doubtful: bool) -> &mut VecDeque<(u64, T)> {
        if doubtful { &mut self.doubtful } else { &mut self.healthy }
    }

    fn join(&mut self, id: u64, lane: &T, doubtful: bool) {
        self.waiting.insert(id, doubtful);
        self.line(doubtful).push_back((id, lane.clone()));
    }

    /// Takes a lane out of its line.
    fn leave(&mut self, id: u64) {
        if let Some(doubtful) = self.waiting.remove(&id) {
            self.line(doubtful).retain(|(waiter, _)| *waiter != id);
        }
    }

    fn call(&mut self, doubtful: bool, free: usize, called: &mut Vec<T>) {
        let line = self.line(doubtful);
        let turns = free.min(line.len());
        let turns: Vec<_> = line.drain(..turns).collect();
        for (id, lane) in turns {
            self.waiting.remove(&id);
            called.push(lane);
        }
    }

    fn free(&self, total: usize, doubtful: bool) -> usize {
        let free = total.saturating_sub(self.used);
        if doubtful {
            free.min((total / DOUBTFUL_PART).saturating_sub(self.used_by_doubtful))
        } else {
            free
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Report, Slots};

    const fn report(permits: usize, doubtful: bool, wanted: usize) -> Report {
        Report { permits, doubtful, wanted }
    }

    #[test]
    fn doubtful_lanes_get_a_quarter_together_and_the_healthy_the_rest() {
        let slots = Slots::new(100);

        let (first, _) = slots.settle(1, &1, report(0, true, 20));
        let (second, _) = slots.settle(2, &2, report(0, true, 20));
        let (healthy, _) = slots.settle(3, &3, report(0, false, 200));

        assert_eq!((first, second, healthy), (20, 5, 75));
    }

    #[test]
    fn permits_given_back_call_the_lane_that_waits_longest() {
        let slots = Slots::new(4);
        slots.settle(1, &1, report(0, false, 4));
        assert_eq!(slots.settle(2, &2, report(0, false, 2)), (0, vec![]));
        assert_eq!(slots.settle(3, &3, report(0, false, 1)), (0, vec![]));
        assert!(!slots.keeps(4, false));
        assert!(!slots.keeps(1, true));

        let (_, called) = slots.settle(1, &1, report(3, false, 0));

        assert_eq!(called, vec![2]);
        assert_eq!(slots.settle(2, &2, report(0, false, 2)), (1, vec![]));
        assert_eq!(slots.settle(1, &1, report(0, false, 0)).1, vec![3, 2]);
        assert_eq!(slots.holders(), vec![2]);
    }
}
