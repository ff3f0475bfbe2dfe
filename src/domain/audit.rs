//! The audit log: who asked for a change, from where, and what an entry tells of it.
//!
//! An entry names things by their identifiers. It never holds a name, an e-mail address, a token, a secret, or more of
//! a URL than where it leads.

use std::fmt;
use std::net::IpAddr;

use url::Url;

use super::clock::Timestamp;
use super::event::EventKind;
use super::id::{AppId, ContactId, ServiceId};
use super::tenancy::TokenId;

/// Under whose number entries about the whole server stand. No service has it: identifiers are made from the time.
pub const SERVER: ServiceId = ServiceId::from_bytes([0; 16]);

/// Who asked for a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The holder of this token.
    Token(TokenId),
    /// Somebody on the server's machine: a command on the data directory, or the first start.
    Local,
    /// Nobody: Rollcall did it by its own rules.
    System,
}

impl Who {
    /// The text of [`Self::Local`].
    const LOCAL: &'static str = "local";
    /// The text of [`Self::System`].
    const SYSTEM: &'static str = "system";

    /// Reads the text form.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            Self::LOCAL => Some(Self::Local),
            Self::SYSTEM => Some(Self::System),
            _ => TokenId::parse(text).map(Self::Token),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token(id) => fmt::Display::fmt(id, f),
            Self::Local => f.write_str(Self::LOCAL),
            Self::System => f.write_str(Self::SYSTEM),
        }
    }
}

/// Who asked for a change, and from where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Who.
    pub who: Who,
    /// The caller's address; `None` when it came over no connection.
    pub from: Option<IpAddr>,
}

impl Origin {
    /// A command on this machine.
    pub const LOCAL: Self = Self { who: Who::Local, from: None };
    /// Rollcall itself.
    pub const SYSTEM: Self = Self { who: Who::System, from: None };

    /// The holder of a token, calling from this address.
    #[must_use]
    pub const fn of_token(token: TokenId, from: IpAddr) -> Self {
        Self { who: Who::Token(token), from: Some(from) }
    }
}

macro_rules! actions {
    ($($name:ident $text:literal $doc:literal,)*) => {
        /// What was done.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Action {
            $(#[doc = $doc] $name,)*
        }

        impl Action {
            /// All of them, in the order they are listed.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name in the API and in the store.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }
        }
    };
}

actions! {
    ContactCreate "contactCreate" "A contact was created.",
    ContactEdit "contactEdit" "A contact was edited.",
    ContactDelete "contactDelete" "A contact was deleted.",
    SubscriptionEnable "subscriptionEnable" "A subscription was enabled, or enabled anew with the same URL.",
    SubscriptionUrl "subscriptionUrl" "An enabled subscription got another URL.",
    SubscriptionDisable "subscriptionDisable" "A subscription was disabled, by its app or by Rollcall.",
    Redeliver "redeliver" "One event was sent again.",
    Replay "replay" "Everything after a number was sent again.",
    SecretRotate "secretRotate" "An app got a new signing secret.",
    AppCreate "appCreate" "An app was created.",
    AppDelete "appDelete" "An app was deleted.",
    TokenRotate "tokenRotate" "An app got a new token.",
    ServiceCreate "serviceCreate" "A service was created.",
    ServiceDelete "serviceDelete" "A service was deleted.",
    AdminTokenSet "adminTokenSet" "The stored admin token was made or replaced.",
    AdminTokenRotate "adminTokenRotate" "The stored admin token was rotated.",
}

impl Action {
    /// The action of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|action| action.name() == name)
    }

    /// The kind of event that it made, if it changed a contact.
    #[must_use]
    pub const fn event_kind(self) -> Option<EventKind> {
        match self {
            Self::ContactCreate => Some(EventKind::Create),
            Self::ContactEdit => Some(EventKind::Edit),
            Self::ContactDelete => Some(EventKind::Delete),
            _ => None,
        }
    }
}

impl From<EventKind> for Action {
    fn from(kind: EventKind) -> Self {
        match kind {
            EventKind::Create => Self::ContactCreate,
            EventKind::Edit => Self::ContactEdit,
            EventKind::Delete => Self::ContactDelete,
        }
    }
}

/// What a change was about. What does not belong to the action is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// The service that was created or deleted.
    pub service: Option<ServiceId>,
    /// The app.
    pub app: Option<AppId>,
    /// The contact.
    pub contact: Option<ContactId>,
    /// The event of the change, the one that was sent again, or the number after which a replay began.
    pub sequence: Option<u64>,
    /// The token that was made.
    pub token: Option<TokenId>,
    /// Where the subscription's URL leads: scheme, host and port.
    pub target: Option<String>,
    /// Why Rollcall did it.
    pub reason: Option<String>,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// 1, 2, 3 … without gaps within a service, and likewise for the server.
    pub number: u64,
    /// When it was stored.
    pub at: Timestamp,
    /// Who, and from where.
    pub origin: Origin,
    /// What was done.
    pub action: Action,
    /// To what.
    pub subject: Subject,
}

/// Where a URL leads, without user, path and query, which may hold secrets. `None` for a text that is no such URL.
#[must_use]
pub fn target_of(url: &str) -> Option<String> {
    let origin = Url::parse(url).ok()?.origin();
    origin.is_tuple().then(|| origin.ascii_serialization())
}

#[cfg(test)]
mod tests {
    use super::{Action, Who, target_of};
    use crate::domain::tenancy::Token;

    #[test]
    fn a_target_is_where_a_url_leads_and_nothing_that_may_be_secret() {
        let check = |url: &str, target: Option<&str>| {
            assert_eq!(target_of(url).as_deref(), target, "{url}");
        };
        check("https://u:p@Crm.example.com/hook/s3cret?key=1#x", Some("https://crm.example.com"));
        check("http://127.0.0.1:8081/", Some("http://127.0.0.1:8081"));
        check("https://[2001:db8::1]:444/", Some("https://[2001:db8::1]:444"));
        check("mailto:ana@example.org", None);
        check("s3cret", None);
        check("", None);
    }

    #[test]
    fn texts_are_read_back() {
        for action in Action::ALL {
            assert_eq!(Action::parse(action.name()), Some(*action));
        }
        for who in [Who::Token(Token::from_text("t").hash().id()), Who::Local, Who::System] {
            assert_eq!(Who::parse(&who.to_string()), Some(who));
        }
        assert_eq!(Who::parse("root"), None);
    }
}
