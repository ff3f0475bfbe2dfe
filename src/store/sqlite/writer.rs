//! The one thread that writes: takes a group, runs it as one transaction, syncs once, answers everyone.
//!
//! A command is refused before its first write or by it, so that a refused one leaves nothing behind and needs no
//! savepoint; [`Change::attempt`] checks that. Any other failure ends the group: everyone in it is told that the
//! outcome is unknown. After a full disk the transaction is rolled back and work goes on. After any other failure,
//! or one that left the connection in doubt, every connection is closed and the file opened again, because what
//! a connection remembers of a log that failed to reach the disk cannot be trusted. A store that goes on failing is
//! tried every [`REOPEN_WAIT`], however many groups arrive.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};

use super::emails::Emails;
use super::pool::Pool;
use super::retention::Retention;
use super::services::Services;
use super::upkeep::Upkeep;
use super::{audit, contacts, deliveries, open_writer, progress, secrets, subscriptions, tenancy};
use crate::domain::audit::{Action, Origin, SERVER, Subject};
use crate::domain::clock::{Clock, Moment, Timestamp};
use crate::domain::id::{AppId, IdMaker, ServiceId};
use crate::domain::tenancy::TokenHash;
use crate::store::audit_rows::Audit;
use crate::store::command::{Command, ContactAnswer, ContactChange, Reply};
use crate::store::keyring::Keyring;
use crate::store::queue::{Caller, Group, Queue, RecordListener, Taken};
use crate::store::{Commit, Error};

/// Quiet after which the writer checkpoints what it has written.
const CHECKPOINT_QUIET: Duration = Duration::from_millis(50);
/// Wait for work when there is nothing to checkpoint.
const IDLE_WAIT: Duration = Duration::from_secs(1);
/// Wait between two attempts to open a file that does not open, or to write to one that failed twice in a row.
const REOPEN_WAIT: Duration = Duration::from_millis(200);
/// Time between two slices of upkeep while there is work; each is about a millisecond.
const UPKEEP_EVERY: Duration = Duration::from_secs(1);

/// Longest write-ahead log in bytes. While reads overlap without a gap SQLite never starts it anew; beyond this
/// readers are held off for a moment. Larger takes disk, smaller holds readers off more often.
const LOG_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// Shortest pause between two slices of upkeep: leaves most of the time to groups.
const UPKEEP_PAUSE: Duration = Duration::from_millis(5);

/// Why a command was not done.
pub(super) enum Stop {
    /// It is refused; the group goes on.
    Refused(Error),
    /// The store failed; the group is over.
    Failed(rusqlite::Error),
}

impl From<rusqlite::Error> for Stop {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

/// What makes new identifiers and seals new secrets.
struct Makers {
    ids: IdMaker,
    keys: Option<Keyring>,
}

/// The transaction that is being run.
pub(super) struct Change<'a> {
    pub(super) connection: &'a Connection,
    pub(super) services: &'a mut Services,
    pub(super) emails: &'a mut Emails,
    pub(super) ids: &'a IdMaker,
    /// None when the store was opened for something that needs no secrets.
    pub(super) keys: Option<&'a Keyring>,
    pub(super) now: Timestamp,
    /// Who asked for what is being run now.
    pub(super) origin: Origin,
    pub(super) audit: Audit,
    pub(super) commit: Commit,
}

