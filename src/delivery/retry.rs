//! When to try again: the retry schedule of an event, the circuit and the pauses of a receiver. Pure.
//!
//! Random spread is a function of the lane's seed and of what is being spread, so that the same inputs always
//! give the same times.

use std::time::Duration;

use crate::domain::clock::Moment;

/// Wait after a failure that is not the event's fault. Short, because the circuit limits how often it comes.
pub const UNCOUNTED_WAIT: Duration = Duration::from_secs(1);
/// Wait before the first probe of an open circuit.
pub const PROBE_FIRST: Duration = Duration::from_secs(1);
/// Longest wait between two probes: a receiver that is back is noticed within about this time.
pub const PROBE_LONGEST: Duration = Duration::from_mins(5);
/// Pause when the receiver asked for one without saying how long.
pub const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// Longest pause of that kind, after repeated doubling.
pub const PAUSE_LONGEST: Duration = Duration::from_mins(5);
/// Completions without a success that open the circuit of a receiver that takes nearly everything.
pub const CIRCUIT_FAILURES: u32 = 5;
/// The most of them, for a receiver that refuses much: more would only be many attempts at one that has gone down.
pub const CIRCUIT_FAILURES_MAX: u32 = 50;
/// The same when only one contact has anything owed.
pub const CIRCUIT_FAILURES_LONE: u32 = 3;
/// Age of an unbroken row of failures after which the subscription is disabled.
pub const GIVE_UP_AGE: Duration = Duration::from_hours(5 * 24);
/// Failed attempts that such a row must have, so that a quiet service is not judged by a handful.
pub const GIVE_UP_ATTEMPTS: u32 = 100;
/// Share by which waits are spread to either side, in percent: receivers' retries must not march in step.
const SPREAD_PERCENT: u64 = 20;

/// The default retry schedule, about three days in all.
pub const SCHEDULE_DEFAULT: [Duration; 11] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_mins(2),
    Duration::from_mins(10),
    Duration::from_mins(30),
    Duration::from_hours(1),
    Duration::from_hours(3),
    Duration::from_hours(6),
    Duration::from_hours(12),
    Duration::from_hours(24),
    Duration::from_hours(24),
];

/// Spreads a wait by up to 20 % to either side, to whole milliseconds.
#[must_use]
pub fn spread(wait: Duration, seed: u64, salt: u64) -> Duration {
    let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let width = millis / 100 * (2 * SPREAD_PERCENT) + millis % 100 * (2 * SPREAD_PERCENT) / 100;
    let least = millis - width / 2;
    Duration::from_millis(least + mix(seed ^ mix(salt)) % (width + 1))
}

/// A well-mixed function of a number (the finaliser of `SplitMix64`).
const fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The longest wait that the step before `retries_used` can have had; what is loaded from the store is clamped to
/// it, so that a clock that jumped neither stalls nor floods.
#[must_use]
pub fn longest_wait(schedule: &[Duration], retries_used: u32) -> Duration {
    let step = usize::try_from(retries_used).unwrap_or(usize::MAX).checked_sub(1);
    let wait = step.and_then(|step| schedule.get(step)).copied().unwrap_or(UNCOUNTED_WAIT);
    wait + wait * 2 / 10
}

fn doubled(first: Duration, longest: Duration, times: u32) -> Duration {
    first.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX)).min(longest)
}

/// How the last 64 completions of a lane ended, the newest in the lowest bit. A one is a failure; a lane without a past
/// is taken for a healthy one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History(u64);

/// Failures in a row that open the circuit, by how many of the 32 completions before the row failed: the shortest row that
/// chance gives less than once in ten million times at that share, at least [`CIRCUIT_FAILURES`] and at most
/// [`CIRCUIT_FAILURES_MAX`].
const PATIENCE: [u32; 32] = [
    5, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 17, 18, 20, 22, 24, 26, 29, 31, 35, 39, 44, 49, 50,
    50, 50, 50, 50, 50, 50, 50,
];

impl History {
    /// The history after one more completion.
    #[must_use]
    pub const fn after(self, failed: bool) -> Self {
        Self(self.0 << 1 | failed as u64)
    }

    /// Failures in a row that open the circuit. A receiver that refuses many contacts and takes the others gives long
    /// rows of failures without being down. One that took nothing lately gets no credit for that.
    #[must_use]
    pub const fn patience(self) -> u32 {
        let row = self.0.trailing_ones();
        if row >= 32 {
            return CIRCUIT_FAILURES;
        }
        let before = self.0 >> row & 0xffff_ffff;
        // At most 31: the completion right before the row was a success.
        PATIENCE[(before.count_ones() & 31) as usize]
    }
}

/// Whether a lane sends freely or only probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circuit {
    /// Sends; this many completions in a row were failures that are the receiver's fault.
    Closed {
        /// Such failures since the last success.
        failures: u32,
    },
    /// Sends one probe at a time.
    Open {
        /// When it opened: what started before is no probe.
        since: Moment,
        /// Probes that failed.
        probes: u32,
        /// When the next one may start.
        probe_at: Moment,
    },
}

