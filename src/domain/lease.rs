//! A lease: the right to do something until a moment, shared by whoever does it and the one who keeps it up.
//!
//! Where one process has the store for itself, the lease lasts [for ever](Lease::forever) and costs a load. Else
//! `store/postgres/nodes.rs` renews it and ends it in time; `delivery` sends only under it. Whoever begins something takes
//! a [`Term`]: it is over with the lease, and stays over when the lease begins anew, because between the two somebody else
//! may have had the right.

use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use tokio::sync::watch;

use super::clock::{Clock, Moment};

/// The end of a lease that lasts for ever, in milliseconds of a [`Moment`].
const FOREVER: i64 = i64::MAX;

/// A right that ends. Clones are the same lease.
#[derive(Clone, Debug)]
pub struct Lease(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Milliseconds of the [`Moment`] at which it is over.
    until: AtomicI64,
    /// How often it has ended.
    ends: AtomicU64,
    ended: watch::Sender<u64>,
}

impl Lease {
    fn until(millis: i64) -> Self {
        let shared = Shared {
            until: AtomicI64::new(millis),
            ends: AtomicU64::new(0),
            ended: watch::Sender::new(0),
        };
        Self(Arc::new(shared))
    }

    /// A lease that is never over.
    #[must_use]
    pub fn forever() -> Self {
        Self::until(FOREVER)
    }

    /// A lease that is over until it is [extended](Self::extend_to).
    #[must_use]
    pub fn not_yet() -> Self {
        Self::until(i64::MIN)
    }

    /// Whether it is over at this moment.
    #[must_use]
    pub fn is_over(&self, now: Moment) -> bool {
        let until = self.0.until.load(Ordering::Acquire);
        until != FOREVER && now.0 >= until
    }

    /// When it is over, unless it is extended before.
    #[must_use]
    pub fn deadline(&self) -> Moment {
        Moment(self.0.until.load(Ordering::Acquire))
    }

    /// Lets it last until this moment. If it is over by now, that is noted as an end first. Only for the one who keeps it.
    pub fn extend_to(&self, until: Moment, now: Moment) {
        if self.is_over(now) {
            self.end();
        }
        self.0.until.store(until.0, Ordering::Release);
    }

    /// Ends it, and everything that was begun under it. Whoever keeps it calls this at the deadline too: that wakes those
    /// who wait for the end.
    pub fn end(&self) {
        self.0.until.store(i64::MIN, Ordering::Release);
        let ends = self.0.ends.fetch_add(1, Ordering::AcqRel) + 1;
        self.0.ended.send_replace(ends);
    }

    /// Begins something under it.
    #[must_use]
    pub fn term(&self, clock: &Arc<dyn Clock>) -> Term {
        if self.0.until.load(Ordering::Acquire) == FOREVER {
            return Term(None);
        }
        // Counted before the look: an end between the two ends the term.
        let ends = self.0.ends.load(Ordering::Acquire);
        let clock = Arc::clone(clock);
        let lapsed = self.is_over(clock.moment());
        Term(Some(Bound { lease: self.clone(), clock, ends, lapsed }))
    }
}

impl Default for Lease {
    fn default() -> Self {
        Self::forever()
    }
}

/// One uninterrupted time under a lease.
#[derive(Clone)]
pub struct Term(Option<Bound>);

#[derive(Clone)]
struct Bound {
    lease: Lease,
    clock: Arc<dyn Clock>,
    /// Ends of the lease when it began.
    ends: u64,
    /// Whether the lease was over already.
    lapsed: bool,
}

impl fmt::Debug for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Term {{ is_over: {} }}", self.is_over())
    }
}

impl Term {
    /// Whether it can never be over.
    #[must_use]
    pub fn is_forever(&self) -> bool {
        self.0.is_none()
    }

    /// Whether it is over; from then on always.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let Some(Bound { lease, clock, ends, lapsed }) = &self.0 else { return false };
        // In this order: who sees the time of a later term sees the end of this one.
        *lapsed || lease.is_over(clock.moment()) || lease.0.ends.load(Ordering::Acquire) != *ends
    }

    /// Waits until it is over.
    pub async fn over(self) {
        let Some(Bound { lease, ends, .. }) = &self.0 else { return pending().await };
        if self.is_over() {
            return;
        }
        let mut ended = lease.0.ended.subscribe();
        // The sender lives as long as the lease, which is held here.
        drop(ended.wait_for(|now| now != ends).await);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use futures_util::FutureExt;

    use super::Lease;
    use crate::domain::clock::{Clock, Moment, Timestamp};

    #[derive(Debug, Default)]
    struct SetClock(AtomicI64);

    impl Clock for SetClock {
        fn now(&self) -> Timestamp {
            Timestamp::default()
        }
        fn moment(&self) -> Moment {
            Moment(self.0.load(Ordering::SeqCst))
        }
    }

    #[test]
    fn a_lease_is_over_at_its_deadline_and_one_for_ever_never() {
        let lease = Lease::not_yet();
        assert!(lease.is_over(Moment(i64::MIN)));

        lease.extend_to(Moment(100), Moment(0));

        assert!(!lease.is_over(Moment(99)));
        assert!(lease.is_over(Moment(100)));
        assert!(!Lease::forever().is_over(Moment(i64::MAX)));
    }

    #[test]
    fn a_term_does_not_come_back_with_the_next_lease() {
        let set = Arc::new(SetClock::default());
        let clock: Arc<dyn Clock> = Arc::clone(&set) as Arc<dyn Clock>;
        let lease = Lease::not_yet();
        let too_early = lease.term(&clock);
        lease.extend_to(Moment(100), Moment(0));
        let first = lease.term(&clock);
        let waiting = first.clone().over();
        lease.extend_to(Moment(200), Moment(50));
        assert!(!first.is_over());

        // Nobody noticed the deadline when it passed.
        set.0.store(200, Ordering::SeqCst);
        assert!(first.is_over());
        lease.extend_to(Moment(300), Moment(200));

        assert!(first.is_over() && too_early.is_over());
        assert!(waiting.now_or_never().is_some());
        assert!(!lease.term(&clock).is_over());
    }

    #[test]
    fn whoever_waits_for_the_end_is_woken_by_it() {
        let clock: Arc<dyn Clock> = Arc::new(SetClock::default());
        let lease = Lease::not_yet();
        lease.extend_to(Moment(100), Moment(0));
        let mut waiting = Box::pin(lease.term(&clock).over());
        assert!((&mut waiting).now_or_never().is_none());

        lease.end();

        assert!(waiting.now_or_never().is_some());
        assert!(Lease::forever().term(&clock).over().now_or_never().is_none());
    }
}
