//! How many requests each service may make, over all nodes together.
//!
//! A bucket for each service: a request raises its level, time lowers it evenly by the limit in a minute, and a request
//! that would raise it above a minute's worth is refused. With several nodes the level of a service stands in their
//! store. No request asks there. Each node has a copy, and once in [`EXCHANGE_EVERY`] it tells what it has let in since
//! and hears how high the levels are. They may stand above the brim then, and nobody lets anything in until they are
//! below again: so in the long run all nodes together keep to the limit.
//!
//! What is let in beyond the brim is bounded by a share: from one exchange to the next a node lets in at most what it
//! found left, divided by the number of nodes (but always one request). Let F be left and n nodes be called as much as
//! they bear. In the first round each takes F / n before it has heard of anybody. In the second the k-th node to come has
//! heard of k of these, and takes (F - k F / n) / n. In the third all have heard that nothing is left. Together that is
//! F + F (n - 1) / 2n. Where exchanges overtake each other it is a little more: 0.36 F beyond the brim in place of 0.33 with
//! three nodes, the most in 3,000 simulated worlds. So the bound is half a minute's worth, and nothing is added to it
//! until it is made good.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::domain::clock::{Clock, Moment};
use crate::domain::id::ServiceId;

use super::envelope::ApiError;

/// Time between two exchanges of a node. A longer one makes a caller who keeps to one node wait longer for its next
/// share, a shorter one costs the store more statements: here one a second for each node, whatever the load.
pub const EXCHANGE_EVERY: Duration = Duration::from_secs(1);
/// Requests between two clean-ups of the buckets of services that have gone quiet.
const PRUNE_EVERY: u32 = 16_384;
/// What one request adds to a level: time takes away the limit in each millisecond, so a minute takes away the limit's
/// number of requests, and everything is whole numbers.
const REQUEST: u64 = 60_000;

/// One service, as this node knows it.
#[derive(Debug)]
struct Bucket {
    level: u64,
    /// When that was the level.
    at: Moment,
    /// Requests let in that are not on their way to the others.
    unsent: u64,
    /// Those that are on their way.
    in_flight: u64,
    /// Requests let in since the last exchange, and how many may be. Those that it did not tell of count for the next.
    taken: u64,
    taken_untold: u64,
    share: u64,
}

/// The decisions, of one node.
#[derive(Debug)]
struct Buckets {
    limit: u64,
    nodes: u64,
    of: HashMap<ServiceId, Bucket>,
    checks: u32,
}

impl Buckets {
    fn new(limit: u32) -> Self {
        Self { limit: limit.into(), nodes: 1, of: HashMap::new(), checks: 0 }
    }

    /// Lets a request in, or tells how long to wait.
    fn admit(&mut self, service: ServiceId, now: Moment) -> Result<(), Duration> {
        self.checks += 1;
        if self.checks >= PRUNE_EVERY {
            self.checks = 0;
            self.prune(now);
        }
        let (limit, nodes) = (self.limit, self.nodes);
        let bucket = self.of.entry(service).or_insert_with(|| {
            let share = share_of(limit * REQUEST, nodes);
            Bucket { share, ..Bucket::new(0, now) }
        });
        bucket.drain(limit, now);
        let over = (bucket.level + REQUEST).saturating_sub(limit * REQUEST);
        if over > 0 {
            return Err(Duration::from_millis(over.div_ceil(limit)));
        }
        if bucket.taken >= bucket.share {
            return Err(EXCHANGE_EVERY);
        }
        bucket.level += REQUEST;
        bucket.taken += 1;
        bucket.taken_untold += 1;
        bucket.unsent += 1;
        Ok(())
    }

    /// Begins an exchange: what was let in since the last one, as the time that takes it away.
    fn begin_exchange(&mut self, now: Moment) -> Vec<(ServiceId, Duration)> {
        self.prune(now);
        let mut spent = Vec::new();
        for (service, bucket) in &mut self.of {
            if bucket.unsent > 0 {
                let micros = (bucket.unsent * REQUEST * 1_000).div_ceil(self.limit);
                spent.push((*service, Duration::from_micros(micros)));
            }
            bucket.in_flight += std::mem::take(&mut bucket.unsent);
            bucket.taken_untold = 0;
        }
        spent
    }

