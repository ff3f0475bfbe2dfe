//! Drives lanes: hears of commits, feeds events to the lanes, starts attempts, hands records to the store.
//!
//! Every lane has its own lock, held only for a step and never across an await, so lanes run beside each other on
//! all cores. The engine's one task hears of everything that comes from the store's writer and from timers; attempts
//! run in tasks (`attempts.rs`). What it hears is a level (heads, "this subscription changed"), not a queue: a lost
//! signal costs latency only, and all heads are compared once a second. Whatever has not moved since it was compared
//! needs no look: so what is idle costs nothing, however many lanes there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::budget::Budget;
use super::driver::LaneDriver;
use super::lane::{self, Input, LaneState};
use super::recent::RecentEvents;
use super::sender::Sender;
use super::slots::Slots;
use crate::domain::clock::{Clock, Moment};
use crate::domain::id::{AppId, ServiceId};
use crate::store::{Commit, Error, Store};

/// How often all heads are compared, lost signals found and doubtful lanes counted anew.
const COMPARE_EVERY: Duration = Duration::from_secs(1);
/// Wait after the store did not answer.
const STORE_RETRY: Duration = Duration::from_millis(200);
/// How often a stop looks whether everything has ended.
const STOP_POLL: Duration = Duration::from_millis(5);

/// Which subscription.
pub(super) type Key = (ServiceId, AppId);

/// What the engine needs from its operator.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What every lane follows.
    pub lane: lane::Settings,
    /// Attempts in flight over all lanes at most; below half the descriptor limit.
    pub slots: usize,
}

/// What was heard since the engine's task last looked.
#[derive(Default)]
struct Heard {
    grown: BTreeSet<ServiceId>,
    changed: BTreeSet<Key>,
    reload_all: bool,
    recorded: Vec<(Arc<LaneDriver>, u64, Result<(), Error>)>,
    called: Vec<Arc<LaneDriver>>,
}

/// What lanes and engine share.
pub(super) struct Shared {
    pub(super) store: Store,
    pub(super) sender: Arc<Sender>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) settings: Arc<lane::Settings>,
    pub(super) recent: RecentEvents,
    pub(super) budget: Arc<Budget>,
    pub(super) slots: Slots<Arc<LaneDriver>>,
    pub(super) tasks: TaskTracker,
    pub(super) stopping: CancellationToken,
    /// When the engine started, from which beats are counted.
    pub(super) began: tokio::time::Instant,
    heads: Mutex<Heads>,
    /// Lanes that were halted, and may have been started again since.
    halted: Mutex<BTreeSet<Key>>,
    lanes: Mutex<Lanes>,
    timers: Mutex<BTreeMap<(Moment, u64), Arc<LaneDriver>>>,
    heard: Mutex<Heard>,
    signal: Notify,
    lane_ids: AtomicU64,
}

#[derive(Default)]
struct Heads {
    by_service: HashMap<ServiceId, u64>,
    /// Whose heads have moved since all were compared.
    moved: BTreeSet<ServiceId>,
}

#[derive(Default)]
struct Lanes {
    by_key: HashMap<Key, Arc<LaneDriver>>,
    by_service: HashMap<ServiceId, Vec<Arc<LaneDriver>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn head(&self, service: ServiceId) -> u64 {
        lock(&self.heads).by_service.get(&service).copied().unwrap_or(0)
    }

    /// Called on the writer's thread.
    pub(super) fn hear_recorded(
        &self,
        lane: Arc<LaneDriver>,
        number: u64,
        result: Result<(), Error>,
    ) {
        lock(&self.heard).recorded.push((lane, number, result));
        self.signal.notify_one();
    }

    /// A lane that is to be built anew from the store.
    pub(super) fn hear_changed(&self, key: Key) {
        lock(&self.heard).changed.insert(key);
        self.signal.notify_one();
    }

    /// A lane was halted: should the signal to load it anew be lost, the comparison finds it.
    pub(super) fn note_halted(&self, key: Key) {
        lock(&self.halted).insert(key);
    }

    /// Lanes whose turn it is to take slots.
    pub(super) fn hear_called(&self, lanes: Vec<Arc<LaneDriver>>) {
        lock(&self.heard).called.extend(lanes);
        self.signal.notify_one();
    }

    /// Moves a lane's timer; `None` is no timer.
    pub(super) fn set_timer(
        &self,
        lane: &Arc<LaneDriver>,
        before: Option<Moment>,
        at: Option<Moment>,
    ) {
        let mut timers = lock(&self.timers);
        if let Some(before) = before {
            timers.remove(&(before, lane.id));
        }
        let Some(at) = at else { return };
        let sooner = timers.first_key_value().is_none_or(|((first, _), _)| at < *first);
        timers.insert((at, lane.id), Arc::clone(lane));
        drop(timers);
        if sooner {
            self.signal.notify_one();
        }
    }

    fn find(&self, key: Key) -> Option<Arc<LaneDriver>> {
        lock(&self.lanes).by_key.get(&key).cloned()
    }

    fn lanes_of(&self, service: ServiceId) -> Vec<Arc<LaneDriver>> {
        lock(&self.lanes).by_service.get(&service).cloned().unwrap_or_default()
    }

