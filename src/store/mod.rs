//! The only place that knows SQL: reads as a trait, writes through one queue into group commits.
//!
//! A back end implements [`Read`] and runs a writer that takes groups from the [`queue`]. A group is one
//! transaction and one sync. For each command of a group the writer asks the pure decision in `domain` on the rows
//! as they are at that point of the transaction, earlier commands of the same group included. A refused command
//! leaves no trace and does not touch its neighbours. When the store fails in a group, every caller of the group
//! gets [`Error::Unavailable`]: the outcome is unknown to it.

mod audit_rows;
pub mod command;
#[cfg(test)]
pub mod conformance;
pub mod copy;
mod extension_map;
pub mod keyring;
pub mod postgres;
pub mod queue;
pub mod retention;
pub mod rows;
pub mod sqlite;
mod standing;
mod wish;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::domain::clock::Timestamp;
use crate::domain::contact::{FieldError, StaffContact};
use crate::domain::event::Event;
use crate::domain::id::{AppId, ContactId, ServiceId};
use crate::domain::page::Page;
use crate::domain::shard::Shard;
use crate::domain::subscription::{
    SIGNING_SECRET_BYTES, SigningSecret, StoredSecret, Subscription,
};
use crate::domain::tenancy::{App, Service, StoredToken, TokenHash};

use self::queue::Write;
use self::rows::{
    AuditPage, AuditQuery, ConditionRow, ContactList, ContactQuery, DeliveryQuery, DeliveryRow,
    LaneRow, LaterEvents, LogPage, NodeRow, SubscriptionStatus, TokenOfApp,
};

/// What went wrong, as far as a caller can act on it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no such row in this service.
    #[error("not found")]
    NotFound,
    /// The command breaks a rule of one field.
    #[error("{0}")]
    Refused(FieldError),
    /// Another contact of the service has this value.
    #[error("{0}")]
    Conflict(FieldError),
    /// The contact has another version than the caller asked for.
    #[error("the current version is {current}")]
    VersionMismatch {
        /// The version it has.
        current: u64,
    },
    /// The idempotency key was used before with another request.
    #[error("the key was used before with another request")]
    KeyReused,
    /// A request that arrived later has stored already, or the generation is over.
    #[error("superseded by a later request")]
    Superseded,
    /// The store is away, or the group failed: the outcome is unknown. May be tried again.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The store holds something it must not, or a statement is wrong.
    #[error("store error: {0}")]
    Internal(String),
}

/// A new secret that signs notifications.
///
/// # Errors
///
/// The system gives no random numbers.
pub fn random_secret() -> Result<SigningSecret, Error> {
    let mut random = vec![0; SIGNING_SECRET_BYTES];
    getrandom::fill(&mut random)
        .map_err(|error| Error::Internal(format!("no random numbers: {error}")))?;
    Ok(SigningSecret(random))
}