    /// Ends an exchange that has told and heard, with the level of every service that is not at zero.
    fn end_exchange(&mut self, nodes: usize, levels: &[(ServiceId, Duration)], now: Moment) {
        self.nodes = u64::try_from(nodes).unwrap_or(u64::MAX).max(1);
        let limit = self.limit;
        for bucket in self.of.values_mut() {
            bucket.in_flight = 0;
            (bucket.level, bucket.at) = (bucket.unsent * REQUEST, now);
        }
        for (service, level) in levels {
            let micros = u64::try_from(level.as_micros()).unwrap_or(u64::MAX);
            let level = micros.saturating_mul(limit).div_ceil(1_000);
            self.of
                .entry(*service)
                .and_modify(|bucket| bucket.level = bucket.level.saturating_add(level))
                .or_insert_with(|| Bucket::new(level, now));
        }
        self.renew_shares();
    }

    /// Ends an exchange of which nobody knows whether it was heard: it is told again with the next.
    fn fail_exchange(&mut self) {
        for bucket in self.of.values_mut() {
            bucket.unsent += std::mem::take(&mut bucket.in_flight);
        }
        // Each node goes on by what it knows.
        self.renew_shares();
    }

    fn renew_shares(&mut self) {
        for bucket in self.of.values_mut() {
            bucket.taken = bucket.taken_untold;
            let left = (self.limit * REQUEST).saturating_sub(bucket.level);
            bucket.share = share_of(left, self.nodes);
        }
    }

    fn prune(&mut self, now: Moment) {
        let (limit, alone) = (self.limit, self.nodes == 1);
        self.of.retain(|_, bucket| {
            bucket.drain(limit, now);
            // Alone nobody needs to be told; with others what was taken counts until the exchange.
            bucket.level > 0 || (!alone && bucket.unsent + bucket.in_flight + bucket.taken > 0)
        });
    }
}

impl Bucket {
    const fn new(level: u64, at: Moment) -> Self {
        Self { level, at, unsent: 0, in_flight: 0, taken: 0, taken_untold: 0, share: 0 }
    }

    /// Takes away what time has taken away.
    fn drain(&mut self, limit: u64, now: Moment) {
        let millis = u64::try_from(now.since(self.at).as_millis()).unwrap_or(u64::MAX);
        self.level = self.level.saturating_sub(millis.saturating_mul(limit));
        self.at = self.at.max(now);
    }
}

/// How many requests one of so many nodes may let in until the next exchange, of what is left.
const fn share_of(left: u64, nodes: u64) -> u64 {
    if nodes <= 1 {
        return u64::MAX;
    }
    let share = left / REQUEST / nodes;
    if share == 0 { 1 } else { share }
}

/// How many requests each service may make.
pub struct RequestRates {
    clock: Arc<dyn Clock>,
    /// None without a limit.
    buckets: Option<Mutex<Buckets>>,
}

impl fmt::Debug for RequestRates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RequestRates")
    }
}

impl RequestRates {
    /// This many requests in a minute for each service; 0 is off.
    #[must_use]
    pub fn new(requests_per_minute: u32, clock: Arc<dyn Clock>) -> Self {
        let buckets = (requests_per_minute > 0).then(|| Buckets::new(requests_per_minute).into());
        Self { clock, buckets }
    }

    /// Whether there is a limit.
    #[must_use]
    pub const fn is_limited(&self) -> bool {
        self.buckets.is_some()
    }

    fn lock(&self) -> Option<MutexGuard<'_, Buckets>> {
        self.buckets.as_ref().map(|buckets| buckets.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts one request.
    ///
    /// # Errors
    ///
    /// 429: the service is over its rate.
    pub fn check(&self, service: ServiceId) -> Result<(), ApiError> {
        let Some(mut buckets) = self.lock() else { return Ok(()) };
        let admitted = buckets.admit(service, self.clock.moment());
        admitted.map_err(|wait| {
            ApiError::too_many_requests(wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
        })
    }

    /// Begins an exchange with other nodes: what this one has let in since the last, each as the time in which the limit
    /// makes it good. Ended by [`Self::end_exchange`] or [`Self::fail_exchange`].
    #[must_use]
    pub fn begin_exchange(&self) -> Vec<(ServiceId, Duration)> {
        self.lock().map_or_else(Vec::new, |mut it| it.begin_exchange(self.clock.moment()))
    }

    /// Takes over what is true for all: how many nodes there are, and the levels of services, as times in which they
    /// come to zero. A service that is not among them is at zero.
    pub fn end_exchange(&self, nodes: usize, levels: &[(ServiceId, Duration)]) {
        if let Some(mut buckets) = self.lock() {
            buckets.end_exchange(nodes, levels, self.clock.moment());
        }
    }

    /// Nothing was heard; what was told is told again.
    pub fn fail_exchange(&self) {
        if let Some(mut buckets) = self.lock() {
            buckets.fail_exchange();
        }
    }
}

#[cfg(test)]
#[path = "request_rates_tests.rs"]
mod tests;
