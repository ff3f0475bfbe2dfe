//! This process as a node: keeps its row and its lease, takes over from the dead, takes and hands over shards.
//!
//! All of it runs on a thread of its own with a connection of its own, so that a busy server does not delay a renewal.
//! Before the lease can be over it is ended, and with it everything that is sent under it (`delivery` holds the same
//! lease); a process that was stopped meanwhile finds it over by its clock. A shard is gained only after its epoch was
//! committed, and lost here before anybody else can have it. With an era of the database (`era.rs`) everything ends, and
//! nothing is claimed in the next one before the leases of this one are over.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::ClientWrapper;
use tokio::task::JoinSet;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::change::{column, uint};
use super::connect::Target;
use super::membership::{
    Dead, HEARTBEAT, LEASE, OBSERVATION, Observations, Seen, may_claim, to_claim, to_release,
};
use super::ownership::Ownership;
use super::{copying, era, unavailable};
use crate::domain::clock::{Clock, Moment};
use crate::domain::lease::Lease;
use crate::domain::shard::Shard;
use crate::store::queue::Queue;
use crate::store::{Commit, Error};

/// Wait before the database is tried again.
const RETRY_WAIT: Duration = Duration::from_millis(200);
/// Longest wait for the database within a heartbeat: so that the next one still comes before the lease is over.
const BEAT_WAIT: Duration = Duration::from_millis(1_500);
/// Longest handover of a shard: the longest attempt (15 s) and its record. Then its lanes are stopped where they are.
const HANDOVER_WAIT: Duration = Duration::from_secs(20);
/// Longest wait for the release of everything at the end.
const LEAVE_WAIT: Duration = Duration::from_secs(3);

/// Takes all shards from a node, in the order in which groups lock them.
const FREE_ALL: &str = "UPDATE shards SET node = NULL, epoch = epoch + 1 WHERE shard IN \
     (SELECT shard FROM shards WHERE node = $1 ORDER BY shard FOR UPDATE)";

/// Takes shards that are free, as far as they are as they were seen. A row that changed since the statement began is looked
/// at again, but only by its own columns: whoever took it meanwhile has changed its epoch, while the question whether its
/// node is there would be answered as before.
const CLAIM: &str = "UPDATE shards SET node = $1, epoch = epoch + 1 WHERE shard IN \
     (SELECT s.shard FROM shards s JOIN unnest($2::smallint[], $3::bigint[]) AS k (shard, epoch) \
     ON k.shard = s.shard AND k.epoch = s.epoch \
     WHERE NOT EXISTS (SELECT FROM nodes n WHERE n.node = s.node) \
     ORDER BY s.shard LIMIT $4 FOR UPDATE OF s SKIP LOCKED) \
     RETURNING shard, epoch";

/// Begins an epoch of shards that this node has, as far as they are as they were seen.
const RENEW_EPOCHS: &str = "UPDATE shards SET epoch = epoch + 1 WHERE shard IN \
     (SELECT s.shard FROM shards s JOIN unnest($2::smallint[], $3::bigint[]) AS k (shard, epoch) \
     ON k.shard = s.shard AND k.epoch = s.epoch \
     WHERE s.node = $1 ORDER BY s.shard FOR UPDATE OF s) \
     RETURNING shard, epoch";

