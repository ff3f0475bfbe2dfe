//! The one thread of a node that writes: takes a group, runs it as a transaction on its own connection, answers everyone.
//!
//! Each transaction inserts an id of its own first. When the connection is lost during a commit nobody knows what became
//! of it: the group is made again with the same id, and finds the id if the first one happened; an id that is still under
//! way is waited for by the database itself. A commit is never cancelled. A warning during a commit, which is how
//! PostgreSQL says that it did not wait for its standby, counts as unknown too: the repetition then commits once more, and
//! that commit waits for everything before it.
//!
//! What can be made again is made again for [`PATIENCE`]; then everyone in the group is told that the outcome is unknown.
//! It may still be under way on the server. Once it is settled, what is held in memory is read anew.
//!
//! In another era of the database (`era.rs`) nothing of before is under way, and what is recorded names epochs that are
//! over. What was committed in an era is told only while this node is in it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use deadpool_postgres::ClientWrapper;
use tokio_postgres::AsyncMessage;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::change::{Change, Stop, count_changes};
use super::connect::Target;
use super::group::{self, Setting, Work};
use super::numbers::{Numbers, Remembered};
use super::ownership::Ownership;
use super::reader::Broken;
use super::statements::Statements;
use super::writes::Writes;
use super::{audit, commands, copying, era, tenancy, why};
use crate::domain::clock::{Clock, Moment};
use crate::domain::id::{IdMaker, ServiceId};
use crate::domain::tenancy::TokenHash;
use crate::store::audit_rows::Audit;
use crate::store::command::{Command, Reply};
use crate::store::keyring::Keyring;
use crate::store::queue::{Group, Queue, Taken, Waiting, WaitingRecord};
use crate::store::{Commit, Error};

/// Wait for work before the connection is looked at.
const IDLE_WAIT: Duration = Duration::from_secs(1);
/// How long a group is made again, from the first failure of the database on. Longer makes callers wait for a database
/// that is away, shorter answers 503 while one is restarted or changes hands.
const PATIENCE: Duration = Duration::from_secs(10);
/// Wait between two tries.
const RETRY_WAIT: Duration = Duration::from_millis(20);
/// While the database stays away: wait between two tries, and how long groups are refused at once in between.
const AWAY_WAIT: Duration = Duration::from_millis(200);
/// How long the end of a group in doubt is waited for at a time, on the server. Until then its locks keep what it touches.
const SETTLE_LOCK_MILLIS: u32 = 200;
/// Time between two such waits: they hold up every group.
const SETTLE_EVERY: Duration = Duration::from_secs(2);
/// Longest wait for the first half of a group. Locks are waited for at most 5 s by the server; beyond this the way to it
/// is cut in silence.
const READ_WAIT: Duration = Duration::from_secs(12);
/// Longest wait for a commit before its outcome counts as unknown. It is not cancelled.
const COMMIT_WAIT: Duration = Duration::from_secs(15);

/// What holds if a transaction is committed.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) commit: Commit,
    /// One for each record, in order.
    pub(super) recorded: Vec<Result<(), Error>>,
    /// One for each command, in order.
    pub(super) replies: Vec<Result<Reply, Error>>,
    /// To be remembered, if it is committed.
    pub(super) numbers: Vec<(ServiceId, Numbers)>,
}

/// Why a transaction did not come to its end.
#[derive(Debug)]
pub(super) enum Failure {
    /// Its id is there: an earlier try has happened.
    HappenedBefore,
    /// It did not happen, and the connection is good: a deadlock, a lock that was not had in time.
    Again(String),
    /// It did not happen, and the connection is gone.
    Lost(String),
    /// Nobody knows whether it happened.
    Unknown(String),
    /// It did not happen, and would not the next time either.
    Broken(Error),
}

