//! Keeps this process a member of the nodes on one PostgreSQL: renews its lease, has its shards, takes over dead nodes.
//!
//! A thread with a connection of its own, so that neither a busy server nor a long group delays a renewal. What is to be
//! done `membership.rs` decides. Here it is carried out in an order that others can rely on: a shard counts as gained only
//! after the commit of its epoch, and as lost before anybody else can have it. Whoever sends for a shard hears of both
//! through the queue's listeners; the lease ends at the deadline, whether the database answers or not.

use std::fmt;
use std::future::pending;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use deadpool_postgres::ClientWrapper;
use futures_util::future::{BoxFuture, try_join4, try_join5};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use super::change::{column, int, uint};
use super::connect::Target;
use super::membership::{Dead, HEARTBEAT, Member, Picture};
use super::ownership::Ownership;
use super::unavailable;
use crate::domain::clock::Clock;
use crate::domain::lease::Lease;
use crate::domain::shard::{SHARDS, Shard};
use crate::store::queue::Queue;
use crate::store::{Commit, Error};

/// Longest wait for the database before it is asked again on another connection: half of the lease, so that there is time
/// for a second one.
const PATIENCE: Duration = Duration::from_secs(2);
/// Wait before it is asked again after it failed.
const RETRY_WAIT: Duration = Duration::from_millis(200);
/// Longest drain of a shard that is given away: a little more than an attempt may take by default. What is still in flight
/// then is aborted, and sent again by the next node.
const DRAIN_MAX: Duration = Duration::from_secs(20);
/// Longest time for giving everything away at a stop.
const LEAVE_MAX: Duration = Duration::from_secs(10);

/// Lets the lanes of shards come to rest. What it does at once must be done when it returns; the future ends when nothing
/// of them is in flight and everything recorded.
pub type Drain = Arc<dyn Fn(Vec<Shard>) -> BoxFuture<'static, ()> + Send + Sync>;

/// What the keeper needs.
pub(super) struct Settings {
    pub(super) target: Target,
    /// For people.
    pub(super) name: String,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) queue: Arc<Queue>,
    pub(super) ownership: Arc<Ownership>,
    pub(super) lease: Lease,
}

/// The running keeper. Dropped without [`Self::stop`] the node stops working at once, and others take it over like one
/// that was killed.
pub(super) struct Nodes {
    leave: CancellationToken,
    done: CancellationToken,
    drain: Arc<OnceLock<Drain>>,
    _kill: DropGuard,
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nodes")
    }
}

impl Nodes {
    /// Registers this process and claims its share of the shards that are free; returns when it was renewed for the first
    /// time.
    ///
    /// # Errors
    ///
    /// The database does not answer.
    pub(super) async fn start(settings: Settings) -> Result<Self, Error> {
        let (leave, kill) = (CancellationToken::new(), CancellationToken::new());
        let done = CancellationToken::new();
        let drain: Arc<OnceLock<Drain>> = Arc::default();
        let (started, registered) = oneshot::channel();
        let (drained, drains) = mpsc::channel(usize::from(SHARDS));
        let keeper = Keeper {
            target: settings.target,
            name: settings.name,
            member: Member::new(Uuid::now_v7()),
            registered: false,
            link: None,
            drain: Arc::clone(&drain),
            drained,
            drains,
            leave: leave.clone(),
            kill: kill.clone(),
            world: World {
                clock: settings.clock,
                queue: settings.queue,
                ownership: settings.ownership,
                lease: settings.lease,
            },
            _done: done.clone().drop_guard(),
        };
        std::thread::Builder::new()
            .name("nodes".to_owned())
            .spawn(move || {
                match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime.block_on(keeper.run(started)),
                    Err(error) => {
                        tracing::error!(error = %error, "the keeper of nodes cannot start")
                    }
                }
            })
            .map_err(|error| Error::Unavailable(format!("cannot start the keeper: {error}")))?;
        let ended = |_| Error::Unavailable("the keeper of nodes has ended".to_owned());
        registered.await.map_err(ended)??;
        Ok(Self { leave, done, drain, _kill: kill.drop_guard() })
    }

    /// What drains shards before they are given away; without it they are given away at once. Only the first one counts.
    pub(super) fn set_drain(&self, drain: Drain) {
        drop(self.drain.set(drain));
    }

    /// Whether the keeper lives. Without it the lease ends, and nothing is sent any more.
    pub(super) fn is_running(&self) -> bool {
        !self.done.is_cancelled()
    }

    /// Drains all shards, gives them away and leaves, within about [`LEAVE_MAX`].
    pub(super) async fn stop(&self) {
        self.leave.cancel();
        self.done.cancelled().await;
    }
}

