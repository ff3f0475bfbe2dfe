//! What the receiver remembers of each contact: the version of its newest notification.
//!
//! Versions of a contact must arrive as 1, 2, 3 …: one that comes again was repeated, one that skips was lost or
//! overtaken. So one byte per contact and subscription proves "nothing lost, nothing twice, in order".
//!
//! For a paced run it also knows when each contact was sent, and so how long its notifications took.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use crate::protocol::{MAX_CONTACTS, MAX_GROUPS, MAX_SUBSCRIPTIONS, Range, Seen};

/// Latencies in nanoseconds, for each group of subscriptions.
pub(crate) type Latencies = [Vec<u64>; MAX_GROUPS];

/// One subscription's view.
struct Account {
    versions: Vec<AtomicU8>,
    notifications: AtomicU64,
}

/// One notification.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) subscription: usize,
    /// Whose latencies it belongs to.
    pub(crate) group: usize,
    pub(crate) contact: u32,
    pub(crate) version: u8,
    pub(crate) sequence: u64,
}

/// All subscriptions of one server.
pub(crate) struct Ledger {
    accounts: Vec<Account>,
    repeated: AtomicU64,
    out_of_order: AtomicU64,
    malformed: AtomicU64,
    highest_sequence: AtomicU64,
    /// Nanoseconds from `began` to the request of each contact, 0 for one that is not timed.
    sent: OnceLock<Vec<AtomicU64>>,
    latencies: Mutex<Latencies>,
    /// Whether the receivers that can misbehave do.
    misbehaving: AtomicBool,
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
            sent: OnceLock::new(),
            latencies: Mutex::default(),
            misbehaving: AtomicBool::new(false),
            began: Instant::now(),
        }
    }

    fn sent(&self) -> &[AtomicU64] {
        self.sent.get_or_init(|| (0..MAX_CONTACTS).map(|_| AtomicU64::new(0)).collect())
    }

    /// Makes room for what [`Self::start_clock`] notes.
    pub(crate) fn prepare_clock(&self) {
        self.sent();
    }

    /// From now on the notifications of this contact are timed. Gives the time.
    pub(crate) fn start_clock(&self, contact: u32) -> u64 {
        let now = self.now();
        if let Some(at) = self.sent().get(contact as usize) {
            at.store(now, Relaxed);
        }
        now
    }

    /// Takes the latencies of all timed notifications since the last time.
    pub(crate) fn take_latencies(&self) -> Latencies {
        std::mem::take(&mut self.latencies.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many timed notifications have arrived since the latencies were taken.
    pub(crate) fn timed(&self, group: usize) -> usize {
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner)[group].len()
    }

    /// Whether the receivers that can misbehave do.
    pub(crate) fn misbehaves(&self) -> bool {
        self.misbehaving.load(Relaxed)
    }

    pub(crate) fn misbehave(&self, now: bool) {
        self.misbehaving.store(now, Relaxed);
    }

    /// Nanoseconds since this ledger was made.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn record(&self, arrived: &Arrived) {
        let &Arrived { subscription, group, contact, version, sequence } = arrived;
        let account = self.accounts.get(subscription);
        let Some(newest) = account.and_then(|a| a.versions.get(contact as usize)) else {
            self.record_malformed();
            return;
        };
        let sent = self.sent.get().and_then(|all| all.get(contact as usize));
        let sent = sent.map_or(0, |at| at.load(Relaxed));
        if sent != 0 {
            let taken = self.now().saturating_sub(sent);
            let mut latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(group) = latencies.get_mut(group) {
                group.push(taken);
            }
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

    /// Compares with what was accepted, for each of the first subscriptions; the others must have got nothing.
    pub(crate) fn check(&self, expected: &[Vec<Range>]) -> Seen {
        let mut seen = self.seen(expected.len());
        for (index, account) in self.accounts.iter().enumerate() {
            let mut versions = vec![0_u8; MAX_CONTACTS as usize];
            for range in expected.get(index).into_iter().flatten() {
                let first = range.first as usize;
                versions[first..first + range.count as usize].fill(range.version);
            }
            let differs = |(a, b): &(&AtomicU8, &u8)| a.load(Relaxed) != **b;
            let wrong = account.versions.iter().zip(&versions).filter(differs);
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