impl Failure {
    /// A statement failed, and no commit was sent behind it.
    #[expect(clippy::needless_pass_by_value, reason = "what map_err hands over")]
    pub(super) fn before_commit(error: tokio_postgres::Error) -> Self {
        let Some(code) = error.code() else { return Self::Lost(why(&error)) };
        let again = [
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::LOCK_NOT_AVAILABLE,
        ];
        if again.contains(code) {
            return Self::Again(why(&error));
        }
        // A plan or a statement of a table that is not as it was: another connection prepares anew.
        let outdated = [SqlState::FEATURE_NOT_SUPPORTED, SqlState::INVALID_SQL_STATEMENT_NAME];
        if outdated.contains(code) {
            return Self::Lost(why(&error));
        }
        // Connection, resources, operator's intervention, read-only after a failover, internal: another connection may do.
        if ["08", "53", "57", "25", "58", "XX"].iter().any(|class| code.code().starts_with(class)) {
            return Self::Lost(why(&error));
        }
        Self::Broken(Error::Unavailable(why(&error)))
    }

    /// A statement failed that a commit was sent behind. An answer of the server means that the commit was a rollback.
    pub(super) fn with_commit_behind(error: tokio_postgres::Error) -> Self {
        if error.as_db_error().is_some() {
            Self::before_commit(error)
        } else {
            Self::Unknown(why(&error))
        }
    }

    /// The commit itself failed.
    pub(super) fn in_commit(error: tokio_postgres::Error) -> Self {
        // A conflict that shows only now is a rollback. Whatever else comes back may follow a commit that happened here.
        let conflict = error
            .code()
            .is_some_and(|code| ["40", "23"].iter().any(|it| code.code().starts_with(it)));
        if conflict { Self::before_commit(error) } else { Self::Unknown(why(&error)) }
    }
}

/// A connection that is ready for groups.
struct Link {
    client: ClientWrapper,
    statements: Statements,
    /// Whether the server warned since this was last cleared.
    warned: Arc<AtomicBool>,
    era: Uuid,
}

impl Link {
    async fn open(target: &Target, ownership: &Ownership, queue: &Queue) -> Result<Self, Failure> {
        let warned = Arc::new(AtomicBool::new(false));
        let hearing = Arc::clone(&warned);
        let heard = move |message| {
            if let AsyncMessage::Notice(notice) = message {
                tracing::warn!(
                    code = notice.code().code(),
                    notice = notice.message(),
                    "PostgreSQL warns the writer"
                );
                hearing.store(true, Ordering::SeqCst);
            }
        };
        let lost = |error: Error| Failure::Lost(error.to_string());
        let mut client = target.connect(heard).await.map_err(lost)?;
        copying::enter(&client).await.map_err(lost)?;
        let era = era::enter(&mut client, ownership, queue).await.map_err(lost)?;
        let statements = Statements::prepare(&client).await.map_err(Failure::before_commit)?;
        Ok(Self { client, statements, warned, era })
    }

    /// Commits a transaction of statements that were sent one by one.
    async fn commit(&self) -> Result<(), Failure> {
        let unlimited = self.client.batch_execute("SET LOCAL statement_timeout = 0");
        unlimited.await.map_err(Failure::before_commit)?;
        self.client.batch_execute("COMMIT").await.map_err(Failure::in_commit)
    }
}

/// What one transaction is to do.
enum Job<'a> {
    Group(Work<'a>),
    Rare(&'a Waiting),
    TokenUses(Vec<TokenHash>),
}

/// How a transaction ended that could not be made.
enum End {
    /// It did not happen, and would not the next time.
    Broken(Error),
    /// The database stayed away: the outcome is unknown.
    Unavailable(Error),
}

/// The writer of one node.
pub(super) struct Writer {
    pub(super) target: Target,
    pub(super) queue: Arc<Queue>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) keys: Keyring,
    pub(super) ownership: Arc<Ownership>,
    pub(super) broken: Broken,
    ids: IdMaker,
    remembered: Remembered,
    link: Option<Link>,
    /// Since when nothing has succeeded.
    failing_since: Option<Moment>,
    /// When the last try failed.
    failed_at: Moment,
    /// Groups that ended without anybody knowing whether they happened: everything is to be read anew, and before that they
    /// are to be settled.
    in_doubt: Vec<Uuid>,
    /// When that may be tried again.
    settle_at: Moment,
    /// The era of the last connection.
    era: Option<Uuid>,
}

