//! Extension numbers as the overlay finds them.

use std::collections::BTreeSet;

use super::ServiceState;
use crate::domain::contact_rules::EXTENSION_MAX;

fn service(next: u32, free: &[u32], taken: &[u32]) -> ServiceState {
    ServiceState {
        extension_next: next,
        free: free.iter().copied().collect(),
        taken: taken.iter().copied().collect(),
        ..ServiceState::default()
    }
}

#[test]
fn lowest_free_number_is_a_given_up_one_then_the_next_that_nobody_chose() {
    let mut row = service(100, &[], &[101, 102, 500]);
    let mut found = Vec::new();
    for _ in 0..4 {
        let number = row.lowest_free().unwrap();
        row.take(number);
        found.push(number);
    }
    assert_eq!(found, [100, 103, 104, 105]);

    row.give_up(102);
    row.give_up(500);
    assert_eq!(row.lowest_free(), Some(102));
    row.take(102);
    assert_eq!((row.lowest_free(), row.taken.len()), (Some(106), 0));
}

#[test]
fn none_is_free_when_all_are_taken() {
    let mut row = service(EXTENSION_MAX, &[], &[]);
    row.take(EXTENSION_MAX);
    assert_eq!(row.lowest_free(), None);
    row.give_up(EXTENSION_MAX);
    assert_eq!(row.lowest_free(), Some(EXTENSION_MAX));
}

#[test]
fn numbers_follow_a_plain_set_whatever_happens() {
    use proptest::prelude::{ProptestConfig, any, proptest};

    proptest!(ProptestConfig::with_cases(500), |(steps in proptest::collection::vec((any::<bool>(), 0_u32..60), 1..200))| {
        let mut row = service(100, &[], &[]);
        let mut taken = BTreeSet::new();
        for (lowest, offset) in steps {
            let expected = (100..).find(|number| !taken.contains(number)).unwrap();
            assert_eq!(row.lowest_free(), Some(expected));
            let number = if lowest { expected } else { 100 + offset };
            if taken.remove(&number) {
                row.give_up(number);
            } else {
                taken.insert(number);
                row.take(number);
            }
        }
    });
}

#[test]
fn more_is_read_while_the_taken_numbers_may_hide_too_few_free_ones() {
    let run: Vec<u32> = (100..164).collect();

    assert!(!service(100, &[], &run).can_find(1, false));
    assert!(service(100, &[], &run).can_find(1, true));
    assert!(service(164, &[120], &[]).can_find(1, true));
    assert!(service(100, &[], &[100, 103]).can_find(2, false));
    assert!(!service(100, &[], &[100, 103]).can_find(3, false));
}
