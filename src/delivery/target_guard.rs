//! The target guard: which receivers may be called.
//!
//! **Threat.** A webhook sender calls URLs that strangers choose, from inside our network. They will try our
//! loopback and metadata services, our private addresses, names that point there, names that point elsewhere
//! after they were checked, texts that two parsers read differently, and addresses that some translator on the
//! way turns into another.
//!
//! **Defence**, in steps that do not rely on each other:
//!
//! 1. [`TargetGuard::check_url`], when somebody subscribes: the text must have exactly one reading. It is refused
//!    when the WHATWG parser complains at all, or understands another host than the one that was written.
//! 2. [`TargetGuard::resolve`], at every connect and before every use of a connection that is kept: names are
//!    resolved by us, every address is judged, and one bad address refuses the name. The caller connects to the
//!    addresses that were judged and never resolves again. Literal addresses take the same way.
//! 3. [`TargetGuard::judge`], for each address: `deny_targets`, then `allow_targets`, then the table of what is
//!    globally reachable unicast.
//!
//! **Operator's lists.** Deny always wins. `deny_hosts` and `allow_hosts` are suffixes of host names, label by
//! label: `example.com` covers itself and `a.example.com`, not `badexample.com`. `allow_hosts` does not restrict
//! anybody else: a name under it is excused from the rules for names, and may resolve to any address that
//! `deny_targets` does not cover. That is how an operator lets an internal name through. An address in one of
//! the two lists of hosts counts as an entry of the corresponding list of targets.
//!
//! **Left to the network.** Addresses that are globally reachable but ours: put them into `deny_targets`, or
//! block them on the way out.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::Instant;

// Private parts of the guard, in files of their own.
#[path = "address_table.rs"]
mod address_table;
#[path = "refusal.rs"]
mod refusal;
#[path = "resolver.rs"]
mod resolver;
#[path = "target.rs"]
mod target;

pub use refusal::{Refusal, Step};
pub use resolver::{Lookup, LookupError, LookupFuture, Resolve, SystemResolver};
pub use target::{Target, TargetHost};

/// Longest use of an answer of the name servers. Longer delays moves of receivers and lets a name that turned bad
/// be used longer, shorter asks more often than the name's owner wants.
pub const ANSWER_AGE_MAX: Duration = Duration::from_secs(60);

/// Shortest use of an answer, also when its TTL is zero: a lane at full speed would otherwise ask for every event.
pub const ANSWER_AGE_MIN: Duration = Duration::from_secs(1);

/// Names whose answers are kept: about 2 MB. More costs memory, fewer makes servers with many receivers ask
/// more often.
pub const NAMES_MAX: usize = 10_000;

/// Ports of services that speak to anybody who can reach them: SSH, mail, Docker, PostgreSQL, Redis,
/// Elasticsearch, memcached; and 0, which is none.
pub const DENY_PORTS_DEFAULT: [u16; 8] = [0, 22, 25, 2375, 5432, 6379, 9200, 11211];

const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// What the operator decides; the default is what production runs with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Addresses that may be called whatever the table says; `allow_targets`, default none.
    pub allow_targets: Vec<IpNet>,
    /// Addresses that may never be called; `deny_targets`, default none.
    pub deny_targets: Vec<IpNet>,
    /// Suffixes of names that may stand for any address outside `deny_targets`; `allow_hosts`, default none.
    pub allow_hosts: Vec<String>,
    /// Suffixes of names that may never be called; `deny_hosts`, default none.
    pub deny_hosts: Vec<String>,
    /// Ports that may never be called; `deny_ports`, default [`DENY_PORTS_DEFAULT`].
    pub deny_ports: Vec<u16>,
    /// Whether `http` is accepted beside `https`; `allow_http`, default no.
    pub allow_http: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            allow_targets: Vec::new(),
            deny_targets: Vec::new(),
            allow_hosts: Vec::new(),
            deny_hosts: Vec::new(),
            deny_ports: DENY_PORTS_DEFAULT.to_vec(),
            allow_http: false,
        }
    }
}