impl Writer {
    pub(super) fn new(
        target: Target,
        queue: Arc<Queue>,
        clock: Arc<dyn Clock>,
        keys: Keyring,
        ownership: Arc<Ownership>,
        broken: Broken,
    ) -> Self {
        let failed_at = clock.moment();
        Self {
            target,
            queue,
            clock,
            keys,
            ownership,
            broken,
            ids: IdMaker::new(),
            remembered: Remembered::default(),
            link: None,
            failing_since: None,
            failed_at,
            in_doubt: Vec::new(),
            settle_at: failed_at,
            era: None,
        }
    }

    /// Works until the queue is closed and empty.
    pub(super) fn run(mut self) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(error = %error, "the store's writer cannot start");
                return;
            }
        };
        let queue = Arc::clone(&self.queue);
        loop {
            let patience = if self.failing_since.is_some() { AWAY_WAIT } else { IDLE_WAIT };
            match queue.take_group(patience) {
                Taken::Group(group) => runtime.block_on(self.run_group(group)),
                Taken::Idle => runtime.block_on(self.idle()),
                Taken::Closed => break,
            }
        }
        if let Some(link) = &self.link {
            // At once: a copy that follows the stop would be refused for a session that is just ending.
            let leaving = copying::leave_shared(&link.client);
            drop(runtime.block_on(async { tokio::time::timeout(READ_WAIT, leaving).await }));
        }
    }

    /// One transaction for records and changes of the roll, then one for each other command.
    async fn run_group(&mut self, group: Group) {
        let mut changes = Vec::with_capacity(group.commands.len());
        let mut rare = Vec::new();
        let mut uses = Vec::new();
        for waiting in group.commands {
            match waiting.command {
                Command::ChangeContact { .. } | Command::ChangeContacts { .. } => {
                    changes.push(waiting);
                }
                Command::NoteTokenUse(token) => {
                    uses.push(token);
                    waiting.caller.answer(Ok(Reply::Done));
                }
                _ => rare.push(waiting),
            }
        }
        if !uses.is_empty() {
            uses.sort_unstable();
            uses.dedup();
            // Nobody waits for it, and the next use tells again.
            drop(self.work(&Job::TokenUses(uses)).await);
        }
        let records = group.records;
        if !records.is_empty() || !changes.is_empty() {
            self.run_together(records, changes).await;
        }
        for waiting in rare {
            let done = self.work(&Job::Rare(&waiting)).await;
            self.answer(Vec::new(), vec![waiting], done);
        }
    }

    /// Runs records and changes as one transaction. When the database will not take something of it, now or later, each
    /// is run alone, so that nobody fails for what a neighbour brought.
    async fn run_together(&mut self, records: Vec<WaitingRecord>, changes: Vec<Waiting>) {
        let done = self.work(&Job::Group(Work { records: &records, changes: &changes })).await;
        let alone = records.len() + changes.len() == 1;
        if alone || !matches!(done, Err(End::Broken(_))) {
            self.answer(records, changes, done);
            return;
        }
        for record in records {
            let records = vec![record];
            let done = self.work(&Job::Group(Work { records: &records, changes: &[] })).await;
            self.answer(records, Vec::new(), done);
        }
        for change in changes {
            let changes = vec![change];
            let done = self.work(&Job::Group(Work { records: &[], changes: &changes })).await;
            self.answer(Vec::new(), changes, done);
        }
    }

    fn answer(
        &self,
        records: Vec<WaitingRecord>,
        commands: Vec<Waiting>,
        done: Result<Outcome, End>,
    ) {
        let told = done.and_then(|outcome| {
            // In another era that would be of something else, or of nothing.
            let era = self.era.unwrap_or_default();
            let told = self.ownership.within(era, || self.queue.tell(&outcome.commit));
            told.map(|()| outcome).map_err(End::Unavailable)
        });
        match told {
            Ok(outcome) => {
                for (waiting, result) in records.into_iter().zip(outcome.recorded) {
                    (waiting.listener)(result);
                }
                for (waiting, result) in commands.into_iter().zip(outcome.replies) {
                    waiting.caller.answer(result);
                }
            }
            Err(End::Broken(error) | End::Unavailable(error)) => {
                Group { records, commands }.fail(&error);
            }
        }
    }

    /// Makes a transaction again until it is known what became of it, or patience ends.
    async fn work(&mut self, job: &Job<'_>) -> Result<Outcome, End> {
        let group = Uuid::now_v7();
        // What holds if the last try whose end is unknown has happened.
        let mut doubtful = None;
        loop {
            let now = self.clock.moment();
            let failure = match self.attempt(job, group, &mut doubtful).await {
                Ok(mut outcome) => {
                    for (service, numbers) in outcome.numbers.drain(..) {
                        self.remembered.put(service, numbers);
                    }
                    self.recovered().await;
                    return Ok(outcome);
                }
                Err(failure) => failure,
            };
            let text = match failure {
                Failure::Broken(error) => {
                    self.roll_back().await;
                    tracing::error!(error = %error, "transaction failed");
                    if doubtful.is_some() {
                        // An earlier try may have happened: what was in it must not be run again under another id.
                        self.in_doubt.push(group);
                        return Err(End::Unavailable(error));
                    }
                    return Err(End::Broken(error));
                }
                Failure::HappenedBefore => "the id of the group is taken".to_owned(),
                Failure::Again(text) => {
                    self.roll_back().await;
                    text
                }
                Failure::Lost(text) | Failure::Unknown(text) => {
                    self.link = None;
                    text
                }
            };
            self.failed_at = self.clock.moment();
            let since = *self.failing_since.get_or_insert(now);
            if self.failed_at.since(since) >= PATIENCE {
                if set_broken(&self.broken, Some(text.clone())) {
                    tracing::error!(error = text, "store failed in a group");
                }
                if doubtful.is_some() {
                    self.in_doubt.push(group);
                }
                return Err(End::Unavailable(Error::Unavailable(text)));
            }
            tracing::debug!(error = text, "transaction failed, making it again");
            tokio::time::sleep(RETRY_WAIT).await;
        }
    }

    /// Runs a transaction once. `doubtful` is kept when its end is unknown.
    async fn attempt(
        &mut self,
        job: &Job<'_>,
        group: Uuid,
        doubtful: &mut Option<Outcome>,
    ) -> Result<Outcome, Failure> {
        self.connect().await?;
        let Some(link) = &self.link else {
            return Err(Failure::Lost("no connection".to_owned()));
        };
        let now = self.clock.now();
        let setting = Setting {
            client: &link.client,
            statements: &link.statements,
            ownership: &self.ownership,
            ids: &self.ids,
            now,
        };
        let prepared = tokio::time::timeout(
            READ_WAIT,
            prepare(setting, &mut self.remembered, &self.keys, group, job),
        )
        .await
        .map_err(|_| Failure::Lost("PostgreSQL: no answer".to_owned()))?;
        // Only what comes with the commit says something of it. Of other things the server may warn in every group.
        link.warned.store(false, Ordering::SeqCst);
        let outcome = match prepared {
            Ok(Prepared { outcome, writes: None }) => {
                link.client.batch_execute("ROLLBACK").await.map_err(Failure::before_commit)?;
                return Ok(outcome);
            }
            Ok(Prepared { outcome, writes: Some(writes) }) => {
                // From here on the server may commit, whatever this side hears of it.
                let outcome = doubtful.insert(outcome);
                tracing::trace!(events = outcome.commit.events.len(), "committing");
                let committing = writes.send_and_commit(&link.client, &link.statements);
                settled(tokio::time::timeout(COMMIT_WAIT, committing).await, doubtful)?
            }
            Err(Failure::HappenedBefore) if doubtful.is_some() => {
                // The row is written, so that this commit too waits for the standby, and with it for the first one.
                let seen = link
                    .client
                    .execute("UPDATE groups SET at = at WHERE id = $1", &[&group])
                    .await
                    .map_err(Failure::before_commit)?;
                if seen != 1 {
                    return Err(Failure::Again("the group is being removed".to_owned()));
                }
                link.warned.store(false, Ordering::SeqCst);
                let committed = tokio::time::timeout(COMMIT_WAIT, link.commit()).await;
                match committed {
                    Ok(Ok(())) => doubtful.take().unwrap_or_default(),
                    Ok(Err(failure)) => return Err(failure),
                    Err(_) => return Err(Failure::Unknown("PostgreSQL: no answer".to_owned())),
                }
            }
            Err(failure) => return Err(failure),
        };
        if link.warned.load(Ordering::SeqCst) {
            *doubtful = Some(outcome);
            return Err(Failure::Unknown("PostgreSQL warned during a commit".to_owned()));
        }
        Ok(outcome)
    }

    /// Makes a connection, unless there is one in the era of this node.
    async fn connect(&mut self) -> Result<(), Failure> {
        let here = self.ownership.era();
        if self.link.as_ref().is_some_and(|it| !it.client.is_closed() && Some(it.era) == here) {
            return Ok(());
        }
        self.link = None;
        self.remembered.forget();
        let link = Link::open(&self.target, &self.ownership, &self.queue).await?;
        if self.era.replace(link.era) != Some(link.era) {
            // Whatever was in doubt is not under way any more, and everything was read anew.
            self.in_doubt.clear();
        }
        self.link = Some(link);
        Ok(())
    }

    async fn roll_back(&mut self) {
        if let Some(link) = &self.link
            && link.client.batch_execute("ROLLBACK").await.is_err()
        {
            self.link = None;
        }
    }

    /// Something succeeded: who reads may go on, and what was in doubt is read anew.
    async fn recovered(&mut self) {
        self.failing_since = None;
        if set_broken(&self.broken, None) {
            tracing::info!("store writes again");
        }
        let now = self.clock.moment();
        if self.in_doubt.is_empty() || now < self.settle_at {
            return;
        }
        match self.settle().await {
            Ok(()) => {
                self.queue.tell(&Commit { reopened: true, tenancy: true, ..Commit::default() });
            }
            Err(failure) => {
                tracing::debug!(?failure, "a group is in doubt, looking again");
                self.settle_at = now.plus(SETTLE_EVERY);
                self.roll_back().await;
            }
        }
    }

    /// Settles groups of which nobody knows whether they happened: the id of one that is under way is waited for, and one
    /// that is not there is taken, so that its group cannot happen any more. Before that, what a lane is built from could
    /// be outdated by it.
    async fn settle(&mut self) -> Result<(), Failure> {
        while let (Some(group), Some(link)) = (self.in_doubt.last(), &self.link) {
            let begin = format!("BEGIN; SET LOCAL lock_timeout = {SETTLE_LOCK_MILLIS}");
            let settled = async {
                link.client.batch_execute(&begin).await.map_err(Failure::before_commit)?;
                let params: [&(dyn ToSql + Sync); 1] = [group];
                let taking = link.client.execute(&link.statements.group, &params);
                taking.await.map_err(Failure::before_commit)?;
                link.client.batch_execute("COMMIT").await.map_err(Failure::in_commit)
            };
            let late = |_| Failure::Lost("PostgreSQL: no answer".to_owned());
            match tokio::time::timeout(READ_WAIT, settled).await.map_err(late).flatten() {
                Ok(()) => {
                    self.in_doubt.pop();
                }
                Err(failure) => {
                    if !matches!(failure, Failure::Again(_)) {
                        self.link = None;
                    }
                    return Err(failure);
                }
            }
        }
        if self.in_doubt.is_empty() {
            return Ok(());
        }
        Err(Failure::Lost("no connection".to_owned()))
    }

    /// A quiet moment: finds out whether a database that was away is back. Without it a server that nobody writes to would
    /// call itself not ready for ever. A connection that was lost is made again, so that it is known where it leads.
    async fn idle(&mut self) {
        let lost = self.link.as_ref().is_none_or(|link| link.client.is_closed());
        if self.failing_since.is_some() || lost || !self.in_doubt.is_empty() {
            drop(self.work(&Job::TokenUses(Vec::new())).await);
        }
    }
}

