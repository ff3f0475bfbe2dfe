//! Drives lanes: hears of commits, feeds events to the lanes, starts attempts, hands records to the store.
//!
//! Every lane has its own lock, held only for a step and never across an await, so lanes run beside each other on
//! all cores. The engine's one task hears of everything that comes from the store's writer and from timers; attempts
//! run in tasks (`attempts.rs`). What it hears is a level (heads, "this subscription changed"), not a queue: a lost
//! signal costs latency only, and all heads are compared once a second. Whatever has not moved since it was compared
//! needs no look: so what is idle costs nothing, however many lanes there are.
//!
//! Where several nodes share the sending, this one has the lanes of its shards: gained ones are built (`loading.rs`), lost
//! ones stop at once, and those that are handed over are drained first.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::budget::Budget;
use super::driver::LaneDriver;
use super::lane::{self, Input, LaneState};
use super::loading::{self, Meanwhile};
use super::recent::RecentEvents;
use super::sender::Sender;
use super::slots::Slots;
use crate::domain::clock::{Clock, Moment};
use crate::domain::id::{AppId, ServiceId};
use crate::domain::shard::{Shard, shard_of};
use crate::store::rows::{ConditionRow, LaneCondition};
use crate::store::{Commit, Error, Store};

/// How often all heads are compared, lost signals found and doubtful lanes counted anew.
const COMPARE_EVERY: Duration = Duration::from_secs(1);
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
pub(super) struct Heard {
    grown: BTreeSet<ServiceId>,
    pub(super) changed: BTreeSet<Key>,
    pub(super) reload_all: bool,
    pub(super) gained: BTreeSet<Shard>,
    lost: BTreeSet<Shard>,
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
    pub(super) heard: Mutex<Heard>,
    pub(super) signal: Notify,
    lane_ids: AtomicU64,
    /// What other nodes have not been told yet of lanes: their epoch and how they are doing.
    conditions: Mutex<BTreeMap<Key, (u64, LaneState)>>,
    /// Whether they are being told of something: one after the other, so that a later state is never overwritten.
    telling: AtomicBool,
    /// What is heard while rows of lanes are being read.
    pub(super) meanwhile: Mutex<Option<Meanwhile>>,
    /// Shards that are being handed over: whatever starts in them is drained.
    draining: Mutex<BTreeSet<Shard>>,
    /// Tells attempts that lanes were lost.
    losses: watch::Sender<()>,
}

#[derive(Default)]
struct Heads {
    by_service: HashMap<ServiceId, u64>,
    /// Whose heads have moved since all were compared.
    moved: BTreeSet<ServiceId>,
    /// How often they may have gone back. What was read before that is not noted any more.
    went_back: u64,
}

impl Heads {
    /// Those that are known are not taken back.
    fn note(&mut self, heads: impl IntoIterator<Item = (ServiceId, u64)>) {
        for (service, head) in heads {
            let entry = self.by_service.entry(service).or_default();
            if head > *entry {
                *entry = head;
                self.moved.insert(service);
            }
        }
    }

    /// Nothing of what is known holds any more.
    fn go_back(&mut self) {
        *self = Self { went_back: self.went_back + 1, ..Self::default() };
    }
}

#[derive(Default)]
struct Lanes {
    by_key: HashMap<Key, Arc<LaneDriver>>,
    by_service: HashMap<ServiceId, Vec<Arc<LaneDriver>>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn head(&self, service: ServiceId) -> u64 {
        lock(&self.heads).by_service.get(&service).copied().unwrap_or(0)
    }

    /// How often heads may have gone back, to be asked before they are read.
    pub(super) fn times_gone_back(&self) -> u64 {
        lock(&self.heads).went_back
    }

    /// Notes heads that were read since they went back for the last time; whether that is so.
    pub(super) fn note_read_heads(&self, times: u64, read: Vec<(ServiceId, u64)>) -> bool {
        let mut known = lock(&self.heads);
        let valid = known.went_back == times;
        if valid {
            known.note(read);
        }
        valid
    }