    fn all_lanes(&self) -> Vec<Arc<LaneDriver>> {
        lock(&self.lanes).by_key.values().cloned().collect()
    }

    fn find_or_make(self: &Arc<Self>, key: Key) -> Arc<LaneDriver> {
        let mut lanes = lock(&self.lanes);
        if let Some(found) = lanes.by_key.get(&key) {
            return Arc::clone(found);
        }
        let id = self.lane_ids.fetch_add(1, Ordering::Relaxed);
        let made = LaneDriver::new(id, key, Arc::clone(self));
        lanes.by_key.insert(key, Arc::clone(&made));
        lanes.by_service.entry(key.0).or_default().push(Arc::clone(&made));
        made
    }

    /// Forgets a lane, unless an attempt of it is in flight: its contact must still be known as busy.
    fn forget_if_quiet(&self, lane: &Arc<LaneDriver>) {
        let mut lanes = lock(&self.lanes);
        if lane.in_flight() > 0 {
            return;
        }
        lanes.by_key.remove(&lane.key);
        if let Some(others) = lanes.by_service.get_mut(&lane.key.0) {
            others.retain(|other| other.id != lane.id);
            if others.is_empty() {
                lanes.by_service.remove(&lane.key.0);
            }
        }
        drop(lanes);
        lane.close();
    }

    /// Hears of a commit, on the writer's thread and before any caller is answered.
    fn hear_commit(&self, commit: &Commit) {
        self.recent.push(&commit.events);
        if !commit.events.is_empty() {
            let mut heads = lock(&self.heads);
            for event in &commit.events {
                heads.by_service.insert(event.service, event.sequence);
                heads.moved.insert(event.service);
            }
        }
        // Halted here and not in the engine's task: whoever unsubscribes must not get a notification that started
        // after the answer.
        for key in &commit.subscriptions {
            if let Some(lane) = self.find(*key) {
                lane.step(Input::Halt);
            }
        }
        // Here too: whoever has its new secret must not get a notification that is not signed with it.
        for changed in &commit.secrets {
            if let Some(lane) = self.find((changed.service, changed.app)) {
                lane.set_secrets(Arc::clone(&changed.secrets));
            }
        }
        for key in &commit.again {
            if let Some(lane) = self.find(*key) {
                lane.step(Input::SendAgain);
            }
        }
        for service in &commit.hidden {
            for lane in self.lanes_of(*service) {
                lane.step(Input::Halt);
            }
        }
        if commit.reopened {
            self.recent.clear();
            for lane in self.all_lanes() {
                lane.step(Input::Halt);
            }
        }
        let mut heard = lock(&self.heard);
        heard.grown.extend(commit.events.iter().map(|event| event.service));
        heard.changed.extend(&commit.subscriptions);
        for service in &commit.hidden {
            heard.changed.extend(self.lanes_of(*service).iter().map(|lane| lane.key));
        }
        heard.reload_all |= commit.reopened;
        drop(heard);
        self.signal.notify_one();
    }
}

/// The running engine.
pub struct Engine {
    shared: Arc<Shared>,
    main: tokio::task::JoinHandle<()>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engine")
    }
}

impl Engine {
    /// Reads heads and progress, builds a lane for each enabled subscription, and starts.
    ///
    /// # Errors
    ///
    /// The store cannot be read.
    pub async fn start(
        store: Store,
        sender: Arc<Sender>,
        clock: Arc<dyn Clock>,
        settings: Settings,
    ) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            store,
            sender,
            clock,
            settings: Arc::new(settings.lane),
            recent: RecentEvents::default(),
            budget: Arc::default(),
            slots: Slots::new(settings.slots),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            began: tokio::time::Instant::now(),
            heads: Mutex::default(),
            halted: Mutex::default(),
            lanes: Mutex::default(),
            timers: Mutex::default(),
            heard: Mutex::default(),
            signal: Notify::new(),
            lane_ids: AtomicU64::new(0),
        });
        // The listener first: what is committed while the rows are read is heard, and loaded again.
        let listening = Arc::clone(&shared);
        let queue = shared.store.write.queue();
        queue.add_listener(Arc::new(move |commit| listening.hear_commit(commit)));
        load_all(&shared, true).await?;
        let main = shared.tasks.spawn(run(Arc::clone(&shared)));
        Ok(Self { shared, main })
    }

    /// How the lane of a subscription is doing; `None` when it has none.
    #[must_use]
    pub fn lane_state(&self, service: ServiceId, app: AppId) -> Option<LaneState> {
        self.shared.find((service, app)).map(|lane| lane.lane_state())
    }

    /// Whether its task lives. Without it changes would be acknowledged and never delivered.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.main.is_finished()
    }

    /// Starts nothing any more, waits up to `grace` for what is in flight, and records it.
    pub async fn stop(&self, grace: Duration) {
        let lanes = self.shared.all_lanes();
        for lane in &lanes {
            lane.step(Input::Drain);
        }
        let until = self.shared.clock.moment().plus(grace);
        while lanes.iter().any(|lane| lane.busy()) && self.shared.clock.moment() < until {
            tokio::time::sleep(STOP_POLL).await;
        }
        self.shared.stopping.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }
}

