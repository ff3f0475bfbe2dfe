//! Typed identifiers, one per kind of resource.
//!
//! Each is a UUID of version 7, so identifiers made one after the other sort in that order. The text form is
//! a prefix that shows the kind, an underscore, and 32 lower-case hexadecimal digits.

use std::fmt;

use uuid::{ContextV7, Timestamp as UuidTime, Uuid};

use super::clock::Timestamp;

/// Makes identifiers that sort in the order they were made, also within one millisecond.
#[derive(Debug)]
pub struct IdMaker(ContextV7);

impl IdMaker {
    /// A maker of its own counter; two makers never need to agree.
    #[must_use]
    pub fn new() -> Self {
        Self(ContextV7::new())
    }

    fn make(&self, now: Timestamp) -> Uuid {
        let millis = u64::try_from(now.millis()).unwrap_or(0);
        let nanos = u32::try_from(millis % 1000).unwrap_or(0) * 1_000_000;
        Uuid::new_v7(UuidTime::from_unix(&self.0, millis / 1000, nanos))
    }
}

impl Default for IdMaker {
    fn default() -> Self {
        Self::new()
    }
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// The kind, as it stands before the underscore.
            pub const PREFIX: &'static str = $prefix;

            /// Makes the next identifier at this time.
            #[must_use]
            pub fn make(maker: &IdMaker, now: Timestamp) -> Self {
                Self(maker.make(now))
            }

            /// Reads the text form; nothing but exactly that form is accepted.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                let digits = text.strip_prefix(concat!($prefix, "_"))?;
                let exact = digits.len() == 32
                    && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
                if !exact {
                    return None;
                }
                Uuid::try_parse(digits).ok().map(Self)
            }

            /// Appends the text form, without the detour through a formatter.
            pub fn push_to(&self, text: &mut Vec<u8>) {
                text.extend_from_slice(concat!($prefix, "_").as_bytes());
                let mut digits = [0; 32];
                text.extend_from_slice(self.0.simple().encode_lower(&mut digits).as_bytes());
            }

            /// The 16 bytes that are stored.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// As databases have it that know the type.
            #[must_use]
            pub const fn uuid(self) -> Uuid {
                self.0
            }

            /// From a database that knows the type.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The identifier with these stored bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!($prefix, "_"))?;
                f.write_str(self.0.simple().encode_lower(&mut [0; 32]))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

identifier!(
    /// One service: a tenant.
    ServiceId, "srv");
identifier!(
    /// One app of a service.
    AppId, "app");
identifier!(
    /// One staff contact.
    ContactId, "sc");
identifier!(
    /// One event; the `webhook-id` of its notification.
    EventId, "evt");

#[cfg(test)]
mod tests {
    use super::{ContactId, IdMaker, ServiceId};
    use crate::domain::clock::Timestamp;

    #[test]
    fn identifiers_of_one_millisecond_sort_in_the_order_they_were_made() {
        let maker = IdMaker::new();
        let now = Timestamp::from_millis(1_763_900_000_123);

        let made: Vec<ContactId> = (0..5000).map(|_| ContactId::make(&maker, now)).collect();

        assert!(made.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn text_form_is_read_back_and_nothing_else_is() {
        let id = ServiceId::make(&IdMaker::new(), Timestamp::from_millis(1_763_900_000_123));
        let text = id.to_string();

        let mut pushed = Vec::new();
        id.push_to(&mut pushed);

        assert_eq!(pushed, text.as_bytes());
        assert_eq!(ServiceId::parse(&text), Some(id));
        assert_eq!(ServiceId::parse(&text.to_uppercase()), None);
        assert_eq!(ServiceId::parse(&text[..text.len() - 1]), None);
        assert_eq!(ServiceId::parse(&format!("{text}0")), None);
        assert_eq!(ContactId::parse(&text), None);
    }
}