/// Judges URLs, names and addresses. Shared by everything that calls out.
#[derive(Debug)]
pub struct TargetGuard {
    settings: Settings,
    resolver: Box<dyn Resolve>,
    answers: Mutex<HashMap<Box<str>, Judged>>,
}

/// The addresses of a name, or why it is refused.
type Verdict = Result<Arc<[IpAddr]>, Refusal>;

/// An answer of the name servers with its verdict, which is the same as long as the answer is.
#[derive(Clone, Debug)]
struct Judged {
    verdict: Verdict,
    expires: Instant,
}

impl TargetGuard {
    /// A guard with these settings, asking this resolver.
    #[must_use]
    pub fn new(mut settings: Settings, resolver: impl Resolve + 'static) -> Self {
        settings.allow_hosts = sort_hosts(&settings.allow_hosts, &mut settings.allow_targets);
        settings.deny_hosts = sort_hosts(&settings.deny_hosts, &mut settings.deny_targets);
        Self { settings, resolver: Box::new(resolver), answers: Mutex::default() }
    }

    /// Judges the text of a URL, without asking anybody: nothing is resolved here.
    ///
    /// # Errors
    ///
    /// [`Refusal`] at step url, name or address, whichever rule is broken first.
    pub fn check_url(&self, text: &str) -> Result<Target, Refusal> {
        let target = Target::parse(text, self.settings.allow_http)?;
        match &target.host {
            TargetHost::Name(name) => self.check_name(name)?,
            TargetHost::Address(address) => self.judge(*address)?,
        }
        if self.settings.deny_ports.contains(&target.port) {
            return Err(Refusal::url("the port of the url is not allowed"));
        }
        Ok(target)
    }

    /// Judges one address: deny, then allow, then the table.
    ///
    /// An IPv6 address that embeds an IPv4 address is refused unless `allow_targets` covers it, and then the
    /// embedded address is judged too.
    ///
    /// # Errors
    ///
    /// [`Refusal`] at step address.
    pub fn judge(&self, address: IpAddr) -> Result<(), Refusal> {
        self.judge_denied(address)?;
        let embedded = embedded(address);
        let allowed = covers(&self.settings.allow_targets, address);
        match (allowed, embedded) {
            (true, Some(inner)) => self.judge(inner),
            (true, None) => Ok(()),
            (false, _) if address_table::is_global(address) => Ok(()),
            (false, _) => Err(Refusal::address("the address is not globally reachable")),
        }
    }

    /// The addresses of a target, in the order to try them, every one of them judged just now or together with
    /// the answer of the name servers that is still valid.
    ///
    /// # Errors
    ///
    /// [`Refusal`] at step name when there is no answer, at step address when any address of it is refused.
    pub async fn resolve(&self, target: &Target) -> Result<Arc<[IpAddr]>, Refusal> {
        let name = match &target.host {
            TargetHost::Address(address) => {
                self.judge(*address)?;
                return Ok(Arc::from([*address]));
            }
            TargetHost::Name(name) => name.as_str(),
        };
        if let Some(known) = self.find_answer(name, Instant::now()) {
            return known;
        }
        // Judged again, because a restart may have brought other settings than at subscription.
        self.check_name(name)?;
        if is_localhost(name) {
            return self.judge_localhost(name);
        }
        let answer = self.resolver.lookup(name).await.map_err(|error| match error {
            LookupError::NotFound => Refusal::name("the host name has no address"),
            LookupError::Unavailable => Refusal::name("the host name could not be resolved"),
        })?;
        let verdict = self.judge_answer(name, &answer.addresses);
        self.keep_answer(name, verdict.clone(), answer.ttl, Instant::now());
        verdict
    }

