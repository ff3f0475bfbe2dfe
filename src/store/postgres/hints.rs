//! What nodes tell each other of their commits, and how they find out without being told.
//!
//! After a commit a node sends a hint by NOTIFY: which logs have grown, which subscriptions changed. It goes over a
//! connection of its own, outside of every transaction that writes, and hints of a few milliseconds go together. Whoever
//! hears one tells the listeners of its own queue, with the new events, so that its lanes need not read them one by one.
//!
//! The truth is in the tables. Once a second heads and counts are compared with what is known: that finds whatever a lost
//! hint would have told. A count says that something changed in a shard, not what: then its lanes are built anew.
//!
//! Each era of the database (`era.rs`) has a channel of its own, and in each one everything begins anew: heads and counts of
//! another one mean something else.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool_postgres::ClientWrapper;
use futures_util::future::{try_join, try_join_all};
use tokio::sync::{Notify, mpsc};
use tokio_postgres::{AsyncMessage, Statement};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::change::{column, int, uint};
use super::connect::Target;
use super::hint_text::{self, Hint};
use super::ownership::Ownership;
use super::{era, events, unavailable};
use crate::domain::event::Event;
use crate::domain::id::ServiceId;
use crate::domain::shard::{Shard, shard_of};
use crate::store::queue::Queue;
use crate::store::{Commit, Error};

/// The channel of all nodes on a database begins with this; the era follows.
const CHANNEL: &str = "rollcall_";
/// Shortest time between two hints of a node. Shorter costs the database more transactions, longer is latency for lanes on
/// other nodes.
const HINT_EVERY: Duration = Duration::from_millis(5);
/// How often heads and counts are compared.
const COMPARE_EVERY: Duration = Duration::from_secs(1);
/// Wait before a connection is made again.
const RETRY_WAIT: Duration = Duration::from_millis(200);
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// New events of one service that are read for its lanes at once; beyond it each lane reads at its own pace.
const READ_MAX: u64 = 1_000;
/// The same over all services of one hint: bounds the memory of it to a few megabytes.
const READ_TOTAL_MAX: u64 = 4_000;
/// Hints that wait to be looked at. When there are more, what they tell is found by comparing.
const HEARD_MAX: usize = 1_024;

/// What the exchange of hints needs.
pub(super) struct Settings {
    pub(super) target: Target,
    pub(super) queue: Arc<Queue>,
    pub(super) ownership: Arc<Ownership>,
}

/// The running exchange; dropping it ends it.
pub(super) struct Hints {
    done: CancellationToken,
    stop: Option<DropGuard>,
}

impl fmt::Debug for Hints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hints")
    }
}

impl Hints {
    /// Begins to tell and to hear. Returns at once; until the database answers, nothing is heard.
    ///
    /// # Errors
    ///
    /// There is no thread to be had.
    pub(super) fn start(settings: Settings) -> Result<Self, Error> {
        let Settings { target, queue, ownership } = settings;
        let (stop, done) = (CancellationToken::new(), CancellationToken::new());
        let shared = Arc::new(Shared {
            sender: Uuid::now_v7(),
            queue: Arc::clone(&queue),
            ownership,
            known: Mutex::default(),
            to_tell: Mutex::default(),
            told: Notify::new(),
        });
        let listening = Arc::clone(&shared);
        queue.add_listener(Arc::new(move |commit| listening.hear_own(commit)));
        let (stopped, ended) = (stop.clone(), done.clone().drop_guard());
        std::thread::Builder::new()
            .name("hints".to_owned())
            .spawn(move || {
                let _ended = ended;
                match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime.block_on(async {
                        tokio::select! {
                            () = stopped.cancelled() => {}
                            () = tell_all(&shared, &target) => {}
                            () = hear_all(&shared, &target) => {}
                        }
                    }),
                    Err(error) => tracing::error!(error = %error, "hints cannot start"),
                }
            })
            .map_err(|error| Error::Unavailable(format!("cannot start the hints: {error}")))?;
        Ok(Self { done, stop: Some(stop.drop_guard()) })
    }

    /// Whether it lives. Without it nothing is heard of other nodes.
    pub(super) fn is_running(&self) -> bool {
        !self.done.is_cancelled()
    }

    /// Ends it.
    pub(super) async fn stop(mut self) {
        drop(self.stop.take());
        self.done.cancelled().await;
    }
}

fn channel(era: Uuid) -> String {
    format!("{CHANNEL}{}", era.simple())
}

