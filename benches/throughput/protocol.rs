//! What the parent and its helper processes say to each other: one JSON object per line, one answer per command.

use serde::{Deserialize, Serialize};

use crate::scale::order::Order;

/// Contacts that one helper can keep apart; more are not created.
pub(crate) const MAX_CONTACTS: u32 = 2_000_000;

/// Receiving paths, `/0` to `/9`: one per subscription of a service.
pub(crate) const MAX_SUBSCRIPTIONS: usize = 10;

/// Groups of subscriptions whose latencies are told apart.
pub(crate) const MAX_GROUPS: usize = 4;

/// What a helper is told to do.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Command {
    /// Start the receiver; answered with [`Listening`].
    Listen {
        /// Threads that serve connections.
        threads: usize,
    },
    /// End this process (a server) should the parent die; answered with `null`.
    Guard {
        /// The server.
        pid: i32,
    },
    /// Send requests; answered with [`Driven`].
    Drive(Drive),
    /// Send creates at a fixed rate and await their notifications in this same process; answered with [`Paced`].
    Pace(Pace),
    /// Something on many services and subscriptions.
    Fleet(Order),
    /// Wait until this many notifications have arrived on each of the first subscriptions; answered with [`Seen`].
    Await {
        /// Notifications per subscription.
        notifications: u64,
        /// The subscriptions that get them.
        subscriptions: usize,
        /// At most this long without any progress.
        patience_ms: u64,
    },
    /// Compare what arrived with what was accepted; answered with [`Seen`].
    Check {
        /// For each of the first subscriptions the ranges of contacts that it must have got; the others nothing.
        expected: Vec<Vec<Range>>,
    },
    /// Forget everything that arrived: the next server starts; answered with `null`.
    Reset,
}

/// Where the receiver listens.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Listening {
    /// A port of 127.0.0.1.
    pub(crate) port: u16,
}

/// Where the driver sends.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Target {
    /// IP address and port.
    pub(crate) address: String,
    /// The path of the collection that is posted to.
    pub(crate) path: String,
    /// The `AppToken`.
    pub(crate) token: String,
}

/// What a connection does in a loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Work {
    /// The POST of a create, answered with any 2xx, straight to the receiver.
    Bare,
    /// The same by hyper-util's client with its pool instead of the driver's own connections.
    Pooled,
    /// One create.
    Create,
    /// Create, edit, edit and delete of the same contact.
    Life,
}

impl Work {
    /// Whether the receiver itself is asked.
    pub(crate) fn is_bare(self) -> bool {
        matches!(self, Self::Bare | Self::Pooled)
    }

    /// Notifications of one finished piece of work.
    pub(crate) fn events(self) -> u64 {
        match self {
            Self::Bare | Self::Pooled => 0,
            Self::Create => 1,
            Self::Life => 4,
        }
    }
}

/// As many requests as can be in a time.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Drive {
    /// Where the requests go; each connection has one of these, in turns.
    pub(crate) targets: Vec<Target>,
    pub(crate) work: Work,
    /// Threads that drive connections.
    pub(crate) threads: usize,
    pub(crate) connections: usize,
    /// No work is started after this time.
    pub(crate) run_ms: u64,
    /// The number of the first contact.
    pub(crate) first: u32,
}

/// What the driver did.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Driven {
    /// Pieces of work whose every request was answered well; they have the numbers from `first` on.
    pub(crate) finished: u32,
    /// From the first request to the last answer.
    pub(crate) elapsed_s: f64,
    /// Requests that were answered otherwise or not at all.
    pub(crate) failed: u64,
    /// The first of them.
    pub(crate) failure: Option<String>,
}

/// Creates at a fixed rate.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Pace {
    /// Where they go, in turns; the connections are shared out among their addresses.
    pub(crate) targets: Vec<Target>,
    pub(crate) connections: usize,
    pub(crate) per_second: u32,
    pub(crate) count: u32,
    pub(crate) first: u32,
    /// Notifications that must arrive in each group; those of other groups are not waited for.
    pub(crate) awaited: [usize; MAX_GROUPS],
}

/// Latencies in milliseconds, sorted.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Paced {
    /// From the request sent to its notification received, for each group; only those that arrived.
    pub(crate) notified_ms: [Vec<f64>; MAX_GROUPS],
    /// From the request sent to its answer received.
    pub(crate) answered_ms: Vec<f64>,
    /// How much later than planned the latest request was sent.
    pub(crate) late_ms: f64,
    pub(crate) failed: u64,
    pub(crate) failure: Option<String>,
}

/// Contacts with consecutive numbers that all came to the same version.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Range {
    pub(crate) first: u32,
    pub(crate) count: u32,
    /// The version of the last notification.
    pub(crate) version: u8,
}

/// What the receiver saw since the last reset.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// Per subscription that was asked for.
    pub(crate) notifications: Vec<u64>,
    /// Notifications of a version that had arrived before.
    pub(crate) repeated: u64,
    /// Notifications that skipped a version of their contact.
    pub(crate) out_of_order: u64,
    /// Requests that were no notification as the contract has it.
    pub(crate) malformed: u64,
    /// Only from `Check`: contacts and subscriptions for which something is missing or too much.
    pub(crate) wrong: u64,
    /// The highest `rollcall-sequence`.
    pub(crate) highest_sequence: u64,
}
