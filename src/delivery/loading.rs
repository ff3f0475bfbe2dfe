//! Builds lanes from their rows: all of them, those of the shards that a node has gained, or a single one.
//!
//! A row is older than whatever is heard while it is being read. A lane that is there counts its halts, and is not started
//! from a row that was read before one. For those that are not there yet, [`Meanwhile`] notes what is heard, so that
//! thousands of lanes need one read and not one each.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::driver::LaneDriver;
use super::engine::{Key, Shared, lock};
use super::lane::Input;
use crate::domain::id::ServiceId;
use crate::domain::shard::{Shard, shard_of};
use crate::store::rows::LaneRow;
use crate::store::{Commit, Error};

/// Wait after the store did not answer.
const STORE_RETRY: Duration = Duration::from_millis(200);

/// What changed while rows are being read.
#[derive(Default)]
pub(super) struct Meanwhile {
    subscriptions: BTreeSet<Key>,
    hidden: BTreeSet<ServiceId>,
    lost: BTreeSet<Shard>,
    reopened: bool,
}

impl Meanwhile {
    pub(super) fn hear(&mut self, commit: &Commit) {
        self.subscriptions.extend(&commit.subscriptions);
        self.subscriptions.extend(commit.secrets.iter().map(|it| (it.service, it.app)));
        self.hidden.extend(&commit.hidden);
        self.lost.extend(&commit.lost);
        self.reopened |= commit.reopened;
    }

    /// Whether the row of a lane may be outdated.
    fn outdates(&self, key: Key) -> bool {
        self.reopened || self.subscriptions.contains(&key) || self.hidden.contains(&key.0)
    }
}

/// One after the other, so that a later state is never overwritten by an earlier one.
pub(super) async fn reload(
    shared: &Arc<Shared>,
    all: bool,
    mut gained: BTreeSet<Shard>,
    changed: BTreeSet<Key>,
) {
    let mut failed = BTreeSet::new();
    let mut all_failed = false;
    if all {
        all_failed = load_all(shared).await.is_err();
    }
    if all && !all_failed || !gained.is_empty() && load(shared, Some(&gained)).await.is_ok() {
        gained.clear();
    }
    for key in changed {
        if load_one(shared, key).await.is_err() {
            failed.insert(key);
        }
    }
    if all_failed || !gained.is_empty() || !failed.is_empty() {
        tracing::warn!(lane.count = failed.len(), "lanes not loaded, trying again");
        tokio::time::sleep(STORE_RETRY).await;
        let mut heard = lock(&shared.heard);
        heard.changed.extend(failed);
        heard.reload_all |= all_failed;
        heard.gained.extend(gained);
        drop(heard);
        shared.signal.notify_one();
    }
}

/// Builds every lane from the store, new ones and those that are there.
pub(super) async fn load_all(shared: &Arc<Shared>) -> Result<(), Error> {
    load(shared, None).await
}

/// Builds the lanes of these shards, or of all.
async fn load(shared: &Arc<Shared>, within: Option<&BTreeSet<Shard>>) -> Result<(), Error> {
    let times = shared.times_gone_back();
    if !shared.note_read_heads(times, shared.store.read.list_heads().await?) {
        return Err(Error::Unavailable("the log went back meanwhile".to_owned()));
    }
    let all: BTreeSet<Shard>;
    let shards = match within {
        Some(shards) => shards,
        None => {
            all = Shard::all().collect();
            &all
        }
    };
    let mut there: HashMap<Key, Arc<LaneDriver>> = HashMap::new();
    for lane in shared.lanes_in(shards) {
        if replace_drained(shared, &lane) {
            there.insert(lane.key, lane);
        }
    }
    // Asked before the read: what a lane records meanwhile would be missing from what is read.
    let deferred: BTreeSet<Key> = there
        .values()
        .filter(|lane| !lane.halted() || lane.is_drained() || lane.defers_load())
        .map(|lane| lane.key)
        .collect();
    there.retain(|key, _| !deferred.contains(key));
    let halts: HashMap<Key, u64> = there.iter().map(|(key, lane)| (*key, lane.halts())).collect();
    *lock(&shared.meanwhile) = Some(Meanwhile::default());
    let rows = shared.store.read.list_lanes().await;
    let rows = rows.inspect_err(|_| *lock(&shared.meanwhile) = None)?;
    for row in rows {
        let key = (row.subscription.service, row.subscription.app);
        there.remove(&key);
        if !shards.contains(&shard_of(key.1)) || deferred.contains(&key) {
            continue;
        }
        match halts.get(&key) {
            Some(halts) => shared.find_or_make(key).restart(row, *halts),
            None => make(shared, key, row),
        }
    }
    *lock(&shared.meanwhile) = None;
    for lane in there.values() {
        shared.forget_if_quiet(lane);
    }
    Ok(())
}

/// Makes a lane that was not there when its row was read.
fn make(shared: &Arc<Shared>, key: Key, row: LaneRow) {
    let (lane, halts) = {
        let meanwhile = lock(&shared.meanwhile);
        let lost = meanwhile.as_ref().is_some_and(|it| it.lost.contains(&shard_of(key.1)));
        if lost {
            // Built when the shard is gained again.
            return;
        }
        if meanwhile.as_ref().is_none_or(|it| it.outdates(key)) {
            drop(meanwhile);
            shared.hear_changed(key);
            return;
        }
        // Whatever is noted from now on finds this lane.
        let lane = shared.find_or_make(key);
        let halts = lane.halts();
        (lane, halts)
    };
    lane.restart(row, halts);
}

/// Builds one lane anew; it stays halted when its subscription is not enabled.
async fn load_one(shared: &Arc<Shared>, key: Key) -> Result<(), Error> {
    if let Some(lane) = shared.find(key).filter(|lane| lane.halted())
        && replace_drained(shared, &lane)
        && lane.is_drained()
    {
        return Ok(());
    }
    // Made before the read, so that a change that is committed meanwhile finds a lane to halt.
    let lane = shared.find_or_make(key);
    // Whatever needs a new start halts the lane first. One that runs records meanwhile: its row would be stale.
    if !lane.halted() || lane.defers_load() {
        return Ok(());
    }
    let halts = lane.halts();
    match shared.store.read.find_lane(key.0, key.1).await? {
        Some(row) => lane.restart(row, halts),
        None => {
            lane.step(Input::Halt);
            shared.forget_if_quiet(&lane);
        }
    }
    Ok(())
}

/// A lane that was drained is never started again: it is forgotten, and a new one takes its place. Whether it is still
/// there: it has an attempt in flight, and the comparison of halted lanes finds it when that has ended.
fn replace_drained(shared: &Arc<Shared>, lane: &Arc<LaneDriver>) -> bool {
    if lane.is_drained() && lane.halted() {
        lane.regain();
        shared.forget_if_quiet(lane);
        return shared.find(lane.key).is_some();
    }
    true
}
