//! The commands that go into a group, and what each is answered with.

use crate::domain::clock::Timestamp;
use crate::domain::contact::{ContactPatch, StaffContact};
use crate::domain::id::{AppId, ContactId, ServiceId};
use crate::domain::subscription::{SigningSecret, Subscription};
use crate::domain::tenancy::{App, Scopes, Service, TokenHash};

use super::Error;
use super::rows::{LaterEvents, ReplayFrom, Replayed};

/// Longest `Idempotency-Key` in bytes; longer ones are not keys but data.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;

/// One change of the roll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContactChange {
    /// A new contact.
    Create(ContactPatch),
    /// Fields of a contact.
    Edit {
        /// Which contact.
        id: ContactId,
        /// The fields.
        patch: ContactPatch,
        /// The version it must have.
        if_match: IfMatch,
    },
    /// The contact leaves the roll.
    Delete {
        /// Which contact.
        id: ContactId,
        /// The version it must have.
        if_match: IfMatch,
    },
}

impl ContactChange {
    /// Bytes it occupies in the queue, about.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Self::Create(patch) | Self::Edit { patch, .. } => 128 + patch.size(),
            Self::Delete { .. } => 128,
        }
    }
}

/// The condition of an `If-Match` header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum IfMatch {
    /// No header, or `*`: any version, as long as the contact is there.
    #[default]
    Any,
    /// One of these versions. Empty when the header held only tags that no version can have.
    Versions(Vec<u64>),
}

impl IfMatch {
    /// Whether a contact of this version may be changed.
    #[must_use]
    pub fn allows(&self, version: u64) -> bool {
        match self {
            Self::Any => true,
            Self::Versions(versions) => versions.contains(&version),
        }
    }
}

/// What a change of the roll is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContactAnswer {
    /// The new contact.
    Created(Box<StaffContact>),
    /// The contact after the edit, also when nothing changed.
    Edited(Box<StaffContact>),
    /// The contact is gone.
    Deleted(ContactId),
    /// The same request with the same idempotency key was answered before: its answer, as JSON of a contact.
    Repeated(String),
}

/// An idempotency key with what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The app that sent it; keys of two apps do not meet.
    pub app: AppId,
    /// The key as sent.
    pub key: String,
    /// SHA-256 of the request: method, path and body.
    pub request_hash: [u8; 32],
}

/// What a PATCH of a subscription wants stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubscriptionWish {
    /// Send to this URL, which has just echoed its challenge.
    Enable {
        /// Byte for byte as sent.
        url: String,
        /// When the challenge was echoed.
        verified_at: Timestamp,
    },
    /// Stop sending and drop what is pending.
    Disable {
        /// Stored only if no URL was stored before.
        url: String,
    },
}

/// A new app with everything it is made of.
#[derive(Clone, Debug)]
pub struct NewApp {
    /// The tenant.
    pub service: ServiceId,
    /// Its name.
    pub name: String,
    /// What its token may do.
    pub scopes: Scopes,
    /// The hash of its first token.
    pub token: TokenHash,
    /// Its first signing secret.
    pub secret: SigningSecret,
}

/// Everything that can be asked of the writer, besides the engine's records.
#[derive(Debug)]
pub enum Command {
    /// One change of the roll.
    ChangeContact {
        /// The tenant.
        service: ServiceId,
        /// The change.
        change: ContactChange,
        /// The key of a create.
        key: Option<IdempotencyKey>,
    },
    /// Changes of the roll, applied in order; the refused are left out.
    ChangeContacts {
        /// The tenant.
        service: ServiceId,
        /// The changes.
        changes: Vec<ContactChange>,
    },
    /// A new tenant of this name.
    CreateService(String),
    /// Hides a tenant; its rows are removed in slices.
    DeleteService(ServiceId),
    /// A new app.
    CreateApp(NewApp),
    /// Removes an app with its tokens, secrets and subscription.
    DeleteApp(ServiceId, AppId),
    /// Gives an app a new token.
    RotateToken {
        /// The tenant.
        service: ServiceId,
        /// The app.
        app: AppId,
        /// The hash of the new token.
        token: TokenHash,
        /// When all earlier tokens of the app stop working.
        earlier_until: Timestamp,
    },
    /// Gives an app a new signing secret.
    RotateSecret {
        /// The tenant.
        service: ServiceId,
        /// The app.
        app: AppId,
        /// The new secret.
        secret: SigningSecret,
        /// When all earlier secrets of the app stop signing.
        earlier_until: Timestamp,
    },
    /// Stores a wish of an app, unless a later ticket has stored.
    SetSubscription {
        /// The tenant.
        service: ServiceId,
        /// The app.
        app: AppId,
        /// The place in the order of arrival, from [`Write::take_ticket`](super::queue::Write::take_ticket).
        ticket: u64,
        /// The wish.
        wish: SubscriptionWish,
    },
    /// Sends one event again, whatever has become of its delivery.
    Redeliver {
        /// The tenant.
        service: ServiceId,
        /// The app.
        app: AppId,
        /// The event.
        sequence: u64,
        /// Later events of its contact, from [`Read::list_later_events`](super::Read::list_later_events).
        later: LaterEvents,
    },
    /// Sends everything after a point again.
    Replay {
        /// The tenant.
        service: ServiceId,
        /// The app.
        app: AppId,
        /// The point.
        from: ReplayFrom,
    },
    /// Replaces the stored admin tokens.
    SetAdminToken(TokenHash),
    /// Stores an admin token unless there is one that works.
    SetFirstAdminToken(TokenHash),
    /// Adds an admin token.
    RotateAdminToken {
        /// The hash of the new token.
        token: TokenHash,
        /// When all earlier ones stop working.
        earlier_until: Timestamp,
    },
    /// Records the hour in which this token is used.
    NoteTokenUse(TokenHash),
}

impl Command {
    /// Bytes it occupies in the queue, about.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Self::ChangeContact { change, .. } => 256 + change.size(),
            Self::ChangeContacts { changes, .. } => {
                256 + changes.iter().map(ContactChange::size).sum::<usize>()
            }
            Self::SetSubscription { .. } => 4096,
            Self::Redeliver { later, .. } => 256 + 8 * later.sequences.len(),
            Self::NoteTokenUse(_) => 256,
            _ => 1024,
        }
    }
}

/// What a command is answered with; the variant follows the command's.
#[derive(Debug)]
pub enum Reply {
    /// To `ChangeContact`.
    Contact(ContactAnswer),
    /// To `ChangeContacts`: one result for each change, in order.
    Contacts(Vec<Result<ContactAnswer, Error>>),
    /// To `CreateService`.
    Service(Service),
    /// To `CreateApp`.
    App(App),
    /// To `SetSubscription`.
    Subscription(Box<Subscription>),
    /// To `Replay`.
    Replayed(Replayed),
    /// To `SetFirstAdminToken`: whether it was stored.
    IsFirst(bool),
    /// To everything else.
    Done,
}
