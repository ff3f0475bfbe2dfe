//! How many challenges may be sent, so that nobody can be flooded with them: per app, per host, in all.
//!
//! Each limit is a bucket that holds a minute's worth and fills evenly. A challenge takes from all three, or from none, and
//! whatever becomes of it, what was taken is gone. A host is a name, whatever the port and the case of its letters; and
//! each address behind it is one too, or whoever owns a domain could call one receiver by any number of names. Of IPv6
//! addresses a whole /64 counts as one, since it is what one machine gets.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::delivery::target_guard::TargetHost;
use crate::domain::clock::Moment;
use crate::domain::id::AppId;
use crate::domain::network::network_of;

use super::Settings;

/// Most apps and most hosts that are remembered at a time. Beyond it challenges wait: forgetting would lift limits.
const KEYS_MAX: usize = 20_000;
/// Every limit counts by the minute.
const WINDOW: Duration = Duration::from_secs(60);

/// The buckets.
pub struct VerificationLimits {
    settings: Settings,
    buckets: Mutex<Buckets>,
}

impl fmt::Debug for VerificationLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerificationLimits")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// For each bucket the moment at which it is full again; nothing is kept of full ones.
#[derive(Default)]
struct Buckets {
    apps: HashMap<AppId, Moment>,
    hosts: HashMap<Host, Moment>,
    total: Moment,
}

/// Who is called, as the limit of hosts counts.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Host {
    Name(String),
    /// An IPv4 address, or the first of a block of IPv6.
    Address(IpAddr),
}

impl Host {
    fn of_address(address: IpAddr) -> Self {
        Self::Address(network_of(address))
    }
}

impl VerificationLimits {
    /// Limits with full buckets.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, buckets: Mutex::default() }
    }

    /// Counts one challenge, before anything is sent or resolved.
    ///
    /// # Errors
    ///
    /// The time until there is room, when one of the limits is reached; then nothing is counted.
    pub fn check(&self, app: AppId, host: &TargetHost, now: Moment) -> Result<(), Duration> {
        let host = match host {
            TargetHost::Name(name) => Host::Name(name.clone()),
            TargetHost::Address(address) => Host::of_address(*address),
        };
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let buckets = &mut *buckets;
        forget_full(&mut buckets.apps, now);
        forget_full(&mut buckets.hosts, now);
        let of_app = buckets.apps.get(&app).copied();
        let app_full = take(self.settings.verifications_per_app, of_app, now);
        let of_host = buckets.hosts.get(&host).copied();
        let host_full = take(self.settings.verifications_per_host, of_host, now);
        let total_full = take(self.settings.verifications_total, Some(buckets.total), now);
        let waits = [app_full, host_full, total_full].into_iter().filter_map(Result::err);
        if let Some(wait) = waits.max() {
            return Err(wait);
        }
        let room = buckets.apps.len().max(buckets.hosts.len()) < KEYS_MAX;
        if !room && (of_app.is_none() || of_host.is_none()) {
            return Err(WINDOW);
        }
        put(&mut buckets.apps, app, app_full);
        put(&mut buckets.hosts, host, host_full);
        buckets.total = total_full.ok().flatten().unwrap_or_default();
        Ok(())
    }

    /// Counts the challenge for the addresses that a name stands for, once they are known.
    ///
    /// # Errors
    ///
    /// The time until there is room, when one of them has got too many; then it is counted for none of them.
    pub fn check_addresses(&self, addresses: &[IpAddr], now: Moment) -> Result<(), Duration> {
        let hosts: HashSet<Host> = addresses.iter().map(|it| Host::of_address(*it)).collect();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        forget_full(&mut buckets.hosts, now);
        let mut taken = Vec::with_capacity(hosts.len());
        for host in hosts {
            let of_host = buckets.hosts.get(&host).copied();
            let full = take(self.settings.verifications_per_host, of_host, now)?;
            taken.push((host, full));
        }
        if buckets.hosts.len() + taken.len() > KEYS_MAX {
            return Err(WINDOW);
        }
        for (host, full) in taken {
            put(&mut buckets.hosts, host, Ok(full));
        }
        Ok(())
    }
}

/// Takes one from a bucket: when it is then full again (`None` without a limit), or the wait for one.
fn take(per_minute: u32, full_at: Option<Moment>, now: Moment) -> Result<Option<Moment>, Duration> {
    if per_minute == 0 {
        return Ok(None);
    }
    let full_at = full_at.unwrap_or_default().max(now).plus(WINDOW / per_minute);
    let over = full_at.since(now.plus(WINDOW));
    if over.is_zero() { Ok(Some(full_at)) } else { Err(over) }
}

fn put<K: Eq + Hash>(
    buckets: &mut HashMap<K, Moment>,
    key: K,
    full: Result<Option<Moment>, Duration>,
) {
    if let Ok(Some(full_at)) = full {
        buckets.insert(key, full_at);
    }
}

