//! Which extension numbers of a service are taken, in memory: the lowest free one is found without a look at the store.

use crate::domain::contact_rules::{EXTENSION_MAX, EXTENSION_MIN};

/// A bit for every extension number up to the highest that was ever taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ExtensionMap {
    words: Vec<u64>,
    /// No word before this one has a free bit.
    first_free_word: usize,
}

impl ExtensionMap {
    /// Notes that a number is taken, or is free again.
    pub(super) fn set(&mut self, number: u32, taken: bool) {
        let Some(index) = number.checked_sub(EXTENSION_MIN) else {
            return;
        };
        let (word, bit) = ((index / 64) as usize, 1_u64 << (index % 64));
        if taken {
            if word >= self.words.len() {
                self.words.resize(word + 1, 0);
            }
            self.words[word] |= bit;
        } else if let Some(bits) = self.words.get_mut(word) {
            *bits &= !bit;
            self.first_free_word = self.first_free_word.min(word);
        }
        while self.words.get(self.first_free_word) == Some(&u64::MAX) {
            self.first_free_word += 1;
        }
    }

    /// The lowest number that is free.
    pub(super) fn lowest_free(&self) -> Option<u32> {
        let word = self.first_free_word;
        let bit = self.words.get(word).map_or(0, |bits| bits.trailing_ones());
        let number = EXTENSION_MIN.checked_add(u32::try_from(word * 64).ok()?)?.checked_add(bit)?;
        (number <= EXTENSION_MAX).then_some(number)
    }

    /// Whether a number is taken.
    pub(super) fn is_taken(&self, number: u32) -> bool {
        let Some(index) = number.checked_sub(EXTENSION_MIN) else { return false };
        self.words.get((index / 64) as usize).is_some_and(|bits| bits >> (index % 64) & 1 == 1)
    }

    /// How much memory it takes.
    pub(super) const fn bytes(&self) -> usize {
        self.words.capacity() * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::{EXTENSION_MAX, EXTENSION_MIN, ExtensionMap};

    #[test]
    fn lowest_free_number_follows_what_is_taken_and_given_up() {
        let mut map = ExtensionMap::default();
        assert_eq!(map.lowest_free(), Some(100));

        for number in 100..300 {
            map.set(number, true);
        }
        map.set(400, true);

        assert_eq!(map.lowest_free(), Some(300));
        assert!([100, 299, 400].iter().all(|number| map.is_taken(*number)));
        assert!(![99, 300, 401, EXTENSION_MAX].iter().any(|number| map.is_taken(*number)));
        map.set(170, false);
        assert!(!map.is_taken(170));
        assert_eq!(map.lowest_free(), Some(170));
        map.set(170, true);
        assert_eq!(map.lowest_free(), Some(300));
    }

    #[test]
    fn none_is_free_when_all_are_taken() {
        let mut map = ExtensionMap::default();
        for number in EXTENSION_MIN..=EXTENSION_MAX {
            map.set(number, true);
        }

        assert_eq!(map.lowest_free(), None);
        map.set(EXTENSION_MAX, false);
        assert_eq!(map.lowest_free(), Some(EXTENSION_MAX));
    }

    #[test]
    fn numbers_follow_a_plain_set_whatever_happens() {
        use proptest::prelude::{ProptestConfig, any, proptest};

        proptest!(ProptestConfig::with_cases(500), |(steps in proptest::collection::vec((any::<bool>(), 0_u32..200), 1..200))| {
            let mut map = ExtensionMap::default();
            let mut taken = std::collections::BTreeSet::new();
            for (lowest, offset) in steps {
                let expected = (100..).find(|number| !taken.contains(number)).unwrap();
                assert_eq!(map.lowest_free(), Some(expected));
                let number = if lowest { expected } else { 100 + offset };
                assert_eq!(map.is_taken(number), taken.contains(&number));
                let takes = taken.insert(number);
                if !takes {
                    taken.remove(&number);
                }
                map.set(number, takes);
            }
        });
    }
}