/// Builds every lane from the store, new ones and those that are there. At the first time nobody can change a
/// subscription meanwhile.
async fn load_all(shared: &Arc<Shared>, first: bool) -> Result<(), Error> {
    let heads = shared.store.read.list_heads().await?;
    {
        let mut known = lock(&shared.heads);
        let Heads { by_service, moved } = &mut *known;
        for (service, head) in heads {
            let entry = by_service.entry(service).or_default();
            if head > *entry {
                *entry = head;
                moved.insert(service);
            }
        }
    }
    let mut gone: HashMap<Key, Arc<LaneDriver>> = lock(&shared.lanes).by_key.clone();
    // Asked before the read: what a lane records meanwhile would be missing from what is read.
    let deferred: BTreeSet<Key> = gone
        .values()
        .filter(|lane| !lane.halted() || lane.defers_load())
        .map(|lane| lane.key)
        .collect();
    gone.retain(|key, _| !deferred.contains(key));
    let halts: HashMap<Key, u64> = gone.iter().map(|(key, lane)| (*key, lane.halts())).collect();
    for row in shared.store.read.list_lanes().await? {
        let key = (row.subscription.service, row.subscription.app);
        gone.remove(&key);
        if deferred.contains(&key) {
            continue;
        }
        match halts.get(&key) {
            Some(halts) => shared.find_or_make(key).restart(row, *halts),
            None if first => shared.find_or_make(key).restart(row, 0),
            // It has no lane that a change could have halted since the read.
            None => shared.hear_changed(key),
        }
    }
    for lane in gone.values() {
        shared.forget_if_quiet(lane);
    }
    Ok(())
}

/// Builds one lane anew; it stays halted when its subscription is not enabled.
async fn load_one(shared: &Arc<Shared>, key: Key) -> Result<(), Error> {
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

/// The engine's task.
async fn run(shared: Arc<Shared>) {
    let mut compare = tokio::time::interval(COMPARE_EVERY);
    compare.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let next = lock(&shared.timers).first_key_value().map(|((at, _), _)| *at);
        let wait = next.map(|at| at.since(shared.clock.moment()));
        tokio::select! {
            () = shared.stopping.cancelled() => return,
            () = shared.signal.notified() => {}
            () = sleep_or_forever(wait) => {}
            _ = compare.tick() => compare_all(&shared),
        }
        let heard = std::mem::take(&mut *lock(&shared.heard));
        for (lane, number, result) in heard.recorded {
            lane.take_record_result(number, result);
        }
        for service in &heard.grown {
            let head = shared.head(*service);
            for lane in shared.lanes_of(*service) {
                lane.step(Input::Head(head));
            }
        }
        fire_timers(&shared);
        for lane in heard.called {
            lane.step(Input::Tick);
        }
        if heard.reload_all || !heard.changed.is_empty() {
            reload(&shared, heard.reload_all, heard.changed).await;
        }
    }
}

/// One after the other, so that a later state is never overwritten by an earlier one.
async fn reload(shared: &Arc<Shared>, all: bool, changed: BTreeSet<Key>) {
    let mut failed = BTreeSet::new();
    let mut all_failed = false;
    if all {
        all_failed = load_all(shared, false).await.is_err();
    }
    for key in changed {
        if load_one(shared, key).await.is_err() {
            failed.insert(key);
        }
    }
    if all_failed || !failed.is_empty() {
        tracing::warn!(lane.count = failed.len(), "lanes not loaded, trying again");
        tokio::time::sleep(STORE_RETRY).await;
        let mut heard = lock(&shared.heard);
        heard.changed.extend(failed);
        heard.reload_all |= all_failed;
        drop(heard);
        shared.signal.notify_one();
    }
}

async fn sleep_or_forever(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

fn fire_timers(shared: &Arc<Shared>) {
    let now = shared.clock.moment();
    loop {
        let due = {
            let mut timers = lock(&shared.timers);
            match timers.first_key_value() {
                Some(((at, _), _)) if *at <= now => timers.pop_first(),
                _ => None,
            }
        };
        let Some((_, lane)) = due else { return };
        lane.take_timer();
    }
}

/// Finds what a lost signal would have told, and lanes whose attempts have been hanging.
fn compare_all(shared: &Arc<Shared>) {
    let moved = std::mem::take(&mut lock(&shared.heads).moved);
    for service in moved {
        let head = shared.head(service);
        for lane in shared.lanes_of(service) {
            if lane.behind(head) {
                lane.step(Input::Head(head));
            }
        }
    }
    // Taken out before the look: one that is halted again meanwhile notes itself anew.
    let mut halted = std::mem::take(&mut *lock(&shared.halted));
    halted.retain(|key| {
        let Some(lane) = shared.find(*key).filter(|lane| lane.halted()) else { return false };
        if lane.in_flight() == 0 {
            lock(&shared.heard).changed.insert(*key);
        }
        true
    });
    lock(&shared.halted).extend(halted);
    for lane in shared.slots.holders() {
        lane.step(Input::Tick);
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
