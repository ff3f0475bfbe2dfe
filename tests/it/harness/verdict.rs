//! What is true after nodes failed, whatever failed: judged by what callers were told and by what reached the receivers.
//!
//! Nothing is lost: each acknowledged change was delivered to each subscription. Nothing is out of order: attempts for a
//! contact never go back, except for an exact repetition of the newest. Nobody sent for a shard of somebody else.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use bytes::Bytes;

use super::cluster::{Cluster, Subscription};
use super::receiver::Seen;
use super::writers::Acknowledged;

/// Most attempts that one failure may repeat, for one subscription: the promise.
const REPEATED_MAX: usize = 256;
/// A notification that was sent in time may be read by its receiver so much later, on a busy machine.
const GRACE: Duration = Duration::from_millis(500);

/// What was found, for the line of figures.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) acknowledged: usize,
    /// Answers of 503.
    pub(crate) unavailable: usize,
    pub(crate) delivered: usize,
    pub(crate) repeated: usize,
    /// The same for the subscription that has the most.
    pub(crate) repeated_most: usize,
}

impl Verdict {
    /// Judges when every node has ended; fails when anything is wrong.
    pub(super) async fn reach(cluster: &Cluster, failures: usize) -> Self {
        let acknowledged = &cluster.acknowledged;
        let mut verdict = Self {
            acknowledged: acknowledged.count(),
            unavailable: acknowledged.unavailable(),
            ..Self::default()
        };
        for (number, subscription) in cluster.subscriptions.iter().enumerate() {
            subscription.receiver.wait_until_quiet().await;
            let mut one = Told::default();
            for seen in subscription.receiver.take_notifications() {
                one.judge(number, &seen);
            }
            one.assert_nothing_lost(number, acknowledged);
            assert!(
                one.repeated <= REPEATED_MAX * failures,
                "subscription {number}: {} attempts came twice",
                one.repeated
            );
            verdict.delivered += one.sequences.len();
            verdict.repeated += one.repeated;
            verdict.repeated_most = verdict.repeated_most.max(one.repeated);
        }
        assert_sent_by_owners(cluster);
        cluster.watcher.assert_nothing_went_back();
        verdict
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} changes acknowledged, {} answers of 503; {} delivered, 0 lost, 0 out of order, {} repeated (at most {} for \
             one subscription)",
            self.acknowledged, self.unavailable, self.delivered, self.repeated, self.repeated_most
        )
    }
}

/// The newest notification of a contact.
#[derive(PartialEq)]
struct Newest {
    version: u64,
    sequence: u64,
    body: Bytes,
}

/// What a receiver was told.
#[derive(Default)]
struct Told {
    newest: HashMap<String, Newest>,
    sequences: BTreeSet<u64>,
    delivered: BTreeSet<(String, u64)>,
    last_kind: BTreeMap<String, String>,
    repeated: usize,
}

impl Told {
    fn judge(&mut self, number: usize, seen: &Seen) {
        let contact = seen.contact();
        let now =
            Newest { version: seen.version(), sequence: seen.sequence(), body: seen.body.clone() };
        if let Some(before) = self.newest.get(&contact) {
            assert!(
                now.version > before.version || now == *before,
                "subscription {number}: version {} came after {}: {seen:?}",
                now.version,
                before.version
            );
        }
        if !self.sequences.insert(now.sequence) {
            self.repeated += 1;
        }
        if seen.status == Some(200) {
            self.delivered.insert((contact.clone(), now.version));
            self.last_kind.insert(contact.clone(), seen.kind());
        }
        self.newest.insert(contact, now);
    }

    fn assert_nothing_lost(&self, number: usize, acknowledged: &Acknowledged) {
        let changes = acknowledged.changes.lock().unwrap();
        let missing: Vec<_> =
            changes.keys().filter(|change| !self.delivered.contains(change)).collect();
        assert!(missing.is_empty(), "subscription {number}: acknowledged and lost: {missing:?}");
        for id in acknowledged.deletes.lock().unwrap().keys() {
            let kind = self.last_kind.get(id).map(String::as_str);
            assert_eq!(kind, Some("staffDelete"), "subscription {number}: {id} was deleted");
        }
        let last = self.sequences.last().copied().unwrap_or_default();
        assert_eq!(self.sequences.len() as u64, last, "subscription {number}: gaps in the log");
    }
}

/// Compares who sent with who had the shard by the database at that time.
fn assert_sent_by_owners(cluster: &Cluster) {
    let arrivals = cluster.senders.arrivals();
    let known: Vec<_> = arrivals.iter().filter_map(|it| Some((it, it.from?))).collect();
    let all = arrivals.len();
    assert!(known.len() * 10 >= all * 9, "of {all} notifications {} have a sender", known.len());
    for (arrival, from) in known {
        let Subscription { shard, .. } = &cluster.subscriptions[arrival.to];
        assert!(
            cluster.watcher.had(from, *shard, arrival.at, GRACE),
            "node {from} sent and did not have shard {shard}: {arrival:?}, {:#?}",
            cluster.watcher.tenures_of(*shard)
        );
    }
}