/// What a read gives, when it is there.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// Everything that can be read. A hidden service (one that is being removed) is not there.
pub trait Read: Send + Sync + std::fmt::Debug {
    /// The app of a token that has not expired at `now`.
    fn find_app_by_token(&self, token: TokenHash, now: Timestamp)
    -> Answer<'_, Option<TokenOfApp>>;
    /// The stored admin tokens that have not expired at `now`; the newest comes last.
    fn list_admin_tokens(&self, now: Timestamp) -> Answer<'_, Vec<StoredToken>>;
    /// The tokens of each of these apps that have not expired at `now`; the newest of each comes last.
    fn list_tokens(
        &self,
        service: ServiceId,
        apps: Vec<AppId>,
        now: Timestamp,
    ) -> Answer<'_, Vec<Vec<StoredToken>>>;
    /// Entries of the audit log of a service, also of one that was deleted, or of the
    /// [server](crate::domain::audit::SERVER); `None` when nothing is known of that service.
    fn list_audit(&self, service: ServiceId, query: AuditQuery) -> Answer<'_, Option<AuditPage>>;
    /// One service.
    fn find_service(&self, service: ServiceId) -> Answer<'_, Option<Service>>;
    /// The services, oldest first; `after` is the last id of the page before.
    fn list_services(&self, after: Option<ServiceId>, limit: u32) -> Answer<'_, Page<Service>>;
    /// The apps of a service, oldest first.
    fn list_apps(
        &self,
        service: ServiceId,
        after: Option<AppId>,
        limit: u32,
    ) -> Answer<'_, Page<App>>;
    /// One contact.
    fn find_contact(&self, service: ServiceId, id: ContactId) -> Answer<'_, Option<StaffContact>>;
    /// A slice of the roll, oldest first, together with the total and the log's head at the same instant.
    fn list_contacts(&self, service: ServiceId, query: ContactQuery) -> Answer<'_, ContactList>;
    /// The stored subscription of an app.
    fn find_subscription(&self, service: ServiceId, app: AppId)
    -> Answer<'_, Option<Subscription>>;
    /// Where the subscription of an app stands.
    fn get_subscription_status(
        &self,
        service: ServiceId,
        app: AppId,
    ) -> Answer<'_, SubscriptionStatus>;
    /// The secrets that sign for an app at `now`, newest first. The app is there, so there is at least one.
    fn list_signing_secrets(
        &self,
        service: ServiceId,
        app: AppId,
        now: Timestamp,
    ) -> Answer<'_, Vec<StoredSecret>>;
    /// The head of every service's log.
    fn list_heads(&self) -> Answer<'_, Vec<(ServiceId, u64)>>;
    /// Every enabled subscription with its progress and held deliveries, in one pass.
    fn list_lanes(&self) -> Answer<'_, Vec<LaneRow>>;
    /// One subscription as [`Self::list_lanes`] gives it; `None` unless it is enabled.
    fn find_lane(&self, service: ServiceId, app: AppId) -> Answer<'_, Option<LaneRow>>;
    /// Events after a number, in order, at most `limit`, without gaps among them.
    fn list_events(&self, service: ServiceId, after: u64, limit: u32) -> Answer<'_, Vec<Event>>;
    /// Held and exhausted deliveries of an app, by number.
    fn list_deliveries(
        &self,
        service: ServiceId,
        app: AppId,
        query: DeliveryQuery,
    ) -> Answer<'_, Vec<DeliveryRow>>;
    /// One delivery of an app that is subscribed; `None` when there is no such event.
    fn find_delivery(
        &self,
        service: ServiceId,
        app: AppId,
        sequence: u64,
    ) -> Answer<'_, Option<DeliveryRow>>;
    /// The later events of the contact of this event; it may look through the whole log after it.
    fn list_later_events(&self, service: ServiceId, sequence: u64) -> Answer<'_, LaterEvents>;
    /// As [`Self::list_events`], together with the head at the same instant; `None` when there is no such service.
    fn list_log(&self, service: ServiceId, after: u64, limit: u32) -> Answer<'_, Option<LogPage>>;
    /// The processes that share the store, oldest first.
    fn list_nodes(&self) -> Answer<'_, Vec<NodeRow>> {
        Box::pin(std::future::ready(Ok(vec![NodeRow::alone()])))
    }
    /// Whether the store can be read and written; the reason when not.
    fn check(&self) -> Answer<'_, ()>;
}

/// What a commit changed: handed to the listener after the commit and before any caller is answered.
#[derive(Debug, Default)]
pub struct Commit {
    /// New events, in log order per service.
    pub events: Vec<Arc<Event>>,
    /// Subscriptions whose generation changed.
    pub subscriptions: Vec<(ServiceId, AppId)>,
    /// Those of them that want events again: no attempt that began before counts.
    pub again: Vec<(ServiceId, AppId)>,
    /// Whether a service, app or token changed.
    pub tenancy: bool,
    /// Apps whose signing secrets changed; a later entry of an app replaces an earlier one.
    pub secrets: Vec<ChangedSecrets>,
    /// Services that were hidden: their lanes must stop.
    pub hidden: Vec<ServiceId>,
    /// Whether the store was opened again after a failure: everything held in memory must be read anew.
    pub reopened: bool,
    /// Whether with that commits may be gone that were told of: heads may be lower than known, and the same numbers may
    /// come again for other events.
    pub went_back: bool,
    /// Logs that grew by the hand of another node, and how far.
    pub heads: Vec<(ServiceId, u64)>,
    /// Shards that this node has from now on: their lanes are to be built.
    pub gained: Vec<Shard>,
    /// Shards that this node has no more: their lanes must stop at once.
    pub lost: Vec<Shard>,
    /// Shards of which the commit tells the other nodes, by their counts, that subscriptions or secrets changed.
    pub counted: Vec<Shard>,
    /// Whether another node made it, and this one only heard of it.
    pub elsewhere: bool,
}

/// The secrets of an app after a rotation.
#[derive(Clone, Debug)]
pub struct ChangedSecrets {
    /// The tenant.
    pub service: ServiceId,
    /// The app.
    pub app: AppId,
    /// Those that sign from now on, newest first.
    pub secrets: Arc<[StoredSecret]>,
}

/// Hears of commits. Called on the writer's own thread: it must not block.
pub type CommitListener = Arc<dyn Fn(&Commit) + Send + Sync>;

/// Tells other nodes how the lanes of this one are doing.
pub trait ShareConditions: Send + Sync + std::fmt::Debug {
    /// Writes these.
    fn write(&self, rows: Vec<ConditionRow>) -> Answer<'_, ()>;
}

/// An open store.
#[derive(Clone, Debug)]
pub struct Store {
    /// Reads.
    pub read: Arc<dyn Read>,
    /// Writes.
    pub write: Write,
    /// Where other nodes hear how lanes are doing; `None` where one process has the store for itself.
    pub conditions: Option<Arc<dyn ShareConditions>>,
}