/// How often each count is accounted for: by what this node did itself, what it was told, and what it found.
#[derive(Default)]
struct Known {
    heads: HashMap<ServiceId, u64>,
    tenancy: u64,
    shards: BTreeMap<Shard, u64>,
    /// Whether there was a comparison, without which the counts are only those of what happened since the start.
    compared: bool,
    /// Whether lanes may have been built before the first comparison: it has them built anew.
    again: bool,
    /// Counts that were found higher at the last comparison. What is told meanwhile may still account for it.
    doubted: BTreeMap<Shard, u64>,
}

struct Shared {
    /// Names this process in hints.
    sender: Uuid,
    queue: Arc<Queue>,
    ownership: Arc<Ownership>,
    known: Mutex<Known>,
    to_tell: Mutex<Hint>,
    told: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Hears of a commit of this node, on its writer's thread.
    fn hear_own(&self, commit: &Commit) {
        if commit.went_back {
            *lock(&self.known) = Known { again: true, ..Known::default() };
            *lock(&self.to_tell) = Hint::default();
        }
        if commit.elsewhere {
            return;
        }
        let hint = Hint::of(commit);
        if hint == Hint::default() {
            return;
        }
        self.account_for(&hint);
        lock(&self.to_tell).add(hint);
        self.told.notify_one();
    }

    /// Notes what a hint says, of this node or another one. Gives the logs that it says have grown, with the head that
    /// was known before.
    fn account_for(&self, hint: &Hint) -> Vec<(ServiceId, Option<u64>, u64)> {
        let mut known = lock(&self.known);
        known.tenancy += u64::from(hint.tenancy);
        for (shard, times) in &hint.counted {
            *known.shards.entry(*shard).or_default() += u64::from(*times);
        }
        let mut grown = Vec::new();
        for (service, head) in &hint.heads {
            let before = known.heads.get(service).copied();
            if before.is_none_or(|before| before < *head) {
                known.heads.insert(*service, *head);
                grown.push((*service, before, *head));
            }
        }
        for service in &hint.hidden {
            known.heads.remove(service);
        }
        grown
    }

    /// Tells the listeners of this node.
    fn tell(&self, commit: Commit) {
        let quiet = commit.events.is_empty()
            && commit.heads.is_empty()
            && commit.subscriptions.is_empty()
            && commit.hidden.is_empty()
            && commit.lost.is_empty()
            && !commit.tenancy;
        if !quiet {
            self.queue.tell(&Commit { elsewhere: true, ..commit });
        }
    }

    fn owns(&self, shard: Shard) -> bool {
        self.ownership.epoch(shard).is_some()
    }
}

/// Sends hints of what this node commits.
async fn tell_all(shared: &Shared, target: &Target) {
    loop {
        let failed = tell_on(shared, target).await;
        tracing::debug!(error = %failed, "hints not sent, trying again");
        tokio::time::sleep(RETRY_WAIT).await;
    }
}