    /// Notes heads that were heard of.
    fn note_heads(&self, heads: impl IntoIterator<Item = (ServiceId, u64)>) {
        lock(&self.heads).note(heads);
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

    /// Other nodes are to hear how a lane is doing.
    pub(super) fn note_condition(&self, key: Key, epoch: u64, state: LaneState) {
        lock(&self.conditions).insert(key, (epoch, state));
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

    pub(super) fn find(&self, key: Key) -> Option<Arc<LaneDriver>> {
        lock(&self.lanes).by_key.get(&key).cloned()
    }

    fn lanes_of(&self, service: ServiceId) -> Vec<Arc<LaneDriver>> {
        lock(&self.lanes).by_service.get(&service).cloned().unwrap_or_default()
    }

    fn all_lanes(&self) -> Vec<Arc<LaneDriver>> {
        lock(&self.lanes).by_key.values().cloned().collect()
    }

    pub(super) fn lanes_in(&self, shards: &BTreeSet<Shard>) -> Vec<Arc<LaneDriver>> {
        if shards.is_empty() {
            return Vec::new();
        }
        let lanes = lock(&self.lanes);
        let within = lanes.by_key.iter().filter(|(key, _)| shards.contains(&shard_of(key.1)));
        within.map(|(_, lane)| Arc::clone(lane)).collect()
    }

    pub(super) fn is_draining(&self, app: AppId) -> bool {
        lock(&self.draining).contains(&shard_of(app))
    }

    /// What an attempt is told by that lanes were lost.
    pub(super) fn watch_losses(&self) -> watch::Receiver<()> {
        self.losses.subscribe()
    }

    pub(super) fn find_or_make(self: &Arc<Self>, key: Key) -> Arc<LaneDriver> {
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

    /// Forgets a lane, unless an attempt of it is in flight: its contact must still be known as busy. Or unless a record of
    /// it is under way: whoever builds it anew must know to wait for the result.
    pub(super) fn forget_if_quiet(&self, lane: &Arc<LaneDriver>) {
        let mut lanes = lock(&self.lanes);
        if lane.in_flight() > 0 || lane.records() {
            return;
        }
        // Another one may have taken its place.
        if lanes.by_key.get(&lane.key).is_some_and(|there| there.id == lane.id) {
            lanes.by_key.remove(&lane.key);
        }
        if let Some(others) = lanes.by_service.get_mut(&lane.key.0) {
            others.retain(|other| other.id != lane.id);
            if others.is_empty() {
                lanes.by_service.remove(&lane.key.0);
            }
        }
        drop(lanes);
        lane.close();
    }

    /// Hears of a commit, on the thread of whoever tells it. The writer does so before any caller is answered.
    fn hear_commit(&self, commit: &Commit) {
        self.recent.push(&commit.events);
        let events = commit.events.iter().map(|event| (event.service, event.sequence));
        self.note_heads(events.chain(commit.heads.iter().copied()));
        // Before lanes are looked for: one that is made after that knows of it.
        if let Some(meanwhile) = lock(&self.meanwhile).as_mut() {
            meanwhile.hear(commit);
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
            if commit.went_back {
                lock(&self.heads).go_back();
            }
            for lane in self.all_lanes() {
                lane.step(if commit.went_back { Input::WentBack } else { Input::Halt });
            }
        }
        self.hear_shards(commit);
        let mut heard = lock(&self.heard);
        heard.grown.extend(commit.events.iter().map(|event| event.service));
        heard.grown.extend(commit.heads.iter().map(|(service, _)| *service));
        heard.changed.extend(&commit.subscriptions);
        for service in &commit.hidden {
            heard.changed.extend(self.lanes_of(*service).iter().map(|lane| lane.key));
        }
        heard.reload_all |= commit.reopened;
        drop(heard);
        self.signal.notify_one();
    }

    /// Lost shards first: one that is lost and gained is built anew.
    fn hear_shards(&self, commit: &Commit) {
        if commit.lost.is_empty() && commit.gained.is_empty() {
            return;
        }
        let lost: BTreeSet<Shard> = commit.lost.iter().copied().collect();
        let mut draining = lock(&self.draining);
        draining.retain(|shard| !lost.contains(shard) && !commit.gained.contains(shard));
        drop(draining);
        for lane in self.lanes_in(&lost) {
            lane.lose();
        }
        // Attempts that are in flight end now, and not when their receivers answer.
        self.losses.send_replace(());
        let mut heard = lock(&self.heard);
        heard.gained.retain(|shard| !lost.contains(shard));
        heard.lost.extend(lost);
        heard.gained.extend(&commit.gained);
    }
}

/// The running engine.
pub struct Engine {
    shared: Arc<Shared>,
    main: tokio::task::JoinHandle<()>,
    runtime: Handle,
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
            conditions: Mutex::default(),
            telling: AtomicBool::new(false),
            meanwhile: Mutex::default(),
            draining: Mutex::default(),
            losses: watch::Sender::default(),
        });
        // The listener first: what is committed while the rows are read is heard, and loaded again.
        let listening = Arc::clone(&shared);
        let queue = shared.store.write.queue();
        queue.add_listener(Arc::new(move |commit| listening.hear_commit(commit)));
        loading::load_all(&shared).await?;
        let main = shared.tasks.spawn(run(Arc::clone(&shared)));
        Ok(Self { shared, main, runtime: Handle::current() })
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

    /// Starts nothing any more in these shards, from before it returns. The future waits for what is in flight and its
    /// records, and forgets the lanes; they are built anew when the shards are told as gained. It waits for receivers and
    /// for the store: whoever awaits it has a limit, after which the shards are to be told as lost.
    pub fn drain_shards(&self, shards: &[Shard]) -> impl Future<Output = ()> + Send + 'static {
        let shards: BTreeSet<Shard> = shards.iter().copied().collect();
        let shared = Arc::clone(&self.shared);
        // Whoever asks: lanes may start tasks.
        let inside = self.runtime.enter();
        // Before the lanes are listed: one that is built meanwhile is drained from the start.
        lock(&shared.draining).extend(&shards);
        let lanes = shared.lanes_in(&shards);
        for lane in &lanes {
            lane.step(Input::Drain);
        }
        drop(inside);
        let drained = self.runtime.spawn(async move {
            let mut busy = lanes.clone();
            loop {
                busy.retain(|lane| lane.busy());
                if busy.is_empty() || shared.stopping.is_cancelled() {
                    break;
                }
                tokio::time::sleep(STOP_POLL).await;
            }
            for lane in &lanes {
                lane.step(Input::Halt);
                shared.forget_if_quiet(lane);
            }
        });
        let drained = AbortOnDropHandle::new(drained);
        // One that failed has drained nothing: its lanes stop when the shards are told as lost.
        async move { drop(drained.await) }
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
        forget_lost(&shared, &heard.lost);
        if heard.reload_all || !heard.changed.is_empty() || !heard.gained.is_empty() {
            loading::reload(&shared, heard.reload_all, heard.gained, heard.changed).await;
        }
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

/// Forgets the lanes of shards that were lost. Those with an attempt in flight, which is being aborted, or with a record
/// under way are forgotten when halted lanes are looked at.
fn forget_lost(shared: &Arc<Shared>, lost: &BTreeSet<Shard>) {
    for lane in shared.lanes_in(lost) {
        if lane.is_lost() {
            shared.forget_if_quiet(&lane);
        }
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
        if lane.in_flight() > 0 {
            return true;
        }
        if lane.is_lost() {
            shared.forget_if_quiet(&lane);
        } else {
            lock(&shared.heard).changed.insert(*key);
        }
        true
    });
    lock(&shared.halted).extend(halted);
    for lane in shared.slots.holders() {
        lane.step(Input::Tick);
    }
    tell_conditions(shared);
}

/// Tells other nodes of the lanes whose condition changed, once a second at most.
fn tell_conditions(shared: &Arc<Shared>) {
    let Some(conditions) = shared.store.conditions.clone() else { return };
    if lock(&shared.conditions).is_empty() || shared.telling.swap(true, Ordering::AcqRel) {
        return;
    }
    let changed = std::mem::take(&mut *lock(&shared.conditions));
    let row = |(key, (epoch, state)): (&Key, &(u64, LaneState))| ConditionRow {
        service: key.0,
        app: key.1,
        epoch: *epoch,
        condition: match state {
            LaneState::Active => None,
            LaneState::Paused => Some(LaneCondition::Paused),
            LaneState::Failing => Some(LaneCondition::Failing),
        },
    };
    let rows = changed.iter().map(row).collect();
    let telling = Arc::clone(shared);
    shared.tasks.spawn(async move {
        if conditions.write(rows).await.is_err() {
            let mut waiting = lock(&telling.conditions);
            for (key, state) in changed {
                waiting.entry(key).or_insert(state);
            }
        }
        telling.telling.store(false, Ordering::Release);
    });
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
