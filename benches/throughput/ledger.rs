//! What the receiver remembers of each contact: the version of its newest notification.
//!
//! Versions of a contact must arrive as 1, 2, 3 …: one that comes again was repeated, one that skips was lost or
//! overtaken. So one byte per contact and subscription proves "nothing lost, nothing twice, in order".

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use crate::protocol::{MAX_CONTACTS, MAX_SUBSCRIPTIONS, Range, Seen};

/// One subscription's view.
struct Account {
    versions: Vec<AtomicU8>,
    notifications: AtomicU64,
}

/// All subscriptions of one server.
pub(crate) struct Ledger {
    accounts: Vec<Account>,
    repeated: AtomicU64,
    out_of_order: AtomicU64,
    malformed: AtomicU64,
    highest_sequence: AtomicU64,
    /// Nanoseconds from `began` to the first subscription's notification, for a paced run.
    arrivals: OnceLock<Vec<AtomicU64>>,
    began: Instant,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        let account = || Account {
            versions: (0..MAX_CONTACTS).map(|_| AtomicU8::new(0)).collect(),
            notifications: AtomicU64::new(0),
        };
        Self {
            accounts: (0..MAX_SUBSCRIPTIONS).map(|_| account()).collect(),
            repeated: AtomicU64::new(0),
            out_of_order: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
            highest_sequence: AtomicU64::new(0),
            arrivals: OnceLock::new(),
            began: Instant::now(),
        }
    }

    /// From now on the arrival of each of the first contacts is kept.
    pub(crate) fn keep_arrivals(&self, contacts: u32) {
        self.arrivals.get_or_init(|| (0..contacts).map(|_| AtomicU64::new(0)).collect());
    }

    /// Nanoseconds since this ledger was made.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// When the contact's notification arrived; 0 when it did not.
    pub(crate) fn arrival(&self, contact: u32) -> u64 {
        self.arrivals
            .get()
            .and_then(|all| all.get(contact as usize))
            .map_or(0, |at| at.load(Relaxed))
    }

    pub(crate) fn record(&self, subscription: usize, contact: u32, version: u8, sequence: u64) {
        let account = self.accounts.get(subscription);
        let Some(newest) = account.and_then(|a| a.versions.get(contact as usize)) else {
            self.record_malformed();
            return;
        };
        if let Some(at) = self.arrivals.get().and_then(|all| all.get(contact as usize)) {
            at.store(self.now(), Relaxed);
        }
        let before = newest.swap(version, Relaxed);
        if version <= before {
            self.repeated.fetch_add(1, Relaxed);
        } else if version != before + 1 {
            self.out_of_order.fetch_add(1, Relaxed);
        }
        if self.highest_sequence.load(Relaxed) < sequence {
            self.highest_sequence.fetch_max(sequence, Relaxed);
        }
        self.accounts[subscription].notifications.fetch_add(1, Relaxed);
    }

    pub(crate) fn record_malformed(&self) {
        self.malformed.fetch_add(1, Relaxed);
    }

    pub(crate) fn notifications(&self, subscription: usize) -> u64 {
        self.accounts[subscription].notifications.load(Relaxed)
    }

    pub(crate) fn seen(&self, subscriptions: usize) -> Seen {
        Seen {
            notifications: (0..subscriptions).map(|s| self.notifications(s)).collect(),
            repeated: self.repeated.load(Relaxed),
            out_of_order: self.out_of_order.load(Relaxed),
            malformed: self.malformed.load(Relaxed),
            highest_sequence: self.highest_sequence.load(Relaxed),
            wrong: 0,
        }
    }

    /// Compares with what was accepted. Contacts in no range must not have arrived at all.
    pub(crate) fn check(&self, ranges: &[Range], subscriptions: usize) -> Seen {
        let mut expected = vec![0_u8; MAX_CONTACTS as usize];
        for range in ranges {
            let first = range.first as usize;
            expected[first..first + range.count as usize].fill(range.version);
        }
        let nothing = vec![0_u8; MAX_CONTACTS as usize];
        let mut seen = self.seen(subscriptions);
        for (index, account) in self.accounts.iter().enumerate() {
            let expected = if index < subscriptions { &expected } else { &nothing };
            let differs = |(a, b): &(&AtomicU8, &u8)| a.load(Relaxed) != **b;
            let wrong = account.versions.iter().zip(expected).filter(differs);
            seen.wrong += wrong.count() as u64;
        }
        seen
    }

    pub(crate) fn reset(&self) {
        for account in &self.accounts {
            for version in &account.versions {
                version.store(0, Relaxed);
            }
            account.notifications.store(0, Relaxed);
        }
        for counter in [&self.repeated, &self.out_of_order, &self.malformed, &self.highest_sequence]
        {
            counter.store(0, Relaxed);
        }
    }
}
