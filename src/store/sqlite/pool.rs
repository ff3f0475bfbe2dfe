//! Reader connections: at most [`READERS`], opened when needed, all closed together when the file is opened anew.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::{open_reader, unavailable};
use crate::store::{Answer, Error};

/// Readers at once. Reads are short and the machine has few cores: more would only take turns.
const READERS: usize = 4;
/// Reads of many rows at once: the others stay free for look-ups and for the engine.
const SCANS: usize = 2;
/// Longest wait for the file to be opened again before a read is answered "unavailable".
const REOPEN_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Inner {
    idle: Vec<Connection>,
    busy: usize,
    suspended: bool,
    /// The file did not open: who wants to read need not wait for it.
    away: bool,
    broken: Option<String>,
}

/// The readers of one file.
#[derive(Debug)]
pub(super) struct Pool {
    path: PathBuf,
    inner: Mutex<Inner>,
    changed: Condvar,
    places: Arc<Semaphore>,
    scans: Arc<Semaphore>,
}

impl Pool {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            inner: Mutex::default(),
            changed: Condvar::new(),
            places: Arc::new(Semaphore::new(READERS)),
            scans: Arc::new(Semaphore::new(SCANS)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a read on a blocking thread. Reads that need one state over several statements open a transaction.
    pub(super) fn read<T, F>(self: &Arc<Self>, work: F) -> Answer<'_, T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, rusqlite::Error> + Send + 'static,
    {
        let pool = Arc::clone(self);
        Box::pin(async move {
            let stopping = |_| Error::Unavailable("the server is stopping".to_owned());
            let place = Arc::clone(&pool.places).acquire_owned().await.map_err(stopping)?;
            let done = tokio::task::spawn_blocking(move || {
                let _place = place;
                let connection = pool.take()?;
                let result = work(&connection);
                pool.give_back(connection);
                result.map_err(|error| unavailable(&error))
            });
            done.await.map_err(|error| Error::Internal(format!("a read panicked: {error}")))?
        })
    }

    /// Runs a read that may look at every row of a service, or that many callers make at the same moment; at most
    /// [`SCANS`] run at once.
    pub(super) fn scan<T, F>(self: &Arc<Self>, work: F) -> Answer<'_, T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> Result<T, rusqlite::Error> + Send + 'static,
    {
        let scans = Arc::clone(&self.scans);
        let pool = Arc::clone(self);
        Box::pin(async move {
            let stopping = |_| Error::Unavailable("the server is stopping".to_owned());
            let _place = scans.acquire_owned().await.map_err(stopping)?;
            pool.read(work).await
        })
    }

    /// Whether reads work and the last group did not fail.
    pub(super) fn check(self: &Arc<Self>) -> Answer<'_, ()> {
        if let Some(reason) = self.lock().broken.clone() {
            return Box::pin(std::future::ready(Err(Error::Unavailable(reason))));
        }
        self.read(|connection| connection.query_row("SELECT 1", [], |_| Ok(())))
    }

    fn take(&self) -> Result<Connection, Error> {
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), REOPEN_PATIENCE, |inner| {
                inner.suspended && !inner.away
            })
            .unwrap_or_else(PoisonError::into_inner);
        let (mut inner, _) = waited;
        if inner.suspended {
            return Err(Error::Unavailable("the store is being opened again".to_owned()));
        }
        inner.busy += 1;
        if let Some(connection) = inner.idle.pop() {
            return Ok(connection);
        }
        drop(inner);
        open_reader(&self.path).map_err(|error| {
            self.lock().busy -= 1;
            self.changed.notify_all();
            unavailable(&error)
        })
    }

    fn give_back(&self, connection: Connection) {
        let mut inner = self.lock();
        inner.busy -= 1;
        if !inner.suspended {
            inner.idle.push(connection);
        }
        drop(inner);
        self.changed.notify_all();
    }

    /// Closes every reader and lets no new one in; waits for those at work.
    pub(super) fn suspend(&self) {
        let mut inner = self.lock();
        inner.suspended = true;
        let idle = std::mem::take(&mut inner.idle);
        let waited =
            self.changed.wait_timeout_while(inner, REOPEN_PATIENCE, |inner| inner.busy > 0);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        drop(idle);
    }

    /// Refuses readers at once, those that wait already too, until they are let in again: each place is held while
    /// its reader waits, so the others behind them would wait many times as long. Gives whether that is new.
    pub(super) fn stay_away(&self) -> bool {
        let was_away = std::mem::replace(&mut self.lock().away, true);
        self.changed.notify_all();
        !was_away
    }

    /// Lets readers in again.
    pub(super) fn resume(&self) {
        let mut inner = self.lock();
        inner.suspended = false;
        inner.away = false;
        drop(inner);
        self.changed.notify_all();
    }

    /// Says what [`Self::check`] answers: the failure of the last group, or that it went well.
    pub(super) fn set_broken(&self, reason: Option<String>) {
        self.lock().broken = reason;
    }
}
