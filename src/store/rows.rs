//! What reads give and the engine writes: rows that are not domain objects by themselves.

use std::time::Duration;

use crate::domain::audit::{Action, Entry};
use crate::domain::clock::Timestamp;
use crate::domain::contact::StaffContact;
use crate::domain::event::{Event, Gap};
use crate::domain::id::{AppId, ContactId, ServiceId};
use crate::domain::shard::Shard;
use crate::domain::subscription::{StoredSecret, Subscription};
use crate::domain::tenancy::App;

/// The app of a token, and when the token was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenOfApp {
    /// The app.
    pub app: App,
    /// The hour in which the token was last used, as far as that is recorded.
    pub used_at: Option<Timestamp>,
}

/// One process of those that share the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// What its operator calls it.
    pub name: String,
    /// What the nodes call it, another one after each start; `None` for a process that has the store for itself.
    pub id: Option<String>,
    /// Its version.
    pub version: String,
    /// When it registered.
    pub since: Option<Timestamp>,
    /// How long ago it renewed its lease.
    pub renewed_ago: Option<Duration>,
    /// The shards that it has, in order.
    pub shards: Vec<Shard>,
}

impl NodeRow {
    /// The process that has the store for itself.
    #[must_use]
    pub fn alone() -> Self {
        Self {
            name: "embedded".to_owned(),
            id: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since: None,
            renewed_ago: None,
            shards: Shard::all().collect(),
        }
    }
}

/// Which part of an audit log is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AuditQuery {
    /// Only entries after this number.
    pub after: u64,
    /// Entries to give, at most [`PAGE_LIMIT_MAX`](crate::domain::page::PAGE_LIMIT_MAX).
    pub limit: u32,
    /// Only this.
    pub action: Option<Action>,
    /// Only entries of this time or later.
    pub since: Option<Timestamp>,
}

/// A part of an audit log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditPage {
    /// Entries by number.
    pub entries: Vec<Entry>,
    /// Where to go on; `None` at the end of the log. A page with a filter may be short, or empty, and yet have one.
    pub next: Option<u64>,
}

/// Which slice of the roll is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContactQuery {
    /// Contacts to pass over.
    pub offset: u64,
    /// Contacts to give, at most [`PAGE_LIMIT_MAX`](crate::domain::page::PAGE_LIMIT_MAX).
    pub limit: u32,
    /// Only contacts whose full name contains this, without regard to case.
    pub full_name: Option<String>,
}

/// A slice of the roll as it was at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContactList {
    /// How many contacts match, on all pages.
    pub total: u64,
    /// This slice, oldest first.
    pub items: Vec<StaffContact>,
    /// The head of the log at the same instant.
    pub sequence: u64,
}

/// A part of the event log, and its head at the same instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPage {
    /// Events in order of their numbers.
    pub events: Vec<Event>,
    /// The head of the log.
    pub newest: u64,
}

/// Where a subscription stands, for the app that owns it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubscriptionStatus {
    /// The stored subscription; `None` when there never was one.
    pub subscription: Option<Subscription>,
    /// Everything up to it is finished or held.
    pub cursor: u64,
    /// The head of the service's log.
    pub newest: u64,
    /// Held deliveries.
    pub held: u64,
    /// Exhausted deliveries.
    pub exhausted: u64,
    /// The time of the oldest event that is owed.
    pub oldest_undelivered: Option<Timestamp>,
    /// Attempts of the unbroken row of failures, and when it began.
    pub failing: Option<Failing>,
    /// Events that were removed from the log before they were delivered.
    pub gap: Option<Gap>,
    /// How the lane is doing on the node that has it, as far as that was told; `None` where it is active.
    pub condition: Option<LaneCondition>,
}

/// What is worth telling of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneCondition {
    /// The receiver asked for a pause.
    Paused,
    /// The circuit is open, or too many deliveries are held.
    Failing,
}

impl LaneCondition {
    /// As it is stored.
    #[must_use]
    pub const fn code(self) -> i16 {
        match self {
            Self::Paused => 1,
            Self::Failing => 2,
        }
    }

    /// From its stored code.
    #[must_use]
    pub const fn from_code(code: i16) -> Option<Self> {
        match code {
            1 => Some(Self::Paused),
            2 => Some(Self::Failing),
            _ => None,
        }
    }
}

/// How a lane of this node is doing from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConditionRow {
    /// The tenant.
    pub service: ServiceId,
    /// The app.
    pub app: AppId,
    /// The epoch of its shard.
    pub epoch: u64,
    /// `None` for an active one.
    pub condition: Option<LaneCondition>,
}

/// An unbroken row of failed attempts of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failing {
    /// When the first of them ended.
    pub since: Timestamp,
    /// How many there are.
    pub attempts: u32,
}

/// A held delivery: at or below the cursor or failed, and not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldRow {
    /// Its event.
    pub sequence: u64,
    /// The event's contact.
    pub contact: ContactId,
    /// Steps of the retry schedule it has used up.
    pub retries_used: u32,
    /// Attempts made, uncounted ones included.
    pub attempts: u32,
    /// When it may be sent again.
    pub due_at: Timestamp,
}

/// An exhausted delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExhaustedRow {
    /// Its event.
    pub sequence: u64,
    /// The event's contact.
    pub contact: ContactId,
    /// Attempts made.
    pub attempts: u32,
    /// When the last one ended.
    pub at: Timestamp,
}

/// Failed attempts that are kept of one delivery: its first days of retries.
pub const FAILED_PER_DELIVERY_MAX: u64 = 12;
/// Failed attempts that are kept of one subscription, about 1 MiB with the starts of their answers.
pub const FAILED_PER_SUBSCRIPTION_MAX: u64 = 1_000;

