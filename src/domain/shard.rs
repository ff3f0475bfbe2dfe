//! Shards: the parts into which all subscriptions are divided, so that several nodes can share the sending.

use std::fmt;

use super::id::AppId;

/// How many shards there are. Fewer divide unevenly among nodes, more cost a row and a lock each. It can never change
/// for a store that is in use.
pub const SHARDS: u8 = 64;

/// One part of the subscriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shard(u8);

impl Shard {
    /// From a stored number; `None` when there is no such shard.
    #[must_use]
    pub fn from_number(number: i16) -> Option<Self> {
        u8::try_from(number).ok().filter(|number| *number < SHARDS).map(Self)
    }

    /// Its number, from 0 on.
    #[must_use]
    pub const fn number(self) -> i16 {
        self.0 as i16
    }

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..SHARDS).map(Self)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The shard of an app's subscription: the last bits of its identifier, which are random.
#[must_use]
pub const fn shard_of(app: AppId) -> Shard {
    Shard(app.as_bytes()[15] % SHARDS)
}

/// Shards in order as people read them: `0-21,40`.
#[must_use]
pub fn ranges_of(shards: &[Shard]) -> String {
    let mut ranges: Vec<(Shard, Shard)> = Vec::new();
    for shard in shards {
        match ranges.last_mut() {
            Some((_, last)) if last.0 + 1 == shard.0 => *last = *shard,
            _ => ranges.push((*shard, *shard)),
        }
    }
    let text = |(first, last): &(Shard, Shard)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::{SHARDS, Shard, ranges_of, shard_of};
    use crate::domain::clock::Timestamp;
    use crate::domain::id::{AppId, IdMaker};

    #[test]
    fn apps_spread_over_all_shards() {
        let ids = IdMaker::new();
        let mut apps = [0_usize; SHARDS as usize];
        for millis in 0..6_400 {
            let app = AppId::make(&ids, Timestamp::from_millis(1_763_900_000_000 + millis));
            apps[usize::try_from(shard_of(app).number()).unwrap()] += 1;
        }

        // 100 each, with a standard deviation of 10.
        assert!(apps.iter().all(|count| (40..=160).contains(count)), "{apps:?}");
    }

    #[test]
    fn neighbours_are_written_as_one_range() {
        let text = |numbers: &[u8]| {
            let shards: Vec<Shard> = numbers.iter().map(|number| Shard(*number)).collect();
            ranges_of(&shards)
        };

        assert_eq!(text(&[]), "");
        assert_eq!(text(&[5]), "5");
        assert_eq!(text(&[0, 1, 2, 40, 62, 63]), "0-2,40,62-63");
    }

    #[test]
    fn stored_numbers_are_read_back() {
        assert!(Shard::all().all(|shard| Shard::from_number(shard.number()) == Some(shard)));
        assert_eq!(Shard::from_number(64), None);
        assert_eq!(Shard::from_number(-1), None);
    }
}