/// What the keeper keeps true.
struct World {
    clock: Arc<dyn Clock>,
    queue: Arc<Queue>,
    ownership: Arc<Ownership>,
    lease: Lease,
}

impl World {
    fn gain(&self, shards: &[(Shard, u64)]) {
        if shards.is_empty() {
            return;
        }
        for (shard, epoch) in shards {
            self.ownership.gain(*shard, *epoch);
        }
        tracing::info!(shard.count = shards.len(), "shards gained");
        let gained = shards.iter().map(|(shard, _)| *shard).collect();
        self.queue.tell(&Commit { gained, ..Commit::default() });
    }

    fn lose(&self, lost: Vec<Shard>) {
        if lost.is_empty() {
            return;
        }
        for shard in &lost {
            self.ownership.lose(*shard);
        }
        tracing::info!(shard.count = lost.len(), "shards given up");
        self.queue.tell(&Commit { lost, ..Commit::default() });
    }

    /// How long until the deadline must be looked at; `None` when there is nothing to lose.
    fn until_lapse(&self, member: &Member) -> Option<Duration> {
        let now = self.clock.moment();
        let nothing = self.lease.is_over(now) && !member.owns_any();
        (!nothing).then(|| member.deadline().since(now))
    }

    /// Looks whether the deadline has passed. Lanes stop first: what the end of the lease breaks off is then no failure.
    fn lapse(&self, member: &mut Member) {
        let now = self.clock.moment();
        if now >= member.deadline() {
            let lost = member.lapse(now);
            tracing::warn!(
                shard.count = lost.len(),
                "lease over, the database did not answer in time"
            );
            self.lose(lost);
            self.lease.end();
        }
    }
}

impl Drop for World {
    /// However the keeper ends, nothing is sent afterwards.
    fn drop(&mut self) {
        self.lose(self.ownership.all().into_keys().collect());
        self.lease.end();
    }
}

struct Keeper {
    target: Target,
    name: String,
    member: Member,
    registered: bool,
    link: Option<Arc<Link>>,
    drain: Arc<OnceLock<Drain>>,
    drained: mpsc::Sender<(Shard, u64)>,
    drains: mpsc::Receiver<(Shard, u64)>,
    leave: CancellationToken,
    kill: CancellationToken,
    // In this order they are dropped: nothing is sent any more when the end is told.
    world: World,
    _done: DropGuard,
}

/// Waits for the database while the deadline is watched.
async fn watching<T>(world: &World, member: &mut Member, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    loop {
        let wait = world.until_lapse(member);
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = sleep_or_forever(wait) => world.lapse(member),
        }
    }
}

async fn sleep_or_forever(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => pending().await,
    }
}

/// An answer of the database, or the reason why there is none in time.
async fn in_time<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let late = |_| Error::Unavailable("PostgreSQL: no answer".to_owned());
    tokio::time::timeout(PATIENCE, work).await.map_err(late)?
}