/// Says what readers answer to whether all is well; gives whether that is new.
fn set_broken(broken: &Broken, reason: Option<String>) -> bool {
    let mut place = broken.lock().unwrap_or_else(PoisonError::into_inner);
    let is_new = place.is_some() != reason.is_some();
    *place = reason;
    is_new
}

/// What became of a commit that was sent.
fn settled(
    done: Result<Result<(), Failure>, tokio::time::error::Elapsed>,
    doubtful: &mut Option<Outcome>,
) -> Result<Outcome, Failure> {
    match done {
        Ok(Ok(())) => Ok(doubtful.take().unwrap_or_default()),
        Ok(Err(failure)) => {
            if !matches!(failure, Failure::Unknown(_)) {
                *doubtful = None;
            }
            Err(failure)
        }
        Err(_) => Err(Failure::Unknown("PostgreSQL: no answer to a commit".to_owned())),
    }
}

/// A transaction before its commit.
struct Prepared {
    outcome: Outcome,
    /// What is still to be written; `None` when there is nothing to commit.
    writes: Option<Writes>,
}

async fn prepare(
    setting: Setting<'_>,
    remembered: &mut Remembered,
    keys: &Keyring,
    group: Uuid,
    job: &Job<'_>,
) -> Result<Prepared, Failure> {
    match job {
        Job::Group(work) => {
            let (outcome, writes) = group::run(setting, remembered, group, work).await?;
            let writes = if writes.is_empty() { None } else { Some(writes) };
            Ok(Prepared { outcome, writes })
        }
        Job::Rare(waiting) => {
            group::begin(setting.client, setting.statements, group).await?;
            rare(setting, keys, waiting).await
        }
        Job::TokenUses(tokens) => {
            group::begin(setting.client, setting.statements, group).await?;
            tenancy::note_token_uses(setting.client, tokens, setting.now)
                .await
                .map_err(Failure::before_commit)?;
            Ok(Prepared { outcome: Outcome::default(), writes: Some(Writes::default()) })
        }
    }
}

async fn rare(
    setting: Setting<'_>,
    keys: &Keyring,
    waiting: &Waiting,
) -> Result<Prepared, Failure> {
    let mut change = Change {
        client: setting.client,
        ids: setting.ids,
        keys,
        now: setting.now,
        origin: waiting.origin,
        audit: Audit::default(),
        commit: Commit::default(),
        shards: std::collections::BTreeSet::new(),
    };
    let done = async {
        let reply = commands::run(&mut change, &waiting.command).await?;
        audit::write_all(&mut change).await?;
        count_changes(&mut change).await?;
        Ok(reply)
    };
    match done.await {
        Ok(reply) => {
            let outcome =
                Outcome { commit: change.commit, replies: vec![Ok(reply)], ..Outcome::default() };
            Ok(Prepared { outcome, writes: Some(Writes::default()) })
        }
        Err(Stop::Refused(error)) => {
            let outcome = Outcome { replies: vec![Err(error)], ..Outcome::default() };
            Ok(Prepared { outcome, writes: None })
        }
        Err(Stop::Failed(error)) => Err(Failure::before_commit(error)),
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
