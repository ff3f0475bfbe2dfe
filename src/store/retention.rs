//! How long what nobody needs any more is kept.

use std::time::Duration;

/// How long an idempotency key is kept; the contract's 24 hours.
pub(super) const IDEMPOTENCY_AGE: Duration = Duration::from_hours(24);
/// How long events are kept unless told otherwise; `event_retention`. Shorter leaves receivers that are off for long
/// with gaps, longer takes disk: about 300 bytes an event.
pub const EVENT_RETENTION_DEFAULT: Duration = Duration::from_hours(30 * 24);
/// How long failed attempts are kept; `attempt_retention`.
pub const ATTEMPT_RETENTION_DEFAULT: Duration = Duration::from_hours(7 * 24);
/// How long the audit log is kept; `audit_retention`.
pub const AUDIT_RETENTION_DEFAULT: Duration = Duration::from_hours(365 * 24);

/// Longer than anything was kept: a century.
const LONGEST: Duration = Duration::from_hours(100 * 365 * 24);

/// What an operator can set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Age at which events are removed.
    pub events: Duration,
    /// Age at which failed attempts are removed.
    pub attempts: Duration,
    /// Age at which entries of the audit log are removed.
    pub audit: Duration,
}

impl Retention {
    /// Removes nothing: for work on the store without the operator's settings.
    pub const FOREVER: Self = Self { events: LONGEST, attempts: LONGEST, audit: LONGEST };
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            events: EVENT_RETENTION_DEFAULT,
            attempts: ATTEMPT_RETENTION_DEFAULT,
            audit: AUDIT_RETENTION_DEFAULT,
        }
    }
}