impl Keeper {
    async fn run(mut self, started: oneshot::Sender<Result<(), Error>>) {
        let first = self.beat().await;
        let failed = first.is_err();
        if started.send(first.map(|_| ())).is_err() || failed {
            return;
        }
        let mut next = Instant::now() + HEARTBEAT;
        let mut leave_by = None;
        loop {
            let wait = self.world.until_lapse(&self.member);
            tokio::select! {
                () = self.kill.cancelled() => return,
                () = self.leave.cancelled(), if leave_by.is_none() => {
                    leave_by = Some(Instant::now() + LEAVE_MAX);
                    let drains = self.member.leave();
                    self.begin_drains(drains);
                }
                Some(first) = self.drains.recv() => self.give_away(first).await,
                () = sleep_or_forever(wait) => self.world.lapse(&mut self.member),
                () = tokio::time::sleep_until(next) => next = self.beat_or_retry().await,
            }
            if leave_by.is_some_and(|by| !self.member.owns_any() || Instant::now() >= by) {
                self.leave_now().await;
                return;
            }
        }
    }

    /// Renews, and says when to renew the next time.
    async fn beat_or_retry(&mut self) -> Instant {
        let began = Instant::now();
        match self.beat().await {
            Ok(again) => began + if again { Duration::ZERO } else { HEARTBEAT },
            Err(error) => {
                self.link = None;
                tracing::warn!(error = %error, "node not renewed, trying again");
                Instant::now() + RETRY_WAIT
            }
        }
    }

    /// Renews the lease and does what follows from what it sees. Gives whether to look again at once.
    async fn beat(&mut self) -> Result<bool, Error> {
        let link = self.link().await?;
        let node = self.member.node();
        let asked = self.world.clock.moment();
        let renewing = in_time(link.renew(node));
        let picture = watching(&self.world, &mut self.member, renewing).await?;
        let Some(picture) = picture else {
            tracing::warn!(node.id = %node, "another node took this one over, beginning anew");
            let lost = self.member.begin_anew(Uuid::now_v7());
            self.world.lose(lost);
            self.world.lease.end();
            self.registered = false;
            return Ok(true);
        };
        let answered = self.world.clock.moment();
        let orders = self.member.renewed(asked, answered, &picture);
        self.world.lose(orders.lost);
        match orders.deadline {
            Some(deadline) => self.world.lease.extend_to(deadline, answered),
            None => self.world.lease.end(),
        }
        self.world.gain(&orders.gained);
        self.begin_drains(orders.drain);
        for dead in &orders.dead {
            let taking = in_time(link.take_over(*dead));
            if watching(&self.world, &mut self.member, taking).await? {
                tracing::warn!(node.id = %dead.node, "dead node taken over");
            }
        }
        if orders.claim > 0 {
            let claiming = in_time(link.claim(node, orders.claim));
            let claims = watching(&self.world, &mut self.member, claiming).await?;
            let gained = self.member.claimed(&claims, self.world.clock.moment());
            self.world.gain(&gained);
        }
        Ok(!orders.dead.is_empty())
    }

    /// The connection, on which this node is registered.
    async fn link(&mut self) -> Result<Arc<Link>, Error> {
        let link = match self.link.take().filter(|link| !link.client.is_closed()) {
            Some(link) => link,
            None => {
                let opening = in_time(Link::open(&self.target));
                Arc::new(watching(&self.world, &mut self.member, opening).await?)
            }
        };
        if !self.registered {
            let registering = in_time(link.register(self.member.node(), &self.name));
            watching(&self.world, &mut self.member, registering).await?;
            self.registered = true;
            tracing::info!(node.id = %self.member.node(), "node registered");
        }
        self.link = Some(Arc::clone(&link));
        Ok(link)
    }

    fn begin_drains(&self, drains: Vec<(Shard, u64)>) {
        for (shard, drain) in drains {
            let work = self.drain.get().map(|drain| drain(vec![shard]));
            let drained = self.drained.clone();
            tokio::spawn(async move {
                if let Some(work) = work {
                    // What has not come to rest by then is aborted with the loss of the shard.
                    drop(tokio::time::timeout(DRAIN_MAX, work).await);
                }
                // The keeper has ended when nobody takes it.
                drop(drained.send((shard, drain)).await);
            });
        }
    }