/// Lets the lanes of these shards end what they have begun and starts nothing more; done when nothing is left.
pub type Drain = Arc<dyn Fn(Vec<Shard>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// With what a node is kept.
pub(super) struct Keeping {
    pub(super) target: Target,
    pub(super) name: String,
    pub(super) queue: Arc<Queue>,
    pub(super) clock: Arc<dyn Clock>,
    /// Its lease is kept, too.
    pub(super) ownership: Arc<Ownership>,
    /// A connection that keeps copies away; it ends once the keeper's own does that.
    pub(super) entered: Option<Client>,
    pub(super) drain: Drain,
}

/// The thread that keeps a node.
#[derive(Debug)]
pub(super) struct Keeper {
    thread: std::thread::JoinHandle<()>,
    stop: CancellationToken,
}

impl Keeper {
    /// Starts to keep this node; it has nothing until its first heartbeats.
    pub(super) fn start(keeping: Keeping) -> Result<Self, Error> {
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let failed = |error: std::io::Error| {
            Error::Unavailable(format!("cannot start the keeper of the node: {error}"))
        };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let thread = std::thread::Builder::new()
            .name("node-keeper".to_owned())
            .spawn(move || runtime.block_on(Node::new(keeping).keep(stopping)))
            .map_err(failed)?;
        Ok(Self { thread, stop })
    }

    /// Whether it still runs; without it the lease ends and nothing is sent.
    pub(super) fn is_running(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Releases everything and leaves. Nothing may be in flight any more. Blocks until that is done.
    pub(super) fn stop(self) {
        self.stop.cancel();
        if self.thread.join().is_err() {
            tracing::error!("keeper of the node panicked");
        }
    }
}

/// What a heartbeat found.
struct Beat {
    seen: Seen,
    /// The era that it was in.
    era: Uuid,
    /// Whether somebody knows that the leases of the one before are over.
    settled: bool,
    /// Whether the row of this node was there.
    alive: bool,
    asked: Moment,
    known: Moment,
}

struct Node {
    keeping: Keeping,
    link: Option<ClientWrapper>,
    /// The era of the connection, and since when it is known.
    era: Option<(Uuid, Moment)>,
    /// The id of this process, another one after each loss of its row.
    me: Uuid,
    registered: bool,
    observations: Observations,
    /// Shards that are being handed over.
    leaving: BTreeSet<Shard>,
    handovers: JoinSet<Shard>,
}

impl Node {
    fn new(keeping: Keeping) -> Self {
        Self {
            keeping,
            link: None,
            era: None,
            me: Uuid::now_v7(),
            registered: false,
            observations: Observations::default(),
            leaving: BTreeSet::new(),
            handovers: JoinSet::new(),
        }
    }

    fn now(&self) -> Moment {
        self.keeping.clock.moment()
    }

    fn lease(&self) -> &Lease {
        self.keeping.ownership.lease()
    }

    async fn keep(mut self, stop: CancellationToken) {
        let mut wait = Duration::ZERO;
        loop {
            let deadline = self.until_deadline();
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(wait.min(deadline)) => {}
                Some(done) = self.handovers.join_next() => {
                    if let Ok(shard) = done
                        && let Err(error) = self.release(&[shard]).await
                    {
                        tracing::debug!(error = %error, "shard not released, trying again");
                    }
                    continue;
                }
            }
            if self.lease().is_over(self.now()) {
                self.lose_all("lease over");
            }
            if self.keeping.ownership.is_outdated() {
                // Others know what the tables mean now. It takes part again once it is started as a newer program.
                self.lose_all("the database is of a newer program");
                drop(tokio::time::timeout(BEAT_WAIT, self.leave()).await);
                self.link = None;
                self.begin_anew();
                wait = HEARTBEAT;
                continue;
            }
            wait = match self.beat().await {
                // At once when something changed: the next one may be due.
                Ok(true) => Duration::ZERO,
                Ok(false) => self.until_claims().min(HEARTBEAT),
                Err(error) => {
                    tracing::debug!(error = %error, "heartbeat failed, trying again");
                    self.link = None;
                    RETRY_WAIT
                }
            };
        }
        let shards: Vec<Shard> = self.keeping.ownership.all().into_keys().collect();
        self.end_all(&shards);
        drop(tokio::time::timeout(LEAVE_WAIT, self.leave()).await);
    }

    fn until_deadline(&self) -> Duration {
        if self.keeping.ownership.all().is_empty() {
            return Duration::MAX;
        }
        self.lease().deadline().since(self.now())
    }

    /// Until this node may claim shards in an era that it came to know not long ago.
    fn until_claims(&self) -> Duration {
        let Some((_, since)) = self.era else { return Duration::MAX };
        match since.plus(OBSERVATION).since(self.now()) {
            Duration::ZERO => Duration::MAX,
            left => left,
        }
    }

    /// One heartbeat with all that follows from it; whether shards changed hands.
    async fn beat(&mut self) -> Result<bool, Error> {
        // Not beyond the deadline: at it everything must be stopped, whatever the database does.
        let patience = BEAT_WAIT.min(self.until_deadline().max(RETRY_WAIT));
        let beat = tokio::time::timeout(patience, self.ask()).await;
        let beat = beat.map_err(|_| Error::Unavailable("PostgreSQL: no answer".to_owned()))??;
        if !beat.alive {
            // Others saw no renewal for a whole lease, and have taken everything.
            self.lose_all("taken over by another node");
            self.begin_anew();
            return Ok(true);
        }
        if self.lease().is_over(self.now()) {
            self.lose_all("lease over");
        }
        let (ownership, now) = (&self.keeping.ownership, self.now());
        ownership.within(beat.era, || ownership.lease().extend_to(beat.asked.plus(LEASE), now))?;
        if self.lease().is_over(self.now()) {
            return Ok(true);
        }
        let back = self.follow(&beat.seen);
        let dead = self.observations.observe(self.me, &beat.seen, beat.asked, beat.known);
        let mut changed = !dead.is_empty() || !back.is_empty();
        let acted = tokio::time::timeout(BEAT_WAIT, async {
            for dead in dead {
                self.bury(dead).await?;
            }
            if !back.is_empty() {
                self.take_back(&back).await?;
            }
            let claim = to_claim(self.me, &beat.seen);
            let since = self.era.map_or(beat.known, |(_, since)| since);
            if claim > 0 && may_claim(beat.settled, since, beat.asked) {
                changed |= self.claim(&beat.seen.free(), claim, beat.settled).await?;
            }
            Ok::<(), Error>(())
        });
        acted.await.map_err(|_| Error::Unavailable("PostgreSQL: no answer".to_owned()))??;
        let surplus = to_release(self.me, &beat.seen, &self.leaving);
        for shard in surplus {
            self.hand_over(shard);
        }
        Ok(changed)
    }

    /// Renews, and asks who is there and who has what, in one round trip.
    async fn ask(&mut self) -> Result<Beat, Error> {
        let failed = |error: tokio_postgres::Error| unavailable(&error);
        if self.link.as_ref().is_none_or(|link| link.is_closed()) {
            let mut link = self.keeping.target.connect(|_| ()).await?;
            // A renewal that a crash of the database takes back would let others take over too early.
            link.batch_execute("SET synchronous_commit = on").await.map_err(failed)?;
            copying::enter(&link).await?;
            let Keeping { ownership, queue, .. } = &self.keeping;
            let era = era::enter(&mut link, ownership, queue).await?;
            self.note_era(era);
            self.keeping.entered = None;
            self.link = Some(link);
        }
        let Some(link) = &self.link else {
            return Err(Error::Unavailable("no connection".to_owned()));
        };
        if !self.registered {
            let sql = "INSERT INTO nodes (node, name, version) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
            let version = env!("CARGO_PKG_VERSION");
            link.execute(sql, &[&self.me, &self.keeping.name, &version]).await.map_err(failed)?;
            self.registered = true;
        }
        let renew = "UPDATE nodes SET renewals = renewals + 1, seen_at = now() WHERE node = $1";
        let renew = link.prepare_cached(renew).await.map_err(failed)?;
        let nodes = "SELECT node, renewals FROM nodes";
        let nodes = link.prepare_cached(nodes).await.map_err(failed)?;
        let shards = "SELECT shard, node, epoch FROM shards";
        let shards = link.prepare_cached(shards).await.map_err(failed)?;
        let era = link.prepare_cached(era::FIND).await.map_err(failed)?;
        // Before it is sent: whoever sees this renewal sees it later.
        let asked = self.now();
        let me: [&(dyn ToSql + Sync); 1] = [&self.me];
        let (renewed, nodes, shards, era) = futures_util::try_join!(
            link.execute(&renew, &me),
            link.query(&nodes, &[]),
            link.query(&shards, &[]),
            link.query_one(&era, &[]),
        )
        .map_err(failed)?;
        let known = self.now();
        let mut seen = Seen::default();
        for row in &nodes {
            seen.nodes.insert(column(row, 0)?, column(row, 1)?);
        }
        for row in &shards {
            if let Some(shard) = Shard::from_number(column(row, 0)?) {
                seen.shards.insert(shard, (column(row, 1)?, uint(row, 2)?));
            }
        }
        let (era, settled) = (column(&era, 0)?, column(&era, 1)?);
        Ok(Beat { seen, era, settled, alive: renewed == 1, asked, known })
    }

    /// The connection is in this era. In another one than before nothing holds that was seen, asked for or begun.
    fn note_era(&mut self, era: Uuid) {
        match self.era {
            Some((before, _)) if before == era => return,
            Some(_) => self.begin_anew(),
            None => {}
        }
        self.era = Some((era, self.now()));
    }

    /// As another process would.
    fn begin_anew(&mut self) {
        self.me = Uuid::now_v7();
        self.registered = false;
        self.observations = Observations::default();
        self.handovers.abort_all();
        self.leaving.clear();
    }

    /// Gives up what the table says this node has no more. Gives what it says this node has without believing so, with
    /// the epochs.
    fn follow(&mut self, seen: &Seen) -> BTreeMap<Shard, u64> {
        let held = seen.shards_of(self.me);
        let believed = self.keeping.ownership.all();
        let gone =
            |(shard, epoch): (&Shard, &u64)| (held.get(shard) != Some(epoch)).then_some(*shard);
        let lost: Vec<Shard> = believed.iter().filter_map(gone).collect();
        self.lose(&lost);
        let back = |(shard, epoch): &(Shard, u64)| {
            believed.get(shard) != Some(epoch) && !self.leaving.contains(shard)
        };
        held.into_iter().filter(back).collect()
    }

    fn gain(&self, shards: &BTreeMap<Shard, u64>) -> Result<(), Error> {
        let Some((era, _)) = self.era.filter(|_| !shards.is_empty()) else { return Ok(()) };
        self.keeping.ownership.within(era, || {
            for (shard, epoch) in shards {
                self.keeping.ownership.gain(*shard, *epoch);
            }
            tracing::info!(shards = shards.len(), "shards gained");
            let gained = shards.keys().copied().collect();
            self.keeping.queue.tell(&Commit { gained, ..Commit::default() });
        })
    }

    fn lose(&self, shards: &[Shard]) {
        if shards.is_empty() {
            return;
        }
        for shard in shards {
            self.keeping.ownership.lose(*shard);
        }
        self.keeping.queue.tell(&Commit { lost: shards.to_vec(), ..Commit::default() });
    }

    /// Ends the lease and everything under it.
    fn lose_all(&mut self, why: &'static str) {
        let shards: Vec<Shard> = self.keeping.ownership.all().into_keys().collect();
        if !shards.is_empty() {
            tracing::warn!(shards = shards.len(), why, "shards lost");
        }
        self.end_all(&shards);
    }

    fn end_all(&mut self, shards: &[Shard]) {
        self.lease().end();
        self.lose(shards);
        self.handovers.abort_all();
        self.leaving.clear();
    }

    /// Takes everything from a node that has not renewed for a whole lease, unless it has now.
    async fn bury(&mut self, dead: Dead) -> Result<(), Error> {
        let failed = |error: tokio_postgres::Error| unavailable(&error);
        let Some(link) = &mut self.link else { return Ok(()) };
        let tx = link.transaction().await.map_err(failed)?;
        let found = tx
            .query_opt(
                "SELECT name FROM nodes WHERE node = $1 AND renewals = $2 FOR UPDATE",
                &[&dead.node, &dead.renewals],
            )
            .await
            .map_err(failed)?;
        let Some(row) = found else { return tx.rollback().await.map_err(failed) };
        let shards = tx.execute(FREE_ALL, &[&dead.node]).await.map_err(failed)?;
        tx.execute("DELETE FROM nodes WHERE node = $1", &[&dead.node]).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        let name: String = column(&row, 0)?;
        tracing::warn!(node = name, shards, "node has not renewed its lease, its shards are free");
        Ok(())
    }

    /// Takes so many free shards, if they still are. By now every lease of the era before is over.
    async fn claim(
        &mut self,
        free: &BTreeMap<Shard, u64>,
        count: usize,
        settled: bool,
    ) -> Result<bool, Error> {
        let failed = |error: tokio_postgres::Error| unavailable(&error);
        let Some(link) = &mut self.link else { return Ok(false) };
        let tx = link.transaction().await.map_err(failed)?;
        if !settled {
            tx.execute(era::SETTLE, &[]).await.map_err(failed)?;
        }
        // Who buries this node waits for this transaction, and then takes what it claimed too.
        let alive = tx
            .query_opt("SELECT 1 FROM nodes WHERE node = $1 FOR SHARE", &[&self.me])
            .await
            .map_err(failed)?;
        if alive.is_none() {
            return tx.rollback().await.map(|()| true).map_err(failed);
        }
        let limit = i64::try_from(count).unwrap_or(i64::MAX);
        let (shards, epochs) = arrays(free);
        let params: [&(dyn ToSql + Sync); 4] = [&self.me, &shards, &epochs, &limit];
        let rows = tx.query(CLAIM, &params).await.map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        self.gain_rows(&rows)
    }

    /// Has shards again that it believed to have no more: after a lease that was over, a claim whose answer did not come,
    /// a release that failed. Only under a new epoch: what was recorded, or asked for, under the one before may still be
    /// under way, and waits for the same rows.
    async fn take_back(&mut self, shards: &BTreeMap<Shard, u64>) -> Result<(), Error> {
        let Some(link) = &mut self.link else { return Ok(()) };
        let (shards, epochs) = arrays(shards);
        let params: [&(dyn ToSql + Sync); 3] = [&self.me, &shards, &epochs];
        let rows = link.query(RENEW_EPOCHS, &params).await.map_err(|error| unavailable(&error))?;
        self.gain_rows(&rows).map(drop)
    }

    /// Has the shards in these rows, which are committed; whether there are any.
    fn gain_rows(&self, rows: &[Row]) -> Result<bool, Error> {
        let mut gained = BTreeMap::new();
        for row in rows {
            if let Some(shard) = Shard::from_number(column(row, 0)?) {
                gained.insert(shard, uint(row, 1)?);
            }
        }
        // A lease that ended meanwhile ended these too; the next heartbeat finds them in the table.
        if self.lease().is_over(self.now()) {
            return Ok(true);
        }
        self.gain(&gained)?;
        Ok(!gained.is_empty())
    }

    /// Begins to hand a shard over: its lanes end what they have begun.
    fn hand_over(&mut self, shard: Shard) {
        self.leaving.insert(shard);
        let drained = (self.keeping.drain)(vec![shard]);
        self.handovers.spawn(async move {
            drop(tokio::time::timeout(HANDOVER_WAIT, drained).await);
            shard
        });
    }

    /// Gives shards back, after this node has them no more.
    async fn release(&mut self, shards: &[Shard]) -> Result<(), Error> {
        let owned = self.keeping.ownership.all();
        self.lose(shards);
        for shard in shards {
            self.leaving.remove(shard);
        }
        let Some(link) = &self.link else { return Ok(()) };
        for shard in shards {
            let Some(epoch) = owned.get(shard) else { continue };
            let (number, epoch) = (shard.number(), super::change::int(*epoch));
            let params: [&(dyn ToSql + Sync); 3] = [&number, &self.me, &epoch];
            let released = link.execute(
                "UPDATE shards SET node = NULL, epoch = epoch + 1 WHERE shard = $1 AND node = $2 AND epoch = $3",
                &params,
            );
            tokio::time::timeout(BEAT_WAIT, released)
                .await
                .map_err(|_| Error::Unavailable("PostgreSQL: no answer".to_owned()))?
                .map_err(|error| unavailable(&error))?;
        }
        Ok(())
    }

    /// Gives everything back and goes.
    async fn leave(&mut self) {
        let Some(link) = &mut self.link else { return };
        let left = async {
            let tx = link.transaction().await?;
            tx.execute(FREE_ALL, &[&self.me]).await?;
            tx.execute("DELETE FROM nodes WHERE node = $1", &[&self.me]).await?;
            tx.commit().await
        };
        if let Err(error) = left.await {
            tracing::warn!(
                error = super::why(&error),
                "node not signed off, others wait for its lease"
            );
        }
        copying::leave_shared(link).await;
    }
}

/// Shards and epochs as two arrays.
fn arrays(shards: &BTreeMap<Shard, u64>) -> (Vec<i16>, Vec<i64>) {
    shards.iter().map(|(shard, epoch)| (shard.number(), super::change::int(*epoch))).unzip()
}

#[cfg(test)]
#[path = "nodes_tests.rs"]
mod tests;