impl<'a> Change<'a> {
    /// The keys of signing secrets.
    pub(super) fn keys(&self) -> Result<&'a Keyring, Error> {
        self.keys.ok_or_else(|| Error::Internal("opened without the keys of secrets".to_owned()))
    }

    /// Notes a change for the audit log. Only after its last write: what is refused has no entry.
    pub(super) fn note(&mut self, service: ServiceId, action: Action, subject: Subject) {
        self.audit.note(service, self.origin, action, subject);
    }

    /// Runs one command. A refusal after a write would leave half of it behind: that ends the group instead.
    fn attempt<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, Stop>,
    ) -> Result<Result<T, Error>, rusqlite::Error> {
        let before = self.connection.total_changes();
        match work(self) {
            Ok(done) => Ok(Ok(done)),
            Err(Stop::Refused(error)) if self.connection.total_changes() == before => {
                Ok(Err(error))
            }
            Err(Stop::Refused(error)) => {
                tracing::error!(error = %error, "command refused after a write");
                Err(rusqlite::Error::InvalidQuery)
            }
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    fn change_contacts(
        &mut self,
        service: ServiceId,
        changes: Vec<ContactChange>,
    ) -> Result<Vec<Result<ContactAnswer, Error>>, Stop> {
        self.services.get_mut(self.connection, service)?;
        let mut answers = Vec::with_capacity(changes.len());
        for change in changes {
            answers.push(self.attempt(|inner| contacts::apply(inner, service, change, None))?);
        }
        Ok(answers)
    }

    fn run(&mut self, command: Command) -> Result<Reply, Stop> {
        match command {
            Command::ChangeContact { service, change, key } => {
                contacts::apply(self, service, change, key).map(Reply::Contact)
            }
            Command::ChangeContacts { service, changes } => {
                self.change_contacts(service, changes).map(Reply::Contacts)
            }
            Command::CreateService(name) => {
                let service = tenancy::create_service(self, name)?;
                self.note(SERVER, Action::ServiceCreate, about_service(service.id));
                Ok(Reply::Service(service))
            }
            Command::DeleteService(service) => {
                tenancy::delete_service(self, service)?;
                self.note(SERVER, Action::ServiceDelete, about_service(service));
                Ok(Reply::Done)
            }
            Command::CreateApp(new) => {
                let token = Some(new.token.id());
                let app = tenancy::create_app(self, new)?;
                self.note(app.service, Action::AppCreate, Subject { token, ..about(app.id) });
                Ok(Reply::App(app))
            }
            Command::DeleteApp(service, app) => {
                tenancy::delete_app(self, service, app)?;
                self.note(service, Action::AppDelete, about(app));
                Ok(Reply::Done)
            }
            Command::RotateToken { service, app, token, earlier_until } => {
                tenancy::rotate_token(self, service, app, token, earlier_until)?;
                let subject = Subject { token: Some(token.id()), ..about(app) };
                self.note(service, Action::TokenRotate, subject);
                Ok(Reply::Done)
            }
            Command::RotateSecret { service, app, secret, earlier_until } => {
                secrets::rotate_secret(self, service, app, &secret, earlier_until)?;
                self.note(service, Action::SecretRotate, about(app));
                Ok(Reply::Done)
            }
            Command::SetSubscription { service, app, ticket, wish } => {
                subscriptions::set_subscription(self, service, app, ticket, &wish)
                    .map(|subscription| Reply::Subscription(Box::new(subscription)))
            }
            Command::Redeliver { service, app, sequence, later } => {
                deliveries::redeliver(self, service, app, sequence, &later)?;
                let subject = Subject { sequence: Some(sequence), ..about(app) };
                self.note(service, Action::Redeliver, subject);
                Ok(Reply::Done)
            }
            Command::Replay { service, app, from } => {
                let replayed = deliveries::replay(self, service, app, from)?;
                let subject = Subject { sequence: Some(replayed.after), ..about(app) };
                self.note(service, Action::Replay, subject);
                Ok(Reply::Replayed(replayed))
            }
            Command::SetAdminToken(token) => {
                tenancy::set_admin_token(self, token)?;
                self.note(SERVER, Action::AdminTokenSet, about_token(token));
                Ok(Reply::Done)
            }
            Command::SetFirstAdminToken(token) => self.set_first_admin_token(token),
            Command::RotateAdminToken { token, earlier_until } => {
                tenancy::rotate_admin_token(self, token, earlier_until)?;
                self.note(SERVER, Action::AdminTokenRotate, about_token(token));
                Ok(Reply::Done)
            }
            Command::NoteTokenUse(token) => {
                tenancy::note_token_use(self, token).map(|()| Reply::Done)
            }
        }
    }
}

impl Change<'_> {
    fn set_first_admin_token(&mut self, token: TokenHash) -> Result<Reply, Stop> {
        let is_first = tenancy::set_first_admin_token(self, token)?;
        if is_first {
            self.note(SERVER, Action::AdminTokenSet, about_token(token));
        }
        Ok(Reply::IsFirst(is_first))
    }
}

/// A change of an app or of what belongs to it.
fn about(app: AppId) -> Subject {
    Subject { app: Some(app), ..Subject::default() }
}

fn about_service(service: ServiceId) -> Subject {
    Subject { service: Some(service), ..Subject::default() }
}

fn about_token(token: TokenHash) -> Subject {
    Subject { token: Some(token.id()), ..Subject::default() }
}

/// Everyone who waits for a group, with what to tell them once it is committed.
#[derive(Default)]
struct Answers {
    callers: Vec<(Caller, Result<Reply, Error>)>,
    listeners: Vec<(RecordListener, Result<(), Error>)>,
}

impl Answers {
    fn give(self) {
        for (listener, result) in self.listeners {
            listener(result);
        }
        for (caller, result) in self.callers {
            caller.answer(result);
        }
    }

    fn fail(self, error: &Error) {
        for (listener, _) in self.listeners {
            listener(Err(error.clone()));
        }
        for (caller, _) in self.callers {
            caller.answer(Err(error.clone()));
        }
    }
}

