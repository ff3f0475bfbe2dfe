//! The queue in front of a back end's writer: bounded, with a share of every group kept for the engine's records.
//!
//! Callers wait for a place, hand in a command and await its reply. The writer takes a group, runs it as one
//! transaction, and answers everyone after the commit. When a caller goes away, its command still happens.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::command::{
    Command, ContactAnswer, ContactChange, IdempotencyKey, NewApp, Reply, SubscriptionWish,
};
use super::rows::{LaterEvents, Record, ReplayFrom, Replayed};
use super::{Answer, Commit, CommitListener, Error};
use crate::domain::audit::Origin;
use crate::domain::clock::Timestamp;
use crate::domain::id::{AppId, ServiceId};
use crate::domain::subscription::{SigningSecret, Subscription};
use crate::domain::tenancy::{App, Service, TokenHash};

/// Most commands in a group. More lengthens the wait of the first caller, fewer costs a sync each.
pub const GROUP_COMMANDS_MAX: usize = 512;
/// Most bytes of commands in a group: keeps one group's share of the write-ahead log small.
pub const GROUP_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Most engine records in a group, beside the commands: so neither can shut the other out.
pub const GROUP_RECORDS_MAX: usize = 1024;
/// Most commands that wait. Four full groups: what waits longer than that is better told so.
pub const QUEUE_COMMANDS_MAX: usize = 2048;
/// Most bytes of commands that wait.
pub const QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Who gets the result of a record: called on the writer's thread after the group, must not block.
pub type RecordListener = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// A command that waits, with its caller.
pub struct Waiting {
    /// The command.
    pub command: Command,
    /// Who asked for it, and from where.
    pub origin: Origin,
    /// Who awaits the reply.
    pub caller: Caller,
}

/// Who awaits the reply to a command.
pub struct Caller {
    reply: oneshot::Sender<Result<Reply, Error>>,
    // Given back when the command is done, also when its caller has gone away.
    _permits: [OwnedSemaphorePermit; 2],
}

impl Caller {
    /// Answers the caller; one that has gone away is no fault.
    pub fn answer(self, result: Result<Reply, Error>) {
        drop(self.reply.send(result));
    }
}

/// A record that waits.
pub struct WaitingRecord {
    /// The record.
    pub record: Record,
    /// Who hears of it.
    pub listener: RecordListener,
}

/// What one transaction takes.
#[derive(Default)]
pub struct Group {
    /// The engine's records: they come first, so that what is finished is known before more is accepted.
    pub records: Vec<WaitingRecord>,
    /// The commands, in order of arrival.
    pub commands: Vec<Waiting>,
}

impl Group {
    /// Ends the group for everyone in it.
    pub fn fail(self, error: &Error) {
        for waiting in self.commands {
            waiting.caller.answer(Err(error.clone()));
        }
        for waiting in self.records {
            (waiting.listener)(Err(error.clone()));
        }
    }
}

#[derive(Default)]
struct Inner {
    commands: VecDeque<Waiting>,
    records: VecDeque<WaitingRecord>,
    closed: bool,
}

/// What writers take groups from.
#[derive(Default)]
pub struct Queue {
    inner: Mutex<Inner>,
    filled: Condvar,
    listeners: Mutex<Vec<CommitListener>>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Queue")
    }
}

