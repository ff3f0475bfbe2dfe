//! The event: a committed fact about one staff contact, and the notification body that tells a receiver of it.

use serde::Serialize;

use super::clock::Timestamp;
use super::id::{ContactId, EventId, ServiceId};

/// Numbers of an event log that are missing, both ends included; in this form in the JSON of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The first of them.
    pub from: u64,
    /// The last of them.
    pub to: u64,
}

/// What happened to the contact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The contact joined the roll.
    Create,
    /// At least one field changed.
    Edit,
    /// The contact left the roll for good.
    Delete,
}

impl EventKind {
    /// The `status` of the notification, as the reference spells it.
    #[must_use]
    pub const fn status(self) -> &'static str {
        match self {
            Self::Create => "staffCreate",
            Self::Edit => "staffEdit",
            Self::Delete => "staffDelete",
        }
    }

    /// The number that is stored.
    #[must_use]
    pub const fn code(self) -> i64 {
        match self {
            Self::Create => 1,
            Self::Edit => 2,
            Self::Delete => 3,
        }
    }

    /// The kind with this stored number.
    #[must_use]
    pub const fn from_code(code: i64) -> Option<Self> {
        match code {
            1 => Some(Self::Create),
            2 => Some(Self::Edit),
            3 => Some(Self::Delete),
            _ => None,
        }
    }
}

/// One entry of a service's event log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Whose log.
    pub service: ServiceId,
    /// Position in that log: 1, 2, 3 … without gaps.
    pub sequence: u64,
    /// Names the event towards receivers.
    pub id: EventId,
    /// The contact it is about.
    pub contact: ContactId,
    /// What happened.
    pub kind: EventKind,
    /// The contact's version after it; a delete has a version of its own.
    pub contact_version: u64,
    /// First name, a space, last name, at the time of the event.
    pub full_name: String,
    /// Commit time; never before the time of the event before it in the same service.
    pub at: Timestamp,
}

impl Event {
    /// Bytes it occupies in memory, about.
    #[must_use]
    pub fn size(&self) -> usize {
        size_of::<Self>() + self.full_name.len() + 32
    }

    /// The notification body, as the reference documents it. The same event always gives the same bytes.
    ///
    /// Written piece by piece: it is made for each attempt, and only the name needs escaping.
    #[must_use]
    pub fn notification(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(NOTIFICATION_BYTES + self.full_name.len());
        body.extend_from_slice(
            br#"{"type":"message","challenge":"","message":{"type":"contact","status":""#,
        );
        body.extend_from_slice(self.kind.status().as_bytes());
        body.extend_from_slice(br#"","serviceId":""#);
        self.service.push_to(&mut body);
        body.extend_from_slice(br#"","fullName":"#);
        // A text is always valid JSON, and a vector takes every byte.
        drop(serde_json::to_writer(&mut body, &self.full_name));
        body.extend_from_slice(br#","id":""#);
        self.contact.push_to(&mut body);
        body.extend_from_slice(br#""}}"#);
        body
    }
}

/// Bytes of a notification besides the name, with a little room: saves growing the body.
const NOTIFICATION_BYTES: usize = 224;

#[cfg(test)]
mod tests {
    use super::{Event, EventKind};
    use crate::domain::clock::Timestamp;
    use crate::domain::id::{ContactId, EventId, ServiceId};

    #[test]
    fn notification_has_the_bytes_of_the_reference() {
        let event = Event {
            service: ServiceId::from_bytes([1; 16]),
            sequence: 7,
            id: EventId::from_bytes([2; 16]),
            contact: ContactId::from_bytes([3; 16]),
            kind: EventKind::Delete,
            contact_version: 4,
            full_name: "Ana \"Q\" Núñez".to_owned(),
            at: Timestamp::from_millis(0),
        };

        assert_eq!(
            String::from_utf8(event.notification()).unwrap(),
            concat!(
                r#"{"type":"message","challenge":"","message":{"type":"contact","status":"staffDelete","#,
                r#""serviceId":"srv_01010101010101010101010101010101","fullName":"Ana \"Q\" Núñez","#,
                r#""id":"sc_03030303030303030303030303030303"}}"#
            )
        );
    }
}
