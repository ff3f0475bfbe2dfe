//! Use cases of an app about its own subscription: subscribe and unsubscribe, see where it stands, read and rotate the
//! secret.
//!
//! Nothing is locked and no transaction is open while a receiver is asked; the ticket that a request takes on arrival
//! decides which of two stores.

pub mod deliveries;
pub mod hooks;
pub mod secret;
pub mod status;
pub mod subscribe;
pub mod verification_limits;

use std::sync::Arc;

use crate::delivery::engine::Engine;
use crate::delivery::sender::Sender;
use crate::domain::clock::Clock;
use crate::store::Read;
use crate::store::queue::Write;

use self::verification_limits::VerificationLimits;

/// What an operator can set about subscriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Challenges in a minute for one app; 0 is off. Default 6, key `verifications_per_app`.
    pub verifications_per_app: u32,
    /// Challenges in a minute to one host, name or address, over all apps; 0 is off. Default 10, key `verifications_per_host`.
    pub verifications_per_host: u32,
    /// Challenges in a minute in all; 0 is off. Default 300, key `verifications_total`.
    pub verifications_total: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { verifications_per_app: 6, verifications_per_host: 10, verifications_total: 300 }
    }
}

/// The use cases.
#[derive(Debug)]
pub struct Subscriptions {
    /// Reads of the store.
    pub read: Arc<dyn Read>,
    /// Writes of the store.
    pub write: Write,
    /// Sends challenges.
    pub sender: Arc<Sender>,
    /// Knows how lanes are doing.
    pub engine: Arc<Engine>,
    /// Wall time and monotonic time.
    pub clock: Arc<dyn Clock>,
    /// How many challenges may be sent.
    pub limits: VerificationLimits,
}