    /// Gives away what has been drained. Nothing is its own any more before others can have it.
    async fn give_away(&mut self, first: (Shard, u64)) {
        let mut drained = vec![first];
        while let Ok(next) = self.drains.try_recv() {
            drained.push(next);
        }
        let given: Vec<(Shard, u64)> = drained
            .into_iter()
            .filter_map(|(shard, drain)| Some((shard, self.member.drained(shard, drain)?)))
            .collect();
        self.world.lose(given.iter().map(|(shard, _)| *shard).collect());
        // One that is not released is gained again with the next renewal.
        let Some(link) = self.link.clone().filter(|_| !given.is_empty()) else { return };
        let releasing = in_time(link.release(self.member.node(), &given));
        if let Err(error) = watching(&self.world, &mut self.member, releasing).await {
            tracing::warn!(error = %error, "shards not released");
            self.link = None;
        }
    }

    async fn leave_now(&mut self) {
        let node = self.member.node();
        let lost = self.member.begin_anew(node);
        self.world.lose(lost);
        self.world.lease.end();
        let left = async { self.link().await?.leave(node).await };
        match in_time(left).await {
            Ok(()) => tracing::info!(node.id = %node, "node has left"),
            // Others take it over like one that was killed.
            Err(error) => tracing::warn!(error = %error, "node left without saying so"),
        }
    }
}

/// The keeper's connection with its statements.
struct Link {
    client: ClientWrapper,
    statements: [Statement; STATEMENTS.len()],
}

/// In the order of [`Sql`].
const STATEMENTS: [&str; 9] = [
    "INSERT INTO nodes (node, name, version) VALUES ($1, $2, $3) ON CONFLICT (node) DO NOTHING",
    "UPDATE nodes SET renewals = renewals + 1, seen_at = now() WHERE node = $1 RETURNING renewals",
    "SELECT node, renewals FROM nodes",
    "SELECT shard, node, epoch FROM shards",
    "DELETE FROM nodes WHERE node = $1 AND renewals = coalesce($2, renewals)",
    // Everybody locks shards in the order of their numbers.
    "UPDATE shards SET node = NULL, epoch = epoch + 1 WHERE NOT EXISTS (SELECT 1 FROM nodes WHERE node = $1) \
     AND shard IN (SELECT shard FROM shards WHERE node = $1 ORDER BY shard FOR UPDATE)",
    "SELECT 1 FROM nodes WHERE node = $1 FOR SHARE",
    "UPDATE shards SET node = $1, epoch = epoch + 1 WHERE EXISTS (SELECT 1 FROM nodes WHERE node = $1) \
     AND shard IN (SELECT shard FROM shards WHERE node IS NULL ORDER BY shard LIMIT $2 FOR UPDATE SKIP LOCKED) \
     RETURNING shard, epoch",
    "UPDATE shards SET node = NULL, epoch = epoch + 1 WHERE node = $1 AND shard IN (SELECT s.shard FROM shards s \
     JOIN unnest($2::smallint[], $3::bigint[]) AS given (shard, epoch) ON given.shard = s.shard AND given.epoch = s.epoch \
     WHERE s.node = $1 ORDER BY s.shard FOR UPDATE OF s)",
];

#[derive(Clone, Copy)]
enum Sql {
    Register,
    Renew,
    ListNodes,
    ListShards,
    Remove,
    Free,
    LockNode,
    Claim,
    Release,
}

impl Link {
    async fn open(target: &Target) -> Result<Self, Error> {
        let client = target.connect(|_| ()).await?;
        let failed = |error: tokio_postgres::Error| unavailable(&error);
        // A renewal that a crash of the database takes back would let another node take over too early.
        client.batch_execute("SET synchronous_commit = on").await.map_err(failed)?;
        let mut statements = Vec::with_capacity(STATEMENTS.len());
        for sql in STATEMENTS {
            statements.push(client.prepare(sql).await.map_err(failed)?);
        }
        let statements = statements
            .try_into()
            .map_err(|_| Error::Internal("a statement of the keeper is missing".to_owned()))?;
        Ok(Self { client, statements })
    }

