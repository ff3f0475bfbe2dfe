//! How many challenges may be sent, so that nobody can be flooded with them: per app, per host, in all.
//!
//! Each limit is a bucket that holds a minute's worth and fills evenly. A challenge takes from all three, or from none.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::delivery::target_guard::TargetHost;
use crate::domain::clock::Moment;
use crate::domain::id::AppId;

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
    hosts: HashMap<String, Moment>,
    total: Moment,
}

impl VerificationLimits {
    /// Limits with full buckets.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, buckets: Mutex::default() }
    }

    /// Counts one challenge.
    ///
    /// # Errors
    ///
    /// The time until there is room, when one of the limits is reached; then nothing is counted.
    pub fn check(&self, app: AppId, host: &TargetHost, now: Moment) -> Result<(), Duration> {
        let host = match host {
            TargetHost::Name(name) => name.clone(),
            TargetHost::Address(address) => address.to_string(),
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

    #[test]
    fn zero_is_off() {
        let off = Settings {
            verifications_per_app: 0,
            verifications_per_host: 0,
            verifications_total: 0,
        };
        let limits = VerificationLimits::new(off);

        assert!((0..1000).all(|_| limits.check(app(1), &host("a"), Moment(0)).is_ok()));
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
