//! Recent events of all services, shared by their lanes: what was just committed need not be read again.
//!
//! A cache, never the truth: a lane that asks for events that are not here reads the log.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::domain::event::Event;
use crate::domain::id::ServiceId;

/// Bytes of events kept. Larger serves lanes that are further behind, smaller sends them to the log sooner.
const BYTES_MAX: usize = 6 * 1024 * 1024;

#[derive(Debug, Default)]
struct Inner {
    services: HashMap<ServiceId, VecDeque<Arc<Event>>>,
    /// In which order events came, over all services: the oldest go first.
    order: VecDeque<ServiceId>,
    bytes: usize,
}

/// The recent events.
#[derive(Debug, Default)]
pub(super) struct RecentEvents(Mutex<Inner>);

impl RecentEvents {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds events as they were committed, in log order per service. Those of another node may come after later ones of
    /// this node: they are passed over, and read from the log.
    pub(super) fn push(&self, events: &[Arc<Event>]) {
        let mut inner = self.lock();
        for event in events {
            let log = inner.services.entry(event.service).or_default();
            if log.back().is_some_and(|last| last.sequence >= event.sequence) {
                continue;
            }
            if log.back().is_some_and(|last| last.sequence + 1 != event.sequence) {
                // Never a gap: begin anew. The order keeps too many entries, which only empties sooner.
                let dropped: usize = log.drain(..).map(|event| event.size()).sum();
                inner.bytes -= dropped;
            }
            inner.bytes += event.size();
            inner.services.entry(event.service).or_default().push_back(Arc::clone(event));
            inner.order.push_back(event.service);
        }
        while inner.bytes > BYTES_MAX
            && let Some(service) = inner.order.pop_front()
        {
            let Some(log) = inner.services.get_mut(&service) else {
                continue;
            };
            let dropped = log.pop_front().map_or(0, |event| event.size());
            if log.is_empty() {
                inner.services.remove(&service);
            }
            inner.bytes -= dropped;
        }
    }

    /// At most `limit` events that directly follow `after`; empty when the first of them is not here.
    pub(super) fn after(&self, service: ServiceId, after: u64, limit: usize) -> Vec<Arc<Event>> {
        let inner = self.lock();
        let Some(log) = inner.services.get(&service) else {
            return Vec::new();
        };
        let Some(first) = log.front() else {
            return Vec::new();
        };
        let Some(skip) = (after + 1).checked_sub(first.sequence) else {
            return Vec::new();
        };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        if skip >= log.len() {
            return Vec::new();
        }
        log.range(skip..).take(limit).cloned().collect()
    }

    /// Forgets everything: the store was opened again.
    pub(super) fn clear(&self) {
        *self.lock() = Inner::default();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::RecentEvents;
    use crate::domain::clock::Timestamp;
    use crate::domain::event::{Event, EventKind};
    use crate::domain::id::{ContactId, EventId, ServiceId};

    fn event(service: u8, sequence: u64) -> Arc<Event> {
        Arc::new(Event {
            service: ServiceId::from_bytes([service; 16]),
            sequence,
            id: EventId::from_bytes([0; 16]),
            contact: ContactId::from_bytes([0; 16]),
            kind: EventKind::Edit,
            contact_version: 1,
            full_name: "x".repeat(1000),
            at: Timestamp::from_millis(0),
        })
    }

    fn found(recent: &RecentEvents, service: u8, after: u64) -> Vec<u64> {
        let events = recent.after(ServiceId::from_bytes([service; 16]), after, 3);
        events.iter().map(|event| event.sequence).collect()
    }

    #[test]
    fn events_that_follow_directly_are_given_and_nothing_across_a_gap() {
        let recent = RecentEvents::default();
        recent.push(&[event(1, 5), event(1, 6), event(2, 1), event(1, 7), event(1, 8)]);

        assert_eq!(found(&recent, 1, 4), [5, 6, 7]);
        assert_eq!(found(&recent, 1, 6), [7, 8]);
        assert_eq!(found(&recent, 1, 3), [0; 0]);
        assert_eq!(found(&recent, 1, 8), [0; 0]);
        assert_eq!(found(&recent, 3, 0), [0; 0]);
        recent.push(&[event(1, 10)]);
        assert_eq!(found(&recent, 1, 7), [0; 0]);
        assert_eq!(found(&recent, 1, 9), [10]);
        recent.push(&[event(1, 9), event(1, 10), event(1, 11)]);
        assert_eq!(found(&recent, 1, 8), [0; 0]);
        assert_eq!(found(&recent, 1, 9), [10, 11]);
    }

    #[test]
    fn oldest_events_go_when_the_bytes_are_used_up() {
        let recent = RecentEvents::default();
        let size = event(1, 1).size() as u64;
        let fits = super::BYTES_MAX as u64 / size;

        for sequence in 1..=fits + 10 {
            recent.push(&[event(1, sequence)]);
        }

        assert_eq!(found(&recent, 1, 9), [0; 0]);
        assert_eq!(found(&recent, 1, 10), [11, 12, 13]);
        assert!(recent.lock().bytes <= super::BYTES_MAX);
    }
}