/// What a wait for a group ended with.
pub enum Taken {
    /// Work.
    Group(Group),
    /// Nothing arrived in time: a moment for upkeep.
    Idle,
    /// The queue is closed and empty.
    Closed,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits up to `patience` for work.
    #[must_use]
    pub fn take_group(&self, patience: Duration) -> Taken {
        let mut inner = self.lock();
        if inner.commands.is_empty() && inner.records.is_empty() && !inner.closed {
            inner = self
                .filled
                .wait_timeout_while(inner, patience, |inner| {
                    inner.commands.is_empty() && inner.records.is_empty() && !inner.closed
                })
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        if inner.commands.is_empty() && inner.records.is_empty() {
            return if inner.closed { Taken::Closed } else { Taken::Idle };
        }
        let mut group = Group::default();
        let records = inner.records.len().min(GROUP_RECORDS_MAX);
        group.records.extend(inner.records.drain(..records));
        let mut bytes = 0;
        while group.commands.len() < GROUP_COMMANDS_MAX
            && let Some(next) = inner.commands.front()
        {
            bytes += next.command.size();
            if bytes > GROUP_BYTES_MAX && !group.commands.is_empty() {
                break;
            }
            group.commands.extend(inner.commands.pop_front());
        }
        Taken::Group(group)
    }

    /// Hands a record to the writer. Bounded by the engine: at most one record waits per lane.
    pub fn push_record(&self, waiting: WaitingRecord) {
        let mut inner = self.lock();
        if inner.closed {
            drop(inner);
            (waiting.listener)(Err(closed()));
            return;
        }
        inner.records.push_back(waiting);
        drop(inner);
        self.filled.notify_one();
    }

    fn push(&self, waiting: Waiting) {
        let mut inner = self.lock();
        if inner.closed {
            drop(inner);
            waiting.caller.answer(Err(closed()));
            return;
        }
        inner.commands.push_back(waiting);
        drop(inner);
        self.filled.notify_one();
    }

    /// Lets nothing more in; what waits is still done.
    pub fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
    }

    /// Adds one who hears of commits, before the server accepts requests.
    pub fn add_listener(&self, listener: CommitListener) {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
    }

    /// Tells everyone of a commit.
    pub fn tell(&self, commit: &Commit) {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for listener in listeners {
            listener(commit);
        }
    }
}

fn closed() -> Error {
    Error::Unavailable("the server is stopping".to_owned())
}

/// Numbers requests to subscribe in the order of their arrival, over everybody who writes to the store.
pub trait Tickets: Send + Sync + std::fmt::Debug {
    /// The next number.
    fn take(&self) -> Answer<'_, u64>;
}

/// The numbers of a process that has the store for itself.
#[derive(Debug)]
struct LocalTickets(AtomicU64);

impl Tickets for LocalTickets {
    fn take(&self) -> Answer<'_, u64> {
        let ticket = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        Box::pin(std::future::ready(Ok(ticket)))
    }
}

/// The writing side of a store. Each method is one command: it happens whole or not at all.
///
/// Dropping the future of a method does not take the command back.
#[derive(Clone, Debug)]
pub struct Write {
    queue: Arc<Queue>,
    places: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    tickets: Arc<dyn Tickets>,
    origin: Origin,
}

impl Write {
    /// The writing side of this queue, for commands on this machine; `ticket` is the highest ticket that ever stored.
    #[must_use]
    pub fn new(queue: Arc<Queue>, ticket: u64) -> Self {
        Self {
            queue,
            places: Arc::new(Semaphore::new(QUEUE_COMMANDS_MAX)),
            bytes: Arc::new(Semaphore::new(QUEUE_BYTES_MAX / BYTES_PER_PERMIT)),
            tickets: Arc::new(LocalTickets(AtomicU64::new(ticket))),
            origin: Origin::LOCAL,
        }
    }

    /// The same, for commands of this origin. The audit log names it.
    #[must_use]
    pub fn by(&self, origin: Origin) -> Self {
        Self { origin, ..self.clone() }
    }

