//! Names to addresses: the seam, and the implementation that asks the system's name servers.
//!
//! [`super::TargetGuard`] is the only caller; it judges and caches what comes back. The system's resolver
//! library is not used: it would apply the search list and the hosts file, and it hides how long an answer is valid.

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolveHosts};
use hickory_resolver::proto::rr::Name;
use tokio::time::Instant;

/// Wait for one name server before the next is asked. Longer leaves no time for a second one within the
/// connect timeout, shorter gives up on slow but working servers.
const NAME_SERVER_TIMEOUT: Duration = Duration::from_secs(2);

/// Least time between two readings of the system's configuration, which happen only after a failure. Longer
/// prolongs an outage after the network changed, shorter reads a file for every failed name.
const RELOAD_INTERVAL: Duration = Duration::from_secs(10);

/// What the name servers say about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// All addresses of both families, in the order to try them.
    pub addresses: Vec<IpAddr>,
    /// How long the answer is valid.
    pub ttl: Duration,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// The name does not exist, or has no address.
    #[error("the name has no address")]
    NotFound,
    /// No name server gave an answer.
    #[error("no name server answered")]
    Unavailable,
}

/// An answer to come.
pub type LookupFuture<'a> = Pin<Box<dyn Future<Output = Result<Lookup, LookupError>> + Send + 'a>>;

/// Asks for the addresses of a name.
pub trait Resolve: Send + Sync + fmt::Debug {
    /// Asks for a lower-case host name without trailing dot; it is complete, no search list applies.
    ///
    /// Dropping the future abandons the question.
    fn lookup<'a>(&'a self, name: &'a str) -> LookupFuture<'a>;
}

/// Asks the name servers that the system is configured with.
///
/// The configuration is read again after failures, so that a changed network needs no restart.
#[derive(Debug)]
pub struct SystemResolver {
    loaded: Mutex<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    /// `None` while the system's configuration cannot be read; every name then fails.
    resolver: Option<Arc<TokioResolver>>,
    at: Instant,
    stale: bool,
}

impl SystemResolver {
    /// Reads the system's configuration.
    #[must_use]
    pub fn new() -> Self {
        Self { loaded: Mutex::new(Loaded { resolver: load(), at: Instant::now(), stale: false }) }
    }

    fn current(&self) -> Option<Arc<TokioResolver>> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let due = loaded.stale || loaded.resolver.is_none();
        if due && loaded.at.elapsed() >= RELOAD_INTERVAL {
            *loaded = Loaded { resolver: load(), at: Instant::now(), stale: false };
        }
        loaded.resolver.clone()
    }

    fn mark_stale(&self) {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).stale = true;
    }
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self::new()
    }
}

impl Resolve for SystemResolver {
    fn lookup<'a>(&'a self, name: &'a str) -> LookupFuture<'a> {
        Box::pin(async move {
            let resolver = self.current().ok_or(LookupError::Unavailable)?;
            // The trailing dot makes the name complete: the search list would let `intranet.example.com` be
            // answered by another domain of ours.
            let name =
                Name::from_str_relaxed(format!("{name}.")).map_err(|_| LookupError::NotFound)?;
            match resolver.lookup_ip(name).await {
                Ok(answer) => {
                    let seconds =
                        answer.as_lookup().answers().iter().map(|record| record.ttl).min();
                    let mut addresses: Vec<IpAddr> = answer.iter().collect();
                    // IPv4 first: many hosts have an IPv6 route that leads nowhere.
                    addresses.sort_by_key(IpAddr::is_ipv6);
                    let ttl = Duration::from_secs(seconds.unwrap_or(0).into());
                    Ok(Lookup { addresses, ttl })
                }
                Err(error) if error.is_nx_domain() || error.is_no_records_found() => {
                    Err(LookupError::NotFound)
                }
                Err(error) => {
                    tracing::debug!(%error, "name servers gave no answer");
                    self.mark_stale();
                    Err(LookupError::Unavailable)
                }
            }
        })
    }
}

fn load() -> Option<Arc<TokioResolver>> {
    let built = TokioResolver::builder_tokio().and_then(|mut builder| {
        let options = builder.options_mut();
        options.use_hosts_file = ResolveHosts::Never;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.timeout = NAME_SERVER_TIMEOUT;
        // The guard keeps judged answers; a second cache would only hide their age from it.
        options.cache_size = 0;
        builder.build()
    });
    match built {
        Ok(resolver) => Some(Arc::new(resolver)),
        Err(error) => {
            tracing::warn!(%error, "name servers of the system not readable, no name can be resolved");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LookupError, Resolve, SystemResolver};

    #[test]
    fn it_is_made_outside_of_a_runtime() {
        let resolver = SystemResolver::new();

        assert!(!resolver.loaded.lock().unwrap().stale);
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_asked_for_has_no_address() {
        let resolver = SystemResolver::new();
        if resolver.current().is_some() {
            let name = format!("{}.example.com", "a".repeat(64));
            assert_eq!(resolver.lookup(&name).await, Err(LookupError::NotFound));
        }
    }
}