/// The writer of one file.
pub(super) struct Writer {
    path: PathBuf,
    /// `None` while the file cannot be opened.
    connection: Option<Connection>,
    queue: Arc<Queue>,
    pool: Arc<Pool>,
    clock: Arc<dyn Clock>,
    services: Services,
    emails: Emails,
    makers: Makers,
    checkpointed: bool,
    upkeep: Upkeep,
    upkeep_at: Moment,
    /// While the store keeps failing, groups are refused until then: many callers must not make it open the file
    /// again at once each time, with all that is built anew after it.
    retry_at: Moment,
    failing: bool,
}

impl Writer {
    pub(super) fn new(
        path: PathBuf,
        connection: Connection,
        queue: Arc<Queue>,
        pool: Arc<Pool>,
        clock: Arc<dyn Clock>,
        retention: Retention,
        keys: Option<Keyring>,
    ) -> Self {
        let now = clock.moment();
        Self {
            path,
            connection: Some(connection),
            queue,
            pool,
            clock,
            services: Services::default(),
            emails: Emails::default(),
            makers: Makers { ids: IdMaker::new(), keys },
            checkpointed: true,
            upkeep: Upkeep::new(retention),
            upkeep_at: now,
            retry_at: now,
            failing: false,
        }
    }

    /// Works until the queue is closed and empty, then closes the file.
    pub(super) fn run(mut self) {
        let queue = Arc::clone(&self.queue);
        loop {
            let patience = match (&self.connection, self.checkpointed) {
                (None, _) => REOPEN_WAIT,
                (Some(_), false) => CHECKPOINT_QUIET,
                (Some(_), true) => IDLE_WAIT,
            };
            let upkeep_in = self.upkeep_at.since(self.clock.moment()).max(UPKEEP_PAUSE);
            let taken = queue.take_group(patience.min(upkeep_in));
            if self.connection.is_none() && !self.is_waiting() {
                self.reopen();
            }
            match taken {
                Taken::Group(group) => self.run_group(group),
                Taken::Idle => self.idle(),
                Taken::Closed => break,
            }
            if self.clock.moment() >= self.upkeep_at {
                self.upkeep();
            }
        }
        self.pool.suspend();
        if let Some(connection) = self.connection.take()
            && let Err((_, error)) = connection.close()
        {
            tracing::warn!(error = %error, "store not closed cleanly");
        }
    }

    fn run_group(&mut self, group: Group) {
        let is_waiting = self.is_waiting();
        let Some(connection) = self.connection.as_mut().filter(|_| !is_waiting) else {
            group.fail(&Error::Unavailable("the store failed a moment ago".to_owned()));
            return;
        };
        self.checkpointed = false;
        let mut answers = Answers::default();
        let now = self.clock.now();
        let (services, emails) = (&mut self.services, &mut self.emails);
        match transact(connection, services, emails, &self.makers, now, group, &mut answers) {
            Ok(commit) => {
                self.recovered();
                self.queue.tell(&commit);
                answers.give();
                self.services.trim();
            }
            Err(failure) => self.abandon(&failure, answers),
        }
    }

    /// Whether it failed too recently to be tried again.
    fn is_waiting(&self) -> bool {
        self.failing && self.clock.moment() < self.retry_at
    }

    /// Ends a failed group: nothing of it may stay in memory or in an open transaction.
    fn abandon(&mut self, failure: &Failure, answers: Answers) {
        let error = Error::Unavailable(failure.error.to_string());
        if !self.failing {
            tracing::error!(error = %failure.error, during = failure.during, "store failed in a group");
        }
        let again = std::mem::replace(&mut self.failing, true);
        self.pool.set_broken(Some(failure.error.to_string()));
        self.services.forget();
        self.emails.forget();
        let clean = self.connection.as_ref().is_some_and(|connection| {
            // SQLite may have rolled back under us; a ROLLBACK then would itself be an error.
            connection.is_autocommit() || connection.execute_batch("ROLLBACK").is_ok()
        });
        let full = failure.error.sqlite_error_code() == Some(ErrorCode::DiskFull);
        if !(clean && full) {
            if again {
                self.retry_at = self.clock.moment().plus(REOPEN_WAIT);
            }
            self.connection = None;
            self.reopen();
        }
        answers.fail(&error);
    }

    /// Closes every connection and opens the file anew; on success everything in memory is built again from it.
    fn reopen(&mut self) {
        self.pool.suspend();
        self.connection = None;
        let opened = open_writer(&self.path).and_then(|connection| {
            connection
                .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
                .map_err(|error| Error::Unavailable(error.to_string()))?;
            Ok(connection)
        });
        match opened {
            Ok(connection) => {
                self.connection = Some(connection);
                self.pool.resume();
                self.queue.tell(&Commit { reopened: true, tenancy: true, ..Commit::default() });
                tracing::warn!("store opened again after a failure");
            }
            Err(error) => {
                self.retry_at = self.clock.moment().plus(REOPEN_WAIT);
                if self.pool.stay_away() {
                    tracing::error!(error = %error, "store cannot be opened again");
                }
            }
        }
    }

