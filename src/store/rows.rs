//! What reads give and the engine writes: rows that are not domain objects by themselves.

use crate::domain::clock::Timestamp;
use crate::domain::contact::StaffContact;
use crate::domain::event::Event;
use crate::domain::id::{AppId, ContactId, ServiceId};
use crate::domain::subscription::{StoredSecret, Subscription};

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
    /// Disables the subscription, with this reason.
    pub disable: Option<String>,
}