    /// The queue behind it.
    #[must_use]
    pub fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }

    /// The same, with tickets that other processes share.
    #[must_use]
    pub fn with_tickets(self, tickets: Arc<dyn Tickets>) -> Self {
        Self { tickets, ..self }
    }

    /// The next place in the order of arrival of subscription requests.
    ///
    /// # Errors
    ///
    /// Unavailable.
    pub async fn take_ticket(&self) -> Result<u64, Error> {
        self.tickets.take().await
    }

    async fn submit(&self, command: Command) -> Result<Reply, Error> {
        let units =
            command.size().div_ceil(BYTES_PER_PERMIT).min(QUEUE_BYTES_MAX / BYTES_PER_PERMIT);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let bytes =
            Arc::clone(&self.bytes).acquire_many_owned(units).await.map_err(|_| closed())?;
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| closed())?;
        let (reply, answer) = oneshot::channel();
        let caller = Caller { reply, _permits: [bytes, place] };
        self.queue.push(Waiting { command, origin: self.origin, caller });
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Has the writer record the hour in which a token is used, at some time. Nobody waits for it; when the queue is
    /// full it is left out, and the next use tries again.
    pub fn note_token_use(&self, token: TokenHash) {
        let command = Command::NoteTokenUse(token);
        let units = u32::try_from(command.size().div_ceil(BYTES_PER_PERMIT)).unwrap_or(u32::MAX);
        let bytes = Arc::clone(&self.bytes).try_acquire_many_owned(units);
        let place = Arc::clone(&self.places).try_acquire_owned();
        if let (Ok(bytes), Ok(place)) = (bytes, place) {
            let (reply, _) = oneshot::channel();
            let caller = Caller { reply, _permits: [bytes, place] };
            self.queue.push(Waiting { command, origin: self.origin, caller });
        }
    }

    /// Changes one contact.
    ///
    /// # Errors
    ///
    /// Not found, refused, conflict, version mismatch, key reused, unavailable.
    pub async fn change_contact(
        &self,
        service: ServiceId,
        change: ContactChange,
        key: Option<IdempotencyKey>,
    ) -> Result<ContactAnswer, Error> {
        match self.submit(Command::ChangeContact { service, change, key }).await? {
            Reply::Contact(answer) => Ok(answer),
            other => Err(mismatch(&other)),
        }
    }

    /// Changes contacts in order; the refused are left out. One result for each change.
    ///
    /// # Errors
    ///
    /// Not found when the service is not there, unavailable.
    pub async fn change_contacts(
        &self,
        service: ServiceId,
        changes: Vec<ContactChange>,
    ) -> Result<Vec<Result<ContactAnswer, Error>>, Error> {
        match self.submit(Command::ChangeContacts { service, changes }).await? {
            Reply::Contacts(answers) => Ok(answers),
            other => Err(mismatch(&other)),
        }
    }

    /// Creates a service.
    ///
    /// # Errors
    ///
    /// Unavailable.
    pub async fn create_service(&self, name: String) -> Result<Service, Error> {
        match self.submit(Command::CreateService(name)).await? {
            Reply::Service(service) => Ok(service),
            other => Err(mismatch(&other)),
        }
    }

    /// Hides a service at once; its rows are removed in slices. No notifications are sent for that.
    ///
    /// # Errors
    ///
    /// Not found, unavailable.
    pub async fn delete_service(&self, service: ServiceId) -> Result<(), Error> {
        self.submit(Command::DeleteService(service)).await.map(|_| ())
    }

    /// Creates an app.
    ///
    /// # Errors
    ///
    /// Not found when the service is not there, unavailable.
    pub async fn create_app(&self, app: NewApp) -> Result<App, Error> {
        match self.submit(Command::CreateApp(app)).await? {
            Reply::App(app) => Ok(app),
            other => Err(mismatch(&other)),
        }
    }

    /// Removes an app.
    ///
    /// # Errors
    ///
    /// Not found, unavailable.
    pub async fn delete_app(&self, service: ServiceId, app: AppId) -> Result<(), Error> {
        self.submit(Command::DeleteApp(service, app)).await.map(|_| ())
    }

    /// Gives an app a new token; the earlier ones work until `earlier_until`.
    ///
    /// # Errors
    ///
    /// Not found, unavailable.
    pub async fn rotate_token(
        &self,
        service: ServiceId,
        app: AppId,
        token: TokenHash,
        earlier_until: Timestamp,
    ) -> Result<(), Error> {
        let command = Command::RotateToken { service, app, token, earlier_until };
        self.submit(command).await.map(|_| ())
    }

    /// Gives an app a new signing secret; the earlier ones sign until `earlier_until`, as
    /// many of them as [`SIGNING_SECRETS_MAX`](crate::domain::subscription::SIGNING_SECRETS_MAX) leaves room for.
    ///
    /// # Errors
    ///
    /// Not found, unavailable.
    pub async fn rotate_secret(
        &self,
        service: ServiceId,
        app: AppId,
        secret: SigningSecret,
        earlier_until: Timestamp,
    ) -> Result<(), Error> {
        let command = Command::RotateSecret { service, app, secret, earlier_until };
        self.submit(command).await.map(|_| ())
    }

    /// Stores what an app wants, unless a later ticket has stored.
    ///
    /// # Errors
    ///
    /// Superseded, not found when the app is not there, unavailable.
    pub async fn set_subscription(
        &self,
        service: ServiceId,
        app: AppId,
        ticket: u64,
        wish: SubscriptionWish,
    ) -> Result<Subscription, Error> {
        match self.submit(Command::SetSubscription { service, app, ticket, wish }).await? {
            Reply::Subscription(subscription) => Ok(*subscription),
            other => Err(mismatch(&other)),
        }
    }

    /// Sends one event again, followed by its contact's newest finished event, so that the receiver does not end on
    /// an old state. One that waits behind another makes that one due.
    ///
    /// # Errors
    ///
    /// Not found when there is no such event, refused when the subscription is not enabled or holds too much,
    /// unavailable.
    pub async fn redeliver(
        &self,
        service: ServiceId,
        app: AppId,
        sequence: u64,
        later: LaterEvents,
    ) -> Result<(), Error> {
        let command = Command::Redeliver { service, app, sequence, later };
        self.submit(command).await.map(|_| ())
    }

    /// Sends everything after a point again; live events wait behind it.
    ///
    /// # Errors
    ///
    /// Refused when the subscription is not enabled or the point is beyond the log, not found when the app never
    /// subscribed, unavailable.
    pub async fn replay(
        &self,
        service: ServiceId,
        app: AppId,
        from: ReplayFrom,
    ) -> Result<Replayed, Error> {
        match self.submit(Command::Replay { service, app, from }).await? {
            Reply::Replayed(replayed) => Ok(replayed),
            other => Err(mismatch(&other)),
        }
    }

    /// Adds an admin token; the earlier ones work until `earlier_until`.
    ///
    /// # Errors
    ///
    /// Unavailable.
    pub async fn rotate_admin_token(
        &self,
        token: TokenHash,
        earlier_until: Timestamp,
    ) -> Result<(), Error> {
        self.submit(Command::RotateAdminToken { token, earlier_until }).await.map(|_| ())
    }

    /// Stores an admin token unless there is one that works already; tells whether it did. Of several processes that try
    /// at once, one does.
    ///
    /// # Errors
    ///
    /// Unavailable.
    pub async fn set_first_admin_token(&self, token: TokenHash) -> Result<bool, Error> {
        match self.submit(Command::SetFirstAdminToken(token)).await? {
            Reply::IsFirst(is_first) => Ok(is_first),
            other => Err(mismatch(&other)),
        }
    }

    /// Replaces the stored admin tokens.
    ///
    /// # Errors
    ///
    /// Unavailable.
    pub async fn set_admin_token(&self, token: TokenHash) -> Result<(), Error> {
        self.submit(Command::SetAdminToken(token)).await.map(|_| ())
    }
}

/// Bytes that one permit of the byte limit stands for.
const BYTES_PER_PERMIT: usize = 1024;

fn mismatch(reply: &Reply) -> Error {
    Error::Internal(format!("unexpected reply {reply:?}"))
}