impl Circuit {
    /// The circuit after a failure, of an attempt that began then, that is the receiver's fault; it opens at `limit`
    /// in a row.
    #[must_use]
    pub fn after_failure(self, now: Moment, began: Moment, limit: u32, seed: u64) -> Self {
        match self {
            Self::Closed { failures } if failures + 1 < limit => {
                Self::Closed { failures: failures + 1 }
            }
            Self::Closed { .. } => Self::opened(now, now, 0, seed),
            // It was on its way with those that opened it. Taken for a probe, a volley that fails would put off the
            // first real one by minutes.
            Self::Open { since, .. } if began <= since => self,
            Self::Open { since, probes, .. } => {
                Self::opened(since, now, probes.saturating_add(1), seed)
            }
        }
    }

    fn opened(since: Moment, now: Moment, probes: u32, seed: u64) -> Self {
        let wait = spread(doubled(PROBE_FIRST, PROBE_LONGEST, probes), seed, u64::from(probes));
        Self::Open { since, probes, probe_at: now.plus(wait) }
    }
}

/// The pause that follows a receiver's wish: `times` is how often in a row it gave no usable time.
#[must_use]
pub fn pause(wanted: Option<Duration>, times: u32) -> Duration {
    wanted.unwrap_or_else(|| doubled(PAUSE_FIRST, PAUSE_LONGEST, times))
}

#[cfg(test)]
mod tests {
    use super::{
        CIRCUIT_FAILURES, CIRCUIT_FAILURES_LONE, CIRCUIT_FAILURES_MAX, Circuit, Duration, History,
        Moment, SCHEDULE_DEFAULT, longest_wait, pause, spread,
    };

    #[test]
    fn spread_stays_within_a_fifth_and_uses_the_whole_width() {
        let wait = Duration::from_secs(5);
        let all: Vec<Duration> = (0..10_000).map(|salt| spread(wait, 7, salt)).collect();

        assert!(all.iter().all(|w| (Duration::from_secs(4)..=Duration::from_secs(6)).contains(w)));
        assert!(all.iter().any(|w| *w < Duration::from_millis(4_020)));
        assert!(all.iter().any(|w| *w > Duration::from_millis(5_980)));
        assert_eq!(spread(wait, 7, 3), spread(wait, 7, 3));
        assert_eq!(spread(Duration::ZERO, 7, 3), Duration::ZERO);
    }

    #[test]
    fn circuit_opens_at_its_limit_and_probes_ever_more_slowly() {
        let mut circuit = Circuit::Closed { failures: 0 };
        for _ in 0..4 {
            circuit = circuit.after_failure(Moment(0), Moment(0), CIRCUIT_FAILURES, 1);
        }
        assert_eq!(circuit, Circuit::Closed { failures: 4 });

        let mut waits = Vec::new();
        for _ in 0..12 {
            circuit = circuit.after_failure(Moment(0), Moment(1), CIRCUIT_FAILURES, 1);
            let Circuit::Open { probe_at, .. } = circuit else { panic!("must be open") };
            waits.push(probe_at.0);
        }

        let opened = Circuit::Open { since: Moment(0), probes: 0, probe_at: Moment(1) };
        assert_eq!(opened.after_failure(Moment(5), Moment(0), CIRCUIT_FAILURES, 1), opened);
        assert!((800..=1_200).contains(&waits[0]), "{waits:?}");
        assert!((1_600..=2_400).contains(&waits[1]), "{waits:?}");
        assert!((240_000..=360_000).contains(&waits[11]), "{waits:?}");
        assert!(matches!(
            Circuit::Closed { failures: 2 }.after_failure(
                Moment(0),
                Moment(0),
                CIRCUIT_FAILURES_LONE,
                1
            ),
            Circuit::Open { .. }
        ));
    }

    #[test]
    fn a_receiver_that_refuses_much_gets_longer_rows_of_failures() {
        let after = |failures: u32, of: u32| {
            let past = (0..64).fold(History::default(), |past, at| past.after(at % of < failures));
            past.after(false).patience()
        };
        let healthy_then_down =
            |row: u32| (0..row).fold(History::default(), |past, _| past.after(true)).patience();
        assert_eq!([0, 1, 5, 9, 31].map(healthy_then_down), [CIRCUIT_FAILURES; 5]);
        assert_eq!([after(1, 4), after(1, 2), after(3, 4)], [11, 22, 49]);
        let down_for_long = (0..64).fold(History::default(), |past, _| past.after(true));
        assert_eq!(down_for_long.patience(), CIRCUIT_FAILURES);
        assert_eq!(down_for_long.after(false).after(true).patience(), CIRCUIT_FAILURES_MAX);
    }

    #[test]
    fn pause_doubles_only_without_a_usable_time() {
        assert_eq!(pause(Some(Duration::from_secs(9)), 5), Duration::from_secs(9));
        assert_eq!(pause(None, 0), Duration::from_secs(1));
        assert_eq!(pause(None, 3), Duration::from_secs(8));
        assert_eq!(pause(None, 40), Duration::from_mins(5));
    }

    #[test]
    fn longest_wait_is_the_step_that_was_used_with_its_spread() {
        assert_eq!(longest_wait(&SCHEDULE_DEFAULT, 0), Duration::from_millis(1_200));
        assert_eq!(longest_wait(&SCHEDULE_DEFAULT, 1), Duration::from_secs(6));
        assert_eq!(longest_wait(&SCHEDULE_DEFAULT, 11), Duration::from_hours(24) * 12 / 10);
    }
}
