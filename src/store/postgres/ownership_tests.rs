//! What happens to a node when it finds itself in another era.

use std::sync::{Arc, Mutex};

use uuid::Uuid;

use super::Ownership;
use crate::domain::clock::{Clock, SystemClock};
use crate::domain::lease::Lease;
use crate::domain::shard::Shard;
use crate::store::queue::Queue;
use crate::store::{Commit, Error};

const ONE: Uuid = Uuid::from_u128(1);
const TWO: Uuid = Uuid::from_u128(2);

#[test]
fn everything_of_an_era_ends_with_it_and_is_told_before_anybody_goes_on() {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let lease = Lease::not_yet();
    let ownership = Arc::new(Ownership::new(lease.clone()));
    let queue = Queue::default();
    let told = Arc::new(Mutex::new(Vec::new()));
    let (telling, looking) = (Arc::clone(&told), Arc::clone(&ownership));
    queue.add_listener(Arc::new(move |commit: &Commit| {
        let all = commit.reopened && commit.went_back && commit.tenancy;
        telling.lock().unwrap().push((all, commit.lost.clone(), looking.all().len()));
    }));
    ownership.enter(ONE, &queue);
    let now = clock.moment();
    lease.extend_to(now.plus(std::time::Duration::from_hours(1)), now);
    let term = lease.term(&clock);
    let shards: Vec<Shard> = Shard::all().take(2).collect();
    ownership.within(ONE, || shards.iter().for_each(|shard| ownership.gain(*shard, 7))).unwrap();
    ownership.enter(ONE, &queue);
    assert!(told.lock().unwrap().is_empty() && !term.is_over());
    let made = std::time::Instant::now();

    ownership.enter(TWO, &queue);

    assert!(term.is_over() && lease.is_over(clock.moment()));
    assert_eq!(*told.lock().unwrap(), [(true, shards.clone(), 0)]);
    // Who still holds a connection of the era before does nothing with it.
    let late = ownership.within(ONE, || ownership.gain(shards[0], 8));
    assert!(matches!(late, Err(Error::Unavailable(_))));
    assert_eq!((ownership.epoch(shards[0]), ownership.era()), (None, Some(TWO)));
    assert!(ownership.is_from_before(made));
    assert!(!ownership.is_from_before(std::time::Instant::now()));
}