/// Only now and then, so that a check does not cost a walk over all keys.
fn forget_full<K>(buckets: &mut HashMap<K, Moment>, now: Moment) {
    if buckets.len() >= KEYS_MAX || buckets.len() == buckets.capacity() {
        buckets.retain(|_, full_at| *full_at > now);
    }
}

#[cfg(test)]
mod tests {
    use super::{Settings, VerificationLimits};
    use crate::delivery::target_guard::TargetHost;
    use crate::domain::clock::Moment;
    use crate::domain::id::AppId;
    use std::net::IpAddr;
    use std::time::Duration;

    fn host(name: &str) -> TargetHost {
        TargetHost::Name(name.to_owned())
    }

    fn app(byte: u8) -> AppId {
        AppId::from_bytes([byte; 16])
    }

    #[test]
    fn an_app_is_stopped_at_its_limit_and_goes_on_when_time_has_passed() {
        let limits = VerificationLimits::new(Settings::default());
        let now = Moment(1_000_000);

        assert!((0..6).all(|n| limits.check(app(1), &host(&n.to_string()), now).is_ok()));
        assert_eq!(limits.check(app(1), &host("x"), now), Err(Duration::from_secs(10)));
        assert!(limits.check(app(2), &host("x"), now).is_ok());
        assert!(limits.check(app(1), &host("x"), now.plus(Duration::from_secs(10))).is_ok());
    }

    #[test]
    fn a_host_is_called_only_so_often_by_all_apps_together() {
        let limits = VerificationLimits::new(Settings::default());
        let now = Moment(1_000_000);

        assert!((0..10).all(|n| limits.check(app(n), &host("a.example"), now).is_ok()));
        assert_eq!(limits.check(app(20), &host("a.example"), now), Err(Duration::from_secs(6)));
        assert!(limits.check(app(20), &host("b.example"), now).is_ok());
    }

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn one_receiver_is_one_host_whatever_names_lead_to_it() {
        let limits = VerificationLimits::new(Settings::default());
        let now = Moment(1_000_000);
        let check = |n: u8, addresses: &[IpAddr]| {
            limits.check(app(n), &host(&format!("{n}.example")), now)?;
            limits.check_addresses(addresses, now)
        };
        let victim = addresses(&["8.8.8.8"]);

        assert!((0..10).all(|n| check(n, &victim).is_ok()));

        let six_seconds = Err(Duration::from_secs(6));
        assert_eq!(check(10, &victim), six_seconds);
        assert_eq!(check(11, &addresses(&["1.1.1.1", "8.8.8.8"])), six_seconds);
        assert_eq!(limits.check(app(12), &TargetHost::Address(victim[0]), now), six_seconds);
        // What was refused was not counted for its other address, and others are not affected.
        assert!((20..30).all(|n| check(n, &addresses(&["1.1.1.1"])).is_ok()));
        assert!(limits.check_addresses(&victim, now.plus(Duration::from_secs(6))).is_ok());
    }

    #[test]
    fn a_64_of_ipv6_is_one_host_as_a_literal_and_behind_a_name() {
        let limits = VerificationLimits::new(Settings::default());
        let now = Moment(1_000_000);
        let literal = |n: u8| {
            let text = format!("2606:4700:0:1::{n:x}");
            limits.check(app(n), &TargetHost::Address(text.parse().unwrap()), now)
        };
        assert!((0..10).all(|n| literal(n).is_ok()));

        assert!(literal(10).is_err());
        // Two addresses of one block are one host of one challenge.
        let other = addresses(&["2606:4700:0:2::1", "2606:4700:0:2:ffff:ffff:ffff:ffff"]);
        assert!((0..10).all(|_| limits.check_addresses(&other, now).is_ok()));
        assert!(limits.check_addresses(&other[..1], now).is_err());
        assert!(limits.check_addresses(&addresses(&["2606:4700:0:1:8000::"]), now).is_err());
    }

    #[test]
    fn zero_is_off() {
        let off = Settings {
            verifications_per_app: 0,
            verifications_per_host: 0,
            verifications_total: 0,
        };
        let limits = VerificationLimits::new(off);

        assert!((0..1000).all(|_| limits.check(app(1), &host("a"), Moment(0)).is_ok()));
        let address = addresses(&["8.8.8.8"]);
        assert!((0..1000).all(|_| limits.check_addresses(&address, Moment(0)).is_ok()));
    }

    #[test]
    fn the_total_is_limited_over_all_apps_and_hosts() {
        let settings = Settings {
            verifications_per_app: 0,
            verifications_per_host: 0,
            verifications_total: 3,
        };
        let limits = VerificationLimits::new(settings);
        let check = |n: u8| limits.check(app(n), &host(&n.to_string()), Moment(5)).is_ok();

        assert_eq!([check(1), check(2), check(3), check(4)], [true, true, true, false]);
    }
}