    async fn query(&self, sql: Sql, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        let statement = &self.statements[sql as usize];
        self.client.query(statement, params).await.map_err(|error| unavailable(&error))
    }

    async fn batch(&self, sql: &str) -> Result<(), Error> {
        self.client.batch_execute(sql).await.map_err(|error| unavailable(&error))
    }

    async fn register(&self, node: Uuid, name: &str) -> Result<(), Error> {
        let version = env!("CARGO_PKG_VERSION");
        self.query(Sql::Register, &[&node, &name, &version]).await.map(|_| ())
    }

    /// Counts the renewal up and looks around, in one transaction and one round trip; `None` when the row is gone. The row
    /// is locked before the shards are read: whoever takes this node over must have it too.
    async fn renew(&self, node: Uuid) -> Result<Option<Picture>, Error> {
        let (_, renewed, nodes, shards, _) = try_join5(
            self.batch("BEGIN"),
            self.query(Sql::Renew, &[&node]),
            self.query(Sql::ListNodes, &[]),
            self.query(Sql::ListShards, &[]),
            self.batch("COMMIT"),
        )
        .await?;
        if renewed.is_empty() {
            return Ok(None);
        }
        let mut picture = Picture::default();
        for row in &nodes {
            picture.nodes.insert(column(row, 0)?, uint(row, 1)?);
        }
        for row in &shards {
            let shard = shard_in(row)?;
            picture.shards.insert(shard, (column(row, 1)?, uint(row, 2)?));
        }
        Ok(Some(picture))
    }

    /// Removes a node and frees its shards, unless it was renewed meanwhile; gives whether it did.
    async fn take_over(&self, dead: Dead) -> Result<bool, Error> {
        // One without a row has no renewals to compare, and no row to come between.
        let renewals = dead.renewals.map_or(-1, int);
        self.remove(dead.node, Some(renewals)).await
    }

    async fn leave(&self, node: Uuid) -> Result<(), Error> {
        self.remove(node, None).await.map(|_| ())
    }

    /// In two statements: the second sees what the node had claimed until the first had its row.
    async fn remove(&self, node: Uuid, renewals: Option<i64>) -> Result<bool, Error> {
        let free = &self.statements[Sql::Free as usize];
        let free = async {
            self.client.execute(free, &[&node]).await.map_err(|error| unavailable(&error))
        };
        let (_, _, freed, _) = try_join4(
            self.batch("BEGIN"),
            self.query(Sql::Remove, &[&node, &renewals]),
            free,
            self.batch("COMMIT"),
        )
        .await?;
        Ok(freed > 0)
    }

    /// Claims free shards. The own row is locked first: a node that is being taken over gets nothing more.
    async fn claim(&self, node: Uuid, most: usize) -> Result<Vec<(Shard, u64)>, Error> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let (_, _, claims, _) = try_join4(
            self.batch("BEGIN"),
            self.query(Sql::LockNode, &[&node]),
            self.query(Sql::Claim, &[&node, &most]),
            self.batch("COMMIT"),
        )
        .await?;
        claims.iter().map(|row| Ok((shard_in(row)?, uint(row, 1)?))).collect()
    }

    async fn release(&self, node: Uuid, given: &[(Shard, u64)]) -> Result<(), Error> {
        let shards: Vec<i16> = given.iter().map(|(shard, _)| shard.number()).collect();
        let epochs: Vec<i64> = given.iter().map(|(_, epoch)| int(*epoch)).collect();
        self.query(Sql::Release, &[&node, &shards, &epochs]).await.map(|_| ())
    }
}

fn shard_in(row: &Row) -> Result<Shard, Error> {
    let number: i16 = column(row, 0)?;
    Shard::from_number(number).ok_or_else(|| Error::Internal(format!("there is a shard {number}")))
}

#[cfg(test)]
#[path = "nodes_tests.rs"]
mod tests;