    /// Forgets all answers, so that a test need not wait for their end.
    #[cfg(test)]
    pub(super) fn forget_answers(&self) {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn check_name(&self, name: &str) -> Result<(), Refusal> {
        if under_any(&self.settings.deny_hosts, name) {
            return Err(Refusal::name("the host name is not allowed"));
        }
        if under_any(&self.settings.allow_hosts, name) {
            return Ok(());
        }
        if is_localhost(name) {
            let covered = LOOPBACK.iter().any(|ip| covers(&self.settings.allow_targets, *ip));
            let refusal = Refusal::name("the host name must not be localhost");
            return if covered { Ok(()) } else { Err(refusal) };
        }
        if !name.contains('.') {
            return Err(Refusal::name("the host name must have more than one label"));
        }
        if under(name, "local") || under(name, "internal") {
            return Err(Refusal::name("the host name must not end in .local or .internal"));
        }
        Ok(())
    }

    fn judge_denied(&self, address: IpAddr) -> Result<(), Refusal> {
        let denied = |address| covers(&self.settings.deny_targets, address);
        if denied(address) || embedded(address).is_some_and(denied) {
            return Err(Refusal::address("the address is not allowed"));
        }
        Ok(())
    }

    /// The two loopback addresses as far as they are allowed; the name servers are not asked (RFC 6761).
    fn judge_localhost(&self, name: &str) -> Verdict {
        let allowed: Arc<[IpAddr]> = LOOPBACK
            .into_iter()
            .filter(|address| self.judge_answer(name, &[*address]).is_ok())
            .collect();
        if allowed.is_empty() {
            return Err(Refusal::address(
                "the host name stands for an address that is not allowed",
            ));
        }
        Ok(allowed)
    }

    fn judge_answer(&self, name: &str, addresses: &[IpAddr]) -> Verdict {
        if addresses.is_empty() {
            return Err(Refusal::name("the host name has no address"));
        }
        let excused = under_any(&self.settings.allow_hosts, name);
        for address in addresses {
            let verdict = if excused { self.judge_denied(*address) } else { self.judge(*address) };
            if verdict.is_err() {
                return Err(Refusal::address(
                    "the host name stands for an address that is not allowed",
                ));
            }
        }
        Ok(addresses.into())
    }

    fn find_answer(&self, name: &str, now: Instant) -> Option<Verdict> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = answers.get(name)?;
        (known.expires > now).then(|| known.verdict.clone())
    }

    fn keep_answer(&self, name: &str, verdict: Verdict, ttl: Duration, now: Instant) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= NAMES_MAX && !answers.contains_key(name) {
            answers.retain(|_, known| known.expires > now);
        }
        // Full of valid answers: dropping all at once keeps the cost of one name constant on average, which
        // looking for the oldest does not.
        if answers.len() >= NAMES_MAX && !answers.contains_key(name) {
            answers.clear();
        }
        let expires = now + ttl.clamp(ANSWER_AGE_MIN, ANSWER_AGE_MAX);
        answers.insert(name.into(), Judged { verdict, expires });
    }
}

fn is_localhost(name: &str) -> bool {
    under(name, "localhost")
}

fn under_any(suffixes: &[String], name: &str) -> bool {
    suffixes.iter().any(|suffix| under(name, suffix))
}

/// Whether the name is the suffix or ends in it, label by label.
fn under(name: &str, suffix: &str) -> bool {
    name.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

fn covers(nets: &[IpNet], address: IpAddr) -> bool {
    nets.iter().any(|net| net.contains(&address))
}

fn embedded(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => address_table::embedded_v4(address).map(IpAddr::V4),
    }
}

/// Suffixes in their plain form; entries that are addresses go to the targets instead.
fn sort_hosts(entries: &[String], targets: &mut Vec<IpNet>) -> Vec<String> {
    let mut suffixes = Vec::new();
    for entry in entries {
        let plain = entry.trim().to_ascii_lowercase();
        let plain = plain.strip_prefix('*').unwrap_or(&plain).trim_matches('.');
        let literal = plain.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = literal.parse::<IpAddr>() {
            targets.push(address.into());
        } else if !plain.is_empty() {
            suffixes.push(plain.to_owned());
        }
    }
    suffixes
}

#[cfg(test)]
#[path = "target_guard_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "target_decisions_tests.rs"]
mod decisions_tests;

#[cfg(test)]
#[path = "target_properties_tests.rs"]
mod properties_tests;
