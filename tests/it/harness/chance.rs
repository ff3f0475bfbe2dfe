//! Random choices from a printed seed, so that a run that failed can be made again.

/// The variable that gives the seed of a run that should be made again.
const SEED: &str = "ROLLCALL_TEST_SEED";

/// A row of random numbers (`SplitMix64`: short, and good enough to choose moments and sectors).
#[derive(Clone, Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    /// The seed that was asked for, else a new one.
    pub(crate) fn seed() -> u64 {
        number_from(SEED).unwrap_or_else(|| {
            let mut random = [0; 4];
            getrandom::fill(&mut random).unwrap();
            u64::from(u32::from_le_bytes(random))
        })
    }

    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to one below the limit.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// The same for an index.
    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }

    /// True in so many of a hundred cases.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// A number from the environment, for the long forms of tests; `None` when it is not set or empty.
pub(crate) fn number_from(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a whole number: {text:?}")))
}