/// An attempt that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedAttempt {
    /// Its event.
    pub sequence: u64,
    /// Which attempt of the delivery it was.
    pub attempt: u32,
    /// When it ended.
    pub at: Timestamp,
    /// The status of the answer, when there was one.
    pub status: Option<u16>,
    /// The step at which it failed.
    pub step: String,
    /// The start of the answer's body.
    pub answer: Vec<u8>,
}

/// Where a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryState {
    /// Above the cursor and not finished: on its way, or its turn has not come.
    Pending,
    /// At or below the cursor, or failed, and not finished: waits for a retry, or behind an earlier event.
    Held,
    /// Given up.
    Exhausted,
    /// Delivered.
    Delivered,
    /// Older than the subscription: it was never to be sent.
    NotOwed,
}

/// One delivery, with what is known of its failures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryRow {
    /// Its event.
    pub event: Event,
    /// Where it stands.
    pub state: DeliveryState,
    /// Attempts made, as far as known: 0 for one that was delivered.
    pub attempts: u32,
    /// When a held one may start again, or when an exhausted one was given up.
    pub at: Option<Timestamp>,
    /// Its last failed attempts, oldest first, at most [`FAILED_PER_DELIVERY_MAX`].
    pub failed: Vec<FailedAttempt>,
}

/// Which deliveries are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryQuery {
    /// Only held, or only exhausted ones; both when `None`.
    pub state: Option<DeliveryState>,
    /// Only those after this number.
    pub after: u64,
    /// At most so many.
    pub limit: u32,
}

/// Events of one contact after one of its events, as far as the log was looked through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaterEvents {
    /// Their numbers, newest first, at most [`LATER_EVENTS_MAX`].
    pub sequences: Vec<u64>,
    /// The head of the log that was looked through.
    pub head: u64,
}

/// Later events of a contact that are looked at for the newest finished one: more than any contact has owed.
pub const LATER_EVENTS_MAX: usize = 1_024;

/// From where events are sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayFrom {
    /// Everything after this number.
    After(u64),
    /// Everything that happened at this time or later.
    Since(Timestamp),
}

/// Where a replay begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replayed {
    /// Everything after this number is sent again.
    pub after: u64,
    /// The head of the log.
    pub newest: u64,
}

/// The bitmap of finished events above a cursor: bit `n`, least significant first, is event `cursor + 1 + n`. `done` is
/// in order.
#[must_use]
pub fn bitmap_of(cursor: u64, done: &[u64]) -> Vec<u8> {
    let mut bitmap = Vec::new();
    for sequence in done {
        let bit = usize::try_from(sequence - cursor - 1).unwrap_or(usize::MAX);
        if bit / 8 >= bitmap.len() {
            bitmap.resize(bit / 8 + 1, 0_u8);
        }
        bitmap[bit / 8] |= 1 << (bit % 8);
    }
    bitmap
}

/// The finished events in a bitmap above this cursor, in order.
#[must_use]
pub fn done_of(cursor: u64, bitmap: &[u8]) -> Vec<u64> {
    let set = |bit: &u64| {
        let byte = usize::try_from(bit / 8).ok().and_then(|byte| bitmap.get(byte));
        byte.is_some_and(|byte| byte & (1 << (bit % 8)) != 0)
    };
    let bits = u64::try_from(bitmap.len()).unwrap_or(0) * 8;
    (0..bits).filter(set).map(|bit| cursor + 1 + bit).collect()
}

/// One enabled subscription with all that its lane needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneRow {
    /// The subscription.
    pub subscription: Subscription,
    /// The secrets that sign for it, newest first; some may have expired.
    pub secrets: Vec<StoredSecret>,
    /// Everything up to it is finished or held.
    pub cursor: u64,
    /// Finished events above the cursor: bit `n` (least significant first) is event `cursor + 1 + n`.
    pub bitmap: Vec<u8>,
    /// The unbroken row of failures it is in.
    pub failing: Option<Failing>,
    /// Its held deliveries, by sequence.
    pub held: Vec<HeldRow>,
    /// The epoch of its shard under which it was read; 0 where one process has the store for itself.
    pub epoch: u64,
}

/// What the lane of a subscription wants recorded: one transaction, refused as a whole when the generation is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The tenant.
    pub service: ServiceId,
    /// The app.
    pub app: AppId,
    /// The generation that the lane is in.
    pub generation: u64,
    /// The epoch of its shard under which the lane was loaded: refused once the shard has changed hands.
    pub epoch: u64,
    /// The new cursor.
    pub cursor: u64,
    /// The new bitmap above it, without trailing zero bytes.
    pub bitmap: Vec<u8>,
    /// The unbroken row of failures, `None` after a success.
    pub failing: Option<Failing>,
    /// Held deliveries that are new or changed.
    pub hold: Vec<HeldRow>,
    /// Held deliveries that are finished.
    pub release: Vec<u64>,
    /// Deliveries that are exhausted.
    pub exhaust: Vec<ExhaustedRow>,
    /// Attempts that failed, in the order in which they ended.
    pub failed: Vec<FailedAttempt>,
    /// Disables the subscription, with this reason.
    pub disable: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::{bitmap_of, done_of};

    #[test]
    fn bitmap_is_read_back() {
        for done in [vec![], vec![11], vec![18], vec![19], vec![11, 12, 30, 1034]] {
            assert_eq!(done_of(10, &bitmap_of(10, &done)), done);
        }
        assert_eq!(bitmap_of(10, &[11, 19]), [1, 1]);
    }
}
