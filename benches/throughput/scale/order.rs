//! What a helper is told to do with many services and subscriptions, and where the server is.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::protocol::MAX_GROUPS;

/// The server under test, which has another port after each start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Place {
    /// IP address and port.
    pub(crate) address: String,
    pub(crate) admin_token: String,
}

/// One order.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Order {
    /// Start this many receivers; answered with their ports.
    Listen { receivers: usize },
    /// Close the port of a receiver and all connections to it; answered with `null`.
    Close { receiver: usize },
    /// Open it again; answered with `null`.
    Open { receiver: usize },
    /// Let the paths that can misbehave do so, or answer well; answered with `null`.
    Misbehave { now: bool },
    /// Create services with these many apps each; answered with the seconds taken.
    Found { at: Place, services: usize, apps: usize },
    /// Subscribe the apps in this range of each service, each with a real challenge; answered with the seconds taken.
    Subscribe {
        at: Place,
        services: Range<usize>,
        apps: Range<usize>,
        /// In turns by service; `{app}` becomes the number of the app in its service. None unsubscribes.
        urls: Vec<String>,
    },
    /// Creates at a fixed rate, service by service in turns; answered with [`crate::protocol::Paced`].
    Pace {
        at: Place,
        services: usize,
        per_second: u32,
        count: u32,
        first: u32,
        awaited: [usize; MAX_GROUPS],
    },
    /// As many creates as can be in a time; answered with [`crate::protocol::Driven`].
    Drive { at: Place, service: usize, run_ms: u64, first: u32 },
    /// Create contacts and edit each `edits` times, in batches; answered with the seconds taken.
    Fill { at: Place, service: usize, first: u32, contacts: u32, edits: u8 },
}