    /// A quiet moment: find out whether a store that failed works again, and move what was written from the log
    /// into the database file.
    fn idle(&mut self) {
        if self.failing && !self.is_waiting() {
            self.probe();
        }
        if self.checkpointed {
            return;
        }
        self.checkpointed = true;
        if let Some(connection) = &self.connection
            && let Err(error) =
                connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
        {
            tracing::debug!(error = %error, "checkpoint failed");
        }
    }

    /// Writes one row: without it a server that nobody writes to would call itself not ready for ever.
    fn probe(&mut self) {
        let Some(connection) = &self.connection else { return };
        let now = self.clock.now().millis();
        let written = connection
            .execute("INSERT OR REPLACE INTO meta (name, value) VALUES ('write_probe', ?1)", [now]);
        match written {
            Ok(_) => self.recovered(),
            Err(error) => {
                self.abandon(&Failure { error, during: "probe" }, Answers::default());
            }
        }
    }

    fn recovered(&mut self) {
        if self.failing {
            self.failing = false;
            self.pool.set_broken(None);
            tracing::info!("store writes again");
        }
    }

    /// Starts an overlong log anew: with no reader at work everything in it can go into the database file.
    fn shorten_log(&mut self) {
        let mut log = self.path.clone().into_os_string();
        log.push("-wal");
        let bytes = std::fs::metadata(log).map_or(0, |file| file.len());
        let Some(connection) = self.connection.as_ref().filter(|_| bytes > LOG_BYTES_MAX) else {
            return;
        };
        self.pool.suspend();
        let done = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        self.pool.resume();
        match done {
            Ok(()) => tracing::info!(log_bytes = bytes, "write-ahead log shortened"),
            Err(error) => tracing::warn!(error = %error, "write-ahead log not shortened"),
        }
    }

    fn upkeep(&mut self) {
        self.shorten_log();
        let now = self.clock.now();
        let Some(connection) = &mut self.connection else {
            return;
        };
        let wait = match self.upkeep.run_slice(connection, now) {
            Ok(slice) => {
                if !slice.subscriptions.is_empty() {
                    let subscriptions = slice.subscriptions;
                    self.queue.tell(&Commit { subscriptions, ..Commit::default() });
                }
                if slice.removed { Duration::ZERO } else { UPKEEP_EVERY }
            }
            Err(error) => {
                let failure = Failure { error, during: "upkeep" };
                self.abandon(&failure, Answers::default());
                UPKEEP_EVERY
            }
        };
        self.upkeep_at = self.clock.moment().plus(wait);
    }
}

/// What ended a group, and where.
struct Failure {
    error: rusqlite::Error,
    during: &'static str,
}

/// Runs a group as one transaction. `answers` has everyone who waits, whether it succeeds or not.
fn transact(
    connection: &mut Connection,
    services: &mut Services,
    emails: &mut Emails,
    makers: &Makers,
    now: Timestamp,
    group: Group,
    answers: &mut Answers,
) -> Result<Commit, Failure> {
    let mut failure = connection
        .execute_batch("BEGIN IMMEDIATE")
        .err()
        .map(|error| Failure { error, during: "begin" });
    let Makers { ids, keys } = makers;
    let keys = keys.as_ref();
    let (audit, commit) = (Audit::default(), Commit::default());
    let origin = Origin::SYSTEM;
    let mut change = Change { connection, services, emails, ids, keys, now, origin, audit, commit };
    for waiting in group.records {
        let mut result = Ok(());
        if failure.is_none() {
            match change.attempt(|change| progress::record(change, &waiting.record)) {
                Ok(done) => result = done,
                Err(error) => failure = Some(Failure { error, during: "record" }),
            }
        }
        answers.listeners.push((waiting.listener, result));
    }
    for waiting in group.commands {
        let mut result = Ok(Reply::Done);
        change.origin = waiting.origin;
        if failure.is_none() {
            match change.attempt(|change| change.run(waiting.command)) {
                Ok(done) => result = done,
                Err(error) => failure = Some(Failure { error, during: "command" }),
            }
        }
        answers.callers.push((waiting.caller, result));
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    let (noted, commit) = (change.audit, change.commit);
    audit::write(noted, connection, services, now)
        .map_err(|error| Failure { error, during: "audit log" })?;
    emails.merge(connection).map_err(|error| Failure { error, during: "e-mails" })?;
    services.write(connection).map_err(|error| Failure { error, during: "heads" })?;
    connection.execute_batch("COMMIT").map_err(|error| Failure { error, during: "commit" })?;
    Ok(commit)
}
