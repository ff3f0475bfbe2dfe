//! What all HTTP surfaces share: the accept loop, limits, tokens, error bodies, the request line of the log.
//!
//! A request comes from the [`listener`] to a surface's table of routes. What all requests have in common stands
//! [`around`](request_log::around) them. The surface asks [`Http::enter`] who calls, and answers with the functions of
//! [`envelope`]. Status codes of the API are decided here and in the surfaces, nowhere else.

pub mod auth;
pub mod caller;
pub mod caller_address;
mod chunk_scan;
pub mod connection;
pub mod cors;
pub mod envelope;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz_checks;
#[cfg(any(test, feature = "fuzzing"))]
mod fuzz_reference;
pub mod head_scan;
pub mod json;
pub mod limits;
pub mod listener;
pub mod places;
pub mod request_log;
pub mod request_rates;
pub mod tls;
pub mod write_stall;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use ipnet::IpNet;

use crate::domain::clock::Clock;
use crate::store::Read;

use self::auth::{AdminSetting, Auth, TokenUses};
use self::caller_address::CallerAddresses;
use self::cors::Cors;
use self::limits::FailedTokens;
use self::request_rates::RequestRates;

/// What an operator can set about HTTP, besides the address.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Requests of one service in a minute, over all its apps and all nodes; 0 is off. Key `requests_per_minute`.
    pub requests_per_minute: u32,
    /// Requests without a good token from one address in a minute; 0 is off. Key `failed_tokens_per_minute`.
    pub failed_tokens_per_minute: u32,
    /// Proxies whose `X-Forwarded-For` is believed. Key `trusted_proxies`.
    pub trusted_proxies: Vec<IpNet>,
    /// Origins whose pages may call the API; `*` allows all. Key `cors_origins`.
    pub cors_origins: Vec<String>,
    /// Overrides the stored admin tokens. Keys `admin_token` and `admin_token_file`.
    pub admin_token: Option<AdminSetting>,
}

/// The running parts that every request passes.
#[derive(Debug)]
pub struct Http {
    /// Who calls.
    pub auth: Auth,
    /// Where requests come from.
    pub addresses: CallerAddresses,
    /// Request rates of services.
    pub rates: RequestRates,
    /// Rates of requests without a good token.
    pub failed_tokens: FailedTokens,
    /// Answers to pages of other origins.
    pub cors: Cors,
}

impl Http {
    /// Assembles the parts.
    ///
    /// `tenancy_epoch` is counted up by the commit listener whenever a commit changed a service, app or
    /// token: what is remembered of tokens from before is then not used any more. `uses` records uses of tokens.
    #[must_use]
    pub fn new(
        settings: &Settings,
        read: Arc<dyn Read>,
        clock: Arc<dyn Clock>,
        tenancy_epoch: Arc<AtomicU64>,
        uses: TokenUses,
    ) -> Self {
        Self {
            rates: RequestRates::new(settings.requests_per_minute, Arc::clone(&clock)),
            auth: Auth::new(read, clock, tenancy_epoch, uses, settings.admin_token.clone()),
            addresses: CallerAddresses::new(settings.trusted_proxies.clone()),
            failed_tokens: FailedTokens::new(settings.failed_tokens_per_minute),
            cors: Cors::new(&settings.cors_origins),
        }
    }
}
