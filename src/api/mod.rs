//! The JSON API: the route table, and per topic the translation between bodies and use cases.
//!
//! A handler gets a `Call` whose caller is already judged; it parses the body, calls one use case
//! and writes the answer. `docs/api.md` describes every route; a test compares it with the table.

pub mod admin;
pub mod admin_audit;
mod admin_nodes;
pub mod admin_token;
pub mod conditions;
pub mod contact_batch;
pub mod contacts;
pub mod deliveries;
pub mod feed;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz_checks;
pub mod health;
pub mod query;
pub mod router;
pub mod subscription;

use std::sync::Arc;

use crate::directory::Directory;
use crate::domain::clock::Clock;
use crate::feed::Feed;
use crate::http::Http;
use crate::store::Read;
use crate::subscriptions::Subscriptions;

pub use self::router::Api;

/// Everything that handlers use.
#[derive(Debug)]
pub struct State {
    /// Tokens, rates and CORS.
    pub http: Arc<Http>,
    /// Reads of the store.
    pub read: Arc<dyn Read>,
    /// Use cases that change the roll, and the administrator's.
    pub directory: Directory,
    /// Use cases of subscriptions.
    pub subscriptions: Subscriptions,
    /// Reads of the event log, with and without a wait.
    pub feed: Feed,
    /// Wall time.
    pub clock: Arc<dyn Clock>,
}

#[cfg(test)]
mod server_tests;