async fn tell_on(shared: &Shared, target: &Target) -> Error {
    let told = async {
        let client = in_time(target.connect(|_| ())).await?;
        let failed = |error: tokio_postgres::Error| unavailable(&error);
        // A hint needs no disk and no standby.
        client.batch_execute("SET synchronous_commit = off").await.map_err(failed)?;
        let sql = "SELECT pg_notify($1, hint) FROM unnest($2::text[]) AS hint";
        let statement = client.prepare(sql).await.map_err(failed)?;
        loop {
            shared.told.notified().await;
            // Asked first: what is of an earlier era must not go to the channel of a later one.
            let Some(era) = shared.ownership.era() else { continue };
            let hint = std::mem::take(&mut *lock(&shared.to_tell));
            let texts = hint_text::write(shared.sender, &hint);
            in_time(async {
                client.execute(&statement, &[&channel(era), &texts]).await.map_err(failed)
            })
            .await?;
            tokio::time::sleep(HINT_EVERY).await;
        }
    };
    let ended: Result<std::convert::Infallible, Error> = told.await;
    match ended {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let late = |_| Error::Unavailable("PostgreSQL: no answer".to_owned());
    tokio::time::timeout(PATIENCE, work).await.map_err(late)?
}

/// Hears hints, and compares.
async fn hear_all(shared: &Shared, target: &Target) {
    loop {
        let failed = hear_on(shared, target).await;
        tracing::warn!(error = %failed, "other nodes not heard, trying again");
        // A token that another node revokes must not live on here for that.
        shared.tell(Commit { tenancy: true, ..Commit::default() });
        tokio::time::sleep(RETRY_WAIT).await;
    }
}

/// Hears on one connection for as long as it lasts.
async fn hear_on(shared: &Shared, target: &Target) -> Error {
    let heard = async {
        let (hints, mut arriving) = mpsc::channel(HEARD_MAX);
        let ears = in_time(Ears::open(shared, target, hints)).await?;
        let mut compare = tokio::time::interval(COMPARE_EVERY);
        compare.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // The first one at once: what happened before is found by it.
                _ = compare.tick() => in_time(ears.compare(shared)).await?,
                text = arriving.recv() => {
                    let ended = || Error::Unavailable("PostgreSQL: connection lost".to_owned());
                    let mut hint = Hint::default();
                    hint_text::read(shared.sender, &text.ok_or_else(ended)?, &mut hint);
                    while let Ok(text) = arriving.try_recv() {
                        hint_text::read(shared.sender, &text, &mut hint);
                    }
                    in_time(ears.hear(shared, hint)).await?;
                }
            }
        }
    };
    let ended: Result<std::convert::Infallible, Error> = heard.await;
    match ended {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

/// The connection that listens and reads.
struct Ears {
    client: ClientWrapper,
    /// Of the connection. What it says counts only while the node is in it.
    era: Uuid,
    heads: Statement,
    counts: Statement,
    events: Statement,
}

/// What a comparison finds in the tables.
struct Found {
    heads: HashMap<ServiceId, u64>,
    tenancy: u64,
    shards: BTreeMap<Shard, u64>,
}

impl Ears {
    async fn open(
        shared: &Shared,
        target: &Target,
        hints: mpsc::Sender<String>,
    ) -> Result<Self, Error> {
        let heard = move |message| {
            if let AsyncMessage::Notification(notification) = message {
                // One that finds no room is lost.
                drop(hints.try_send(notification.payload().to_owned()));
            }
        };
        let mut client = target.connect(heard).await?;
        let era = era::enter(&mut client, &shared.ownership, &shared.queue).await?;
        let failed = |error: tokio_postgres::Error| unavailable(&error);
        client.batch_execute(&format!("LISTEN {}", channel(era))).await.map_err(failed)?;
        let prepare = async |sql: &str| client.prepare(sql).await.map_err(failed);
        let heads = prepare(events::HEADS).await?;
        let counts =
            prepare("SELECT name, count FROM counts WHERE name = 'tenancy' OR name LIKE 'shard/%'")
                .await?;
        let events = prepare(&format!(
            "SELECT {} FROM events e WHERE e.service = $1 AND e.sequence > $2 AND e.sequence <= $3 \
             ORDER BY e.sequence",
            events::COLUMNS
        ))
        .await?;
        Ok(Self { client, era, heads, counts, events })
    }

    /// Tells this node what another one hinted at.
    async fn hear(&self, shared: &Shared, hint: Hint) -> Result<(), Error> {
        let incomplete = hint.incomplete;
        let grown = shared.ownership.within(self.era, || {
            let grown = shared.account_for(&hint);
            let mine =
                hint.subscriptions.iter().filter(|((_, app), _)| shared.owns(shard_of(*app)));
            let mine: Vec<_> = mine.map(|(key, again)| (*key, *again)).collect();
            shared.tell(Commit {
                subscriptions: mine.iter().map(|(key, _)| *key).collect(),
                again: mine.iter().filter(|(_, again)| *again).map(|(key, _)| *key).collect(),
                tenancy: hint.tenancy > 0,
                hidden: hint.hidden.into_iter().collect(),
                ..Commit::default()
            });
            grown
        })?;
        self.tell_grown(shared, grown).await?;
        if incomplete { self.compare(shared).await } else { Ok(()) }
    }

    /// Tells of logs that have grown, with their new events where these are few.
    async fn tell_grown(
        &self,
        shared: &Shared,
        grown: Vec<(ServiceId, Option<u64>, u64)>,
    ) -> Result<(), Error> {
        let mut total = 0;
        let mut reads = Vec::new();
        for (service, before, head) in &grown {
            // The first time that a log is heard of, nobody knows how much of it is new.
            let Some(before) = before else { continue };
            let new = head - before;
            total += new;
            if new <= READ_MAX && total <= READ_TOTAL_MAX {
                reads.push(self.read_events(*service, *before, *head));
            }
        }
        let read = try_join_all(reads).await;
        // Told in any case: these heads count as known from now on.
        let failed = read.as_ref().err().cloned();
        shared.ownership.within(self.era, || {
            shared.tell(Commit {
                events: read.unwrap_or_default().into_iter().flatten().collect(),
                heads: grown.into_iter().map(|(service, _, head)| (service, head)).collect(),
                ..Commit::default()
            });
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// All events after `before` up to `head`, or none when one of them is not there.
    async fn read_events(
        &self,
        service: ServiceId,
        before: u64,
        head: u64,
    ) -> Result<Vec<Arc<Event>>, Error> {
        let rows = self
            .client
            .query(&self.events, &[&service.uuid(), &int(before), &int(head)])
            .await
            .map_err(|error| unavailable(&error))?;
        if u64::try_from(rows.len()).ok() != Some(head - before) {
            return Ok(Vec::new());
        }
        rows.iter().map(|row| events::event_of(service, row).map(Arc::new)).collect()
    }

    /// Compares heads and counts with what is known, and tells what nobody has told.
    async fn compare(&self, shared: &Shared) -> Result<(), Error> {
        let (expected, services) = {
            let known = lock(&shared.known);
            let services: BTreeSet<ServiceId> = known.heads.keys().copied().collect();
            ((known.tenancy, known.shards.clone()), services)
        };
        let found = self.find().await?;
        let hidden = services.into_iter().filter(|service| !found.heads.contains_key(service));
        let mut hint = Hint { hidden: hidden.collect(), ..Hint::default() };
        hint.heads.extend(found.heads.iter().map(|(service, head)| (*service, *head)));
        let grown = shared.ownership.within(self.era, || {
            let grown = shared.account_for(&hint);
            let (tenancy, unaccounted) = lock(&shared.known).compare_counts(&found, &expected);
            let lost: Vec<Shard> =
                unaccounted.into_iter().filter(|shard| shared.owns(*shard)).collect();
            if !lost.is_empty() {
                tracing::info!(
                    shard.count = lost.len(),
                    "changes of subscriptions found by comparing"
                );
            }
            shared.tell(Commit {
                tenancy,
                hidden: hint.hidden.into_iter().collect(),
                // Lost and gained: built anew, and what is in flight does not count.
                gained: lost.clone(),
                lost,
                ..Commit::default()
            });
            grown
        })?;
        self.tell_grown(shared, grown).await
    }

    async fn find(&self) -> Result<Found, Error> {
        let heads = self.client.query(&self.heads, &[]);
        let counts = self.client.query(&self.counts, &[]);
        let (heads, counts) = try_join(heads, counts).await.map_err(|error| unavailable(&error))?;
        let mut found = Found { heads: HashMap::new(), tenancy: 0, shards: BTreeMap::new() };
        for row in &heads {
            found.heads.insert(ServiceId::from_uuid(column(row, 0)?), uint(row, 1)?);
        }
        for row in &counts {
            let name: &str = column(row, 0)?;
            let count = uint(row, 1)?;
            if name == "tenancy" {
                found.tenancy = count;
            } else if let Some(number) = name.strip_prefix("shard/")
                && let Some(shard) = number.parse().ok().and_then(Shard::from_number)
            {
                found.shards.insert(shard, count);
            }
        }
        Ok(found)
    }
}

impl Known {
    /// Takes over the counts that were found. `expected` is what was known before they were read: nothing that is told
    /// after the read explains a lower count. Gives whether tenancy changed without being told, and the shards of which the
    /// same is certain: a count that is only just higher may be told in a moment, so it must be so twice.
    fn compare_counts(
        &mut self,
        found: &Found,
        expected: &(u64, BTreeMap<Shard, u64>),
    ) -> (bool, Vec<Shard>) {
        if !std::mem::replace(&mut self.compared, true) {
            // Lanes are built from rows that are younger than this, and no token is remembered yet.
            self.tenancy = found.tenancy + self.tenancy - expected.0;
            for (shard, count) in &found.shards {
                let known = self.shards.entry(*shard).or_default();
                *known = *count + *known - expected.1.get(shard).copied().unwrap_or_default();
            }
            let again = std::mem::take(&mut self.again);
            return (false, if again { Shard::all().collect() } else { Vec::new() });
        }
        let tenancy = found.tenancy > self.tenancy;
        if tenancy || found.tenancy < expected.0 {
            self.tenancy = found.tenancy;
        }
        let mut certain = Vec::new();
        let doubted = std::mem::take(&mut self.doubted);
        for (shard, count) in &found.shards {
            let known = self.shards.entry(*shard).or_default();
            let before = expected.1.get(shard).copied().unwrap_or_default();
            if *count < before {
                *known = *count;
            } else if doubted.get(shard).is_some_and(|doubted| *doubted > *known) {
                *known = (*count).max(*known);
                certain.push(*shard);
            } else if *count > *known {
                self.doubted.insert(*shard, *count);
            }
        }
        (tenancy, certain)
    }
}

#[cfg(test)]
#[path = "hints_tests.rs"]
mod tests;
